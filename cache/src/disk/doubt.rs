//! Doubt: whether a file on the server is still what its unsent data was written over, and whether a
//! change of it that nobody has confirmed is our own (docs/decisions/0011).

use std::sync::Arc;

use gridvfs_vfs::{Error, Result, Vfs, WccAttr};

use super::node::{ConflictKind, Node, State};
use super::send::is_gone;
use super::{Core, attributes};
use crate::dirty::Extent;

/// How many pieces are looked for on the server when it may have some of them, and how many of
/// them at once: enough for one of those that were on their way first to be among them, whatever
/// the order in which they arrived.
const SUSPECTS_MAX: usize = 256;
const SUSPECTS_AT_ONCE: usize = 32;
/// So much of a piece's beginning and end is looked for, in bytes.
const PROBE_BYTES: u32 = 4096;

impl Core {
    /// Compares the file on the server with what its unsent data was written over. Returns whether
    /// it may be sent.
    pub async fn check_base(&self, node: &Arc<Node>) -> Result<bool> {
        let asked = self.ask();
        let attr = match self.buffer.getattr(&self.own, &node.handle).await {
            Ok(attr) => attr,
            Err(error) if is_gone(&error) => {
                if node.state.lock().said.remove_intent {
                    // By an earlier process of ours, which was killed before it could say so.
                    self.discard(&node.handle);
                    return Ok(false);
                }
                let mut state = node.state.lock();
                self.find_conflict(node, &mut state, ConflictKind::Removed);
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let signature = WccAttr::from(&attr);
        let in_doubt = {
            let mut state = node.state.lock();
            if state.changed_at > asked {
                // If others' change was told meanwhile, it is looked at once more.
                return Ok(state.told_at <= asked);
            }
            let known = state.settled && state.changing == 0;
            let base = state.base.filter(|_| known);
            let same = base.is_some_and(|base| attributes::same_data(&base, &signature));
            if !same && self.was_cut(node, &mut state, &signature)? {
                return Ok(true);
            }
            if same || base.is_none() {
                state.settled = true;
                // What was sent without an answer may still be on its way.
                state.in_doubt = state.failing.is_some() && state.said.sending_up_to.is_some();
                self.no_intents(node, &mut state)?;
                return self.rebase(node, &mut state, signature);
            }
            if state.is_timed(&signature) {
                return self.rebase(node, &mut state, signature);
            }
            state.in_doubt
        };
        // WRITEs that nobody has heard of again may have changed it: then the server has some of
        // the very data that was sent.
        if in_doubt && self.has_arrived(node).await? {
            let mut state = node.state.lock();
            state.base = Some(signature);
            state.in_doubt = state.failing.is_some();
            return Ok(true);
        }
        let mut state = node.state.lock();
        if !state.dirty.is_empty() {
            self.find_conflict(node, &mut state, ConflictKind::Changed);
        }
        Ok(false)
    }

    /// Notes what the unsent data is now over. Returns that it may be sent.
    fn rebase(&self, node: &Node, state: &mut State, signature: WccAttr) -> Result<bool> {
        state.base = Some(signature);
        let said = state.said.base;
        let known = said.is_some_and(|it| it.size == signature.size && it.mtime == signature.mtime);
        // The record ends what was said of data being sent: not while there is a doubt about that.
        if !known && !state.in_doubt {
            self.log(state, attributes::base_record(node, &signature))?;
        }
        Ok(true)
    }

    /// Says whether a process that was killed has cut the file to the size that it has now; then
    /// our data is cut, too.
    pub fn was_cut(&self, node: &Node, state: &mut State, signature: &WccAttr) -> Result<bool> {
        if !state.intents_in_doubt || state.said.cut_intent != Some(signature.size) {
            return Ok(false);
        }
        self.cut(node, state, signature.size, Some(signature))?;
        state.base = Some(*signature);
        state.settled = true;
        state.in_doubt = false;
        self.log(state, attributes::base_record(node, signature))?;
        Ok(true)
    }

    /// Says whether any piece of what was sent without an answer is on the server. What has been
    /// written over since counts, too, as long as the journal has it; where it has it no more,
    /// nothing tells, and nothing speaks against it.
    async fn has_arrived(&self, node: &Arc<Node>) -> Result<bool> {
        let suspects = {
            let state = node.state.lock();
            let Some(sending) = state.said.sending_up_to else { return Ok(false) };
            let mut suspects = state.suspects.clone();
            suspects.retain(|extent| extent.seq <= sending);
            sample(suspects)
        };
        if suspects.is_empty() {
            return Ok(true);
        }
        for some in suspects.chunks(SUSPECTS_AT_ONCE) {
            let mut found = tokio::task::JoinSet::new();
            for extent in some {
                let Some(core) = self.this.upgrade() else { return Err(Error::Interrupted) };
                let (node, extent) = (node.clone(), *extent);
                found.spawn(async move { core.is_there(&node, &extent).await });
            }
            while let Some(there) = found.join_next().await {
                if there.unwrap_or(Err(Error::Interrupted))? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Says whether the server has the beginning or the end of a piece, or nothing tells.
    async fn is_there(&self, node: &Arc<Node>, extent: &Extent) -> Result<bool> {
        let length = extent.len.min(PROBE_BYTES);
        let last = Extent {
            start: extent.end() - u64::from(length),
            skip: extent.skip + extent.len - length,
            len: length,
            ..*extent
        };
        let first = Extent { len: length, ..*extent };
        for probe in [first, last] {
            let group = self.read_group(node, vec![probe]).await?;
            let Some((offset, data)) = group.into_iter().next() else { return Ok(true) };
            let read = self.client.read(&self.own, &node.handle, offset, length).await?;
            if read.data == data[..] {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl State {
    /// Notes pieces that are about to be sent: some of many.
    pub fn suspect(&mut self, extents: &[Extent]) {
        self.suspects.extend(sample(extents.to_vec()));
        if self.suspects.len() > 4 * SUSPECTS_MAX {
            self.suspects = sample(std::mem::take(&mut self.suspects));
        }
    }
}

/// Takes a part of many pieces: half of it those that are sent first, the rest from all over.
pub(crate) fn sample(mut extents: Vec<Extent>) -> Vec<Extent> {
    const FIRST: usize = SUSPECTS_MAX / 2;
    if extents.len() <= SUSPECTS_MAX {
        return extents;
    }
    extents.sort_by_key(|extent| extent.start);
    let rest = extents.split_off(FIRST);
    let step = rest.len().div_ceil(SUSPECTS_MAX - FIRST);
    extents.extend(rest.into_iter().step_by(step));
    extents
}
