//! What goes over all tags: counting, checking, making room.

use std::ops::Range;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::geometry::{BLOCK_BYTES, mask};
use super::{FileKey, Store};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What a store holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Frames with valid blocks.
    pub frames: u64,
    /// Frames that there are.
    pub frames_max: u64,
    /// Frames with valid blocks of pinned files.
    pub frames_pinned: u64,
    /// Valid blocks.
    pub blocks: u64,
    /// Bytes of the valid blocks.
    pub bytes: u64,
    /// The most that the store may hold, in bytes.
    pub bytes_max: u64,
    /// What the bank files take on the disk; frames that were dropped count until they are reused.
    pub disk_bytes: u64,
    /// Size of the tags file.
    pub tags_bytes: u64,
}

/// A block that did not fit its checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadBlock {
    /// Its file.
    pub key: FileKey,
    /// Its place in the file.
    pub offset: u64,
}

/// What [`Store::verify`] found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VerifyReport {
    /// Blocks that were read.
    pub blocks: u64,
    /// Blocks that were bad, and were dropped: the first million of them.
    pub bad: Vec<BadBlock>,
    /// How many were bad.
    pub bad_count: u64,
}

/// Bounds the memory of a report.
const BAD_MAX: usize = 1_000_000;

impl Store {
    /// Returns how many bytes of a file of that size are held.
    pub fn bytes_of(&self, key: FileKey, size: u64) -> u64 {
        let frames = self.layout.frames_of(0, size);
        let mut bytes = 0;
        let mut add = |frame: u32, valid: u32| {
            let start = u64::from(frame) << self.layout.frame_shift;
            let within = (size - start).min(self.layout.frame_bytes);
            let whole = (within / BLOCK) as u32;
            bytes += u64::from((valid & mask(0, whole)).count_ones()) * BLOCK;
            if !within.is_multiple_of(BLOCK) && valid & mask(whole, 1) != 0 {
                bytes += within % BLOCK;
            }
        };
        if frames.end <= u64::from(self.layout.sets) {
            for frame in frames {
                let set = self.layout.set(key, frame as u32);
                if let Some((_, valid)) = self.tags.find(set, key, frame as u32) {
                    add(frame as u32, valid);
                }
            }
        } else {
            self.each_frame_of(key, frames, |set, frame| {
                if let Some((_, valid)) = self.tags.find(set, key, frame) {
                    add(frame, valid);
                }
            });
        }
        bytes
    }

    /// Calls for every frame of a file with valid blocks, found by looking through all tags.
    pub(super) fn each_frame_of(
        &self,
        key: FileKey,
        frames: Range<u64>,
        mut each: impl FnMut(u32, u32),
    ) {
        self.each_frame(|set, way, word| {
            let (frame, _) = self.tags.split(word);
            if self.tags.keys(set)[way as usize].load(Acquire) == key.0
                && frames.contains(&frame.into())
                // Not what a torn tag may have left in another set.
                && self.layout.set(key, frame) == set
            {
                each(set, frame);
            }
        });
    }

    /// Calls for every way with valid blocks: set, way and word.
    fn each_frame(&self, mut each: impl FnMut(u32, u32, u64)) {
        for set in 0..self.layout.sets {
            for (way, word) in self.tags.words(set).iter().enumerate() {
                let word = word.load(Acquire);
                if self.tags.split(word).1 != 0 {
                    each(set, way as u32, word);
                }
            }
        }
    }

