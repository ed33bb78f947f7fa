//! The checksum of a block.
//!
//! CRC-32 (IEEE) of the data, xored with a number made of the file's key and the block's number.
//! A CRC is linear, so this is the CRC begun from another state: every flip of up to 3 bits of a
//! block is found, and the right data of another file or of another block never passes but by a
//! chance of 2^-32. That is why a tag needs no checksum of its own: if it is torn, so that its key,
//! its frame number, its valid bits and its checksums are of different times, nothing passes but
//! data that was once stored as just this block of just this file.
//!
//! `crc32fast` folds with VPCLMULQDQ where the machine and the compiler have it (0.07 us for 4 KiB
//! where the `crc32` instruction takes 0.24 us), else with PCLMULQDQ or ARM's instructions.

use super::FileKey;
use super::geometry::mix;

/// Returns the checksum of block number `block` (its offset / 4096) of a file.
#[inline]
pub(crate) fn checksum(key: FileKey, block: u64, data: &[u8]) -> u32 {
    crc32fast::hash(data) ^ (mix(key.0 ^ mix(block)) >> 32) as u32
}
