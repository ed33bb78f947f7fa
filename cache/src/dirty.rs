//! Which bytes of one file are written and not yet on the state server, and where in the journal
//! each of them lies.
//!
//! Extents of any byte range, kept apart by *epoch*: an fsync closes the newest one. Within an
//! epoch the newest data wins and the old gives up its place; data of an earlier epoch stays below
//! that of a later one until it has been sent, because it must reach the server first. Reads see
//! the newest.
//!
//! Memory: an extent is 40 bytes, 45 to 80 with its share of the tree's nodes. Every write makes
//! one; parts of different records are never joined, for each has its own table of checksums, and
//! parts of the same record never become neighbours again. Insertion, removal and the finding of
//! one extent are O(log n) in the file's extents; reading looks into each epoch that reaches into
//! the range, at most [`EPOCHS_MAX`].
//!
//! The module does no I/O, holds no data and knows no clock.

mod epoch;

use std::collections::VecDeque;

use crate::journal::Place;
use epoch::Epoch;

/// The most epochs that are kept apart; then later ones share the newest.
pub const EPOCHS_MAX: usize = 64;

/// Payload bytes of these places are no longer needed: to be given to
/// [`crate::journal::Journal::release`].
pub type Freed = Vec<(Place, u64)>;

/// A dirty range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its first byte in the file.
    pub start: u64,
    /// Its length in bytes.
    pub len: u32,
    /// Where in the payload of `place` it begins.
    pub skip: u32,
    /// The sequence number of its Write record.
    pub seq: u64,
    /// Where that record's payload lies.
    pub place: Place,
}

impl Extent {
    /// Returns the byte behind its last one.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(u64::from(self.len))
    }
}

/// A part of a range that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// It is dirty, cut to the range.
    Held(Extent),
    /// It is not.
    Gap {
        /// The first byte.
        start: u64,
        /// The byte behind the last one.
        end: u64,
    },
}

/// See the module's description.
#[derive(Debug, Default)]
pub struct Dirty {
    /// From the oldest to the newest; only the newest may be empty.
    epochs: VecDeque<Epoch>,
    /// The number of the newest epoch.
    number: u64,
}

impl Dirty {
    /// Makes an empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the number of the epoch that an insertion goes to: to be written into
    /// [`crate::journal::WriteHeader::epoch`].
    pub fn epoch(&self) -> u64 {
        self.number
    }

    /// Puts newly written data over what is there; `place.length` and the range's length agree.
    pub fn insert(&mut self, start: u64, len: u32, seq: u64, place: Place) -> Freed {
        self.insert_part(Extent { start, len, skip: 0, seq, place })
    }

    /// The same for a part of a record.
    pub fn insert_part(&mut self, extent: Extent) -> Freed {
        let mut freed = Freed::new();
        if extent.len > 0 {
            self.newest().insert(extent, &mut freed);
        }
        freed
    }

    /// Closes the newest epoch, if it has data.
    pub fn barrier(&mut self) {
        if self.epochs.back().is_some_and(|epoch| !epoch.is_empty()) {
            self.barrier_to(self.number + 1);
        }
    }

    /// Lets the newest epoch have at least this number, when the journal is replayed.
    pub fn barrier_to(&mut self, number: u64) {
        if number <= self.number {
            return;
        }
        let full = self.epochs.len() >= EPOCHS_MAX;
        match self.epochs.back_mut() {
            Some(epoch) if epoch.is_empty() => epoch.number = number,
            Some(_) if full => return,
            Some(_) => self.epochs.push_back(Epoch::new(number)),
            None => {}
        }
        self.number = number;
    }

    /// Calls `f` with the pieces of `start..end` in order, without a gap between them.
    pub fn overlay(&self, start: u64, end: u64, f: &mut dyn FnMut(Piece)) {
        self.overlay_below(self.epochs.len(), start, end, f);
    }

    fn overlay_below(&self, epochs: usize, start: u64, end: u64, f: &mut dyn FnMut(Piece)) {
        if start >= end {
            return;
        }
        let mut below = epochs;
        while below > 0 && !self.epochs[below - 1].reaches_into(start, end) {
            below -= 1;
        }
        let Some(index) = below.checked_sub(1) else {
            return f(Piece::Gap { start, end });
        };
        let mut at = start;
        for extent in self.epochs[index].within(start, end) {
            self.overlay_below(index, at, extent.start, f);
            at = extent.end();
            f(Piece::Held(extent));
        }
        self.overlay_below(index, at, end, f);
    }

    /// Says whether all of `start..end` is dirty.
    pub fn covers(&self, start: u64, end: u64) -> bool {
        let mut covered = true;
        self.overlay(start, end, &mut |piece| covered &= matches!(piece, Piece::Held(_)));
        covered
    }

    /// Says whether anything of `start..end` is dirty.
    #[cfg(test)]
    pub fn touches(&self, start: u64, end: u64) -> bool {
        self.epochs.iter().any(|epoch| epoch.reaches_into(start, end))
    }

    /// Returns the number of the oldest epoch that has data.
    #[cfg(test)]
    pub fn oldest_epoch(&self) -> Option<u64> {
        self.epochs.front().filter(|epoch| !epoch.is_empty()).map(|epoch| epoch.number)
    }

    /// Returns a sequence number that none of the oldest epoch's data is above; 0 if there is none.
    pub fn oldest_newest_seq(&self) -> u64 {
        self.epochs.front().map_or(0, |epoch| epoch.newest_seq)
    }

