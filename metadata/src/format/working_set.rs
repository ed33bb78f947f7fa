//! Working sets: what a boot or a resume touches first, learned from earlier ones.

mod merge;

use serde::{Deserialize, Serialize};

use super::FormatError;
use super::varint::{Reader, put, put_signed};

/// Ranges of a working set at most.
pub const WORKING_SET_RANGES_MAX: usize = 65_536;

/// The fewest bytes that a range takes in the file.
const RANGE_BYTES_MIN: usize = 3;

/// A range of a file that was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// Its first byte.
    pub offset: u64,
    /// Bytes, at least 1.
    pub length: u64,
    /// In how many runs, at least 1.
    pub seen: u32,
}

impl Touched {
    /// Returns the byte behind its last.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// What was touched in a number of runs, in the order in which it was first touched. Ranges do not
/// overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkingSet {
    /// How many runs were recorded; less once older ones count for less.
    pub runs: u32,
    /// At most [`WORKING_SET_RANGES_MAX`].
    pub ranges: Vec<Touched>,
}

impl WorkingSet {
    /// Returns how many bytes the ranges have in all.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().fold(0, |sum, range| sum.saturating_add(range.length))
    }

    /// Returns it as it may stand in the metadata of a file of `size` bytes: ranges clipped to the
    /// file; of one that overlaps earlier ones, the parts that do not; `seen` from 1 to `runs`; no
    /// more than [`WORKING_SET_RANGES_MAX`], the first.
    pub fn tidied(&self, size: u64) -> Self {
        let runs = self.runs.max(1);
        let mut taken = std::collections::BTreeMap::new();
        let mut ranges = Vec::with_capacity(self.ranges.len().min(WORKING_SET_RANGES_MAX));
        for range in &self.ranges {
            let end = range.end().min(size);
            let seen = range.seen.clamp(1, runs);
            let mut at = range.offset;
            while at < end && ranges.len() < WORKING_SET_RANGES_MAX {
                let before =
                    taken.range(..=at).next_back().map_or(0, |(_, end): (&u64, &u64)| *end);
                if before > at {
                    at = before;
                    continue;
                }
                let next = taken.range(at..).next().map_or(end, |(start, _)| end.min(*start));
                taken.insert(at, next);
                ranges.push(Touched { offset: at, length: next - at, seen });
                at = next;
            }
        }
        Self { runs, ranges }
    }

    /// Fails if it may not stand in the metadata of a file of `size` bytes.
    pub(super) fn check(&self, size: u64) -> Result<(), FormatError> {
        if self.ranges.len() > WORKING_SET_RANGES_MAX {
            return Err(FormatError::TooMany(self.ranges.len() as u64));
        }
        let mut sorted: Vec<(u64, u64)> = Vec::with_capacity(self.ranges.len());
        for Touched { offset, length, seen } in self.ranges.iter().copied() {
            let end = offset.checked_add(length).filter(|end| *end <= size && length > 0);
            let Some(end) = end else {
                return Err(FormatError::Outside { offset, length, end: size });
            };
            if seen == 0 || seen > self.runs {
                return Err(FormatError::Malformed { what: "a range seen more often than it ran" });
            }
            sorted.push((offset, end));
        }
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            Some(pair) => Err(FormatError::Overlap(pair[1].0)),
            None => Ok(()),
        }
    }

    /// Returns it as bytes; of what may not stand in the metadata of a file of `size` bytes, what
    /// [`WorkingSet::tidied`] leaves.
    pub(super) fn encode(&self, size: u64) -> Vec<u8> {
        let tidied;
        let set = match self.check(size) {
            Ok(()) => self,
            Err(_) => {
                tidied = self.tidied(size);
                &tidied
            }
        };
        let mut out = Vec::new();
        put(&mut out, set.runs.into());
        put(&mut out, set.ranges.len() as u64);
        let mut at = 0u64;
        for range in &set.ranges {
            put_signed(&mut out, range.offset.wrapping_sub(at) as i64);
            put(&mut out, range.length);
            put(&mut out, range.seen.into());
            at = range.offset.wrapping_add(range.length);
        }
        out
    }

    /// Reads what [`WorkingSet::encode`] wrote.
    pub(super) fn decode(size: u64, bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes, "working set");
        let runs = small(reader.varint()?)?;
        let count = reader.varint()?;
        if count > WORKING_SET_RANGES_MAX as u64 {
            return Err(FormatError::TooMany(count));
        }
        if count as usize > reader.left() / RANGE_BYTES_MIN {
            return Err(FormatError::Cut { what: "working set" });
        }
        let mut ranges = Vec::with_capacity(count as usize);
        let mut at = 0u64;
        for _ in 0..count {
            let offset = at.wrapping_add(reader.varint_signed()? as u64);
            let length = reader.varint()?;
            ranges.push(Touched { offset, length, seen: small(reader.varint()?)? });
            at = offset.wrapping_add(length);
        }
        reader.end()?;
        let set = Self { runs, ranges };
        set.check(size).map(|()| set)
    }
}

fn small(number: u64) -> Result<u32, FormatError> {
    u32::try_from(number).map_err(|_| FormatError::Malformed { what: "a count of absurd size" })
}
