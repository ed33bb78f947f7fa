//! Changes of names that have been acknowledged and are still to be made on the server: their
//! order, what they make of each other, and what they make of what the server says. No I/O.
//!
//! A change has keys: the names that it touches, and files whose other changes it must not overtake.
//! Changes that share a key are made in their order, all others at the same time. What the server
//! was never asked for may still be folded: a file that is removed again is never made, one that is
//! renamed is made under its new name.
//!
//! The same transitions, applied to the journal's records, give the same state again.

mod look;
mod replay;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use gridvfs_vfs::{Attr, Caller, Error, FileHandle};

use super::node::ConflictKind;
use crate::journal::{At, NameChange, NameOp, Set};
use crate::key::random_number;

/// How handles of ours begin. What tells them from a server's is that we have noted them: a server
/// would have to draw the same random bytes.
const MAGIC: &[u8; 16] = b"GridVFS new file";
/// File numbers of files that were made here: above those that file systems give in practice, below
/// what a double or the front end's own numbers take.
const FILEID_BIT: u64 = 1 << 52;

/// What changes are kept in order by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Name(At),
    File(FileHandle),
}

/// A change that is pending.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub op: NameOp,
    pub caller: Option<Arc<Caller>>,
    pub at: Instant,
    /// Somebody waits for it.
    pub urgent: bool,
    /// A write-back of everything waits for it.
    pub all_wanted: bool,
    /// The server is being asked.
    pub sending: bool,
    /// The server may have been asked, by this process or an earlier one.
    pub asked: bool,
    /// It has been, without an answer that anybody knows of.
    pub doubt: bool,
    pub failing: Option<Error>,
    pub failures: u32,
    pub retry_at: Option<Instant>,
    pub conflict: Option<ConflictKind>,
    /// Somebody has decided that ours counts.
    pub forced: bool,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub ops: BTreeMap<u64, Pending>,
    by_key: HashMap<Key, Vec<u64>>,
    /// Those before which no other is to be made.
    ready: BTreeSet<u64>,
    /// How many changes are pending in a directory.
    dirs: HashMap<FileHandle, usize>,
    to_server: HashMap<FileHandle, FileHandle>,
    to_ours: HashMap<FileHandle, FileHandle>,
    pub sending: usize,
    pub urgent: usize,
}

/// Returns a handle for a file that the server has not made yet.
pub(crate) fn new_handle() -> FileHandle {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(MAGIC);
    bytes[16..24].copy_from_slice(&random_number().to_le_bytes());
    bytes[24..].copy_from_slice(&random_number().to_le_bytes());
    FileHandle::new(&bytes).unwrap_or(FileHandle::EMPTY)
}

/// Says whether a handle is one of ours.
pub(crate) fn is_ours(handle: &FileHandle) -> bool {
    handle.as_bytes().len() == 32 && handle.as_bytes().starts_with(MAGIC)
}

/// The number of a file that was made here.
pub(crate) fn fileid_of(handle: &FileHandle) -> u64 {
    let bytes = handle.as_bytes().last_chunk().copied().unwrap_or_default();
    u64::from_le_bytes(bytes) & (FILEID_BIT - 1) | FILEID_BIT
}

impl Set {
    /// Makes these changes.
    pub fn apply(&self, attr: &mut Attr) {
        attr.mode = self.mode.unwrap_or(attr.mode);
        attr.size = self.size.unwrap_or(attr.size);
        attr.atime = self.atime.unwrap_or(attr.atime);
        attr.mtime = self.mtime.unwrap_or(attr.mtime);
    }

    /// What is set of a new file.
    pub fn of_new(attr: &Attr) -> Self {
        let (mode, atime, mtime) = (Some(attr.mode), Some(attr.atime), Some(attr.mtime));
        Self { mode, size: None, atime, mtime }
    }

    /// Takes a later change in, unless both have to be made.
    fn merge(&mut self, later: &Set) -> bool {
        if let (Some(first), Some(second)) = (self.size, later.size)
            && second > first
        {
            return false;
        }
        self.mode = later.mode.or(self.mode);
        self.size = later.size.or(self.size);
        self.atime = later.atime.or(self.atime);
        self.mtime = later.mtime.or(self.mtime);
        true
    }
}

