//! Why bytes are no metadata file that can be used.

use super::container::{METADATA_BYTES_MAX, VERSION};
use super::{ACTIONS_MAX, BLOCKS_MAX, WORKING_SET_RANGES_MAX};

/// Why a metadata file, or a part that is to go into one, is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It does not begin like one.
    #[error("not a metadata file")]
    Magic,
    /// A later program wrote it.
    #[error(
        "metadata format version {0} is newer than this program, which knows version {VERSION}"
    )]
    Version(u32),
    /// It is longer than [`METADATA_BYTES_MAX`].
    #[error("metadata of {0} bytes; {METADATA_BYTES_MAX} are the most")]
    TooLarge(u64),
    /// Bytes are missing.
    #[error("metadata cut short: {what}")]
    Cut {
        /// Where.
        what: &'static str,
    },
    /// A checksum is not that of the bytes.
    #[error("metadata damaged: the checksum of the {what} is wrong")]
    Checksum {
        /// Of which part.
        what: &'static str,
    },
    /// Intact bytes that no writer of this format writes.
    #[error("metadata malformed: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// A part that is needed to understand the rest, and is not known here.
    #[error("metadata has a part of kind {0} that this program must understand and does not")]
    Required(u32),
    /// Not a size of blocks.
    #[error("blocks of {0} bytes: a power of two from 4096 to 1048576 is wanted")]
    BlockBytes(u32),
    /// More blocks than [`BLOCKS_MAX`].
    #[error("{size} bytes are more than {BLOCKS_MAX} blocks of {block_bytes} bytes")]
    TooManyBlocks {
        /// Of the file, in bytes.
        size: u64,
        /// Of a block, in bytes.
        block_bytes: u32,
    },
    /// A run of blocks, or a range of bytes, is not within the file.
    #[error("{length} from {offset} on are not within the {end} of the file")]
    Outside {
        /// First block or byte.
        offset: u64,
        /// Blocks or bytes.
        length: u64,
        /// Blocks or bytes of the file.
        end: u64,
    },
    /// Two runs or ranges have something in common.
    #[error("ranges overlap at {0}")]
    Overlap(u64),
    /// The number of hashes is not that of the blocks.
    #[error("{given} hashes for {wanted} blocks")]
    HashCount {
        /// How many there are.
        given: u64,
        /// How many there should be.
        wanted: u64,
    },
    /// The zero map says that a block is zero and its hash says that it is not.
    #[error("block {0} is zero by the zero map, but not by its hash")]
    Contradiction(u64),
    /// Too many actions, or ranges of a working set.
    #[error(
        "{0} are too many: {ACTIONS_MAX} actions and {WORKING_SET_RANGES_MAX} ranges are the most"
    )]
    TooMany(u64),
    /// Not an action.
    #[error("{0:?} is no action: fetch, zstd[:LEVEL], gzip[:LEVEL] or command:NAME is wanted")]
    Action(String),
}
