//! What a bulk read asks for and brings: ranges of a file, with the blocks that are all zero left
//! out ([`crate::Vfs::fetch`]).

use bytes::Bytes;

use crate::{Attr, Status};

/// The size of the blocks that are told apart as zero or data, in bytes: the page of a guest, the
/// block of a file system, and no larger than a hole.
pub const FETCH_BLOCK_BYTES: usize = 4096;
/// The most ranges of one fetch. A recorded working set has ranges of 64 KiB as a rule, of which as
/// many make up [`FETCH_BYTES_MAX`].
pub const FETCH_RANGES_MAX: usize = 64;
/// The most bytes of one fetch, all ranges together: as long as any other reply. On a channel it
/// keeps others waiting for 34 ms at 1 Gbit/s even if nothing of it can be compressed.
pub const FETCH_BYTES_MAX: usize = 4 << 20;
/// The highest level of compression: those beyond it want hundreds of MiB of memory.
pub const FETCH_LEVEL_MAX: i32 = 19;

/// What a fetch found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The file's attributes, asked for after its data was read.
    pub attr: Attr,
    /// The ranges, as they were asked for.
    pub ranges: Vec<FetchedRange>,
}

/// A range of a file. Blocks of [`FETCH_BLOCK_BYTES`] are counted from its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedRange {
    /// Where it starts in the file, in bytes.
    pub offset: u64,
    /// How many bytes of the file are in it: fewer than asked for only at the end of the file.
    pub length: u32,
    /// Bit `i` (the lowest first) is set where block `i` is all zero and not in `data`.
    pub zero: Vec<u8>,
    /// The other blocks, one behind the other. The last one of the file may be short. It is a part
    /// of one buffer that all ranges of a fetch share, and keeps that in memory.
    pub data: Bytes,
}

/// Bytes of a file that lie side by side and are all zero, or are all told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedRun {
    /// Where they start in the file.
    pub offset: u64,
    /// How many there are.
    pub length: u32,
    /// The bytes; `None` where they are zero.
    pub data: Option<Bytes>,
}

impl FetchedRange {
    /// Says whether the map is that of the range, and the data what the map says.
    pub fn is_sound(&self) -> bool {
        data_bytes(self.length, &self.zero) == Some(self.data.len())
    }

    /// Returns the range as runs of zeros and of data, in the file's order.
    pub fn runs(&self) -> impl Iterator<Item = FetchedRun> {
        let (mut block, blocks) = (0, block_count(self.length));
        let mut data = self.data.clone();
        std::iter::from_fn(move || {
            if block == blocks {
                return None;
            }
            let (first, zero) = (block, is_zero_block(&self.zero, block));
            while block < blocks && is_zero_block(&self.zero, block) == zero {
                block += 1;
            }
            let start = first * FETCH_BLOCK_BYTES;
            let length = (block * FETCH_BLOCK_BYTES).min(self.length as usize) - start;
            // A sound range has as much data as it says.
            let bytes = (!zero).then(|| data.split_to(length.min(data.len())));
            let offset = self.offset + start as u64;
            Some(FetchedRun { offset, length: length as u32, data: bytes })
        })
    }
}

/// Checks what a fetch asks for; returns how many bytes that are.
pub fn check_fetch(ranges: &[(u64, u32)], level: i32) -> Result<usize, Status> {
    let good = |&(offset, length): &(u64, u32)| {
        offset % FETCH_BLOCK_BYTES as u64 == 0
            && length > 0
            && offset.checked_add(u64::from(length)).is_some_and(|end| i64::try_from(end).is_ok())
    };
    let total = ranges.iter().fold(0usize, |sum, (_, length)| sum.saturating_add(*length as usize));
    let fits = ranges.len() <= FETCH_RANGES_MAX && total <= FETCH_BYTES_MAX;
    let known = (0..=FETCH_LEVEL_MAX).contains(&level);
    if fits && known && ranges.iter().all(good) { Ok(total) } else { Err(Status::INVAL) }
}

