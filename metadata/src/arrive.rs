//! How what is missing of a file with metadata comes.
//!
//! A file is divided into *chunks*. A read has the chunks that it needs fetched, or joins those that
//! are on their way (*flights*); a reader that goes through the file has the next ones fetched
//! ahead, by a window that doubles; and an action or a working set has chunks fetched in bulk, behind
//! the reads: so many at a time that a read's own call waits for little of them. A flight asks for
//! what is missing of its chunks and is not zero, in one call that brings it compressed and without
//! zeros; where the server has no such call, by READs side by side.
//!
//! Hashes say what need not be fetched. A long list of them is fetched in pieces ([`HashList`]):
//! a read that needs a piece has it fetched beside its data, so that it waits for one round trip as
//! it would without hashes; bulk waits for its pieces first where the cache holds other files.
//!
//! What comes is used only if the file is then still the version that is known (its size and mtime
//! come with it), and if it fits its hashes: never a mix of two versions. If not, the metadata is
//! *refuted*: the log says so once, and the file is read as any other.

mod bulk;
mod facts;
mod flight;
mod list;
mod ranges;
mod take;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use gridvfs_cache::DiskCache;
use gridvfs_cache::disk::Version;
use gridvfs_vfs::{Caller, FileHandle, Result, Vfs};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::actions::Actions;
use crate::content::ContentIndex;
use crate::counters::{Counters, add};
use crate::layer::Core;

pub(crate) use facts::{Facts, Order};
use flight::{Flight, Flights};
pub(crate) use list::HashList;

/// By what pieces a file is fetched, in bytes: a random reader has no use for much more, and a call
/// of this size takes 0.5 ms of a link of 1 Gbit/s.
const CHUNK_BYTES: u64 = 64 << 10;
/// The most bytes of a file that one call brings.
const SPAN_BYTES: u64 = 1 << 20;
/// The most that is fetched ahead of a reader that goes through the file: what a link of 1 Gbit/s
/// and 32 ms carries in a round trip, twice.
const AHEAD_BYTES_MAX: u64 = 8 << 20;
/// A read this close behind the last one goes on with it.
const STREAM_SLACK: u64 = 256 << 10;
/// Chunks on their way, of one file.
const FLYING_MAX: usize = 1024;
/// How often what has arrived may be found missing again.
const ATTEMPTS_MAX: u32 = 3;

/// A reader that goes through the file.
#[derive(Default)]
struct Reader {
    end: u64,
    window: u64,
}

/// See the module's description.
pub struct Arrival {
    this: Weak<Arrival>,
    disk: Arc<DiskCache>,
    source: Arc<dyn Vfs>,
    runtime: Handle,
    content: Option<Arc<ContentIndex>>,
    actions: Arc<Actions>,
    counters: Arc<Counters>,
    file: FileHandle,
    version: Version,
    chunk_bytes: u64,
    facts: Arc<Facts>,
    order: Order,
    /// From the mount's root.
    path: Option<Vec<u8>>,
    flights: Flights,
    reader: Mutex<Reader>,
    stopped: AtomicBool,
    refuted: AtomicBool,
    /// What arrives is kept as a whole file.
    whole: AtomicBool,
    /// Held while what is to be fetched ahead of need arrives.
    bulk: Arc<tokio::sync::Mutex<()>>,
    /// Bytes that reads have asked for; what a profile has fetched ahead depends on it.
    asked_bytes: AtomicU64,
    more: Notify,
}

