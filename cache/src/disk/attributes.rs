//! Attributes: what the server's tell of others' changes, and what is answered without asking.

use std::time::Instant;

use gridvfs_vfs::{
    Access, AccessGranted, Attr, Caller, Change, FileHandle, FileKind, Result, Status, Vfs, Wcc,
    WccAttr,
};

use super::node::{ConflictKind, Node, State};
use super::options::{Consistency, Policy};
use super::{Core, now_ms};
use crate::FileKey;
use crate::counters::add;
use crate::index::Known;
use crate::journal::{Base, Record};

/// How often attributes are asked for again because a change of ours has overtaken the answer.
const ASK_AGAIN_MAX: u32 = 8;
const WRITING: u32 = Access::MODIFY | Access::EXTEND | Access::DELETE;

/// Says whether two signatures are of the same data. The ctime also changes with owners, modes and
/// links, which say nothing of the data.
pub(crate) fn same_data(a: &WccAttr, b: &WccAttr) -> bool {
    a.mtime == b.mtime && a.size == b.size
}

/// Says whether two signatures are known, and are of different data.
pub(super) fn other_data(a: Option<&WccAttr>, b: Option<&WccAttr>) -> bool {
    matches!((a, b), (Some(a), Some(b)) if !same_data(a, b))
}

impl Core {
    /// Says whether what is known of a file is answered without asking the server.
    pub fn is_trusted(&self, known: &Known) -> bool {
        match self.settings.read().consistency {
            Consistency::Dedicated => true,
            Consistency::Shared => self.coherence.covers(known),
            // What an earlier session knew is asked for once.
            Consistency::ReadOnlyShared => known.at >= self.began_ms,
        }
    }

    /// Returns attributes that are answered without asking.
    pub fn trusted_attr(&self, handle: &FileHandle) -> Option<Attr> {
        if !self.trusts() {
            return None;
        }
        // Together: what is known may just be on its way from the node to the index.
        let node = self.known(handle);
        let state = node.as_ref().map(|node| (node, node.state.lock()));
        let known = self.index.node(handle)?;
        let mut attr = known.attr.filter(|_| self.is_trusted(&known))?;
        if let Some((node, state)) = state {
            if attr.kind == FileKind::Regular {
                // What an earlier process has left unsent does not tell how large the file is.
                node.size()?;
            }
            let lazy = self.treatment(node).is_lazy();
            let quiet = state.dirty.is_empty() && state.settled;
            if !lazy && !quiet {
                // Only the server knows the times that its WRITEs leave.
                return None;
            }
            state.overlay(&mut attr, node.size(), lazy);
        }
        Some(attr)
    }

    /// Takes attributes that came with the answer to a call that was sent when the clock stood at
    /// `asked`: if they tell of others' changes, what is stored of the file is dropped, or, with
    /// unsent data over it, is a conflict. Then puts what is unsent over them.
    pub fn observe(&self, handle: &FileHandle, attr: &mut Attr, asked: u64) {
        let server = *attr;
        let signature = WccAttr::from(&server);
        let regular = server.kind == FileKind::Regular;
        let node = if regular { self.known(handle) } else { None };
        let Some(node) = node else {
            let mut changed = false;
            self.index.update(handle, |known| {
                if let Some(newer) = known.attr.filter(|_| known.overtaken(asked)) {
                    *attr = newer;
                    return;
                }
                let base = known.base.filter(|_| regular);
                changed = base.is_some_and(|base| !same_data(&base, &signature))
                    || base.is_some() && self.coherence.has_missed(known);
                if changed {
                    known.key = FileKey::random();
                    known.changed_at = 0;
                }
                known.base = regular.then_some(signature);
                self.note_attr(known, &server, asked);
            });
            if changed {
                add(&self.counters.changed, 1);
            }
            return;
        };
        let lazy = self.treatment(&node).is_lazy();
        let mut state = node.state.lock();
        let shown = state.shown(&server);
        let known = self.index.node(handle);
        if state.changed_at > asked || known.is_some_and(|known| known.overtaken(asked)) {
            // The answer is older than what our own change has left.
            if let Some(newer) = known.and_then(|known| known.attr) {
                *attr = newer;
            }
            if let Some(size) = node.size() {
                attr.size = size;
            }
            return state.overlay(attr, node.size(), lazy);
        }
        if state.can_judge(asked) {
            let foreign =
                state.settled && state.base.is_some_and(|base| !same_data(&base, &signature));
            let unsent = !state.dirty.is_empty();
            let same = state.base.is_some_and(|base| same_data(&base, &signature));
            if unsent && !same && self.was_cut(&node, &mut state, &signature).unwrap_or(false) {
                // Before anybody learns how large the file is, and writes to it.
                self.index.update(handle, |known| self.note_attr(known, &shown, asked));
                node.size_at_least(&state, server.size, asked);
                return state.overlay(attr, node.size(), lazy);
            }
            if foreign && unsent && state.may_be_ours(&signature) {
                // The driver finds out before it sends anything.
                node.size_at_least(&state, server.size, asked);
                self.index.update(handle, |known| self.note_attr(known, &shown, asked));
                return state.overlay(attr, node.size(), lazy);
            }
            state.settled = true;
            if foreign && !unsent && state.recovered && state.is_timed(&signature) {
                // The times of an earlier process: set, but not known to be.
            } else if foreign && !unsent {
                self.renew(&node, &mut state, Some(signature));
                if state.recovered {
                    // What an earlier process had left to be done is not to be done to this.
                    self.nothing_left(&node, &mut state);
                }
            } else if foreign && lazy {
                self.find_conflict(&node, &mut state, ConflictKind::Changed);
            } else if foreign {
                // As NFS clients do: what is being written goes over what others have written.
                self.renew(&node, &mut state, Some(signature));
            }
            if state.conflict.is_none() {
                state.base = Some(signature);
            }
            if state.dirty.is_empty() {
                node.set_size(Some(server.size));
            }
        }
        node.size_at_least(&state, server.size, asked);
        let base = state.base;
        self.index.update(handle, |known| {
            known.base = base;
            // An answer from before a change of ours tells what is no more.
            if state.changed_at.max(known.changed_at) <= asked {
                self.note_attr(known, &shown, asked);
            }
        });
        state.overlay(attr, node.size(), lazy);
    }

