//! Zero maps: which blocks of a file are all zero.

use std::sync::Arc;

use super::varint::{Reader, put};
use super::{FormatError, blocks_of};

/// How a map is written, by the first byte of its part.
const AS_RUNS: u8 = 0;
const AS_BITS: u8 = 1;

/// Which blocks of a file are all zero; of the last block, the bytes up to the file's size.
///
/// A bitmap in memory, one bit a block: at most 2 MiB, and no search to answer a read. Clones share
/// it.
#[derive(Clone, PartialEq, Eq)]
pub struct ZeroMap {
    block_bytes: u32,
    size: u64,
    blocks: u64,
    zero_blocks: u64,
    words: Arc<[u64]>,
}

impl std::fmt::Debug for ZeroMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ZeroMap({} of {} × {})", self.zero_blocks, self.blocks, self.block_bytes)
    }
}

impl ZeroMap {
    /// Makes the map of a file of `size` bytes from runs (first block, blocks) of zero blocks, in
    /// any order. Fails if a run is not within the file or two overlap.
    pub fn from_runs(
        block_bytes: u32,
        size: u64,
        runs: impl IntoIterator<Item = (u64, u64)>,
    ) -> Result<Self, FormatError> {
        let blocks = blocks_of(block_bytes, size)?;
        let mut words = vec![0; blocks.div_ceil(64) as usize];
        let mut zero_blocks = 0;
        for (first, count) in runs {
            let end = first.checked_add(count).filter(|end| *end <= blocks);
            let end =
                end.ok_or(FormatError::Outside { offset: first, length: count, end: blocks })?;
            set(&mut words, first, end)?;
            zero_blocks += count;
        }
        Ok(Self { block_bytes, size, blocks, zero_blocks, words: words.into() })
    }

