//! Changes of what was given out, as the kernel tells them (fanotify): those of other processes, be they
//! other sessions' or local programs. Of this one's the hub knows whose they are (`crate::changes`).
//!
//! Watched are directories that were given, or whose entries were: their marks tell of the directory, of
//! its names, and of data and attributes of its entries. A file with several links has a mark of its
//! own besides, since it may be changed by way of a directory that nobody has asked for. Marks are made
//! before the attributes are read that an answer carries, so that there is no gap. Which file an entry
//! was, once it is gone, is remembered here.
//!
//! Not seen: stores through a shared mapping, before the file is closed; and a first further link that
//! is made elsewhere, with what is then done by that. Clients do not believe for ever (docs/decisions/0029).
//!
//! What cannot be watched is told to be uncovered: no more watches, a directory that may be searched and
//! not read, a file system that others change without a word to this kernel.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use gridvfs_vfs::{Change, Coverage, Ears, FileKind, Leads, Listener};
use nix::errno::Errno as NixErrno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;

use super::key::{Id, Key};
use super::node::Node;
use super::sys::{self, Errno, SysResult};
use super::sys_watch::{Notice, Notices, Object};

/// The most watches of an export, if not told otherwise; each costs the kernel about 1 KiB.
const WATCHES_MAX: usize = 16 * 1024;
/// The share of the user's watches that an export may have.
const WATCHES_SHARE: usize = 4;
/// The most files whose place is remembered, some 100 bytes each.
const PLACES_MAX: usize = 256 * 1024;

/// File systems whose files nobody changes but through this kernel.
const LOCAL: [u32; 9] = [
    0xef53,      // ext2 to ext4
    0x5846_5342, // XFS
    0x9123_683e, // Btrfs
    0x0102_1994, // tmpfs
    0xf2f5_2010, // F2FS
    0x2fc1_2fc1, // ZFS
    0xca45_1a4e, // bcachefs
    0x8584_58f6, // ramfs
    0x794c_7630, // overlayfs
];

/// Why changes are not told of an export that lies in another of the same process.
const SHARED: &str = "two exports of the proxy have the same files";

/// The directories that this process serves.
static SERVED: Mutex<Vec<Weak<Watches>>> = Mutex::new(Vec::new());

/// The watches of an export.
#[derive(Debug)]
pub(super) struct Watches {
    /// Where the export is.
    path: PathBuf,
    on: AtomicBool,
    most: usize,
    ears: Ears,
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    notices: Arc<Notices>,
    watched: HashMap<Watch, Watched>,
    last: Watch,
    by_object: HashMap<Object, Watch>,
    /// The watches of directories, and of files with several links.
    by_id: HashMap<Id, Watch>,
    /// Where other files are: the directory whose watch tells of them, and their name there.
    places: HashMap<Id, Place>,
    /// The same files, as notices name them: one may be changed by a descriptor that was opened by a
    /// name that it has no more, which the notice then tells.
    by_file: HashMap<Object, Key>,
    /// Whether a file system, by its device number, is one of [`LOCAL`].
    local: HashMap<u64, bool>,
    full: bool,
    /// Closed when this goes: the thread that reads notices ends.
    _end: OwnedFd,
}

/// The number of a watch.
type Watch = u64;

#[derive(Debug)]
struct Place {
    watch: Watch,
    name: Box<[u8]>,
    object: Option<Object>,
    /// It had no other name when it was seen here.
    alone: bool,
}

impl Place {
    fn is(&self, watch: Watch, name: &[u8]) -> bool {
        self.watch == watch && *self.name == *name
    }
}

#[derive(Debug)]
struct Watched {
    key: Key,
    object: Object,
    /// The entries that were given; none for a file.
    entries: HashMap<Box<[u8]>, Key>,
}

impl Watches {
    /// Makes the watches of the export at `path`.
    pub(super) fn new(path: PathBuf, most: Option<usize>) -> Arc<Self> {
        let watches = Arc::new(Self {
            path,
            on: AtomicBool::new(false),
            most: most.unwrap_or_else(allowed_watches),
            ears: Ears::default(),
            state: Mutex::default(),
        });
        {
            let mut served = SERVED.lock();
            served.retain(|watches| watches.strong_count() > 0);
            served.push(Arc::downgrade(&watches));
        }
        for other in watches.sharing().iter().filter(|other| other.are_on()) {
            other.ears.covered(&Coverage::Partial(SHARED.into()));
        }
        watches
    }

