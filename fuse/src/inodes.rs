//! The inodes that the kernel knows: node id to file handle and back.
//!
//! Keyed by handle, so that the names of a hard-linked file share one. The node id is the server's
//! file number, since the kernel shows it as such (`fuser` sends one number for both), unless
//! another file still holds it; then it is one that no server uses. An inode lives as long as
//! the kernel's lookup count is above zero. Locks are held for a look-up at a time, never across a
//! call.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gridvfs_vfs::{Attr, FileHandle, FileKind, Time, Wcc, WccAttr};
use parking_lot::{Mutex, RwLock};

use crate::passthrough::Ways;
use crate::traffic::{BusyFile, Traffic};

/// The kernel's node id of the root.
pub const ROOT: u64 = 1;
/// Node ids from here on are made up.
const SPARE: u64 = 1 << 63;

/// A file that the kernel knows.
pub struct Inode {
    /// The kernel's node id.
    pub id: u64,
    /// The file's handle.
    pub handle: FileHandle,
    /// The type of the file.
    pub kind: FileKind,
    /// How the kernel reads it.
    pub ways: Ways,
    /// What was read and written of it.
    pub traffic: Traffic,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lookups: u64,
    opens: u32,
    /// How many of them may write.
    writers: u32,
    /// With the kernel's write-back cache: the modification time that the kernel believes in. It
    /// learns one when it meets the inode, and none that we tell it later.
    kernel_mtime: Option<Time>,
    /// With the kernel's write-back cache: the kernel has sent data since it last sent the time of
    /// writing it.
    time_is_due: bool,
    /// What the file was like when we last knew its data to be what the kernel has cached.
    known: Option<WccAttr>,
    /// The attributes of the last open or question, when they came, and how many changes of ours
    /// had begun or ended when they were asked for.
    seen: Option<(Attr, Instant, u64)>,
    /// What the directory was like when the kernel was last let keep a listing of it.
    listed: Option<WccAttr>,
    /// Where the file is hidden, once its last name is gone.
    hidden: Option<Hidden>,
    /// Writes of ours under way or done since `known` was taken.
    written: bool,
    /// Somebody else has changed the data since the file was opened last: what the kernel has
    /// cached is not to be kept by the next open, whatever `known` says by then.
    outdated: bool,
}

/// What a modification time from the kernel's write-back cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelTime {
    /// When the data was written that it has sent before.
    Written,
    /// What it has been all the time: another attribute has changed.
    Repeated,
    /// A new one, which a program has set.
    Set,
}

/// A file whose name is gone while it is open: the name it has instead.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hidden {
    /// The directory.
    pub dir: FileHandle,
    /// The name in it.
    pub name: Vec<u8>,
}

impl Inode {
    /// Notes attributes from the server. Returns whether somebody else has changed the data since
    /// we last knew it.
    pub fn note(&self, attr: &Attr) -> bool {
        let mut state = self.state.lock();
        state.kernel_mtime.get_or_insert(attr.mtime);
        let now = WccAttr::from(attr);
        let changed = match state.known {
            Some(known) => known.mtime != now.mtime || known.size != now.size,
            None => false,
        };
        // Our own writes move mtime and size, and cannot be told from others' at the same time.
        let foreign = changed && !state.written && self.kind == FileKind::Regular;
        state.known = Some(now);
        state.written = false;
        state.outdated |= foreign;
        foreign
    }

    /// Notes attributes from the server at an open. Returns whether somebody else has changed the
    /// data since the last one.
    pub fn note_at_open(&self, attr: &Attr) -> bool {
        self.note(attr);
        std::mem::take(&mut self.state.lock().outdated)
    }

    /// Notes the attributes that were asked for when the number of our changes was `changes`.
    pub fn note_seen(&self, attr: &Attr, changes: u64) {
        self.state.lock().seen = Some((*attr, Instant::now(), changes));
    }

