//! The directory that is watched: what is in it, and what changes.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use gridvfs_metadata::format::{is_metadata_name, metadata_name};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

/// Directories at most: that many watches a user may have at least.
const DIRECTORIES_MAX: usize = 8192;
/// Files at most.
const FILES_MAX: usize = 1 << 20;

/// A file and its metadata file as they were seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Device, inode, bytes, mtime.
    file: (u64, u64, u64, SystemTime),
    /// The same of its metadata file, if there is one.
    metadata: Option<(u64, u64, u64, SystemTime)>,
}

fn stamp(stat: &std::fs::Metadata) -> (u64, u64, u64, SystemTime) {
    let mtime = stat.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    (stat.dev(), stat.ino(), stat.len(), mtime)
}

impl Seen {
    /// Looks at a file; `None`: it is no regular file, or has no metadata file's name.
    pub fn of(path: &Path) -> Option<Self> {
        let stat = std::fs::symlink_metadata(path).ok().filter(std::fs::Metadata::is_file)?;
        let name = metadata_name(path.file_name()?.as_bytes())?;
        let metadata = path.with_file_name(std::ffi::OsStr::from_bytes(&name));
        let metadata = std::fs::symlink_metadata(metadata).ok();
        Some(Self { file: stamp(&stat), metadata: metadata.as_ref().map(stamp) })
    }

    /// The file's size in bytes.
    pub fn size(&self) -> u64 {
        self.file.2
    }

    /// When the file was last changed.
    pub fn mtime(&self) -> SystemTime {
        self.file.3
    }

    /// Tells whether there is a metadata file.
    pub fn has_metadata(&self) -> bool {
        self.metadata.is_some()
    }

    /// Tells whether the file, not its metadata, is the same.
    pub fn same_file(&self, other: &Self) -> bool {
        self.file == other.file
    }
}

/// What a look at everything found.
pub struct Found {
    /// The files.
    pub files: HashMap<PathBuf, Seen>,
    /// What could not be looked at.
    pub errors: Vec<anyhow::Error>,
}

/// What has changed.
#[derive(Default)]
pub struct Changes {
    /// These files.
    pub files: Vec<PathBuf>,
    /// More than that.
    pub look_at_all: bool,
}

/// A directory and all below it.
pub struct Tree {
    root: PathBuf,
    inotify: Inotify,
    watched: HashMap<WatchDescriptor, PathBuf>,
}

impl Tree {
    /// Begins; nothing is watched before the first [`Tree::walk`].
    pub fn new(root: &Path) -> Result<Self> {
        std::fs::read_dir(root).with_context(|| root.display().to_string())?;
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        Ok(Self { root: root.into(), inotify, watched: HashMap::new() })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns how many directories are watched.
    pub fn directories(&self) -> usize {
        self.watched.len()
    }

    /// Becomes readable when something changes.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Looks at everything, and watches directories that are not watched yet. Symbolic links are
    /// not followed.
    pub fn walk(&mut self) -> Found {
        let mut found = Found { files: HashMap::new(), errors: Vec::new() };
        let mut directories = vec![self.root.clone()];
        let mut count = 0;
        while let Some(directory) = directories.pop() {
            count += 1;
            if count > DIRECTORIES_MAX || found.files.len() > FILES_MAX {
                let limits = format!("{DIRECTORIES_MAX} directories or {FILES_MAX} files");
                let root = self.root.display();
                found
                    .errors
                    .push(anyhow::anyhow!("{root}: more than {limits}; the rest is left out"));
                break;
            }
            // Watched first: what appears in between is then seen by one or the other.
            let looked = self.watch(&directory).and_then(|()| self.list(&directory, &mut found));
            match looked {
                Ok(more) => directories.extend(more),
                // Removed in between.
                Err(error) if is_gone(&error) => {}
                Err(error) => found.errors.push(error.context(directory.display().to_string())),
            }
        }
        found
    }

    fn watch(&mut self, directory: &Path) -> Result<()> {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ONLYDIR;
        let descriptor = self.inotify.add_watch(directory, flags)?;
        self.watched.insert(descriptor, directory.into());
        Ok(())
    }

    fn list(&self, directory: &Path, found: &mut Found) -> Result<Vec<PathBuf>> {
        let mut directories = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => directories.push(path),
                Ok(kind) if kind.is_file() && is_subject(entry.file_name().as_bytes()) => {
                    if let Some(seen) = Seen::of(&path) {
                        found.files.insert(path, seen);
                    }
                }
                _ => {}
            }
        }
        Ok(directories)
    }

    /// Returns what has changed since it was last asked.
    pub fn changes(&mut self) -> Result<Changes> {
        let mut changes = Changes::default();
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    self.watched.remove(&event.wd);
                }
                let of_directory = event.mask.contains(AddWatchFlags::IN_ISDIR);
                let lost = event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                changes.look_at_all |= of_directory || lost;
                let (Some(directory), Some(name)) = (self.watched.get(&event.wd), event.name)
                else {
                    continue;
                };
                if !of_directory && is_subject(name.as_bytes()) {
                    changes.files.push(directory.join(name));
                }
            }
        }
        Ok(changes)
    }
}

fn is_subject(name: &[u8]) -> bool {
    !is_metadata_name(name)
}

fn is_gone(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    let errno = error.downcast_ref::<Errno>().map(|errno| *errno as i32);
    [libc::ENOENT, libc::ENOTDIR].iter().any(|gone| io == Some(*gone) || errno == Some(*gone))
}
