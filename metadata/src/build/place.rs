//! Where a file's metadata file is, and how it is read and replaced there.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{BuildError, Subject, subject};
use crate::format::{
    FormatError, Identity, METADATA_BYTES_MAX, Metadata, draft_name, metadata_name, subject_name,
};

/// How often a metadata file that another process is writing is waited for, and how long each time:
/// 10 s in all, in which 64 MiB are on any disk.
const DRAFT_TRIES_MAX: u32 = 200;
const DRAFT_RETRY: Duration = Duration::from_millis(50);

/// A file and its metadata file, either of which need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    subject: PathBuf,
    metadata: PathBuf,
}

impl Place {
    /// Finds the metadata file of a file that exists. Of a symbolic link it is that of the file
    /// that the link leads to, beside it.
    pub fn of(path: &Path) -> Result<Self, BuildError> {
        let subject = path.canonicalize().map_err(BuildError::io("find", path))?;
        let name = subject.file_name().and_then(|name| metadata_name(name.as_bytes()));
        let name = name.ok_or_else(|| BuildError::NoName(path.into()))?;
        Ok(Self { metadata: subject.with_file_name(OsStr::from_bytes(&name)), subject })
    }

    /// The same, where `path` may also be the metadata file itself, or that of a file that is gone.
    pub fn of_either(path: &Path) -> Result<Self, BuildError> {
        let own_name = path.file_name().map(OsStr::as_bytes);
        match own_name.and_then(subject_name) {
            Some(name) => {
                let subject = path.with_file_name(OsStr::from_bytes(name));
                Ok(Self { subject, metadata: path.into() })
            }
            None if path.exists() => Self::of(path),
            None => {
                let name = own_name.and_then(metadata_name);
                let name = name.ok_or_else(|| BuildError::NoName(path.into()))?;
                let metadata = path.with_file_name(OsStr::from_bytes(&name));
                Ok(Self { subject: path.into(), metadata })
            }
        }
    }

    /// The file that is spoken of.
    pub fn subject(&self) -> &Path {
        &self.subject
    }

    /// The metadata file.
    pub fn metadata(&self) -> &Path {
        &self.metadata
    }

    /// Returns which version of the subject there is now; `None`: there is none.
    pub fn identity(&self) -> Result<Option<Identity>, BuildError> {
        match std::fs::metadata(&self.subject) {
            Ok(stat) if stat.is_file() => Ok(Some(subject::identity_of(&stat))),
            Ok(_) => Err(BuildError::NotRegular(self.subject.clone())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(BuildError::io("look at", &self.subject)(error)),
        }
    }

    /// Reads the metadata file; `None`: there is none.
    pub fn read(&self) -> Result<Option<Metadata>, BuildError> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
            .open(&self.metadata);
        let file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(BuildError::io("open", &self.metadata)(error)),
        };
        let mut bytes = Vec::new();
        let read = file.take(METADATA_BYTES_MAX + 1).read_to_end(&mut bytes);
        read.map_err(BuildError::io("read", &self.metadata))?;
        let format = |error: FormatError| BuildError::Format { path: self.metadata.clone(), error };
        Metadata::decode(&bytes).map(Some).map_err(format)
    }

    /// Returns the size of the metadata file; 0: there is none.
    pub fn metadata_bytes(&self) -> u64 {
        std::fs::symlink_metadata(&self.metadata).map_or(0, |stat| stat.len())
    }

    /// Removes the metadata file. Returns whether there was one.
    pub fn remove(&self) -> Result<bool, BuildError> {
        match std::fs::remove_file(&self.metadata) {
            Ok(()) => self.sync_directory().map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(BuildError::io("remove", &self.metadata)(error)),
        }
    }

    /// Replaces the metadata file as a whole. Whoever may read the subject may read it, and nobody
    /// else: hashes tell what is in a file to whoever can guess it.
    pub(super) fn write(&self, bytes: &[u8], subject: &Subject) -> Result<(), BuildError> {
        let name = self.metadata.file_name().map(OsStr::as_bytes).unwrap_or_default();
        let draft = self.metadata.with_file_name(OsStr::from_bytes(&draft_name(name)));
        let file = new_draft(&draft).map_err(BuildError::io("write", &draft))?;
        let written =
            fill(&file, bytes, subject).map_err(BuildError::io("write", &draft)).and_then(|()| {
                let renamed = std::fs::rename(&draft, &self.metadata);
                renamed.map_err(BuildError::io("write", &self.metadata))
            });
        if written.is_err() {
            let _ = std::fs::remove_file(&draft);
        }
        written.and_then(|()| self.sync_directory())
    }

    fn sync_directory(&self) -> Result<(), BuildError> {
        let directory = self.metadata.parent().filter(|parent| *parent != Path::new(""));
        let directory = directory.unwrap_or(Path::new("."));
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(BuildError::io("sync", directory))
    }
}

/// Makes the file that is to become the metadata file. Whoever writes it has it locked: one that is
/// there without a lock was left by a process that was killed, and goes.
fn new_draft(path: &Path) -> io::Result<File> {
    for _ in 0..DRAFT_TRIES_MAX {
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            // Another one may have taken it for a left one before it was locked.
            Ok(file) if try_lock(&file) && is_at(path, &file)? => return Ok(file),
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW);
        match options.open(path) {
            Ok(other) if !try_lock(&other) => std::thread::sleep(DRAFT_RETRY),
            Ok(other) if !is_at(path, &other)? => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Locked by us while it goes, or nothing that we could have written.
            _ => std::fs::remove_file(path)?,
        }
    }
    Err(io::Error::new(io::ErrorKind::WouldBlock, "another process is writing it"))
}

/// Locks a file until it is closed. Returns whether nobody else has. Where there are no locks, all
/// are taken for free: of two who then write at once, one fails.
fn try_lock(file: &File) -> bool {
    // SAFETY: the descriptor is open; no memory is touched.
    let locked = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    locked == 0 || io::Error::last_os_error().kind() != io::ErrorKind::WouldBlock
}

/// Says whether a path leads to this file.
fn is_at(path: &Path, file: &File) -> io::Result<bool> {
    let of = |stat: &std::fs::Metadata| (stat.dev(), stat.ino());
    match std::fs::symlink_metadata(path) {
        Ok(stat) => Ok(of(&stat) == of(&file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn fill(mut file: &File, bytes: &[u8], subject: &Subject) -> io::Result<()> {
    let stat = subject.stat();
    file.write_all(bytes)?;
    let own = file.metadata()?;
    if (own.uid(), own.gid()) != (stat.uid(), stat.gid()) {
        // Only root can; for others the file stays their own.
        let _ = fchown(file, Some(stat.uid()), Some(stat.gid()));
    }
    let mode = stat.mode() & 0o666;
    let owner = file.metadata()?;
    // A group that could not be given would let in another one.
    let mode = if owner.gid() == stat.gid() { mode } else { mode & 0o606 };
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode | 0o600))?;
    file.sync_all()
}
