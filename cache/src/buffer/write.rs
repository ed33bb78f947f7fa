//! Writing: taking data, and waiting until the server has it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use gridvfs_vfs::{Caller, Error, FileHandle, Result, Status};
use tokio::time::Instant;

use super::driver::{SYNC_MAX_BYTES, drive};
use super::shared::Shared;
use crate::budget::note_peak;
use crate::counters::add;
use crate::extents::Extents;
use crate::file::{File, State, Writing};

/// Whether a deferred error of the server is to be taken by this call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    Take,
    Leave,
}

impl Shared {
    /// Takes data. Returns how much of it: less than all only if the server does not answer and
    /// memory is full.
    pub async fn write(
        self: &Arc<Self>,
        caller: &Caller,
        handle: &FileHandle,
        offset: u64,
        mut data: Bytes,
    ) -> Result<usize> {
        let length = data.len();
        let end = offset.checked_add(length as u64).ok_or(Status::FBIG)?;
        if end > self.file_size_max {
            return Err(Status::FBIG.into());
        }
        let file = self.file(handle);
        if let Some(error) = self.with(&file, |state| state.writing.error.take()) {
            return Err(error);
        }
        let chunk = self.options.chunk_bytes;
        let mut taken = 0;
        while !data.is_empty() {
            let part = data.split_to(data.len().min(chunk));
            let (at, bytes) = (offset + taken as u64, part.len());
            let charge = Extents::charge(chunk, at, bytes);
            if !self.writes.try_take(charge)
                && let Err(error) = self.wait_for_memory(charge).await
            {
                return if taken > 0 { Ok(taken) } else { Err(error) };
            }
            self.hold(&file, caller, at, part);
            taken += bytes;
        }
        note_peak(&self.counters.write_peak_bytes, self.writes.used());
        add(&self.counters.writes, 1);
        add(&self.counters.written_bytes, length as u64);
        if self.writes.press(false) {
            self.wake_all();
        }
        Ok(taken)
    }

    async fn wait_for_memory(&self, charge: usize) -> Result<()> {
        add(&self.counters.stalled, 1);
        let mut unreachable = std::pin::pin!(self.writes.unreachable.notified());
        unreachable.as_mut().enable();
        if self.writes.press(true) {
            self.wake_all();
        }
        tokio::select! {
            biased;
            () = self.writes.take(charge) => Ok(()),
            () = unreachable => Err(Error::Unreachable(
                "too much written data is held for it already".into(),
            )),
        }
    }

    /// Puts data among what is held, and sees to it that the file has a driver.
    fn hold(self: &Arc<Self>, file: &Arc<File>, caller: &Caller, offset: u64, data: Bytes) {
        let now = Instant::now();
        let start = self.with(file, |state| {
            state.forgotten = false;
            let writing = &mut state.writing;
            let caller = writing.caller(caller);
            let idle = writing.extents.oldest_pending().is_none();
            writing.extents.insert(offset, data, &caller, writing.generation, now);
            if writing.driven && (idle || writing.extents.has_full_chunk()) {
                file.wake.notify_one();
            }
            !std::mem::replace(&mut writing.driven, true)
        });
        if start {
            self.runtime.spawn(drive(self.clone(), file.clone()));
        }
    }

    /// Waits until the server has everything that was written before.
    pub async fn flush(&self, file: &File, report: Report) -> Result<()> {
        let (target, silences) = self.with(file, |state| {
            let writing = &mut state.writing;
            let target = writing.generation;
            if writing.extents.oldest_pending().is_some_and(|oldest| oldest <= target) {
                writing.generation += 1;
                writing.flush_to = target;
                file.wake.notify_one();
            }
            (target, writing.silences)
        });
        self.until(file, silences, |state| {
            state.writing.extents.oldest_pending().is_none_or(|oldest| oldest > target)
        })
        .await?;
        self.report(file, report)
    }

    /// Waits until everything that was written before is durable on the server.
    pub async fn commit(&self, file: &File, report: Report) -> Result<()> {
        loop {
            let (losses, silences) = self.with(file, |state| {
                let writing = &mut state.writing;
                writing.sync_wanted =
                    writing.answered.is_empty() && writing.extents.is_one_job(SYNC_MAX_BYTES);
                (writing.losses, writing.silences)
            });
            self.flush(file, Report::Leave).await?;
            let target = self.with(file, |state| {
                let writing = &mut state.writing;
                if writing.answered.is_empty() {
                    return None;
                }
                let target = writing.epoch;
                writing.commit_wanted = writing.commit_wanted.max(target);
                file.wake.notify_one();
                Some(target)
            });
            if let Some(target) = target {
                self.until(file, silences, |state| state.writing.committed_epoch >= target).await?;
            }
            if file.state.lock().writing.losses == losses {
                return self.report(file, report);
            }
        }
    }

    fn report(&self, file: &File, report: Report) -> Result<()> {
        if report == Report::Leave {
            return Ok(());
        }
        match self.with(file, |state| state.writing.error.take()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Waits until a file's state is as wanted, or the server has not answered since `silences`
    /// were counted.
    pub async fn until(
        &self,
        file: &File,
        silences: u64,
        mut done: impl FnMut(&mut State) -> bool,
    ) -> Result<()> {
        loop {
            let mut progress = std::pin::pin!(file.progress.notified());
            progress.as_mut().enable();
            let failed = self.with(file, |state| {
                if done(state) {
                    return Some(Ok(()));
                }
                let writing = &state.writing;
                let silent = writing.silences != silences;
                silent.then(|| Err(writing.silence.clone().unwrap_or(Status::IO.into())))
            });
            if let Some(result) = failed {
                return result;
            }
            progress.await;
        }
    }

    /// Writes back and commits all files. Returns the first error; goes on after it. Files that
    /// the server no longer has are no error: their data went with them.
    pub async fn write_back(self: &Arc<Self>) -> Result<()> {
        let files: Vec<Arc<File>> = self.files.iter().map(|file| file.clone()).collect();
        let tasks: Vec<_> = files
            .into_iter()
            .filter(|file| !file.state.lock().is_idle())
            .map(|file| {
                let shared = self.clone();
                self.runtime.spawn(async move {
                    match shared.commit(&file, Report::Take).await {
                        Err(Error::Status(Status::STALE)) => {
                            log::debug!("{:?} was removed before its data was sent", file.handle);
                            Ok(())
                        }
                        result => result,
                    }
                })
            })
            .collect();
        let mut first = Ok(());
        for task in tasks {
            let ended = task.await.unwrap_or_else(|e| Err(Error::Unreachable(e.to_string())));
            first = first.and(ended);
        }
        first
    }

    /// The bytes that are held for writing.
    pub fn held_bytes(&self) -> u64 {
        let held = |file: &File| {
            let state = file.state.lock();
            state.writing.extents.unsent_bytes() + state.writing.extents.unstable_bytes()
        };
        self.files.iter().map(|file| held(&file)).sum()
    }

    /// The number of WRITEs on their way.
    pub fn in_flight(&self) -> u64 {
        self.counters.in_flight.load(Ordering::Relaxed)
    }
}

impl Writing {
    /// Returns the caller, shared with that of earlier writes if it is the same.
    fn caller(&mut self, caller: &Caller) -> Arc<Caller> {
        match &self.last_caller {
            Some(last) if **last == *caller => last.clone(),
            _ => self.last_caller.insert(Arc::new(caller.clone())).clone(),
        }
    }
}