    /// The exports of this process by which it changes what is watched here, too. The kernel does not
    /// tell by which it does, nor the calls that pass here.
    fn sharing(&self) -> Vec<Arc<Self>> {
        let overlaps = |other: &Arc<Self>| {
            !std::ptr::eq(&**other, self)
                && (other.path.starts_with(&self.path) || self.path.starts_with(&other.path))
        };
        SERVED.lock().iter().filter_map(Weak::upgrade).filter(overlaps).collect()
    }

    /// Says whether anybody listens.
    pub(super) fn are_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Has a listener told; the first has watching begin, from the root of the export.
    pub(super) fn listen(self: &Arc<Self>, listener: Weak<dyn Listener>, root: &Node) {
        if !self.ears.add(listener) || self.are_on() {
            return;
        }
        match self.begin(root) {
            Ok(()) if !self.sharing().is_empty() => {
                self.on.store(true, Ordering::Release);
                self.ears.covered(&Coverage::Partial(SHARED.into()));
            }
            Ok(()) => {
                self.on.store(true, Ordering::Release);
                // What was given before was not watched.
                self.ears.covered(&Coverage::Whole);
            }
            Err(error) => {
                log::warn!("files cannot be watched: {error}");
                let why = format!("the state server cannot watch its files: {error}");
                self.ears.covered(&Coverage::Partial(why));
            }
        }
    }

    fn begin(self: &Arc<Self>, root: &Node) -> std::io::Result<()> {
        let os = |errno: Errno| std::io::Error::from_raw_os_error(errno.0);
        let notices = Arc::new(Notices::new().map_err(os)?);
        let (ended, end) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let mut state = State {
            notices: notices.clone(),
            watched: HashMap::new(),
            last: 0,
            by_object: HashMap::new(),
            by_id: HashMap::new(),
            places: HashMap::new(),
            by_file: HashMap::new(),
            local: HashMap::new(),
            full: false,
            _end: end,
        };
        let root_fd = root.path.as_fd();
        if !state.is_local(root_fd) {
            return Err(std::io::Error::other("other machines may change them"));
        }
        match state.watch(root.key, root.kind, root_fd, self.most) {
            Ok(()) | Err(Errno(libc::ENOSPC)) => {}
            Err(errno) => return Err(os(errno)),
        }
        *self.state.lock() = Some(state);
        let watches = Arc::downgrade(self);
        std::thread::Builder::new()
            .name("watch".into())
            .spawn(move || read_notices(&watches, &notices, &ended))?;
        Ok(())
    }

    /// Has a directory watched, or a file with several links: to be called before the attributes are
    /// read that are given. Returns whether changes will be told.
    pub(super) fn watch(&self, key: Key, kind: FileKind, fd: BorrowedFd<'_>) -> bool {
        let mut guard = self.state.lock();
        let Some(state) = guard.as_mut() else { return false };
        if state.has_watch(&key) {
            return true;
        }
        let watched = state.is_local(fd) && state.watch(key, kind, fd, self.most).is_ok();
        let linked = kind != FileKind::Directory
            && state.places.get_mut(&key.id).is_some_and(|place| std::mem::take(&mut place.alone));
        drop(guard);
        if linked {
            // By its other name, which was made since, it may have been changed unseen.
            self.ears.changed(&Change::File(key.encode(), None));
        }
        watched
    }

