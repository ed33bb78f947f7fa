//! A flight: what is missing is looked for in the cache, then fetched, checked and stored.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use gridvfs_cache::disk::Expected;
use gridvfs_vfs::{
    Caller, Error, FETCH_BYTES_MAX, FETCH_RANGES_MAX, Fetched, FetchedRange, FetchedRun, Result,
    Status, Vfs,
};
use tokio::task::JoinSet;

use super::Arrival;
use super::ranges::{calls, join_closest};
use crate::counters::add;

/// The block that the disk cache keeps data by, and zeros are told by, in bytes.
pub(super) const BLOCK: usize = 4096;
pub(super) static ZEROS: [u8; BLOCK] = [0; BLOCK];
/// How hard the server compresses: the level that takes less time than a link of 1 Gbit/s.
const LEVEL: i32 = 1;
/// What one READ asks for at most, where there is no other call, in bytes.
const READ_BYTES: u64 = 256 << 10;

/// What stands for data that is not to be used.
pub(super) fn outdated() -> Error {
    Status::JUKEBOX.into()
}

impl Arrival {
    /// Brings what is missing of chunks.
    pub(super) async fn fetch_chunks(&self, caller: &Caller, chunks: &[u64]) -> Result<()> {
        let (Some(first), Some(last)) = (chunks.iter().min(), chunks.iter().max()) else {
            return Ok(());
        };
        let (start, end) = (self.span_of(*first).0, self.span_of(*last).1);
        let key = self.version.key;
        let expected = self.disk.expect(&self.file, key, start, end).ok_or_else(outdated)?;
        let expected = Arc::new(expected);
        let mut missing = self.missing_of(chunks);
        // Those that are not here come beside the data: it does not wait for them.
        let are_here = self.bring_hashes(caller, &missing).is_empty() && !missing.is_empty();
        if let Some(content) = self.content.clone().filter(|_| are_here) {
            let arrival = self.this.upgrade().ok_or(Error::Interrupted)?;
            let (to, ranges) = (expected.clone(), missing);
            let found = tokio::task::spawn_blocking(move || {
                arrival.take_known(&content, &to, &ranges);
            });
            found.await.map_err(|_| Error::Interrupted)?;
            missing = self.missing_of(chunks);
        }
        join_closest(&mut missing, FETCH_RANGES_MAX);
        // Also of what lies between what was joined.
        let hashes = self.bring_hashes(caller, &missing);
        let block = self.facts.block_bytes();
        for ranges in calls(&missing, block, FETCH_RANGES_MAX, FETCH_BYTES_MAX as u64) {
            let fetched = match self.fetch(caller, &ranges).await {
                Err(Error::Status(Status::JUKEBOX)) => {
                    // It was being changed while it was read: perhaps for good.
                    let attr = self.source.getattr(caller, &self.file).await?;
                    Fetched { attr, ranges: Vec::new() }
                }
                result => result?,
            };
            add(&self.counters.arrivals, 1);
            if !self.facts.is_of(&fetched.attr) {
                expected.observe(fetched.attr);
                self.refute("the file was changed");
                return Err(outdated());
            }
            super::flight::wait(hashes.clone()).await?;
            let (arrival, to) = (self.this.upgrade().ok_or(Error::Interrupted)?, expected.clone());
            let taken = tokio::task::spawn_blocking(move || arrival.take_all(&to, &fetched.ranges));
            taken.await.map_err(|_| Error::Interrupted)??;
        }
        Ok(())
    }

    async fn fetch(&self, caller: &Caller, ranges: &[(u64, u32)]) -> Result<Fetched> {
        if !self.actions.no_fetch.load(Ordering::Relaxed) {
            match self.source.fetch(caller, &self.file, ranges, LEVEL).await {
                Err(Error::Status(Status::NOTSUPP)) => {
                    self.actions.no_fetch.store(true, Ordering::Relaxed);
                }
                result => return result,
            }
        }
        self.read_ranges(caller, ranges).await
    }

    /// The same by READs, side by side.
    async fn read_ranges(&self, caller: &Caller, ranges: &[(u64, u32)]) -> Result<Fetched> {
        let mut reads = JoinSet::new();
        // Whole blocks, so that each can be checked.
        let step = READ_BYTES.max(self.facts.block_bytes());
        for (offset, length) in ranges {
            for (start, end) in self.facts.data_runs(*offset, offset + u64::from(*length)) {
                for at in (start..end).step_by(step as usize) {
                    let (source, caller, file) = (self.source.clone(), caller.clone(), self.file);
                    let until = end.min(at + step);
                    reads.spawn(async move {
                        let data = read_whole(&*source, &caller, &file, at, until).await?;
                        Ok::<_, Error>((at, data))
                    });
                }
            }
        }
        let mut found = Vec::new();
        while let Some(read) = reads.join_next().await {
            found.push(read.map_err(|_| Error::Interrupted)??);
        }
        let attr = self.source.getattr(caller, &self.file).await?;
        let ranges = found.into_iter().map(|(offset, data)| FetchedRange {
            offset,
            length: data.len() as u32,
            zero: vec![0; data.len().div_ceil(BLOCK).div_ceil(8)],
            data,
        });
        Ok(Fetched { attr, ranges: ranges.collect() })
    }