    /// Returns the attributes that were noted so, if that is not long ago and nothing was changed
    /// by us since.
    pub fn seen(&self, life: Duration, changes: u64) -> Option<Attr> {
        let (attr, at, then) = self.state.lock().seen?;
        (then == changes && at.elapsed() < life).then_some(attr)
    }

    /// Forgets the attributes that were noted so: they are others now.
    pub fn forget_seen(&self) {
        self.state.lock().seen = None;
    }

    /// Notes that somebody has changed the data, nobody knows how.
    pub fn note_unknown(&self) {
        let mut state = self.state.lock();
        state.seen = None;
        state.known = None;
        state.outdated = true;
    }

    /// Notes what the directory is like as it is opened. Returns whether a listing that the kernel
    /// has kept since the last time is still good.
    pub fn note_listed(&self, attr: WccAttr) -> bool {
        self.state.lock().listed.replace(attr) == Some(attr)
    }

    /// Notes what a change of our own made of the file.
    pub fn note_own(&self, wcc: &Wcc) {
        let mut state = self.state.lock();
        if let Some(attr) = &wcc.after {
            state.known = Some(attr.into());
        }
    }

    /// Notes that we have written data, whose attributes are not known yet.
    pub fn note_write(&self) {
        self.state.lock().written = true;
    }

    /// Notes that the kernel has sent data from its page cache: the time of writing follows.
    pub fn note_kernel_write(&self) {
        self.state.lock().time_is_due = true;
    }

    /// Judges a modification time that the kernel has sent from its write-back cache.
    pub fn judge_kernel_mtime(&self, mtime: Time) -> KernelTime {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.time_is_due) {
            KernelTime::Written
        } else if state.kernel_mtime == Some(mtime) {
            KernelTime::Repeated
        } else {
            KernelTime::Set
        }
    }

    /// Returns the modification time that the kernel believes in, if it has sent data and not the
    /// time of writing it: to a kernel that counts ticks nothing has changed since its last.
    pub fn take_due_time(&self) -> Option<Time> {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.time_is_due) { state.kernel_mtime } else { None }
    }

    /// Notes the modification time that the kernel believes in, since it was told that it is set.
    pub fn note_kernel_mtime(&self, mtime: Time) {
        self.state.lock().kernel_mtime = Some(mtime);
    }

    /// Counts an open.
    pub fn opened(&self, writes: bool) {
        let mut state = self.state.lock();
        state.opens += 1;
        state.writers += u32::from(writes);
    }

    /// Says whether a descriptor is open that may write.
    pub fn has_writers(&self) -> bool {
        self.state.lock().writers > 0
    }

    /// Counts a close. Returns where the file is hidden, if this was the last.
    pub fn closed(&self, writes: bool) -> Option<Hidden> {
        let mut state = self.state.lock();
        state.opens = state.opens.saturating_sub(1);
        state.writers = state.writers.saturating_sub(u32::from(writes));
        if state.opens == 0 { state.hidden.take() } else { None }
    }

    /// Says whether a descriptor is open.
    pub fn is_open(&self) -> bool {
        self.state.lock().opens > 0
    }

    /// Says whether the file is hidden.
    pub fn is_hidden(&self) -> bool {
        self.state.lock().hidden.is_some()
    }

    /// Notes where the file is hidden; if it is already, returns the place that is not needed.
    pub fn hide(&self, hidden: Hidden) -> Option<Hidden> {
        let mut state = self.state.lock();
        match &state.hidden {
            Some(_) => Some(hidden),
            None => {
                state.hidden = Some(hidden);
                None
            }
        }
    }

    /// Notes that the hidden file was moved to another directory.
    pub fn hidden_moved(&self, hidden: Hidden) {
        self.state.lock().hidden = Some(hidden);
    }

    /// Takes the place where the file is hidden.
    pub fn take_hidden(&self) -> Option<Hidden> {
        self.state.lock().hidden.take()
    }

    /// Returns the place where the file is hidden.
    pub fn hidden(&self) -> Option<Hidden> {
        self.state.lock().hidden.clone()
    }
}

