//! The written data of one file that the server has not yet confirmed.
//!
//! A map of pieces that never overlap (the newest data wins) and never cross a chunk boundary. A
//! piece is *dirty* (to be sent), *sending* (a WRITE is on its way) or *unstable* (answered, but
//! not yet covered by a COMMIT). No two WRITEs that overlap are ever on their way together, so the
//! wire cannot reorder them: a dirty piece over a range that is being sent waits for the answer.
//!
//! Memory: each piece is charged for the allocation that it keeps alive and for its own overhead.
//! What is no longer charged gathers in [`Extents::take_freed`] for the owner to give back. The
//! module does no I/O and knows no clock.

mod answer;
mod piece;
mod sending;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use gridvfs_vfs::Caller;
use tokio::time::Instant;

pub(crate) use answer::Outcome;
pub(crate) use piece::{PIECE_OVERHEAD, Piece, PieceState};
pub(crate) use sending::{Job, Urgency};

/// The dirty part of one chunk.
#[derive(Debug)]
struct Chunk {
    dirty_bytes: u64,
    since: Instant,
}

/// A WRITE on its way.
#[derive(Debug)]
struct InFlight {
    id: u64,
    end: u64,
    /// The charge of pieces that were overwritten meanwhile: the call still holds their memory.
    kept_charge: usize,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Extents {
    chunk_bytes: u64,
    pieces: BTreeMap<u64, Piece>,
    chunks: BTreeMap<u64, Chunk>,
    full: BTreeSet<u64>,
    /// Dirty and sending pieces by flush generation.
    pending: BTreeMap<u64, usize>,
    sends: BTreeMap<u64, InFlight>,
    next_id: u64,
    cursor: u64,
    unsent_bytes: u64,
    unstable_bytes: u64,
    freed: isize,
}

impl Extents {
    pub fn new(chunk_bytes: usize) -> Self {
        Self {
            chunk_bytes: chunk_bytes.max(1) as u64,
            pieces: BTreeMap::new(),
            chunks: BTreeMap::new(),
            full: BTreeSet::new(),
            pending: BTreeMap::new(),
            sends: BTreeMap::new(),
            next_id: 0,
            cursor: 0,
            unsent_bytes: 0,
            unstable_bytes: 0,
            freed: 0,
        }
    }

    /// Returns what to charge for writing `length` bytes at `offset`.
    pub fn charge(chunk_bytes: usize, offset: u64, length: usize) -> usize {
        let chunk = chunk_bytes.max(1) as u64;
        let last = offset.saturating_add((length as u64).saturating_sub(1));
        let pieces = (last / chunk - offset / chunk + 1) as usize;
        length + pieces * PIECE_OVERHEAD
    }

    /// Puts newly written data over what is there.
    pub fn insert(
        &mut self,
        offset: u64,
        mut data: Bytes,
        caller: &Arc<Caller>,
        generation: u64,
        now: Instant,
    ) {
        let end = offset + data.len() as u64;
        let carved = self.carve(offset, end);
        // Who waits for the old data to be sent is served by the new data in its place.
        let generation = carved.generation.map_or(generation, |old| old.min(generation));
        let since = carved.since.map_or(now, |old| old.min(now));
        let mut at = offset;
        while at < end {
            let boundary = (at / self.chunk_bytes + 1) * self.chunk_bytes;
            let part = data.split_to((boundary.min(end) - at) as usize);
            let next = at + part.len() as u64;
            let charge = part.len() + PIECE_OVERHEAD;
            let caller = caller.clone();
            let state = PieceState::Dirty;
            self.attach(at, Piece { data: part, charge, state, generation, since, caller });
            at = next;
        }
    }

    /// Returns the held data within `start..end`, in order.
    pub fn covering(&self, start: u64, end: u64) -> Vec<(u64, Bytes)> {
        let first = self.pieces.range(..start).next_back().filter(|(at, p)| *at + p.len() > start);
        first
            .into_iter()
            .chain(self.pieces.range(start..end.max(start)))
            .map(|(&at, piece)| {
                let from = start.saturating_sub(at);
                let to = (end - at).min(piece.len());
                (at + from, piece.data.slice(from as usize..to as usize))
            })
            .collect()
    }

    /// Says whether anything is held within `start..end`.
    pub fn touches(&self, start: u64, end: u64) -> bool {
        self.pieces.range(..end).next_back().is_some_and(|(at, piece)| at + piece.len() > start)
    }

    /// Returns the end of the last held piece, 0 if there is none.
    pub fn end(&self) -> u64 {
        self.pieces.last_key_value().map_or(0, |(at, piece)| at + piece.len())
    }

