//! The task that sends a file's data, while there is any.
//!
//! A driver holds nothing: it looks at the file, starts one call, and looks again; when there is
//! nothing to start it sleeps until the next deadline or until it is woken. It ends when all is
//! committed. WRITEs and COMMITs run in tasks of their own, so that commits never stall writes.

use std::sync::Arc;
use std::time::Duration;

use gridvfs_vfs::{Caller, Committed, Error, Result, Stability, Status, Written};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::shared::{Asked, Shared};
use crate::counters::{add, sub};
use crate::extents::{Job, Outcome, Urgency};
use crate::file::{File, State, Writing};

/// The most data that goes out as one durable WRITE instead of WRITE and COMMIT: one round trip
/// less, but the server's disk is waited for with each.
pub(crate) const SYNC_MAX_BYTES: u64 = 64 * 1024;
/// The wait before the first repetition; it doubles up to the option's limit.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// After losing unstable data this often in a row, a server is asked for durable WRITEs only.
const LOSSES_MAX: u32 = 3;

enum Step {
    Send(Job, Stability),
    Commit(Arc<Caller>, u64),
    /// There is something to send, but too many calls are on their way.
    NeedCall,
    Wait(Option<Instant>),
    Done,
}

/// Runs until nothing of the file is held.
pub(crate) async fn drive(shared: Arc<Shared>, file: Arc<File>) {
    let mut permit: Option<OwnedSemaphorePermit> = None;
    loop {
        permit = permit.or_else(|| shared.calls.clone().try_acquire_owned().ok());
        let step = shared.with(&file, |state| shared.step(state, permit.is_some()));
        match step {
            Step::Send(job, stable) => {
                tokio::spawn(send(shared.clone(), file.clone(), job, stable, permit.take()));
            }
            Step::Commit(caller, epoch) => {
                tokio::spawn(commit(shared.clone(), file.clone(), caller, epoch, permit.take()));
            }
            Step::NeedCall => permit = shared.calls.clone().acquire_owned().await.ok(),
            Step::Wait(until) => {
                permit = None;
                match until {
                    None => file.wake.notified().await,
                    Some(until) => {
                        let _ = tokio::time::timeout_at(until, file.wake.notified()).await;
                    }
                }
            }
            Step::Done => break,
        }
    }
    file.progress.notify_waiters();
    let handle = file.handle;
    drop(file);
    shared.prune(&handle);
}

impl Shared {
    fn step(&self, state: &mut State, may_call: bool) -> Step {
        let writing = &mut state.writing;
        if writing.extents.is_empty() && !writing.committing {
            writing.end();
            return Step::Done;
        }
        let now = Instant::now();
        if let Some(until) = writing.retry_at.filter(|until| *until > now) {
            return Step::Wait(Some(until));
        }
        let pressed = self.writes.is_pressed();
        if self.is_commit_due(writing, pressed, now)
            && let Some(caller) = writing.last_caller.clone()
        {
            if !may_call {
                return Step::NeedCall;
            }
            let epoch = writing.epoch;
            writing.epoch += 1;
            writing.committing = true;
            return Step::Commit(caller, epoch);
        }
        let flushing =
            writing.extents.oldest_pending().is_some_and(|oldest| oldest <= writing.flush_to);
        let urgency = if pressed || flushing || writing.draining || writing.sync_wanted {
            Urgency::All
        } else {
            Urgency::DirtySince(now.checked_sub(self.options.write_delay))
        };
        if writing.extents.has_job(urgency, writing.held_from) {
            if !may_call {
                return Step::NeedCall;
            }
            let sync = writing.losses_in_row >= LOSSES_MAX
                || (writing.sync_wanted && writing.extents.is_one_job(SYNC_MAX_BYTES));
            writing.sync_wanted = false;
            let stable = if sync { Stability::FileSync } else { Stability::Unstable };
            if let Some(job) = writing.extents.next_job(urgency, writing.held_from) {
                return Step::Send(job, stable);
            }
        }
        // A deadline that has passed waits for an answer or for whoever holds the file back; both
        // wake the driver.
        let send = writing.extents.oldest_dirty().map(|since| since + self.options.write_delay);
        let waits_for_commit = !writing.committing && !writing.answered.is_empty();
        let commit = waits_for_commit.then(|| writing.last_answer + self.options.commit_idle);
        Step::Wait([send, commit].into_iter().flatten().filter(|at| *at > now).min())
    }

