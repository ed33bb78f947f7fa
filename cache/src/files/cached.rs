//! One file of the file cache: its data, sparse, and the checksums that say what is there.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use parking_lot::Mutex;

use crate::FileKey;
use crate::store::{Algorithm, BLOCK_BYTES, StoreError, allocate, map_shared};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Read as a number, so that a machine of the other byte order sees another format.
const MAGIC: u64 = u64::from_le_bytes(*b"GVFSFIL1");
/// The checksums begin here.
const HEADER_BYTES: usize = 4096;
/// Where the header says that all is there.
const COMPLETE_AT: usize = 24;
/// The longest run: what a CPU's second-level cache still holds when it is checked.
const RUN_BYTES_MAX: u64 = 128 << 10;
const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// See the module's description.
pub struct CachedFile {
    key: FileKey,
    size: u64,
    path: PathBuf,
    data: File,
    table: File,
    base: NonNull<u8>,
    mapped_bytes: usize,
    /// Somebody may read the file without us.
    lent: AtomicBool,
    /// One writer at a time; a reader that finds a wrong checksum looks again under it.
    writing: Mutex<()>,
    repaired: Arc<AtomicU64>,
}

// SAFETY: the mapping is only read and written through atomics, and lives as long as the value.
unsafe impl Send for CachedFile {}
// SAFETY: as above.
unsafe impl Sync for CachedFile {}

fn header(key: FileKey, size: u64) -> [u8; 24] {
    let mut header = [0; 24];
    header[..8].copy_from_slice(&MAGIC.to_ne_bytes());
    header[8..16].copy_from_slice(&key.0.to_ne_bytes());
    header[16..].copy_from_slice(&size.to_ne_bytes());
    header
}

fn table_bytes(size: u64) -> usize {
    HEADER_BYTES + size.div_ceil(BLOCK) as usize * 4
}

/// Reads what a table of checksums says of its file: the size. `None` if it is not all there.
pub(super) fn header_of(path: &Path) -> Result<Option<u64>, StoreError> {
    let fail = |error| StoreError::io(path, error);
    let file = File::open(path).map_err(fail)?;
    let mut found = [0; 24];
    if file.read_exact_at(&mut found, 0).is_err() {
        return Ok(None);
    }
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&found[at..at + 8]);
        u64::from_ne_bytes(bytes)
    };
    if number(0) == 0 {
        return Ok(None);
    }
    if number(0) != MAGIC {
        return Err(StoreError::Format {
            path: path.to_owned(),
            found: String::from_utf8_lossy(&found[..8]).into_owned(),
            known: 1,
        });
    }
    let size = number(16);
    let whole =
        size < i64::MAX as u64 && file.metadata().map_err(fail)?.len() == table_bytes(size) as u64;
    Ok(whole.then_some(size))
}

