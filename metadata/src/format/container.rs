//! The file as a whole: header, table of parts, parts.
//!
//! Checksums are BLAKE3, not a CRC: a metadata file has megabytes of hashes by which data is later
//! taken for other data, so damage must not pass once in four billion files; the crate is here
//! anyway, and hashing takes 0.3 ms a megabyte. Header and table have one, and each part its own,
//! so that parts that are not known here are checked, too, and one may be read without the others.

use super::outline::Outline;
use super::{FormatError, Hashes, Identity, Metadata, actions, pieces};

/// Bytes of a metadata file at most: it is read whole into memory at the first access of its
/// subject. Room for the hashes of 2 million blocks, twice what a generator with its own choice of
/// blocks writes.
pub const METADATA_BYTES_MAX: u64 = 64 << 20;

/// The version of the format that is written and read here.
pub(super) const VERSION: u32 = 1;

pub(super) const MAGIC: &[u8; 8] = b"GVFSMETA";
/// The header up to its checksum.
pub(super) const HEADER_BYTES: usize = 64;
pub(super) const CHECKSUM_BYTES: usize = 32;
/// Kind, flags, offset, length, checksum.
pub(super) const ENTRY_BYTES: usize = 4 + 4 + 8 + 8 + CHECKSUM_BYTES;
/// Parts at most: far more than there are kinds.
pub(super) const PARTS_MAX: u32 = 16;

/// A part that a reader may skip if it does not know its kind has this flag not set.
pub(super) const FLAG_REQUIRED: u32 = 1;

pub(super) const ZERO_MAP: u32 = 1;
pub(super) const HASHES: u32 = 2;
pub(super) const ACTIONS: u32 = 3;
pub(super) const WORKING_SET: u32 = 4;
pub(super) const HASH_PIECES: u32 = 5;

impl Metadata {
    /// Returns the metadata of a file of which nothing else is known.
    pub fn new(identity: Identity, block_bytes: u32) -> Self {
        Self {
            identity,
            block_bytes,
            zero: None,
            hashes: None,
            actions: Vec::new(),
            working_set: None,
        }
    }

    /// Fails if it says what [`Metadata::decode`] would refuse.
    pub fn check(&self) -> Result<(), FormatError> {
        if !super::block_bytes_valid(self.block_bytes) {
            return Err(FormatError::BlockBytes(self.block_bytes));
        }
        let fits =
            |fits: bool, what| if fits { Ok(()) } else { Err(FormatError::Malformed { what }) };
        let (block_bytes, size) = (self.block_bytes, self.identity.size);
        if let Some(zero) = &self.zero {
            fits(zero.fits(block_bytes, size), "a zero map of another size")?;
        }
        if let Some(hashes) = &self.hashes {
            fits(hashes.fits(block_bytes, size), "hashes of another size")?;
        }
        if let Some(action) = self.actions.iter().find(|action| !action.is_valid()) {
            return Err(FormatError::Action(action.to_string()));
        }
        if self.actions.len() > actions::ACTIONS_MAX {
            return Err(FormatError::TooMany(self.actions.len() as u64));
        }
        self.working_set.as_ref().map_or(Ok(()), |set| set.check(size))
    }

    /// Returns it as the bytes of a metadata file. What [`Metadata::check`] refuses is left out: a
    /// part of another size, an action that is not valid; a working set is tidied.
    pub fn encode(&self) -> Vec<u8> {
        let block_bytes = match super::block_bytes_valid(self.block_bytes) {
            true => self.block_bytes,
            false => super::BLOCK_BYTES_DEFAULT,
        };
        let size = self.identity.size;
        let zero = self.zero.as_ref().filter(|zero| zero.fits(block_bytes, size));
        let hashes = self.hashes.as_ref().filter(|hashes| hashes.fits(block_bytes, size));
        let mut parts = Vec::new();
        if let Some(zero) = zero {
            parts.push((ZERO_MAP, zero.encode()));
        }
        let mut pieces = None;
        if let Some(hashes) = hashes {
            let list = hashes.encode(zero);
            pieces = pieces::encode(&list, zero);
            parts.push((HASHES, list));
        }
        if self.actions.iter().any(|action| action.is_valid()) {
            parts.push((ACTIONS, actions::encode(&self.actions)));
        }
        if let Some(set) = &self.working_set {
            parts.push((WORKING_SET, set.encode(size)));
        }
        parts.extend(pieces.map(|pieces| (HASH_PIECES, pieces)));
        container(&self.identity, block_bytes, &parts)
    }

    /// Reads the bytes of a metadata file, all of them.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let outline = Outline::read(bytes, bytes.len() as u64)?;
        let part = |kind| match outline.entry(kind) {
            Some(entry) => entry.checked(bytes, 0).map(Some),
            None => Ok(None),
        };
        // Those of kinds not known here are checked, too.
        outline.entries.iter().try_for_each(|entry| part(entry.kind).map(drop))?;
        let mut metadata = outline.without_hashes(part)?;
        let (block_bytes, size) = (metadata.block_bytes, metadata.identity.size);
        let zero = metadata.zero.as_ref();
        let hashes = part(HASHES)?;
        if let Some(sums) = part(HASH_PIECES)? {
            pieces::check(zero, hashes, sums)?;
        }
        if let Some(hashes) = hashes {
            metadata.hashes = Some(Hashes::decode(block_bytes, size, zero, hashes)?);
        }
        Ok(metadata)
    }
}

fn container(identity: &Identity, block_bytes: u32, parts: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let begin = HEADER_BYTES + CHECKSUM_BYTES + parts.len() * ENTRY_BYTES;
    let total = begin + parts.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend((parts.len() as u32).to_le_bytes());
    header.extend((total as u64).to_le_bytes());
    header.extend(identity.size.to_le_bytes());
    header.extend(identity.mtime.seconds.to_le_bytes());
    header.extend(identity.mtime.nanoseconds.min(999_999_999).to_le_bytes());
    header.extend(block_bytes.to_le_bytes());
    header.resize(HEADER_BYTES, 0);
    let mut table = Vec::with_capacity(parts.len() * ENTRY_BYTES);
    let mut at = begin as u64;
    for (kind, bytes) in parts {
        table.extend(kind.to_le_bytes());
        table.extend(0u32.to_le_bytes());
        table.extend(at.to_le_bytes());
        table.extend((bytes.len() as u64).to_le_bytes());
        table.extend(blake3::hash(bytes).as_bytes());
        at += bytes.len() as u64;
    }
    let checksum = checksum(&header, &table);
    let mut out = Vec::with_capacity(total);
    out.extend(header);
    out.extend(checksum);
    out.extend(table);
    parts.iter().for_each(|(_, bytes)| out.extend(bytes));
    out
}

pub(super) fn checksum(header: &[u8], table: &[u8]) -> [u8; CHECKSUM_BYTES] {
    *blake3::Hasher::new().update(header).update(table).finalize().as_bytes()
}

pub(super) fn name_of(kind: u32) -> &'static str {
    match kind {
        ZERO_MAP => "zero map",
        HASHES => "hashes",
        ACTIONS => "actions",
        WORKING_SET => "working set",
        HASH_PIECES => "pieces of the hashes",
        _ => "part of a kind not known here",
    }
}
