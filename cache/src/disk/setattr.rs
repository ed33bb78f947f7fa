//! Changes of attributes, and of space.

use std::sync::Arc;

use gridvfs_vfs::{
    Allocation, Attr, Caller, Error, FileHandle, Result, SetAttr, SetTime, Status, Time, Vfs, Wcc,
    WccAttr,
};

use super::node::{ConflictKind, Node, State};
use super::options::Policy;
use super::{Core, attributes, now};
use crate::crash;
use crate::journal::Record;

impl Core {
    pub async fn setattr(
        &self,
        caller: &Caller,
        file: &FileHandle,
        changes: &SetAttr,
        guard: Option<Time>,
    ) -> Result<Wcc> {
        self.refuse_if_read_only()?;
        if changes.size.is_some() {
            return self.resize(caller, file, changes, guard).await;
        }
        if let Some(node) = self.known(file) {
            if node.is_local() && changes.mode.is_some_and(sets_ids) && !self.keeps(&node) {
                // The WRITEs would clear them again.
                self.send(&node, false).await?;
            }
            if self.treatment(&node).is_lazy() {
                if guard.is_none()
                    && node.is_local()
                    && let Some(wcc) = self.hold_times(caller, &node, changes).await?
                {
                    return Ok(wcc);
                }
            } else if node.is_local() && changes.mtime != SetTime::Keep {
                // The WRITEs would set the time again.
                self.send(&node, false).await?;
            }
        }
        let node = self.known(file);
        let sets_times = changes.mtime != SetTime::Keep || changes.atime != SetTime::Keep;
        // Times that were held back may just be on their way: they must not come in after these.
        // Only then: who has the turn must not wait for names that wait for the file's data.
        let held = |node: &Node| {
            let state = node.state.lock();
            state.dirty.is_empty() && state.times != Default::default()
        };
        let _turn = match &node {
            Some(node) if sets_times && held(node) => Some(node.turn.lock().await),
            _ => None,
        };
        let changing = match &node {
            Some(node) if changes.mtime != SetTime::Keep => Some(node.changing()),
            _ => None,
        };
        let asked = self.ask();
        let mut wcc = self.buffer.setattr(caller, file, changes, guard).await?;
        if let Some(changing) = changing {
            changing.done();
        }
        match &node {
            Some(node) => {
                let mut state = node.state.lock();
                let quiet = state.can_judge(asked);
                let foreign = state.settled
                    && attributes::other_data(wcc.before.as_ref(), state.base.as_ref());
                if quiet && foreign && state.dirty.is_empty() {
                    // Others have changed the data before.
                    self.renew(node, &mut state, None);
                }
                if quiet && let Some(after) = &wcc.after {
                    self.take_own_base(&mut state, after);
                    state.settled = true;
                } else if changes.mtime != SetTime::Keep {
                    state.settled = false;
                }
                if changes.mtime != SetTime::Keep {
                    state.times = Default::default();
                    state.changed_at = self.tick();
                    self.changed(node, &mut state)?;
                }
                state.ctime = wcc.after.map_or_else(now, |after| after.ctime);
                // What is unsent would clear them again.
                state.clears_ids &= changes.mode.is_none();
                let base = state.base;
                self.note_own(file, wcc.after, asked);
                self.index.update(file, |known| known.base = base);
                if let Some(after) = &mut wcc.after {
                    let lazy = self.treatment(node).is_lazy();
                    state.overlay(after, node.size(), lazy);
                }
            }
            None => {
                self.note_own(file, wcc.after, asked);
                self.index.update(file, |known| {
                    let foreign = attributes::other_data(wcc.before.as_ref(), known.base.as_ref());
                    if foreign {
                        known.renew_key(None);
                    } else if let (Some(base), Some(after)) = (&mut known.base, &wcc.after) {
                        base.mtime = after.mtime;
                        base.ctime = after.ctime;
                    }
                });
            }
        }
        Ok(wcc)
    }

    /// A change of ours that the journal did not tell of has been answered. Unsent data is over
    /// what it has left.
    fn changed(&self, node: &Node, state: &mut State) -> Result<()> {
        let quiet = state.handed <= state.committed && state.changing == 0 && !state.in_doubt;
        match state.base {
            Some(base) if state.settled && quiet && !state.dirty.is_empty() => {
                self.log(state, attributes::base_record(node, &base))
            }
            _ => Ok(()),
        }
    }

    /// Write-back: times of a file with unsent data are set when the data has been sent; sending it
    /// would set them again.
    async fn hold_times(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        changes: &SetAttr,
    ) -> Result<Option<Wcc>> {
        let others = changes.mode.is_some() || changes.uid.is_some() || changes.gid.is_some();
        if others || *changes == SetAttr::default() {
            return Ok(None);
        }
        let known = self.index.node(&node.handle).and_then(|known| known.attr);
        let attr = match known {
            Some(attr) => attr,
            None => self.getattr(caller, &node.handle).await?,
        };
        self.hold_times_now(node, changes, attr)
    }

    fn hold_times_now(
        &self,
        node: &Node,
        changes: &SetAttr,
        mut attr: Attr,
    ) -> Result<Option<Wcc>> {
        let mut state = node.state.lock();
        if state.dirty.is_empty() {
            return Ok(None);
        }
        let time = |set| match set {
            SetTime::Keep => None,
            SetTime::ServerNow => Some(now()),
            SetTime::To(time) => Some(time),
        };
        state.times.atime = time(changes.atime).or(state.times.atime);
        state.times.mtime = time(changes.mtime).or(state.times.mtime);
        let (atime, mtime) = (state.times.atime, state.times.mtime);
        state.ctime = now();
        self.log(&mut state, Record::Times { handle: node.handle, atime, mtime })?;
        state.overlay(&mut attr, node.size(), true);
        Ok(Some(Wcc { before: None, after: Some(attr) }))
    }