    /// Notes an entry of a directory that is watched, which has so many links. Returns whether changes of
    /// it will be told.
    pub(super) fn place(
        &self,
        (key, fd): (Key, BorrowedFd<'_>),
        dir: Id,
        name: &[u8],
        links: u64,
    ) -> bool {
        let mut state = self.state.lock();
        let Some(state) = state.as_mut() else { return false };
        let Some(watch) = state.by_id.get(&dir).copied() else { return false };
        let known = state.places.get(&key.id);
        if known.is_some_and(|place| place.is(watch, name)) {
            return true;
        }
        let alone = links == 1 || known.is_some_and(|place| place.alone);
        if state.places.len() >= PLACES_MAX {
            state.forget_places();
            self.lose();
        }
        let Some(watched) = state.watched.get_mut(&watch) else { return false };
        watched.entries.insert(name.into(), key);
        let object = Object::of(fd).ok();
        if let Some(object) = &object {
            state.by_file.insert(object.clone(), key);
        }
        state.places.insert(key.id, Place { watch, name: name.into(), object, alone });
        true
    }

    /// Notes that this process has taken a file away from where it was, which nothing else tells of
    /// here; `to`: and given it this name.
    pub(super) fn left(
        &self,
        (id, fd): (&Id, BorrowedFd<'_>),
        dir: Id,
        name: &[u8],
        to: Option<(Id, &[u8])>,
    ) {
        let left = {
            let mut state = self.state.lock();
            let Some(state) = state.as_mut() else { return };
            let Some(watch) = state.by_id.get(&dir).copied() else { return };
            let is_there =
                |watched: &Watched| watched.entries.get(name).is_some_and(|at| at.id == *id);
            if state.watched.get(&watch).is_some_and(is_there) {
                state.leave(watch, name)
            } else {
                None
            }
        };
        if let (Some(key), Some((dir, name))) = (left, to)
            && !self.place((key, fd), dir, name, 1)
        {
            self.leave_uncovered(&key);
        }
    }

    /// Says whether changes of a file are told that is no directory.
    pub(super) fn has_place(&self, id: &Id) -> bool {
        self.state.lock().as_ref().is_some_and(|state| state.places.contains_key(id))
    }

    /// Says whether a directory, or a file with several links, is watched.
    pub(super) fn has_watch(&self, key: &Key) -> bool {
        self.state.lock().as_ref().is_some_and(|state| state.has_watch(key))
    }

    /// Says that changes of a file are not told.
    pub(super) fn leave_uncovered(&self, key: &Key) {
        self.ears.changed(&Change::Uncovered(key.encode()));
    }

    fn take(&self, notices: &[Notice]) {
        let mut changes = Vec::new();
        let mut lost = false;
        {
            let mut state = self.state.lock();
            let Some(state) = state.as_mut() else { return };
            for notice in notices {
                if notice.is_overflow() {
                    log::warn!("changes came faster than they could be read");
                    state.forget_places();
                    lost = true;
                } else {
                    if !notice.own {
                        state.note(notice, &mut changes);
                    }
                    state.end(notice, &mut changes);
                }
            }
        }
        for change in changes {
            self.ears.changed(&change);
        }
        if lost {
            self.lose();
        }
    }

    /// Changes have been lost.
    fn lose(&self) {
        if self.sharing().is_empty() {
            self.ears.covered(&Coverage::Whole);
        }
    }
}

impl State {
    fn is_local(&mut self, fd: BorrowedFd<'_>) -> bool {
        let Ok(stat) = sys::fstat(fd) else { return false };
        *self.local.entry(stat.st_dev).or_insert_with(|| {
            sys::fstatfs(fd).is_ok_and(|statfs| LOCAL.contains(&(statfs.f_type as u32)))
        })
    }

    fn has_watch(&self, key: &Key) -> bool {
        let watched = self.by_id.get(&key.id).and_then(|watch| self.watched.get(watch));
        watched.is_some_and(|watched| watched.key == *key)
    }

    fn watch(
        &mut self,
        key: Key,
        kind: FileKind,
        fd: BorrowedFd<'_>,
        most: usize,
    ) -> SysResult<()> {
        let marked = match self.watched.len() < most {
            true => self.notices.mark(fd, kind == FileKind::Directory),
            false => Err(Errno(libc::ENOSPC)),
        };
        if marked == Err(Errno(libc::ENOSPC)) && !std::mem::replace(&mut self.full, true) {
            let count = self.watched.len();
            log::warn!("{count} directories are watched, and no more (fs.fanotify.max_user_marks)");
        }
        marked?;
        let object = Object::of(fd)?;
        self.last += 1;
        // An inode number that is used again.
        let before = self.by_id.insert(key.id, self.last);
        if let Some(before) = before.and_then(|before| self.watched.remove(&before)) {
            self.by_object.remove(&before.object);
        }
        self.by_object.insert(object.clone(), self.last);
        self.watched.insert(self.last, Watched { key, object, entries: HashMap::new() });
        Ok(())
    }

    /// Forgets where files are: they are found again when they are asked for.
    fn forget_places(&mut self) {
        self.places.clear();
        self.by_file.clear();
        self.watched.values_mut().for_each(|watched| watched.entries.clear());
    }

    /// Forgets an entry of a directory.
    fn leave(&mut self, watch: Watch, name: &[u8]) -> Option<Key> {
        let key = self.watched.get_mut(&watch)?.entries.remove(name)?;
        self.lose_place(&key, watch, name);
        Some(key)
    }

    fn lose_place(&mut self, key: &Key, watch: Watch, name: &[u8]) {
        if self.places.get(&key.id).is_some_and(|place| place.is(watch, name))
            && let Some(Place { object: Some(object), .. }) = self.places.remove(&key.id)
        {
            self.by_file.remove(&object);
        }
    }

    /// Takes a notice, and adds what it says to `changes`.
    fn note(&mut self, notice: &Notice, changes: &mut Vec<Change>) {
        let change = |key: &Key| match notice.is_of_data() {
            true => Change::File(key.encode(), None),
            false => Change::Attributes(key.encode(), None),
        };
        let watch_of = |object: &Object| self.by_object.get(object).copied();
        let at = notice.entry.as_ref().and_then(|(dir, name)| Some((watch_of(dir)?, &**name)));
        let file = notice.file.as_ref().and_then(watch_of);
        if let Some(watched) = file.and_then(|file| self.watched.get(&file)) {
            changes.push(change(&watched.key));
        }
        // A link that is made or removed changes the file, too, by whatever name it was given.
        changes.extend(notice.file.as_ref().and_then(|file| self.by_file.get(file)).map(change));
        let Some((watch, name)) = at.filter(|(_, name)| *name != b".") else { return };
        if !notice.is_of_name() {
            let entry = self.watched.get(&watch).and_then(|watched| watched.entries.get(name));
            changes.extend(entry.map(change));
            return;
        }
        // Until it is seen elsewhere, nothing tells of what is done to it.
        changes.extend(self.leave(watch, name).map(|key| Change::File(key.encode(), None)));
        if let Some(Watched { key, .. }) = self.watched.get(&watch) {
            changes.push(Change::Name(key.encode(), Bytes::copy_from_slice(name), Leads::Unknown));
            changes.push(Change::Attributes(key.encode(), None));
        }
    }

    /// Forgets what was watched and is gone.
    fn end(&mut self, notice: &Notice, changes: &mut Vec<Change>) {
        if !notice.is_end() {
            return;
        }
        let Some(watch) = notice.file.as_ref().and_then(|file| self.by_object.remove(file)) else {
            return;
        };
        let Some(watched) = self.watched.remove(&watch) else { return };
        if self.by_id.get(&watched.key.id) == Some(&watch) {
            self.by_id.remove(&watched.key.id);
        }
        for (name, key) in &watched.entries {
            self.lose_place(key, watch, name);
            changes.push(Change::File(key.encode(), None));
        }
    }
}

/// The most watches that an export should have by what the machine allows a user.
fn allowed_watches() -> usize {
    let text = std::fs::read_to_string("/proc/sys/fs/fanotify/max_user_marks");
    let allowed = text.ok().and_then(|text| text.trim().parse::<usize>().ok());
    allowed.map_or(WATCHES_MAX, |allowed| (allowed / WATCHES_SHARE).min(WATCHES_MAX))
}

fn read_notices(watches: &Weak<Watches>, notices: &Notices, ended: &OwnedFd) {
    loop {
        let mut ready = [
            PollFd::new(notices.as_fd(), PollFlags::POLLIN),
            PollFd::new(ended.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(NixErrno::EINTR) => {}
            Err(_) => return,
        }
        let Some(watches) = watches.upgrade() else { return };
        match notices.read() {
            Ok(notices) => watches.take(&notices),
            Err(Errno(libc::EAGAIN | libc::EINTR)) => {}
            Err(Errno(errno)) => {
                let error = std::io::Error::from_raw_os_error(errno);
                log::error!("changes cannot be read: {error}");
                let why = format!("the state server cannot read what has changed: {error}");
                watches.ears.covered(&Coverage::Partial(why));
                return;
            }
        }
    }
}
