//! The calls of the front end, without the kernel's wire format: inodes, opens, attributes.

mod files;
mod listen;
mod names;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::{BackingId, FileAttr, FileType, INodeNo};
use gridvfs_vfs::{Attr, Caller, FileHandle, FileKind, Result, Status, Vfs, WccAttr};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use crate::directory::{Directories, Directory};
use crate::inodes::{Inode, Inodes, ROOT};
use crate::options::SessionOptions;
use crate::passthrough::{Counted, Local, Way, Wish};
use crate::silly::SillyLog;

/// The longest name in bytes, where the server does not say.
const NAME_BYTES_MAX: usize = 255;

/// What an open file's descriptor refers to.
pub(crate) struct OpenFile {
    pub inode: Arc<Inode>,
    /// Who opened it: a write-back of mapped pages comes from nobody in particular.
    pub caller: Caller,
    /// The access that it was opened for: O_RDONLY, O_WRONLY or O_RDWR.
    pub access: i32,
    /// How the kernel was told to treat it, once it was told.
    way: OnceLock<Counted>,
}

impl OpenFile {
    /// Says whether it may write.
    pub fn writes(&self) -> bool {
        self.access != libc::O_RDONLY
    }
}

/// What [`Core::open`] and [`Core::create`] answer.
pub(crate) struct Opened {
    pub number: u64,
    pub file: Arc<OpenFile>,
    /// What the kernel has cached is still good.
    pub keep: bool,
    pub wish: Wish,
}

/// What the kernel is to let go of.
pub(crate) enum Invalidation {
    /// The pages of an inode, once they are written back, and its attributes. The sender is told when
    /// that is done.
    Pages(u64, Option<oneshot::Sender<()>>),
    /// The attributes of an inode.
    Attributes(u64),
    /// A name in a directory.
    Name(u64, Box<[u8]>),
}

/// Removals under way in a directory. When it is dropped, they are done.
#[derive(Default)]
struct Removals {
    count: usize,
    done: watch::Sender<()>,
}

/// For how long attributes that were seen at an open answer the kernel at most: its own usual second.
const SEEN_FOR: Duration = Duration::from_secs(1);

/// The front end's state.
pub(crate) struct Core {
    pub vfs: Arc<dyn Vfs>,
    pub runtime: Handle,
    pub options: SessionOptions,
    pub inodes: Inodes,
    files: RwLock<HashMap<u64, Arc<OpenFile>>>,
    directories: Directories,
    next_open: AtomicU64,
    /// Inodes whose pages the kernel is to drop; a thread of its own tells it.
    pub invalidations: mpsc::UnboundedSender<Invalidation>,
    /// The kernel takes local files to read in our stead, as far as is known.
    pub passthrough: AtomicBool,
    /// The kernel has its write-back cache on.
    pub writes_back: AtomicBool,
    /// The kernel is told not to open directories: it checks by mode bits who may read them, and
    /// believes what it has of names, listings and attributes until told otherwise.
    pub unopened_directories: AtomicBool,
    /// How many changes of ours, of whatever file, have begun, and how many have ended.
    pub changes: AtomicU64,
    pub silly_log: Option<SillyLog>,
    /// Hidden files that are being removed since their last close, by directory.
    removals: Mutex<HashMap<FileHandle, Removals>>,
    silly_number: AtomicU64,
    /// Whether the server keeps times to the nanosecond, once it was asked.
    keeps_nanoseconds: OnceLock<bool>,
}

/// What a look-up answers the kernel.
pub(crate) struct Found {
    pub inode: Arc<Inode>,
    pub attr: FileAttr,
}

impl Core {
    pub fn new(
        vfs: Arc<dyn Vfs>,
        runtime: Handle,
        options: SessionOptions,
        invalidations: mpsc::UnboundedSender<Invalidation>,
        silly_log: Option<SillyLog>,
    ) -> Self {
        let inodes = Inodes::new(vfs.root());
        // Names of hidden files must differ from those of other sessions in the same directory.
        let start = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let start = start.map_or(0, |since| since.as_nanos() as u64);
        Self {
            vfs,
            runtime,
            options,
            inodes,
            files: RwLock::default(),
            directories: Directories::default(),
            next_open: AtomicU64::new(1),
            invalidations,
            passthrough: AtomicBool::new(false),
            writes_back: AtomicBool::new(false),
            unopened_directories: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            silly_log,
            removals: Mutex::default(),
            silly_number: AtomicU64::new(start),
            keeps_nanoseconds: OnceLock::new(),
        }
    }

