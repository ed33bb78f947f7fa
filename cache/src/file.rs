//! What the layer knows and holds of one file.
//!
//! One lock a file, held for arithmetic only: never across a call or an await. Two notices: `wake`
//! for the file's driver (the task that sends), `progress` for those who wait for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use gridvfs_vfs::{Attr, Caller, Error, FileHandle, Verifier, WccAttr};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::extents::Extents;
use crate::stream::Streams;
use crate::unit::Unit;

/// A file of which something is known or held.
#[derive(Debug)]
pub(crate) struct File {
    pub handle: FileHandle,
    pub state: Mutex<State>,
    pub wake: Notify,
    pub progress: Notify,
    /// Whoever changes the file other than by writing waits here for his turn: no two at once.
    pub turn: tokio::sync::Mutex<()>,
}

/// The writing side.
#[derive(Debug)]
pub(crate) struct Writing {
    pub extents: Extents,
    /// The flush generation that new data belongs to.
    pub generation: u64,
    /// Generations up to this one are sent without delay.
    pub flush_to: u64,
    /// The commit epoch that answers to WRITEs belong to; a COMMIT covers the epochs before it.
    pub epoch: u64,
    pub committed_epoch: u64,
    pub commit_wanted: u64,
    pub committing: bool,
    /// Epochs with answers that no COMMIT has covered: their verifier, `None` if they differ.
    pub answered: BTreeMap<u64, Option<Verifier>>,
    /// How often the server was found to have lost data.
    pub losses: u64,
    /// The same, since it last had lost none.
    pub losses_in_row: u32,
    /// An error of the server that nobody has been told of yet.
    pub error: Option<Error>,
    /// The number and text of times that the server did not answer.
    pub silences: u64,
    pub silence: Option<Error>,
    pub retry_at: Option<Instant>,
    pub retries: u32,
    pub last_answer: Instant,
    /// Whether the driver runs.
    pub driven: bool,
    /// Pieces at or behind this are not sent for now; `u64::MAX` for none.
    pub held_from: u64,
    /// Everything below `held_from` is sent without delay.
    pub draining: bool,
    /// All that is held may go out as one durable WRITE.
    pub sync_wanted: bool,
    pub last_caller: Option<Arc<Caller>>,
}

/// The reading side, and what is known of the file.
#[derive(Debug)]
pub(crate) struct Reading {
    /// Fetched or being fetched, by start; they never overlap.
    pub units: BTreeMap<u64, Arc<Unit>>,
    pub streams: Streams,
    /// The last change signature seen.
    pub known: Option<WccAttr>,
    /// When it was last seen to be still the same.
    pub confirmed: Option<Instant>,
    /// The layer's clock when this file was last changed by us.
    pub changed_at: u64,
    /// The same, for when its size was set or may have shrunk.
    pub resized_at: u64,
    /// The server's size after our last change, at least (exactly, after a change of size).
    pub own_size: u64,
    /// When held data was last let go.
    pub released_at: u64,
}

impl Reading {
    /// Says whether a range has been fetched, or is being.
    pub fn covers(&self, from: u64, to: u64) -> bool {
        let mut at = from;
        let before = self.units.range(..=from).next_back().filter(|(_, u)| u.end() > from);
        for (start, unit) in before.into_iter().chain(self.units.range(from + 1..to.max(from + 1)))
        {
            if *start > at {
                return false;
            }
            at = unit.end();
        }
        at >= to
    }
}

/// What attributes told.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Units to drop, because others have changed the file.
    pub dropped: Vec<Arc<Unit>>,
    /// The file is shorter than what the server had taken: either somebody has cut it, or the
    /// server has restarted and lost data. A COMMIT tells which.
    pub doubtful: bool,
}

/// See [`File`].
#[derive(Debug)]
pub(crate) struct State {
    pub writing: Writing,
    pub reading: Reading,
    /// Nobody refers to it: it goes when nothing is held.
    pub forgotten: bool,
}

impl File {
    pub fn new(handle: FileHandle, chunk_bytes: usize) -> Self {
        let writing = Writing {
            extents: Extents::new(chunk_bytes),
            generation: 1,
            flush_to: 0,
            epoch: 1,
            committed_epoch: 0,
            commit_wanted: 0,
            committing: false,
            answered: BTreeMap::new(),
            losses: 0,
            losses_in_row: 0,
            error: None,
            silences: 0,
            silence: None,
            retry_at: None,
            retries: 0,
            last_answer: Instant::now(),
            driven: false,
            held_from: u64::MAX,
            draining: false,
            sync_wanted: false,
            last_caller: None,
        };
        let reading = Reading {
            units: BTreeMap::new(),
            streams: Streams::default(),
            known: None,
            confirmed: None,
            changed_at: 0,
            resized_at: 0,
            own_size: 0,
            released_at: 0,
        };
        Self {
            handle,
            state: Mutex::new(State { writing, reading, forgotten: false }),
            wake: Notify::new(),
            progress: Notify::new(),
            turn: tokio::sync::Mutex::new(()),
        }
    }
}