/// Returns how many blocks `length` bytes touch.
pub(crate) fn block_count(length: u32) -> usize {
    (length as usize).div_ceil(FETCH_BLOCK_BYTES)
}

/// Says whether the map marks a block as zero.
pub(crate) fn is_zero_block(zero: &[u8], block: usize) -> bool {
    zero.get(block / 8).is_some_and(|byte| byte & (1 << (block % 8)) != 0)
}

/// Returns how many bytes of data a range with this map has; `None` if the map is not that of a
/// range of `length` bytes.
pub(crate) fn data_bytes(length: u32, zero: &[u8]) -> Option<usize> {
    let blocks = block_count(length);
    if zero.len() != blocks.div_ceil(8)
        || (blocks..zero.len() * 8).any(|at| is_zero_block(zero, at))
    {
        return None;
    }
    let marked: usize = zero.iter().map(|byte| byte.count_ones() as usize).sum();
    let mut data = (blocks - marked) * FETCH_BLOCK_BYTES;
    let short = blocks * FETCH_BLOCK_BYTES - length as usize;
    if short > 0 && !is_zero_block(zero, blocks - 1) {
        data -= short;
    }
    Some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_told_in_runs() {
        let range = FetchedRange {
            offset: 40960,
            length: 4 * 4096 + 10,
            zero: vec![0b0_1100],
            data: vec![7; 2 * 4096 + 10].into(),
        };
        assert!(range.is_sound());
        assert!(!FetchedRange { length: range.length + 1, ..range.clone() }.is_sound());
        assert!(!FetchedRange { zero: vec![0b0_0100], ..range.clone() }.is_sound());
        assert!(!FetchedRange { zero: Vec::new(), ..range.clone() }.is_sound());
        let runs: Vec<_> = range
            .runs()
            .map(|run| (run.offset, run.length, run.data.map(|data| data.len())))
            .collect();
        assert_eq!(runs, [(40960, 8192, Some(8192)), (49152, 8192, None), (57344, 10, Some(10))],);
        let empty = FetchedRange { offset: 0, length: 0, zero: Vec::new(), data: Bytes::new() };
        assert_eq!(empty.runs().count(), 0);
    }

    #[test]
    fn a_map_must_be_that_of_its_range() {
        assert_eq!(data_bytes(4097, &[0]), Some(4097));
        assert_eq!(data_bytes(4097, &[1]), Some(1));
        assert_eq!(data_bytes(4097, &[2]), Some(4096));
        assert_eq!(data_bytes(4097, &[3]), Some(0));
        for wrong in [&[4][..], &[], &[0, 0], &[0x80]] {
            assert_eq!(data_bytes(4097, wrong), None, "{wrong:?}");
        }
        assert_eq!(data_bytes(0, &[]), Some(0));
    }

    #[test]
    fn what_is_asked_for_has_limits() {
        let whole = FETCH_BYTES_MAX as u32;
        assert_eq!(check_fetch(&[(0, whole)], 0), Ok(FETCH_BYTES_MAX));
        assert_eq!(check_fetch(&[(4096, 1); FETCH_RANGES_MAX], 19), Ok(FETCH_RANGES_MAX));
        assert_eq!(check_fetch(&[], 3), Ok(0));
        for (ranges, level) in [
            (&[(0, whole), (0, 1)][..], 3),
            (&[(0, u32::MAX), (0, u32::MAX)], 3),
            (&[(4096, 1); FETCH_RANGES_MAX + 1], 3),
            (&[(1, 4096)], 3),
            (&[(0, 0)], 3),
            (&[(u64::MAX - 4095, 4096)], 3),
            (&[(i64::MAX as u64 - 4095, 4097)], 3),
            (&[(0, 1)], 20),
            (&[(0, 1)], -1),
        ] {
            assert_eq!(check_fetch(ranges, level), Err(Status::INVAL), "{ranges:?} {level}");
        }
    }
}
