//! Content hashes: what each block of a file holds.

use std::sync::OnceLock;

use super::listing::{Listing, Place};
use super::varint::Reader;
use super::{BLOCK_BYTES_MAX, FormatError, ZeroMap};

/// Bytes of a BLAKE3 hash. Not shortened: data is taken from other files by it (see
/// docs/decisions/0017-metadata-files.md).
pub const HASH_BYTES: usize = 32;

/// Which blocks have a hash in the part, by its first byte.
const OF_ALL: u8 = 0;
const OF_NONZERO: u8 = 1;

/// The BLAKE3 hash of each block of a file; of the last block, of its bytes up to the file's size.
///
/// Blocks that are zero by the zero map that they were made with have none in the file, or in
/// memory: theirs is known.
#[derive(Clone)]
pub struct Hashes {
    listing: Listing,
    listed: Vec<[u8; HASH_BYTES]>,
}

impl std::fmt::Debug for Hashes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Listing { listed, blocks, block_bytes, .. } = &self.listing;
        write!(f, "Hashes({listed} listed of {blocks} × {block_bytes})")
    }
}

impl PartialEq for Hashes {
    fn eq(&self, other: &Self) -> bool {
        self.fits(other.listing.block_bytes, other.listing.size)
            && (0..self.blocks()).all(|block| self.get(block) == other.get(block))
    }
}

impl Hashes {
    /// Makes the hashes of a file of `size` bytes: `listed` are those of its blocks in order, but
    /// for those that are zero by `zero`.
    pub fn new(
        block_bytes: u32,
        size: u64,
        zero: Option<&ZeroMap>,
        listed: Vec<[u8; HASH_BYTES]>,
    ) -> Result<Self, FormatError> {
        let listing = Listing::new(block_bytes, size, zero)?;
        let (given, wanted) = (listed.len() as u64, listing.listed);
        match given == wanted {
            true => Ok(Self { listing, listed }),
            false => Err(FormatError::HashCount { given, wanted }),
        }
    }

    /// Returns the hash of a block; `None` for one past the last.
    pub fn get(&self, block: u64) -> Option<[u8; HASH_BYTES]> {
        match self.listing.place(block)? {
            Place::Known(hash) => Some(hash),
            Place::Listed(at) => self.listed.get(usize::try_from(at).ok()?).copied(),
        }
    }

    pub(super) fn into_parts(self) -> (Listing, Vec<[u8; HASH_BYTES]>) {
        (self.listing, self.listed)
    }

    /// Returns how many blocks there are.
    pub fn blocks(&self) -> u64 {
        self.listing.blocks
    }

    /// Returns how many hashes are kept: those of the blocks that are not known to be zero.
    pub fn listed(&self) -> u64 {
        self.listed.len() as u64
    }

    /// Tells whether they are of a file of `size` bytes in blocks of `block_bytes`.
    pub fn fits(&self, block_bytes: u32, size: u64) -> bool {
        self.listing.block_bytes == block_bytes && self.listing.size == size
    }

    /// Returns the first block that is zero by a map, and not by its hash.
    fn contradiction(&self, zero: &ZeroMap) -> Option<u64> {
        let differs = |block: &u64| self.get(*block) != Some(self.listing.zero_hash_of(*block));
        zero.runs().flat_map(|(first, count)| first..first + count).find(differs)
    }

    /// Returns them as bytes, for a file that has, or has not, this zero map beside them.
    ///
    /// A map that the hashes contradict does not make them shorter: the contradiction stays to be
    /// found.
    pub(super) fn encode(&self, zero: Option<&ZeroMap>) -> Vec<u8> {
        let zero = zero.filter(|zero| zero.fits(self.listing.block_bytes, self.listing.size));
        let zero = zero.filter(|zero| self.contradiction(zero).is_none());
        let listed = self.blocks() - zero.map_or(0, ZeroMap::zero_blocks);
        let mut out = Vec::with_capacity(1 + listed as usize * HASH_BYTES);
        out.push(if zero.is_some() { OF_NONZERO } else { OF_ALL });
        let blocks =
            (0..self.blocks()).filter(|block| !zero.is_some_and(|zero| zero.is_zero(*block)));
        for hash in blocks.filter_map(|block| self.get(block)) {
            out.extend_from_slice(&hash);
        }
        out
    }

    /// Reads what [`Hashes::encode`] wrote.
    pub(super) fn decode(
        block_bytes: u32,
        size: u64,
        zero: Option<&ZeroMap>,
        bytes: &[u8],
    ) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes, "hashes");
        let skip = match (reader.byte()?, zero) {
            (OF_ALL, _) => None,
            (OF_NONZERO, Some(zero)) => Some(zero),
            (OF_NONZERO, None) => {
                return Err(FormatError::Malformed {
                    what: "hashes by a zero map that is not here",
                });
            }
            _ => return Err(FormatError::Malformed { what: "hashes of unknown form" }),
        };
        let bytes = reader.take(reader.left())?;
        let (listed, rest) = bytes.as_chunks();
        if !rest.is_empty() {
            return Err(FormatError::Cut { what: "hashes" });
        }
        let hashes = Self::new(block_bytes, size, skip, listed.to_vec())?;
        let unskipped = zero.filter(|_| skip.is_none());
        match unskipped.and_then(|zero| hashes.contradiction(zero)) {
            Some(block) => Err(FormatError::Contradiction(block)),
            None => Ok(hashes),
        }
    }
}

/// Says whether a part of hashes that begins with this byte lists those of zero blocks, too.
pub(super) fn is_of_all(form: u8) -> bool {
    form == OF_ALL
}

/// Returns the BLAKE3 hash of so many zero bytes, at most [`BLOCK_BYTES_MAX`] of which count.
pub fn zero_hash(bytes: u32) -> [u8; HASH_BYTES] {
    // Files have their one size of blocks, so that of whole blocks is looked up again and again.
    static WHOLE: [OnceLock<[u8; HASH_BYTES]>; 21] = [const { OnceLock::new() }; 21];
    let compute = || {
        static ZEROS: [u8; 4096] = [0; 4096];
        let mut hasher = blake3::Hasher::new();
        let mut left = bytes.min(BLOCK_BYTES_MAX) as usize;
        while left > 0 {
            let part = left.min(ZEROS.len());
            hasher.update(&ZEROS[..part]);
            left -= part;
        }
        *hasher.finalize().as_bytes()
    };
    match WHOLE.get(bytes.trailing_zeros() as usize).filter(|_| bytes.is_power_of_two()) {
        Some(known) => *known.get_or_init(compute),
        None => compute(),
    }
}
