//! What is said in a record of the journal.

use gridvfs_vfs::{FileHandle, Time};

use super::names::NameRecord;

/// Where the payload of one Write record lies (12 bytes).
///
/// The table of checksums ends where the payload begins, so that this is all that a verified read
/// needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The number of the segment file.
    pub segment: u32,
    /// Where in it the payload begins, in bytes.
    pub at: u32,
    /// The payload's length in bytes.
    pub length: u32,
}

/// What a Write record says beside its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteHeader {
    /// The file.
    pub handle: FileHandle,
    /// Where in the file the data belongs.
    pub offset: u64,
    /// When it was written.
    pub time: Time,
    /// Who wrote it.
    pub uid: u32,
    /// The writer's group.
    pub gid: u32,
    /// The file's epoch ([`crate::dirty::Dirty::epoch`]): replay keeps the fsyncs apart by it.
    pub epoch: u64,
    /// `Some(seq)`: this is a copy of data that was first appended under `seq`, made to empty an
    /// old segment. It takes that record's place in the order of the writes.
    pub carried: Option<u64>,
}

/// What the server's copy of a file is known to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its size in bytes.
    pub size: u64,
    /// When its data was last changed.
    pub mtime: Time,
    /// When anything of it was last changed.
    pub ctime: Time,
    /// The key ([`crate::FileKey`]) under which its blocks are stored.
    pub key: u64,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Data was written.
    Write(WriteHeader),
    /// What the server's copy was like when the file became dirty, or after our own change of it,
    /// with no WRITE of ours under way: an earlier Sending is over.
    Base {
        /// The file.
        handle: FileHandle,
        /// The server's copy.
        base: Base,
    },
    /// WRITEs of data up to this sequence number may be on their way.
    Sending {
        /// The file.
        handle: FileHandle,
        /// The highest sequence number that may be under way.
        up_to_seq: u64,
    },
    /// All data of the file within `start..end` with a sequence number of at most `up_to_seq` is
    /// committed on the server.
    Sent {
        /// The file.
        handle: FileHandle,
        /// The highest sequence number that this speaks of.
        up_to_seq: u64,
        /// The first byte that this speaks of.
        start: u64,
        /// The byte behind the last one; `u64::MAX` for all of the file.
        end: u64,
        /// The server's copy now; `None` if it is not known what the WRITEs have left.
        base: Option<Base>,
    },
    /// An fsync: later writes are of a later epoch. (Also seen by [`WriteHeader::epoch`].)
    Barrier {
        /// The file.
        handle: FileHandle,
    },
    /// The file is about to be cut (or extended) on the server.
    CutIntent {
        /// The file.
        handle: FileHandle,
        /// The new size.
        size: u64,
    },
    /// It has been: earlier data at or behind `size` is dropped.
    Cut {
        /// The file.
        handle: FileHandle,
        /// The new size.
        size: u64,
        /// The server's copy now.
        base: Option<Base>,
    },
    /// The file is about to be removed on the server.
    RemoveIntent {
        /// The file.
        handle: FileHandle,
    },
    /// It has been: all that was said of it before is dropped.
    Removed {
        /// The file.
        handle: FileHandle,
    },
    /// What the file's intents announced did not happen.
    Abandoned {
        /// The file.
        handle: FileHandle,
    },
    /// Times to be set when the file is written back; takes the place of an earlier one. With
    /// neither there is nothing (more) to be set.
    Times {
        /// The file.
        handle: FileHandle,
        /// The time of the last access.
        atime: Option<Time>,
        /// The time of the last change.
        mtime: Option<Time>,
    },
    /// Write-back of the file has stopped.
    Conflict {
        /// The file.
        handle: FileHandle,
        /// Why; the owner's number.
        kind: u8,
    },
    /// Write-back of the file goes on.
    Resolved {
        /// The file.
        handle: FileHandle,
    },
    /// The file's last known path in the mount, for messages.
    Path {
        /// The file.
        handle: FileHandle,
        /// The path; at most [`super::PATH_BYTES_MAX`] bytes.
        path: Vec<u8>,
    },
    /// A file that was made here is known to the server by this handle.
    Bound {
        /// The file, by the handle that we have given it.
        handle: FileHandle,
        /// The server's handle.
        server: FileHandle,
        /// The change that made it, which is done; 0: this is said again.
        made_by: u64,
    },
    /// About names. It is no file's.
    Name(NameRecord),
}

/// What records about names have in the place of a file's handle.
pub const NO_FILE: FileHandle = FileHandle::EMPTY;

impl Record {
    /// Returns the file that the record is about.
    pub fn handle(&self) -> &FileHandle {
        match self {
            Record::Write(write) => &write.handle,
            Record::Base { handle, .. }
            | Record::Sending { handle, .. }
            | Record::Sent { handle, .. }
            | Record::Barrier { handle }
            | Record::CutIntent { handle, .. }
            | Record::Cut { handle, .. }
            | Record::RemoveIntent { handle }
            | Record::Removed { handle }
            | Record::Abandoned { handle }
            | Record::Times { handle, .. }
            | Record::Conflict { handle, .. }
            | Record::Resolved { handle }
            | Record::Path { handle, .. }
            | Record::Bound { handle, .. } => handle,
            Record::Name(_) => &NO_FILE,
        }
    }

    /// Says whether the record holds something of a dirty file that must outlive its segment.
    pub(super) fn is_state(&self) -> bool {
        match self {
            Record::Sent { base, .. } | Record::Cut { base, .. } => base.is_some(),
            Record::Base { .. }
            | Record::Sending { .. }
            | Record::CutIntent { .. }
            | Record::RemoveIntent { .. }
            | Record::Times { .. }
            | Record::Conflict { .. }
            | Record::Path { .. }
            | Record::Bound { .. } => true,
            // An empty copy has nothing that anybody could need.
            Record::Name(record) => !matches!(record, NameRecord::Begin | NameRecord::End(_)),
            Record::Write(_)
            | Record::Barrier { .. }
            | Record::Removed { .. }
            | Record::Abandoned { .. }
            | Record::Resolved { .. } => false,
        }
    }
}
