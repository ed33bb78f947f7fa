//! The tags: which block of which file is in which frame, and its checksum.
//!
//! One file, mapped shared by every process that has the store open, read and written as atomics.
//! It is allocated whole when it is made, so that touching it finds a page or makes one, never a
//! SIGBUS for want of disk space; it is not read when it is opened, so opening takes no time and
//! memory goes to what is used.
//!
//! A set's *head* is its words (frame number << 32 | valid bits), then its keys, then its stamps:
//! 320 bytes for 16 ways, 5 cache lines of which a lookup reads 3 or 4. The checksums are in a part
//! of their own, a cache line a frame. A way is free if none of its valid bits is set.
//!
//! The stamp is a coarse clock of installed frames: it moves on when 1/256 of the store was filled
//! anew. So a hit stores a stamp once in a while, and 16 bits turn round after 256 fillings.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

use super::format::Format;
use super::geometry::{HEADER_BYTES, Layout, mask};
use super::{FileKey, Geometry, StoreError};
use crate::crash::{self, Point};

/// Read as a number, so that a machine of the other byte order sees another store.
const MAGIC: u64 = u64::from_le_bytes(*b"GVFSTAG1");
const INSTALLS_AT: usize = 64;

/// See the module's description.
pub(super) struct Tags {
    base: NonNull<u8>,
    file: File,
    layout: Layout,
    /// Installed frames to a tick of the clock.
    tick: u64,
    /// The valid bits that a frame has.
    all_blocks: u32,
}

// SAFETY: the mapping is only read and written through atomics, and lives as long as `Tags`.
unsafe impl Send for Tags {}
// SAFETY: as above.
unsafe impl Sync for Tags {}

impl Tags {
    /// Maps the tags file. If it is not there or not of this format, makes an empty one if
    /// `may_make` (nobody else has it open).
    pub fn open(path: &Path, format: &Format, may_make: bool) -> Result<Self, StoreError> {
        let layout = Layout::new(&format.geometry);
        let header = header(format);
        let fail = |error| StoreError::io(path, error);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(may_make).mode(0o600);
        options.custom_flags(libc::O_NOFOLLOW);
        let file = options.open(path).map_err(fail)?;

        let bytes = layout.tags_bytes as u64;
        let mut found = [0u8; HEADER_LEN];
        let fits = file.metadata().map_err(fail)?.len() == bytes
            && file.read_exact_at(&mut found, 0).is_ok()
            && found == header;
        if !fits && !may_make {
            let source = io::Error::new(io::ErrorKind::InvalidData, "not the tags of this store");
            return Err(StoreError::io(path, source));
        }
        let no_room = |error: io::Error| match StoreError::io(path, error) {
            StoreError::NoSpace => StoreError::NoRoom { path: path.to_owned(), bytes },
            other => other,
        };
        if !fits {
            file.set_len(0).map_err(fail)?;
            no_copy_on_write(&file);
        }
        allocate(&file, bytes, !fits).map_err(no_room)?;
        if !fits {
            // Last, so that a tags file with a header is a whole one.
            file.write_all_at(&header, 0).map_err(no_room)?;
        }
        let base = map_shared(&file, layout.tags_bytes).map_err(fail)?;
        let tick = (layout.frames() / 256).max(1);
        Ok(Self { base, file, layout, tick, all_blocks: mask(0, layout.blocks) })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns `count` atomics at a place of the mapping.
    ///
    /// # Safety
    /// `T` is an atomic integer, and `at` is a multiple of its size.
    #[inline]
    unsafe fn atomics<T>(&self, at: usize, count: usize) -> &[T] {
        debug_assert!(at + count * size_of::<T>() <= self.layout.tags_bytes);
        // SAFETY: the place is inside of the mapping (asserted by the layout's arithmetic) and
        // aligned (the caller's promise; the mapping is at a page border). Any bits are a value of
        // an atomic integer, and whoever changes them, in this process or another, does it
        // atomically.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(at).cast(), count) }
    }

    #[inline]
    fn head(&self, set: u32) -> usize {
        assert!(set < self.layout.sets);
        HEADER_BYTES + set as usize * self.layout.head_bytes
    }

    /// Returns the frame numbers and valid bits of a set.
    #[inline]
    pub fn words(&self, set: u32) -> &[AtomicU64] {
        // SAFETY: heads are multiples of 64 bytes, and begin with the words.
        unsafe { self.atomics(self.head(set), self.layout.ways as usize) }
    }

    /// Returns the file keys of a set.
    #[inline]
    pub fn keys(&self, set: u32) -> &[AtomicU64] {
        let ways = self.layout.ways as usize;
        // SAFETY: the keys follow the words, of the same size.
        unsafe { self.atomics(self.head(set) + ways * 8, ways) }
    }

    /// Returns when each frame of a set was last used.
    #[inline]
    pub fn stamps(&self, set: u32) -> &[AtomicU16] {
        let ways = self.layout.ways as usize;
        // SAFETY: the stamps follow the keys, which are larger.
        unsafe { self.atomics(self.head(set) + ways * 16, ways) }
    }

    /// Returns the checksums of a frame.
    #[inline]
    pub fn sums(&self, set: u32, way: u32) -> &[AtomicU32] {
        assert!(set < self.layout.sets && way < self.layout.ways);
        let blocks = self.layout.blocks as usize;
        let frame = set as usize * self.layout.ways as usize + way as usize;
        // SAFETY: the checksums begin at a page border.
        unsafe { self.atomics(self.layout.sums_at + frame * blocks * 4, blocks) }
    }

    /// Has the CPU fetch the checksums of a frame.
    #[inline]
    pub fn prefetch_sums(&self, set: u32, way: u32) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: SSE, which every x86-64 has; a hint may name any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.sums(set, way).as_ptr().cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (set, way);
    }

