//! Writing: putting blocks in, changing and dropping them.
//!
//! The order within a frame, under its set's lock: take the valid bits away, write the data, set
//! the checksums, set the valid bits. Killed anywhere in between, the blocks are missing.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering::{Relaxed, Release};

use super::crash;
use super::geometry::{BLOCK_BYTES, mask};
use super::locks::{Locks, SetGuard};
use super::sum::checksum;
use super::{FileKey, Store, StoreError};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Where in the store a write is, and what it holds.
struct Cursor<'a> {
    key: FileKey,
    frame: u32,
    set: u32,
    /// The way of the frame, once it has one.
    way: Option<u32>,
    /// The way of the frame before it: the same one is contiguous in the bank file.
    hint: Option<u32>,
    guard: Option<(u32, SetGuard<'a>)>,
}

impl Store {
    /// Stores whole blocks.
    ///
    /// `offset` is a multiple of 4096; a last block that is not whole is filled up with zeros, which
    /// is right if it ends the file.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`], [`StoreError::Io`]: each block is then stored or missing, never old.
    /// [`StoreError::Pinned`]: as many as could be were stored, the others are missing.
    pub fn put(&self, key: FileKey, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        assert!(offset.is_multiple_of(BLOCK), "put at {offset}, not a block border");
        self.patch(key, offset, data, true)
    }

