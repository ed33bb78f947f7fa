//! Group commit: whoever comes while a sync runs shares the next one.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use super::Journal;
use crate::crash::{self, Point};

/// The least that the disk is told to write: some milliseconds of its time.
const WRITE_AHEAD_BYTES: u64 = 1 << 20;
/// A multiple of every page size there is.
const PAGE_BYTES: u64 = 64 << 10;

/// What is known of the syncs.
#[derive(Debug, Default)]
pub(super) struct SyncState {
    pub running: bool,
    /// The first error. The kernel may have given up the pages that it could not write, so that a
    /// later success would prove nothing: it stays until the journal is opened anew.
    pub failed: Option<Failure>,
}

#[derive(Clone, Debug)]
pub(super) struct Failure {
    kind: io::ErrorKind,
    message: String,
}

impl Failure {
    pub fn to_error(&self) -> io::Error {
        io::Error::new(self.kind, self.message.clone())
    }
}

impl Journal {
    /// Returns once everything that was appended before the call is on disk.
    ///
    /// After an error every further sync and append fails: only reading and opening anew remain.
    pub fn sync(&self) -> io::Result<()> {
        // Also what an earlier process appended and may not have synced.
        let target = self.newest();
        self.counters.syncs_asked.fetch_add(1, Ordering::Relaxed);
        let mut state = self.syncs.lock();
        loop {
            if let Some(failure) = &state.failed {
                return Err(failure.to_error());
            }
            if self.durable.load(Ordering::Relaxed) >= target {
                return Ok(());
            }
            if !state.running {
                break;
            }
            self.synced.wait(&mut state);
        }
        state.running = true;
        drop(state);
        let result = self.sync_now();
        let mut state = self.syncs.lock();
        state.running = false;
        match &result {
            Ok(durable) => self.durable.store(*durable, Ordering::Relaxed),
            Err(error) => {
                let message = format!("the journal could not be synced: {error}");
                state.failed = Some(Failure { kind: error.kind(), message });
                self.failed.store(true, Ordering::Relaxed);
            }
        }
        self.synced.notify_all();
        result.map(|_| ())
    }

    /// Has the disk begin to write what was appended, each time that there is enough of it, so that
    /// a sync to come finds most of the work done. Waits for nothing and makes nothing durable; to be
    /// called, without a lock held, for data that is to be synced or to stay for long.
    pub fn write_ahead(&self) {
        if self.unbegun.load(Ordering::Relaxed) < WRITE_AHEAD_BYTES {
            return;
        }
        let (segment, from, to) = {
            let mut tail = self.tail.lock();
            self.unbegun.store(0, Ordering::Relaxed);
            let Some(segment) = tail.active.clone() else { return };
            // The last page is still being filled.
            let to = segment.bytes.load(Ordering::Relaxed) / PAGE_BYTES * PAGE_BYTES;
            let from = if tail.begun.0 == segment.number { tail.begun.1 } else { 0 };
            tail.begun = (segment.number, to);
            (segment, from, to)
        };
        if from < to {
            let (from, length) = (from as libc::off64_t, (to - from) as libc::off64_t);
            let how = libc::SYNC_FILE_RANGE_WRITE;
            // SAFETY: a plain system call on a descriptor that is open. An error is no matter here:
            // the sync finds it, too.
            unsafe { libc::sync_file_range(segment.file.as_raw_fd(), from, length, how) };
        }
    }

    /// Syncs all that is there; returns the last sequence number that this covers.
    fn sync_now(&self) -> io::Result<u64> {
        let (segments, directory, up_to) = {
            let mut tail = self.tail.lock();
            let directory = std::mem::take(&mut tail.directory_unsynced);
            (std::mem::take(&mut tail.unsynced), directory, tail.next_seq - 1)
        };
        crash::point(Point::JOURNAL_BEFORE_SYNC);
        for segment in &segments {
            segment.file.sync_data()?;
        }
        if directory {
            self.dir.sync_all()?;
        }
        self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        crash::point(Point::JOURNAL_AFTER_SYNC);
        Ok(up_to)
    }

    /// Returns the number of the last record that was appended; 0 if there is none.
    pub fn newest(&self) -> u64 {
        self.tail.lock().next_seq - 1
    }

    /// Says whether a record is known to be on disk.
    pub fn is_durable(&self, seq: u64) -> bool {
        self.durable.load(Ordering::Relaxed) >= seq
    }

    /// Says why the journal takes nothing more, if so.
    pub(super) fn fail_if_failed(&self) -> io::Result<()> {
        if !self.failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let state = self.syncs.lock();
        state.failed.as_ref().map_or(Ok(()), |failure| Err(failure.to_error()))
    }
}
