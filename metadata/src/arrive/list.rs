//! The hashes of a file's blocks: a long list comes in pieces, where it is needed.

use std::ops::Range;
use std::sync::Arc;

use gridvfs_vfs::{Caller, Error, FETCH_RANGES_MAX, Result, Status};

use super::Arrival;
use super::flight::{self, Flight, Flights};
use super::take::outdated;
use crate::format::{HASH_BYTES, HashPieces};
use crate::layer::MetaFile;

/// What one call brings at most, in bytes, if a piece is no more.
const CALL_BYTES: u64 = 1 << 20;

/// See the module's description.
pub(crate) struct HashList {
    pieces: HashPieces,
    /// Where they come from, if they are not all here.
    file: Option<MetaFile>,
    flights: Flights,
}

impl HashList {
    pub fn new(pieces: HashPieces, file: Option<MetaFile>) -> Self {
        Self { pieces, file, flights: Flights::default() }
    }

    /// Returns the hash of a block; `None` for one past the last, and one that is not here.
    pub fn get(&self, block: u64) -> Option<[u8; HASH_BYTES]> {
        self.pieces.get(block)
    }

    /// Whether it comes in pieces.
    pub fn is_in_pieces(&self) -> bool {
        self.file.is_some()
    }

    /// The hashes of some blocks, as far as they are here, with the numbers of the blocks.
    fn of(&self, blocks: Range<u64>) -> impl Iterator<Item = (u64, [u8; HASH_BYTES])> + '_ {
        blocks.filter_map(|block| Some((block, self.get(block)?)))
    }
}

impl Arrival {
    /// Has the hashes of ranges fetched that are not here. Returns the flights to wait for.
    pub(super) fn bring_hashes(&self, caller: &Caller, ranges: &[(u64, u64)]) -> Vec<Arc<Flight>> {
        let Some((list, file)) =
            self.facts.hashes().and_then(|list| Some((list, list.file.clone()?)))
        else {
            return Vec::new();
        };
        let block = self.facts.block_bytes();
        let pieces = ranges
            .iter()
            .flat_map(|(start, end)| list.pieces.missing(start / block..end.div_ceil(block)));
        let mut pieces: Vec<u64> = pieces.map(|piece| piece as u64).collect();
        pieces.sort_unstable();
        pieces.dedup();
        let per_call = (CALL_BYTES / list.pieces.piece_bytes()) as usize;
        let (all, new) = list.flights.board(&pieces, per_call.clamp(1, FETCH_RANGES_MAX));
        for (pieces, flight) in new {
            let Some(arrival) = self.this.upgrade() else { break };
            let (caller, file) = (caller.clone(), file.clone());
            self.runtime.spawn(async move {
                let Some(list) = arrival.facts.hashes() else { return };
                let landing = flight::Landing::new(&list.flights, &pieces, flight);
                let outcome = arrival.fetch_pieces(&caller, &file, list, &pieces).await;
                let came = outcome.is_ok();
                landing.done(outcome);
                if came {
                    arrival.note_pieces(pieces);
                }
            });
        }
        all
    }

    async fn fetch_pieces(
        &self,
        caller: &Caller,
        file: &MetaFile,
        list: &HashList,
        pieces: &[u64],
    ) -> Result<()> {
        let spans: Vec<_> = pieces.iter().map(|piece| list.pieces.span(*piece as usize)).collect();
        let read = match file.read(caller, &spans).await {
            Ok(read) => read,
            Err(error @ (Error::Unreachable(_) | Error::Interrupted)) => return Err(error),
            Err(Error::Status(Status::JUKEBOX)) => {
                self.refute("it was replaced");
                return Err(outdated());
            }
            Err(error) => {
                self.refute(&format!("a piece of it cannot be read: {error}"));
                return Err(outdated());
            }
        };
        for (piece, bytes) in pieces.iter().zip(read) {
            if let Err(error) = list.pieces.put(*piece as usize, &bytes) {
                self.refute(&error.to_string());
                return Err(outdated());
            }
        }
        Ok(())
    }

    /// Others may find in the cache what arrives here, as far as its hashes are known.
    pub(super) fn note_hashes(&self) {
        match self.facts.hashes() {
            Some(list) if !list.is_in_pieces() => {
                self.note(std::iter::once(0..list.pieces.blocks()));
            }
            _ => {}
        }
    }

    fn note_pieces(&self, pieces: Vec<u64>) {
        let Some(list) = self.facts.hashes() else { return };
        self.note(pieces.iter().map(|piece| list.pieces.blocks_of(*piece as usize)));
    }

    fn note(&self, blocks: impl Iterator<Item = Range<u64>>) {
        let (Some(arrival), Some(content)) = (self.this.upgrade(), self.content.clone()) else {
            return;
        };
        let blocks: Vec<_> = blocks.collect();
        self.runtime.spawn_blocking(move || {
            let Some(list) = arrival.facts.hashes() else { return };
            let hashes = blocks.into_iter().flat_map(|blocks| list.of(blocks));
            let block_bytes = arrival.facts.block_bytes() as u32;
            let all = list.pieces.blocks();
            let noted = content.add(&arrival.disk, arrival.version.key, block_bytes, all, hashes);
            if let Err(error) = noted {
                log::debug!("{}: hashes not kept: {error}", arrival.path_text());
            }
        });
    }

    /// Before bulk: waits for the hashes of ranges if the cache may hold what they say. If it knows
    /// nothing of other files, the data need not wait.
    pub(super) async fn hashes_for_bulk(
        &self,
        caller: &Caller,
        ranges: &[(u64, u64)],
    ) -> Result<()> {
        let hashes = self.bring_hashes(caller, ranges);
        let (false, Some(content), Some(arrival)) =
            (hashes.is_empty(), self.content.clone(), self.this.upgrade())
        else {
            return Ok(());
        };
        let others = tokio::task::spawn_blocking(move || {
            let block_bytes = arrival.facts.block_bytes() as u32;
            content.has_others(&arrival.disk, arrival.version.key, block_bytes)
        });
        match others.await {
            Ok(true) => flight::wait(hashes).await,
            _ => Ok(()),
        }
    }
}
