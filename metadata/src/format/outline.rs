//! Header and table of a metadata file: what it has, and where. With them, its parts can be read one
//! by one.

use std::ops::Range;

use gridvfs_vfs::Time;

use super::container::{
    ACTIONS, CHECKSUM_BYTES, ENTRY_BYTES, FLAG_REQUIRED, HASH_PIECES, HASHES, HEADER_BYTES, MAGIC,
    METADATA_BYTES_MAX, PARTS_MAX, VERSION, WORKING_SET, ZERO_MAP, checksum, name_of,
};
use super::pieces::HashPieces;
use super::varint::Reader;
use super::{FormatError, Identity, Metadata, WorkingSet, ZeroMap, actions, block_bytes_valid};

/// A part as the table has it.
pub(super) struct Entry {
    pub kind: u32,
    offset: u64,
    length: u64,
    checksum: [u8; CHECKSUM_BYTES],
}

/// See the module's description.
pub struct Outline {
    identity: Identity,
    block_bytes: u32,
    pub(super) entries: Vec<Entry>,
}

impl Entry {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.length
    }

    /// Returns the part's bytes, which are within `bytes`, which begin at `at` of the file.
    pub fn checked<'a>(&self, bytes: &'a [u8], at: u64) -> Result<&'a [u8], FormatError> {
        let from = self.offset.checked_sub(at).and_then(|from| usize::try_from(from).ok());
        let part = from.and_then(|from| bytes.get(from..)?.get(..self.length as usize));
        let part = part.ok_or(FormatError::Cut { what: "parts" })?;
        match *blake3::hash(part).as_bytes() == self.checksum {
            true => Ok(part),
            false => Err(FormatError::Checksum { what: name_of(self.kind) }),
        }
    }
}

impl Outline {
    /// Bytes that header and table have at most.
    pub const BYTES_MAX: usize = HEADER_BYTES + CHECKSUM_BYTES + PARTS_MAX as usize * ENTRY_BYTES;

    /// Reads them from the first bytes of a metadata file of `file_bytes`.
    pub fn read(bytes: &[u8], file_bytes: u64) -> Result<Self, FormatError> {
        if file_bytes > METADATA_BYTES_MAX {
            return Err(FormatError::TooLarge(file_bytes));
        }
        let mut reader = Reader::new(bytes, "header");
        if !bytes.starts_with(MAGIC) {
            return Err(FormatError::Magic);
        }
        reader.take(MAGIC.len())?;
        match reader.u32()? {
            VERSION => {}
            0 => return Err(FormatError::Malformed { what: "version 0" }),
            version => return Err(FormatError::Version(version)),
        }
        let count = reader.u32()?;
        if count > PARTS_MAX {
            return Err(FormatError::Malformed { what: "a table of too many parts" });
        }
        if reader.u64()? > file_bytes {
            return Err(FormatError::Cut { what: "parts" });
        }
        let size = reader.u64()?;
        let mtime =
            Time { seconds: i64::from_le_bytes(reader.array()?), nanoseconds: reader.u32()? };
        let block_bytes = reader.u32()?;
        let reserved = reader.take(HEADER_BYTES - (bytes.len() - reader.left()))?;
        let wanted: [u8; CHECKSUM_BYTES] = reader.array()?;
        let table = reader.take(count as usize * ENTRY_BYTES)?;
        if wanted != checksum(&bytes[..HEADER_BYTES], table) {
            return Err(FormatError::Checksum { what: "header" });
        }
        if reserved.iter().any(|byte| *byte != 0) || mtime.nanoseconds >= 1_000_000_000 {
            return Err(FormatError::Malformed { what: "header" });
        }
        if !block_bytes_valid(block_bytes) {
            return Err(FormatError::BlockBytes(block_bytes));
        }
        let entries = entries(table, (bytes.len() - reader.left()) as u64, file_bytes)?;
        Ok(Self { identity: Identity { size, mtime }, block_bytes, entries })
    }

