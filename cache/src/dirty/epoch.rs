//! The extents of one epoch: they never overlap.

use std::collections::BTreeMap;

use super::{Extent, Freed};
use crate::journal::Place;

/// An extent but its start.
#[derive(Clone, Copy, Debug)]
struct Held {
    len: u32,
    skip: u32,
    seq: u64,
    place: Place,
}

impl Held {
    fn at(&self, start: u64) -> Extent {
        Extent { start, len: self.len, skip: self.skip, seq: self.seq, place: self.place }
    }
}

#[derive(Debug)]
pub struct Epoch {
    pub number: u64,
    /// The sum of the extents' lengths.
    pub bytes: u64,
    /// The highest sequence number that was ever in it.
    pub newest_seq: u64,
    extents: BTreeMap<u64, Held>,
}

impl Epoch {
    pub fn new(number: u64) -> Self {
        Self { number, bytes: 0, newest_seq: 0, extents: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.extents.len()
    }

    pub fn end(&self) -> u64 {
        self.extents.last_key_value().map_or(0, |(&start, held)| held.at(start).end())
    }

    pub fn reaches_into(&self, start: u64, end: u64) -> bool {
        start < end
            && self
                .extents
                .range(..end)
                .next_back()
                .is_some_and(|(&at, held)| held.at(at).end() > start)
    }

    /// The extents within `start..end`, cut to it, in order.
    pub fn within(&self, start: u64, end: u64) -> impl Iterator<Item = Extent> {
        let first = self.extents.range(..start).next_back();
        let first = first.filter(|(at, held)| held.at(**at).end() > start);
        let rest = self.extents.range(start..end.max(start));
        first
            .into_iter()
            .chain(rest)
            .map(|(&at, held)| held.at(at))
            .filter(move |extent| extent.start < end)
            .map(move |extent| cut(&extent, start, end))
    }

    pub fn insert(&mut self, extent: Extent, freed: &mut Freed) {
        self.clear(u64::MAX, extent.start, extent.end(), freed);
        self.put(&extent);
    }

    /// Removes the parts within `start..end` of extents with sequence numbers up to `up_to_seq`.
    pub fn clear(&mut self, up_to_seq: u64, start: u64, end: u64, freed: &mut Freed) {
        if start >= end {
            return;
        }
        let before = self.extents.range(..start).next_back();
        let before = before.filter(|(at, held)| held.at(**at).end() > start);
        let mut next = before.map(|(&at, _)| at).or_else(|| self.first_from(start));
        while let Some(at) = next.filter(|&at| at < end) {
            let extent = self.extents[&at].at(at);
            if extent.seq <= up_to_seq {
                self.take(at);
                let inside = cut(&extent, start, end);
                freed.push((extent.place, u64::from(inside.len)));
                self.put(&cut(&extent, 0, start));
                self.put(&cut(&extent, end, u64::MAX));
            }
            next = self.first_from(extent.end());
        }
    }

    /// Lets what is left of `moved` be read from `place`; returns how many bytes that is.
    pub fn move_to(&mut self, moved: &Extent, place: Place, freed: &mut Freed) -> u64 {
        let left: Vec<Extent> = self
            .within(moved.start, moved.end())
            .filter(|extent| extent.seq == moved.seq && extent.place == moved.place)
            .collect();
        for extent in &left {
            self.clear(moved.seq, extent.start, extent.end(), freed);
            let skip = (extent.start - moved.start) as u32;
            self.put(&Extent { skip, place, ..*extent });
        }
        left.iter().map(|extent| u64::from(extent.len)).sum()
    }

    fn first_from(&self, start: u64) -> Option<u64> {
        self.extents.range(start..).next().map(|(&at, _)| at)
    }

    fn take(&mut self, at: u64) {
        if let Some(held) = self.extents.remove(&at) {
            self.bytes -= u64::from(held.len);
        }
    }

    fn put(&mut self, extent: &Extent) {
        if extent.len > 0 {
            let Extent { start, len, skip, seq, place } = *extent;
            self.bytes += u64::from(len);
            self.newest_seq = self.newest_seq.max(seq);
            self.extents.insert(start, Held { len, skip, seq, place });
        }
    }
}

/// Cuts an extent to `start..end`; nothing is left of one outside.
fn cut(extent: &Extent, start: u64, end: u64) -> Extent {
    let from = start.clamp(extent.start, extent.end());
    let to = end.clamp(from, extent.end());
    let skip = extent.skip + (from - extent.start) as u32;
    Extent { start: from, len: (to - from) as u32, skip, ..*extent }
}
