//! The limits of the buffer layer, and the arithmetic behind them.
//!
//! The link that the defaults are for: 1 Gbit/s of TCP payload (118 MB/s) at a round trip of 32 ms,
//! so 118 MB/s × 0.032 s = 3.8 MB are under way at any moment (the bandwidth-delay product).
//!
//! | memory | bytes | why |
//! | --- | --- | --- |
//! | read units | 28 MiB | a window of 20 MiB ahead of the reader (two products under way once the bottleneck's queue is full too, three for what waits behind a lost packet of another stripe), 4 MiB of units that were read from, 4 MiB for other files |
//! | held writes | 20 MiB | 4 MiB under way, 6 MiB that make a COMMIT worth while, 4 MiB written while that COMMIT is under way, 6 MiB for the server's disk |
//! | being gathered, being copied out | 2 MiB | one chunk for each of two network threads |
//!
//! Together 50 MiB, which leaves 14 MiB of a mount process's 64 MiB to the program itself, the
//! kernel's request buffers and the sockets' records. On an emulated link of that kind a window of 8
//! MiB read at 0.80 of what iperf3 carried, one of 20 MiB at 0.9.

use std::time::Duration;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The limits of a [`crate::BufferLayer`].
#[derive(Clone, Debug)]
pub struct BufferOptions {
    /// The most bytes of read units, under way or kept.
    pub read_max_bytes: usize,
    /// The most bytes of units that were read from and are kept for the rest of them.
    pub clean_max_bytes: usize,
    /// The furthest that one stream is read ahead of its reader.
    pub window_max_bytes: usize,
    /// The size of a stream's READs; lowered to what the server takes.
    pub unit_bytes: usize,
    /// The size and alignment of what is fetched around a read outside of a stream, without its
    /// waiting for it. At 32 ms a round trip costs as much as 3.8 MB, but a random reader has no use
    /// for most of it.
    pub around_bytes: usize,
    /// For how long fetched data answers reads without the file's attributes being seen again.
    pub clean_age_max: Duration,
    /// The most bytes of written data held until the server has committed them.
    pub write_max_bytes: usize,
    /// The most bytes of WRITEs on their way: more would only make reads queue behind them.
    pub write_flight_max_bytes: usize,
    /// The most WRITE and COMMIT calls on their way. Four stripes carry 64 calls each; the rest is
    /// for reads.
    pub write_calls_max: usize,
    /// The size of a full WRITE; lowered to what the server takes.
    pub chunk_bytes: usize,
    /// How long a partly filled chunk waits for its neighbours. Programs that write small pieces in
    /// order fill a chunk well within it; closing a file does not wait for it.
    pub write_delay: Duration,
    /// How many uncommitted bytes of a file start a COMMIT.
    pub commit_bytes: usize,
    /// How long after its last WRITE a file is committed.
    pub commit_idle: Duration,
    /// How long to wait before a call that the server did not answer is sent again, at most.
    pub retry_max: Duration,
}

impl Default for BufferOptions {
    fn default() -> Self {
        Self {
            read_max_bytes: 28 * MIB,
            clean_max_bytes: 4 * MIB,
            window_max_bytes: 20 * MIB,
            unit_bytes: 256 * KIB,
            around_bytes: 32 * KIB,
            clean_age_max: Duration::from_secs(3),
            write_max_bytes: 20 * MIB,
            write_flight_max_bytes: 8 * MIB,
            write_calls_max: 192,
            chunk_bytes: MIB,
            write_delay: Duration::from_millis(100),
            commit_bytes: 6 * MIB,
            commit_idle: Duration::from_secs(2),
            retry_max: Duration::from_secs(5),
        }
    }
}

/// The least a server may offer as its largest READ or WRITE before it is no longer believed.
const TRANSFER_MIN_BYTES: usize = 4 * KIB;

impl BufferOptions {
    /// The most memory the layer takes, in bytes: read units, held writes, and two chunks that are
    /// being gathered.
    pub fn memory_max(&self) -> usize {
        self.read_max_bytes + self.write_max_bytes + 2 * self.chunk_bytes
    }

    /// Fits the options to what the server takes, and to each other.
    pub(crate) fn fitted(mut self, read_max: u32, write_max: u32) -> Self {
        let power = |bytes: usize| 1usize << bytes.max(TRANSFER_MIN_BYTES).ilog2();
        let limit = |told: u32| if told == 0 { 64 * KIB } else { told as usize };
        self.unit_bytes = power(self.unit_bytes.min(limit(read_max)).min(MIB));
        self.chunk_bytes = power(self.chunk_bytes.min(limit(write_max)).min(4 * MIB));
        self.around_bytes = power(self.around_bytes).min(self.unit_bytes);
        self.read_max_bytes = self.read_max_bytes.clamp(4 * self.unit_bytes, 1 << 30);
        self.window_max_bytes = self.window_max_bytes.min(self.read_max_bytes);
        self.write_max_bytes = self.write_max_bytes.clamp(4 * self.chunk_bytes, 1 << 30);
        self.write_flight_max_bytes = self.write_flight_max_bytes.clamp(self.chunk_bytes, 1 << 30);
        self.write_calls_max = self.write_calls_max.clamp(1, 1 << 16);
        self
    }
}
