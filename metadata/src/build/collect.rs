//! What is found while a file is read: its zeros and its hashes.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{BuildError, ScanError, Visit, is_zero};
use crate::format::{HASH_BYTES, Hashes, METADATA_BYTES_MAX, ZeroMap};

/// Finds zeros, and hashes what is not.
pub struct Collector {
    block_bytes: u32,
    hashes: bool,
    listed: AtomicU64,
}

/// What one thread found in one stretch of blocks.
pub struct Stretch {
    first: u64,
    /// Runs (first block, blocks) of zeros.
    zeros: Vec<(u64, u64)>,
    /// Hashes of the others.
    hashes: Vec<[u8; HASH_BYTES]>,
    read_bytes: u64,
}

impl Collector {
    pub fn new(block_bytes: u32, hashes: bool) -> Self {
        Self { block_bytes, hashes, listed: AtomicU64::new(0) }
    }

    /// Puts together what all threads found. Returns zero map, hashes, and how much was read.
    pub fn assemble(
        &self,
        size: u64,
        found: Vec<Vec<Stretch>>,
    ) -> Result<(ZeroMap, Option<Hashes>, u64), BuildError> {
        let mut found: Vec<Stretch> = found.into_iter().flatten().collect();
        found.sort_unstable_by_key(|stretch| stretch.first);
        let read_bytes = found.iter().map(|stretch| stretch.read_bytes).sum();
        let zeros = found.iter().flat_map(|stretch| stretch.zeros.iter().copied());
        let zero = ZeroMap::from_runs(self.block_bytes, size, zeros).map_err(BuildError::Unfit)?;
        if !self.hashes {
            return Ok((zero, None, read_bytes));
        }
        let mut listed = Vec::with_capacity(self.listed.load(Ordering::Relaxed) as usize);
        found.into_iter().for_each(|stretch| listed.extend(stretch.hashes));
        let hashes = Hashes::new(self.block_bytes, size, Some(&zero), listed);
        Ok((zero, Some(hashes.map_err(BuildError::Unfit)?), read_bytes))
    }
}

impl Visit for Collector {
    type Found = Vec<Stretch>;

    fn hole(&self, found: &mut Self::Found, first: u64, blocks: u64) {
        let zeros = vec![(first, blocks)];
        found.push(Stretch { first, zeros, hashes: Vec::new(), read_bytes: 0 });
    }

    fn data(&self, found: &mut Self::Found, first: u64, bytes: &[u8]) -> Result<(), ScanError> {
        let block_bytes = self.block_bytes as usize;
        let mut stretch = Stretch {
            first,
            zeros: Vec::new(),
            hashes: Vec::new(),
            read_bytes: bytes.len() as u64,
        };
        for (block, bytes) in (first..).zip(bytes.chunks(block_bytes)) {
            if is_zero(bytes) {
                match stretch.zeros.last_mut() {
                    Some((first, count)) if *first + *count == block => *count += 1,
                    _ => stretch.zeros.push((block, 1)),
                }
            } else if self.hashes {
                stretch.hashes.push(*blake3::hash(bytes).as_bytes());
            }
        }
        let more = stretch.hashes.len() as u64;
        let listed = self.listed.fetch_add(more, Ordering::Relaxed) + more;
        found.push(stretch);
        match listed * HASH_BYTES as u64 > METADATA_BYTES_MAX {
            true => Err(ScanError::TooMany),
            false => Ok(()),
        }
    }
}