impl CachedFile {
    /// Makes an empty file of `size` bytes. The table gets its header last: without it, there is
    /// no file.
    pub(super) fn create(
        path: &Path,
        key: FileKey,
        size: u64,
        repaired: Arc<AtomicU64>,
    ) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        options.custom_flags(libc::O_NOFOLLOW);
        let data = options.open(path)?;
        data.set_len(size)?;
        let table = options.open(path.with_extension("sums"))?;
        allocate(&table, table_bytes(size) as u64, true)?;
        table.set_len(table_bytes(size) as u64)?;
        table.write_all_at(&header(key, size), 0)?;
        Self::map(path, key, size, data, table, repaired)
    }

    /// Opens what is there.
    pub(super) fn open(
        path: &Path,
        key: FileKey,
        size: u64,
        repaired: Arc<AtomicU64>,
    ) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
        let table = options.open(path.with_extension("sums"))?;
        let mut found = [0; 24];
        table.read_exact_at(&mut found, 0)?;
        let data = options.open(path)?;
        if found != header(key, size)
            || table.metadata()?.len() != table_bytes(size) as u64
            || data.metadata()?.len() != size
        {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not all of it is there"));
        }
        // A table with holes could end a process that touches it on a full disk.
        allocate(&table, table_bytes(size) as u64, false)?;
        Self::map(path, key, size, data, table, repaired)
    }

    fn map(
        path: &Path,
        key: FileKey,
        size: u64,
        data: File,
        table: File,
        repaired: Arc<AtomicU64>,
    ) -> io::Result<Self> {
        let mapped_bytes = table_bytes(size);
        let base = map_shared(&table, mapped_bytes)?;
        // A clone's link to it outlives the process that made it.
        let lent = data.metadata()?.nlink() > 1;
        Ok(Self {
            key,
            size,
            path: path.to_owned(),
            data,
            table,
            base,
            mapped_bytes,
            lent: lent.into(),
            writing: Mutex::new(()),
            repaired,
        })
    }

    /// The size of the file, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where the data is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn sums(&self) -> &[AtomicU32] {
        let count = (self.mapped_bytes - HEADER_BYTES) / 4;
        // SAFETY: inside of the mapping, which is aligned to pages and lives as long as `self`;
        // every bit pattern is a number, and all access is atomic.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(HEADER_BYTES).cast(), count) }
    }

    fn complete_flag(&self) -> &AtomicU32 {
        // SAFETY: as above, within the header.
        unsafe { &*self.base.as_ptr().add(COMPLETE_AT).cast() }
    }

    fn sum_of(&self, number: u64, data: &[u8]) -> u32 {
        // 0 says that the block is not there.
        Algorithm::Xxh3.checksum(self.key, number, data).max(1)
    }

    /// Says whether all of it is there, and durably so.
    pub fn is_complete(&self) -> bool {
        self.complete_flag().load(Acquire) == 1
    }

    /// Says whether somebody may read the file without us.
    pub fn is_lent(&self) -> bool {
        self.lent.load(Acquire) || self.data.metadata().is_ok_and(|data| data.nlink() > 1)
    }

    /// Opens the complete file for somebody who reads it without us. From then on it is not
    /// written any more.
    pub fn lend(&self) -> Option<File> {
        let _guard = self.writing.lock();
        if !self.is_complete() {
            return None;
        }
        self.lent.store(true, Release);
        File::open(&self.path).ok()
    }

    /// Notes that it was opened now.
    pub(super) fn touch(&self) {
        let _ = self.table.set_modified(SystemTime::now());
    }

    /// Copies what is there from `offset` on; returns how many bytes that was: it ends with `out`,
    /// with the file, or before the first block that is not there.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> usize {
        let end = self.size.min(offset.saturating_add(out.len() as u64));
        let mut at = offset;
        while at < end {
            let until = self.end_of_run(at, end.min(at / BLOCK * BLOCK + RUN_BYTES_MAX));
            if until == at {
                break;
            }
            let part = &mut out[(at - offset) as usize..(until - offset) as usize];
            let had = self.read_run(at, part);
            at += had as u64;
            if at < until {
                break;
            }
        }
        at.saturating_sub(offset) as usize
    }

    /// Where what is there from `at` on ends, at `end` at the latest.
    fn end_of_run(&self, at: u64, end: u64) -> u64 {
        let sums = self.sums();
        let mut until = at;
        while until < end && sums[(until / BLOCK) as usize].load(Relaxed) != 0 {
            until = (until / BLOCK + 1) * BLOCK;
        }
        until.min(end)
    }

    fn read_run(&self, at: u64, out: &mut [u8]) -> usize {
        let mut done = 0;
        let mut block = ZEROS;
        while done < out.len() {
            let from = at + done as u64;
            let skip = (from % BLOCK) as usize;
            let left = out.len() - done;
            if skip != 0 || left < BLOCK_BYTES {
                let length = left.min(BLOCK_BYTES - skip);
                if !self.read_block(from / BLOCK, &mut block) {
                    return done;
                }
                out[done..done + length].copy_from_slice(&block[skip..skip + length]);
                done += length;
                continue;
            }
            let whole = left / BLOCK_BYTES * BLOCK_BYTES;
            let part = &mut out[done..done + whole];
            // An error, or an end of the file, is data that does not fit.
            let _ = self.data.read_exact_at(part, from);
            for (number, data) in (from / BLOCK..).zip(part.chunks_exact_mut(BLOCK_BYTES)) {
                if self.sums()[number as usize].load(Acquire) != self.sum_of(number, data) {
                    let Ok(data) = data.try_into() else { return done };
                    if !self.read_block(number, data) {
                        return done;
                    }
                }
                done += BLOCK_BYTES;
            }
        }
        done
    }

    /// Reads a block, the last one filled up with zeros; says whether it is there and right.
    fn read_block(&self, number: u64, out: &mut [u8; BLOCK_BYTES]) -> bool {
        if self.try_block(number, out) {
            return true;
        }
        // It was being written, or it is bad.
        let _guard = self.writing.lock();
        let sum = &self.sums()[number as usize];
        if sum.load(Acquire) == 0 {
            return false;
        }
        if self.try_block(number, out) {
            return true;
        }
        sum.store(0, Release);
        self.complete_flag().store(0, Release);
        self.repaired.fetch_add(1, Relaxed);
        false
    }

    fn try_block(&self, number: u64, out: &mut [u8; BLOCK_BYTES]) -> bool {
        let Some(sum) = self.sums().get(number as usize) else { return false };
        let there = BLOCK.min(self.size - number * BLOCK) as usize;
        out[there..].fill(0);
        self.data.read_exact_at(&mut out[..there], number * BLOCK).is_ok()
            && sum.load(Acquire) == self.sum_of(number, out)
    }

    /// Takes whole blocks; the last one may end with the file. Zeros are not written.
    ///
    /// # Errors
    /// The disk's: what could not be written is then not there.
    pub fn put(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut length = (data.len() as u64).min(self.size.saturating_sub(offset));
        if offset + length < self.size {
            length = length / BLOCK * BLOCK;
        }
        if !offset.is_multiple_of(BLOCK) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let _guard = self.writing.lock();
        let (mut from, mut at) = (0, 0);
        let length = length as usize;
        while at < length {
            let next = (at + BLOCK_BYTES).min(length);
            if data[at..next].iter().all(|byte| *byte == 0) && self.is_absent(offset + at as u64) {
                self.put_run(offset + from as u64, &data[from..at])?;
                let number = (offset + at as u64) / BLOCK;
                self.set_zero(number, number + 1)?;
                from = next;
            }
            at = next;
        }
        self.put_run(offset + from as u64, &data[from..length])
    }

    /// Says that a range of whole blocks is zero: those that are not there become holes that are.
    pub fn put_zeros(&self, offset: u64, end: u64) {
        let _guard = self.writing.lock();
        let (mut number, last) = (offset.div_ceil(BLOCK), end.min(self.size).div_ceil(BLOCK));
        while let Some(from) = (number..last).find(|number| self.is_absent(number * BLOCK)) {
            let to = (from..last).find(|number| !self.is_absent(number * BLOCK)).unwrap_or(last);
            // What cannot be made zero is not there.
            let _ = self.set_zero(from, to);
            number = to;
        }
    }

    fn is_absent(&self, offset: u64) -> bool {
        self.sums()[(offset / BLOCK) as usize].load(Acquire) == 0
    }

    /// Makes the blocks `first..last`, which are not there, zero ones.
    fn set_zero(&self, first: u64, last: u64) -> io::Result<()> {
        self.make_hole(first * BLOCK, (last * BLOCK).min(self.size))?;
        for number in first..last {
            self.sums()[number as usize].store(self.sum_of(number, &ZEROS), Release);
        }
        Ok(())
    }

    /// Leaves zeros where nothing was ever written, or where blocks were dropped: then their room is
    /// given back.
    fn make_hole(&self, from: u64, to: u64) -> io::Result<()> {
        let data = lseek(&self.data, from as libc::off_t, Whence::SeekData);
        if data == Err(Errno::ENXIO) || data.is_ok_and(|data| data as u64 >= to) {
            return Ok(());
        }
        let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if fallocate(&self.data, how, from as libc::off_t, (to - from) as libc::off_t).is_ok() {
            return Ok(());
        }
        let mut at = from;
        while at < to {
            let length = (to - at).min(BLOCK) as usize;
            self.data.write_all_at(&ZEROS[..length], at)?;
            at += length as u64;
        }
        Ok(())
    }

    fn put_run(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let first = (offset / BLOCK) as usize;
        let sums = &self.sums()[first..first + data.len().div_ceil(BLOCK_BYTES)];
        sums.iter().for_each(|sum| sum.store(0, Release));
        self.data.write_all_at(data, offset)?;
        for (number, (sum, block)) in
            (first as u64..).zip(sums.iter().zip(data.chunks(BLOCK_BYTES)))
        {
            let value = match block.len() {
                BLOCK_BYTES => self.sum_of(number, block),
                length => {
                    let mut filled = ZEROS;
                    filled[..length].copy_from_slice(block);
                    self.sum_of(number, &filled)
                }
            };
            sum.store(value, Release);
        }
        Ok(())
    }

    /// Forgets the blocks that `from..to` touches.
    pub fn cut(&self, from: u64, to: u64) {
        let _guard = self.writing.lock();
        self.complete_flag().store(0, Release);
        let last = to.min(self.size).div_ceil(BLOCK);
        for number in from / BLOCK..last {
            self.sums()[number as usize].store(0, Release);
        }
    }

    /// Returns the first part of `start..end`, in whole blocks, that is not there.
    pub fn first_gap(&self, start: u64, end: u64) -> Option<(u64, u64)> {
        let sums = self.sums();
        let blocks = start / BLOCK..end.min(self.size).div_ceil(BLOCK);
        let is_there = |number: &u64| sums[*number as usize].load(Relaxed) != 0;
        let first = blocks.clone().find(|number| !is_there(number))?;
        let last = (first..blocks.end).find(is_there).unwrap_or(blocks.end);
        Some(((first * BLOCK).max(start), (last * BLOCK).min(end)))
    }

    /// Returns how many bytes are there.
    pub fn bytes(&self) -> u64 {
        let blocks = self.sums().iter().filter(|sum| sum.load(Relaxed) != 0).count() as u64;
        (blocks * BLOCK).min(self.size)
    }

    /// Says whether all is there, and if so makes it durable and says so for good.
    ///
    /// # Errors
    /// The disk's.
    pub fn complete(&self) -> io::Result<bool> {
        if self.is_complete() {
            return Ok(true);
        }
        self.sync()?;
        let _guard = self.writing.lock();
        if self.first_gap(0, self.size).is_some() {
            return Ok(false);
        }
        self.complete_flag().store(1, Release);
        Ok(true)
    }

    /// Reads everything, and drops what is bad. Returns the blocks read and the offsets of bad
    /// ones.
    pub fn verify(&self) -> (u64, Vec<u64>) {
        let mut block = ZEROS;
        let (mut blocks, mut bad) = (0, Vec::new());
        for number in 0..self.sums().len() as u64 {
            if self.sums()[number as usize].load(Relaxed) != 0 {
                blocks += 1;
                if !self.read_block(number, &mut block) {
                    bad.push(number * BLOCK);
                }
            }
        }
        (blocks, bad)
    }

    /// Writes it to the disk, the data before what says that it is there.
    ///
    /// # Errors
    /// The disk's.
    pub fn sync(&self) -> io::Result<()> {
        self.data.sync_data()?;
        // SAFETY: exactly the mapping.
        match unsafe { libc::msync(self.base.as_ptr().cast(), self.mapped_bytes, libc::MS_SYNC) } {
            0 => self.table.sync_data(),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for CachedFile {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping; every reference into it has borrowed `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped_bytes) };
    }
}
