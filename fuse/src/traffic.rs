//! What is read and written of single files, for `gridvfs top`: four counters in each inode, for as
//! long as the kernel knows it.

use std::sync::atomic::{AtomicU64, Ordering};

use gridvfs_vfs::FileHandle;

/// Counts of one file's requests and their bytes. What the kernel answers itself, from its page cache
/// or by passthrough, is not in them.
#[derive(Debug, Default)]
pub struct Traffic {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
}

/// What was read and written of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusyFile {
    /// The file.
    pub handle: FileHandle,
    /// Requests.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Requests.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
}

impl BusyFile {
    pub(crate) fn is_busy(&self) -> bool {
        self.reads + self.writes > 0
    }
}

impl Traffic {
    /// Counts a read.
    pub fn read(&self, bytes: usize) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a write.
    pub fn wrote(&self, bytes: usize) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn of(&self, handle: FileHandle) -> BusyFile {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BusyFile {
            handle,
            reads: get(&self.reads),
            read_bytes: get(&self.read_bytes),
            writes: get(&self.writes),
            written_bytes: get(&self.written_bytes),
        }
    }
}