    /// Returns a sequence number that no data is above; 0 if there is none.
    pub fn newest_seq(&self) -> u64 {
        self.epochs.iter().map(|epoch| epoch.newest_seq).max().unwrap_or(0)
    }

    /// Returns the bytes of the oldest epoch.
    #[cfg(test)]
    pub fn oldest_bytes(&self) -> u64 {
        self.epochs.front().map_or(0, |epoch| epoch.bytes)
    }

    /// Returns extents of the oldest epoch from `from` on, in the file's order: at least one if
    /// there is any, and no more than `max_bytes` beyond that. An extent across `from` is cut.
    pub fn oldest(&self, from: u64, max_bytes: u64) -> Vec<Extent> {
        let mut left = max_bytes;
        let extents =
            self.epochs.front().into_iter().flat_map(|epoch| epoch.within(from, u64::MAX));
        let mut taken = Vec::new();
        for extent in extents {
            if !taken.is_empty() && u64::from(extent.len) > left {
                break;
            }
            left = left.saturating_sub(u64::from(extent.len));
            taken.push(extent);
        }
        taken
    }

    /// Says whether data of an epoch before `number` is still held.
    #[cfg(test)]
    pub fn has_before(&self, number: u64) -> bool {
        self.oldest_epoch().is_some_and(|oldest| oldest < number)
    }

    /// Removes what has been committed on the server: the parts within `start..end` of the oldest
    /// epoch's extents whose sequence number is at most `up_to_seq`. The `Sent` record that says
    /// so is to be appended first.
    pub fn clear_sent(&mut self, up_to_seq: u64, start: u64, end: u64) -> Freed {
        let mut freed = Freed::new();
        if let Some(oldest) = self.epochs.front_mut() {
            oldest.clear(up_to_seq, start, end, &mut freed);
        }
        self.drop_empty();
        freed
    }

    /// The same in all epochs: what a `Sent` record means on replay.
    pub fn clear_up_to(&mut self, up_to_seq: u64, start: u64, end: u64) -> Freed {
        let mut freed = Freed::new();
        self.epochs.iter_mut().for_each(|epoch| epoch.clear(up_to_seq, start, end, &mut freed));
        self.drop_empty();
        freed
    }

    /// Removes what lies at or behind `size`.
    pub fn truncate(&mut self, size: u64) -> Freed {
        self.clear_up_to(u64::MAX, size, u64::MAX)
    }

    /// Removes everything.
    pub fn clear(&mut self) -> Freed {
        self.clear_up_to(u64::MAX, 0, u64::MAX)
    }

    /// Returns up to `max_bytes` of extents whose data lies in this segment, oldest epoch first,
    /// each with its epoch: to be copied forward and then told to [`Self::moved`]. Looks at all
    /// extents.
    pub fn in_segment(&self, segment: u32, max_bytes: u64) -> Vec<(u64, Extent)> {
        let mut bytes = 0;
        self.epochs
            .iter()
            .flat_map(|epoch| epoch.within(0, u64::MAX).map(|extent| (epoch.number, extent)))
            .filter(|(_, extent)| extent.place.segment == segment)
            .take_while(|(_, extent)| {
                let first = bytes == 0;
                bytes += u64::from(extent.len);
                first || bytes <= max_bytes
            })
            .collect()
    }

    /// The extent's data has been appended again, as `place`: it is read from there now. What is
    /// no longer there (parts overwritten meanwhile, too) is freed at the new place.
    pub fn moved(&mut self, epoch: u64, extent: &Extent, place: Place) -> Freed {
        let mut freed = Freed::new();
        let mut kept = 0;
        if let Some(epoch) = self.epochs.iter_mut().find(|held| held.number == epoch) {
            kept = epoch.move_to(extent, place, &mut freed);
        }
        if kept < u64::from(extent.len) {
            freed.push((place, u64::from(extent.len) - kept));
        }
        freed
    }

    /// Returns the number of epochs that have data.
    pub fn epochs(&self) -> usize {
        self.epochs.iter().filter(|epoch| !epoch.is_empty()).count()
    }

    /// Returns the bytes of all extents; a range that is dirty in two epochs counts twice.
    pub fn bytes(&self) -> u64 {
        self.epochs.iter().map(|epoch| epoch.bytes).sum()
    }

    /// Returns the number of extents.
    #[cfg(test)]
    pub fn extents(&self) -> usize {
        self.epochs.iter().map(Epoch::len).sum()
    }

    /// Returns the byte behind the last dirty one, 0 if there is none.
    pub fn end(&self) -> u64 {
        self.epochs.iter().map(Epoch::end).max().unwrap_or(0)
    }

    /// Says whether nothing is dirty.
    pub fn is_empty(&self) -> bool {
        self.epochs.iter().all(Epoch::is_empty)
    }

    fn newest(&mut self) -> &mut Epoch {
        if self.epochs.is_empty() {
            self.epochs.push_back(Epoch::new(self.number));
        }
        let last = self.epochs.len() - 1;
        &mut self.epochs[last]
    }

    /// Keeps only epochs that have data, and the newest.
    fn drop_empty(&mut self) {
        let newest = self.number;
        self.epochs.retain(|epoch| !epoch.is_empty() || epoch.number == newest);
    }
}

#[cfg(test)]
mod tests;
