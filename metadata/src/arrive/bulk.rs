//! What is fetched ahead of need: the working set, then, where an action says so, the whole file.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gridvfs_vfs::{Caller, FetchedRun, Result};
use tokio::sync::Semaphore;

use super::{Arrival, SPAN_BYTES};
use crate::actions::Stream;
use crate::counters::add;
use crate::format::{Action, Compression};

/// Calls of a file's bulk that are under way at once. Each brings up to 1 MiB, a third of that when
/// compressed: together two round trips' worth of a link of 1 Gbit/s and 32 ms.
const CALLS_MAX: u32 = 16;
/// What a profile has fetched ahead before this session has touched anything, in bytes.
const TRIAL_BYTES: u64 = 16 << 20;
/// What it has fetched ahead for each byte that this session touches.
const TRIAL_SHARE: u64 = 8;
/// After so many calls that failed, there is no more bulk.
const FAILURES_MAX: u32 = 3;
/// How often a stream's file is compared with what it was at the start, in bytes.
const CHECK_BYTES: u64 = 64 << 20;
/// How often whoever waits for the bulk looks how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Arrival {
    /// Begins to fetch what is to be fetched ahead of need.
    pub(crate) fn start(&self, caller: &Caller) {
        if self.order.is_empty() {
            return self.note_hashes();
        }
        let Some(arrival) = self.this.upgrade() else { return };
        let caller = caller.clone();
        let bulk = self.bulk.clone().try_lock_owned();
        self.runtime.spawn(async move {
            let _bulk = bulk;
            if !arrival.order.ranges.is_empty() {
                arrival.bring_working_set(&caller).await;
            }
            if !arrival.order.actions.is_empty() {
                arrival.bring_whole(&caller).await;
            }
        });
        self.note_hashes();
    }

    async fn bring_working_set(&self, caller: &Caller) {
        let mut chunks: Vec<u64> = Vec::new();
        let mut listed = std::collections::HashSet::new();
        for (start, end) in &self.order.ranges {
            chunks.extend(self.chunks_of(*start, *end).filter(|chunk| listed.insert(*chunk)));
        }
        if !self.order.on_trial && self.hashes_for_bulk(caller, &self.order.ranges).await.is_err() {
            return;
        }
        self.bring_chunks(caller, chunks.into_iter(), self.order.on_trial).await;
    }

    /// Has chunks fetched in this order, so many at a time. Returns whether that came to its end.
    async fn bring_chunks(
        &self,
        caller: &Caller,
        chunks: impl Iterator<Item = u64>,
        on_trial: bool,
    ) -> bool {
        let per_call = (SPAN_BYTES / self.chunk_bytes).max(1) as usize;
        let calls = Arc::new(Semaphore::new(CALLS_MAX as usize));
        let failures = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let mut chunks = chunks.peekable();
        let mut fetched = 0;
        while chunks.peek().is_some() {
            let Ok(permit) = calls.clone().acquire_owned().await else { return false };
            if self.is_stopped() || failures.load(Ordering::Relaxed) >= FAILURES_MAX {
                return false;
            }
            let group: Vec<u64> =
                chunks.by_ref().filter(|chunk| self.is_missing(*chunk)).take(per_call).collect();
            let bytes = group.len() as u64 * self.chunk_bytes;
            if on_trial && !self.may_go_on(fetched + bytes).await {
                return false;
            }
            fetched += bytes;
            add(&self.counters.ahead_bytes, bytes);
            let flights = self.launch(caller, &group);
            let failures = failures.clone();
            self.runtime.spawn(async move {
                if super::flight::wait(flights).await.is_err() {
                    failures.fetch_add(1, Ordering::Relaxed);
                }
                drop(permit);
            });
        }
        // The last ones have landed when all permits are free.
        let _ = calls.acquire_many(CALLS_MAX).await;
        failures.load(Ordering::Relaxed) == 0 && !self.is_stopped()
    }

    /// Has all that is missing of the file arrive; `progress` is told how many bytes more are there.
    /// What is being fetched ahead of need comes first: a stream of the whole file would bring again
    /// what is asked for beside it. Returns whether that came to its end.
    ///
    /// # Errors
    /// Those of the calls.
    pub(crate) async fn bring_all(
        &self,
        caller: &Caller,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<bool> {
        // What is on trial is wanted now.
        self.asked(self.version.size);
        self.hashes_for_bulk(caller, &[(0, self.version.size)]).await?;
        let bytes_of = |chunk| self.span_of(chunk).1 - self.span_of(chunk).0;
        let mut chunks = self.chunks_of(0, self.version.size).peekable();
        let _bulk = loop {
            while let Some(chunk) = chunks.next_if(|chunk| !self.is_missing(*chunk)) {
                progress(bytes_of(chunk));
            }
            tokio::select! {
                bulk = self.bulk.lock() => break bulk,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        };
        let per_call = (SPAN_BYTES / self.chunk_bytes).max(1) as usize;
        let mut under_way = VecDeque::new();
        loop {
            let (mut group, mut bytes) = (Vec::new(), 0);
            while group.len() < per_call
                && let Some(chunk) = chunks.next()
            {
                bytes += bytes_of(chunk);
                if self.is_missing(chunk) {
                    group.push(chunk);
                }
            }
            let is_last = bytes == 0;
            if is_last || under_way.len() == CALLS_MAX as usize {
                let Some((bytes, flights)) = under_way.pop_front() else { break };
                super::flight::wait(flights).await?;
                progress(bytes);
            }
            if self.is_stopped() {
                return Ok(false);
            }
            if !is_last {
                add(&self.counters.ahead_bytes, group.len() as u64 * self.chunk_bytes);
                under_way.push_back((bytes, self.launch(caller, &group)));
            }
        }
        Ok(!self.is_stopped())
    }

    /// Waits until so much may be fetched on trial; not if nothing is to arrive any more.
    async fn may_go_on(&self, bytes: u64) -> bool {
        loop {
            let mut more = std::pin::pin!(self.more.notified());
            more.as_mut().enable();
            if self.is_stopped() {
                return false;
            }
            let asked = self.asked_bytes.load(Ordering::Relaxed);
            if bytes <= TRIAL_BYTES.saturating_add(asked.saturating_mul(TRIAL_SHARE)) {
                return true;
            }
            more.await;
        }
    }

    /// Brings the whole file, by the first action that can.
    async fn bring_whole(&self, caller: &Caller) {
        let key = self.version.key;
        let all = [(0, self.version.size)];
        let (hashes, kept) = tokio::join!(self.hashes_for_bulk(caller, &all), self.keep_whole());
        if !kept || hashes.is_err() {
            return;
        }
        for action in &self.order.actions {
            if self.is_stopped() {
                return;
            }
            let done = match action {
                Action::Fetch { compression, level } => {
                    self.fetch_whole(caller, *compression, *level).await
                }
                Action::Command { name } => {
                    let path = self.path.as_deref().unwrap_or_default();
                    match self.actions.run(name, path, self.version.size) {
                        Ok(stream) => self.take_stream(caller, stream).await,
                        Err(error) => Err(error),
                    }
                }
            };
            match done {
                Ok(true) => break,
                Ok(false) => return,
                Err(error) => log::warn!("{}: {error}", self.path_text()),
            }
        }
        if self.is_stopped() {
            return;
        }
        let (disk, file) = (self.disk.clone(), self.file);
        let complete = tokio::task::spawn_blocking(move || disk.complete_whole(&file, key)).await;
        match complete {
            Ok(Ok(true)) => add(&self.counters.whole_files, 1),
            Ok(Err(error)) => log::warn!("{}: not kept whole: {error}", self.path_text()),
            _ => {}
        }
    }

    /// Prepares the file cache.
    async fn keep_whole(&self) -> bool {
        let Some(arrival) = self.this.upgrade() else { return false };
        let work = tokio::task::spawn_blocking(move || {
            let (key, size) = (arrival.version.key, arrival.version.size);
            if let Err(error) =
                arrival.disk.keep_whole(&arrival.file, key, arrival.facts.data_bytes())
            {
                let path = arrival.path_text();
                log::warn!("{path}: fetched as it is read, not as a whole: {error}");
                return false;
            }
            arrival.whole.store(true, Ordering::Release);
            if let Some(expected) = arrival.disk.expect(&arrival.file, key, 0, size) {
                for (_, from, to) in arrival.facts.runs(0, size).filter(|run| run.0) {
                    expected.put_zeros(from, to);
                }
            }
            true
        });
        work.await.unwrap_or(false)
    }

    async fn fetch_whole(
        &self,
        caller: &Caller,
        compression: Compression,
        level: i8,
    ) -> Result<bool, String> {
        if let Some(remote) = &self.actions.remote
            && let Some(path) = &self.path
        {
            match remote.stream(path, self.version.size, compression, level).await {
                Ok(stream) => match self.take_stream(caller, stream).await {
                    Ok(done) => return Ok(done),
                    Err(error) => log::warn!("{}: {error}", self.path_text()),
                },
                Err(error) => log::info!("{}: fetched by READs: {error}", self.path_text()),
            }
        }
        let all = self.chunks_of(0, self.version.size);
        Ok(self.bring_chunks(caller, all, false).await)
    }

    /// Takes a file's bytes from its start to its end. `Ok(false)`: nothing is to arrive any more.
    async fn take_stream(
        &self,
        caller: &Caller,
        mut stream: Box<dyn Stream>,
    ) -> Result<bool, String> {
        let size = self.version.size;
        let piece_bytes = SPAN_BYTES.max(self.facts.block_bytes());
        let (mut at, mut checked) = (0, 0);
        let mut piece: Vec<u8> = Vec::new();
        loop {
            let next = stream.next().await?;
            let ended = next.is_none();
            piece.extend_from_slice(&next.unwrap_or_default());
            if at + piece.len() as u64 > size {
                return Err("more came than the file has".into());
            }
            while piece.len() as u64 >= piece_bytes || (ended && !piece.is_empty()) {
                if self.is_stopped() {
                    return Ok(false);
                }
                let length = piece.len().min(piece_bytes as usize);
                let rest = piece.split_off(length);
                self.take_piece(caller, at, std::mem::replace(&mut piece, rest)).await?;
                at += length as u64;
            }
            if ended && at < size {
                return Err(format!("only {at} of {size} bytes came"));
            }
            if ended || at >= checked + CHECK_BYTES {
                checked = at;
                // A stream does not say which version it is of.
                let attr = self.source.getattr(caller, &self.file).await;
                let attr = attr.map_err(|error| error.to_string())?;
                if !self.facts.is_of(&attr) {
                    if let Some(expected) = self.disk.expect(&self.file, self.version.key, 0, size)
                    {
                        expected.observe(attr);
                    }
                    self.refute("the file was changed");
                    return Ok(false);
                }
            }
            if ended {
                return Ok(true);
            }
        }
    }

    async fn take_piece(&self, caller: &Caller, offset: u64, data: Vec<u8>) -> Result<(), String> {
        let hashes = self.bring_hashes(caller, &[(offset, offset + data.len() as u64)]);
        super::flight::wait(hashes).await.map_err(|error| error.to_string())?;
        let arrival = self.this.upgrade().ok_or("the session ends")?;
        let work = tokio::task::spawn_blocking(move || {
            let end = offset + data.len() as u64;
            let key = arrival.version.key;
            let expected = arrival.disk.expect(&arrival.file, key, offset, end);
            let expected = expected.ok_or_else(super::take::outdated)?;
            let length = data.len() as u32;
            arrival
                .take_runs(&expected, &[FetchedRun { offset, length, data: Some(data.into()) }])?;
            add(&arrival.counters.arrived_bytes, end - offset);
            Ok::<(), gridvfs_vfs::Error>(())
        });
        let done = work.await.map_err(|error| error.to_string())?;
        done.map_err(|error| format!("what came cannot be used: {error}"))
    }
}
