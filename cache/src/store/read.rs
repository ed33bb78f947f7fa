//! Reading: the hit path.
//!
//! A read goes by *runs*: valid blocks that lie side by side in a bank file. Each is one system
//! call into the caller's buffer, and is then checked block by block while it is in the CPU's
//! cache. The checksum is taken from the tag after the data was read, so data that fits is what the
//! tag held at that moment, whatever was written meanwhile.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::geometry::{BLOCK_BYTES, mask};
use super::{FileKey, Store};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// The longest run: a quarter of a CPU's second-level cache of 512 KiB, so that all of it is still
/// there when it is checked, though the kernel has read as much to copy it.
const RUN_BYTES_MAX: u64 = 128 << 10;
/// Reads of a block that is being overwritten again and again before the lock is taken.
const TRIES: u32 = 4;

/// Bytes that lie side by side in a bank file.
struct Run {
    set: u32,
    way: u32,
    frame: u32,
    length: u64,
}

impl Store {
    /// Copies what is held of a file from `offset` on, and returns how many bytes that was: it ends
    /// with `out` or before the first missing block.
    ///
    /// The store does not know where a file ends: what is behind the end in the last block reads as
    /// the zeros that it was filled up with.
    pub fn read(&self, key: FileKey, offset: u64, out: &mut [u8]) -> usize {
        let Some(end) = offset.checked_add(out.len() as u64) else { return 0 };
        let mut at = offset;
        while at < end {
            let Some(run) = self.run(key, at, end) else { break };
            let from = (at - offset) as usize;
            let wanted = run.length as usize;
            let had = self.read_run(key, at, &run, &mut out[from..from + wanted]);
            at += had as u64;
            if had < wanted {
                break;
            }
        }
        let done = at - offset;
        self.counters.hit_bytes.fetch_add(done, Relaxed);
        done as usize
    }

    /// Finds the run that begins at `at` and ends at `end` or before.
    fn run(&self, key: FileKey, at: u64, end: u64) -> Option<Run> {
        let end = end.min((at / BLOCK * BLOCK).saturating_add(RUN_BYTES_MAX));
        let frame = self.layout.frame(at)?;
        let set = self.layout.set(key, frame);
        let (way, valid) = self.tags.find(set, key, frame)?;
        let first = self.layout.block(at);
        let mut blocks = (valid >> first).trailing_ones();
        if blocks == 0 {
            return None;
        }
        self.tags.touch(set, way);
        let start = at / BLOCK * BLOCK;
        let mut stop = start + u64::from(blocks) * BLOCK;

        // On into the next sets of the bank, if the file has the same way there.
        let bank = self.layout.bank(set, way);
        let (mut next_set, mut next_frame) = (set, frame);
        let mut filled = first + blocks == self.layout.blocks;
        while filled && stop < end {
            next_set += 1;
            let Some(number) = next_frame.checked_add(1) else { break };
            next_frame = number;
            if next_set == self.layout.sets || self.layout.bank(next_set, way) != bank {
                break;
            }
            let Some(valid) = self.tags.holds(next_set, way, key, next_frame) else { break };
            blocks = valid.trailing_ones();
            if blocks > 0 {
                self.tags.touch(next_set, way);
            }
            stop += u64::from(blocks) * BLOCK;
            filled = blocks == self.layout.blocks;
        }
        Some(Run { set, way, frame, length: stop.min(end) - at })
    }

