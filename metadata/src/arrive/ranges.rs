//! What is asked for: the missing parts of chunks, in whole blocks.

use super::{Arrival, SPAN_BYTES};

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
                    // Zeros do not travel, so what they part is one range.
                    let behind_zeros = |end| self.facts.data_runs(end, gap).next().is_none();
                    add_range(&mut ranges, gap, gap_end, behind_zeros);
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

/// Adds a range at the end, joined with the last one if nothing that travels lies between and both
/// are not too long.
fn add_range(
    ranges: &mut Vec<(u64, u64)>,
    from: u64,
    to: u64,
    nothing_since: impl Fn(u64) -> bool,
) {
    match ranges.last_mut() {
        Some(last)
            if from >= last.0
                && to - last.0 <= SPAN_BYTES
                && (from <= last.1 || nothing_since(last.1)) =>
        {
            last.1 = last.1.max(to);
        }
        _ => ranges.push((from, to)),
    }
}

/// Joins the ranges that are closest to one another until there are no more than `ranges_max`: what
/// lies between is here already and comes again, which is better than another call.
pub(super) fn join_closest(ranges: &mut Vec<(u64, u64)>, ranges_max: usize) {
    let Some(surplus) = ranges.len().checked_sub(ranges_max).filter(|surplus| *surplus > 0) else {
        return;
    };
    let gap = |pair: &[(u64, u64)]| pair[1].0.saturating_sub(pair[0].1);
    let joinable = |pair: &[(u64, u64)]| pair[1].0 >= pair[0].1 && gap(pair) <= SPAN_BYTES;
    let mut gaps: Vec<u64> = ranges.windows(2).filter(|pair| joinable(pair)).map(gap).collect();
    gaps.sort_unstable();
    let Some(widest) = gaps.get(surplus - 1).or(gaps.last()).copied() else { return };
    let all = std::mem::take(ranges);
    for range in all {
        match ranges.last_mut() {
            Some(last) if joinable(&[*last, range]) && range.0 - last.1 <= widest => {
                last.1 = range.1;
            }
            _ => ranges.push(range),
        }
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
    fn ranges_with_nothing_between_are_one() {
        let mut ranges = Vec::new();
        let zeros_from = |zeros| move |end| end >= zeros;
        add_range(&mut ranges, 0, 4096, zeros_from(4096));
        add_range(&mut ranges, 8192, 16384, zeros_from(4096));
        add_range(&mut ranges, 20480, 24576, zeros_from(20480));
        add_range(&mut ranges, 24576, 28672, zeros_from(u64::MAX));
        add_range(&mut ranges, 4096, 8192, zeros_from(0));
        add_range(&mut ranges, SPAN_BYTES, 2 * SPAN_BYTES, zeros_from(0));
        assert_eq!(
            ranges,
            [(0, 16384), (20480, 28672), (4096, 8192), (SPAN_BYTES, 2 * SPAN_BYTES)]
        );
    }

    #[test]
    fn too_many_ranges_are_joined_where_that_costs_least() {
        let all = vec![(0, 1), (9, 10), (12, 13), (20, 21), (22, 30), (5, 6)];
        for (max, joined) in [
            (6, all.clone()),
            (5, vec![(0, 1), (9, 10), (12, 13), (20, 30), (5, 6)]),
            (4, vec![(0, 1), (9, 13), (20, 30), (5, 6)]),
            (1, vec![(0, 30), (5, 6)]),
        ] {
            let mut ranges = all.clone();
            join_closest(&mut ranges, max);
            assert_eq!(ranges, joined, "{max}");
        }
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
