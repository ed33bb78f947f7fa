//! Reading: what is unsent from the journal, what is stored from the store, the rest from below.

use bytes::{Bytes, BytesMut};
use gridvfs_vfs::{Caller, Error, FileHandle, ReadData, Result, SeekWhence, Status, Vfs};

use super::Core;
use super::node::{ConflictKind, Node};
use super::options::{Consistency, Treatment};
use crate::counters::add;
use crate::dirty::Piece;
use crate::journal::ReadError;
use crate::store::BLOCK_BYTES;

/// The largest answer; whoever asks for more asks again.
const READ_MAX: u64 = 2 << 20;
/// How often a read is planned anew, because something moved under it.
const ATTEMPTS_MAX: u32 = 64;

/// What became of an attempt to read without asking the server.
enum Outcome {
    /// All of it is there.
    Whole,
    /// The bytes from the first to the second are not.
    Missing(u64, u64),
    /// The journal dropped a piece meanwhile.
    Moved,
}

impl Core {
    /// Reads what is at hand, on the calling thread.
    pub fn read_now(
        &self,
        _caller: &Caller,
        handle: &FileHandle,
        offset: u64,
        out: &mut [u8],
    ) -> Option<Result<usize>> {
        let node = self.nodes.get(handle)?;
        let size = node.size()?;
        let length = size.saturating_sub(offset).min(out.len() as u64) as usize;
        if length == 0 {
            // Others may have written behind what we know to be the end.
            return self.knows_end(&node).then_some(Ok(0));
        }
        let out = &mut out[..length];
        if node.is_local() {
            let outcome = self.fill(&node, offset, out);
            return match outcome {
                Ok(Outcome::Whole) => {
                    add(&self.counters.hits, 1);
                    Some(Ok(length))
                }
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            };
        }
        if self.store.read(node.value().key(), offset, out) < length {
            return None;
        }
        add(&self.counters.hits, 1);
        Some(Ok(length))
    }

    /// Says whether the size is to be believed without asking.
    fn knows_end(&self, node: &Node) -> bool {
        node.is_local()
            || match self.settings.read().consistency {
                Consistency::Shared => {
                    let known = self.index.node(&node.handle);
                    known.is_some_and(|it| it.attr.is_some() && self.coherence.covers(&it))
                }
                consistency => consistency.trusts(),
            }
    }

    /// Fills `out` from the journal, the store, and what is known to be a hole.
    fn fill(&self, node: &Node, offset: u64, out: &mut [u8]) -> Result<Outcome> {
        let end = offset + out.len() as u64;
        let (pieces, hole_from) = {
            let state = node.state.lock();
            // Behind the server's end of file there is nothing to ask for.
            let base = state.base.filter(|_| !state.dirty.is_empty() && state.conflict.is_none());
            (state.pieces(offset, end), base.map_or(u64::MAX, |base| base.size))
        };
        let key = node.key();
        let (mut first, mut last) = (u64::MAX, 0);
        for piece in pieces {
            let (start, stop) = match piece {
                Piece::Held(extent) => (extent.start, extent.end()),
                Piece::Gap { start, end } => (start, end),
            };
            let part = &mut out[(start - offset) as usize..(stop - offset) as usize];
            match piece {
                Piece::Held(extent) => {
                    let skip = u64::from(extent.skip);
                    if let Err(error) = self.journal.read(&extent.place, skip, part) {
                        if matches!(error, ReadError::Gone(_)) {
                            return Ok(Outcome::Moved);
                        }
                        add(&self.counters.damaged, 1);
                        log::error!(
                            "{}: unsent data is damaged at {start}..{stop}: {error}",
                            self.path_text(&node.handle)
                        );
                        return Err(Status::IO.into());
                    }
                }
                Piece::Gap { .. } => {
                    let known = hole_from.clamp(start, stop);
                    part[(known - start) as usize..].fill(0);
                    let there = (known - start) as usize;
                    let read = self.store.read(key, start, &mut part[..there]);
                    if read < there {
                        first = first.min(start + read as u64);
                        last = last.max(known);
                    }
                }
            }
        }
        Ok(if last == 0 { Outcome::Whole } else { Outcome::Missing(first, last) })
    }