    pub fn inode(&self, number: u64) -> Result<Arc<Inode>> {
        self.inodes.get(number).ok_or(Status::STALE.into())
    }

    pub fn dir(&self, number: u64) -> Result<FileHandle> {
        Ok(self.inode(number)?.handle)
    }

    pub fn file(&self, number: u64) -> Result<Arc<OpenFile>> {
        self.files.read().get(&number).cloned().ok_or(Status::STALE.into())
    }

    fn open_number(&self) -> u64 {
        self.next_open.fetch_add(1, Ordering::Relaxed)
    }

    fn add_file(&self, inode: Arc<Inode>, caller: &Caller, flags: i32) -> (u64, Arc<OpenFile>) {
        let number = self.open_number();
        let access = flags & libc::O_ACCMODE;
        let caller = caller.clone();
        let file = Arc::new(OpenFile { inode, caller, access, way: OnceLock::new() });
        file.inode.opened(file.writes());
        self.files.write().insert(number, file.clone());
        (number, file)
    }

    /// Chooses how the kernel is to treat an open, which the answer must tell it then. `register`
    /// makes a local file known to the kernel.
    pub fn choose_way(
        &self,
        opened: &Opened,
        register: impl FnOnce(&File) -> std::io::Result<BackingId>,
    ) -> Way<BackingId> {
        let way = opened.file.inode.ways.open(opened.wish, || {
            let file = self.vfs.whole(&opened.file.inode.handle)?;
            match register(&file) {
                Ok(id) => Some(Local { id: Arc::new(id), file }),
                Err(error) => {
                    log::debug!("no passthrough: {error}");
                    if error.raw_os_error() == Some(libc::EPERM) {
                        self.passthrough.store(false, Ordering::Relaxed);
                    }
                    None
                }
            }
        });
        // A number is opened once.
        let _ = opened.file.way.set(way.counted());
        way
    }

    /// Whom calls are made for that nobody in particular has made.
    pub fn own_caller() -> Caller {
        Caller {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            groups: Vec::new(),
        }
    }

    /// Ends an open. Nothing here can fail any more: errors of writes were told at flush.
    pub fn release(self: &Arc<Self>, number: u64) {
        let Some(file) = self.files.write().remove(&number) else { return };
        if let Some(way) = file.way.get() {
            file.inode.ways.close(*way);
        }
        let hidden = {
            // Whoever finds the file no longer hidden finds it being removed.
            let mut removals = self.removals.lock();
            let hidden = file.inode.closed(file.writes());
            if let Some(hidden) = &hidden {
                removals.entry(hidden.dir).or_default().count += 1;
            }
            hidden
        };
        if let Some(hidden) = hidden {
            let core = self.clone();
            self.vfs.discard(&file.inode.handle);
            self.runtime.spawn(async move {
                core.remove_hidden(&hidden).await;
                let mut removals = core.removals.lock();
                if let Entry::Occupied(mut entry) = removals.entry(hidden.dir) {
                    entry.get_mut().count -= 1;
                    if entry.get().count == 0 {
                        entry.remove();
                    }
                }
            });
        }
    }

    /// Returns what tells of the end of the removals in a directory, if there are any.
    fn removal_in(&self, dir: &FileHandle) -> Option<watch::Receiver<()>> {
        self.removals.lock().get(dir).map(|removals| removals.done.subscribe())
    }

    /// Opens a directory. Also returns whether the kernel may keep its listing, and if so, whether
    /// the one that it has kept is still good.
    pub async fn open_directory(
        &self,
        caller: &Caller,
        number: u64,
    ) -> Result<(u64, Option<bool>)> {
        let inode = self.inode(number)?;
        let mut kept = None;
        if self.options.listing_cache {
            let attr = self.vfs.getattr(caller, &inode.handle).await;
            kept = attr.ok().map(|attr| inode.note_listed(WccAttr::from(&attr)));
        }
        let number = self.open_number();
        self.directories.insert(number, self.new_directory(&inode, caller));
        Ok((number, kept))
    }

    /// Returns the directory that a read is of: by its number, and by its inode where it was not
    /// opened.
    pub fn directory(&self, caller: &Caller, ino: u64, number: u64) -> Result<Arc<Directory>> {
        self.directories
            .get(number, ino, caller, || Ok(self.new_directory(&*self.inode(ino)?, caller)))
    }

