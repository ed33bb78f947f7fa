//! Pinned files: what has been resolved lately, with the descriptors held for it.
//!
//! A node holds an O_PATH descriptor, which stays with the file through every rename, and the
//! descriptors opened for reading and writing it. The number of descriptors in all nodes and
//! listings is bounded; the least recently used nodes go first, and an operation that is using one
//! keeps it to its end. No lock here is held across a system call other than close.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use gridvfs_vfs::FileKind;
use lru::LruCache;
use parking_lot::{Mutex, ReentrantMutex};

use super::key::{Id, Key};
use super::sys::{Errno, SysResult};

/// The fewest and the most descriptors that are kept open between operations.
const KEPT_MIN: usize = 16;
const KEPT_MAX: usize = 4096;
/// Descriptors left to the rest of the process before the kept ones get half of what remains.
const RESERVED: usize = 64;
/// How often, and how long apart, an opening that found no free descriptor is repeated.
const ROOM_ATTEMPTS: usize = 200;
const ROOM_PAUSE: Duration = Duration::from_millis(5);

/// A descriptor that is counted while it is open.
#[derive(Debug)]
pub(super) struct Fd {
    fd: OwnedFd,
    open: Arc<AtomicUsize>,
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The descriptors through which a regular file's data goes.
#[derive(Debug, Default)]
pub(super) struct DataFds {
    pub read: Option<Arc<Fd>>,
    pub write: Option<Arc<Fd>>,
}

/// A pinned file.
#[derive(Debug)]
pub(super) struct Node {
    pub key: Key,
    pub kind: FileKind,
    pub path: Fd,
    pub data: Mutex<DataFds>,
    /// Serialises changes that look first (guards) or change the mode for a moment.
    pub change: ReentrantMutex<()>,
    /// When it was last seen inside the export, in milliseconds of the directory's clock.
    pub inside_ms: AtomicU64,
}

/// The bounded set of pinned files.
#[derive(Debug)]
pub(super) struct Nodes {
    cache: Mutex<LruCache<Id, Arc<Node>>>,
    open: Arc<AtomicUsize>,
    kept_max: usize,
}

impl Nodes {
    /// Bounds itself by the limit on descriptors that the process has now.
    pub(super) fn new() -> Self {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a live buffer.
        let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
        let limit = if known { usize::try_from(limit.rlim_cur).unwrap_or(KEPT_MAX) } else { 0 };
        let kept_max = (limit.saturating_sub(RESERVED) / 2).clamp(KEPT_MIN, KEPT_MAX);
        Self { cache: Mutex::new(LruCache::unbounded()), open: Arc::default(), kept_max }
    }

    /// How many descriptors are kept open at most.
    pub(super) fn kept_max(&self) -> usize {
        self.kept_max
    }

    /// Counts a descriptor from now on.
    pub(super) fn count(&self, fd: OwnedFd) -> Fd {
        self.open.fetch_add(1, Ordering::Relaxed);
        Fd { fd, open: self.open.clone() }
    }

    pub(super) fn get(&self, id: &Id) -> Option<Arc<Node>> {
        self.cache.lock().get(id).cloned()
    }

    /// Keeps a file pinned; one that is pinned already stays as it is and is returned.
    pub(super) fn pin(&self, fd: OwnedFd, key: Key, kind: FileKind, now_ms: u64) -> Arc<Node> {
        let node = Arc::new(Node {
            key,
            kind,
            path: self.count(fd),
            data: Mutex::default(),
            change: ReentrantMutex::new(()),
            inside_ms: AtomicU64::new(now_ms),
        });
        let replaced;
        {
            let mut cache = self.cache.lock();
            if let Some(present) = cache.get(&key.id)
                && present.key == key
            {
                present.inside_ms.store(now_ms, Ordering::Relaxed);
                return present.clone();
            }
            replaced = cache.put(key.id, node.clone());
        }
        drop(replaced);
        self.trim();
        node
    }

    /// Lets go of a file. Operations under way keep it to their end.
    pub(super) fn remove(&self, id: &Id) {
        let removed = self.cache.lock().pop(id);
        drop(removed);
    }

    /// Lets go of this very pin and not of a newer one of the same inode.
    pub(super) fn remove_node(&self, node: &Arc<Node>) {
        let mut cache = self.cache.lock();
        let removed = match cache.peek(&node.key.id) {
            Some(present) if Arc::ptr_eq(present, node) => cache.pop(&node.key.id),
            _ => None,
        };
        drop(cache);
        drop(removed);
    }

    /// Brings the number of open descriptors below its bound.
    pub(super) fn trim(&self) {
        while self.open.load(Ordering::Relaxed) > self.kept_max {
            let oldest = self.cache.lock().pop_lru();
            if oldest.is_none() {
                break;
            }
        }
    }

    /// Runs something that opens a descriptor, making room when the process has none left. A pause
    /// gives other threads' operations the time to finish and close theirs.
    pub(super) fn with_room<T>(&self, mut open: impl FnMut() -> SysResult<T>) -> SysResult<T> {
        for _ in 0..ROOM_ATTEMPTS {
            match open() {
                Err(Errno(libc::EMFILE | libc::ENFILE)) => {
                    let half = self.cache.lock().len().div_ceil(2);
                    let oldest: Vec<_> = {
                        let mut cache = self.cache.lock();
                        (0..half).map_while(|_| cache.pop_lru()).collect()
                    };
                    if oldest.is_empty() {
                        std::thread::sleep(ROOM_PAUSE);
                    }
                }
                result => return result,
            }
        }
        open()
    }

    /// Every pinned file, for the sweep that looks for removed ones.
    pub(super) fn all(&self) -> Vec<Arc<Node>> {
        self.cache.lock().iter().map(|(_, node)| node.clone()).collect()
    }
}

/// Where listings stand, so that the next page goes on without seeking.
#[derive(Debug)]
pub(super) struct Parked<K: std::hash::Hash + Eq, V>(Mutex<LruCache<K, V>>);

impl<K: std::hash::Hash + Eq, V> Parked<K, V> {
    pub(super) fn new(most: NonZeroUsize) -> Self {
        Self(Mutex::new(LruCache::new(most)))
    }

    pub(super) fn take(&self, key: &K) -> Option<V> {
        self.0.lock().pop(key)
    }

    pub(super) fn park(&self, key: K, value: V) {
        let pushed_out = self.0.lock().push(key, value);
        drop(pushed_out);
    }

    /// Drops what `unwanted` says.
    pub(super) fn drop_where(&self, unwanted: impl Fn(&K, &V) -> bool) {
        let mut parked = self.0.lock();
        let mut dropped = Vec::new();
        let keys = parked.len();
        for _ in 0..keys {
            if let Some((key, value)) = parked.pop_lru() {
                if unwanted(&key, &value) {
                    dropped.push(value);
                } else {
                    parked.push(key, value);
                }
            }
        }
        drop(parked);
        drop(dropped);
    }
}
