//! Changes of what was given out, as the kernel tells them (inotify): everybody's, through this process,
//! another one, or a local program.
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
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use gridvfs_vfs::{Change, Coverage, Ears, FileKind, Leads, Listener};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use parking_lot::Mutex;

use super::key::{Id, Key};
use super::sys;

/// The most watches of an export, if not told otherwise; each costs the kernel about 1 KiB, and users
/// have as few as 8192 in all.
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

/// The watches of an export.
#[derive(Debug)]
pub(super) struct Watches {
    on: AtomicBool,
    most: usize,
    ears: Ears,
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    inotify: Arc<Inotify>,
    watched: HashMap<WatchDescriptor, Watched>,
    /// The watches of directories, and of files with several links.
    by_id: HashMap<Id, WatchDescriptor>,
    /// Where other files are: the directory whose watch tells of them, and their name there.
    places: HashMap<Id, (WatchDescriptor, Box<[u8]>)>,
    /// Whether a file system, by its device number, is one of [`LOCAL`].
    local: HashMap<u64, bool>,
    /// A file that has just left a directory, until it is seen to enter one.
    moved: Option<(u32, Key)>,
    full: bool,
    /// Closed when this goes: the thread that reads events ends.
    _end: OwnedFd,
}

#[derive(Debug)]
struct Watched {
    key: Key,
    /// The entries that were given; none for a file.
    entries: HashMap<Box<[u8]>, Key>,
}

