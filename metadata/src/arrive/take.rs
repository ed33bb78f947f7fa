//! A flight: what is missing is looked for in the cache, then fetched, checked and stored.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use gridvfs_cache::disk::Expected;
use gridvfs_vfs::{
    Caller, Error, FETCH_BYTES_MAX, FETCH_RANGES_MAX, Fetched, FetchedRange, Result, Status, Vfs,
};
use tokio::task::JoinSet;

use super::Arrival;
use super::ranges::calls;
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
        if let (Some(content), false) = (self.content.clone(), missing.is_empty()) {
            let arrival = self.this.upgrade().ok_or(Error::Interrupted)?;
            let (to, ranges) = (expected.clone(), missing);
            let found = tokio::task::spawn_blocking(move || {
                arrival.take_known(&content, &to, &ranges);
            });
            found.await.map_err(|_| Error::Interrupted)?;
            missing = self.missing_of(chunks);
        }
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
            let pieces = Pieces::of(range).ok_or_else(|| {
                Error::Protocol("blocks that came do not fit what was told of them".into())
            })?;
            self.check(&pieces)?;
            for (offset, piece) in pieces.runs() {
                self.store(to, offset, piece)?;
            }
            add(&self.counters.arrived_bytes, range.data.len() as u64);
        }
        Ok(())
    }

    /// Compares what came with the hashes.
    fn check(&self, pieces: &Pieces<'_>) -> Result<()> {
        self.check_blocks(pieces.offset, pieces.blocks.iter().copied())
    }

    /// The same for bytes as they are.
    pub(super) fn check_data(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.check_blocks(offset, data.chunks(BLOCK))
    }

    fn check_blocks<'a>(&self, offset: u64, parts: impl Iterator<Item = &'a [u8]>) -> Result<()> {
        let Some(hashes) = self.facts.hashes() else { return Ok(()) };
        let block = self.facts.block_bytes();
        let mut hasher = blake3::Hasher::new();
        let (mut at, mut filled) = (offset, 0);
        for data in parts {
            hasher.update(data);
            at += data.len() as u64;
            filled += data.len() as u64;
            if filled == block || at == self.version.size {
                let number = (at - filled) / block;
                if hashes.get(number).is_some_and(|hash| *hasher.finalize().as_bytes() != hash) {
                    self.refute(&format!("what came at {} has another hash", at - filled));
                    return Err(outdated());
                }
                hasher.reset();
                filled = 0;
            }
        }
        Ok(())
    }

    /// Stores a run of blocks: data, or zeros.
    pub(super) fn store(&self, to: &Expected, offset: u64, piece: Piece<'_>) -> Result<()> {
        let stored = match piece {
            Piece::Data(data) => to.put(offset, data),
            Piece::Zeros(length) => {
                let end = offset + length;
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

/// A run of blocks that came.
pub(super) enum Piece<'a> {
    Data(&'a [u8]),
    /// So many bytes.
    Zeros(u64),
}

/// The blocks of a range that came, in order, zeros put back.
struct Pieces<'a> {
    offset: u64,
    data: &'a [u8],
    /// Each of 4 KiB, but the last.
    blocks: Vec<&'a [u8]>,
    zero: Vec<bool>,
}

impl<'a> Pieces<'a> {
    /// `None` if the data is not what the bitmap says.
    fn of(range: &'a FetchedRange) -> Option<Self> {
        let count = (range.length as usize).div_ceil(BLOCK);
        let mut rest = &range.data[..];
        let (mut blocks, mut zero) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for number in 0..count {
            let length = BLOCK.min(range.length as usize - number * BLOCK);
            let is_zero = *range.zero.get(number / 8)? >> (number % 8) & 1 == 1;
            let block = match is_zero {
                true => &ZEROS[..length],
                false => {
                    let (block, after) = rest.split_at_checked(length)?;
                    rest = after;
                    block
                }
            };
            blocks.push(block);
            zero.push(is_zero);
        }
        rest.is_empty().then_some(Self { offset: range.offset, data: &range.data, blocks, zero })
    }

    /// The runs of blocks of one kind, each with its offset in the file.
    fn runs(&self) -> Vec<(u64, Piece<'a>)> {
        let mut runs = Vec::new();
        let (mut first, mut taken) = (0, 0);
        while first < self.zero.len() {
            let kind = self.zero[first];
            let count = self.zero[first..].iter().take_while(|zero| **zero == kind).count();
            let bytes: usize = self.blocks[first..first + count].iter().map(|b| b.len()).sum();
            let offset = self.offset + (first * BLOCK) as u64;
            if kind {
                runs.push((offset, Piece::Zeros(bytes as u64)));
            } else {
                runs.push((offset, Piece::Data(&self.data[taken..taken + bytes])));
                taken += bytes;
            }
            first += count;
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_of_one_kind() {
        let data = Bytes::from([vec![1; BLOCK], vec![2; BLOCK], vec![3; 10]].concat());
        let length = (4 * BLOCK + 10) as u32;
        let range = FetchedRange { offset: 8192, length, zero: vec![0b01100], data };
        let pieces = Pieces::of(&range).expect("fits");
        let runs: Vec<(u64, u64, u8)> = pieces
            .runs()
            .iter()
            .map(|(offset, piece)| match piece {
                Piece::Data(data) => (*offset, data.len() as u64, data[0]),
                Piece::Zeros(length) => (*offset, *length, 0),
            })
            .collect();
        let block = BLOCK as u64;
        assert_eq!(
            runs,
            [(8192, 2 * block, 1), (8192 + 2 * block, 2 * block, 0), (8192 + 4 * block, 10, 3)]
        );
        for (zero, length) in
            [(vec![0b00100], length), (vec![], length), (vec![0b01100], length + 1)]
        {
            let range = FetchedRange { zero, length, ..range.clone() };
            assert!(Pieces::of(&range).is_none());
        }
    }
}
