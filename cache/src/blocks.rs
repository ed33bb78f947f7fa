//! The cache's clean data: the file cache and the block store, as one.
//!
//! A version that has a file in the file cache has its blocks there, as far as that takes them; what
//! is not there is looked for in the block store.

use std::ops::Deref;
use std::path::PathBuf;

use crate::FileKey;
use crate::files::FileCache;
use crate::store::{BLOCK_BYTES, BadBlock, Store, StoreError, VerifyReport};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// See the module's description. What is not about blocks of files is the store's.
pub struct Blocks {
    store: Store,
    /// The file cache.
    pub files: FileCache,
}

impl Deref for Blocks {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl Blocks {
    /// Puts a file cache, in `dir`, beside a store. It has at most half of the store's size, which
    /// is the size of both.
    ///
    /// # Errors
    /// [`FileCache::open`]'s.
    pub fn new(store: Store, dir: PathBuf) -> Result<Self, StoreError> {
        let files = FileCache::open(dir, store.geometry().size_bytes / 2)?;
        Ok(Self { store, files })
    }

    /// Copies what is held of a version from `offset` on; see [`Store::read`].
    pub fn read(&self, key: FileKey, offset: u64, out: &mut [u8]) -> usize {
        let Some(file) = self.files.get(key) else { return self.store.read(key, offset, out) };
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let had = file.read(at, &mut out[done..]);
            done += had;
            if done == out.len() {
                break;
            }
            let at = at + had as u64;
            // Up to where the file has blocks again.
            let end = offset + out.len() as u64;
            let gap = file.first_gap(at / BLOCK * BLOCK, end).map_or(end, |(_, gap_end)| gap_end);
            let length = (gap.max(at) - at) as usize;
            let read = self.store.read(key, at, &mut out[done..done + length]);
            done += read;
            if read < length || read == 0 {
                break;
            }
        }
        done
    }

    /// Stores whole blocks; see [`Store::put`].
    ///
    /// # Errors
    /// As there. A file that cannot take them leaves them to the store.
    pub fn put(&self, key: FileKey, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        if let Some(file) = self.files.get(key)
            && file.put(offset, data).is_ok()
        {
            return Ok(());
        }
        self.store.put(key, offset, data)
    }

    /// Overwrites bytes; see [`Store::patch`]. Written blocks leave the file: it is for what the
    /// server has.
    ///
    /// # Errors
    /// As there.
    pub fn patch(
        &self,
        key: FileKey,
        offset: u64,
        data: &[u8],
        eof: bool,
    ) -> Result<(), StoreError> {
        let end = offset + data.len() as u64;
        if let Some(file) = self.files.get(key) {
            // Blocks that are changed in part go to the store as they are, to be changed there.
            for border in [offset, end] {
                let start = border / BLOCK * BLOCK;
                let mut block = [0; BLOCK_BYTES];
                if border % BLOCK != 0 && file.read(start, &mut block) > 0 {
                    let length = BLOCK.min(file.size().saturating_sub(start)) as usize;
                    self.store.put(key, start, &block[..length])?;
                }
            }
            file.cut(offset, end);
        }
        self.store.patch(key, offset, data, eof)
    }

    /// Drops what `from..to` touches.
    pub fn cut(&self, key: FileKey, from: u64, to: u64) {
        if let Some(file) = self.files.get(key) {
            file.cut(from, to);
        }
        self.store.cut(key, from, to);
    }

    /// Returns the first part of `start..end` that is not held; see [`Store::first_gap`].
    pub fn first_gap(&self, key: FileKey, start: u64, end: u64) -> Option<(u64, u64)> {
        let Some(file) = self.files.get(key) else { return self.store.first_gap(key, start, end) };
        let mut at = start;
        while at < end {
            let (from, to) = match file.first_gap(at, end.min(file.size())) {
                Some(gap) => gap,
                None if file.size() < end => (at.max(file.size()), end),
                None => return None,
            };
            if let Some(gap) = self.store.first_gap(key, from, to) {
                return Some(gap);
            }
            at = to;
        }
        None
    }

    /// Returns how many bytes of a version are held; see [`Store::bytes_of`].
    pub fn bytes_of(&self, key: FileKey, size: u64) -> u64 {
        let in_file = self.files.get(key).map_or(0, |file| file.bytes());
        (in_file + self.store.bytes_of(key, size)).min(size)
    }

    /// Forgets everything; see [`Store::clear`].
    pub fn clear(&self) {
        self.files.clear();
        self.store.clear();
    }

    /// Reads and checks everything; see [`Store::verify`].
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> VerifyReport {
        let mut report = self.store.verify(progress);
        for key in self.files.keys() {
            let Some(file) = self.files.get(key) else { continue };
            let (blocks, bad) = file.verify();
            report.blocks += blocks;
            report.bad_count += bad.len() as u64;
            report.bad.extend(bad.into_iter().map(|offset| BadBlock { key, offset }));
        }
        report
    }

    /// Gives disk space back: the store's, then whole files. Returns how many bytes came free.
    pub fn give_back(&self, bytes: u64) -> u64 {
        let freed = self.store.give_back(bytes);
        freed + self.files.give_back(bytes.saturating_sub(freed))
    }

    /// All of a version is in its file: its blocks leave the store.
    pub fn completed(&self, key: FileKey, size: u64) {
        self.store.cut(key, 0, size);
        self.files.completed(key);
    }

    /// Keeps both within the one size: the blocks used longest ago make room for the files.
    pub fn fit(&self) {
        let files = self.files.bytes();
        if files == 0 {
            return;
        }
        let used = self.store.disk_bytes() + files;
        let size = self.store.geometry().size_bytes;
        if used > size {
            self.store.give_back(used - size);
        }
    }

    /// Writes everything to the disk; see [`Store::sync`].
    ///
    /// # Errors
    /// The disk's.
    pub fn sync(&self) -> std::io::Result<()> {
        self.files.sync()?;
        self.store.sync()
    }
}
