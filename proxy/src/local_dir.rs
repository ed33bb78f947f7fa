//! A directory of this machine as a [`Vfs`]: the back end of a state server without an NFS server.
//!
//! What it keeps: a bounded set of pinned files with their descriptors (`node`), a table of where
//! files were last seen, in memory and in a small database (`table`, `store`), and nothing that a
//! handle's validity depends on: a handle is a function of the file (`key`), and a file is found
//! again after a restart or a rename by others (`resolve`, `search`).
//!
//! What it never does: follow a symbolic link, resolve a path text, or leave the export. Every step
//! opens one name beneath a pinned directory. Mounts below the export are crossed, as by a local
//! process; their files' handles and attributes carry another file system id.
//!
//! **The calls block.** Each makes its system calls on the thread that polls it and never awaits:
//! poll them on threads that may block. No lock is held across I/O but a file's own.
//!
//! **Identities.** In a process that is root each call runs as its caller; otherwise all run as the
//! process, whoever calls. The file creation mask is read once, when the directory is opened, and
//! made up for; a process that sets it to 0 saves the system call.
//!
//! **Needs** Linux with /proc; openat2 (5.6) and faccessat2 (5.8) where there are.

mod attr;
mod create;
mod data;
mod key;
mod listing;
mod names;
mod node;
mod privilege;
mod resolve;
mod search;
mod store;
mod sys;
mod sys_names;
mod sys_watch;
mod table;
mod volume;
mod watch;

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use gridvfs_vfs::{
    Access, AccessGranted, Allocation, Attr, Caller, Committed, CreateHow, Created, DirPage, Entry,
    FileHandle, FileKind, FsInfo, FsStat, Linked, Listener, NodeKind, PathConf, ReadData, Result,
    SeekWhence, SetAttr, Stability, Time, Verifier, Vfs, Wcc, Written,
};
use lru::LruCache;
use parking_lot::Mutex;
use ring::rand::SecureRandom;

use self::key::{Devices, Id, Key};
use self::listing::{Stream, StreamKey};
use self::node::{Node, Nodes, Parked};
use self::privilege::Privilege;
use self::search::Searches;
use self::store::Store;
use self::table::Table;
use self::watch::Watches;

/// How many handles that were searched for in vain are remembered.
const MISSING_MAX: usize = 4096;
/// How many EXCLUSIVE creates may be waiting for their SETATTR.
const EXCLUSIVE_MAX: usize = 1024;

/// How to open a [`LocalDir`].
#[derive(Clone, Debug, Default)]
pub struct LocalDirOptions {
    /// Where to keep what makes handles quick to resolve after a restart. Without it, or when it is
    /// lost, the first use of a handle searches the export once. Several processes may share it.
    pub state_dir: Option<PathBuf>,
    /// Whether changes are refused.
    pub read_only: bool,
    /// The most directories that are watched for changes, for those who listen; `None`: 16384, or a
    /// quarter of what the user may have.
    pub watches_max: Option<usize>,
}

/// Why a directory cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is nothing at the path.
    #[error("no such directory: {0}")]
    Missing(PathBuf),
    /// There is something else at the path.
    #[error("not a directory: {0}")]
    NotADirectory(PathBuf),
    /// The directory, or one above it, is closed to this user.
    #[error("permission denied: {0} (it must be readable and searchable for this user)")]
    Unreadable(PathBuf),
    /// Something that the local directory stands on is missing.
    #[error("cannot export {path}: {what}")]
    Unsupported {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
    /// Any other error of the kernel.
    #[error("cannot open {path}: {error}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// The kernel's error.
        error: std::io::Error,
    },
}

/// A directory of this machine. See the module's documentation.
#[derive(Debug)]
pub struct LocalDir {
    root: Arc<Node>,
    devices: Devices,
    nodes: Arc<Nodes>,
    streams: Arc<Parked<StreamKey, Stream>>,
    table: Table,
    searches: Searches,
    missing: Mutex<LruCache<Key, Instant>>,
    exclusive: Mutex<LruCache<Id, ()>>,
    privilege: Privilege,
    watches: Arc<Watches>,
    read_only: bool,
    umask: u32,
    verifier: AtomicU64,
    opened: Instant,
}