    /// Splits a word into the frame number and the valid bits. Whatever a torn or flipped word
    /// says, there are no more bits than blocks.
    #[inline]
    pub fn split(&self, word: u64) -> (u32, u32) {
        ((word >> 32) as u32, word as u32 & self.all_blocks)
    }

    fn installs(&self) -> &AtomicU64 {
        // SAFETY: inside of the header, a multiple of 8.
        unsafe { &self.atomics::<AtomicU64>(INSTALLS_AT, 1)[0] }
    }

    /// Returns the valid bits of a way if it holds the frame.
    #[inline]
    pub fn holds(&self, set: u32, way: u32, key: FileKey, frame: u32) -> Option<u32> {
        let word = &self.words(set)[way as usize];
        let seen = word.load(Acquire);
        let (number, valid) = self.split(seen);
        // The word again: it may have become another file's between the two loads.
        (number == frame
            && valid != 0
            && self.keys(set)[way as usize].load(Acquire) == key.0
            && word.load(Acquire) == seen)
            .then_some(valid)
    }

    /// Finds a frame that has valid blocks: its way and its valid bits.
    #[inline]
    pub fn find(&self, set: u32, key: FileKey, frame: u32) -> Option<(u32, u32)> {
        for (way, word) in self.words(set).iter().enumerate() {
            if self.split(word.load(Relaxed)).0 == frame
                && let Some(valid) = self.holds(set, way as u32, key, frame)
            {
                return Some((way as u32, valid));
            }
        }
        None
    }

    /// Finds a frame for a writer, who holds the set's lock.
    ///
    /// Tags that a power loss left from different times may hold a frame twice: all but the first
    /// are dropped here, so that what is written next is what is found.
    pub fn find_only(&self, set: u32, key: FileKey, frame: u32) -> Option<u32> {
        let mut found = None;
        for way in 0..self.layout.ways {
            if self.holds(set, way, key, frame).is_none() {
                continue;
            }
            if found.is_none() {
                found = Some(way);
            } else {
                self.words(set)[way as usize].store(0, Release);
            }
        }
        found
    }

    /// Marks a frame as used now.
    #[inline]
    pub fn touch(&self, set: u32, way: u32) {
        let stamp = &self.stamps(set)[way as usize];
        let now = self.now();
        if stamp.load(Relaxed) != now {
            stamp.store(now, Relaxed);
        }
    }

    #[inline]
    fn now(&self) -> u16 {
        (self.installs().load(Relaxed) / self.tick) as u16
    }

    /// Returns how many ticks ago a frame was last used.
    pub fn age(&self, set: u32, way: u32) -> u16 {
        self.now().wrapping_sub(self.stamps(set)[way as usize].load(Relaxed))
    }