    /// Notes what our own change has left of a file's attributes, if that is known.
    /// It was asked for when the clock stood at `asked`.
    pub fn note_own(&self, handle: &FileHandle, attr: Option<Attr>, asked: u64) {
        let clock = self.tick();
        self.index.update(handle, |known| {
            // Of two changes at a time, either may have been the last; and others' change, told since,
            // may have come after ours, or before it.
            let directory = |attr: &Attr| attr.kind == FileKind::Directory;
            let newest = |attr: &Attr| directory(attr) || !known.overtaken(asked);
            known.attr = attr.filter(|attr| newest(attr) && known.told_at <= asked);
            known.at = now_ms();
            known.changed_at = clock;
            (known.asked, known.learned) = (asked, clock);
        });
    }

    /// Notes how many names a file has after a change of ours that was asked for when the clock stood at
    /// `asked`.
    pub fn note_links(&self, file: &FileHandle, links: u32, asked: u64) {
        let clock = self.tick();
        self.index.update(file, |known| {
            let overtaken = known.overtaken(asked);
            match &mut known.attr {
                Some(attr) if !overtaken => attr.links = links,
                _ => known.attr = None,
            }
            known.changed_at = clock;
        });
    }

    fn note_attr(&self, known: &mut Known, attr: &Attr, asked: u64) {
        known.attr = Some(*attr);
        known.at = now_ms();
        (known.asked, known.learned) = (asked, self.tick());
    }

    /// The file's frames are of other data than the server's: they are never found again. Who has read
    /// it through us, the kernel first of all, is told.
    pub fn renew(&self, node: &Node, state: &mut State, base: Option<WccAttr>) {
        self.store.files.remove(node.key());
        let key = FileKey::random();
        add(&self.counters.changed, 1);
        state.overtake(0, u64::MAX);
        state.base = base;
        self.index.update(&node.handle, |known| {
            known.key = key;
            known.base = base;
        });
        node.set_key(key);
        if !self.pins.lock().is_empty() {
            self.repin();
        }
        if let Some(core) = self.this.upgrade() {
            let file = node.handle;
            // Not here: the node is locked.
            self.runtime.spawn(async move { core.coherence.tell(&Change::File(file, None)) });
        }
    }

    /// Notes that what is stored of a file was changed by us.
    pub fn note_written(&self, node: &Node) {
        let period = self.period();
        self.index.update(&node.handle, |known| known.written = period);
    }

    /// Takes what a change of ours left of a file's data (SETATTR of the size).
    pub fn own_change(&self, node: &Node, state: &mut State, wcc: &Wcc, asked: u64) {
        state.changed_at = self.tick();
        match wcc.after.filter(|_| state.told_at <= asked) {
            Some(after) => {
                self.take_own_base(state, &after);
                state.settled = true;
                let (base, written) = (state.base, self.period());
                self.index.update(&node.handle, |known| {
                    known.base = base;
                    known.written = written;
                    match known.overtaken(asked) {
                        true => known.attr = None,
                        false => self.note_attr(known, &after, asked),
                    }
                });
            }
            None => {
                state.settled = false;
                self.index.update(&node.handle, |known| known.attr = None);
                if state.told_at > asked && state.dirty.is_empty() {
                    node.set_size(None);
                }
            }
        }
    }

    /// Takes what the answer to a change of ours says that it has left.
    pub fn take_own_base(&self, state: &mut State, after: &Attr) {
        state.base = Some(WccAttr::from(after));
        state.own_base_at = Some(Instant::now());
    }

