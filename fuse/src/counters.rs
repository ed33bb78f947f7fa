//! How many requests of each kind the kernel has made.

use std::sync::atomic::{AtomicU64, Ordering};

use std::collections::BTreeMap;

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
    Opendir = "opendir",
    Readdir = "readdir",
    Readdirplus = "readdirplus",
    Statfs = "statfs",
    Access = "access",
    Fallocate = "fallocate",
    Lseek = "lseek",
}

/// Counts of requests.
#[derive(Debug, Default)]
pub struct Counters {
    counts: [AtomicU64; NAMES.len()],
}

impl Counters {
    pub(crate) fn count(&self, operation: Operation) {
        self.counts[operation as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the counts that are not zero, by name.
    pub fn to_map(&self) -> BTreeMap<&'static str, u64> {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        NAMES.iter().copied().zip(counts).filter(|(_, count)| *count > 0).collect()
    }
}
