//! What all parts of the layer share: the files, the budgets, and the change clock.
//!
//! The *change clock* is a counter that ticks whenever a call of ours that changed a file is
//! answered. A call notes it before it is sent; if the file's own mark is later when the answer
//! comes, the answer may be from before that change.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use gridvfs_vfs::{Attr, FileHandle, FsInfo, Verifier, Vfs};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::budget::{ReadBudget, WriteBudget};
use crate::counters::{Counters, add};
use crate::file::{File, State};
use crate::lru::{Lru, Victims};
use crate::options::BufferOptions;
use crate::unit::Unit;

/// Beyond this many known files, those of which nothing is held are let go.
const FILES_MAX: usize = 16 * 1024;

pub(crate) struct Shared {
    pub inner: Arc<dyn Vfs>,
    pub runtime: Handle,
    pub options: BufferOptions,
    pub read_max: u32,
    pub file_size_max: u64,
    pub counters: Arc<Counters>,
    pub files: DashMap<FileHandle, Arc<File>>,
    pub writes: WriteBudget,
    pub reads: ReadBudget,
    pub lru: Lru,
    pub calls: Arc<Semaphore>,
    pub flight: Semaphore,
    pub verifier: Verifier,
    clock: AtomicU64,
}

/// When a call was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub clock: u64,
    pub at: Instant,
}

impl Shared {
    pub fn new(
        inner: Arc<dyn Vfs>,
        runtime: Handle,
        options: BufferOptions,
        info: &FsInfo,
        verifier: Verifier,
    ) -> Self {
        let options = options.fitted(info.read_max, info.write_max);
        Self {
            inner,
            runtime,
            read_max: if info.read_max == 0 { 64 * 1024 } else { info.read_max },
            file_size_max: if info.file_size_max == 0 { u64::MAX } else { info.file_size_max },
            counters: Arc::default(),
            files: DashMap::new(),
            writes: WriteBudget::new(options.write_max_bytes),
            reads: ReadBudget::new(options.read_max_bytes),
            lru: Lru::default(),
            calls: Arc::new(Semaphore::new(options.write_calls_max)),
            flight: Semaphore::new(options.write_flight_max_bytes),
            verifier,
            clock: AtomicU64::new(1),
            options,
        }
    }

    /// Lets the change clock tick. To be called with the lock of the changed file held.
    pub fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Reads the change clock.
    pub fn clock(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    /// Notes when a call is sent.
    pub fn ask(&self) -> Asked {
        Asked { clock: self.clock(), at: Instant::now() }
    }

    /// Returns the file, known or new.
    pub fn file(&self, handle: &FileHandle) -> Arc<File> {
        if let Some(file) = self.known(handle) {
            return file;
        }
        let count = self.files.len();
        if count >= FILES_MAX && count.is_multiple_of(1024) {
            self.files
                .retain(|_, file| Arc::strong_count(file) > 1 || !file.state.lock().is_idle());
        }
        let chunk = self.options.chunk_bytes;
        self.files.entry(*handle).or_insert_with(|| Arc::new(File::new(*handle, chunk))).clone()
    }

    /// Returns the file if something is known of it.
    pub fn known(&self, handle: &FileHandle) -> Option<Arc<File>> {
        self.files.get(handle).map(|file| file.clone())
    }

    /// Works on a file's state, and gives back the memory that this set free.
    pub fn with<T>(&self, file: &File, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = file.state.lock();
        let result = work(&mut state);
        let freed = state.writing.extents.take_freed();
        drop(state);
        if freed != 0 {
            self.writes.release(freed);
        }
        result
    }

    /// Drops the file if nobody refers to it and nothing is held.
    pub fn prune(&self, handle: &FileHandle) {
        self.files.remove_if(handle, |_, file| {
            // Whoever has a reference got it under this very lock of the map.
            let unused = Arc::strong_count(file) == 1;
            let state = file.state.lock();
            unused && state.forgotten && state.is_idle()
        });
    }

    /// Wakes the drivers of all files.
    pub fn wake_all(&self) {
        self.files.iter().for_each(|file| file.wake.notify_one());
    }

    /// Takes note of attributes and corrects them; see [`State::take_attr`]. Returns whether they
    /// are doubtful.
    pub fn settle(&self, handle: &FileHandle, attr: &mut Attr, asked: Asked) -> bool {
        let Some(file) = self.known(handle) else { return false };
        let taken = self.with(&file, |state| {
            let taken = state.take_attr(attr, asked.clock, asked.at);
            if taken.doubtful {
                state.writing.commit_wanted = state.writing.epoch;
                file.wake.notify_one();
            }
            taken
        });
        self.changed_by_others(taken.dropped);
        taken.doubtful
    }

    /// Lets units go because others have changed their file.
    pub fn changed_by_others(&self, dropped: Vec<Arc<Unit>>) {
        if !dropped.is_empty() {
            add(&self.counters.changed, 1);
            self.dispose(dropped);
        }
    }

    /// Lets units go that their file has dropped.
    pub fn dispose(&self, dropped: Vec<Arc<Unit>>) {
        for unit in dropped {
            self.lru.forget(&unit);
            self.count_waste(&unit);
            if unit.result().is_some() {
                unit.uncharge();
            }
        }
    }

    fn count_waste(&self, unit: &Unit) -> bool {
        let unread = unit.prefetched && !unit.touched.load(Ordering::Relaxed);
        if unread {
            add(&self.counters.wasted_bytes, unit.length as u64);
        }
        unread
    }

    /// Lets fetched units go until `bytes` are free or there are no more victims.
    pub fn evict(&self, victims: Victims, bytes: usize) {
        let mut gone = 0;
        while gone < bytes {
            let Some((file, unit, held)) = self.lru.pop(victims) else { return };
            gone += held;
            let unread = self.count_waste(&unit);
            let mut state = file.state.lock();
            let same = state.reading.units.get(&unit.start).is_some_and(|u| Arc::ptr_eq(u, &unit));
            if same {
                state.reading.units.remove(&unit.start);
            }
            unit.uncharge();
            if unread {
                state.reading.streams.wasted();
            }
        }
    }

    /// Keeps the units that were read from within their limit.
    pub fn trim(&self) {
        let excess = self.lru.touched_bytes().saturating_sub(self.options.clean_max_bytes);
        if excess > 0 {
            self.evict(Victims::Touched, excess);
        }
    }
}