impl NameOp {
    fn keys(&self) -> Vec<Key> {
        match &self.change {
            NameChange::Create { at, file, .. } => vec![Key::Name(at.clone()), Key::File(*file)],
            NameChange::Remove { at, file, .. } => vec![Key::Name(at.clone()), Key::File(*file)],
            NameChange::Rename { from, to, replaced, .. } => {
                let mut keys = vec![Key::Name(from.clone()), Key::Name(to.clone())];
                keys.extend(replaced.map(|(file, _)| Key::File(file)));
                keys
            }
            NameChange::Set { file, .. } => vec![Key::File(*file)],
        }
    }

    /// The directories that it changes.
    pub fn dirs(&self) -> Vec<FileHandle> {
        match &self.change {
            NameChange::Create { at, .. } | NameChange::Remove { at, .. } => vec![at.dir],
            NameChange::Rename { from, to, .. } => vec![from.dir, to.dir],
            NameChange::Set { .. } => Vec::new(),
        }
    }

    /// The names that it touches.
    pub fn names(&self) -> Vec<At> {
        let name = |key| if let Key::Name(at) = key { Some(at) } else { None };
        self.keys().into_iter().filter_map(name).collect()
    }

    /// The file that it is about.
    pub fn file(&self) -> &FileHandle {
        match &self.change {
            NameChange::Create { file, .. }
            | NameChange::Remove { file, .. }
            | NameChange::Rename { file, .. }
            | NameChange::Set { file, .. } => file,
        }
    }

    /// What it replaces.
    pub fn replaced(&self) -> Option<FileHandle> {
        match &self.change {
            NameChange::Rename { replaced, .. } => replaced.map(|(file, _)| file),
            _ => None,
        }
    }

    /// What a name leads to after it.
    fn child(&self, name: &At) -> Option<FileHandle> {
        match &self.change {
            NameChange::Create { file, .. } => Some(*file),
            NameChange::Rename { to, file, .. } if to == name => Some(*file),
            _ => None,
        }
    }

    /// Says whether a file has lost its last name by it.
    pub fn ends(&self, handle: &FileHandle) -> bool {
        match &self.change {
            NameChange::Remove { file, last, .. } => *last && file == handle,
            NameChange::Rename { replaced, .. } => *replaced == Some((*handle, true)),
            _ => false,
        }
    }
}

impl Queue {
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Says whether any handle needs to be translated, or anything is pending.
    pub fn is_idle(&self) -> bool {
        self.ops.is_empty() && self.to_server.is_empty()
    }

    /// Says whether nothing has to be made before a change.
    pub fn is_ready(&self, number: u64) -> bool {
        self.ready.contains(&number)
    }

    /// The files that are known by handles of ours: those, and the server's.
    pub fn bound(&self) -> Vec<(FileHandle, FileHandle)> {
        self.to_server.iter().map(|(ours, server)| (*ours, *server)).collect()
    }

    /// How many files are known by handles of ours.
    pub fn bound_count(&self) -> usize {
        self.to_server.len()
    }

    /// Notes a change under its number, and what it makes of those before it.
    pub fn add(&mut self, number: u64, mut op: NameOp, caller: Option<Arc<Caller>>, at: Instant) {
        match &mut op.change {
            NameChange::Remove { at, file, .. } => {
                if self.new_file_at(file, at).is_some() {
                    return self.cancel(file);
                }
            }
            NameChange::Rename { from, to, file, replaced } => {
                if let Some((old, true)) = *replaced
                    && self.new_file_at(&old, to).is_some()
                {
                    self.cancel(&old);
                    *replaced = None;
                }
                let free = !self.by_key.contains_key(&Key::Name(to.clone()));
                if replaced.is_none()
                    && free
                    && let Some(create) = self.new_file_at(file, from)
                {
                    return self.move_create(create, from, to);
                }
            }
            NameChange::Set { file, set, .. } => {
                if self.fold_set(file, set, op.uid) {
                    return;
                }
            }
            NameChange::Create { .. } => {}
        }
        self.insert(number, op, caller, at, false);
    }