    /// Counts what is held. Looks through all tags.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage {
            frames_max: self.layout.frames(),
            bytes_max: self.layout.frames() * self.layout.frame_bytes,
            tags_bytes: self.layout.tags_bytes as u64,
            disk_bytes: (0..self.banks.count()).map(|bank| self.banks.disk_bytes(bank)).sum(),
            ..Usage::default()
        };
        let pinned = self.pinned.read();
        self.each_frame(|set, way, word| {
            usage.frames += 1;
            usage.blocks += u64::from(self.tags.split(word).1.count_ones());
            let key = FileKey(self.tags.keys(set)[way as usize].load(Acquire));
            usage.frames_pinned += u64::from(pinned.contains(&key));
        });
        usage.bytes = usage.blocks * BLOCK;
        usage
    }

    /// Returns what the bank files take on the disk.
    pub fn disk_bytes(&self) -> u64 {
        (0..self.banks.count()).map(|bank| self.banks.disk_bytes(bank)).sum()
    }

    /// Reads and checks every valid block, and drops those that are bad.
    ///
    /// `progress` is told of frames done, of how many.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> VerifyReport {
        let mut total = 0;
        self.each_frame(|_, _, _| total += 1);
        let mut report = VerifyReport::default();
        let mut data = [0; BLOCK_BYTES];
        let mut done = 0;
        progress(0, total);
        self.each_frame(|set, way, word| {
            let (frame, valid) = self.tags.split(word);
            let key = FileKey(self.tags.keys(set)[way as usize].load(Acquire));
            let misplaced = self.layout.set(key, frame) != set;
            for block in (0..self.layout.blocks).filter(|block| valid & mask(*block, 1) != 0) {
                let offset =
                    (u64::from(frame) << self.layout.frame_shift) + u64::from(block) * BLOCK;
                if !self.within_reach(set, way) {
                    continue;
                }
                report.blocks += 1;
                if !misplaced && self.read_at(key, offset / BLOCK, set, way, &mut data) {
                    continue;
                }
                let _guard = self.lock(set);
                // Again, now that nobody changes it.
                let now = self.tags.words(set)[way as usize].load(Acquire);
                if self.tags.split(now).0 != frame
                    || self.tags.keys(set)[way as usize].load(Acquire) != key.0
                    || self.tags.split(now).1 & mask(block, 1) == 0
                    || (!misplaced && self.read_at(key, offset / BLOCK, set, way, &mut data))
                {
                    continue;
                }
                self.drop_bad(set, way, block);
                report.bad_count += 1;
                if report.bad.len() < BAD_MAX {
                    report.bad.push(BadBlock { key, offset });
                }
            }
            done += 1;
            progress(done, total.max(done));
        });
        report
    }

    /// Gives disk space back to the file system: what dropped frames still take, then the frames
    /// that were used longest ago. Returns how much came free, which may be a little more than was
    /// asked for, or less if there is no more but pinned frames.
    pub fn give_back(&self, bytes: u64) -> u64 {
        let mut freed = 0;
        self.punch(bytes, &mut freed, |_, _, valid| valid == 0);
        if freed >= bytes {
            return freed;
        }
        // How old the frames are, to know from which age on there are enough.
        let mut held = vec![0u64; 1 << 16];
        self.each_frame(|set, way, word| {
            held[self.tags.age(set, way) as usize] +=
                u64::from(self.tags.split(word).1.count_ones()) * BLOCK;
        });
        let mut age = u16::MAX;
        let mut found = 0;
        while freed < bytes {
            found += held[age as usize];
            if found >= bytes - freed || age == 0 {
                let before = freed;
                self.punch(bytes, &mut freed, |set, way, _| {
                    self.tags.age(set, way) >= age && {
                        let key = FileKey(self.tags.keys(set)[way as usize].load(Acquire));
                        !self.pinned.read().contains(&key)
                    }
                });
                // The disk gives back less than was counted (pinned frames): go on with younger.
                found = 0;
                if age == 0 && freed == before {
                    break;
                }
            }
            match age.checked_sub(1) {
                Some(younger) => age = younger,
                None => break,
            }
        }
        freed
    }

    /// Drops the frames that are chosen (by set, way and valid bits) and punches their holes, until
    /// enough is free.
    fn punch(&self, bytes: u64, freed: &mut u64, choose: impl Fn(u32, u32, u32) -> bool) {
        for bank in 0..self.banks.count() {
            if self.banks.disk_bytes(bank) == 0 {
                continue;
            }
            for (set, way) in self.layout.slots_of(bank) {
                let word = &self.tags.words(set)[way as usize];
                let valid = || self.tags.split(word.load(Acquire)).1;
                if !choose(set, way, valid()) {
                    continue;
                }
                let _guard = self.lock(set);
                let valid = valid();
                if !choose(set, way, valid) {
                    continue;
                }
                if valid != 0 {
                    word.store(0, Release);
                    self.counters.evicted.fetch_add(1, Relaxed);
                }
                let place = self.layout.bank_offset(set, way);
                *freed += self.banks.punch(bank, place, self.layout.frame_bytes);
                if *freed >= bytes {
                    return;
                }
            }
        }
    }

    /// Forgets everything, and gives its disk space back.
    pub fn clear(&self) {
        let _guard = self.locks.lock_all(self.tags.file());
        self.tags.clear();
        for bank in 0..self.banks.count() {
            self.banks.punch(bank, 0, self.banks.bank_bytes());
        }
    }
}
