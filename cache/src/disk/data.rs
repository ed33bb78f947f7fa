//! What the disk cache counts.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since the session began; bytes where the name says so.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        impl Counters {
            /// Returns all counts by name, in order.
            pub fn to_map(&self) -> std::collections::BTreeMap<&'static str, u64> {
                [$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*].into()
            }
        }
    };
}

counters! {
    /// Reads that were answered from this machine's disk.
    hits,
    /// Reads for which the server was asked.
    misses,
    /// Bytes that were stored of what the server sent.
    filled_bytes,
    /// Attributes and permissions that were answered without asking.
    attribute_hits,
    /// Names, present or absent, that were answered without asking.
    name_hits,
    /// Parts of listings that were answered without asking.
    listing_hits,
    /// Writes that were taken.
    writes,
    /// Bytes that were taken.
    written_bytes,
    /// Bytes that were handed on to be sent.
    sent_bytes,
    /// Bytes that were dropped unsent, because their file was cut or removed.
    dropped_bytes,
    /// Files that others were seen to have changed.
    changed,
    /// Changes that the server has told.
    notices,
    /// Those of them that were known: our own, as a rule.
    notices_known,
    /// Times that changes began to be told, and that some were lost: everything is asked for again.
    notices_begun,
    /// Conflicts that were found.
    conflicts,
    /// Fsyncs that were answered by this machine's disk.
    local_syncs,
    /// Writers that had to wait for room.
    stalled,
    /// Files that were fetched because of a walk.
    walked,
    /// Pieces of unsent data that were found damaged.
    damaged,
    /// Changes of names and attributes that were acknowledged before the server had made them.
    deferred_names,
    /// Those of them that the server has made since; the others cancelled each other.
    sent_names,
}