    /// Reads and checks a run; returns how many leading bytes of it are right.
    fn read_run(&self, key: FileKey, at: u64, run: &Run, out: &mut [u8]) -> usize {
        let Ok(file) = self.banks.file(self.layout.bank(run.set, run.way), false) else {
            return self.without_bank(key, at, run);
        };
        let skip = (at % BLOCK) as usize;
        let place =
            self.layout.bank_offset(run.set, run.way) + u64::from(self.layout.block(at)) * BLOCK;
        if skip != 0 || !out.len().is_multiple_of(BLOCK_BYTES) {
            return self.read_ragged(key, at, run, file, place, out);
        }
        // Needed as soon as the data is there, and rarely in a cache of the CPU's by itself.
        self.tags.prefetch_sums(run.set, run.way);
        // An error, or an end of the file, is data that does not fit.
        let _ = file.read_exact_at(out, place);
        for (i, data) in out.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            if !self.fits(key, at / BLOCK + i as u64, run, data) {
                let Ok(data) = data.try_into() else { return i * BLOCK_BYTES };
                if !self.read_block(key, at / BLOCK + i as u64, data) {
                    return i * BLOCK_BYTES;
                }
            }
        }
        out.len()
    }

    /// Reads a run of which not all blocks are wanted whole: those at its ends go by way of a
    /// buffer, in the same system call.
    fn read_ragged(
        &self,
        key: FileKey,
        at: u64,
        run: &Run,
        file: &File,
        place: u64,
        out: &mut [u8],
    ) -> usize {
        let (mut head, mut tail) = ([0; BLOCK_BYTES], [0; BLOCK_BYTES]);
        let skip = (at % BLOCK) as usize;
        let head_bytes = if skip == 0 && out.len() >= BLOCK_BYTES {
            0
        } else {
            out.len().min(BLOCK_BYTES - skip)
        };
        let tail_bytes = (out.len() - head_bytes) % BLOCK_BYTES;
        let (head_out, rest) = out.split_at_mut(head_bytes);
        let (middle, tail_out) = rest.split_at_mut(rest.len() - tail_bytes);
        let parts: [&mut [u8]; 3] = [
            if head_bytes > 0 { &mut head } else { &mut [] },
            middle,
            if tail_bytes > 0 { &mut tail } else { &mut [] },
        ];
        let _ = read_vectored(file, place, parts);

        let mut number = at / BLOCK;
        let mut done = 0;
        let mut good = |data: &mut [u8]| {
            let fits = self.fits(key, number, run, data)
                || data.try_into().is_ok_and(|data| self.read_block(key, number, data));
            number += 1;
            fits
        };
        if head_bytes > 0 {
            if !good(&mut head) {
                return 0;
            }
            head_out.copy_from_slice(&head[skip..skip + head_bytes]);
            done = head_bytes;
        }
        for data in middle.chunks_exact_mut(BLOCK_BYTES) {
            if !good(data) {
                return done;
            }
            done += BLOCK_BYTES;
        }
        if tail_bytes > 0 {
            if !good(&mut tail) {
                return done;
            }
            tail_out.copy_from_slice(&tail[..tail_bytes]);
            done += tail_bytes;
        }
        done
    }

    /// Says whether data fits the checksum that the run's tag has for the block now.
    #[inline]
    fn fits(&self, key: FileKey, number: u64, run: &Run, data: &[u8]) -> bool {
        let offset = number * BLOCK;
        let set = run.set + ((offset >> self.layout.frame_shift) as u32 - run.frame);
        let sum = &self.tags.sums(set, run.way)[self.layout.block(offset) as usize];
        let found = self.sum.checksum(key, number, data);
        sum.load(Acquire) == found
    }

    /// Reads a block anew that did not fit its checksum: it was being overwritten, or it is bad,
    /// and is then dropped.
    #[cold]
    pub(super) fn read_block(
        &self,
        key: FileKey,
        number: u64,
        out: &mut [u8; BLOCK_BYTES],
    ) -> bool {
        let offset = number * BLOCK;
        let Some(frame) = self.layout.frame(offset) else { return false };
        let set = self.layout.set(key, frame);
        let block = self.layout.block(offset);
        let mut bad = 0;
        for _ in 0..TRIES {
            let Some((way, valid)) = self.tags.find(set, key, frame) else { return false };
            if valid & mask(block, 1) == 0 {
                return false;
            }
            let sum = &self.tags.sums(set, way)[block as usize];
            let tag = || (self.tags.words(set)[way as usize].load(Acquire), sum.load(Acquire));
            let before = tag();
            if self.read_at(key, number, set, way, out) {
                return true;
            }
            if self.tags.split(tag().0).0 == self.tags.split(before.0).0 && tag().1 == before.1 {
                bad += 1;
                if bad == 2 {
                    break;
                }
            }
        }
        let _guard = self.lock(set);
        let Some((way, valid)) = self.tags.find(set, key, frame) else { return false };
        if valid & mask(block, 1) == 0 {
            return false;
        }
        self.read_at(key, number, set, way, out) || {
            self.drop_bad(set, way, block);
            false
        }
    }

    /// Reads a block from a frame; says whether it fits.
    pub(super) fn read_at(
        &self,
        key: FileKey,
        number: u64,
        set: u32,
        way: u32,
        out: &mut [u8; BLOCK_BYTES],
    ) -> bool {
        let block = self.layout.block(number * BLOCK);
        let place = self.layout.bank_offset(set, way) + u64::from(block) * BLOCK;
        self.banks
            .file(self.layout.bank(set, way), false)
            .is_ok_and(|file| file.read_exact_at(out, place).is_ok())
            && self.tags.sums(set, way)[block as usize].load(Acquire)
                == self.sum.checksum(key, number, out)
    }

    /// Takes a bad block away. The caller holds the set's lock.
    pub(super) fn drop_bad(&self, set: u32, way: u32, block: u32) {
        self.invalidate(set, way, mask(block, 1));
        self.counters.repaired.fetch_add(1, Relaxed);
    }

    /// What a read has of a bank file that cannot be opened: nothing. If the file is gone, the
    /// block is bad.
    #[cold]
    fn without_bank(&self, key: FileKey, at: u64, run: &Run) -> usize {
        if self.within_reach(run.set, run.way) {
            self.read_block(key, at / BLOCK, &mut [0; BLOCK_BYTES]);
        }
        0
    }

    /// Says whether a frame's bank file can be read, or is known to be gone. Without a free
    /// descriptor, nothing can be said of its blocks.
    pub(super) fn within_reach(&self, set: u32, way: u32) -> bool {
        match self.banks.file(self.layout.bank(set, way), false) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Returns the first part of `start..end` that is not held, without reading any.
    pub fn first_gap(&self, key: FileKey, start: u64, end: u64) -> Option<(u64, u64)> {
        let mut gap = None;
        let mut at = start;
        while at < end {
            let block = self.layout.block(at);
            let valid = self.layout.frame(at).map_or(0, |frame| {
                self.tags.find(self.layout.set(key, frame), key, frame).map_or(0, |found| found.1)
            });
            let rest = self.layout.blocks - block;
            let (held, count) = match (valid >> block).trailing_ones() {
                0 => (false, (valid >> block).trailing_zeros().min(rest)),
                ones => (true, ones),
            };
            if held && let Some(from) = gap {
                return Some((from, at));
            }
            if !held && gap.is_none() {
                gap = Some(at);
            }
            at = (at / BLOCK).saturating_add(count.into()).saturating_mul(BLOCK);
            if at == u64::MAX {
                break;
            }
        }
        gap.map(|from| (from, end))
    }
}

/// Reads into several buffers, one after another, with as few system calls as the kernel allows.
fn read_vectored(file: &File, mut place: u64, parts: [&mut [u8]; 3]) -> io::Result<()> {
    let mut vector =
        parts.map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() });
    let mut left: usize = vector.iter().map(|part| part.iov_len).sum();
    while left > 0 {
        // SAFETY: the vector describes (the rest of) the caller's buffers, which are borrowed for
        // the call and do not overlap.
        let had =
            unsafe { libc::preadv(file.as_raw_fd(), vector.as_ptr(), 3, place as libc::off_t) };
        if had < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        if had == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut had = had as usize;
        left -= had;
        place += had as u64;
        for part in &mut vector {
            let step = part.iov_len.min(had);
            // SAFETY: inside of the buffer, or at its end.
            part.iov_base = unsafe { part.iov_base.cast::<u8>().add(step).cast() };
            part.iov_len -= step;
            had -= step;
        }
    }
    Ok(())
}
