//! Fetching: the tasks that fill units, and the memory they wait for.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use gridvfs_vfs::{Attr, Error, Result};
use tokio::time::Instant;

use super::shared::Shared;
use crate::budget::note_peak;
use crate::counters::add;
use crate::file::File;
use crate::lru::Victims;
use crate::unit::{Fetched, FinishGuard, Unit};

/// How often an answer of no bytes in the middle of a file is asked again, and how long after.
const EMPTY_MAX: u32 = 6;
const EMPTY_PAUSE: Duration = Duration::from_millis(20);

impl Shared {
    /// Starts to fetch units that a reader waits for. If there is no memory for them, the fetch
    /// waits, in order of arrival; it does so in a task of its own and holds nothing meanwhile.
    pub fn launch(self: &Arc<Self>, file: &Arc<File>, units: Vec<Arc<Unit>>) {
        if units.is_empty() {
            return;
        }
        let total = units.iter().map(|unit| unit.length).sum();
        let permit = self.reads.try_take(total).or_else(|| {
            self.evict(Victims::All, total);
            self.reads.try_take(total)
        });
        if let Some(mut permit) = permit {
            note_peak(&self.counters.read_peak_bytes, self.reads.used());
            for unit in units {
                permit.split(unit.length).into_iter().for_each(|part| unit.charge(part));
                self.start(file, unit);
            }
            return;
        }
        let (shared, file) = (self.clone(), file.clone());
        let guards: Vec<FinishGuard> = units.into_iter().map(FinishGuard).collect();
        self.runtime.spawn(async move {
            shared.reads.wanted.fetch_add(total, Ordering::SeqCst);
            shared.evict(Victims::All, total);
            let permit = shared.reads.take(total).await;
            shared.reads.wanted.fetch_sub(total, Ordering::SeqCst);
            note_peak(&shared.counters.read_peak_bytes, shared.reads.used());
            let Some(mut permit) = permit else { return };
            let mut started = Vec::new();
            for guard in &guards {
                permit.split(guard.0.length).into_iter().for_each(|part| guard.0.charge(part));
                started.push(shared.start(&file, guard.0.clone()));
            }
            for task in started {
                let _ = task.await;
            }
        });
    }

    /// Starts to fetch a unit that has its memory.
    pub fn start(
        self: &Arc<Self>,
        file: &Arc<File>,
        unit: Arc<Unit>,
    ) -> tokio::task::JoinHandle<()> {
        let guard = FinishGuard(unit);
        let (shared, file) = (self.clone(), file.clone());
        self.runtime.spawn(async move { shared.fetch(&file, &guard.0).await })
    }

    async fn fetch(self: &Arc<Self>, file: &Arc<File>, unit: &Arc<Unit>) {
        let asked = self.ask();
        let mut attr = None;
        let result = self.read_whole(file, unit, asked.at, &mut attr).await;
        let (dropped, current) = self.with(file, |state| {
            let units = &state.reading.units;
            let current = units.get(&unit.start).is_some_and(|u| Arc::ptr_eq(u, unit));
            let mut dropped = match &mut attr {
                Some(attr) => state.take_attr(attr, asked.clock, asked.at).dropped,
                None => Vec::new(),
            };
            if current && result.is_err() {
                state.reading.units.remove(&unit.start);
            } else if current && !dropped.is_empty() {
                // The answer that showed the change is the one that has it.
                dropped.retain(|other| !Arc::ptr_eq(other, unit));
                state.reading.units.insert(unit.start, unit.clone());
            }
            (dropped, current)
        });
        self.changed_by_others(dropped);
        if let Ok(fetched) = &result {
            add(&self.counters.fetched_bytes, fetched.data.len() as u64);
        }
        unit.finish(result);
        if current {
            self.lru.note(file, unit);
        } else {
            unit.uncharge();
        }
        match self.reads.wanted.load(Ordering::SeqCst) {
            0 => self.trim(),
            wanted => self.evict(Victims::All, wanted),
        }
    }

    /// Reads all of a unit, or up to the end of the file. Only an answer that says so, and whose
    /// attributes do not say otherwise, is the end.
    async fn read_whole(
        &self,
        file: &File,
        unit: &Unit,
        asked: Instant,
        last_attr: &mut Option<Attr>,
    ) -> Result<Fetched> {
        let mut parts: Vec<Bytes> = Vec::new();
        let (mut got, mut empty) = (0usize, 0);
        loop {
            let at = unit.start + got as u64;
            let wanted = (unit.length - got).min(self.read_max as usize);
            add(&self.counters.fetches, 1);
            let reply = self.inner.read(&unit.caller, &file.handle, at, wanted as u32).await?;
            if reply.data.len() > wanted {
                return Err(Error::Protocol("READ brought more than was asked for".into()));
            }
            got += reply.data.len();
            empty = if reply.data.is_empty() { empty + 1 } else { 0 };
            if !reply.data.is_empty() {
                parts.push(reply.data);
            }
            let end = unit.start + got as u64;
            let eof = reply.eof && reply.attr.is_none_or(|attr| attr.size <= end);
            *last_attr = reply.attr.or(*last_attr);
            if eof || got == unit.length {
                return Ok(Fetched { data: joined(parts, got), eof, asked });
            }
            add(&self.counters.short_reads, 1);
            if empty > EMPTY_MAX {
                return Err(Error::Protocol("READ brings nothing in the middle of a file".into()));
            }
            if empty > 0 {
                tokio::time::sleep(EMPTY_PAUSE * empty).await;
            }
        }
    }
}

/// Makes one buffer of several; one is not copied.
pub(crate) fn joined(mut parts: Vec<Bytes>, length: usize) -> Bytes {
    if parts.len() == 1 {
        return parts.swap_remove(0);
    }
    let mut whole = BytesMut::with_capacity(length);
    parts.iter().for_each(|part| whole.extend_from_slice(part));
    whole.freeze()
}