    fn insert(
        &mut self,
        number: u64,
        op: NameOp,
        caller: Option<Arc<Caller>>,
        at: Instant,
        asked: bool,
    ) {
        let mut behind = Vec::new();
        for key in op.keys() {
            let all = self.by_key.entry(key).or_default();
            let place = all.partition_point(|other| *other < number);
            all.insert(place, number);
            behind.extend(all.get(place + 1));
        }
        for dir in op.dirs() {
            *self.dirs.entry(dir).or_default() += 1;
        }
        let pending = Pending {
            op,
            caller,
            at,
            urgent: false,
            all_wanted: false,
            sending: false,
            asked,
            doubt: asked,
            failing: None,
            failures: 0,
            retry_at: None,
            conflict: None,
            forced: false,
        };
        self.ops.insert(number, pending);
        self.refresh(number);
        behind.into_iter().for_each(|other| self.refresh(other));
    }

    /// Puts another change in the place of one that is pending.
    pub fn replace(&mut self, number: u64, change: impl FnOnce(&mut Pending)) {
        let Some(mut pending) = self.take(number) else { return };
        change(&mut pending);
        let (op, asked) = (pending.op.clone(), pending.asked);
        self.insert(number, op, pending.caller.clone(), pending.at, asked);
        self.urgent += usize::from(pending.urgent);
        pending.sending = false;
        self.ops.insert(number, pending);
    }

    fn refresh(&mut self, number: u64) {
        let Some(pending) = self.ops.get(&number) else { return };
        let first = |key: &Key| self.by_key.get(key).and_then(|all| all.first()) == Some(&number);
        if pending.op.keys().iter().all(first) {
            self.ready.insert(number);
        } else {
            self.ready.remove(&number);
        }
    }

    fn leave(&mut self, number: u64, key: &Key) {
        let Some(all) = self.by_key.get_mut(key) else { return };
        all.retain(|other| *other != number);
        match all.first().copied() {
            Some(next) => self.refresh(next),
            None => drop(self.by_key.remove(key)),
        }
    }

    fn take(&mut self, number: u64) -> Option<Pending> {
        let pending = self.ops.remove(&number)?;
        self.ready.remove(&number);
        self.sending -= usize::from(pending.sending);
        self.urgent -= usize::from(pending.urgent);
        for key in pending.op.keys() {
            self.leave(number, &key);
        }
        self.leave_dirs(&pending.op.dirs());
        Some(pending)
    }

    /// A change is done, or is not to be made.
    pub fn done(&mut self, number: u64) -> Option<Pending> {
        let pending = self.take(number)?;
        let gone = match &pending.op.change {
            NameChange::Remove { file, last: true, .. } => Some(*file),
            NameChange::Rename { replaced: Some((file, true)), .. } => Some(*file),
            _ => None,
        };
        if let Some(file) = gone {
            self.unbind(&file);
        }
        Some(pending)
    }

    fn leave_dirs(&mut self, dirs: &[FileHandle]) {
        for dir in dirs {
            if let Some(count) = self.dirs.get_mut(dir) {
                *count -= 1;
                if *count == 0 {
                    self.dirs.remove(dir);
                }
            }
        }
    }

    /// Returns the change that makes a file, if the server was not asked for it nor for anything
    /// else of the file.
    fn new_file(&self, file: &FileHandle) -> Option<u64> {
        let all = self.by_key.get(&Key::File(*file))?;
        let unasked = |number: &u64| {
            self.ops.get(number).is_some_and(|pending| {
                let own =
                    matches!(pending.op.change, NameChange::Create { .. } | NameChange::Set { .. });
                own && !pending.asked && !pending.sending && pending.conflict.is_none()
            })
        };
        let first = *all.first()?;
        let creates = matches!(self.ops.get(&first)?.op.change, NameChange::Create { .. });
        (creates && all.iter().all(unasked)).then_some(first)
    }

    /// The same for a file that still has the name under which it is to be made.
    fn new_file_at(&self, file: &FileHandle, name: &At) -> Option<u64> {
        let create = self.new_file(file)?;
        let last = self.by_key.get(&Key::Name(name.clone()))?.last();
        (last == Some(&create)).then_some(create)
    }

    fn cancel(&mut self, file: &FileHandle) {
        for number in self.by_key.get(&Key::File(*file)).cloned().unwrap_or_default() {
            self.done(number);
        }
    }

    fn move_create(&mut self, create: u64, from: &At, to: &At) {
        self.leave(create, &Key::Name(from.clone()));
        self.by_key.entry(Key::Name(to.clone())).or_default().push(create);
        self.leave_dirs(&[from.dir]);
        *self.dirs.entry(to.dir).or_default() += 1;
        if let Some(pending) = self.ops.get_mut(&create)
            && let NameChange::Create { at, .. } = &mut pending.op.change
        {
            *at = to.clone();
        }
        self.refresh(create);
    }

