//! The append-only log of what has been written and is not yet on the state server.
//!
//! What is written in write-back lives here and nowhere else until the server has committed it.
//! A directory holds segment files, `NNNNNNNN.log`; records are appended to the newest. A Write
//! record holds the data itself, with a checksum for each 4 KiB of it, and all that is needed to
//! replay it; the data is read from where it was appended ([`Place`]) until it is released. The
//! layout is in docs/on-disk-format.md.
//!
//! # What survives
//!
//! - kill -9: everything appended (it is in the page cache). A record cut short by it was never
//!   acknowledged.
//! - power loss: everything appended before a [`Journal::sync`] that returned. Of what came after
//!   it, any part may be missing; records that the header or the payload shows to be incomplete
//!   are left out and reported, the ones behind them are replayed.
//! - a flipped bit: in a header, table or body it is found when the log is opened, in a payload
//!   when it is read (or when the log is opened, with [`JournalOptions::verify`]). The record is
//!   left out and reported; all others are replayed.
//! - a full disk: the append fails, the half-written record is cut off, the log stays usable.
//!
//! Every run writes to segments of its own; old ones are never changed, only deleted.
//!
//! A sync of a file that grows costs the file system a commit of its own journal. So the room of a
//! segment to come is filled with zeros while nothing is appended ([`Journal::make_room`]), and
//! records overwrite these; what comes behind the last record of a segment is zero. A segment whose
//! data is released is zeroed and used again, under its new number, instead of being deleted.
//!
//! # Why deletion loses nothing, and brings nothing back
//!
//! Data is *dead* when a later record says so: a Sent, Cut or Removed, or a Write over it in the
//! same epoch. Let K be the record that killed X. Replay gives the right state as long as
//!
//! 1. X is never found without K, and
//! 2. X is never missing while the crash undoes K.
//!
//! For 1: the owner appends K, with the file locked, when all copies of X are in the log and
//! before it makes any other; so K lies behind X. Segments are deleted in order, each deletion
//! synced before the next: when K's segment goes, X's is gone for good. A record that is carried
//! forward is a copy that lies behind its original, and takes the original's place in the order
//! of replay (its `order`); if it was dead it was not carried; so the same holds for it.
//!
//! For 2: a segment is deleted only when all of its payload has been released, which the owner
//! does after it has appended K, and after a sync that began later than that. So K is on disk.
//!
//! State of a file that is still dirty (its [`Base`], times, intents, conflict, path) may lie in a
//! segment whose payload is dead. Before deletion the owner is asked to append the state again
//! ([`Journal::reclaim`]); the same sync covers it. Sent, Cut and Removed need not be kept: what
//! they killed lay before them. Nor Barrier: each Write names its epoch. So the log after
//! deletion replays to the same state as before it, and so do both after a power loss.
//!
//! One hot file must not hold up the log: the owner copies its live data out of the oldest
//! segment ([`crate::dirty::Dirty::in_segment`], [`WriteHeader::carried`]).
//!
//! # Limits
//!
//! The log grows as long as data is appended and not released: its owner holds writers up by
//! [`Journal::used_bytes`]; beside that, one segment's room is kept. Each segment costs an open file. The directory is locked (flock)
//! against a second process.

mod append;
mod format;
mod names;
mod open;
mod read;
mod reclaim;
mod record;
mod replay;
mod room;
mod scan;
mod segment;
mod sync;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gridvfs_vfs::FileHandle;
use nix::fcntl::Flock;
use parking_lot::{Condvar, Mutex, RwLock};

pub use format::{PATH_BYTES_MAX, PAYLOAD_MAX};
pub use names::{At, NAME_BYTES_MAX, NameChange, NameOp, NameRecord, STARTED_MAX, Set};
pub use read::ReadError;
#[allow(unused_imports, reason = "the type of what `segments` returns")]
pub use reclaim::SegmentInfo;
pub use record::{Base, NO_FILE, Place, Record, WriteHeader};
pub(crate) use replay::cut_suspects;
pub use replay::{FileState, NameEvent, Rebuild, RecoveredFile};

use append::Tail;
use room::Room;
use segment::Segment;
use sync::SyncState;

/// How the journal is kept.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// When a segment has this many bytes, the next one is begun (4 KiB to 2 GiB). The less, the
    /// sooner space is given back; the more, the fewer files and syncs of the directory.
    pub segment_bytes: u64,
    /// Verify all payloads at opening, not only those that may not have been synced.
    pub verify: bool,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self { segment_bytes: 32 << 20, verify: false }
    }
}

/// Why a journal could not be opened. Nothing has been changed then.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A segment is of a version of the format that this program does not know.
    #[error("{path} has format version {version}; this program knows version {}", format::VERSION)]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// A segment belongs to another journal, or to another place in this one.
    #[error("{0} does not belong to the journal beside it")]
    Foreign(PathBuf),
    /// Another process has the journal open.
    #[error("{0} is used by another process")]
    Busy(PathBuf),
    /// The disk's error.
    #[error("{path}: {error}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
}

/// What opening finds, in the order of the log.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // One at a time is on its way.
pub enum Replayed {
    /// A record.
    Record {
        /// Its sequence number.
        seq: u64,
        /// What it says.
        record: Record,
        /// A Write's payload.
        place: Option<Place>,
    },
    /// Something that is no whole record.
    Damaged(Damage),
}

/// A damaged place of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment's number.
    pub segment: u32,
    /// Where in it the damage begins.
    pub at: u64,
    /// Its length in bytes; 0 for a segment that is missing.
    pub bytes: u64,
    /// The file, and the offset and length of the write that is lost; `None` when that cannot be
    /// told (or for a record that is no write: then the length is 0).
    pub file: Option<(FileHandle, u64, u32)>,
    /// The log is known to have been synced behind this: the disk has lost it. Otherwise it may
    /// be what a power loss or a kill leaves of writes that nobody had been promised.
    pub synced: bool,
}

/// What the journal did since it was opened.
#[derive(Debug, Default)]
pub struct JournalCounters {
    /// Calls of [`Journal::sync`].
    pub syncs_asked: AtomicU64,
    /// Syncs done for them.
    pub syncs: AtomicU64,
    /// Segments deleted.
    pub segments_deleted: AtomicU64,
}

/// See the module's description. All methods may be called by several threads at once.
#[derive(Debug)]
pub struct Journal {
    dir_path: PathBuf,
    dir: Flock<File>,
    options: JournalOptions,
    log_id: u64,
    run: u64,
    tail: Mutex<Tail>,
    segments: RwLock<BTreeMap<u32, Arc<Segment>>>,
    syncs: Mutex<SyncState>,
    synced: Condvar,
    /// The last sequence number known to be on disk.
    durable: AtomicU64,
    failed: AtomicBool,
    used: AtomicU64,
    live: AtomicU64,
    /// Bytes appended since the disk was last told to begin writing.
    unbegun: AtomicU64,
    reclaiming: Mutex<()>,
    room: Mutex<Room>,
    counters: JournalCounters,
    /// The next append fails after this many bytes.
    #[cfg(test)]
    fail_after: Mutex<Option<usize>>,
}

impl Journal {
    /// Says whether it is the journal in this directory.
    pub fn is_in(&self, dir: &Path) -> bool {
        self.dir_path == dir
    }

    /// Returns the bytes of all segments.
    pub fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns the payload bytes that have not been released.
    pub fn live_bytes(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    /// Returns what it did.
    pub fn counters(&self) -> &JournalCounters {
        &self.counters
    }
}

#[cfg(test)]
mod tests;
