//! Writing: putting blocks in, changing and dropping them.
//!
//! The order within a frame, under its set's lock: take the valid bits away, write the data, set
//! the checksums, set the valid bits. Killed anywhere in between, the blocks are missing.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering::{Relaxed, Release};

use super::geometry::{BLOCK_BYTES, mask};
use super::locks::{Locks, SetGuard};
use super::{FileKey, Store, StoreError};
use crate::crash::{self, Point};

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
    /// `offset` is a multiple of 4096; a last block that is not whole is filled up with zeros,
    /// which is right if it ends the file.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`], [`StoreError::Io`]: each block is stored or missing, never old.
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
        let mut at = offset;
        while at < end {
            let Some(frame) = self.layout.frame(at) else { break };
            self.enter(&mut cursor, frame);
            let rest = &data[(at - offset) as usize..];
            at += match self.patch_some(&mut cursor, at, rest, eof) {
                Ok(done) => done as u64,
                // Nothing of this frame is held, so nothing old is.
                Err(StoreError::Pinned) => {
                    outcome = Err(StoreError::Pinned);
                    (self.layout.frame_bytes - at % self.layout.frame_bytes).min(end - at)
                }
                Err(error) => {
                    drop(cursor);
                    self.cut(key, at, end);
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

    /// Patches a part of a block, or a run of whole blocks, at the frame that the cursor is at.
    /// Returns how many bytes of the data that was.
    fn patch_some(
        &self,
        cursor: &mut Cursor<'_>,
        at: u64,
        data: &[u8],
        eof: bool,
    ) -> Result<usize, StoreError> {
        let to_border = BLOCK_BYTES - (at % BLOCK) as usize;
        if to_border < BLOCK_BYTES || (data.len() < BLOCK_BYTES && !eof) {
            let part = &data[..data.len().min(to_border)];
            self.merge(cursor, at, part)?;
            return Ok(part.len());
        }
        let data = if eof { data } else { &data[..data.len() / BLOCK_BYTES * BLOCK_BYTES] };
        let way = match cursor.way {
            Some(way) => way,
            None => self.claim(cursor.key, cursor.set, cursor.frame, cursor.hint)?,
        };
        cursor.way = Some(way);
        let run = &data[..self.run_length(cursor, way, at, data.len())];
        self.write_blocks(cursor.key, cursor.set, way, at, run)?;
        Ok(run.len())
    }

    /// Says how much of `length` bytes can be written at once: on into the next sets of the bank,
    /// as long as the same lock holds for them and the file has, or gets, the same way there.
    fn run_length(&self, cursor: &Cursor<'_>, way: u32, at: u64, length: usize) -> usize {
        let frame_bytes = self.layout.frame_bytes;
        let mut run = (frame_bytes - at % frame_bytes) as usize;
        let (mut set, mut frame) = (cursor.set, cursor.frame);
        let (stripe, bank) = (Locks::stripe(set), self.layout.bank(set, way));
        while run < length {
            set += 1;
            let Some(next) = frame.checked_add(1) else { break };
            frame = next;
            if set == self.layout.sets
                || Locks::stripe(set) != stripe
                || self.layout.bank(set, way) != bank
            {
                break;
            }
            let next = match self.tags.find_only(set, cursor.key, frame) {
                Some(way) => way,
                // What is claimed here in vain is a free way, and taken when its turn comes.
                None => match self.claim(cursor.key, set, frame, Some(way)) {
                    Ok(way) => way,
                    Err(_) => break,
                },
            };
            if next != way {
                break;
            }
            run += frame_bytes as usize;
        }
        run.min(length)
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
        self.write_blocks(cursor.key, cursor.set, way, from / BLOCK * BLOCK, &whole)
    }

    /// Finds a way for a frame that has none: a free one, else the one that was used longest ago.
    /// `hint` is better than its equals.
    fn claim(
        &self,
        key: FileKey,
        set: u32,
        frame: u32,
        hint: Option<u32>,
    ) -> Result<u32, StoreError> {
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
        self.tags.install(set, way, key, frame);
        Ok(way)
    }

    /// Writes blocks that lie side by side in one way of consecutive sets, of which the caller
    /// holds the lock. The last may end early.
    fn write_blocks(
        &self,
        key: FileKey,
        set: u32,
        way: u32,
        from: u64,
        data: &[u8],
    ) -> Result<(), StoreError> {
        let bank = self.layout.bank(set, way);
        let place = self.layout.bank_offset(set, way) + u64::from(self.layout.block(from)) * BLOCK;
        for (set, first, part) in self.parts(set, from, data) {
            let count = part.len().div_ceil(BLOCK_BYTES) as u32;
            self.invalidate(set, way, mask(first, count));
        }
        crash::point(Point::BLOCKS_AFTER_INVALID);
        self.banks.write(bank, place, data).map_err(|error| self.failed(bank, error))?;
        crash::point(Point::BLOCKS_AFTER_DATA);

        let mut number = from / BLOCK;
        for (set, first, part) in self.parts(set, from, data) {
            let sums = &self.tags.sums(set, way)[first as usize..];
            for (sum, block) in sums.iter().zip(part.chunks(BLOCK_BYTES)) {
                let value = if block.len() == BLOCK_BYTES {
                    self.sum.checksum(key, number, block)
                } else {
                    let mut whole = [0; BLOCK_BYTES];
                    whole[..block.len()].copy_from_slice(block);
                    self.sum.checksum(key, number, &whole)
                };
                sum.store(value, Release);
                number += 1;
                crash::point(Point::BLOCKS_AFTER_SUM);
            }
            let count = part.len().div_ceil(BLOCK_BYTES) as u32;
            self.tags.words(set)[way as usize].fetch_or(mask(first, count).into(), Release);
            self.tags.touch(set, way);
            self.counters.stored_bytes.fetch_add(u64::from(count) * BLOCK, Relaxed);
        }
        Ok(())
    }

    /// Splits data at the borders of frames: the set, the first block, and the bytes of each part.
    fn parts<'d>(
        &self,
        set: u32,
        from: u64,
        data: &'d [u8],
    ) -> impl Iterator<Item = (u32, u32, &'d [u8])> + use<'d> {
        let frame_bytes = self.layout.frame_bytes as usize;
        let first = self.layout.block(from);
        let (head, rest) =
            data.split_at(data.len().min(frame_bytes - first as usize * BLOCK_BYTES));
        let rest = rest.chunks(frame_bytes).enumerate();
        std::iter::once((set, first, head))
            .chain(rest.map(move |(i, part)| (set + 1 + i as u32, 0, part)))
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
