//! Which dirty data goes out next, and as what WRITE.

use std::ops::Bound;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use gridvfs_vfs::Caller;
use tokio::time::Instant;

use super::{Extents, InFlight, PIECE_OVERHEAD, Piece, PieceState};

/// A WRITE to make.
#[derive(Debug)]
pub(crate) struct Job {
    pub id: u64,
    pub offset: u64,
    pub data: Bytes,
    pub caller: Arc<Caller>,
}

/// What may be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Urgency {
    /// Whole chunks, and what became dirty at or before this.
    DirtySince(Option<Instant>),
    /// Everything.
    All,
}

impl Extents {
    /// Says whether [`Extents::next_job`] has something to send.
    pub fn has_job(&self, urgency: Urgency, limit: u64) -> bool {
        self.find_run(urgency, limit).is_some()
    }

    /// Takes the next run of dirty pieces below `limit` into a WRITE. Pieces over a range that is
    /// being sent are passed over until that call is answered.
    pub fn next_job(&mut self, urgency: Urgency, limit: u64) -> Option<Job> {
        let keys = self.find_run(urgency, limit)?;
        let offset = *keys.first()?;
        let run: Vec<Piece> = keys.iter().filter_map(|at| self.detach(*at)).collect();
        let charged: usize = run.iter().map(|piece| piece.charge).sum();
        let id = self.next_id;
        self.next_id += 1;
        let mut whole = gather(run)?;
        whole.state = PieceState::Sending(id);
        self.freed += charged as isize - whole.charge as isize;
        let end = offset + whole.len();
        self.cursor = end / self.chunk_bytes;
        self.sends.insert(offset, InFlight { id, end, kept_charge: 0 });
        let job = Job { id, offset, data: whole.data.clone(), caller: whole.caller.clone() };
        self.attach(offset, whole);
        Some(job)
    }

    /// Says whether all that is held is one dirty run of at most `bytes_max`, as one WRITE takes.
    pub fn is_one_job(&self, bytes_max: u64) -> bool {
        let small = self.unsent_bytes > 0 && self.unsent_bytes <= bytes_max;
        if !small || !self.sends.is_empty() || self.unstable_bytes > 0 || self.chunks.len() != 1 {
            return false;
        }
        self.find_run(Urgency::All, u64::MAX).is_some_and(|run| run.len() == self.pieces.len())
    }

    fn find_run(&self, urgency: Urgency, limit: u64) -> Option<Vec<u64>> {
        // A full chunk that can only be sent in part waits for the rest, until it is due.
        let is_whole = |run: &Vec<u64>| {
            let bytes: u64 = run.iter().filter_map(|at| self.pieces.get(at)).map(Piece::len).sum();
            bytes == self.chunk_bytes
        };
        let of_full =
            self.full.iter().find_map(|index| self.run_in(*index, limit).filter(is_whole));
        if of_full.is_some() {
            return of_full;
        }
        // As an elevator does: goes on where the last one was taken, then from the start.
        let ahead = self.chunks.range((Bound::Included(self.cursor), Bound::Unbounded));
        let behind = self.chunks.range((Bound::Unbounded, Bound::Excluded(self.cursor)));
        let due = |since: Instant| match urgency {
            Urgency::All => true,
            Urgency::DirtySince(when) => when.is_some_and(|when| since <= when),
        };
        ahead
            .chain(behind)
            .filter(|(_, chunk)| due(chunk.since))
            .find_map(|(index, _)| self.run_in(*index, limit))
    }

    /// Returns the first run of dirty pieces in a chunk that may be sent now.
    fn run_in(&self, index: u64, limit: u64) -> Option<Vec<u64>> {
        let start = index * self.chunk_bytes;
        let end = (start + self.chunk_bytes).min(limit);
        let mut run: Vec<u64> = Vec::new();
        let mut last: Option<(u64, &Piece)> = None;
        for (&at, piece) in self.pieces.range(start..end.max(start)) {
            let ready = piece.state == PieceState::Dirty && !self.in_flight(at, at + piece.len());
            let joins = last.is_none_or(|(last_end, last_piece)| {
                last_end == at && last_piece.caller == piece.caller
            });
            if ready && joins {
                run.push(at);
                last = Some((at + piece.len(), piece));
            } else if !run.is_empty() {
                break;
            }
        }
        (!run.is_empty()).then_some(run)
    }

    fn in_flight(&self, start: u64, end: u64) -> bool {
        self.sends.range(..end).next_back().is_some_and(|(_, call)| call.end > start)
    }
}

/// Makes one piece of a run of adjacent ones.
fn gather(run: Vec<Piece>) -> Option<Piece> {
    let generation = run.iter().map(|piece| piece.generation).min()?;
    let since = run.iter().map(|piece| piece.since).min()?;
    let length: usize = run.iter().map(|piece| piece.data.len()).sum();
    let alone = run.len() == 1;
    let mut first = run.first()?.clone();
    if !alone {
        let mut whole = BytesMut::with_capacity(length);
        run.iter().for_each(|piece| whole.extend_from_slice(&piece.data));
        first.data = whole.freeze();
        first.charge = length + PIECE_OVERHEAD;
    }
    Some(Piece { generation, since, ..first })
}
