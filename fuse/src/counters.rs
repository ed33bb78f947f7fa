//! How many requests of each kind the kernel has made, and how long they took.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use gridvfs_vfs::{Durations, Histogram};

macro_rules! operations {
    ($($name:ident = $text:literal,)*) => {
        /// A kind of request.
        #[derive(Clone, Copy, Debug)]
        pub(crate) enum Operation { $($name,)* }

        const NAMES: &[&str] = &[$($text,)*];
    };
}

operations! {
    Lookup = "lookup",
    Getattr = "getattr",
    Setattr = "setattr",
    Readlink = "readlink",
    Mknod = "mknod",
    Mkdir = "mkdir",
    Unlink = "unlink",
    Rmdir = "rmdir",
    Symlink = "symlink",
    Rename = "rename",
    Link = "link",
    Open = "open",
    Create = "create",
    Read = "read",
    Write = "write",
    Flush = "flush",
    Release = "release",
    Fsync = "fsync",
    Fsyncdir = "fsyncdir",
    Opendir = "opendir",
    Readdir = "readdir",
    Readdirplus = "readdirplus",
    Statfs = "statfs",
    Access = "access",
    Fallocate = "fallocate",
    Lseek = "lseek",
}

/// In how many parts counts are kept. Event loops count in parts of their own, so that they do not
/// take a cache line from each other at every request.
const PARTS: usize = 8;

static NEXT_PART: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static PART: usize = NEXT_PART.fetch_add(1, Ordering::Relaxed) % PARTS;
}

/// What times are kept of.
const KINDS: [&str; 4] = ["read", "write", "sync", "other"];

impl Operation {
    fn kind(self) -> usize {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Flush | Self::Fsync | Self::Fsyncdir => 2,
            _ => 3,
        }
    }
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Part {
    counts: [AtomicU64; NAMES.len()],
    times: [Histogram; KINDS.len()],
}

/// Counts of requests.
#[derive(Debug, Default)]
pub struct Counters {
    parts: [Part; PARTS],
}

impl Counters {
    pub(crate) fn count(&self, operation: Operation) {
        let part = PART.with(|part| *part);
        self.parts[part].counts[operation as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that a request which began then has been answered.
    pub(crate) fn took(&self, operation: Operation, began: Instant) {
        let part = PART.with(|part| *part);
        self.parts[part].times[operation.kind()].record(began.elapsed());
    }

    /// Returns how long requests took: reads, writes, those that make data safe, and others.
    pub fn times(&self) -> Vec<(&'static str, Durations)> {
        let sum = |(index, kind): (usize, &'static str)| {
            let mut sum = Durations::default();
            self.parts.iter().for_each(|part| sum.add(&part.times[index].snapshot()));
            (kind, sum)
        };
        KINDS.into_iter().enumerate().map(sum).collect()
    }

    /// Returns the counts that are not zero, by name.
    pub fn to_map(&self) -> BTreeMap<&'static str, u64> {
        let sum = |(index, name): (usize, &&'static str)| {
            let counts = self.parts.iter().map(|part| part.counts[index].load(Ordering::Relaxed));
            (*name, counts.sum())
        };
        NAMES.iter().enumerate().map(sum).filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_all_threads_are_added() {
        let counters = Counters::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * PARTS {
                scope.spawn(|| counters.count(Operation::Read));
            }
        });
        counters.count(Operation::Lseek);
        let counts = counters.to_map();
        assert_eq!(counts, BTreeMap::from([("read", 2 * PARTS as u64), ("lseek", 1)]));
        counters.took(Operation::Fsync, Instant::now());
        let counts: Vec<u64> = counters.times().iter().map(|(_, times)| times.count()).collect();
        assert_eq!(counts, [0, 0, 1, 0]);
    }
}
