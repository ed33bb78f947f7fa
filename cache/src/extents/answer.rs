//! What the answers to WRITE and COMMIT make of the pieces.

use gridvfs_vfs::Verifier;
use tokio::time::Instant;

use super::{Extents, Piece, PieceState};

/// How a WRITE ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    /// The server took `count` bytes. `stable`: they need no COMMIT.
    Taken { count: u64, stable: bool, verifier: Verifier, epoch: u64 },
    /// The server did not answer: the data is to be sent again.
    Unanswered,
    /// The server refused for good: the data is dropped.
    Refused,
}

/// Ranges that are no longer held, for whoever keeps other copies of them.
pub(crate) type Released = Vec<(u64, u64)>;

fn push(released: &mut Released, start: u64, end: u64) {
    match released.last_mut() {
        Some(last) if last.1 == start => last.1 = end,
        _ => released.push((start, end)),
    }
}

impl Extents {
    /// Ends the WRITE `id` at `offset`.
    pub fn answered(&mut self, offset: u64, id: u64, outcome: Outcome) -> Released {
        let mut released = Released::new();
        let ours = self.sends.get(&offset).is_some_and(|call| call.id == id);
        let Some(call) = ours.then(|| self.sends.remove(&offset)).flatten() else {
            return released;
        };
        self.freed += call.kept_charge as isize;
        let mut oldest_generation: Option<u64> = None;
        let in_call: Vec<u64> = self.pieces.range(offset..call.end).map(|(at, _)| *at).collect();
        for at in &in_call {
            let mine = |piece: &Piece| piece.state == PieceState::Sending(id);
            if !self.pieces.get(at).is_some_and(mine) {
                continue;
            }
            let Some(piece) = self.detach(*at) else { continue };
            oldest_generation =
                Some(oldest_generation.map_or(piece.generation, |old| old.min(piece.generation)));
            self.settle(*at, piece, offset, outcome, &mut released);
        }
        if matches!(outcome, Outcome::Unanswered) {
            let before = self.pieces.range(..offset).next_back();
            let across = before.filter(|(at, piece)| *at + piece.len() > offset).map(|(at, _)| *at);
            let mut keys: Vec<u64> = across.into_iter().collect();
            keys.extend(in_call);
            self.inherit(&keys, oldest_generation);
        }
        released
    }

    fn settle(
        &mut self,
        at: u64,
        mut piece: Piece,
        offset: u64,
        outcome: Outcome,
        released: &mut Released,
    ) {
        let end = at + piece.len();
        match outcome {
            Outcome::Refused => {
                push(released, at, end);
                self.freed += piece.charge as isize;
            }
            Outcome::Unanswered => {
                piece.state = PieceState::Dirty;
                self.attach(at, piece);
            }
            Outcome::Taken { count, .. } if offset + count <= at => {
                piece.state = PieceState::Dirty;
                self.attach(at, piece);
            }
            Outcome::Taken { count, .. } if offset + count < end => {
                let (left, right) = piece.split((offset + count - at) as usize);
                let middle = at + left.len();
                self.freed -= super::PIECE_OVERHEAD as isize;
                self.settle(at, left, offset, outcome, released);
                self.settle(middle, right, offset, outcome, released);
            }
            Outcome::Taken { stable: true, .. } => {
                push(released, at, end);
                self.freed += piece.charge as isize;
            }
            Outcome::Taken { verifier, epoch, .. } => {
                piece.state = PieceState::Unstable { verifier, epoch };
                self.attach(at, piece);
            }
        }
    }

    /// Dirty data over a call that failed takes on the demands on it: whoever waits for the old
    /// data waits for what replaced it.
    fn inherit(&mut self, keys: &[u64], generation: Option<u64>) {
        let Some(generation) = generation else { return };
        for at in keys {
            let newer =
                |piece: &Piece| piece.state == PieceState::Dirty && piece.generation > generation;
            if self.pieces.get(at).is_some_and(newer)
                && let Some(mut piece) = self.detach(*at)
            {
                piece.generation = generation;
                self.attach(*at, piece);
            }
        }
    }

    /// Ends a COMMIT of everything answered up to `epoch`: what came under its verifier is let go,
    /// the rest was lost by the server and is dirty again. Returns what was let go, and how many
    /// bytes were lost.
    pub fn committed(&mut self, epoch: u64, verifier: Verifier, now: Instant) -> (Released, u64) {
        let (mut released, mut lost) = (Released::new(), 0);
        for (at, old) in self.unstable_up_to(epoch) {
            let Some(mut piece) = self.detach(at) else { continue };
            if old == verifier {
                push(&mut released, at, at + piece.len());
                self.freed += piece.charge as isize;
            } else {
                lost += piece.len();
                piece.state = PieceState::Dirty;
                piece.since = now;
                self.attach(at, piece);
            }
        }
        (released, lost)
    }

    /// Drops everything answered up to `epoch`, because the server cannot commit it.
    pub fn commit_refused(&mut self, epoch: u64) -> Released {
        let mut released = Released::new();
        for (at, _) in self.unstable_up_to(epoch) {
            if let Some(piece) = self.detach(at) {
                push(&mut released, at, at + piece.len());
                self.freed += piece.charge as isize;
            }
        }
        released
    }

    fn unstable_up_to(&self, last: u64) -> Vec<(u64, Verifier)> {
        let unstable = |(at, piece): (&u64, &Piece)| match piece.state {
            PieceState::Unstable { verifier, epoch } if epoch <= last => Some((*at, verifier)),
            _ => None,
        };
        self.pieces.iter().filter_map(unstable).collect()
    }
}

impl Extents {
    /// Drops answered data within a range that the server has zeroed since.
    pub fn drop_unstable(&mut self, start: u64, end: u64) {
        self.split(start);
        self.split(end);
        let unstable = |piece: &Piece| matches!(piece.state, PieceState::Unstable { .. });
        let within = self.pieces.range(start..end.max(start));
        let keys: Vec<u64> = within.filter(|(_, p)| unstable(p)).map(|(at, _)| *at).collect();
        for at in keys {
            if let Some(piece) = self.detach(at) {
                self.freed += piece.charge as isize;
            }
        }
    }
}
