//! What is known of a version, and in which order it is wanted.

use gridvfs_vfs::{Attr, Time};

use super::HashList;
use crate::format::{Action, Metadata, WorkingSet, ZeroMap};
use crate::layer::Told;

/// Where nothing else says how large a block is, in bytes.
const BLOCK_BYTES: u64 = 4096;
/// At most so much of a working set is fetched ahead, in bytes.
const WORKING_SET_BYTES_MAX: u64 = 4 << 30;

/// What is known of a version of a file.
pub struct Facts {
    size: u64,
    /// As the server told it when the metadata was found to be current.
    mtime: Time,
    metadata: Option<Metadata>,
    hashes: Option<HashList>,
}

impl Facts {
    pub fn new(attr: &Attr, told: Option<Told>) -> Self {
        let (metadata, hashes) = match told {
            Some(Told { metadata, hashes }) => (Some(metadata), hashes),
            None => (None, None),
        };
        Self { size: attr.size, mtime: attr.mtime, metadata, hashes }
    }

    /// Says whether attributes that came with data are of this version.
    pub fn is_of(&self, attr: &Attr) -> bool {
        attr.size == self.size && attr.mtime == self.mtime
    }

    pub fn zero(&self) -> Option<&ZeroMap> {
        self.metadata.as_ref()?.zero.as_ref()
    }

    pub fn hashes(&self) -> Option<&HashList> {
        self.hashes.as_ref()
    }

    pub fn block_bytes(&self) -> u64 {
        self.metadata.as_ref().map_or(BLOCK_BYTES, |metadata| metadata.block_bytes.into())
    }

    pub fn actions(&self) -> &[Action] {
        self.metadata.as_ref().map_or(&[], |metadata| &metadata.actions)
    }

    /// Bytes that are not known to be zero.
    pub fn data_bytes(&self) -> u64 {
        self.size - self.zero().map_or(0, ZeroMap::zero_bytes).min(self.size)
    }

    /// The parts of a range that are not known to be zero.
    pub fn data_runs(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.runs(start, end).filter(|(is_zero, _, _)| !is_zero).map(|(_, from, to)| (from, to))
    }

    /// The parts of a range, zero or not.
    pub fn runs(&self, start: u64, end: u64) -> impl Iterator<Item = (bool, u64, u64)> + '_ {
        let mut at = start;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (is_zero, until) = match self.zero() {
                Some(zero) => zero.run_at(at, end),
                None => (false, end),
            };
            let run = (is_zero, at, until);
            at = until.max(at + 1);
            Some(run)
        })
    }
}

/// What is fetched ahead of need, in which order.
pub struct Order {
    /// Offset and end, as first touched.
    pub ranges: Vec<(u64, u64)>,
    /// The ranges are what sessions here have touched, not what somebody has said: they are fetched
    /// as far as this session proves that it touches the same.
    pub on_trial: bool,
    /// How the whole file is brought: the first that works.
    pub actions: Vec<Action>,
}

impl Order {
    pub fn new(facts: &Facts, profile: Option<&WorkingSet>) -> Self {
        let known = facts.metadata.as_ref().and_then(|metadata| metadata.working_set.as_ref());
        let set = known.filter(|set| !set.ranges.is_empty()).or(profile);
        let mut left = WORKING_SET_BYTES_MAX;
        let ranges = set.map_or(&[][..], |set| &set.ranges).iter().map_while(|range| {
            let end = range.offset.saturating_add(range.length).min(facts.size);
            left = left.checked_sub(range.length)?;
            Some((range.offset.min(end), end))
        });
        Self {
            ranges: ranges.collect(),
            on_trial: known.is_none(),
            actions: facts.actions().to_vec(),
        }
    }

    /// There is nothing to fetch ahead.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.actions.is_empty()
    }
}
