//! Content hashes: what each block of a file holds.

use std::sync::OnceLock;

use super::varint::Reader;
use super::{BLOCK_BYTES_MAX, FormatError, ZeroMap, blocks_of};

/// Bytes of a BLAKE3 hash. Not shortened: data is taken from other files by it (see
/// docs/decisions/0017-metadata-files.md).
pub const HASH_BYTES: usize = 32;

/// Which blocks have a hash in the part, by its first byte.
const OF_ALL: u8 = 0;
const OF_NONZERO: u8 = 1;

/// So many words of a zero map share an entry of the table that says where their hashes begin.
const RANK_WORDS: usize = 8;

/// The BLAKE3 hash of each block of a file; of the last block, of its bytes up to the file's size.
///
/// Blocks that are zero by the zero map that they were made with have none in the file, or in
/// memory: theirs is known.
#[derive(Clone)]
pub struct Hashes {
    block_bytes: u32,
    size: u64,
    blocks: u64,
    listed: Vec<[u8; HASH_BYTES]>,
    skipped: Option<Skipped>,
}

/// Which blocks are not listed.
#[derive(Clone)]
struct Skipped {
    map: ZeroMap,
    /// How many hashes are listed before those of each group of [`RANK_WORDS`] words.
    ranks: Vec<u32>,
}

impl std::fmt::Debug for Hashes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hashes({} listed of {} × {})", self.listed.len(), self.blocks, self.block_bytes)
    }
}

impl PartialEq for Hashes {
    fn eq(&self, other: &Self) -> bool {
        self.fits(other.block_bytes, other.size)
            && (0..self.blocks).all(|block| self.get(block) == other.get(block))
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
        let blocks = blocks_of(block_bytes, size)?;
        if zero.is_some_and(|zero| !zero.fits(block_bytes, size)) {
            return Err(FormatError::Malformed { what: "hashes by another file's zero map" });
        }
        let wanted = blocks - zero.map_or(0, ZeroMap::zero_blocks);
        if listed.len() as u64 != wanted {
            return Err(FormatError::HashCount { given: listed.len() as u64, wanted });
        }
        let skipped = zero.filter(|zero| zero.zero_blocks() > 0).map(Skipped::new);
        Ok(Self { block_bytes, size, blocks, listed, skipped })
    }

    /// Returns the hash of a block; `None` for one past the last.
    pub fn get(&self, block: u64) -> Option<[u8; HASH_BYTES]> {
        if block >= self.blocks {
            return None;
        }
        match &self.skipped {
            None => self.listed.get(usize::try_from(block).ok()?).copied(),
            Some(skipped) if skipped.map.is_zero(block) => Some(self.zero_hash_of(block)),
            Some(skipped) => self.listed.get(skipped.place(block)).copied(),
        }
    }

    /// Returns how many blocks there are.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Returns how many hashes are kept: those of the blocks that are not known to be zero.
    pub fn listed(&self) -> u64 {
        self.listed.len() as u64
    }

    /// Tells whether they are of a file of `size` bytes in blocks of `block_bytes`.
    pub fn fits(&self, block_bytes: u32, size: u64) -> bool {
        self.block_bytes == block_bytes && self.size == size
    }

    fn zero_hash_of(&self, block: u64) -> [u8; HASH_BYTES] {
        let block_bytes = u64::from(self.block_bytes);
        zero_hash(block_bytes.min(self.size - block * block_bytes) as u32)
    }

    /// Returns the first block that is zero by a map, and not by its hash.
    fn contradiction(&self, zero: &ZeroMap) -> Option<u64> {
        let differs = |block: &u64| self.get(*block) != Some(self.zero_hash_of(*block));
        zero.runs().flat_map(|(first, count)| first..first + count).find(differs)
    }

    /// Returns them as bytes, for a file that has, or has not, this zero map beside them.
    ///
    /// A map that the hashes contradict does not make them shorter: the contradiction stays to be
    /// found.
    pub(super) fn encode(&self, zero: Option<&ZeroMap>) -> Vec<u8> {
        let zero = zero.filter(|zero| zero.fits(self.block_bytes, self.size));
        let zero = zero.filter(|zero| self.contradiction(zero).is_none());
        let listed = self.blocks - zero.map_or(0, ZeroMap::zero_blocks);
        let mut out = Vec::with_capacity(1 + listed as usize * HASH_BYTES);
        out.push(if zero.is_some() { OF_NONZERO } else { OF_ALL });
        let blocks =
            (0..self.blocks).filter(|block| !zero.is_some_and(|zero| zero.is_zero(*block)));
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

impl Skipped {
    fn new(map: &ZeroMap) -> Self {
        let mut ranks = Vec::with_capacity(map.words().len().div_ceil(RANK_WORDS));
        let mut rank = 0;
        for group in map.words().chunks(RANK_WORDS) {
            ranks.push(rank);
            rank += group.iter().map(|word| word.count_zeros()).sum::<u32>();
        }
        Self { map: map.clone(), ranks }
    }

    /// Returns where the hash of a block that is not zero is in the list.
    fn place(&self, block: u64) -> usize {
        let word = (block / 64) as usize;
        let group = word / RANK_WORDS;
        let words = self.map.words();
        let before: u32 =
            words[group * RANK_WORDS..word].iter().map(|word| word.count_zeros()).sum();
        let below = (!words[word] & ((1 << (block % 64)) - 1)).count_ones();
        (self.ranks[group] + before + below) as usize
    }
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
