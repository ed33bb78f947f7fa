//! Settings of the FUSE front end.

use std::time::Duration;

/// Settings of a session, each with its default and why.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// For how long the kernel may believe attributes. FUSE's usual second: short enough to see
    /// others' changes, long enough for the several looks of one operation.
    pub attr_timeout: Duration,
    /// For how long the kernel may believe names.
    pub entry_timeout: Duration,
    /// For how long the kernel may believe that a name is missing. Zero: a file that appears on
    /// the server is seen at once.
    pub negative_timeout: Duration,
    /// Threads that take requests. Calls that wait for the server leave their thread, so a few
    /// serve thousands: one for each processor, but two where there is one (an answer may be
    /// waited for by a page fault of the first), and no more than four.
    pub event_loops: usize,
    /// Other users have access.
    pub allow_other: bool,
    /// The kernel checks permissions by mode bits.
    pub default_permissions: bool,
    /// The mount refuses changes in the kernel.
    pub read_only: bool,
    /// The kernel collects writes in its page cache and sends them at close, fsync or when there
    /// are many. It then believes nobody but itself about the size and times of a regular file that
    /// it knows, so this is for sessions whose files nobody else changes.
    pub writeback_cache: bool,
    /// The kernel keeps listings of directories for as long as their attributes stay the same. For
    /// sessions that have these at hand: where names are believed for a second only, a new listing
    /// tells them all at once.
    pub listing_cache: bool,
    /// What is below tells of changes by others (`Vfs::listen`), and is asked to.
    pub listens: bool,
    /// The kernel reads whole local files by itself, where it can and this process may ask for it.
    pub passthrough: bool,
    /// The largest write that the kernel sends, in bytes: what its default limit of 256 pages
    /// allows.
    pub write_bytes_max: u32,
    /// The most read-ahead and asynchronous requests of the kernel at once.
    pub background_max: u16,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            attr_timeout: Duration::from_secs(1),
            entry_timeout: Duration::from_secs(1),
            negative_timeout: Duration::ZERO,
            event_loops: std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4)),
            allow_other: false,
            default_permissions: false,
            read_only: false,
            writeback_cache: false,
            listing_cache: false,
            listens: false,
            passthrough: true,
            write_bytes_max: 1 << 20,
            background_max: 128,
        }
    }
}