impl LocalDir {
    /// Opens a directory. A symbolic link to one is followed here and never again.
    pub fn open(path: impl AsRef<Path>, options: LocalDirOptions) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let io = |error: std::io::Error| match error.raw_os_error() {
            Some(libc::ENOENT) => OpenError::Missing(path.into()),
            Some(libc::ENOTDIR) => OpenError::NotADirectory(path.into()),
            Some(libc::EACCES) => OpenError::Unreadable(path.into()),
            _ => OpenError::Io { path: path.into(), error },
        };
        let errno = |errno: sys::Errno| io(std::io::Error::from_raw_os_error(errno.0));
        let unsupported = |what: String| OpenError::Unsupported { path: path.into(), what };

        let fd = sys::pin_root(path).map_err(errno)?;
        sys::may(fd.as_fd(), libc::R_OK | libc::X_OK)
            .or_else(|error| match error.0 {
                libc::ENOSYS => sys::process_may(fd.as_fd(), libc::R_OK | libc::X_OK),
                _ => Err(error),
            })
            .map_err(errno)?;
        sys::repin(fd.as_fd())
            .map_err(|_| unsupported("/proc is not mounted, or hides open files".into()))?;

        let stat = sys::fstat(fd.as_fd()).map_err(errno)?;
        let devices = Devices::new(stat.st_dev);
        let key = devices.key(fd.as_fd(), &stat).map_err(errno)?;
        let nodes = Arc::new(Nodes::new());
        let root = nodes.pin(fd, key, FileKind::Directory, u64::MAX);
        // The root is held for good, not among what may be let go.
        nodes.remove(&key.id);
        let streams = Arc::new(Parked::new(non_zero(listing::PARKED_MAX)));
        let file = options.state_dir.as_ref().map(|dir| {
            dir.join(format!("handles-{:016x}-{:x}.sqlite", key.id.device, key.id.inode))
        });
        let kept = file.clone();
        let store = Store::open(file, sweep(nodes.clone(), streams.clone()))
            .map_err(|error| unsupported(format!("no handle table: {error}")))?;
        let whole = std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
        if let (Some(table), Some(directory)) = (kept, options.state_dir) {
            store::old::note_use(&table, &whole);
            store::old::remove_old(&directory);
        }
        let mut verifier = [0; 8];
        ring::rand::SystemRandom::new()
            .fill(&mut verifier)
            .map_err(|_| unsupported("no random numbers".into()))?;
        Ok(Self {
            root,
            devices,
            nodes,
            streams,
            table: Table::new(store),
            searches: Searches::default(),
            missing: Mutex::new(LruCache::new(non_zero(MISSING_MAX))),
            exclusive: Mutex::new(LruCache::new(non_zero(EXCLUSIVE_MAX))),
            privilege: Privilege::new(),
            watches: Watches::new(whole, options.watches_max),
            read_only: options.read_only,
            umask: sys::umask(),
            verifier: AtomicU64::new(u64::from_be_bytes(verifier)),
            opened: Instant::now(),
        })
    }

    /// Whether calls run as their callers, because the process is root, or else as the process.
    pub fn acts_as_callers(&self) -> bool {
        self.privilege.acts_as_callers()
    }
}

fn non_zero(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).expect("the constants are not zero")
}

/// Lets go of files that others have removed, whose space a held descriptor would keep, and of
/// listings that nobody continues.
fn sweep(
    nodes: Arc<Nodes>,
    streams: Arc<Parked<StreamKey, Stream>>,
) -> impl FnMut() + Send + 'static {
    move || {
        for node in nodes.all() {
            if sys::fstat(node.path.as_fd()).is_ok_and(|stat| stat.st_nlink == 0) {
                nodes.remove_node(&node);
            }
        }
        streams.drop_where(|_, stream| stream.is_old());
    }
}

