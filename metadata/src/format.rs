//! The metadata file of a file (paper, section 5): its parts in memory, and its bytes on disk.
//!
//! A metadata file lies in the directory of the file that it speaks of, its *subject*, under the
//! name that [`metadata_name`] gives. It says for which version of the subject it holds (size and
//! mtime: [`Identity`]) and has up to four parts: [`ZeroMap`], [`Hashes`], [`Action`]s and
//! [`WorkingSet`]. docs/on-disk-format.md gives the bytes.
//!
//! What is read here may come from anywhere: [`Metadata::decode`] never panics, allocates no more
//! than a small multiple of the bytes given (and for the zero map a bitmap of at most 2 MiB), and
//! returns only what keeps the invariants of each part. It cannot know whether what is said is
//! true: that takes the subject. The format keeps nothing secret and proves
//! nobody's authorship: its checksums tell damage, not malice.

mod actions;
mod container;
mod error;
mod hashes;
mod listing;
mod name;
mod outline;
mod pieces;
mod varint;
mod working_set;
mod zero;

pub use actions::{ACTIONS_MAX, Action, COMMAND_NAME_BYTES_MAX, Compression};
pub use container::METADATA_BYTES_MAX;
pub use error::FormatError;
pub use hashes::{HASH_BYTES, Hashes, zero_hash};
pub use name::{
    METADATA_SUFFIX, NAME_BYTES_MAX, draft_name, is_metadata_name, metadata_name, subject_name,
};
pub use outline::Outline;
pub use pieces::{HashPieces, PIECE_HASHES};
pub use working_set::{Touched, WORKING_SET_RANGES_MAX, WorkingSet};
pub use zero::ZeroMap;

use gridvfs_vfs::Time;

/// The smallest block that zero maps and hashes may be by, in bytes: the block of the disk cache.
pub const BLOCK_BYTES_MIN: u32 = 4096;
/// The largest, in bytes: what one READ call asks for at most.
pub const BLOCK_BYTES_MAX: u32 = 1 << 20;
/// The block that is chosen unless asked otherwise, in bytes; docs/decisions/0017-metadata-files.md
/// says why.
pub const BLOCK_BYTES_DEFAULT: u32 = 8192;
/// Blocks of a file that has a zero map or hashes: the bitmap in memory takes 2 MiB at most.
pub const BLOCKS_MAX: u64 = 1 << 24;
/// With the default block a file has at most so many; larger files get larger blocks, so that the
/// hashes of one take no more than 32 MiB.
pub const BLOCKS_WANTED_MAX: u64 = 1 << 20;

/// Which version of a file is spoken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Bytes.
    pub size: u64,
    /// When its data was last changed.
    pub mtime: Time,
}

/// What is known of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    /// Of which version of it.
    pub identity: Identity,
    /// The bytes of a block of `zero` and `hashes`: a power of two from [`BLOCK_BYTES_MIN`] to
    /// [`BLOCK_BYTES_MAX`].
    pub block_bytes: u32,
    /// Which blocks are all zero.
    pub zero: Option<ZeroMap>,
    /// What the blocks hold.
    pub hashes: Option<Hashes>,
    /// What to do when it is first accessed, in this order; at most [`ACTIONS_MAX`].
    pub actions: Vec<Action>,
    /// Which ranges are touched first.
    pub working_set: Option<WorkingSet>,
}

/// Returns the number of blocks of a file, the last of which may be shorter.
pub(crate) fn blocks_of(block_bytes: u32, size: u64) -> Result<u64, FormatError> {
    if !block_bytes_valid(block_bytes) {
        return Err(FormatError::BlockBytes(block_bytes));
    }
    let blocks = size.div_ceil(u64::from(block_bytes));
    if blocks > BLOCKS_MAX {
        return Err(FormatError::TooManyBlocks { size, block_bytes });
    }
    Ok(blocks)
}

/// Tells whether a metadata file may have blocks of so many bytes.
pub fn block_bytes_valid(block_bytes: u32) -> bool {
    block_bytes.is_power_of_two() && (BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_bytes)
}

/// Returns the bytes of a block that suit a file of `size` bytes: [`BLOCK_BYTES_DEFAULT`], or the
/// smallest with which it has no more than [`BLOCKS_WANTED_MAX`] blocks.
pub fn block_bytes_for(size: u64) -> u32 {
    let mut block_bytes = BLOCK_BYTES_DEFAULT;
    while block_bytes < BLOCK_BYTES_MAX && size.div_ceil(block_bytes.into()) > BLOCKS_WANTED_MAX {
        block_bytes *= 2;
    }
    block_bytes
}
