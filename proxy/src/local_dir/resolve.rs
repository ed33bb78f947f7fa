//! From a handle to the file, inside the export or not at all.
//!
//! The order is: what is pinned; the last known location, step by step from the nearest pinned
//! directory; the rest of that directory, in case of a new name; one search of the whole export.
//! Every step opens one name beneath a pinned directory and compares what is there with the
//! handle, so a forged handle, a stale hint or a concurrent rename can at worst find nothing.
//!
//! A pinned file that another process moves out of the export is noticed within
//! [`INSIDE_RECHECK_MS`], since the kernel is asked that often where it is.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gridvfs_vfs::{Error, FileHandle, FileKind, Result, Status};

use super::LocalDir;
use super::key::{Id, Key};
use super::node::Node;
use super::sys::{self, Errno, SysResult};
use super::sys_names::for_each_entry;

/// How long a file that was inside the export is taken to be inside still.
const INSIDE_RECHECK_MS: u64 = 1000;
/// The deepest directory that hints are followed to.
const DEPTH_MAX: usize = 4096;
/// How many names of one inode number are tried in a directory.
const CANDIDATES_MAX: usize = 16;
/// How long a handle that was searched for in vain stays stale without another search.
const MISSING: Duration = Duration::from_secs(3);
/// How old the last search may be to answer for a handle of which nothing is known.
const SEARCH_REUSE: Duration = Duration::from_secs(2);

/// Where a pinned file is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Inside,
    /// It has no name any more.
    Gone,
    /// Outside, or nobody can tell without looking for it.
    Unknown,
}

/// What following the hints has led to.
enum Found {
    File(Arc<Node>),
    /// The inode number belongs to another file now.
    Reused,
    /// The hints were wrong.
    Moved,
    /// There were no hints.
    Unknown,
}

impl LocalDir {
    /// Milliseconds since this directory was opened.
    pub(super) fn now_ms(&self) -> u64 {
        self.opened.elapsed().as_millis() as u64
    }

    /// Finds the file of a handle.
    pub(super) fn resolve(&self, handle: &FileHandle) -> Result<Arc<Node>> {
        let node = self.resolve_unwatched(handle)?;
        if self.watches.are_on() && !self.is_watched(&node) {
            self.watches.leave_uncovered(&node.key);
        }
        Ok(node)
    }

    /// Has changes of a file told from now on; says whether they will be.
    fn is_watched(&self, node: &Arc<Node>) -> bool {
        if node.kind == FileKind::Directory {
            return self.watches.watch(node.key, node.kind, node.path.as_fd());
        }
        if self.watches.has_place(&node.key.id) {
            return true;
        }
        self.table.locations(&node.key.id).into_iter().any(|location| {
            let Ok(Some(dir)) = self.dir_by_id(location.parent) else { return false };
            self.watches.watch(dir.key, dir.kind, dir.path.as_fd())
                && self.pin_if(&dir, node.key.id, &location.name).is_ok_and(|at| at.is_some())
                && self.watches.has_place(&node.key.id)
        })
    }

    fn resolve_unwatched(&self, handle: &FileHandle) -> Result<Arc<Node>> {
        let key = Key::decode(handle).ok_or(Status::BADHANDLE)?;
        if key.id == self.root.key.id {
            return if key == self.root.key { Ok(self.root.clone()) } else { stale() };
        }
        if let Some(node) = self.nodes.get(&key.id)
            && node.key == key
        {
            match self.place(&node)? {
                Place::Inside => return Ok(node),
                Place::Gone => {
                    self.let_go(&node);
                    return stale();
                }
                Place::Unknown => self.nodes.remove_node(&node),
            }
        }
        self.find(key)
    }

    /// Finds the directory of a handle.
    pub(super) fn resolve_dir(&self, handle: &FileHandle) -> Result<Arc<Node>> {
        let node = self.resolve(handle)?;
        if node.kind == FileKind::Directory { Ok(node) } else { Err(Status::NOTDIR.into()) }
    }

    /// Returns the attributes of a file that still has a name.
    pub(super) fn stat(&self, node: &Arc<Node>) -> Result<libc::stat> {
        let stat = sys::fstat(node.path.as_fd())?;
        if stat.st_nlink == 0 {
            self.let_go(node);
            return stale();
        }
        if stat.st_nlink > 1 && node.kind != FileKind::Directory && self.watches.are_on() {
            return self.stat_linked(node, stat);
        }
        Ok(stat)
    }

