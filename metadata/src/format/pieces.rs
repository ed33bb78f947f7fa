//! Hashes in pieces: a long list need not be here before the first of it is used.
//!
//! A metadata file with many hashes has a checksum of each piece of their list, so that one piece can
//! be fetched, and believed, without the others.

use std::ops::Range;
use std::sync::OnceLock;

use super::hashes::is_of_all;
use super::listing::{Listing, Place};
use super::varint::{Reader, put};
use super::{FormatError, HASH_BYTES, Hashes, ZeroMap};

/// Hashes of a piece: 16 KiB, which say what 4 MiB of a file hold. Smaller ones would have a checksum
/// for hardly more than the file's own; larger ones bring more than a random reader has a use for.
pub const PIECE_HASHES: u64 = 512;
/// Hashes of a piece at most: one call brings it.
const PIECE_HASHES_MAX: u64 = 16 * 1024;
const SUM_BYTES: usize = 32;

/// One piece, once it is here.
type Piece = OnceLock<Box<[[u8; HASH_BYTES]]>>;

/// The hashes of a file's blocks, as far as they are here.
pub struct HashPieces {
    listing: Listing,
    /// Where the first hash is in the metadata file.
    at: u64,
    piece_hashes: u64,
    sums: Vec<[u8; SUM_BYTES]>,
    pieces: Vec<Piece>,
}

impl std::fmt::Debug for HashPieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let here = self.pieces.iter().filter(|piece| piece.get().is_some()).count();
        write!(f, "HashPieces({here} of {} here)", self.pieces.len())
    }
}

impl From<Hashes> for HashPieces {
    /// All of them are here.
    fn from(hashes: Hashes) -> Self {
        let (listing, listed) = hashes.into_parts();
        let piece_hashes = listing.listed.max(1);
        let pieces = vec![OnceLock::from(listed.into_boxed_slice())];
        Self { listing, at: 0, piece_hashes, sums: Vec::new(), pieces }
    }
}

impl HashPieces {
    /// Makes them of the part that has the checksums; none of the hashes is here. `hashes`: where
    /// in the file their part is.
    pub(super) fn decode(
        block_bytes: u32,
        size: u64,
        zero: Option<&ZeroMap>,
        hashes: Range<u64>,
        sums: &[u8],
    ) -> Result<Self, FormatError> {
        let listing = Listing::new(block_bytes, size, zero)?;
        let given = (hashes.end - hashes.start).saturating_sub(1) / HASH_BYTES as u64;
        if given != listing.listed {
            return Err(FormatError::HashCount { given, wanted: listing.listed });
        }
        let (piece_hashes, sums) = read_sums(listing.listed, sums)?;
        let pieces = sums.iter().map(|_| Piece::new()).collect();
        // Their first byte says of which blocks they are: of all that are listed.
        Ok(Self { listing, at: hashes.start + 1, piece_hashes, sums, pieces })
    }

    /// Returns the hash of a block; `None` for one past the last, and one that is not here.
    pub fn get(&self, block: u64) -> Option<[u8; HASH_BYTES]> {
        match self.listing.place(block)? {
            Place::Known(hash) => Some(hash),
            Place::Listed(at) => {
                let piece = self.pieces.get((at / self.piece_hashes) as usize)?.get()?;
                piece.get((at % self.piece_hashes) as usize).copied()
            }
        }
    }

    /// Returns how many blocks the file has.
    pub fn blocks(&self) -> u64 {
        self.listing.blocks
    }

