//! What is asked for: the missing parts of chunks, in whole blocks.

use super::{Arrival, SPAN_BYTES};

/// Parts this close are asked for as one: what lies between is zero, or here already, and a range
/// has its price, too.
const GAP_BYTES_MAX: u64 = 64 << 10;

impl Arrival {
    /// The ranges of chunks that are missing and not known to be zero, in whole blocks of the
    /// metadata's, so that each can be checked.
    pub(super) fn missing_of(&self, chunks: &[u64]) -> Vec<(u64, u64)> {
        let block = self.facts.block_bytes();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for chunk in chunks {
            let (start, end) = self.span_of(*chunk);
            for (from, to) in self.facts.data_runs(start, end) {
                let mut at = from;
                while let Some((gap, gap_end)) = self.disk.gap(self.version.key, at, to) {
                    let gap = (gap / block * block).max(from);
                    let gap_end = (gap_end.div_ceil(block) * block).min(to);
                    add_range(&mut ranges, gap, gap_end);
                    at = gap_end;
                    if at >= to {
                        break;
                    }
                }
            }
        }
        ranges
    }
}

/// Adds a range at the end, joined with the last one if it is close and both are not too long.
fn add_range(ranges: &mut Vec<(u64, u64)>, from: u64, to: u64) {
    match ranges.last_mut() {
        Some(last)
            if from >= last.0 && from <= last.1 + GAP_BYTES_MAX && to - last.0 <= SPAN_BYTES =>
        {
            last.1 = last.1.max(to);
        }
        _ => ranges.push((from, to)),
    }
}

/// Divides ranges into calls: at most `ranges_max` ranges and `bytes_max` bytes in each, divided
/// only at multiples of `block`.
pub(super) fn calls(
    ranges: &[(u64, u64)],
    block: u64,
    ranges_max: usize,
    bytes_max: u64,
) -> Vec<Vec<(u64, u32)>> {
    let mut calls: Vec<Vec<(u64, u32)>> = Vec::new();
    let mut bytes = 0;
    for (start, end) in ranges {
        let mut at = *start;
        while at < *end {
            let mut room = bytes_max.saturating_sub(bytes) / block * block;
            if calls.last().is_none_or(|call| call.len() == ranges_max) || room == 0 {
                calls.push(Vec::new());
                bytes = 0;
                room = bytes_max;
            }
            let length = (end - at).min(room);
            if let Some(call) = calls.last_mut() {
                call.push((at, length as u32));
            }
            bytes += length;
            at += length;
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_are_close_are_one() {
        let mut ranges = Vec::new();
        add_range(&mut ranges, 0, 4096);
        add_range(&mut ranges, 8192, 16384);
        add_range(&mut ranges, 1 << 20, (1 << 20) + 4096);
        add_range(&mut ranges, 4096, 8192);
        assert_eq!(ranges, [(0, 16384), (1 << 20, (1 << 20) + 4096), (4096, 8192)]);
    }

    #[test]
    fn calls_have_limits() {
        let found =
            calls(&[(0, 10 << 10), (20 << 10, 21 << 10), (1 << 20, 1 << 21)], 512, 2, 1 << 19);
        let half = 1u32 << 19;
        assert_eq!(
            found,
            [
                vec![(0, 10 << 10), (20 << 10, 1 << 10)],
                vec![(1 << 20, half)],
                vec![((1 << 20) + u64::from(half), half)],
            ]
        );
        assert!(calls(&[], 4096, 2, 4096).is_empty());
        let last = calls(&[(8192, 8200), (0, 8192)], 4096, 9, 8192);
        assert_eq!(last, [vec![(8192, 8), (0, 4096)], vec![(4096, 4096)]], "whole blocks only");
    }
}