    pub async fn read(
        &self,
        caller: &Caller,
        handle: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<ReadData> {
        let wanted = u64::from(count).min(READ_MAX);
        offset.checked_add(wanted).ok_or(Status::INVAL)?;
        let node = self.node(handle);
        let treatment = self.treatment(&node);
        for _ in 0..ATTEMPTS_MAX {
            let Some(size) = node.size() else {
                self.getattr(caller, handle).await?;
                continue;
            };
            if offset >= size && !self.knows_end(&node) {
                let read = self.buffer.read(caller, handle, offset, count).await?;
                if read.data.is_empty() {
                    return Ok(read);
                }
                // It has grown: by how much, and whether it is the same data, its attributes tell.
                self.getattr(caller, handle).await?;
                if node.size().is_none_or(|size| size <= offset) {
                    return Ok(read);
                }
                continue;
            }
            let length = size.saturating_sub(offset).min(wanted) as usize;
            let mut out = BytesMut::zeroed(length);
            match self.fill(&node, offset, &mut out)? {
                Outcome::Whole => {
                    add(&self.counters.hits, 1);
                    let eof = offset + length as u64 >= size;
                    return Ok(ReadData { data: out.freeze(), eof, attr: None });
                }
                Outcome::Moved => continue,
                Outcome::Missing(start, end) => {
                    add(&self.counters.misses, 1);
                    self.walk_missed(caller, &node);
                    self.complete(caller, &node, treatment);
                    let fetched = self.fetch(caller, &node, treatment, start, end).await?;
                    let Some(fetched) = fetched else { continue };
                    if let Some(data) = self.assemble(&node, offset, out, fetched)? {
                        let eof = offset + data.len() as u64 >= size;
                        return Ok(ReadData { data, eof, attr: None });
                    }
                }
            }
        }
        Err(Status::JUKEBOX.into())
    }

    /// Puts an answer together from what was fetched and what is at hand; `None` if something else
    /// is missing by now.
    fn assemble(
        &self,
        node: &Node,
        offset: u64,
        mut out: BytesMut,
        (start, data, eof): (u64, Bytes, bool),
    ) -> Result<Option<Bytes>> {
        let end = offset + out.len() as u64;
        let fetched_end = start + data.len() as u64;
        if start <= offset && end <= fetched_end && !node.is_local() {
            // No copy: the answer is a part of the record that it came in.
            let from = (offset - start) as usize;
            return Ok(Some(data.slice(from..from + out.len())));
        }
        match self.fill(node, offset, &mut out)? {
            Outcome::Whole => Ok(Some(out.freeze())),
            Outcome::Moved => Ok(None),
            Outcome::Missing(first, last) => {
                if first < start || (last > fetched_end && !eof) {
                    return Ok(None);
                }
                self.overlay_fetched(node, offset, &mut out, start, &data);
                if last > fetched_end && !node.is_local() {
                    // The file was cut meanwhile.
                    out.truncate(fetched_end.max(offset).saturating_sub(offset) as usize);
                }
                Ok(Some(out.freeze()))
            }
        }
    }

    /// Puts fetched data into all parts of `out` that are not unsent. Behind the server's end of
    /// file unsent data may go on: what lies between reads as zeros.
    fn overlay_fetched(&self, node: &Node, offset: u64, out: &mut [u8], start: u64, data: &[u8]) {
        let end = offset + out.len() as u64;
        let pieces = node.state.lock().pieces(offset, end);
        let fetched_end = start + data.len() as u64;
        for piece in pieces {
            let Piece::Gap { start: from, end: to } = piece else { continue };
            let (copy_from, copy_to) = (from.max(start), to.min(fetched_end));
            if copy_from < copy_to {
                let part = &mut out[(copy_from - offset) as usize..(copy_to - offset) as usize];
                part.copy_from_slice(
                    &data[(copy_from - start) as usize..(copy_to - start) as usize],
                );
            }
            let zero_from = from.max(fetched_end);
            if zero_from < to && zero_from >= start {
                out[(zero_from - offset) as usize..(to - offset) as usize].fill(0);
            }
        }
    }

    /// Fills `out` with our version of a file in conflict; for what the cache does not have of it,
    /// with what the server has now.
    pub async fn fill_mine(
        &self,
        node: &Node,
        kind: ConflictKind,
        offset: u64,
        out: &mut [u8],
    ) -> Result<()> {
        if let Outcome::Missing(..) = self.fill(node, offset, out)? {
            let mut theirs = Bytes::new();
            if kind == ConflictKind::Changed {
                let count = out.len() as u32;
                theirs = self.buffer.read(&self.own, &node.handle, offset, count).await?.data;
            }
            out.fill(0);
            for at in (0..out.len()).step_by(BLOCK_BYTES) {
                let end = (at + BLOCK_BYTES).min(out.len());
                let block = &mut out[at..end];
                if self.store.read(node.key(), offset + at as u64, block) < block.len() {
                    block.fill(0);
                    let there = theirs.get(at..end.min(theirs.len())).unwrap_or_default();
                    block[..there.len()].copy_from_slice(there);
                }
            }
            self.fill_held(node, offset, out)?;
        }
        Ok(())
    }

    /// Puts unsent data over `out`.
    fn fill_held(&self, node: &Node, offset: u64, out: &mut [u8]) -> Result<()> {
        let end = offset + out.len() as u64;
        let pieces = node.state.lock().pieces(offset, end);
        for piece in pieces {
            if let Piece::Held(extent) = piece {
                let from = (extent.start - offset) as usize;
                let part = &mut out[from..from + extent.len as usize];
                if self.journal.read(&extent.place, u64::from(extent.skip), part).is_err() {
                    return Err(Status::IO.into());
                }
            }
        }
        Ok(())
    }

    /// lseek(2) for data and holes: the server's, with unsent data over them.
    pub async fn seek(
        &self,
        caller: &Caller,
        handle: &FileHandle,
        offset: u64,
        whence: SeekWhence,
    ) -> Result<u64> {
        let node = self.known(handle).filter(|node| node.is_local());
        let Some(node) = node else {
            return self.buffer.seek(caller, handle, offset, whence).await;
        };
        let size = node.size().unwrap_or(0);
        if offset >= size {
            return Err(Status::NXIO.into());
        }
        let server =
            async |at: u64, whence| match self.buffer.seek(caller, handle, at, whence).await {
                Err(Error::Status(Status::NXIO)) => Ok(None),
                result => result.map(Some),
            };
        let held = |from: u64| {
            let mut first = None;
            let state = node.state.lock();
            state.dirty.overlay(from, size, &mut |piece| {
                if let (Piece::Held(extent), None) = (piece, first) {
                    first = Some((extent.start, extent.end()));
                }
            });
            first
        };
        let mut at = offset;
        match whence {
            SeekWhence::Data => {
                let ours = held(at).map(|(start, _)| start);
                let theirs = server(at, whence).await?.filter(|data| *data < size);
                [ours, theirs].into_iter().flatten().min().ok_or(Status::NXIO.into())
            }
            SeekWhence::Hole => loop {
                at = match server(at, whence).await? {
                    Some(hole) => hole.min(size),
                    None => at,
                };
                match held(at) {
                    Some((start, end)) if start == at && end < size => at = end,
                    Some((start, _)) if start == at => return Ok(size),
                    _ => return Ok(at),
                }
            },
        }
    }
}

impl Treatment {
    /// The range that is fetched for a miss of `start..end`: as a random reader has no use for more.
    pub fn around(&self, start: u64, end: u64) -> (u64, u64) {
        const GRAIN: u64 = 32 << 10;
        (start / GRAIN * GRAIN, end.div_ceil(GRAIN) * GRAIN)
    }
}
