//! The index's limits, errors and counters.

use std::path::PathBuf;
use std::time::Duration;

/// The index's limits.
#[derive(Clone, Debug)]
pub struct IndexOptions {
    /// The most files known in memory. One costs about 560 bytes with its place, a 28-byte handle
    /// and a 20-byte name, 40 more for each user's access rights: 12,288 are 6.6 MiB.
    pub nodes_max: usize,
    /// The most names known in memory. One costs about 195 bytes: 24,576 are 4.6 MiB. A process
    /// whose index is full was seen to have grown by 20 MiB: changes that wait to be written, SQLite
    /// with its page caches, and what the allocator keeps come on top.
    pub names_max: usize,
    /// How long a change waits for others before it is written.
    pub write_delay: Duration,
    /// How large the database may grow, in bytes, its log apart; at least 1 MiB. When it is full it
    /// is emptied: a file of a tree takes about 430 bytes, so this is more than a million files.
    pub file_bytes_max: u64,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self {
            nodes_max: 12 << 10,
            names_max: 24 << 10,
            write_delay: Duration::from_millis(500),
            file_bytes_max: 512 << 20,
        }
    }
}

/// Why an index cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Another program, or another version of this one, made the file. It was not touched.
    #[error(
        "{} has format {found}, this program knows {known}: \
         use the program that made it, or remove the file", path.display()
    )]
    Version {
        /// The database.
        path: PathBuf,
        /// Its format (`PRAGMA user_version`).
        found: i64,
        /// The format that this program reads and writes.
        known: i64,
    },
}

/// What the index did, since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexStats {
    /// Files known in memory.
    pub nodes: usize,
    /// Names known in memory.
    pub names: usize,
    /// Questions that memory could not answer: asked of the database.
    pub loads: u64,
    /// Changes queued.
    pub changes: u64,
    /// Changes not yet written.
    pub pending: u64,
    /// Rows dropped because their checksum did not match.
    pub damaged: u64,
    /// Whether the database is in use. If not, what memory has no room for is forgotten.
    pub persistent: bool,
}