    /// Returns how many frames were ever installed, by whichever process.
    #[cfg(test)]
    pub fn installed(&self) -> u64 {
        self.installs().load(Relaxed)
    }

    /// Gives a way to a frame, with no valid blocks. The caller holds the set's lock.
    pub fn install(&self, set: u32, way: u32, key: FileKey, frame: u32) {
        let word = &self.words(set)[way as usize];
        // In this order, so that a writer killed in between leaves a frame without valid blocks.
        let evicted = word.swap(0, Release);
        if self.split(evicted).1 != 0 {
            crash::point(Point::FRAME_AFTER_EVICT);
        }
        self.keys(set)[way as usize].store(key.0, Release);
        crash::point(Point::FRAME_AFTER_KEY);
        word.store(u64::from(frame) << 32, Release);
        self.installs().fetch_add(1, Relaxed);
        self.touch(set, way);
    }

    /// Makes all blocks of all frames missing. The caller holds all locks.
    pub fn clear(&self) {
        for set in 0..self.layout.sets {
            for word in self.words(set) {
                // Reading leaves a page that was never used unwritten.
                if word.load(Relaxed) != 0 {
                    word.store(0, Release);
                }
            }
        }
    }

    /// Writes what changed to the disk.
    pub fn sync(&self) -> io::Result<()> {
        let base = self.base.as_ptr().cast();
        // SAFETY: exactly the mapping.
        match unsafe { libc::msync(base, self.layout.tags_bytes, libc::MS_SYNC) } {
            0 => self.file.sync_data(),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Tags {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping; every reference into it has borrowed `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.layout.tags_bytes) };
    }
}

const HEADER_LEN: usize = 40;

fn header(format: &Format) -> [u8; HEADER_LEN] {
    let Geometry { size_bytes, banks, ways, frame_bytes } = format.geometry;
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(&MAGIC.to_ne_bytes());
    header[8..16].copy_from_slice(&u64::from(format.version()).to_ne_bytes());
    header[16..24].copy_from_slice(&size_bytes.to_ne_bytes());
    header[24..28].copy_from_slice(&banks.to_ne_bytes());
    header[28..32].copy_from_slice(&ways.to_ne_bytes());
    header[32..36].copy_from_slice(&frame_bytes.to_ne_bytes());
    header
}

/// Makes sure that every byte of the file has its place on the disk.
pub(crate) fn allocate(file: &File, bytes: u64, is_new: bool) -> io::Result<()> {
    // Not posix_fallocate: where the file system cannot, that reads and writes back a byte of each
    // block, and so undoes what another process changes meanwhile.
    loop {
        // SAFETY: plain call on an open descriptor.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes as libc::off_t) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => break,
            _ => return Err(error),
        }
    }
    if is_new {
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while at < bytes {
            let length = (bytes - at).min(zeros.len() as u64);
            file.write_all_at(&zeros[..length as usize], at)?;
            at += length;
        }
    }
    Ok(())
}

/// Asks btrfs to overwrite the (still empty) file in place: copies of mapped pages need space that
/// is not reserved. Other file systems refuse, and need not.
pub(super) fn no_copy_on_write(file: &File) {
    // linux/fs.h; not in every version of the libc crate.
    const FS_IOC_SETFLAGS: u64 = 0x4008_6602;
    const FS_NOCOW_FL: libc::c_long = 0x0080_0000;
    // Only btrfs: elsewhere the call would clear the flags that the file has.
    const BTRFS_SUPER_MAGIC: i64 = 0x9123_683e;
    // SAFETY: an all-zero `statfs` is a valid value of the C struct.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, `stat` lives over the call.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &mut stat) } == 0
        && stat.f_type as i64 == BTRFS_SUPER_MAGIC
    {
        // SAFETY: the request reads one long.
        unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_SETFLAGS as _, &FS_NOCOW_FL) };
    }
}

/// Maps a file's first bytes, shared.
pub(crate) fn map_shared(file: &File, bytes: usize) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let base = unsafe {
        let base = libc::mmap(
            std::ptr::null_mut(),
            bytes,
            protection,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Lookups are scattered: mapping the pages around each fault in is memory for nothing.
        libc::madvise(base, bytes, libc::MADV_RANDOM);
        base
    };
    NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at 0"))
}