    /// Returns the end of the last piece that the server has answered, 0 if there is none.
    pub fn unstable_end(&self) -> u64 {
        if self.unstable_bytes == 0 {
            return 0;
        }
        let unstable = |piece: &Piece| matches!(piece.state, PieceState::Unstable { .. });
        let last = self.pieces.iter().rev().find(|(_, piece)| unstable(piece));
        last.map_or(0, |(at, piece)| at + piece.len())
    }

    /// Cuts off what lies at or behind `size`.
    pub fn truncate(&mut self, size: u64) {
        let end = self.end();
        if size < end {
            self.carve(size, end);
        }
    }

    /// Splits the piece that lies across `at`, so that its halves can be treated apart.
    pub fn split(&mut self, at: u64) {
        let Some((&start, piece)) = self.pieces.range(..at).next_back() else { return };
        if start + piece.len() <= at || matches!(piece.state, PieceState::Sending(_)) {
            return;
        }
        if let Some(piece) = self.detach(start) {
            let (left, right) = piece.split((at - start) as usize);
            self.freed -= PIECE_OVERHEAD as isize;
            self.attach(start, left);
            self.attach(at, right);
        }
    }

    /// The bytes of dirty and sending pieces.
    pub fn unsent_bytes(&self) -> u64 {
        self.unsent_bytes
    }

    /// The bytes of unstable pieces.
    pub fn unstable_bytes(&self) -> u64 {
        self.unstable_bytes
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.sends.is_empty()
    }

    /// Returns the oldest generation with something unsent.
    pub fn oldest_pending(&self) -> Option<u64> {
        self.pending.first_key_value().map(|(generation, _)| *generation)
    }

    /// Says whether WRITEs are on their way.
    pub fn is_sending(&self) -> bool {
        !self.sends.is_empty()
    }

    /// Says whether something below `limit` is still to be sent or anything is on its way.
    pub fn is_draining(&self, limit: u64) -> bool {
        let unsent = |piece: &Piece| !matches!(piece.state, PieceState::Unstable { .. });
        !self.sends.is_empty()
            || (self.unsent_bytes > 0 && self.pieces.range(..limit).any(|(_, piece)| unsent(piece)))
    }

    /// Returns when the oldest dirty data was written.
    pub fn oldest_dirty(&self) -> Option<Instant> {
        self.chunks.values().map(|chunk| chunk.since).min()
    }

    /// Says whether there is a whole dirty chunk.
    pub fn has_full_chunk(&self) -> bool {
        !self.full.is_empty()
    }

    /// Returns what is no longer charged since the last call (negative: charged in addition).
    pub fn take_freed(&mut self) -> isize {
        std::mem::take(&mut self.freed)
    }

    fn attach(&mut self, at: u64, piece: Piece) {
        let length = piece.len();
        match piece.state {
            PieceState::Unstable { .. } => self.unstable_bytes += length,
            PieceState::Dirty | PieceState::Sending(_) => {
                self.unsent_bytes += length;
                *self.pending.entry(piece.generation).or_insert(0) += 1;
            }
        }
        if matches!(piece.state, PieceState::Dirty) {
            let index = at / self.chunk_bytes;
            let fresh = Chunk { dirty_bytes: 0, since: piece.since };
            let chunk = self.chunks.entry(index).or_insert(fresh);
            chunk.dirty_bytes += length;
            chunk.since = chunk.since.min(piece.since);
            if chunk.dirty_bytes == self.chunk_bytes {
                self.full.insert(index);
            }
        }
        self.pieces.insert(at, piece);
    }

    fn detach(&mut self, at: u64) -> Option<Piece> {
        let piece = self.pieces.remove(&at)?;
        let length = piece.len();
        match piece.state {
            PieceState::Unstable { .. } => self.unstable_bytes -= length,
            PieceState::Dirty | PieceState::Sending(_) => {
                self.unsent_bytes -= length;
                if let Some(count) = self.pending.get_mut(&piece.generation) {
                    *count -= 1;
                    if *count == 0 {
                        self.pending.remove(&piece.generation);
                    }
                }
            }
        }
        if matches!(piece.state, PieceState::Dirty) {
            let index = at / self.chunk_bytes;
            self.full.remove(&index);
            if let Some(chunk) = self.chunks.get_mut(&index) {
                chunk.dirty_bytes -= length;
                if chunk.dirty_bytes == 0 {
                    self.chunks.remove(&index);
                }
            }
        }
        Some(piece)
    }

    /// Gives a piece's memory up.
    fn drop_piece(&mut self, at: u64, piece: Piece) {
        if let PieceState::Sending(id) = piece.state {
            let call = self.sends.range_mut(..=at).next_back().map(|(_, call)| call);
            if let Some(call) = call.filter(|call| call.id == id) {
                call.kept_charge += piece.charge;
                return;
            }
        }
        self.freed += piece.charge as isize;
    }
}

#[cfg(test)]
mod tests;