    /// Returns the pieces that blocks have their hashes in and that are not here.
    pub fn missing(&self, blocks: Range<u64>) -> impl Iterator<Item = usize> + '_ {
        let (first, end) = (self.listing.rank(blocks.start), self.listing.rank(blocks.end));
        let pieces = match first < end {
            true => first / self.piece_hashes..end.div_ceil(self.piece_hashes),
            false => 0..0,
        };
        pieces.map(|piece| piece as usize).filter(|piece| !self.is_here(*piece))
    }

    /// Says whether a piece is here.
    pub fn is_here(&self, piece: usize) -> bool {
        self.pieces.get(piece).is_some_and(|piece| piece.get().is_some())
    }

    /// Returns the bytes of a piece that is not the last.
    pub fn piece_bytes(&self) -> u64 {
        self.piece_hashes * HASH_BYTES as u64
    }

    /// Returns where in the metadata file a piece is, from its first byte to behind its last.
    pub fn span(&self, piece: usize) -> Range<u64> {
        let ranks = self.ranks(piece);
        let at = |rank| self.at + rank * HASH_BYTES as u64;
        at(ranks.start)..at(ranks.end)
    }

    /// Returns the blocks from the first to the last that have their hash in a piece.
    pub fn blocks_of(&self, piece: usize) -> Range<u64> {
        let ranks = self.ranks(piece);
        self.listing.block_of(ranks.start)..self.listing.block_of(ranks.end)
    }

    fn ranks(&self, piece: usize) -> Range<u64> {
        let first = piece as u64 * self.piece_hashes;
        first.min(self.listing.listed)..(first + self.piece_hashes).min(self.listing.listed)
    }

    /// Takes the bytes of a piece.
    ///
    /// # Errors
    /// They are not those that the metadata file had when it was written.
    pub fn put(&self, piece: usize, bytes: &[u8]) -> Result<(), FormatError> {
        let (Some(sum), Some(place)) = (self.sums.get(piece), self.pieces.get(piece)) else {
            return Err(FormatError::Malformed { what: "a piece that there is not" });
        };
        let span = self.span(piece);
        if bytes.len() as u64 != span.end - span.start || blake3::hash(bytes).as_bytes() != sum {
            return Err(FormatError::Checksum { what: "piece of the hashes" });
        }
        let (hashes, _) = bytes.as_chunks();
        let _ = place.set(hashes.into());
        Ok(())
    }
}

/// Returns the checksums of the pieces of a part of hashes; `None` where it is too short for pieces,
/// or its list is not that of the blocks that the zero map leaves.
pub(super) fn encode(hashes: &[u8], zero: Option<&ZeroMap>) -> Option<Vec<u8>> {
    let (form, list) = hashes.split_first()?;
    let piece_bytes = PIECE_HASHES as usize * HASH_BYTES;
    if list.len() <= piece_bytes || (is_of_all(*form) && zero.is_some()) {
        return None;
    }
    let mut out = Vec::new();
    put(&mut out, PIECE_HASHES);
    for piece in list.chunks(piece_bytes) {
        out.extend_from_slice(blake3::hash(piece).as_bytes());
    }
    Some(out)
}

/// Checks the checksums of pieces with all of a part of hashes.
pub(super) fn check(
    zero: Option<&ZeroMap>,
    hashes: Option<&[u8]>,
    sums: &[u8],
) -> Result<(), FormatError> {
    let Some((form, list)) = hashes.and_then(|hashes| hashes.split_first()) else {
        return Err(FormatError::Malformed { what: "pieces of hashes that are not here" });
    };
    if is_of_all(*form) && zero.is_some() {
        return Err(FormatError::Malformed { what: "pieces of hashes that have zeros among them" });
    }
    let (piece_hashes, sums) = read_sums((list.len() / HASH_BYTES) as u64, sums)?;
    let pieces = list.chunks(piece_hashes as usize * HASH_BYTES);
    match pieces.zip(sums).all(|(piece, sum)| *blake3::hash(piece).as_bytes() == sum) {
        true => Ok(()),
        false => Err(FormatError::Checksum { what: "piece of the hashes" }),
    }
}

/// Reads what [`encode`] wrote: hashes of a piece, and the checksum of each.
fn read_sums(listed: u64, bytes: &[u8]) -> Result<(u64, Vec<[u8; SUM_BYTES]>), FormatError> {
    let mut reader = Reader::new(bytes, "pieces of the hashes");
    let piece_hashes = reader.varint()?;
    let (sums, rest) = reader.take(reader.left())?.as_chunks();
    let fits = (1..=PIECE_HASHES_MAX).contains(&piece_hashes)
        && rest.is_empty()
        && sums.len() as u64 == listed.div_ceil(piece_hashes);
    match fits {
        true => Ok((piece_hashes, sums.to_vec())),
        false => Err(FormatError::Malformed { what: "pieces of the hashes" }),
    }
}
