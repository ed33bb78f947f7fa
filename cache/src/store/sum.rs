//! The checksum of a block.
//!
//! 32 bits of a hash of the data, xored with a number made of the file's key and the block's number,
//! so that the right data of another file or of another block never passes but by a chance of 2^-32.
//! That is why a tag needs no checksum of its own: if it is torn, so that its key, its frame number,
//! its valid bits and its checksums are of different times, nothing passes but data that was once
//! stored as just this block of just this file.
//!
//! Every block that is read is hashed, so the hash is chosen by its speed on 4 KiB
//! (docs/decisions/0014). Which one a store has is a part of its format.

use twox_hash::XxHash3_64;

use super::FileKey;
use super::geometry::mix;

/// A store's hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Algorithm {
    /// CRC-32 (IEEE), of stores of format 1: every flip of up to 3 bits of a block is found, others
    /// but for 2^-32.
    Crc32,
    /// The lower half of the 64-bit XXH3: every change is found but for 2^-32.
    Xxh3,
}

impl Algorithm {
    /// Returns the checksum of block number `block` (its offset / 4096) of a file.
    #[inline]
    pub fn checksum(self, key: FileKey, block: u64, data: &[u8]) -> u32 {
        let hash = match self {
            Self::Crc32 => crc32fast::hash(data),
            Self::Xxh3 => XxHash3_64::oneshot(data) as u32,
        };
        hash ^ (mix(key.0 ^ mix(block)) >> 32) as u32
    }
}
