//! Changes of attributes, and of space.

use std::sync::Arc;

use gridvfs_vfs::{
    Allocation, Caller, FileHandle, Result, SetAttr, SetTime, Status, Time, Vfs, Wcc, WccAttr,
};

use super::node::{ConflictKind, Node};
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
            if self.treatment(&node).is_lazy() {
                if guard.is_none()
                    && let Some(wcc) = self.hold_times(&node, changes)?
                {
                    return Ok(wcc);
                }
            } else if node.is_local() && changes.mtime != SetTime::Keep {
                // The WRITEs would set the time again.
                self.send(&node, false).await?;
            }
        }
        let asked = self.ask();
        let mut wcc = self.buffer.setattr(caller, file, changes, guard).await?;
        match self.known(file) {
            Some(node) => {
                let mut state = node.state.lock();
                let quiet = state.can_judge(asked);
                if quiet && let Some(after) = &wcc.after {
                    state.base = Some(WccAttr::from(after));
                    state.settled = true;
                } else if changes.mtime != SetTime::Keep {
                    state.settled = false;
                }
                if changes.mtime != SetTime::Keep {
                    state.times = Default::default();
                    state.changed_at = self.tick();
                }
                let base = state.base;
                self.note_own(file, wcc.after);
                self.index.update(file, |known| known.base = base);
                if let Some(after) = &mut wcc.after {
                    let lazy = self.treatment(&node).is_lazy();
                    state.overlay(after, node.size(), lazy);
                }
            }
            None => {
                self.note_own(file, wcc.after);
                self.index.update(file, |known| {
                    if let (Some(base), Some(after)) = (&mut known.base, &wcc.after) {
                        base.mtime = after.mtime;
                        base.ctime = after.ctime;
                    }
                });
            }
        }
        Ok(wcc)
    }

    /// Write-back: times of a file with unsent data are set when the data has been sent; sending it
    /// would set them again.
    fn hold_times(&self, node: &Arc<Node>, changes: &SetAttr) -> Result<Option<Wcc>> {
        let others = changes.mode.is_some() || changes.uid.is_some() || changes.gid.is_some();
        let mut state = node.state.lock();
        if others || state.dirty.is_empty() {
            return Ok(None);
        }
        let time = |set| match set {
            SetTime::Keep => None,
            SetTime::ServerNow => Some(now()),
            SetTime::To(time) => Some(time),
        };
        let Some(mut attr) = self.index.node(&node.handle).and_then(|known| known.attr) else {
            return Ok(None);
        };
        state.times.atime = time(changes.atime).or(state.times.atime);
        state.times.mtime = time(changes.mtime).or(state.times.mtime);
        let (atime, mtime) = (state.times.atime, state.times.mtime);
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
        if node.is_local() {
            // Should this process be killed in between, the next one asks the server what became
            // of it.
            let mut state = node.state.lock();
            self.log(&mut state, Record::CutIntent { handle: *file, size })?;
        }
        crash::point(crash::Point::BEFORE_CUT);
        let asked = self.ask();
        let changed = self.buffer.setattr(caller, file, changes, guard).await;
        crash::point(crash::Point::AFTER_CUT);
        let mut state = node.state.lock();
        let mut wcc = match changed {
            Ok(wcc) => wcc,
            Err(error) => {
                if state.said.cut_intent.is_some() {
                    self.log(&mut state, Record::Abandoned { handle: *file })?;
                }
                return Err(error);
            }
        };
        let foreign = state.settled
            && state.can_judge(asked)
            && matches!((&wcc.before, &state.base), (Some(before), Some(base))
                if !attributes::same_data(before, base));
        self.cut(&node, &mut state, size)?;
        if foreign {
            if !state.dirty.is_empty() && self.treatment(&node).is_lazy() {
                self.find_conflict(&node, &mut state, ConflictKind::Changed);
            } else {
                self.renew(&node, &mut state, None);
            }
        }
        self.own_change(&node, &mut state, &wcc);
        if changes.mtime != SetTime::Keep || state.dirty.is_empty() {
            state.times = Default::default();
        }
        if !state.dirty.is_empty() {
            state.mtime = now();
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
        self.wholes.remove(node.key());
        let wcc = self.buffer.allocate(caller, file, offset, length, how).await?;
        {
            let mut state = node.state.lock();
            let end = offset.saturating_add(length);
            state.overtake(offset, u64::MAX);
            state.changed_at = self.tick();
            state.settled = false;
            if matches!(
                how,
                Allocation::PunchHole | Allocation::ZeroRange | Allocation::ZeroRangeKeepSize
            ) {
                self.store.cut(node.key(), offset, end);
            }
        }
        // The size may be another now; whoever asks next must not be told the old one.
        let asked = self.ask();
        if let Ok(mut attr) = self.buffer.getattr(caller, file).await {
            self.observe(file, &mut attr, asked);
        } else {
            self.index.update(file, |known| known.attr = None);
            node.set_size(None);
        }
        Ok(wcc)
    }
}
