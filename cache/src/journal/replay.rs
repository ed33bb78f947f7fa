//! From the records of the journal to the state of each file.

use std::collections::HashMap;

use gridvfs_vfs::{FileHandle, Time};

use super::Journal;
use super::names::NameRecord;
use super::record::{Base, Place, Record};
use crate::dirty::{Dirty, Extent, Freed};

/// What the journal says of a file beside its data. The owner keeps one for each dirty file, tells
/// it every record that it appends, and can append it all again when a segment is reclaimed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileState {
    /// What the server's copy is like, as far as known.
    pub base: Option<Base>,
    /// WRITEs of data up to this sequence number may have reached the server since.
    pub sending_up_to: Option<u64>,
    /// The file may have been cut to this size on the server.
    pub cut_intent: Option<u64>,
    /// The file may have been removed on the server.
    pub remove_intent: bool,
    /// The time of access to be set.
    pub atime: Option<Time>,
    /// The time of change to be set.
    pub mtime: Option<Time>,
    /// Write-back has stopped; the owner's number of the reason.
    pub conflict: Option<u8>,
    /// The last known path in the mount.
    pub path: Option<Vec<u8>>,
    /// The server's handle of a file that was made here and is known by a handle of ours.
    pub server: Option<FileHandle>,
}

impl FileState {
    /// Takes in what a record says. Of a Write there is nothing to keep here.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Write(_) | Record::Barrier { .. } => {}
            Record::Base { base, .. } => {
                self.base = Some(*base);
                self.sending_up_to = None;
            }
            Record::Sending { up_to_seq, .. } => {
                self.sending_up_to = self.sending_up_to.max(Some(*up_to_seq));
            }
            Record::Sent { up_to_seq, start, end, base, .. } => {
                let whole = *start == 0 && *end == u64::MAX;
                if whole && self.sending_up_to.is_some_and(|sending| sending <= *up_to_seq) {
                    self.sending_up_to = None;
                }
                self.base = *base;
            }
            Record::CutIntent { size, .. } => self.cut_intent = Some(*size),
            Record::Cut { size, base, .. } => {
                self.cut_intent = None;
                match (base, &mut self.base) {
                    (Some(base), _) => self.base = Some(*base),
                    (None, Some(known)) => known.size = *size,
                    (None, None) => {}
                }
            }
            Record::RemoveIntent { .. } => self.remove_intent = true,
            Record::Removed { .. } => *self = Self { server: self.server, ..Self::default() },
            Record::Abandoned { .. } => {
                self.cut_intent = None;
                self.remove_intent = false;
            }
            Record::Times { atime, mtime, .. } => {
                self.atime = *atime;
                self.mtime = *mtime;
            }
            Record::Conflict { kind, .. } => self.conflict = Some(*kind),
            Record::Resolved { .. } => self.conflict = None,
            Record::Path { path, .. } => self.path = Some(path.clone()),
            Record::Bound { server, .. } => self.server = Some(*server),
            Record::Name(_) => {}
        }
    }

    /// Returns the records that bring this state about.
    pub fn records(&self, handle: &FileHandle) -> Vec<Record> {
        let handle = *handle;
        let mut records = Vec::new();
        records.extend(self.base.map(|base| Record::Base { handle, base }));
        records.extend(self.sending_up_to.map(|up_to_seq| Record::Sending { handle, up_to_seq }));
        records.extend(self.cut_intent.map(|size| Record::CutIntent { handle, size }));
        records.extend(self.remove_intent.then_some(Record::RemoveIntent { handle }));
        if self.atime.is_some() || self.mtime.is_some() {
            records.push(Record::Times { handle, atime: self.atime, mtime: self.mtime });
        }
        records.extend(self.conflict.map(|kind| Record::Conflict { handle, kind }));
        records.extend(self.path.clone().map(|path| Record::Path { handle, path }));
        let bound = |server| Record::Bound { handle, server, made_by: 0 };
        records.extend(self.server.map(bound));
        records
    }

    /// Says whether something is still to be done even if no data is dirty.
    pub fn is_pending(&self) -> bool {
        self.cut_intent.is_some()
            || self.remove_intent
            || self.atime.is_some()
            || self.mtime.is_some()
            || self.conflict.is_some()
    }
}

/// A file of which the journal holds something that the server does not have.
#[derive(Debug, Default)]
pub struct RecoveredFile {
    /// Its dirty data.
    pub dirty: Dirty,
    /// All else.
    pub state: FileState,
    /// The last write's user and group.
    pub caller: Option<(u32, u32)>,
    /// The last write's time.
    pub written: Option<Time>,
    /// It was written after [`FileState::mtime`] was to be set, so that this is no longer so.
    pub touched: bool,
    /// Data that may be on the server without being known to be: all writes up to
    /// [`FileState::sending_up_to`] that no COMMIT has covered, those that were overwritten since
    /// among them. Those may be gone from the journal.
    pub suspects: Vec<Extent>,
}

impl RecoveredFile {
    /// Returns the file's size as the mount showed it, if the log can tell. What an intent
    /// announces is not in it.
    pub fn size(&self) -> Option<u64> {
        self.state.base.map(|base| base.size.max(self.dirty.end()))
    }