#[derive(Default)]
struct Maps {
    by_id: HashMap<u64, Arc<Inode>>,
    by_handle: HashMap<FileHandle, Arc<Inode>>,
    next_spare: u64,
}

/// All inodes.
pub struct Inodes {
    maps: RwLock<Maps>,
}

impl Inodes {
    /// Makes the table with the root in it.
    pub fn new(root: FileHandle) -> Self {
        let table = Self { maps: RwLock::default() };
        table.look_up(root, FileKind::Directory, ROOT);
        table
    }

    /// Returns an inode by the kernel's number.
    pub fn get(&self, id: u64) -> Option<Arc<Inode>> {
        self.maps.read().by_id.get(&id).cloned()
    }

    /// Returns an inode by its handle, if the kernel knows it.
    pub fn find(&self, handle: &FileHandle) -> Option<Arc<Inode>> {
        self.maps.read().by_handle.get(handle).cloned()
    }

    /// Returns the inode of a handle and counts a lookup for it.
    pub fn look_up(&self, handle: FileHandle, kind: FileKind, fileid: u64) -> Arc<Inode> {
        let mut maps = self.maps.write();
        if let Some(inode) = maps.by_handle.get(&handle) {
            inode.state.lock().lookups += 1;
            return inode.clone();
        }
        let id = if fileid == 0 || maps.by_id.contains_key(&fileid) {
            maps.next_spare += 1;
            SPARE | maps.next_spare
        } else {
            fileid
        };
        let state = Mutex::new(State { lookups: 1, ..State::default() });
        let inode = Arc::new(Inode {
            id,
            handle,
            kind,
            ways: Ways::default(),
            traffic: Traffic::default(),
            state,
        });
        maps.by_id.insert(id, inode.clone());
        maps.by_handle.insert(handle, inode.clone());
        inode
    }

    /// Takes back lookups. Returns the inode when it was forgotten by that.
    pub fn forget(&self, id: u64, lookups: u64) -> Option<Arc<Inode>> {
        let mut maps = self.maps.write();
        let inode = maps.by_id.get(&id)?.clone();
        let left = {
            let mut state = inode.state.lock();
            state.lookups = state.lookups.saturating_sub(lookups);
            state.lookups
        };
        if left > 0 || id == ROOT {
            return None;
        }
        maps.by_id.remove(&id);
        maps.by_handle.remove(&inode.handle);
        Some(inode)
    }

    /// Counts a lookup if the kernel knows this number: it is about to take one back.
    pub fn balance(&self, id: u64) {
        if let Some(inode) = self.maps.read().by_id.get(&id) {
            inode.state.lock().lookups += 1;
        }
    }

    /// Returns the files with the most bytes read and written since the kernel knows them, the
    /// busiest first.
    pub fn busiest(&self, count: usize) -> Vec<BusyFile> {
        let maps = self.maps.read();
        let files = maps.by_id.values().filter(|inode| inode.kind == FileKind::Regular);
        let mut busy: Vec<BusyFile> =
            files.map(|inode| inode.traffic.of(inode.handle)).filter(BusyFile::is_busy).collect();
        drop(maps);
        busy.sort_by_key(|file| std::cmp::Reverse(file.read_bytes + file.written_bytes));
        busy.truncate(count);
        busy
    }

    /// Returns the regular files that are open.
    pub fn open_files(&self) -> Vec<Arc<Inode>> {
        let maps = self.maps.read();
        let is_open = |inode: &&Arc<Inode>| inode.kind == FileKind::Regular && inode.is_open();
        maps.by_id.values().filter(is_open).cloned().collect()
    }

