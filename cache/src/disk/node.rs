//! What the cache holds in memory of one file that is open or has unsent data.
//!
//! One lock a file, held for arithmetic and for an append to the journal (a copy into the page
//! cache), never across a call or an await. `key`, `size` and `local` are also told without it, for
//! the hit path.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use gridvfs_vfs::{Attr, Caller, Error, FileHandle, Time, WccAttr};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::options::{CacheKind, Policy, Treatment};
use crate::FileKey;
use crate::dirty::{Dirty, Extent, Piece};
use crate::journal::FileState;

/// Stands for a size that is not known.
const SIZE_UNKNOWN: u64 = u64::MAX;

/// A file in use.
pub(crate) struct Node {
    pub handle: FileHandle,
    /// Under which the store has the file's frames.
    key: AtomicU64,
    /// The size as programs see it.
    size: AtomicU64,
    /// Whether any data is unsent.
    local: AtomicBool,
    /// What the rules say of the file, and of which version of the settings.
    treatment: Mutex<Option<(u64, Treatment)>>,
    pub state: Mutex<State>,
    /// For the driver: there may be something to do.
    pub wake: Notify,
    /// For those who wait: something was done.
    pub progress: Notify,
    /// Whoever hands data to the buffer layer, or changes the size, has it.
    pub turn: tokio::sync::Mutex<()>,
    /// Whether the rest of the file is being fetched in the background.
    pub fetching_whole: AtomicBool,
}

/// A READ under way whose answer is to be stored.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub number: u64,
    pub start: u64,
    pub end: u64,
    /// Something in the range has changed since: the answer may be older.
    pub overtaken: bool,
    /// Data in the range has gone from the journal to the server since: the answer may lack it.
    pub outdated: bool,
}

/// Why write-back of a file has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictKind {
    /// The file was changed on the server under unsent data.
    Changed,
    /// The file is gone from the server.
    Removed,
    /// Others have given its name to another file.
    Exists,
    /// The server refuses the change.
    Refused,
}

impl ConflictKind {
    /// As it is kept in the journal.
    pub fn code(self) -> u8 {
        match self {
            Self::Changed => 1,
            Self::Removed => 2,
            Self::Exists => 3,
            Self::Refused => 4,
        }
    }

    /// From the journal.
    pub fn from_code(code: u8) -> Self {
        match code {
            2 => Self::Removed,
            3 => Self::Exists,
            4 => Self::Refused,
            _ => Self::Changed,
        }
    }
}

/// Times that are to be set once the data is on the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    pub atime: Option<Time>,
    pub mtime: Option<Time>,
}

/// See [`Node`]. Sequence numbers are the journal's.
pub(crate) struct State {
    pub dirty: Dirty,
    /// The server's data version that the frames and the unsent data are of.
    pub base: Option<WccAttr>,
    /// Whether `base` is known to be what our own last change left.
    pub settled: bool,
    /// The cache's clock at our last own change on the server: an answer to a call that was sent
    /// before it proves nothing.
    pub changed_at: u64,
    /// The same when others' change was told last.
    pub told_at: u64,
    /// Unsent data up to here was written before others' change of the data was told: once it is on the
    /// server, only the server knows which of the two came last.
    pub overtaken_up_to: u64,
    /// When `base` was last taken from the answer to a change of ours, which may have had others' in it
    /// that had not been told yet.
    pub own_base_at: Option<Instant>,
    /// When the file was last written, by this machine's clock.
    pub mtime: Time,
    /// The time of change that programs have been told last of a file that was written.
    pub ctime: Time,
    pub times: Times,
    /// Unsent data will clear the file's set-id bits, as a write of anybody but root does.
    pub clears_ids: bool,
    /// A time of change of the server's that our sending has left, and what programs have been told
    /// instead: it does not change before their eyes.
    pub told: Option<(Time, Time)>,
    /// Whom the data is sent for.
    pub writer: Option<Arc<Caller>>,
    pub fetches: Vec<Fetch>,
    /// Whether the driver runs.
    pub driven: bool,
    /// The newest write.
    pub newest: u64,
    /// Up to where the buffer layer has the data, the server has it, and has it on disk.
    pub handed: u64,
    pub answered: u64,
    pub committed: u64,
    /// Up to where somebody waits for the server to have it, and to have it on disk.
    pub flush_wanted: u64,
    pub commit_wanted: u64,
    /// Up to where a write-back of everything waits for the latter.
    pub all_wanted: u64,
    /// Data is being handed on: WRITEs of it may be under way, though `handed` does not say so yet.
    pub handing: bool,
    pub committing: bool,
    pub flushing: bool,
    /// What was written since data was last handed on: since when, and about how much.
    pub waiting_since: Option<Instant>,
    pub waiting_bytes: u64,
    pub handed_bytes: u64,
    pub last_write: Instant,
    pub last_handed: Instant,
    /// A write error of the server that no program has been told of yet (write-through).
    pub error: Option<Error>,
    /// Why the data is still here, and when it is tried again.
    pub failing: Option<Error>,
    pub failures: u32,
    pub retry_at: Option<Instant>,
    /// How often the server did not answer.
    pub silences: u64,
    pub conflict: Option<ConflictKind>,
    /// What the journal says of the file beside its data.
    pub said: FileState,
    /// Whether the base has been compared with the server since data was last handed on.
    pub checked: bool,
    /// Data that was sent, by an earlier process or without an answer, may have changed the
    /// server's file.
    pub in_doubt: bool,
    /// Some of that data, to be looked for on the server.
    pub suspects: Vec<Extent>,
    /// What the journal says of an intended cut or removal is of an earlier process: it may have
    /// come about.
    pub intents_in_doubt: bool,
    /// The unsent data is an earlier process's: whatever the policy, others may have changed the file
    /// since.
    pub inherited: bool,
    /// There is no unsent data, but something else that an earlier process has left to be done.
    pub recovered: bool,
    /// Changes of ours under way that the journal does not tell of.
    pub changing: u32,
}