    /// A file with several links may be changed by way of a directory that is not watched.
    fn stat_linked(&self, node: &Arc<Node>, stat: libc::stat) -> Result<libc::stat> {
        if self.watches.has_watch(&node.key) {
            return Ok(stat);
        }
        if !self.watches.watch(node.key, node.kind, node.path.as_fd()) {
            self.watches.leave_uncovered(&node.key);
        }
        // As it is since it is watched.
        Ok(sys::fstat(node.path.as_fd())?)
    }

    /// Forgets a file that has no name any more.
    pub(super) fn let_go(&self, node: &Arc<Node>) {
        self.nodes.remove_node(node);
        self.table.remove(&node.key.id);
    }

    /// Pins a name of a directory under the identity in force, and remembers where it was seen.
    pub(super) fn pin_child(&self, dir: &Node, name: &CStr) -> SysResult<Arc<Node>> {
        let fd = self.nodes.with_room(|| sys::pin_child(dir.path.as_fd(), name))?;
        self.pin(fd, Some((dir.key.id, name.to_bytes())))
    }

    /// Keeps a descriptor pinned.
    pub(super) fn pin(&self, fd: OwnedFd, at: Option<(Id, &[u8])>) -> SysResult<Arc<Node>> {
        let stat = sys::fstat(fd.as_fd())?;
        let key = self.devices.key(fd.as_fd(), &stat)?;
        if key == self.root.key {
            return Ok(self.root.clone());
        }
        let node = self.nodes.pin(fd, key, super::attr::kind(stat.st_mode), self.now_ms());
        if let Some((parent, name)) = at {
            self.table.note(key.id, parent, name);
        }
        if self.watches.are_on() {
            let watched = match (node.kind, at) {
                (FileKind::Directory, _) => self.watches.watch(key, node.kind, node.path.as_fd()),
                (_, Some((parent, name))) => {
                    let file = (key, node.path.as_fd());
                    self.watches.place(file, parent, name, stat.st_nlink)
                }
                (_, None) => true,
            };
            if !watched {
                self.watches.leave_uncovered(&key);
            }
        }
        Ok(node)
    }

    /// Whether a pinned directory is the root or beneath it.
    pub(super) fn is_inside(&self, dir: BorrowedFd<'_>) -> SysResult<bool> {
        match self.inside_by_path(dir)? {
            Some(inside) => Ok(inside),
            None => self.inside_by_climbing(dir),
        }
    }

    fn place(&self, node: &Node) -> SysResult<Place> {
        let now = self.now_ms();
        if now.saturating_sub(node.inside_ms.load(Ordering::Relaxed)) < INSIDE_RECHECK_MS {
            return Ok(Place::Inside);
        }
        let fd = node.path.as_fd();
        if sys::fstat(fd)?.st_nlink == 0 {
            return Ok(Place::Gone);
        }
        let inside = match self.inside_by_path(fd)? {
            Some(inside) => inside,
            None => node.kind == FileKind::Directory && self.inside_by_climbing(fd)?,
        };
        if !inside {
            return Ok(Place::Unknown);
        }
        node.inside_ms.store(now, Ordering::Relaxed);
        Ok(Place::Inside)
    }

