//! The file cache: whole files beside the block store (paper, section 5: what an action brings).
//!
//! A file whose content is to be here as a whole has a sparse local file of its size, and a table of
//! checksums, one for each 4 KiB block; a block without one is not there yet. Zero blocks are holes
//! that have a checksum: they take no room. So a file may be read while it is still arriving, keeps
//! what has arrived when the process is killed, and, when it is complete, can be handed to the
//! kernel (FUSE passthrough) or linked to by a clone, which then read it without us.
//!
//! The names are those of the versions ([`FileKey`]), so another version is never found. What may
//! be read without us ([`CachedFile::lend`]) is never written any more: the file goes when its
//! content changes, and who has it open keeps what it was.

mod cached;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use dashmap::DashMap;
use parking_lot::Mutex;

use crate::FileKey;
use crate::store::StoreError;

pub use cached::CachedFile;

/// So many files at most, however small.
const FILES_MAX: usize = 64 * 1024;

/// A file of the cache, opened or not.
struct Slot {
    file: Option<Arc<CachedFile>>,
    size: u64,
    /// What it takes of the disk, or will when it is complete.
    bytes: u64,
    /// When it was last opened, in milliseconds since 1970.
    used_ms: u64,
}

/// See the module's description.
pub struct FileCache {
    dir: PathBuf,
    max_bytes: u64,
    slots: DashMap<FileKey, Slot>,
    /// Whether there are any: most caches have none, and each read asks.
    any: AtomicBool,
    /// One file is made room for at a time.
    making: Mutex<()>,
    /// Blocks that did not fit their checksum and were dropped.
    repaired: Arc<AtomicU64>,
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl FileCache {
    /// Opens the cache in `dir`, of at most `max_bytes`. Reads the list of files, not the files.
    ///
    /// # Errors
    /// [`StoreError::Format`] if a file is of a format that is not known: nothing is changed.
    pub fn open(dir: PathBuf, max_bytes: u64) -> Result<Self, StoreError> {
        let cache = Self {
            dir,
            max_bytes,
            slots: DashMap::new(),
            any: AtomicBool::new(false),
            making: Mutex::new(()),
            repaired: Arc::default(),
        };
        let Ok(entries) = fs::read_dir(&cache.dir) else { return Ok(cache) };
        for entry in entries.flatten() {
            let path = entry.path();
            let Some(key) = key_of(&path, "sums") else { continue };
            match cached::header_of(&path)? {
                Some(size) => {
                    let Ok(data) = fs::metadata(cache.path(key)) else { continue };
                    let used_ms = entry.metadata().map_or(0, |about| about.mtime() as u64 * 1000);
                    let slot = Slot { file: None, size, bytes: data.blocks() * 512, used_ms };
                    cache.slots.insert(key, slot);
                    cache.any.store(true, Ordering::Release);
                }
                // Killed while it was being made.
                None => cache.unlink(key),
            }
        }
        // Data without checksums is what a killed process had begun.
        for entry in fs::read_dir(&cache.dir).into_iter().flatten().flatten() {
            if let Some(key) = key_of(&entry.path(), "")
                && !cache.slots.contains_key(&key)
            {
                cache.unlink(key);
            }
        }
        Ok(cache)
    }

    fn path(&self, key: FileKey) -> PathBuf {
        self.dir.join(format!("{:016x}", key.0))
    }

    fn sums_path(&self, key: FileKey) -> PathBuf {
        self.path(key).with_extension("sums")
    }

    fn unlink(&self, key: FileKey) {
        let _ = fs::remove_file(self.path(key));
        let _ = fs::remove_file(self.sums_path(key));
    }

    /// Returns a version's file, complete or not.
    pub fn get(&self, key: FileKey) -> Option<Arc<CachedFile>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        if let Some(file) = self.slots.get(&key)?.file.clone() {
            return Some(file);
        }
        let mut slot = self.slots.get_mut(&key)?;
        if let Some(file) = &slot.file {
            return Some(file.clone());
        }
        match CachedFile::open(&self.path(key), key, slot.size, self.repaired.clone()) {
            Ok(file) => {
                slot.used_ms = now_ms();
                file.touch();
                let file = Arc::new(file);
                slot.file = Some(file.clone());
                Some(file)
            }
            Err(error) => {
                log::warn!("{}: not used: {error}", self.path(key).display());
                drop(slot);
                self.remove(key);
                None
            }
        }
    }

