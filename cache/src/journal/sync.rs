//! Group commit: whoever comes while a sync runs shares the next one.

use std::io;
use std::sync::atomic::Ordering;

use super::Journal;
use crate::crash::{self, Point};

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
        let target = self.tail.lock().next_seq - 1;
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
