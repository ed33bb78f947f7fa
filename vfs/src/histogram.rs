//! How long things took: counts in buckets that grow with the time, four to an octave, so that a
//! percentile is right to a fifth. Recording is two atomic additions, without a lock.
//!
//! 106 buckets: one up to 1 µs (1024 ns), 104 up to 68.7 s, and one for what is longer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Up to 2^10 ns all is one bucket.
const FIRST_OCTAVE: u32 = 10;
/// From 2^36 ns on, likewise.
const LAST_OCTAVE: u32 = 36;
/// How many buckets there are.
const BUCKETS: usize = (LAST_OCTAVE - FIRST_OCTAVE) as usize * 4 + 2;

/// Counts of durations.
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
    total_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; BUCKETS], total_ns: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Counts one.
    pub fn record(&self, took: Duration) {
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(took_ns)].fetch_add(1, Ordering::Relaxed);
        self.total_ns.fetch_add(took_ns, Ordering::Relaxed);
    }

    /// Returns what was counted so far.
    pub fn snapshot(&self) -> Durations {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        Durations { counts, total_ns: self.total_ns.load(Ordering::Relaxed) }
    }
}

fn bucket(took_ns: u64) -> usize {
    if took_ns < 1 << FIRST_OCTAVE {
        return 0;
    }
    let octave = 63 - took_ns.leading_zeros();
    let quarter = (took_ns >> (octave - 2)) as usize & 3;
    (1 + (octave - FIRST_OCTAVE) as usize * 4 + quarter).min(BUCKETS - 1)
}

/// The longest time of a bucket, in nanoseconds; `None` of the last, which has no end.
fn longest_ns(bucket: usize) -> Option<u64> {
    match bucket {
        0 => Some(1 << FIRST_OCTAVE),
        bucket if bucket + 1 >= BUCKETS => None,
        bucket => {
            let (octave, quarter) = ((bucket - 1) / 4, (bucket - 1) % 4);
            Some((5 + quarter as u64) << (octave + FIRST_OCTAVE as usize - 2))
        }
    }
}

/// What a [`Histogram`] has counted up to some moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    counts: Vec<u64>,
    total_ns: u64,
}

impl Durations {
    /// Adds what another has counted.
    pub fn add(&mut self, other: &Self) {
        self.counts.resize(self.counts.len().max(other.counts.len()), 0);
        self.counts.iter_mut().zip(&other.counts).for_each(|(own, other)| *own += other);
        self.total_ns += other.total_ns;
    }

    /// Returns how many were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns how long all took together.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.total_ns)
    }

    /// Returns the longest time of each bucket that is not empty, and how many are in it; `None` for
    /// more than a minute.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> + '_ {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(index, count)| (longest_ns(index).map(Duration::from_nanos), *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_they_say() {
        let mut before = 0;
        for index in 0..BUCKETS - 1 {
            let longest = longest_ns(index).expect("not the last");
            assert_eq!(bucket(longest - 1), index);
            assert_eq!(bucket(longest), index + 1);
            // Right to a quarter from the second octave on.
            assert!(index < 5 || longest - before <= before / 4, "{index}: {before}, {longest}");
            before = longest;
        }
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(before, 1 << LAST_OCTAVE);
    }

    #[test]
    fn counts_and_totals_add_up() {
        let histogram = Histogram::default();
        for millis in [1, 1, 30, 100_000] {
            histogram.record(Duration::from_millis(millis));
        }
        let mut durations = histogram.snapshot();
        assert_eq!(durations.count(), 4);
        assert_eq!(durations.total(), Duration::from_millis(100_032));
        let buckets: Vec<_> = durations.buckets().collect();
        assert_eq!(buckets.len(), 3);
        assert!(buckets[0].0.is_some_and(|up_to| up_to.as_micros() == 1048), "{buckets:?}");
        assert_eq!((buckets[0].1, buckets[2]), (2, (None, 1)));
        let mut sum = Durations::default();
        sum.add(&durations);
        sum.add(&durations);
        durations.add(&sum);
        assert_eq!(durations.count(), 12);
    }
}