    pub async fn getattr(&self, caller: &Caller, file: &FileHandle) -> Result<Attr> {
        if let Some(attr) = self.trusted_attr(file) {
            add(&self.counters.attribute_hits, 1);
            return Ok(attr);
        }
        if let Some(node) = self.known(file).filter(|node| node.is_local())
            && !self.treatment(&node).is_lazy()
            && !self.keeps(&node)
        {
            // Only the server knows the times that its WRITEs leave. An error of theirs is not
            // this caller's.
            let _ = self.send(&node, false).await;
        }
        let mut attempts = ASK_AGAIN_MAX;
        loop {
            let asked = self.ask();
            let mut attr = self.buffer.getattr(caller, file).await?;
            self.observe(file, &mut attr, asked);
            let overtaken = |known: Known| known.attr.is_none() && known.overtaken(asked);
            if attempts == 0 || !self.index.node(file).is_some_and(overtaken) {
                return Ok(attr);
            }
            attempts -= 1;
        }
    }

    /// ACCESS, as every open asks for it.
    pub async fn access(
        &self,
        caller: &Caller,
        file: &FileHandle,
        wanted: Access,
    ) -> Result<AccessGranted> {
        if wanted.0 & WRITING != 0 {
            let node = self.known(file);
            let policy =
                node.map_or_else(|| self.settings().policy, |node| self.treatment(&node).policy);
            if policy == Policy::ReadOnly {
                return Err(Status::ROFS.into());
            }
        }
        let attr = self.trusted_attr(file).or_else(|| self.walked_attr(file));
        if let Some(attr) = attr {
            let granted = match self.index.granted(file, caller, wanted.0) {
                Some(granted) => Some(granted),
                None => rights(&attr, caller, wanted.0),
            };
            if let Some(granted) = granted {
                add(&self.counters.attribute_hits, 1);
                self.walk_opened(caller, file, &attr, false);
                return Ok(AccessGranted { granted: Access(granted), attr: Some(attr) });
            }
        }
        let asked = self.ask();
        let mut answer = self.buffer.access(caller, file, wanted).await?;
        if let Some(attr) = &mut answer.attr {
            self.observe(file, attr, asked);
            self.walk_opened(caller, file, attr, true);
        }
        self.index.set_granted(file, caller, wanted.0, answer.granted.0);
        Ok(answer)
    }

    pub async fn readlink(&self, caller: &Caller, file: &FileHandle) -> Result<bytes::Bytes> {
        if self.trusted_attr(file).is_some()
            && let Some(target) = self.index.target(file)
        {
            return Ok(target);
        }
        let target = self.buffer.readlink(caller, file).await?;
        // A symbolic link's target never changes; its handle goes with it.
        self.index.set_target(file, target.clone());
        Ok(target)
    }
}

/// Says from the mode bits alone that all of `wanted` is granted, where that is beyond doubt: to the
/// owner, or for reading. What they refuse, the server is asked: it may know more than they say.
pub(super) fn rights(attr: &Attr, caller: &Caller, wanted: u32) -> Option<u32> {
    let directory = attr.kind == FileKind::Directory;
    let owner = caller.uid == attr.uid;
    let mode = if owner && caller.uid == 0 {
        6 | u32::from(directory || attr.mode & 0o111 != 0)
    } else if owner {
        attr.mode >> 6
    } else if caller.uid == 0 {
        // Servers differ in what they let a foreign root do.
        return None;
    } else if caller.gid == attr.gid || caller.groups.contains(&attr.gid) {
        attr.mode >> 3
    } else {
        attr.mode
    };
    let mut granted = 0;
    if mode & 4 != 0 {
        granted |= Access::READ;
    }
    if mode & 2 != 0 && owner {
        granted |= Access::MODIFY | Access::EXTEND | if directory { Access::DELETE } else { 0 };
    }
    if mode & 1 != 0 {
        granted |= if directory { Access::LOOKUP } else { Access::EXECUTE };
    }
    (granted & wanted == wanted).then_some(wanted)
}

/// What the journal keeps of a file's data version.
pub(crate) fn base_of(node: &Node, base: &WccAttr) -> Base {
    Base { size: base.size, mtime: base.mtime, ctime: base.ctime, key: node.key().0 }
}

/// See [`base_of`].
pub(crate) fn base_record(node: &Node, base: &WccAttr) -> Record {
    Record::Base { handle: node.handle, base: base_of(node, base) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gridvfs_vfs::{DeviceNumber, Time};

    #[test]
    fn mode_bits_grant_what_is_beyond_doubt() {
        let attr = Attr {
            kind: FileKind::Regular,
            mode: 0o640,
            links: 1,
            uid: 1000,
            gid: 100,
            size: 0,
            used: 0,
            device: DeviceNumber::default(),
            fsid: 1,
            fileid: 1,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
        };
        let caller = |uid, gid| Caller { uid, gid, groups: vec![] };
        let writing = Access::MODIFY | Access::EXTEND;
        assert_eq!(rights(&attr, &caller(1000, 1), writing), Some(writing));
        assert_eq!(rights(&attr, &caller(7, 100), Access::READ), Some(Access::READ));
        assert_eq!(rights(&attr, &caller(7, 100), writing), None, "the server is asked");
        assert_eq!(rights(&attr, &caller(7, 7), Access::READ), None);
        assert_eq!(rights(&attr, &caller(0, 0), Access::READ), None, "root squashing");
        assert_eq!(rights(&attr, &caller(1000, 1), Access::EXECUTE), None);
    }
}
