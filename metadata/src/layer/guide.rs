//! What is known of one version of a file, and used while the file is that version.

use std::sync::Arc;

use gridvfs_cache::disk::Version;
use gridvfs_vfs::{Attr, Caller, FileHandle, Result, Vfs};

use super::subject::Subject;
use super::{Core, Told};
use crate::arrive::{Arrival, Facts, Order};
use crate::counters::{Counters, FileReads, add};
use crate::format::{WorkingSet, ZeroMap};

/// See the module's description.
pub(crate) struct Guide {
    pub file: FileHandle,
    pub size: u64,
    /// The cache's version that it was made for.
    version: Option<Version>,
    facts: Arc<Facts>,
    /// How what is missing comes, where there is a disk cache to take it.
    arrival: Option<Arc<Arrival>>,
    counters: Arc<Counters>,
    /// The same of this file alone.
    reads: Arc<FileReads>,
}

impl Guide {
    pub(super) fn new(
        core: &Core,
        subject: &Subject,
        attr: &Attr,
        version: Option<Version>,
        told: Option<Told>,
        profile: Option<WorkingSet>,
    ) -> Self {
        let facts = Arc::new(Facts::new(attr, told));
        let arrival = core.disk.as_ref().zip(version).map(|(disk, version)| {
            let place = disk.path_of(&subject.file);
            let order = Order::new(&facts, profile.as_ref());
            Arrival::new(core, disk.clone(), subject.file, version, facts.clone(), order, place)
        });
        let (counters, reads) = (core.counters.clone(), subject.reads.clone());
        Self { file: subject.file, size: attr.size, version, facts, arrival, counters, reads }
    }

    /// Says whether the file is still the version that this is of, as far as the cache knows.
    pub fn is_current(&self, core: &Core) -> bool {
        match (&core.disk, self.version) {
            (Some(disk), Some(version)) => disk.version(&self.file) == Some(version),
            _ => true,
        }
    }

    /// Says whether attributes are of this version.
    pub fn is_of(&self, attr: &Attr) -> bool {
        self.facts.is_of(attr)
    }

    /// Whether what arrived was not what was known: nothing of this is to be used any more.
    pub fn is_refuted(&self) -> bool {
        self.arrival.as_ref().is_some_and(|arrival| arrival.is_refuted())
    }

    /// Whether more of the metadata file will be read.
    pub fn reads_on(&self) -> bool {
        self.facts.hashes().is_some_and(|hashes| hashes.is_in_pieces())
    }

    pub fn zero(&self) -> Option<&ZeroMap> {
        self.facts.zero()
    }

    /// What is to be fetched ahead begins to arrive.
    pub fn start(&self, caller: &Caller) {
        if let Some(arrival) = &self.arrival {
            arrival.start(caller);
        }
    }

    /// Nothing more is to arrive.
    pub fn stop(&self) {
        if let Some(arrival) = &self.arrival {
            arrival.stop();
        }
    }

    /// Reads what is at hand, on the calling thread: zeros, and what `below` has.
    pub fn read_now(
        &self,
        below: &dyn Vfs,
        caller: &Caller,
        offset: u64,
        out: &mut [u8],
    ) -> Option<Result<usize>> {
        let end = self.size.min(offset.saturating_add(out.len() as u64));
        let Some(zero) = self.zero() else {
            return below.read_now(caller, &self.file, offset, out);
        };
        if offset >= end {
            return below.read_now(caller, &self.file, offset, out);
        }
        let (mut at, mut zeros) = (offset, 0);
        while at < end {
            let (is_zero, until) = zero.run_at(at, end);
            let part = &mut out[(at - offset) as usize..(until - offset) as usize];
            if is_zero {
                part.fill(0);
                zeros += part.len() as u64;
            } else {
                match below.read_now(caller, &self.file, at, part)? {
                    Ok(count) if count == part.len() => {}
                    // Shorter than it was: somebody has changed it.
                    Ok(_) => return None,
                    Err(error) => return Some(Err(error)),
                }
            }
            at = until;
        }
        self.count(zeros, end - offset);
        Some(Ok((end - offset) as usize))
    }

    /// Counts a read that was answered, if there is a zero map.
    pub fn count(&self, zeros: u64, all: u64) {
        if self.zero().is_none() {
            return;
        }
        add(&self.counters.guided_bytes, all);
        add(&self.reads.guided_bytes, all);
        if zeros > 0 {
            add(&self.counters.zero_bytes, zeros);
            add(&self.reads.zero_bytes, zeros);
        }
    }

    /// Has what is missing of a range arrive. Returns whether it was for this to bring.
    pub async fn bring(&self, caller: &Caller, start: u64, end: u64) -> Result<bool> {
        match &self.arrival {
            Some(arrival) => arrival.bring(caller, start, end.min(self.size)).await,
            None => Ok(false),
        }
    }

    /// Has all that is missing arrive. Returns whether that was for this to bring, and came to its
    /// end.
    pub async fn bring_all(
        &self,
        caller: &Caller,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<bool> {
        match &self.arrival {
            Some(arrival) => arrival.bring_all(caller, progress).await,
            None => Ok(false),
        }
    }

    /// The parts of the file: are they zero, where do they begin and end.
    pub fn runs(&self) -> impl Iterator<Item = (bool, u64, u64)> + '_ {
        self.facts.runs(0, self.size)
    }

    /// lseek(2) by the zero map: (is it data, where does that end).
    pub fn run_at(&self, offset: u64) -> Option<(bool, u64)> {
        let (is_zero, end) = self.zero()?.run_at(offset, self.size);
        Some((!is_zero, end))
    }
}