    /// Returns the ranges of the file that say all but the hashes; `None` if the hashes can only be
    /// read as a whole, or there are none.
    pub fn but_for_hashes(&self) -> Option<Vec<Range<u64>>> {
        self.entry(HASH_PIECES).and(self.entry(HASHES))?;
        let others = self.entries.iter().filter(|entry| entry.kind != HASHES);
        Some(others.map(Entry::range).collect())
    }

    /// Reads all but the hashes of parts, of which `read` returns the bytes, as they are in the file
    /// from the byte that it returns with them on.
    pub fn decode<'a>(
        &self,
        read: impl Fn(Range<u64>) -> Option<(u64, &'a [u8])>,
    ) -> Result<(Metadata, HashPieces), FormatError> {
        let part = |kind| match self.entry(kind) {
            Some(entry) => {
                let held = read(entry.range()).ok_or(FormatError::Cut { what: "parts" });
                held.and_then(|(at, bytes)| entry.checked(bytes, at)).map(Some)
            }
            None => Ok(None),
        };
        let others = self.entries.iter().filter(|entry| entry.kind != HASHES);
        others.into_iter().try_for_each(|entry| part(entry.kind).map(drop))?;
        let metadata = self.without_hashes(part)?;
        let (Some(hashes), Some(sums)) = (self.entry(HASHES), part(HASH_PIECES)?) else {
            return Err(FormatError::Malformed { what: "hashes that are not in pieces" });
        };
        let (size, zero) = (self.identity.size, metadata.zero.as_ref());
        let pieces = HashPieces::decode(self.block_bytes, size, zero, hashes.range(), sums)?;
        Ok((metadata, pieces))
    }

    /// Reads the parts, of which `part` returns the bytes, into memory, but for the hashes.
    pub(super) fn without_hashes<'a>(
        &self,
        part: impl Fn(u32) -> Result<Option<&'a [u8]>, FormatError>,
    ) -> Result<Metadata, FormatError> {
        let (block_bytes, size) = (self.block_bytes, self.identity.size);
        let mut metadata = Metadata::new(self.identity, block_bytes);
        if let Some(bytes) = part(ZERO_MAP)? {
            metadata.zero = Some(ZeroMap::decode(block_bytes, size, bytes)?);
        }
        if let Some(bytes) = part(ACTIONS)? {
            metadata.actions = actions::decode(bytes)?;
        }
        if let Some(bytes) = part(WORKING_SET)? {
            metadata.working_set = Some(WorkingSet::decode(size, bytes)?);
        }
        Ok(metadata)
    }

    pub(super) fn entry(&self, kind: u32) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.kind == kind)
    }
}

/// Takes the entries of a table: each part begins where the one before it ends, the first one at
/// `begin`, and the last one ends with the file.
fn entries(table: &[u8], begin: u64, file_bytes: u64) -> Result<Vec<Entry>, FormatError> {
    let mut entries: Vec<Entry> = Vec::with_capacity(table.len() / ENTRY_BYTES);
    let mut at = begin;
    let mut reader = Reader::new(table, "table");
    while reader.left() > 0 {
        let (kind, flags) = (reader.u32()?, reader.u32()?);
        let (offset, length) = (reader.u64()?, reader.u64()?);
        let checksum = reader.array()?;
        if offset != at {
            return Err(FormatError::Malformed { what: "parts with gaps or overlaps" });
        }
        if entries.last().is_some_and(|last| last.kind >= kind) {
            return Err(FormatError::Malformed { what: "parts out of order, or twice" });
        }
        if flags & FLAG_REQUIRED != 0 && !(ZERO_MAP..=HASH_PIECES).contains(&kind) {
            return Err(FormatError::Required(kind));
        }
        let end = offset.checked_add(length).filter(|end| *end <= file_bytes);
        at = end.ok_or(FormatError::Cut { what: "parts" })?;
        entries.push(Entry { kind, offset, length, checksum });
    }
    match at == file_bytes {
        true => Ok(entries),
        false => Err(FormatError::Malformed { what: "bytes behind the end of a part" }),
    }
}