/// A change of ours of the server's file that is under way ([`State::changing`]).
pub(crate) struct Changing<'a> {
    node: &'a Node,
    answered: bool,
}

impl Changing<'_> {
    /// The server has answered: what became of the file is for the caller to say. To be called
    /// before the state is locked.
    pub fn done(mut self) {
        self.answered = true;
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let mut state = self.node.state.lock();
        state.changing -= 1;
        if !self.answered {
            state.settled = false;
        }
    }
}

impl Node {
    pub fn new(handle: FileHandle, key: FileKey, size: Option<u64>, base: Option<WccAttr>) -> Self {
        let now = Instant::now();
        Self {
            handle,
            key: AtomicU64::new(key.0),
            size: AtomicU64::new(size.unwrap_or(SIZE_UNKNOWN)),
            local: AtomicBool::new(false),
            treatment: Mutex::new(None),
            state: Mutex::new(State {
                dirty: Dirty::default(),
                base,
                settled: true,
                changed_at: 0,
                told_at: 0,
                overtaken_up_to: 0,
                own_base_at: None,
                mtime: Time::default(),
                ctime: Time::default(),
                times: Times::default(),
                clears_ids: false,
                told: None,
                writer: None,
                fetches: Vec::new(),
                driven: false,
                newest: 0,
                handed: 0,
                answered: 0,
                committed: 0,
                flush_wanted: 0,
                commit_wanted: 0,
                all_wanted: 0,
                handing: false,
                committing: false,
                flushing: false,
                waiting_since: None,
                waiting_bytes: 0,
                handed_bytes: 0,
                last_write: now,
                last_handed: now,
                error: None,
                failing: None,
                failures: 0,
                retry_at: None,
                silences: 0,
                conflict: None,
                said: FileState::default(),
                checked: false,
                in_doubt: false,
                suspects: Vec::new(),
                intents_in_doubt: false,
                inherited: false,
                recovered: false,
                changing: 0,
            }),
            wake: Notify::new(),
            progress: Notify::new(),
            turn: tokio::sync::Mutex::new(()),
            fetching_whole: AtomicBool::new(false),
        }
    }

    pub fn key(&self) -> FileKey {
        FileKey(self.key.load(Ordering::Acquire))
    }

    pub fn set_key(&self, key: FileKey) {
        self.key.store(key.0, Ordering::Release);
    }

    /// The size as programs see it, if it is known.
    pub fn size(&self) -> Option<u64> {
        let size = self.size.load(Ordering::Acquire);
        (size != SIZE_UNKNOWN).then_some(size)
    }

    pub fn set_size(&self, size: Option<u64>) {
        self.size.store(size.unwrap_or(SIZE_UNKNOWN), Ordering::Release);
    }

    /// Where the size is not known, takes it from the server's.
    pub fn size_at_least(&self, state: &State, server: u64, asked: u64) {
        // An answer from before a change of ours may lack what has left the journal since.
        if self.size().is_none() && state.changed_at <= asked {
            self.set_size(Some(server.max(state.dirty.end())));
        }
    }