    /// Overwrites bytes. Blocks that are covered whole are stored; one that is covered in part is
    /// changed if it is held, else left missing.
    ///
    /// `eof`: the data ends the file, so its last block counts as whole if it begins in the data.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn patch(
        &self,
        key: FileKey,
        offset: u64,
        data: &[u8],
        eof: bool,
    ) -> Result<(), StoreError> {
        debug_assert!(key.0 != 0, "0 is never a key");
        let end = offset.saturating_add(data.len() as u64);
        let mut cursor = Cursor { key, frame: 0, set: 0, way: None, hint: None, guard: None };
        let mut outcome = Ok(());
        for number in self.layout.frames_of(offset, end) {
            let from = offset.max(number << self.layout.frame_shift);
            let to = end.min((number + 1) << self.layout.frame_shift);
            let part = &data[(from - offset) as usize..(to - offset) as usize];
            self.enter(&mut cursor, number as u32);
            match self.patch_frame(&mut cursor, from, part, eof && to == end) {
                Ok(()) => {}
                // Nothing of this frame is held, so nothing old is.
                Err(StoreError::Pinned) => outcome = Err(StoreError::Pinned),
                Err(error) => {
                    drop(cursor);
                    self.cut(key, from, end);
                    return Err(error);
                }
            }
        }
        outcome
    }

    /// Moves a cursor to a frame, with its set's lock held.
    fn enter<'a>(&'a self, cursor: &mut Cursor<'a>, frame: u32) {
        cursor.set = self.layout.set(cursor.key, frame);
        let stripe = Locks::stripe(cursor.set);
        if cursor.guard.as_ref().is_none_or(|held| held.0 != stripe) {
            // The old one first: nobody waits for a lock while holding another.
            cursor.guard = None;
            cursor.guard = Some((stripe, self.locks.lock(self.tags.file(), stripe)));
        }
        cursor.hint = match (cursor.way, frame.checked_sub(1)) {
            (Some(way), _) => Some(way),
            (None, Some(before)) => {
                let set = self.layout.set(cursor.key, before);
                self.tags.find(set, cursor.key, before).map(|found| found.0)
            }
            (None, None) => None,
        };
        cursor.frame = frame;
        cursor.way = self.tags.find_only(cursor.set, cursor.key, frame);
    }

    /// Patches within the frame that the cursor is at.
    fn patch_frame(
        &self,
        cursor: &mut Cursor<'_>,
        from: u64,
        data: &[u8],
        eof: bool,
    ) -> Result<(), StoreError> {
        // Up to the first block border, whole blocks, and from the last border on.
        let to = from + data.len() as u64;
        let first = from.next_multiple_of(BLOCK).min(to);
        let last = if eof { to } else { (to / BLOCK * BLOCK).max(first) };
        let (head, rest) = data.split_at((first - from) as usize);
        let (whole, tail) = rest.split_at((last - first) as usize);
        self.merge(cursor, from, head)?;
        if !whole.is_empty() {
            let way = match cursor.way {
                Some(way) => way,
                None => self.claim(cursor)?,
            };
            cursor.way = Some(way);
            self.write_blocks(cursor, way, first, whole)?;
        }
        self.merge(cursor, last, tail)
    }

    /// Changes a part of a block if the block is held.
    fn merge(&self, cursor: &Cursor<'_>, from: u64, data: &[u8]) -> Result<(), StoreError> {
        let block = self.layout.block(from);
        let Some(way) = cursor.way else { return Ok(()) };
        let valid = self.tags.words(cursor.set)[way as usize].load(Relaxed) as u32;
        if data.is_empty() || valid & mask(block, 1) == 0 {
            return Ok(());
        }
        let mut whole = [0; BLOCK_BYTES];
        if !self.read_at(cursor.key, from / BLOCK, cursor.set, way, &mut whole) {
            self.drop_bad(cursor.set, way, block);
            return Ok(());
        }
        let skip = (from % BLOCK) as usize;
        whole[skip..skip + data.len()].copy_from_slice(data);
        self.write_blocks(cursor, way, from / BLOCK * BLOCK, &whole)
    }

    /// Finds a way for a frame that has none: a free one, else the one that was used longest ago.
    fn claim(&self, cursor: &Cursor<'_>) -> Result<u32, StoreError> {
        let (set, hint) = (cursor.set, cursor.hint);
        let words = self.tags.words(set);
        let free = |way: u32| self.tags.split(words[way as usize].load(Relaxed)).1 == 0;
        let ways = 0..self.layout.ways;
        let way = match hint.filter(|way| free(*way)).or_else(|| ways.clone().find(|w| free(*w))) {
            Some(way) => way,
            None => {
                let pinned = self.pinned.read();
                let keys = self.tags.keys(set);
                let way = ways
                    .filter(|way| {
                        pinned.is_empty()
                            || !pinned.contains(&FileKey(keys[*way as usize].load(Relaxed)))
                    })
                    .max_by_key(|way| (self.tags.age(set, *way), hint == Some(*way)))
                    .ok_or(StoreError::Pinned)?;
                self.counters.evicted.fetch_add(1, Relaxed);
                way
            }
        };
        self.tags.install(set, way, cursor.key, cursor.frame);
        Ok(way)
    }

    /// Writes blocks of a frame, of which the last may end early.
    fn write_blocks(
        &self,
        cursor: &Cursor<'_>,
        way: u32,
        from: u64,
        data: &[u8],
    ) -> Result<(), StoreError> {
        let set = cursor.set;
        let first = self.layout.block(from);
        let count = data.len().div_ceil(BLOCK_BYTES) as u32;
        let bank = self.layout.bank(set);
        self.invalidate(set, way, mask(first, count));
        crash::point(crash::BLOCKS_AFTER_INVALID);
        let place = self.layout.bank_offset(set, way) + u64::from(first) * BLOCK;
        self.banks.write(bank, place, data).map_err(|error| self.failed(bank, error))?;

        crash::point(crash::BLOCKS_AFTER_DATA);
        let sums = &self.tags.sums(set, way)[first as usize..];
        for (i, (sum, block)) in sums.iter().zip(data.chunks(BLOCK_BYTES)).enumerate() {
            let number = from / BLOCK + i as u64;
            let value = if block.len() == BLOCK_BYTES {
                checksum(cursor.key, number, block)
            } else {
                let mut whole = [0; BLOCK_BYTES];
                whole[..block.len()].copy_from_slice(block);
                checksum(cursor.key, number, &whole)
            };
            sum.store(value, Release);
            crash::point(crash::BLOCKS_AFTER_SUM);
        }
        self.tags.words(set)[way as usize].fetch_or(mask(first, count).into(), Release);
        self.tags.touch(set, way);
        self.counters.stored_bytes.fetch_add(u64::from(count) * BLOCK, Relaxed);
        Ok(())
    }

    fn failed(&self, bank: u32, error: io::Error) -> StoreError {
        let error = StoreError::io(&self.banks.path(bank), error);
        if matches!(error, StoreError::NoSpace) {
            self.counters.no_space.fetch_add(1, Relaxed);
        }
        error
    }

    /// Drops every block that is at or behind `from` (rounded down to a block) and before `to`.
    ///
    /// Costs a lookup a frame of the range, at most a scan of the tags: give the file's (old) size
    /// as `to` where it is known.
    pub fn cut(&self, key: FileKey, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let from = from / BLOCK * BLOCK;
        let frames = self.layout.frames_of(from, to);
        if frames.end.saturating_sub(frames.start) <= u64::from(self.layout.sets) {
            for number in frames {
                let frame = number as u32;
                let set = self.layout.set(key, frame);
                if self.tags.find(set, key, frame).is_some() {
                    self.cut_frame(set, key, frame, from..to);
                }
            }
        } else {
            self.each_frame_of(key, frames, |set, frame| {
                self.cut_frame(set, key, frame, from..to);
            });
        }
    }

    fn cut_frame(&self, set: u32, key: FileKey, frame: u32, range: Range<u64>) {
        let start = u64::from(frame) << self.layout.frame_shift;
        let from = range.start.saturating_sub(start) / BLOCK;
        let to = (range.end - start).min(self.layout.frame_bytes).div_ceil(BLOCK);
        let _guard = self.lock(set);
        for way in 0..self.layout.ways {
            if self.tags.holds(set, way, key, frame).is_some() {
                self.invalidate(set, way, mask(from as u32, (to - from) as u32));
            }
        }
    }

    /// Takes valid bits away, before anything else is done to the blocks. The caller holds the
    /// set's lock.
    pub(super) fn invalidate(&self, set: u32, way: u32, blocks: u32) {
        self.tags.words(set)[way as usize].fetch_and(!u64::from(blocks), Release);
        // The data write that follows is a system call; it cannot be moved before this.
    }

    /// Waits for the lock of a set.
    pub(super) fn lock(&self, set: u32) -> SetGuard<'_> {
        self.locks.lock(self.tags.file(), Locks::stripe(set))
    }
}
