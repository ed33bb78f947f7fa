//! Which blocks of a file have their hash in a list, and where in it.

use super::hashes::zero_hash;
use super::{FormatError, HASH_BYTES, ZeroMap, blocks_of};

/// So many words of a zero map share an entry of the table that says where their hashes begin.
const RANK_WORDS: usize = 8;

/// The blocks of a file in their order, but for those that are zero by a zero map: the hash of those
/// is known, and not listed.
#[derive(Clone)]
pub(super) struct Listing {
    pub block_bytes: u32,
    pub size: u64,
    pub blocks: u64,
    pub listed: u64,
    skipped: Option<Skipped>,
}

/// Which blocks are not listed.
#[derive(Clone)]
struct Skipped {
    map: ZeroMap,
    /// How many hashes are listed before those of each group of [`RANK_WORDS`] words.
    ranks: Vec<u32>,
}

/// Where the hash of a block is.
pub(super) enum Place {
    /// It is this one.
    Known([u8; HASH_BYTES]),
    /// In the list, after so many others.
    Listed(u64),
}

impl Listing {
    pub fn new(block_bytes: u32, size: u64, zero: Option<&ZeroMap>) -> Result<Self, FormatError> {
        let blocks = blocks_of(block_bytes, size)?;
        if zero.is_some_and(|zero| !zero.fits(block_bytes, size)) {
            return Err(FormatError::Malformed { what: "hashes by another file's zero map" });
        }
        let listed = blocks - zero.map_or(0, ZeroMap::zero_blocks);
        let skipped = zero.filter(|zero| zero.zero_blocks() > 0).map(Skipped::new);
        Ok(Self { block_bytes, size, blocks, listed, skipped })
    }

    /// Returns where the hash of a block is; `None` for one past the last.
    pub fn place(&self, block: u64) -> Option<Place> {
        if block >= self.blocks {
            return None;
        }
        match &self.skipped {
            Some(skipped) if skipped.map.is_zero(block) => {
                Some(Place::Known(self.zero_hash_of(block)))
            }
            _ => Some(Place::Listed(self.rank(block))),
        }
    }

    /// Returns how many blocks before this one are listed.
    pub fn rank(&self, block: u64) -> u64 {
        match &self.skipped {
            _ if block >= self.blocks => self.listed,
            None => block,
            Some(skipped) => skipped.rank(block),
        }
    }

    /// Returns the block whose hash is listed after so many others; past the last one, the number of
    /// blocks.
    pub fn block_of(&self, rank: u64) -> u64 {
        let (mut low, mut high) = (0, self.blocks);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.rank(middle + 1) > rank {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        low
    }

    pub fn zero_hash_of(&self, block: u64) -> [u8; HASH_BYTES] {
        let block_bytes = u64::from(self.block_bytes);
        zero_hash(block_bytes.min(self.size - block * block_bytes) as u32)
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

    fn rank(&self, block: u64) -> u64 {
        let word = (block / 64) as usize;
        let group = word / RANK_WORDS;
        let words = self.map.words();
        let before: u32 =
            words[group * RANK_WORDS..word].iter().map(|word| word.count_zeros()).sum();
        let below = (!words[word] & ((1 << (block % 64)) - 1)).count_ones();
        u64::from(self.ranks[group] + before + below)
    }
}
