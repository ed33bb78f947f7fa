//! What the layer has done.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        /// Counters since the start; `*_bytes` in bytes, the others in calls or files.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[$meta])* pub $name: AtomicU64,)* }

        impl Counters {
            /// Returns name and value of each counter.
            pub fn to_map(&self) -> BTreeMap<&'static str, u64> {
                BTreeMap::from([$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*])
            }
        }
    };
}

counters! {
    /// Metadata files that are used.
    loaded,
    /// Metadata files that were damaged, outdated or refuted.
    refused,
    /// Bytes that were read of files with a zero map.
    guided_bytes,
    /// Those of them that the zero map answered.
    zero_bytes,
    /// Bytes that were found in the cache by their hashes.
    content_bytes,
    /// Calls for what was missing.
    arrivals,
    /// Bytes of files that came with them, zeros left out.
    arrived_bytes,
    /// Those of them that were fetched ahead of need.
    ahead_bytes,
    /// Files that came whole.
    whole_files,
}

/// What was read of one file while it had a zero map: shares of `guided_bytes` and `zero_bytes`.
#[derive(Debug, Default)]
pub(crate) struct FileReads {
    pub guided_bytes: AtomicU64,
    pub zero_bytes: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}