    /// Takes new attributes into a change that the server was not asked for.
    fn fold_set(&mut self, file: &FileHandle, set: &Set, by: u32) -> bool {
        let Some(last) = self.by_key.get(&Key::File(*file)).and_then(|all| all.last()) else {
            return false;
        };
        let Some(pending) = self.ops.get_mut(last) else { return false };
        if pending.asked || pending.sending || pending.conflict.is_some() || pending.op.uid != by {
            return false;
        }
        match &mut pending.op.change {
            // Its time of access is how the file is recognised.
            NameChange::Create { attr, .. }
                if set.atime.is_none() && set.size.is_none_or(|size| size == 0) =>
            {
                set.apply(attr);
                true
            }
            NameChange::Set { set: before, .. } => before.merge(set),
            _ => false,
        }
    }

    /// The server may have been asked for these.
    pub fn started(&mut self, numbers: &[u64]) {
        for number in numbers {
            if let Some(pending) = self.ops.get_mut(number) {
                pending.asked = true;
            }
        }
    }

    /// Notes the server's handle of a file that was made here.
    pub fn bind(&mut self, ours: FileHandle, server: FileHandle) {
        self.to_server.insert(ours, server);
        self.to_ours.insert(server, ours);
    }

    /// Forgets it, unless something is pending of the file.
    pub fn unbind(&mut self, ours: &FileHandle) -> bool {
        if self.by_key.contains_key(&Key::File(*ours)) {
            return false;
        }
        let Some(server) = self.to_server.remove(ours) else { return false };
        if self.to_ours.get(&server) == Some(ours) {
            self.to_ours.remove(&server);
        }
        true
    }

    /// The handle by which the server knows a file; `None` if it knows none.
    pub fn server(&self, handle: &FileHandle) -> Option<FileHandle> {
        match self.to_server.get(handle) {
            Some(server) => Some(*server),
            None => (!is_ours(handle)).then_some(*handle),
        }
    }

    /// The handle by which a file of the server is known here.
    pub fn ours(&self, server: &FileHandle) -> FileHandle {
        self.to_ours.get(server).copied().unwrap_or(*server)
    }

    /// Has these made now.
    pub fn urge(&mut self, numbers: &BTreeSet<u64>) {
        for number in numbers {
            if let Some(pending) = self.ops.get_mut(number) {
                self.urgent += usize::from(!std::mem::replace(&mut pending.urgent, true));
                pending.retry_at = None;
            }
        }
    }

    /// Has all of them made now, until that is taken back.
    pub fn want_all(&mut self) {
        for pending in self.ops.values_mut() {
            pending.all_wanted = true;
            pending.retry_at = None;
        }
    }

    /// Takes back [`Self::want_all`].
    pub fn want_all_no_more(&mut self) {
        self.ops.values_mut().for_each(|pending| pending.all_wanted = false);
    }

    /// Takes the next changes that may be made now, at most `count`. `due` says until when a change
    /// waits that nobody hurries; `None`: for ever. Also returns when the next one is due.
    pub fn take_ready(
        &mut self,
        count: usize,
        now: Instant,
        due: impl Fn(&Pending) -> Option<Instant>,
    ) -> (Vec<u64>, Option<Instant>) {
        let mut taken = Vec::new();
        let mut next: Option<Instant> = None;
        for number in &self.ready {
            let Some(pending) = self.ops.get(number) else { continue };
            if pending.sending || pending.conflict.is_some() {
                continue;
            }
            if taken.len() >= count {
                break;
            }
            let at = if pending.urgent || pending.all_wanted { Some(now) } else { due(pending) };
            let at = at.max(pending.retry_at.filter(|_| at.is_some()));
            match at {
                Some(at) if at <= now => taken.push(*number),
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                None => {}
            }
        }
        for number in &taken {
            if let Some(pending) = self.ops.get_mut(number) {
                pending.sending = true;
                self.sending += 1;
            }
        }
        (taken, next)
    }

    /// These were not made.
    pub fn not_sending(&mut self, numbers: &[u64]) {
        for number in numbers {
            if let Some(pending) = self.ops.get_mut(number) {
                self.sending -= usize::from(std::mem::take(&mut pending.sending));
            }
        }
    }
}

#[cfg(test)]
mod tests;