impl State {
    /// Says whether the file can be forgotten without losing anything.
    pub fn is_idle(&self) -> bool {
        self.writing.extents.is_empty() && !self.writing.driven && self.writing.error.is_none()
    }

    /// Takes all units out of the map.
    pub fn drop_units(&mut self) -> Vec<Arc<Unit>> {
        std::mem::take(&mut self.reading.units).into_values().collect()
    }

    /// Takes note of attributes that came with the answer to a call that was sent at `asked`, when
    /// the layer's change clock stood at `clock`, and corrects their size by what the server does
    /// not know yet.
    pub fn take_attr(&mut self, attr: &mut Attr, clock: u64, asked: Instant) -> Taken {
        let mut taken = Taken::default();
        let (reading, extents) = (&mut self.reading, &self.writing.extents);
        let signature = WccAttr::from(&*attr);
        let ours = reading.changed_at > clock || extents.is_sending();
        if ours {
            // The answer may be from before or after our own change: no news of others.
            if reading.known.is_none_or(|known| signature.ctime >= known.ctime) {
                reading.known = Some(signature);
            }
            if reading.resized_at > clock {
                attr.size = reading.own_size;
            } else if reading.changed_at > clock {
                attr.size = attr.size.max(reading.own_size);
            }
        } else {
            // Units of no known version, since READs brought no attributes, may be of any; one that
            // is on its way when the first are seen will bring its own.
            let first = reading.known.is_none();
            if reading.known != Some(signature) {
                let units = std::mem::take(&mut reading.units);
                let (kept, dropped): (BTreeMap<_, _>, BTreeMap<_, _>) =
                    units.into_iter().partition(|(_, unit)| first && unit.result().is_none());
                reading.units = kept;
                taken.dropped = dropped.into_values().collect();
            }
            reading.known = Some(signature);
            reading.confirmed = reading.confirmed.max(Some(asked));
            reading.own_size = attr.size;
            taken.doubtful = attr.size < extents.unstable_end();
        }
        attr.size = attr.size.max(extents.end());
        taken
    }

    /// Takes note of the attributes that a change by our own call left.
    pub fn take_own_attr(&mut self, attr: &mut Attr, clock: u64, asked: Instant) {
        self.reading.known = Some(WccAttr::from(&*attr));
        self.take_attr(attr, clock, asked);
    }

    /// Notes that a WRITE of ours was answered.
    pub fn wrote(&mut self, end: u64, clock: u64) {
        self.reading.changed_at = clock;
        self.reading.own_size = self.reading.own_size.max(end);
    }

    /// Notes that the file's size was set, or may have changed, by a call of ours.
    pub fn resized(&mut self, size: Option<u64>, clock: u64) -> Vec<Arc<Unit>> {
        self.reading.changed_at = clock;
        if let Some(size) = size {
            self.reading.own_size = size;
            self.reading.resized_at = clock;
            self.writing.extents.truncate(size);
        }
        self.drop_units()
    }

    /// Notes that ranges are no longer held: what was fetched of them, or with an end of file from
    /// before them, may be older than they are. Returns the units to drop.
    pub fn released(&mut self, ranges: &[(u64, u64)], clock: u64) -> Vec<Arc<Unit>> {
        let mut dropped = Vec::new();
        if ranges.is_empty() {
            return dropped;
        }
        self.reading.released_at = clock;
        for &(start, end) in ranges {
            let units = &mut self.reading.units;
            let before = units.range(..start).next_back().filter(|(_, unit)| unit.end() > start);
            let mut keys: Vec<u64> = before.map(|(at, _)| *at).into_iter().collect();
            keys.extend(units.range(start..end.max(start)).map(|(at, _)| *at));
            dropped.extend(keys.iter().filter_map(|at| units.remove(at)));
        }
        let at_end = |unit: &Unit| unit.result().is_some_and(|r| r.as_ref().is_ok_and(|f| f.eof));
        let ends: Vec<u64> =
            self.reading.units.iter().filter(|(_, u)| at_end(u)).map(|(at, _)| *at).collect();
        dropped.extend(ends.iter().filter_map(|at| self.reading.units.remove(at)));
        dropped
    }
}
