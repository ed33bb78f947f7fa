//! What the buffer layer did, for status and progress.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        /// Counters since the start; `*_bytes` in bytes, the others in calls.
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
    /// Reads answered at once from what was held.
    hits,
    /// Reads that had to wait for the server.
    misses,
    /// Waits for a unit that another read had asked for.
    joined,
    /// READ calls sent.
    fetches,
    /// Bytes that came with them.
    fetched_bytes,
    /// Bytes asked for ahead of a reader.
    prefetched_bytes,
    /// Bytes fetched ahead that were dropped unread.
    wasted_bytes,
    /// READs asked again because the answer was short.
    short_reads,
    /// Times that a file was found changed by others.
    changed,
    /// Writes taken.
    writes,
    /// Bytes written.
    written_bytes,
    /// Writes that had to wait for memory.
    stalled,
    /// WRITE calls on their way now.
    in_flight,
    /// WRITE calls answered.
    sent,
    /// Bytes that the server took.
    sent_bytes,
    /// Bytes sent again, because the server had lost them or did not answer.
    resent_bytes,
    /// COMMIT calls answered.
    commits,
    /// Files that lost data to an error of the server.
    failed,
    /// The most memory ever charged to held writes, in bytes.
    write_peak_bytes,
    /// The most memory ever charged to read units, in bytes.
    read_peak_bytes,
}

pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

pub(crate) fn sub(counter: &AtomicU64, amount: u64) {
    counter.fetch_sub(amount, Ordering::Relaxed);
}
