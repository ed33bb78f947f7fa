//! What can go wrong in a block store.

use std::io;
use std::path::{Path, PathBuf};

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was being read or written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory holds a store of a format that this program does not know. Nothing was
    /// changed in it.
    #[error(
        "{}: the block store has format {found}, this program knows up to {known}; nothing was \
         changed (use a program that knows it, or another directory)",
        path.display()
    )]
    Format {
        /// The format file.
        path: PathBuf,
        /// What it names.
        found: String,
        /// The newest format that this program knows.
        known: u32,
    },
    /// There is no room for the tags file.
    #[error("{}: no room for the {bytes} bytes of the block store's tags", path.display())]
    NoRoom {
        /// The tags file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The disk is full, or the user's quota is. The blocks of the call are missing or stored.
    #[error("no space left on the disk of the block store")]
    NoSpace,
    /// A setting that no store can have.
    #[error("block store: {0}")]
    Geometry(String),
    /// A process has the store for itself, or this one wanted it so and others have it.
    #[error("{}: the block store is in use by another session", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// Some of the blocks were not stored: all frames of their sets are pinned.
    #[error("all frames of a set are pinned")]
    Pinned,
}

impl StoreError {
    /// Returns the error of an operation on a file.
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::NoSpace,
            _ => Self::Io { path: path.to_owned(), source },
        }
    }
}