    /// A change of ours is about to be asked for. To be called without the state's lock.
    pub fn changing(&self) -> Changing<'_> {
        self.state.lock().changing += 1;
        Changing { node: self, answered: false }
    }

    /// Says whether there is unsent data.
    pub fn is_local(&self) -> bool {
        self.local.load(Ordering::Acquire)
    }

    /// To be called with the state's lock held, after every change of what is dirty.
    pub fn note_dirty(&self, state: &State) {
        self.local.store(!state.dirty.is_empty(), Ordering::Release);
    }

    /// Returns what the rules say, as found for this version of the settings or by `find`.
    pub fn treatment(&self, version: u64, find: impl FnOnce() -> Treatment) -> Treatment {
        if let Some((of, treatment)) = *self.treatment.lock()
            && of == version
        {
            return treatment;
        }
        let treatment = find();
        *self.treatment.lock() = Some((version, treatment));
        treatment
    }

    /// The file's path has changed: rules are looked up anew.
    pub fn moved(&self) {
        *self.treatment.lock() = None;
    }
}

impl State {
    /// Marks the READs under way whose answers may lack a change of `start..end`.
    pub fn overtake(&mut self, start: u64, end: u64) {
        for fetch in &mut self.fetches {
            if fetch.start < end && start < fetch.end {
                fetch.overtaken = true;
            }
        }
    }

    /// Marks the READs under way whose answers may lack data that has left the journal.
    pub fn outdate(&mut self, start: u64, end: u64) {
        for fetch in &mut self.fetches {
            if fetch.start < end && start < fetch.end {
                fetch.overtaken = true;
                fetch.outdated = true;
            }
        }
    }

    /// Says whether the server's attributes, asked for when the cache's clock stood at `asked`, tell
    /// of others' changes only.
    pub fn can_judge(&self, asked: u64) -> bool {
        self.changed_at <= asked
            && self.handed <= self.committed
            && !self.handing
            && !self.committing
            && self.changing == 0
            && (self.times == Times::default() || !self.dirty.is_empty() || self.recovered)
    }

    /// Says whether a change of ours that nobody has confirmed may have left the server's file like
    /// this: one that an earlier process had under way when it was killed, or that the server has
    /// not answered.
    pub fn may_be_ours(&self, signature: &WccAttr) -> bool {
        self.in_doubt || self.said.cut_intent == Some(signature.size) || self.is_timed(signature)
    }

    /// Says whether the file is as `base` says, but for the time that we were about to set.
    pub fn is_timed(&self, signature: &WccAttr) -> bool {
        self.said.mtime == Some(signature.mtime)
            && self.base.is_some_and(|base| base.size == signature.size)
    }

    /// Our version's size, as far as can be told without the server.
    pub fn own_size(&self) -> u64 {
        self.base.map_or(0, |base| base.size).max(self.dirty.end())
    }

    /// The pieces of `start..end`, unsent or not, in order.
    pub fn pieces(&self, start: u64, end: u64) -> Vec<Piece> {
        let mut pieces = Vec::new();
        self.dirty.overlay(start, end, &mut |piece| pieces.push(piece));
        pieces
    }

    /// Returns the server's attributes with the time of change that programs have been told.
    pub fn shown(&self, attr: &Attr) -> Attr {
        let told = self.told.filter(|(server, _)| *server == attr.ctime);
        Attr { ctime: told.map_or(attr.ctime, |(_, told)| told), ..*attr }
    }

    /// Puts what the server does not know yet over its attributes. In write-through (not `lazy`) it
    /// knows the times: data is sent before anybody asks.
    pub fn overlay(&self, attr: &mut Attr, size: Option<u64>, lazy: bool) {
        *attr = self.shown(attr);
        if self.dirty.is_empty() && self.settled && self.times == Times::default() {
            return;
        }
        if let Some(size) = size {
            attr.size = size;
        }
        attr.used = attr.used.max(self.dirty.bytes());
        if !lazy {
            return;
        }
        attr.mtime = self.times.mtime.unwrap_or(self.mtime);
        attr.ctime = self.ctime;
        if self.clears_ids {
            attr.mode = without_ids(attr.mode);
        }
        if let Some(atime) = self.times.atime {
            attr.atime = atime;
        }
    }

    /// Nothing is held, and nothing is waited for.
    pub fn is_idle(&self) -> bool {
        self.dirty.is_empty()
            && !self.driven
            && self.error.is_none()
            && self.fetches.is_empty()
            && self.settled
            && self.times == Times::default()
    }
}

/// The mode that a write leaves (`should_remove_suid` of the kernel): without execution by the group,
/// set-group-ID has had another meaning.
fn without_ids(mode: u32) -> u32 {
    let group = if mode & 0o010 != 0 { libc::S_ISGID } else { 0 };
    mode & !(libc::S_ISUID | group)
}

impl Treatment {
    /// Says whether the store is used.
    pub fn keeps(&self) -> bool {
        self.kind != CacheKind::None
    }

    /// Says whether data is sent at leisure.
    pub fn is_lazy(&self) -> bool {
        self.policy == Policy::WriteBack
    }
}