    /// Tells whether a block is all zero. One past the last is not.
    pub fn is_zero(&self, block: u64) -> bool {
        let word = usize::try_from(block / 64).ok().and_then(|index| self.words.get(index));
        word.is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    /// Returns the first run of bytes of equal kind that begins at byte `offset`: whether they are
    /// zero, and where the run ends, at `limit` at the latest. What is past the file's size is not
    /// zero. With `offset` not below `limit` there is no run: `(false, offset)`.
    pub fn run_at(&self, offset: u64, limit: u64) -> (bool, u64) {
        if offset >= limit {
            return (false, offset);
        }
        if offset >= self.size {
            return (false, limit);
        }
        let (zero, end) = self.run_of(offset / u64::from(self.block_bytes));
        if end < self.blocks {
            return (zero, limit.min(end * u64::from(self.block_bytes)));
        }
        (zero, if zero { limit.min(self.size) } else { limit })
    }

    /// Returns whether a block is zero, and the block that ends the run of its kind (at most the
    /// number of blocks). The block must be within the file.
    fn run_of(&self, block: u64) -> (bool, u64) {
        let zero = self.is_zero(block);
        let differs = |word: u64| if zero { !word } else { word };
        let mut index = (block / 64) as usize;
        let mut word = differs(self.words[index]) >> (block % 64) << (block % 64);
        while word == 0 && index + 1 < self.words.len() {
            index += 1;
            word = differs(self.words[index]);
        }
        let end = index as u64 * 64 + u64::from(word.trailing_zeros());
        (zero, end.min(self.blocks))
    }

    /// Returns the runs (first block, blocks) of zero blocks, ascending, as long as they can be.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < self.blocks {
                let (first, (zero, end)) = (at, self.run_of(at));
                at = end;
                if zero {
                    return Some((first, end - first));
                }
            }
            None
        })
    }

    /// Returns how many blocks are zero.
    pub fn zero_blocks(&self) -> u64 {
        self.zero_blocks
    }

    /// Returns how many blocks there are.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Returns how many bytes of the file the zero blocks are.
    pub fn zero_bytes(&self) -> u64 {
        let whole = self.zero_blocks * u64::from(self.block_bytes);
        let missing = self.blocks * u64::from(self.block_bytes) - self.size;
        if self.blocks > 0 && self.is_zero(self.blocks - 1) { whole - missing } else { whole }
    }

    /// Tells whether it is a map of a file of `size` bytes in blocks of `block_bytes`.
    pub fn fits(&self, block_bytes: u32, size: u64) -> bool {
        self.block_bytes == block_bytes && self.size == size
    }

    /// The bits, 64 blocks a word, the lowest bit first; those past the last block are 0.
    pub(super) fn words(&self) -> &[u64] {
        &self.words
    }

    /// Returns it as bytes: as runs or as bits, whichever is shorter.
    pub(super) fn encode(&self) -> Vec<u8> {
        let bits_bytes = self.blocks.div_ceil(8) as usize;
        let mut out = vec![AS_RUNS];
        let mut at = 0;
        for (first, count) in self.runs() {
            put(&mut out, first - at);
            put(&mut out, count);
            at = first + count;
            if out.len() > bits_bytes {
                break;
            }
        }
        if out.len() <= bits_bytes {
            return out;
        }
        let mut out = vec![AS_BITS];
        out.extend(self.words.iter().flat_map(|word| word.to_le_bytes()).take(bits_bytes));
        out
    }

    /// Reads what [`ZeroMap::encode`] wrote.
    pub(super) fn decode(block_bytes: u32, size: u64, bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes, "zero map");
        match reader.byte()? {
            AS_RUNS => Self::decode_runs(block_bytes, size, reader),
            AS_BITS => Self::decode_bits(block_bytes, size, reader),
            _ => Err(FormatError::Malformed { what: "a zero map of unknown form" }),
        }
    }

    fn decode_runs(block_bytes: u32, size: u64, mut reader: Reader) -> Result<Self, FormatError> {
        let mut at = 0u64;
        let mut failed = None;
        let runs = std::iter::from_fn(|| {
            if reader.left() == 0 {
                return None;
            }
            let mut next = || {
                let (gap, count) = (reader.varint()?, reader.varint()?);
                // Runs are as long as they can be, so that a map has one form.
                if count == 0 || (gap == 0 && at > 0) {
                    return Err(FormatError::Malformed { what: "an empty run of a zero map" });
                }
                let outside = FormatError::Outside { offset: at, length: gap, end: size };
                let first = at.checked_add(gap).ok_or(outside.clone())?;
                at = first.checked_add(count).ok_or(outside)?;
                Ok((first, count))
            };
            next().map_err(|error| failed = Some(error)).ok()
        });
        let map = Self::from_runs(block_bytes, size, runs)?;
        failed.map_or(Ok(map), Err)
    }

    fn decode_bits(block_bytes: u32, size: u64, mut reader: Reader) -> Result<Self, FormatError> {
        let blocks = blocks_of(block_bytes, size)?;
        let bytes = reader.take(blocks.div_ceil(8) as usize)?;
        reader.end()?;
        let word =
            |part: &[u8]| part.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let words: Arc<[u64]> = bytes.chunks(8).map(word).collect();
        let past = words.last().filter(|_| blocks % 64 > 0).map_or(0, |last| last >> (blocks % 64));
        if past != 0 {
            return Err(FormatError::Malformed { what: "zero blocks behind the last one" });
        }
        let zero_blocks = words.iter().map(|word| u64::from(word.count_ones())).sum();
        Ok(Self { block_bytes, size, blocks, zero_blocks, words })
    }
}

/// Sets the bits from `first` to `end`, none of which may be set.
fn set(words: &mut [u64], first: u64, end: u64) -> Result<(), FormatError> {
    let mut at = first;
    while at < end {
        let bit = at % 64;
        let count = (64 - bit).min(end - at);
        let mask = (u64::MAX >> (64 - count)) << bit;
        let word = &mut words[(at / 64) as usize];
        if *word & mask != 0 {
            return Err(FormatError::Overlap(
                at - bit + u64::from((*word & mask).trailing_zeros()),
            ));
        }
        *word |= mask;
        at += count;
    }
    Ok(())
}