    fn change(&mut self, order: u64, change: Change, dead: &mut Freed) {
        let freed = match change {
            Change::Write { offset, epoch, place } => {
                if self.dirty.is_empty() {
                    // Numbers start anew with each time that a file becomes dirty.
                    self.dirty = Dirty::new();
                }
                self.dirty.barrier_to(epoch);
                self.dirty.insert(offset, place.length, order, place)
            }
            Change::Barrier => {
                self.dirty.barrier();
                return;
            }
            Change::Clear { up_to_seq, start, end } => {
                self.dirty.clear_up_to(up_to_seq, start, end)
            }
        };
        dead.extend(freed);
    }
}

/// What happened to a file's data.
#[derive(Clone, Copy, Debug)]
enum Change {
    Write { offset: u64, epoch: u64, place: Place },
    Barrier,
    Clear { up_to_seq: u64, start: u64, end: u64 },
}

/// Builds the files' states out of what [`Journal::open`] replays.
///
/// Data that was carried forward lies behind data that is newer; so the changes of a file (48
/// bytes each) are gathered, and put in order at the end.
#[derive(Debug, Default)]
pub struct Rebuild {
    files: HashMap<FileHandle, Gathered>,
    names: Vec<NameEvent>,
}

/// What the log tells of names, in its order.
#[allow(clippy::large_enum_variant)] // Nearly all are records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameEvent {
    /// A record, and its sequence number.
    Record(u64, NameRecord),
    /// [`Record::Bound`]: our handle, the server's, and the change that is done.
    Bound(FileHandle, FileHandle, u64),
    /// Something is missing that had not been synced: what follows, up to the next whole copy, may
    /// be of a time that was never promised.
    Hole,
}

#[derive(Debug, Default)]
struct Gathered {
    state: FileState,
    caller: Option<(u32, u32)>,
    written: Option<Time>,
    touched: bool,
    changes: Vec<(u64, Change)>,
}

impl Gathered {
    /// See [`RecoveredFile::suspects`].
    fn suspects(&self) -> Vec<Extent> {
        let mut suspects: Vec<Extent> = Vec::new();
        let Some(sending) = self.state.sending_up_to else { return suspects };
        for (order, change) in &self.changes {
            match change {
                Change::Write { offset, place, .. } if *order <= sending => {
                    suspects.push(Extent {
                        start: *offset,
                        len: place.length,
                        skip: 0,
                        seq: *order,
                        place: *place,
                    });
                }
                Change::Clear { up_to_seq, start: 0, end: u64::MAX } => {
                    suspects.retain(|extent| extent.seq > *up_to_seq);
                }
                Change::Clear { up_to_seq: u64::MAX, start, end: u64::MAX } => {
                    cut_suspects(&mut suspects, *start);
                }
                _ => {}
            }
        }
        suspects
    }
}

/// The file was cut: what lies behind `size` is not to be found any more.
pub(crate) fn cut_suspects(suspects: &mut Vec<Extent>, size: u64) {
    suspects.retain(|extent| extent.start < size);
    for extent in suspects {
        extent.len = u64::from(extent.len).min(size - extent.start) as u32;
    }
}

impl Rebuild {
    /// Makes an empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next record.
    pub fn push(&mut self, seq: u64, record: &Record, place: Option<Place>) {
        match record {
            Record::Name(record) => {
                self.names.push(NameEvent::Record(seq, record.clone()));
                return;
            }
            Record::Bound { handle, server, made_by } => {
                self.names.push(NameEvent::Bound(*handle, *server, *made_by));
            }
            _ => {}
        }
        let file = self.files.entry(*record.handle()).or_default();
        file.state.apply(record);
        file.touched &= !matches!(record, Record::Times { .. });
        let mut order = seq;
        let all = Change::Clear { up_to_seq: u64::MAX, start: 0, end: u64::MAX };
        let change = match record {
            Record::Write(write) => {
                let Some(place) = place else { return };
                order = write.carried.unwrap_or(seq);
                if write.carried.is_none() || file.caller.is_none() {
                    file.caller = Some((write.uid, write.gid));
                    file.written = Some(write.time);
                }
                file.touched |= write.carried.is_none();
                Change::Write { offset: write.offset, epoch: write.epoch, place }
            }
            Record::Barrier { .. } => Change::Barrier,
            Record::Sent { up_to_seq, start, end, .. } => {
                Change::Clear { up_to_seq: *up_to_seq, start: *start, end: *end }
            }
            Record::Cut { size, .. } => {
                Change::Clear { up_to_seq: u64::MAX, start: *size, end: u64::MAX }
            }
            Record::Removed { .. } => all,
            _ => return,
        };
        file.changes.push((order, change));
    }

    /// Notes that something is missing which had not been synced.
    pub fn hole(&mut self) {
        self.names.push(NameEvent::Hole);
    }

    /// Takes out what the log tells of names.
    pub fn take_names(&mut self) -> Vec<NameEvent> {
        std::mem::take(&mut self.names)
    }

    /// Puts everything together, and tells the journal which payload is no longer needed.
    pub fn finish(self, journal: &Journal) -> HashMap<FileHandle, RecoveredFile> {
        let mut files = HashMap::new();
        let mut dead = Freed::new();
        for (handle, mut gathered) in self.files {
            gathered.changes.sort_by_key(|(order, _)| *order);
            let suspects = gathered.suspects();
            let Gathered { state, caller, written, touched, changes } = gathered;
            let dirty = Dirty::new();
            let mut file = RecoveredFile { dirty, state, caller, written, touched, suspects };
            for (order, change) in changes {
                file.change(order, change, &mut dead);
            }
            journal.release_all(&dead);
            dead.clear();
            if !file.dirty.is_empty() || file.state.is_pending() {
                files.insert(handle, file);
            }
        }
        files
    }
}
