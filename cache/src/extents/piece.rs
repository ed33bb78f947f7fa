//! One piece of written data, and how it is cut.

use std::sync::Arc;

use bytes::Bytes;
use gridvfs_vfs::{Caller, Verifier};
use tokio::time::Instant;

use super::Extents;

/// What a piece costs beside its data: its place in the map, the buffer's header and the
/// allocator's rounding. It keeps a million one-byte writes within the budget.
pub(crate) const PIECE_OVERHEAD: usize = 256;

/// How far a piece has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PieceState {
    /// To be sent.
    Dirty,
    /// In the WRITE of this number.
    Sending(u64),
    /// Answered under this verifier, in this commit epoch.
    Unstable { verifier: Verifier, epoch: u64 },
}

/// See the module's description.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub data: Bytes,
    /// The memory that it keeps alive, with [`PIECE_OVERHEAD`].
    pub charge: usize,
    pub state: PieceState,
    /// The flush generation that waits for it.
    pub generation: u64,
    /// When the oldest of it became dirty.
    pub since: Instant,
    pub caller: Arc<Caller>,
}

impl Piece {
    pub fn len(&self) -> u64 {
        self.data.len() as u64
    }

    /// Cuts it in two that share their memory: the right one is charged for what it has, the left
    /// one for the rest.
    pub fn split(mut self, at: usize) -> (Self, Self) {
        let mut right = self.clone();
        right.data = self.data.split_off(at);
        right.charge = (right.data.len() + PIECE_OVERHEAD).min(self.charge);
        self.charge = self.charge + PIECE_OVERHEAD - right.charge;
        (self, right)
    }

    /// Keeps `from..to` of it. If that is less than half of what its memory holds, it is copied, so
    /// that a few bytes do not keep a megabyte.
    fn remnant(&self, from: usize, to: usize) -> Self {
        let mut part = self.clone();
        part.data = self.data.slice(from..to);
        if part.data.len() * 2 < self.charge - PIECE_OVERHEAD.min(self.charge) {
            part.data = Bytes::copy_from_slice(&part.data);
            part.charge = part.data.len() + PIECE_OVERHEAD;
        }
        part
    }
}

/// What was cut away of dirty data: the demands on it that go over to what takes its place.
#[derive(Debug, Default)]
pub(crate) struct Carved {
    pub generation: Option<u64>,
    pub since: Option<Instant>,
}

impl Extents {
    /// Takes everything within `start..end` out of the map.
    pub(super) fn carve(&mut self, start: u64, end: u64) -> Carved {
        let mut carved = Carved::default();
        let before = self.pieces.range(..start).next_back().filter(|(at, p)| *at + p.len() > start);
        let mut keys: Vec<u64> = before.map(|(at, _)| *at).into_iter().collect();
        keys.extend(self.pieces.range(start..end.max(start)).map(|(at, _)| *at));
        for at in keys {
            let Some(piece) = self.detach(at) else { continue };
            if piece.state == PieceState::Dirty {
                let old = carved.generation.get_or_insert(piece.generation);
                *old = piece.generation.min(*old);
                let old = carved.since.get_or_insert(piece.since);
                *old = piece.since.min(*old);
            }
            self.keep_edges(at, piece, start, end);
        }
        carved
    }

    fn keep_edges(&mut self, at: u64, piece: Piece, start: u64, end: u64) {
        let piece_end = at + piece.len();
        let left = (at < start).then(|| (at, 0, (start - at) as usize));
        let right = (piece_end > end).then(|| (end, (end - at) as usize, piece.data.len()));
        if left.is_none() && right.is_none() {
            return self.drop_piece(at, piece);
        }
        // A piece that is being sent shares its memory with the call: a copy would save nothing.
        let in_call = matches!(piece.state, PieceState::Sending(_));
        self.freed += piece.charge as isize;
        let mut kept_whole = false;
        for (position, from, to) in left.into_iter().chain(right) {
            let mut part = if in_call {
                let mut part = piece.clone();
                part.data = piece.data.slice(from..to);
                part
            } else {
                piece.remnant(from, to)
            };
            let shares = part.charge == piece.charge;
            if shares && kept_whole {
                part.charge = PIECE_OVERHEAD;
            }
            kept_whole |= shares;
            self.freed -= part.charge as isize;
            self.attach(position, part);
        }
    }
}