impl Arrival {
    pub(crate) fn new(
        core: &Core,
        disk: Arc<DiskCache>,
        file: FileHandle,
        version: Version,
        facts: Arc<Facts>,
        order: Order,
        path: Option<Vec<u8>>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            disk,
            source: core.source.clone(),
            runtime: core.runtime.clone(),
            content: core.content.clone().filter(|_| facts.hashes().is_some()),
            actions: core.actions.clone(),
            counters: core.counters.clone(),
            file,
            version,
            chunk_bytes: CHUNK_BYTES.max(facts.block_bytes()),
            facts,
            order,
            path,
            flights: Flights::default(),
            reader: Mutex::default(),
            stopped: false.into(),
            refuted: false.into(),
            whole: false.into(),
            bulk: Arc::default(),
            asked_bytes: AtomicU64::new(0),
            more: Notify::new(),
        })
    }

    /// Nothing more is to arrive.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.more.notify_waiters();
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// What came was not what was known.
    pub fn is_refuted(&self) -> bool {
        self.refuted.load(Ordering::Acquire)
    }

    /// Nothing that is known of the file is to be believed any more.
    fn refute(&self, why: &str) {
        if !self.refuted.swap(true, Ordering::AcqRel) {
            add(&self.counters.refused, 1);
            log::warn!("{}: its metadata is not used any more: {why}", self.path_text());
        }
        self.stop();
        // It has holes where the metadata said that there are zeros.
        self.disk.drop_whole(self.version.key);
    }

    fn path_text(&self) -> String {
        match &self.path {
            Some(path) => String::from_utf8_lossy(path).into(),
            None => format!("{:?}", self.file),
        }
    }

    fn chunks_of(&self, start: u64, end: u64) -> std::ops::Range<u64> {
        start / self.chunk_bytes..end.div_ceil(self.chunk_bytes)
    }

    fn span_of(&self, chunk: u64) -> (u64, u64) {
        let start = chunk * self.chunk_bytes;
        (start, (start + self.chunk_bytes).min(self.version.size))
    }

    /// Says whether anything that is not zero is missing of a chunk.
    fn is_missing(&self, chunk: u64) -> bool {
        let (start, end) = self.span_of(chunk);
        self.facts
            .data_runs(start, end)
            .any(|(from, to)| self.disk.gap(self.version.key, from, to).is_some())
    }

    /// So many bytes are wanted by somebody.
    fn asked(&self, bytes: u64) {
        self.asked_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.more.notify_waiters();
    }

    /// Has what is missing of a range arrive. Returns whether it is there: not if nothing arrives
    /// here any more, or it is gone again and again.
    ///
    /// # Errors
    /// Those of the calls.
    pub async fn bring(&self, caller: &Caller, start: u64, end: u64) -> Result<bool> {
        self.asked(end.saturating_sub(start));
        for attempt in 0..ATTEMPTS_MAX {
            if self.is_stopped() {
                return Ok(false);
            }
            let missing: Vec<u64> =
                self.chunks_of(start, end).filter(|chunk| self.is_missing(*chunk)).collect();
            if attempt == 0 {
                let flights = self.launch(caller, &missing);
                self.go_ahead(caller, start, end);
                flight::wait(flights).await?;
            } else if missing.is_empty() {
                return Ok(true);
            } else {
                flight::wait(self.launch(caller, &missing)).await?;
            }
        }
        Ok(self.chunks_of(start, end).all(|chunk| !self.is_missing(chunk)))
    }

    /// Fetches ahead of a reader that goes through the file.
    fn go_ahead(&self, caller: &Caller, start: u64, end: u64) {
        let window = {
            let mut reader = self.reader.lock();
            let goes_on = start <= reader.end + STREAM_SLACK && end > reader.end;
            reader.window = match goes_on && reader.end > 0 {
                true => (reader.window * 2).clamp(SPAN_BYTES / 2, AHEAD_BYTES_MAX),
                false => 0,
            };
            reader.end = end;
            reader.window
        };
        if window == 0 || self.flights.len() >= FLYING_MAX {
            return;
        }
        let until = (end + window).min(self.version.size);
        self.bring_hashes(caller, &[(end, (until + AHEAD_BYTES_MAX).min(self.version.size))]);
        let missing: Vec<u64> =
            self.chunks_of(end, until).filter(|chunk| self.is_missing(*chunk)).collect();
        add(&self.counters.ahead_bytes, missing.len() as u64 * self.chunk_bytes);
        self.launch(caller, &missing);
    }

    /// Has chunks fetched that are not on their way. Returns the flights of all of them.
    fn launch(&self, caller: &Caller, chunks: &[u64]) -> Vec<Arc<Flight>> {
        let per_flight = (SPAN_BYTES / self.chunk_bytes).max(1) as usize;
        let (all, new) = self.flights.board(chunks, per_flight);
        for (chunks, flight) in new {
            let Some(arrival) = self.this.upgrade() else { break };
            let caller = caller.clone();
            self.runtime.spawn(async move {
                let landing = flight::Landing::new(&arrival.flights, &chunks, flight);
                landing.done(arrival.fetch_chunks(&caller, &chunks).await);
            });
        }
        all
    }
}