    /// SETATTR with a size. Unsent data behind it is dropped.
    async fn resize(
        &self,
        caller: &Caller,
        file: &FileHandle,
        changes: &SetAttr,
        guard: Option<Time>,
    ) -> Result<Wcc> {
        let size = changes.size.unwrap_or(0);
        let node = self.node(file);
        if self.treatment(&node).policy == Policy::ReadOnly {
            return Err(Status::ROFS.into());
        }
        let _turn = self.hold(&node).await?;
        self.intend_cut(&node, size).await?;
        crash::point(crash::Point::BEFORE_CUT);
        let changing = node.changing();
        let asked = self.ask();
        let changed = self.buffer.setattr(caller, file, changes, guard).await;
        crash::point(crash::Point::AFTER_CUT);
        if changed.as_ref().map_or_else(is_answer, |_| true) {
            changing.done();
        }
        let mut state = node.state.lock();
        let mut wcc = match changed {
            Ok(wcc) => wcc,
            Err(error) => {
                self.log(&mut state, Record::Abandoned { handle: *file })?;
                return Err(error);
            }
        };
        let foreign = state.settled
            && state.can_judge(asked)
            && attributes::other_data(wcc.before.as_ref(), state.base.as_ref());
        let after = wcc.after.as_ref().map(WccAttr::from);
        self.cut(&node, &mut state, size, after.as_ref())?;
        if foreign {
            if !state.dirty.is_empty() && self.treatment(&node).is_lazy() {
                self.find_conflict(&node, &mut state, ConflictKind::Changed);
            } else {
                self.renew(&node, &mut state, None);
            }
        }
        self.own_change(&node, &mut state, &wcc, asked);
        if changes.mtime != SetTime::Keep || state.dirty.is_empty() {
            state.times = Default::default();
        }
        if !state.dirty.is_empty() {
            state.mtime = now();
            state.ctime = state.mtime;
            if let Some(base) = state.base {
                self.log(&mut state, attributes::base_record(&node, &base))?;
            }
        }
        if let Some(after) = &mut wcc.after {
            let lazy = self.treatment(&node).is_lazy();
            state.overlay(after, node.size(), lazy);
        }
        Ok(wcc)
    }

    /// Notes that a file is about to be cut: should this process be killed in between, the next one
    /// asks the server what became of it. To be called with the turn held.
    pub async fn intend_cut(&self, node: &Arc<Node>, size: u64) -> Result<()> {
        let in_doubt = {
            let state = node.state.lock();
            !state.dirty.is_empty() && (state.in_doubt || state.intents_in_doubt)
        };
        if in_doubt {
            // Afterwards nobody could tell.
            self.check_base(node).await?;
        }
        {
            let mut state = node.state.lock();
            if let Some(kind) = state.conflict {
                // The server's version is kept, too.
                return Err(kind.error());
            }
            state.intents_in_doubt = false;
            self.log(&mut state, Record::CutIntent { handle: node.handle, size })?;
        }
        if self.treatment(node).is_lazy() {
            // After a power loss, too.
            self.sync_journal().await?;
        }
        Ok(())
    }

    /// fallocate(2): everything unsent goes to the server first.
    pub async fn allocate(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        length: u64,
        how: Allocation,
    ) -> Result<Wcc> {
        self.refuse_if_read_only()?;
        let node = self.node(file);
        if self.treatment(&node).policy == Policy::ReadOnly {
            return Err(Status::ROFS.into());
        }
        if node.is_local() {
            self.send(&node, true).await?;
        }
        let _turn = self.hold(&node).await?;
        self.store.files.changing(node.key());
        {
            let mut state = node.state.lock();
            if !state.dirty.is_empty() {
                self.log(&mut state, Record::Sending { handle: *file, up_to_seq: 0 })?;
            }
        }
        let changing = node.changing();
        let wcc = self.buffer.allocate(caller, file, offset, length, how).await?;
        changing.done();
        {
            let mut state = node.state.lock();
            let end = offset.saturating_add(length);
            state.overtake(offset, u64::MAX);
            state.changed_at = self.tick();
            state.settled = false;
            if matches!(how, Allocation::Reserve | Allocation::ZeroRange)
                && let Some(size) = node.size()
            {
                // While times are still to be set, no answer of the server's tells the size.
                node.set_size(Some(size.max(end)));
            }
            if matches!(
                how,
                Allocation::PunchHole | Allocation::ZeroRange | Allocation::ZeroRangeKeepSize
            ) {
                self.store.cut(node.key(), offset, end);
                self.note_written(&node);
            }
        }
        // The size may be another now; whoever asks next must not be told the old one.
        let asked = self.ask();
        if let Ok(mut attr) = self.buffer.getattr(caller, file).await {
            self.observe(file, &mut attr, asked);
            self.changed(&node, &mut node.state.lock())?;
        } else {
            self.index.update(file, |known| known.attr = None);
            node.set_size(None);
        }
        Ok(wcc)
    }
}

/// Says whether a mode has bits that a write clears.
fn sets_ids(mode: u32) -> bool {
    mode & (libc::S_ISUID | libc::S_ISGID) != 0
}

/// Says whether an error tells that nothing was done.
pub(crate) fn is_answer(error: &Error) -> bool {
    matches!(error, Error::Status(_))
}
