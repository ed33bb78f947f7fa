//! The block store: the disk cache's clean data (section 4.1 of the GVFS paper).
//!
//! Files are known by a [`FileKey`]. Their data is held in frames of 64 KiB, each of 16 blocks that
//! are valid or missing on their own, in sets of 16 ways; consecutive frames of a file are in
//! consecutive sets. What is in a frame is said by the tags (one mapped file), the data is in bank
//! files. The bytes on the disk are in docs/on-disk-format.md.
//!
//! What it promises: a byte that is read is a byte that was stored for that place of that file, and
//! the newest that was, as long as the machine runs; a missing block is always allowed, a wrong one
//! never. Every read is checked against the block's checksum; a bad block is dropped, counted, and
//! is then missing. After a power loss a block may be missing, or be of an earlier time than the
//! last [`Store::sync`]: whoever lets go of the only other copy of something newer (a journal)
//! syncs first.
//!
//! Readers take no lock and allocate nothing: they look the tag up, read, and compare the checksum
//! with what the tag says then. Writers hold their set's lock (between processes too, if the store
//! is shared), take the block's valid bit away before they overwrite it and set it last, so one
//! that is killed leaves a missing block. Several processes may have a store open at once.
//!
//! It never asks anyone for data, never holds dirty data, and keeps nothing of its size in memory:
//! opening reads no tags.

mod banks;
mod error;
mod format;
mod geometry;
mod locks;
mod read;
mod scan;
mod sum;
mod tags;
mod write;

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use parking_lot::RwLock;

pub use error::StoreError;
pub use geometry::{BLOCK_BYTES, Geometry};
pub use scan::{BadBlock, Usage, VerifyReport};

use banks::Banks;
use format::Format;
use geometry::Layout;
use locks::{Kind, Locks, lock_bytes};
use tags::Tags;

pub(crate) use sum::Algorithm;
pub(crate) use tags::{allocate, map_shared};

pub use crate::key::FileKey;

/// What a store did since it was opened.
#[derive(Debug, Default)]
pub struct StoreCounters {
    /// Bytes answered by [`Store::read`].
    pub hit_bytes: AtomicU64,
    /// Frames that made room for others.
    pub evicted: AtomicU64,
    /// Blocks that did not fit their checksum and were dropped.
    pub repaired: AtomicU64,
    /// Bytes stored, in whole blocks.
    pub stored_bytes: AtomicU64,
    /// Writes that found the disk full.
    pub no_space: AtomicU64,
}

/// See the module's description.
pub struct Store {
    dir: PathBuf,
    geometry: Geometry,
    /// That of the store which this one has replaced.
    replaced: Option<Geometry>,
    sum: Algorithm,
    layout: Layout,
    tags: Tags,
    banks: Banks,
    locks: Locks,
    pinned: RwLock<HashSet<FileKey>>,
    counters: StoreCounters,
    /// Holds the lock that says that the store is in use.
    in_use: File,
}

impl Store {
    /// Opens the store in `dir`, and makes it if there is none.
    ///
    /// `shared`: other processes may have it open too, if they also say so. A store of another
    /// geometry is then used as it is; otherwise it is made anew, empty.
    ///
    /// # Errors
    /// [`StoreError::Format`] for a store of an unknown format, of which nothing is changed;
    /// [`StoreError::InUse`]; [`StoreError::NoRoom`] if the tags do not fit on the disk.
    pub fn open(dir: &Path, geometry: &Geometry, shared: bool) -> Result<Self, StoreError> {
        let wanted = geometry.checked()?;
        // Before anything is made: the directory of an unknown format is left alone.
        format::load(dir)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| StoreError::io(dir, error))?;
        let lock_path = dir.join("lock");
        let lock_fail = |error| StoreError::io(&lock_path, error);
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&lock_path)
            .map_err(lock_fail)?;
        let set = |byte, kind, wait| lock_bytes(&lock, byte, 1, kind, wait).map_err(lock_fail);

        set(locks::OPEN_BYTE, Kind::Exclusive, true)?;
        let alone = set(locks::USE_BYTE, Kind::Exclusive, false)?;
        let may_use = alone || (shared && set(locks::USE_BYTE, Kind::Shared, false)?);
        if !may_use {
            return Err(StoreError::InUse { path: dir.to_owned() });
        }
        let found = format::load(dir)?;
        let (format, replaced) = match found {
            Some(found) if found.geometry == wanted || shared || !alone => (found, None),
            _ => {
                let new = Format::new(wanted);
                remake(dir, &new)?;
                (new, found.map(|found| found.geometry))
            }
        };
        let Format { sum, geometry } = format;
        let layout = Layout::new(&geometry);
        let tags = Tags::open(&dir.join("tags"), &format, alone)?;
        let banks_dir = dir.join("banks");
        let banks = Banks::open(banks_dir.clone(), &layout)
            .map_err(|error| StoreError::io(&banks_dir, error))?;
        if shared && alone {
            set(locks::USE_BYTE, Kind::Shared, false)?;
        }
        set(locks::OPEN_BYTE, Kind::Unlock, false)?;
        Ok(Self {
            dir: dir.to_owned(),
            geometry,
            replaced,
            sum,
            layout,
            tags,
            banks,
            locks: Locks::new(shared),
            pinned: RwLock::new(HashSet::new()),
            counters: StoreCounters::default(),
            in_use: lock,
        })
    }

    /// Returns the geometry of the store, which may be another than was asked for.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Returns the geometry of the store that was here before, if that was another: it has been made
    /// anew, empty.
    pub fn replaced(&self) -> Option<&Geometry> {
        self.replaced.as_ref()
    }

    /// Returns the directory of the store.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns what was counted since the store was opened.
    pub fn counters(&self) -> &StoreCounters {
        &self.counters
    }

    /// Keeps the frames of these files, and no others, from making room for other data. Holds for
    /// this process, until it is said anew.
    pub fn set_pinned(&self, keys: HashSet<FileKey>) {
        *self.pinned.write() = keys;
    }

    /// Writes everything stored so far to the disk, and everything dropped.
    ///
    /// # Errors
    /// Those of the disk; what was stored may then be missing, or old, after a power loss.
    pub fn sync(&self) -> io::Result<()> {
        self.banks.sync()?;
        self.tags.sync()
    }
}

/// Removes what a store of another geometry, or half a store, left, and writes the format file.
fn remake(dir: &Path, new: &Format) -> Result<(), StoreError> {
    let tags = dir.join("tags");
    match fs::remove_file(&tags) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(StoreError::io(&tags, error));
        }
        _ => {}
    }
    let banks = dir.join("banks");
    banks::remove(&banks).map_err(|error| StoreError::io(&banks, error))?;
    format::save(dir, new)
}

impl Drop for Store {
    fn drop(&mut self) {
        // Not left to the closing of the descriptor: a child of this process that is just being
        // started has a copy of it until it executes its program.
        let _ = lock_bytes(&self.in_use, locks::USE_BYTE, 1, Kind::Unlock, false);
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("dir", &self.dir).field("geometry", &self.geometry).finish()
    }
}

#[cfg(test)]
mod tests;