    /// Asks the kernel for the present paths of a file and the root. `None` when that does not
    /// settle it: a path that is too long, a name that has been removed, a root on the move.
    fn inside_by_path(&self, fd: BorrowedFd<'_>) -> SysResult<Option<bool>> {
        let path_of = |fd| match sys::current_path(fd) {
            Ok(path) if path.starts_with(b"/") => Ok(Some(path)),
            Ok(_) | Err(Errno(libc::ENAMETOOLONG | libc::ENOENT)) => Ok(None),
            Err(errno) => Err(errno),
        };
        for _ in 0..3 {
            let (Some(before), Some(path), Some(after)) =
                (path_of(self.root.path.as_fd())?, path_of(fd)?, path_of(self.root.path.as_fd())?)
            else {
                return Ok(None);
            };
            if path.ends_with(b" (deleted)") || path.len() + 1 >= libc::PATH_MAX as usize {
                return Ok(None);
            }
            if before == after {
                let rest = path.strip_prefix(before.strip_suffix(b"/").unwrap_or(&before));
                return Ok(Some(rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')));
            }
        }
        Ok(None)
    }

    fn inside_by_climbing(&self, dir: BorrowedFd<'_>) -> SysResult<bool> {
        let id_of = |fd: BorrowedFd<'_>| self.devices.id(fd, &sys::fstat(fd)?);
        let mut id = id_of(dir)?;
        let mut held: Option<OwnedFd> = None;
        for _ in 0..DEPTH_MAX {
            if id == self.root.key.id {
                return Ok(true);
            }
            let at = held.as_ref().map_or(dir, |fd| fd.as_fd());
            let parent = self.nodes.with_room(|| sys::pin_parent(at))?;
            let parent_id = id_of(parent.as_fd())?;
            if parent_id == id {
                return Ok(false);
            }
            (id, held) = (parent_id, Some(parent));
        }
        Ok(false)
    }

    fn find(&self, key: Key) -> Result<Arc<Node>> {
        let arrived = Instant::now();
        let since = match self.by_location(key)? {
            Found::File(node) => return Ok(node),
            Found::Reused => return stale(),
            Found::Moved => arrived,
            Found::Unknown => arrived.checked_sub(SEARCH_REUSE).unwrap_or(arrived),
        };
        if let Some(when) = self.missing.lock().get(&key)
            && when.elapsed() < MISSING
        {
            return stale();
        }
        self.search(key.id, since)?;
        match self.by_location(key)? {
            Found::File(node) => Ok(node),
            Found::Reused => stale(),
            Found::Moved | Found::Unknown => {
                self.missing.lock().put(key, Instant::now());
                stale()
            }
        }
    }

    /// Follows the hints. A step that is forbidden or fails is an error and not a stale handle.
    fn by_location(&self, key: Key) -> SysResult<Found> {
        let locations = self.table.locations(&key.id);
        if locations.is_empty() {
            return Ok(Found::Unknown);
        }
        let mut trouble = None;
        for location in locations {
            let found = self.dir_by_id(location.parent).and_then(|dir| match dir {
                Some(dir) => self.child_with_id(&dir, key.id, &location.name),
                None => Ok(None),
            });
            match found {
                Ok(Some(node)) if node.key == key => return Ok(Found::File(node)),
                Ok(Some(_)) => return Ok(Found::Reused),
                Ok(None) => {}
                Err(errno) => trouble = Some(errno),
            }
        }
        trouble.map_or(Ok(Found::Moved), Err)
    }

    /// Finds a directory by the hints for it and for those above it.
    fn dir_by_id(&self, id: Id) -> SysResult<Option<Arc<Node>>> {
        let mut below = Vec::new();
        let mut at = id;
        let mut node = loop {
            if at == self.root.key.id {
                break self.root.clone();
            }
            if let Some(node) = self.nodes.get(&at)
                && self.place(&node)? == Place::Inside
            {
                break node;
            }
            let Some(location) = self.table.locations(&at).into_iter().next() else {
                return Ok(None);
            };
            below.push((at, location.name));
            if below.len() > DEPTH_MAX {
                return Ok(None);
            }
            at = location.parent;
        };
        while let Some((id, name)) = below.pop() {
            match self.child_with_id(&node, id, &name)? {
                Some(child) => node = child,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    /// Pins the entry of a directory that is this inode: by its last known name, else by its
    /// number in the listing.
    fn child_with_id(&self, dir: &Arc<Node>, id: Id, name: &[u8]) -> SysResult<Option<Arc<Node>>> {
        if dir.kind != FileKind::Directory {
            return Ok(None);
        }
        if let Some(node) = self.pin_if(dir, id, name)? {
            return Ok(Some(node));
        }
        let mut names: Vec<Box<[u8]>> = Vec::new();
        match self.nodes.with_room(|| sys::open_listing(dir.path.as_fd())) {
            Ok(listing) => for_each_entry(listing.as_fd(), |entry| {
                if entry.inode == id.inode && *entry.name != *name {
                    names.push(entry.name.into());
                }
                names.len() < CANDIDATES_MAX
            })?,
            // Searchable but not readable: the search of the export cannot read it either.
            Err(Errno(libc::EACCES)) => {}
            Err(errno) => return Err(errno),
        }
        for candidate in names {
            if let Some(node) = self.pin_if(dir, id, &candidate)? {
                self.table.drop_location(&id, &dir.key.id, name);
                return Ok(Some(node));
            }
        }
        self.table.drop_location(&id, &dir.key.id, name);
        Ok(None)
    }

    fn pin_if(&self, dir: &Node, id: Id, name: &[u8]) -> SysResult<Option<Arc<Node>>> {
        let Ok(name) = sys::c_string(name) else { return Ok(None) };
        let pinned = self.nodes.with_room(|| sys::pin_child(dir.path.as_fd(), &name));
        let fd = match pinned {
            Ok(fd) => fd,
            Err(errno) if errno.is_absent() => return Ok(None),
            Err(errno) => return Err(errno),
        };
        if self.devices.id(fd.as_fd(), &sys::fstat(fd.as_fd())?)? != id {
            return Ok(None);
        }
        self.pin(fd, Some((dir.key.id, name.to_bytes()))).map(Some)
    }
}

fn stale<T>() -> Result<T> {
    Err(Error::Status(Status::STALE))
}