    /// Returns the hidden files whose place is in a directory, or all of them.
    pub fn hidden_in(&self, dir: Option<&FileHandle>) -> Vec<Arc<Inode>> {
        let maps = self.maps.read();
        let is_there = |hidden: Hidden| dir.is_none_or(|dir| hidden.dir == *dir);
        maps.by_id.values().filter(|inode| inode.hidden().is_some_and(is_there)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr() -> Attr {
        let time = Time { seconds: 1, nanoseconds: 0 };
        Attr {
            kind: FileKind::Regular,
            mode: 0o644,
            links: 1,
            uid: 0,
            gid: 0,
            size: 3,
            used: 0,
            device: gridvfs_vfs::DeviceNumber::default(),
            fsid: 1,
            fileid: 5,
            atime: time,
            mtime: time,
            ctime: time,
        }
    }

    fn handle(number: u8) -> FileHandle {
        FileHandle::new(&[number]).expect("short")
    }

    #[test]
    fn an_inode_lives_as_long_as_its_lookups() {
        let inodes = Inodes::new(handle(0));
        let first = inodes.look_up(handle(1), FileKind::Regular, 9);
        assert_eq!(first.id, 9);
        assert_ne!(inodes.look_up(handle(2), FileKind::Regular, 9).id, 9, "taken");
        assert_eq!(
            inodes.look_up(handle(1), FileKind::Regular, 9).id,
            first.id,
            "hard links share"
        );
        assert!(inodes.forget(first.id, 1).is_none());
        assert!(inodes.forget(first.id, 1).is_some());
        assert!(inodes.get(first.id).is_none() && inodes.find(&handle(1)).is_none());
        assert!(inodes.forget(ROOT, 99).is_none());
        assert!(inodes.get(ROOT).is_some(), "the root stays");
    }

    #[test]
    fn a_change_that_a_lookup_saw_is_news_to_the_next_open() {
        let inode = Inodes::new(handle(0)).look_up(handle(1), FileKind::Regular, 5);
        let at = |seconds| Attr { mtime: Time { seconds, nanoseconds: 0 }, ..attr() };
        assert!(!inode.note_at_open(&at(1)));
        assert!(!inode.note_at_open(&at(1)));
        assert!(inode.note(&at(2)), "seen by a lookup");
        assert!(inode.note_at_open(&at(2)));
        assert!(!inode.note_at_open(&at(2)));
        inode.note_write();
        assert!(!inode.note_at_open(&at(3)), "our own");
    }

    #[test]
    fn times_from_the_kernels_cache_are_told_apart() {
        let inode = Inodes::new(handle(0)).look_up(handle(1), FileKind::Regular, 5);
        inode.note(&attr());
        let at = |seconds| Time { seconds, nanoseconds: 0 };
        inode.note(&Attr { mtime: at(9), ..attr() });
        assert_eq!(inode.judge_kernel_mtime(at(1)), KernelTime::Repeated, "the kernel's own");
        inode.note_kernel_write();
        assert_eq!(inode.judge_kernel_mtime(at(2)), KernelTime::Written);
        inode.note_kernel_mtime(at(2));
        assert_eq!(inode.take_due_time(), None);
        assert_eq!(inode.judge_kernel_mtime(at(2)), KernelTime::Repeated);
        assert_eq!(inode.judge_kernel_mtime(at(1)), KernelTime::Set);
        assert_eq!(inode.judge_kernel_mtime(at(1)), KernelTime::Set, "it was refused");
        inode.note_kernel_write();
        assert_eq!(inode.take_due_time(), Some(at(2)));
        assert_eq!(inode.take_due_time(), None);
    }

    #[test]
    fn only_the_last_close_uncovers_what_is_hidden() {
        let inodes = Inodes::new(handle(0));
        let inode = inodes.look_up(handle(1), FileKind::Regular, 5);
        let place = Hidden { dir: handle(0), name: b".nfs1".to_vec() };
        inode.opened(false);
        inode.opened(false);
        assert_eq!(inode.hide(place.clone()), None);
        assert_eq!(inodes.hidden_in(Some(&handle(0))).len(), 1);
        assert_eq!(inode.closed(false), None);
        assert_eq!(inode.closed(false), Some(place));
    }
}