    fn is_commit_due(&self, writing: &Writing, pressed: bool, now: Instant) -> bool {
        let unstable = writing.extents.unstable_bytes();
        !writing.committing
            && !writing.answered.is_empty()
            && (writing.commit_wanted > writing.committed_epoch
                || unstable >= self.options.commit_bytes as u64
                || (pressed && unstable > 0)
                || now >= writing.last_answer + self.options.commit_idle)
    }

    fn end_send(
        &self,
        file: &File,
        job: (u64, u64, u64),
        stable: Stability,
        asked: Asked,
        result: Result<Written>,
    ) {
        let (offset, id, length) = job;
        let result = result.and_then(|written| check(&written, length, stable).map(|()| written));
        let dropped = self.with(file, |state| {
            let now = Instant::now();
            let clock = self.tick();
            let (outcome, error) = match &result {
                Ok(written) => {
                    let epoch = state.writing.epoch;
                    (state.writing.took(written, epoch, now), None)
                }
                Err(error) if is_silence(error) => {
                    state.writing.back_off(error, now, self.options.retry_max);
                    add(&self.counters.resent_bytes, length);
                    (Outcome::Unanswered, None)
                }
                Err(error) => (Outcome::Refused, Some(error)),
            };
            let released = state.writing.extents.answered(offset, id, outcome);
            if let Some(error) = error.filter(|_| !released.is_empty()) {
                add(&self.counters.failed, 1);
                state.writing.error.get_or_insert_with(|| error.clone());
            }
            if let Ok(written) = &result {
                state.wrote(offset + u64::from(written.count), clock);
                if let Some(mut attr) = written.wcc.after {
                    let _ = state.take_attr(&mut attr, asked.clock, asked.at);
                }
            }
            state.released(&released, clock)
        });
        self.dispose(dropped);
        self.after_answer(file, &result);
        if let Ok(written) = &result {
            add(&self.counters.sent, 1);
            add(&self.counters.sent_bytes, u64::from(written.count));
        }
    }

    fn end_commit(&self, file: &File, epoch: u64, result: Result<Committed>) {
        let dropped = self.with(file, |state| {
            let now = Instant::now();
            let clock = self.tick();
            let writing = &mut state.writing;
            writing.committing = false;
            let released = match &result {
                Ok(committed) => {
                    let (released, lost) =
                        writing.extents.committed(epoch, committed.verifier, now);
                    add(&self.counters.resent_bytes, lost);
                    writing.confirm(epoch, Some(committed.verifier));
                    writing.retries = 0;
                    released
                }
                Err(error) if is_silence(error) => {
                    writing.back_off(error, now, self.options.retry_max);
                    Vec::new()
                }
                Err(error) => {
                    let released = writing.extents.commit_refused(epoch);
                    add(&self.counters.failed, 1);
                    writing.error.get_or_insert_with(|| error.clone());
                    writing.confirm(epoch, None);
                    released
                }
            };
            state.released(&released, clock)
        });
        self.dispose(dropped);
        self.after_answer(file, &result);
        add(&self.counters.commits, u64::from(result.is_ok()));
    }

    fn after_answer<T>(&self, file: &File, result: &Result<T>) {
        if let Err(error) = result {
            log::debug!("write-back of {:?}: {error}", file.handle);
            if matches!(error, Error::Unreachable(_)) {
                self.writes.unreachable.notify_waiters();
            }
        }
        file.wake.notify_one();
        file.progress.notify_waiters();
    }
}