impl Watches {
    pub(super) fn new(most: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            on: AtomicBool::new(false),
            most: most.unwrap_or_else(allowed_watches),
            ears: Ears::default(),
            state: Mutex::default(),
        })
    }

    /// Says whether anybody listens.
    pub(super) fn are_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Has a listener told; the first has watching begin.
    pub(super) fn listen(self: &Arc<Self>, listener: Weak<dyn Listener>) {
        if !self.ears.add(listener) || self.are_on() {
            return;
        }
        match self.begin() {
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

    fn begin(self: &Arc<Self>) -> std::io::Result<()> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let inotify = Arc::new(inotify);
        let (ended, end) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let (watches, events) = (Arc::downgrade(self), inotify.clone());
        *self.state.lock() = Some(State {
            inotify,
            watched: HashMap::new(),
            by_id: HashMap::new(),
            places: HashMap::new(),
            local: HashMap::new(),
            moved: None,
            full: false,
            _end: end,
        });
        std::thread::Builder::new()
            .name("watch".into())
            .spawn(move || read_events(&watches, &events, &ended))?;
        Ok(())
    }

    /// Has a directory watched, or a file with several links: to be called before the attributes are
    /// read that are given. Returns whether changes will be told.
    pub(super) fn watch(&self, key: Key, kind: FileKind, fd: BorrowedFd<'_>) -> bool {
        let mut state = self.state.lock();
        let Some(state) = state.as_mut() else { return false };
        let known = state.by_id.get(&key.id).and_then(|wd| state.watched.get(wd));
        if known.is_some_and(|watched| watched.key == key) {
            return true;
        }
        if !state.is_local(fd) || !state.has_room(self.most) {
            return false;
        }
        let mut mask = AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        if kind == FileKind::Directory {
            mask |= AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE;
        }
        // The descriptor's own file, whatever its path is now.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        match state.inotify.add_watch(&*path, mask) {
            Ok(wd) => {
                state.by_id.insert(key.id, wd);
                state.watched.insert(wd, Watched { key, entries: HashMap::new() });
                true
            }
            Err(error) => {
                if error == Errno::ENOSPC && !std::mem::replace(&mut state.full, true) {
                    log::warn!("no more files can be watched (fs.inotify.max_user_watches)");
                }
                false
            }
        }
    }

    /// Notes an entry of a directory that is watched. Returns whether changes of it will be told.
    pub(super) fn place(&self, key: Key, dir: Id, name: &[u8]) -> bool {
        let mut state = self.state.lock();
        let Some(state) = state.as_mut() else { return false };
        let Some(wd) = state.by_id.get(&dir).copied() else { return false };
        let known = state.places.get(&key.id);
        if known.is_some_and(|(at, known)| *at == wd && **known == *name) {
            return true;
        }
        if state.places.len() >= PLACES_MAX {
            state.places.clear();
            state.watched.values_mut().for_each(|watched| watched.entries.clear());
            self.ears.covered(&Coverage::Whole);
        }
        let Some(watched) = state.watched.get_mut(&wd) else { return false };
        watched.entries.insert(name.into(), key);
        state.places.insert(key.id, (wd, name.into()));
        true
    }

    /// Says whether changes of a file are told that is no directory.
    pub(super) fn has_place(&self, id: &Id) -> bool {
        self.state.lock().as_ref().is_some_and(|state| state.places.contains_key(id))
    }

    /// Says whether a directory, or a file with several links, is watched.
    pub(super) fn has_watch(&self, key: &Key) -> bool {
        let state = self.state.lock();
        let Some(state) = state.as_ref() else { return false };
        let watched = state.by_id.get(&key.id).and_then(|wd| state.watched.get(wd));
        watched.is_some_and(|watched| watched.key == *key)
    }

    /// Says that changes of a file are not told.
    pub(super) fn leave_uncovered(&self, key: &Key) {
        self.ears.changed(&Change::Uncovered(key.encode()));
    }

    fn take(&self, events: Vec<InotifyEvent>) {
        let mut changes = Vec::new();
        let mut lost = false;
        {
            let mut state = self.state.lock();
            let Some(state) = state.as_mut() else { return };
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    log::warn!("changes came faster than they could be read");
                    lost = true;
                } else {
                    state.note(&event, &mut changes);
                }
            }
        }
        for change in changes {
            self.ears.changed(&change);
        }
        if lost {
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

    fn has_room(&mut self, most: usize) -> bool {
        let room = self.watched.len() < most;
        if !room && !std::mem::replace(&mut self.full, true) {
            log::warn!("{most} directories are watched, and no more");
        }
        room
    }

    /// Takes an event, and adds what it says to `changes`.
    fn note(&mut self, event: &InotifyEvent, changes: &mut Vec<Change>) {
        let Some(watched) = self.watched.get_mut(&event.wd) else { return };
        let (key, has) = (watched.key, |flag| event.mask.contains(flag));
        if has(AddWatchFlags::IN_IGNORED) {
            if let Some(watched) = self.watched.remove(&event.wd) {
                self.by_id.remove(&watched.key.id);
                for key in watched.entries.values() {
                    self.places.remove(&key.id);
                    changes.push(Change::File(key.encode(), None));
                }
            }
            return;
        }
        let Some(name) = &event.name else {
            changes.push(Change::File(key.encode(), None));
            return;
        };
        let name = name.as_bytes();
        let moves_in = has(AddWatchFlags::IN_MOVED_TO);
        let leaves = has(AddWatchFlags::IN_DELETE) || has(AddWatchFlags::IN_MOVED_FROM);
        if !leaves && !moves_in && !has(AddWatchFlags::IN_CREATE) {
            // Data or attributes of an entry.
            changes.extend(watched.entries.get(name).map(|key| Change::File(key.encode(), None)));
            return;
        }
        let before = watched.entries.remove(name);
        if let Some(before) = before {
            self.places.remove(&before.id);
            changes.push(Change::File(before.encode(), None));
            if has(AddWatchFlags::IN_MOVED_FROM) {
                self.moved = Some((event.cookie, before));
            }
        }
        if moves_in && let Some((_, moved)) = self.moved.take_if(|(of, _)| *of == event.cookie) {
            watched.entries.insert(name.into(), moved);
            self.places.insert(moved.id, (event.wd, name.into()));
        }
        changes.push(Change::Name(key.encode(), Bytes::copy_from_slice(name), Leads::Unknown));
        changes.push(Change::File(key.encode(), None));
    }
}

/// The most watches that an export should have by what the machine allows a user.
fn allowed_watches() -> usize {
    let text = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches");
    let allowed = text.ok().and_then(|text| text.trim().parse::<usize>().ok());
    allowed.map_or(WATCHES_MAX, |allowed| (allowed / WATCHES_SHARE).min(WATCHES_MAX))
}

fn read_events(watches: &Weak<Watches>, events: &Inotify, ended: &OwnedFd) {
    loop {
        let mut ready = [
            PollFd::new(events.as_fd(), PollFlags::POLLIN),
            PollFd::new(ended.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        let Some(watches) = watches.upgrade() else { return };
        match events.read_events() {
            Ok(events) => watches.take(events),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => {
                log::error!("changes cannot be read: {error}");
                let why = format!("the state server cannot read what has changed: {error}");
                watches.ears.covered(&Coverage::Partial(why));
                return;
            }
        }
    }
}