    /// Takes from the cache what it has under other names.
    fn take_known(
        &self,
        content: &crate::content::ContentIndex,
        to: &Expected,
        ranges: &[(u64, u64)],
    ) {
        let Some(hashes) = self.facts.hashes() else { return };
        let block = self.facts.block_bytes();
        let mut data = vec![0; block as usize];
        for (start, end) in ranges {
            for at in (*start..*end).step_by(block as usize) {
                let length = block.min(self.version.size - at) as usize;
                let Some(hash) = hashes.get(at / block) else { continue };
                let out = &mut data[..length];
                if content.find(&self.disk, self.version.key, &hash, out)
                    && to.put(at, out).unwrap_or(false)
                {
                    add(&self.counters.content_bytes, length as u64);
                }
            }
        }
    }

    /// Checks what came and stores it.
    fn take_all(&self, to: &Expected, ranges: &[FetchedRange]) -> Result<()> {
        for range in ranges {
            if !range.is_sound() {
                let why = "blocks that came do not fit what was told of them";
                return Err(Error::Protocol(why.into()));
            }
            let runs: Vec<FetchedRun> = range.runs().collect();
            self.take_runs(to, &runs)?;
            add(&self.counters.arrived_bytes, range.data.len() as u64);
        }
        Ok(())
    }

    /// Checks and stores bytes that lie side by side.
    pub(super) fn take_runs(&self, to: &Expected, runs: &[FetchedRun]) -> Result<()> {
        self.check(runs)?;
        runs.iter().try_for_each(|run| self.store(to, run))
    }

    /// Compares what came with the hashes.
    fn check(&self, runs: &[FetchedRun]) -> Result<()> {
        let Some(hashes) = self.facts.hashes() else { return Ok(()) };
        let block = self.facts.block_bytes();
        let mut hasher = blake3::Hasher::new();
        let mut filled = 0;
        for run in runs {
            for from in (0..run.length as usize).step_by(BLOCK) {
                let to = (from + BLOCK).min(run.length as usize);
                let zeros = &ZEROS[..to - from];
                hasher.update(run.data.as_ref().map_or(zeros, |data| &data[from..to]));
                filled += (to - from) as u64;
                let at = run.offset + to as u64;
                if filled < block && at < self.version.size {
                    continue;
                }
                // One that is not here is on its way again: what came is asked for again.
                let hash = hashes.get((at - filled) / block).ok_or_else(outdated)?;
                if *hasher.finalize().as_bytes() != hash {
                    self.refute(&format!("what came at {} has another hash", at - filled));
                    return Err(outdated());
                }
                hasher.reset();
                filled = 0;
            }
        }
        Ok(())
    }

    /// Stores a run of blocks.
    fn store(&self, to: &Expected, run: &FetchedRun) -> Result<()> {
        let (offset, end) = (run.offset, run.offset + u64::from(run.length));
        let stored = match &run.data {
            Some(data) => to.put(offset, data),
            None => {
                if self.whole.load(Ordering::Acquire) {
                    to.put_zeros(offset, end);
                }
                let mut stored = Ok(true);
                // What the zero map answers needs no room; what it does not is as other data.
                for (from, to_end) in self.facts.data_runs(offset, end) {
                    if self.disk.gap(self.version.key, from, to_end).is_none() {
                        continue;
                    }
                    for at in (from..to_end).step_by(BLOCK) {
                        let length = BLOCK.min((to_end - at) as usize);
                        stored = stored.and_then(|_| to.put(at, &ZEROS[..length]));
                    }
                }
                stored
            }
        };
        match stored {
            Ok(true) => Ok(()),
            Ok(false) => Err(outdated()),
            Err(error) => {
                log::debug!("{}: not stored: {error}", self.path_text());
                Err(Status::NOSPC.into())
            }
        }
    }
}

async fn read_whole(
    source: &dyn Vfs,
    caller: &Caller,
    file: &gridvfs_vfs::FileHandle,
    start: u64,
    end: u64,
) -> Result<Bytes> {
    let mut all = BytesMut::new();
    loop {
        let at = start + all.len() as u64;
        let read = source.read(caller, file, at, (end - at) as u32).await?;
        if all.is_empty() && (read.data.len() as u64 == end - start || read.eof) {
            return Ok(read.data);
        }
        all.extend_from_slice(&read.data);
        if read.eof || read.data.is_empty() || all.len() as u64 >= end - start {
            return Ok(all.freeze());
        }
    }
}