async fn send(
    shared: Arc<Shared>,
    file: Arc<File>,
    job: Job,
    stable: Stability,
    permit: Option<OwnedSemaphorePermit>,
) {
    let Job { id, offset, data, caller } = job;
    let length = data.len() as u64;
    let flying = data.len().min(shared.options.write_flight_max_bytes) as u32;
    // The semaphore is never closed.
    let flight = shared.flight.acquire_many(flying).await;
    add(&shared.counters.in_flight, 1);
    let asked = shared.ask();
    let result = shared.inner.write(&caller, &file.handle, offset, data, stable).await;
    sub(&shared.counters.in_flight, 1);
    drop((flight, permit));
    shared.end_send(&file, (offset, id, length), stable, asked, result);
}

async fn commit(
    shared: Arc<Shared>,
    file: Arc<File>,
    caller: Arc<Caller>,
    epoch: u64,
    permit: Option<OwnedSemaphorePermit>,
) {
    let result = shared.inner.commit(&caller, &file.handle, 0, 0).await;
    drop(permit);
    shared.end_commit(&file, epoch, result);
}

/// Says whether an answer means "not now": the data is kept and sent again. Everything else is an
/// answer about the data itself, which is then dropped.
fn is_silence(error: &Error) -> bool {
    matches!(error, Error::Unreachable(_) | Error::Interrupted | Error::Status(Status::JUKEBOX))
}

fn check(written: &Written, length: u64, stable: Stability) -> Result<()> {
    let protocol = |what: &str| Err(Error::Protocol(what.into()));
    match u64::from(written.count) {
        0 => protocol("WRITE took nothing"),
        count if count > length => protocol("WRITE took more than was sent"),
        _ if written.committed < stable => protocol("WRITE is less durable than was asked for"),
        _ => Ok(()),
    }
}

impl Writing {
    /// Notes that the driver ends: nothing is held.
    fn end(&mut self) {
        self.answered.clear();
        self.committed_epoch = self.epoch;
        self.epoch += 1;
        self.driven = false;
        self.sync_wanted = false;
        self.retries = 0;
        self.retry_at = None;
        self.losses_in_row = 0;
    }

    fn took(&mut self, written: &Written, epoch: u64, now: Instant) -> Outcome {
        let stable = written.committed != Stability::Unstable;
        self.last_answer = now;
        self.retries = 0;
        self.retry_at = None;
        if !stable {
            let verifier = self.answered.entry(epoch).or_insert(Some(written.verifier));
            if *verifier != Some(written.verifier) {
                *verifier = None;
            }
        }
        let (count, verifier) = (u64::from(written.count), written.verifier);
        Outcome::Taken { count, stable, verifier, epoch }
    }

    /// Ends the epochs up to `epoch`. `verifier`: what the COMMIT said; `None` if it failed.
    fn confirm(&mut self, epoch: u64, verifier: Option<gridvfs_vfs::Verifier>) {
        let later = self.answered.split_off(&(epoch + 1));
        let covered = std::mem::replace(&mut self.answered, later);
        if verifier.is_some() && covered.values().any(|seen| *seen != verifier) {
            self.losses += 1;
            self.losses_in_row += 1;
        } else {
            self.losses_in_row = 0;
        }
        self.committed_epoch = self.committed_epoch.max(epoch);
    }

    fn back_off(&mut self, error: &Error, now: Instant, retry_max: Duration) {
        // Calls that fail together count once.
        if self.retry_at.is_none_or(|at| at <= now) {
            let pause = RETRY_MIN.saturating_mul(1 << self.retries.min(10)).min(retry_max);
            self.retries = self.retries.saturating_add(1);
            self.retry_at = Some(now + pause);
        }
        if matches!(error, Error::Unreachable(_)) {
            self.silences += 1;
            self.silence = Some(error.clone());
        }
    }
}