#[async_trait]
impl Vfs for LocalDir {
    fn listen(&self, listener: Weak<dyn Listener>) {
        self.watches.listen(listener, &self.root);
    }

    fn root(&self) -> FileHandle {
        self.root.key.encode()
    }

    async fn getattr(&self, _caller: &Caller, file: &FileHandle) -> Result<Attr> {
        let node = self.resolve(file)?;
        let stat = self.stat(&node)?;
        Ok(self.attr_of(&node, &stat))
    }

    async fn setattr(
        &self,
        caller: &Caller,
        file: &FileHandle,
        changes: &SetAttr,
        guard: Option<Time>,
    ) -> Result<Wcc> {
        self.do_setattr(caller, file, changes, guard)
    }

    async fn lookup(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Entry> {
        self.do_lookup(caller, dir, name)
    }

    async fn access(
        &self,
        caller: &Caller,
        file: &FileHandle,
        wanted: Access,
    ) -> Result<AccessGranted> {
        self.do_access(caller, file, wanted)
    }

    async fn readlink(&self, _caller: &Caller, file: &FileHandle) -> Result<Bytes> {
        self.do_readlink(file)
    }

    async fn read(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<ReadData> {
        self.do_read(caller, file, offset, count)
    }

    async fn write(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        data: Bytes,
        stable: Stability,
    ) -> Result<Written> {
        self.do_write(caller, file, offset, &data, stable)
    }

    async fn create(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        how: &CreateHow,
    ) -> Result<Created> {
        self.do_create(caller, dir, name, how)
    }

    async fn mkdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        self.do_mkdir(caller, dir, name, attr)
    }

    async fn symlink(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        target: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        self.do_symlink(caller, dir, name, target, attr)
    }

    async fn mknod(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        kind: NodeKind,
        attr: &SetAttr,
    ) -> Result<Created> {
        self.do_mknod(caller, dir, name, kind, attr)
    }

    async fn remove(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        self.do_remove(caller, dir, name, false)
    }

    async fn rmdir(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        self.do_remove(caller, dir, name, true)
    }

    async fn rename(
        &self,
        caller: &Caller,
        from_dir: &FileHandle,
        from_name: &[u8],
        to_dir: &FileHandle,
        to_name: &[u8],
        no_replace: bool,
    ) -> Result<(Wcc, Wcc)> {
        self.do_rename(caller, from_dir, from_name, to_dir, to_name, no_replace)
    }

    async fn link(
        &self,
        caller: &Caller,
        file: &FileHandle,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Linked> {
        self.do_link(caller, file, dir, name)
    }

    async fn readdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        cookie: u64,
        _verifier: Verifier,
        size_bytes: u32,
        plus: bool,
    ) -> Result<DirPage> {
        self.do_readdir(caller, dir, cookie, size_bytes, plus)
    }

    async fn fsstat(&self, _caller: &Caller, file: &FileHandle) -> Result<FsStat> {
        self.do_fsstat(file)
    }

    async fn fsinfo(&self, _caller: &Caller, file: &FileHandle) -> Result<FsInfo> {
        self.do_fsinfo(file)
    }

    async fn pathconf(&self, _caller: &Caller, file: &FileHandle) -> Result<PathConf> {
        self.do_pathconf(file)
    }

    async fn commit(
        &self,
        _caller: &Caller,
        file: &FileHandle,
        _offset: u64,
        _count: u32,
    ) -> Result<Committed> {
        self.do_commit(file)
    }

    async fn seek(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        whence: SeekWhence,
    ) -> Result<u64> {
        self.do_seek(caller, file, offset, whence)
    }

    async fn allocate(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        length: u64,
        how: Allocation,
    ) -> Result<Wcc> {
        self.do_allocate(caller, file, offset, length, how)
    }

    fn forget(&self, file: &FileHandle) {
        if let Some(key) = Key::decode(file) {
            self.nodes.remove(&key.id);
        }
    }

    fn discard(&self, file: &FileHandle) {
        self.forget(file);
    }

    async fn shutdown(&self) -> Result<()> {
        self.table.store().flush();
        Ok(())
    }
}
