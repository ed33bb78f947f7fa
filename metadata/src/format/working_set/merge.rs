//! How the working set of one more run changes what is known.
//!
//! - A range that was touched again is fetched when the newer run wanted it; one that was not keeps
//!   its place among the others (a share of the way through its own run).
//! - What is seldom touched comes behind everything else, and goes first when there are too many.
//! - Old runs count for less: at [`RUNS_MAX`] all counts are halved, and what was seen once is
//!   dropped. So a change of behaviour is learned, and the set does not grow without end.

use super::{Touched, WORKING_SET_RANGES_MAX, WorkingSet};

/// At so many runs older ones begin to count for less.
const RUNS_MAX: u32 = 32;
/// A range is seldom touched if it was seen in fewer than one of so many runs.
const SELDOM: u32 = 4;

/// A part of the file that has one place in each order.
struct Piece {
    offset: u64,
    end: u64,
    seen: u32,
    /// How far through the run it was first touched: 0 to 2^32.
    place: u64,
}

impl WorkingSet {
    /// Adds what was touched in newer runs.
    pub fn merge(&mut self, newer: &WorkingSet) {
        let (old, new) = (self.tidied(u64::MAX), newer.tidied(u64::MAX));
        let old_runs = if self.ranges.is_empty() { self.runs } else { old.runs };
        let new_runs = if newer.ranges.is_empty() { newer.runs } else { new.runs };
        let mut pieces = split(&old.ranges, &new.ranges);
        let mut runs = old_runs.saturating_add(new_runs);
        while runs > RUNS_MAX {
            runs /= 2;
            for piece in &mut pieces {
                piece.seen /= 2;
            }
        }
        pieces.retain(|piece| piece.seen > 0);
        let seldom = |piece: &Piece| u64::from(piece.seen) * u64::from(SELDOM) < u64::from(runs);
        pieces.sort_by_key(|piece| (seldom(piece), piece.place, piece.offset));
        let mut ranges = joined(&pieces);
        keep_most_seen(&mut ranges);
        *self = Self { runs, ranges };
    }
}

/// Splits two sets of ranges, none of which overlap within their set, where they differ.
fn split(old: &[Touched], new: &[Touched]) -> Vec<Piece> {
    let (old, new) = (placed(old), placed(new));
    let mut pieces = Vec::with_capacity(old.len() + new.len());
    let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
    loop {
        let (a, b) = (old.peek_mut(), new.peek_mut());
        let piece = match (a, b) {
            (None, None) => return pieces,
            (Some(a), None) => cut(a, u64::MAX),
            (None, Some(b)) => cut(b, u64::MAX),
            (Some(a), Some(b)) if a.offset < b.offset => cut(a, b.offset),
            (Some(a), Some(b)) if b.offset < a.offset => cut(b, a.offset),
            (Some(a), Some(b)) => {
                let end = a.end.min(b.end);
                let (was, is) = (cut(a, end), cut(b, end));
                Piece { seen: was.seen.saturating_add(is.seen), ..is }
            }
        };
        pieces.push(piece);
        old.next_if(|rest| rest.offset == rest.end);
        new.next_if(|rest| rest.offset == rest.end);
    }
}

/// Cuts off what lies before `end`.
fn cut(rest: &mut Piece, end: u64) -> Piece {
    let (offset, end) = (rest.offset, end.min(rest.end));
    rest.offset = end;
    Piece { offset, end, seen: rest.seen, place: rest.place }
}

/// Notes where in their order ranges are, and sorts them by where they lie.
fn placed(ranges: &[Touched]) -> Vec<Piece> {
    let count = ranges.len() as u64;
    let place = |index: usize| ((index as u64) << 32) / count;
    let piece = |(index, range): (usize, &Touched)| Piece {
        offset: range.offset,
        end: range.end(),
        seen: range.seen,
        place: place(index),
    };
    let mut pieces: Vec<Piece> = ranges.iter().enumerate().map(piece).collect();
    pieces.sort_unstable_by_key(|piece| piece.offset);
    pieces
}

/// Joins pieces that follow one another in the order and in the file, and were seen as often.
fn joined(pieces: &[Piece]) -> Vec<Touched> {
    let mut ranges: Vec<Touched> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let length = piece.end - piece.offset;
        match ranges.last_mut() {
            Some(last) if last.end() == piece.offset && last.seen == piece.seen => {
                last.length += length;
            }
            _ => ranges.push(Touched { offset: piece.offset, length, seen: piece.seen }),
        }
    }
    ranges
}

/// Drops what was seen least, and of that what comes last, until few enough are left.
fn keep_most_seen(ranges: &mut Vec<Touched>) {
    if ranges.len() <= WORKING_SET_RANGES_MAX {
        return;
    }
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    order.sort_by_key(|index| (std::cmp::Reverse(ranges[*index].seen), *index));
    order.truncate(WORKING_SET_RANGES_MAX);
    order.sort_unstable();
    *ranges = order.into_iter().map(|index| ranges[index]).collect();
}
