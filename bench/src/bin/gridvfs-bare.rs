//! `gridvfs-bare`: the least that a FUSE program can do, to compare with.
//!
//! It serves one local file under one name and answers each read by one pread(2) into a buffer that
//! its thread keeps. Event loops, request sizes and what is asked of the kernel are those of
//! `gridvfs mount`, so that what differs is what `gridvfs` does to find the data. It keeps no data
//! and never writes.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use clap::Parser;
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen,
    Request, Session, SessionACL,
};
use gridvfs_fuse::{MountOptions, SessionOptions};

/// Serve one local file through FUSE, answering each read by one pread, until unmounted.
#[derive(Parser)]
#[command(name = "gridvfs-bare", version)]
struct Cli {
    /// The file that is served.
    file: PathBuf,
    /// An empty directory; the file appears in it as `data`.
    mountpoint: PathBuf,
}

/// The one name.
const NAME: &str = "data";
/// The number of the one file.
const FILE: INodeNo = INodeNo(2);
/// For how long the kernel believes what it was told: nothing changes.
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// The kernel copies to and from memory that begins at a page at several times the speed.
const ALIGNMENT: usize = 4096;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Bare {
    file: File,
    options: SessionOptions,
}

impl Bare {
    fn attr(&self, number: INodeNo) -> std::io::Result<FileAttr> {
        let meta = self.file.metadata()?;
        let is_file = number == FILE;
        Ok(FileAttr {
            ino: number,
            size: if is_file { meta.size() } else { 0 },
            blocks: if is_file { meta.blocks() } else { 0 },
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: if is_file { 0o444 } else { 0o555 },
            nlink: if is_file { 1 } else { 2 },
            uid: meta.uid(),
            gid: meta.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Bare {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for wanted in [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_HANDLE_KILLPRIV,
        ] {
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_write(self.options.write_bytes_max);
        let _ = config.set_max_background(self.options.background_max);
        let _ = config.set_congestion_threshold(self.options.background_max);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attr(FILE) {
            Ok(attr) if parent == INodeNo::ROOT && name == NAME => {
                reply.entry(&LIFE, &attr, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Ok(attr) => reply.attr(&LIFE, &attr),
            Err(error) => reply.error(error.into()),
        }
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(1), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size + ALIGNMENT {
                buffer.resize(size + ALIGNMENT, 0);
            }
            let start = buffer.as_ptr().align_offset(ALIGNMENT);
            match self.file.read_at(&mut buffer[start..start + size], offset) {
                Ok(count) => reply.data(&buffer[start..start + count]),
                Err(error) => reply.error(error.into()),
            }
        });
    }
}

fn main() -> Result<()> {
    let Cli { file, mountpoint } = Cli::parse();
    let served = File::open(&file).with_context(|| file.display().to_string())?;
    if !served.metadata()?.is_file() {
        bail!("{} is no regular file", file.display());
    }
    let mountpoint = std::fs::canonicalize(&mountpoint)
        .with_context(|| format!("mount point {}", mountpoint.display()))?;
    let options = SessionOptions::default();
    let mut config = Config::default();
    config.n_threads = Some(options.event_loops);
    let source = file.display().to_string();
    let mount = MountOptions { source, read_only: true, ..MountOptions::default() };
    let device = gridvfs_fuse::mount(&mountpoint, &mount)?;
    let bare = Bare { file: served, options };
    Session::from_fd(bare, device, SessionACL::All, config)?.run()?;
    Ok(())
}