    /// Returns the file of a version, new if there was none. `bytes`: what it is expected to take.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] if it is larger than the cache, or the disk is full.
    pub fn begin(
        &self,
        key: FileKey,
        size: u64,
        bytes: u64,
    ) -> Result<Arc<CachedFile>, StoreError> {
        let _one_at_a_time = self.making.lock();
        if let Some(file) = self.get(key) {
            if file.size() == size {
                return Ok(file);
            }
            self.remove(key);
        }
        if self.slots.len() >= FILES_MAX || !self.make_room(bytes) {
            return Err(StoreError::NoSpace);
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|error| StoreError::io(&self.dir, error))?;
        let path = self.path(key);
        let made = CachedFile::create(&path, key, size, self.repaired.clone());
        let file = Arc::new(made.map_err(|error| {
            self.unlink(key);
            StoreError::io(&path, error)
        })?);
        let slot = Slot { file: Some(file.clone()), size, bytes, used_ms: now_ms() };
        self.slots.insert(key, slot);
        self.any.store(true, Ordering::Release);
        Ok(file)
    }

    /// Notes what a file takes, now that it is complete.
    pub fn completed(&self, key: FileKey) {
        if let (Some(mut slot), Ok(data)) = (self.slots.get_mut(&key), fs::metadata(self.path(key)))
        {
            slot.bytes = data.blocks() * 512;
        }
    }

    /// The content of a version is about to change: what may be read without us is not ours to
    /// change, and goes.
    pub fn changing(&self, key: FileKey) {
        if self.get(key).is_some_and(|file| file.is_lent()) {
            self.remove(key);
        }
    }

    /// Removes a version's file. Who has it open keeps it.
    pub fn remove(&self, key: FileKey) {
        if self.slots.remove(&key).is_some() {
            self.unlink(key);
        }
    }

    /// Removes all files.
    pub fn clear(&self) {
        for key in self.keys() {
            self.remove(key);
        }
    }

    /// Returns the versions that have a file.
    pub fn keys(&self) -> Vec<FileKey> {
        self.slots.iter().map(|slot| *slot.key()).collect()
    }

    /// Returns how many bytes all files take.
    pub fn bytes(&self) -> u64 {
        self.slots.iter().map(|slot| slot.bytes).sum()
    }

    /// Returns how many blocks did not fit their checksum since the cache was opened.
    pub fn repaired(&self) -> u64 {
        self.repaired.load(Ordering::Relaxed)
    }

    /// The files that were opened longest ago go, those in use last, until `bytes` have come free.
    /// Returns how many have.
    pub fn give_back(&self, bytes: u64) -> u64 {
        let mut found: Vec<_> = self
            .slots
            .iter()
            .map(|slot| {
                let in_use = slot.file.as_ref().is_some_and(|file| Arc::strong_count(file) > 1);
                (in_use, slot.used_ms, *slot.key(), slot.bytes)
            })
            .collect();
        found.sort_by_key(|(in_use, used_ms, key, _)| (*in_use, *used_ms, key.0));
        let mut freed = 0;
        for (_, _, key, length) in found {
            if freed >= bytes {
                break;
            }
            self.remove(key);
            freed += length;
        }
        freed
    }

    fn make_room(&self, bytes: u64) -> bool {
        if bytes > self.max_bytes {
            return false;
        }
        let used = self.bytes();
        if used + bytes > self.max_bytes {
            self.give_back(used + bytes - self.max_bytes);
        }
        self.bytes() + bytes <= self.max_bytes
    }

    /// Writes what has arrived to the disk.
    ///
    /// # Errors
    /// The disk's.
    pub fn sync(&self) -> io::Result<()> {
        let files: Vec<_> = self.slots.iter().filter_map(|slot| slot.file.clone()).collect();
        files.iter().try_for_each(|file| file.sync())
    }
}

/// The key that a file of the cache is named by.
fn key_of(path: &Path, extension: &str) -> Option<FileKey> {
    let found = path.extension().map_or(Some(""), |found| found.to_str())?;
    let stem = path.file_stem()?.to_str()?;
    (found == extension && stem.len() == 16)
        .then(|| u64::from_str_radix(stem, 16).ok().filter(|key| *key != 0).map(FileKey))?
}

#[cfg(test)]
mod tests;