    fn new_directory(&self, inode: &Inode, caller: &Caller) -> Directory {
        let (vfs, runtime) = (self.vfs.clone(), self.runtime.clone());
        Directory::new(vfs, runtime, inode.handle, caller.clone())
    }

    pub fn release_directory(&self, number: u64) {
        self.directories.remove(number);
    }

    pub fn forget(&self, number: u64, lookups: u64) {
        if let Some(inode) = self.inodes.forget(number, lookups) {
            if inode.kind == FileKind::Directory {
                self.directories.forget(number);
            }
            self.vfs.forget(&inode.handle);
        }
    }

    /// Refuses names that no file system takes, before they travel.
    pub fn check_name(&self, name: &[u8]) -> Result<()> {
        if name.len() > NAME_BYTES_MAX { Err(Status::NAMETOOLONG.into()) } else { Ok(()) }
    }

    /// Counts a lookup of a file and returns what the kernel is told of it.
    pub fn found(&self, handle: FileHandle, attr: &Attr) -> Found {
        let inode = self.inodes.look_up(handle, attr.kind, attr.fileid);
        let attr = self.noted(&inode, attr);
        Found { inode, attr }
    }

    /// Notes attributes from the server and returns them as the kernel takes them. If somebody
    /// else has changed the data, what is cached of it is dropped.
    pub fn noted(&self, inode: &Inode, attr: &Attr) -> FileAttr {
        if inode.note(attr) {
            self.drop_data(inode);
        }
        self.kernel_attr(inode, attr)
    }

    pub fn kernel_attr(&self, inode: &Inode, attr: &Attr) -> FileAttr {
        // A hidden file's own name does not count.
        let links = attr.links.saturating_sub(u32::from(inode.is_hidden()));
        // The root's node id is 1 to the kernel, and its file number what the server says.
        let number = if inode.id == ROOT { attr.fileid } else { inode.id };
        file_attr(attr, number, links)
    }

    /// Answers GETATTR. After every read the kernel takes the access time that it has for outdated,
    /// and asks at the next stat although it has been told a moment ago: such a question is answered
    /// by what was seen then, as the kernel would.
    pub async fn getattr(&self, caller: &Caller, inode: &Inode) -> Result<FileAttr> {
        let changes = self.changes.load(Ordering::Acquire);
        let life = self.options.attr_timeout.min(SEEN_FOR);
        if let Some(attr) = inode.seen(life, changes).filter(|_| inode.kind == FileKind::Regular) {
            return Ok(self.kernel_attr(inode, &attr));
        }
        let attr = self.vfs.getattr(caller, &inode.handle).await?;
        inode.note_seen(&attr, changes);
        Ok(self.noted(inode, &attr))
    }

    /// Notes that a change begins, or that it has ended.
    pub fn note_change(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }
}

pub(crate) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Block => FileType::BlockDevice,
        FileKind::Character => FileType::CharDevice,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Socket => FileType::Socket,
        FileKind::Fifo => FileType::NamedPipe,
    }
}

pub(crate) fn file_attr(attr: &Attr, number: u64, links: u32) -> FileAttr {
    let device = libc::makedev(attr.device.major, attr.device.minor);
    FileAttr {
        ino: INodeNo(number),
        size: attr.size,
        blocks: attr.used.div_ceil(512),
        atime: attr.atime.to_system_time(),
        mtime: attr.mtime.to_system_time(),
        ctime: attr.ctime.to_system_time(),
        crtime: std::time::UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: links,
        uid: attr.uid,
        gid: attr.gid,
        // The kernel's wire form of device numbers (new_encode_dev).
        rdev: encoded_device(device),
        blksize: 128 << 10,
        flags: 0,
    }
}

fn encoded_device(device: libc::dev_t) -> u32 {
    let (major, minor) = (libc::major(device), libc::minor(device));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

pub(crate) fn decoded_device(device: u32) -> gridvfs_vfs::DeviceNumber {
    gridvfs_vfs::DeviceNumber {
        major: (device & 0xf_ff00) >> 8,
        minor: (device & 0xff) | ((device >> 12) & 0xf_ff00),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_come_back() {
        for (major, minor) in [(1, 3), (8, 300), (259, 70_000)] {
            let encoded = encoded_device(libc::makedev(major, minor));
            assert_eq!(decoded_device(encoded), gridvfs_vfs::DeviceNumber { major, minor });
        }
    }
}
