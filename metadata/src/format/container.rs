//! The file as a whole: header, table of parts, parts.
//!
//! Checksums are BLAKE3, not a CRC: a metadata file has megabytes of hashes by which data is later
//! taken for other data, so damage must not pass once in four billion files; the crate is here
//! anyway, and hashing takes 0.3 ms a megabyte. Header and table have one, and each part its own,
//! so that parts that are not known here are checked, too, and one may be read without the others.

use gridvfs_vfs::Time;

use super::varint::Reader;
use super::{FormatError, Hashes, Identity, Metadata, WorkingSet, ZeroMap, actions};

/// Bytes of a metadata file at most: it is read whole into memory at the first access of its
/// subject. Room for the hashes of 2 million blocks, twice what a generator with its own choice of
/// blocks writes.
pub const METADATA_BYTES_MAX: u64 = 64 << 20;

/// The version of the format that is written and read here.
pub(super) const VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"GVFSMETA";
/// The header up to its checksum.
const HEADER_BYTES: usize = 64;
const CHECKSUM_BYTES: usize = 32;
/// Kind, flags, offset, length, checksum.
const ENTRY_BYTES: usize = 4 + 4 + 8 + 8 + CHECKSUM_BYTES;
/// Parts at most: far more than there are kinds.
const PARTS_MAX: u32 = 16;

/// A part that a reader may skip if it does not know its kind has this flag not set.
const FLAG_REQUIRED: u32 = 1;

const ZERO_MAP: u32 = 1;
const HASHES: u32 = 2;
const ACTIONS: u32 = 3;
const WORKING_SET: u32 = 4;

/// A part as the table has it.
struct Part<'a> {
    kind: u32,
    bytes: &'a [u8],
}

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
        if let Some(hashes) = hashes {
            parts.push((HASHES, hashes.encode(zero)));
        }
        if self.actions.iter().any(|action| action.is_valid()) {
            parts.push((ACTIONS, actions::encode(&self.actions)));
        }
        if let Some(set) = &self.working_set {
            parts.push((WORKING_SET, set.encode(size)));
        }
        container(&self.identity, block_bytes, &parts)
    }

    /// Reads the bytes of a metadata file, all of them.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (mut metadata, parts) = open(bytes)?;
        let (block_bytes, size) = (metadata.block_bytes, metadata.identity.size);
        // In the order of their kinds, so that the zero map is there when the hashes need it.
        for Part { kind, bytes } in parts {
            match kind {
                ZERO_MAP => metadata.zero = Some(ZeroMap::decode(block_bytes, size, bytes)?),
                HASHES => {
                    let zero = metadata.zero.as_ref();
                    metadata.hashes = Some(Hashes::decode(block_bytes, size, zero, bytes)?);
                }
                ACTIONS => metadata.actions = actions::decode(bytes)?,
                WORKING_SET => metadata.working_set = Some(WorkingSet::decode(size, bytes)?),
                _ => {}
            }
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

fn checksum(header: &[u8], table: &[u8]) -> [u8; CHECKSUM_BYTES] {
    *blake3::Hasher::new().update(header).update(table).finalize().as_bytes()
}

/// Reads header and table, and checks all checksums. Returns metadata without parts, and the parts.
fn open(bytes: &[u8]) -> Result<(Metadata, Vec<Part<'_>>), FormatError> {
    if bytes.len() as u64 > METADATA_BYTES_MAX {
        return Err(FormatError::TooLarge(bytes.len() as u64));
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
    let total = reader.u64()?;
    if total > bytes.len() as u64 {
        return Err(FormatError::Cut { what: "parts" });
    }
    let size = reader.u64()?;
    let mtime = Time { seconds: i64::from_le_bytes(reader.array()?), nanoseconds: reader.u32()? };
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
    if !super::block_bytes_valid(block_bytes) {
        return Err(FormatError::BlockBytes(block_bytes));
    }
    let parts = parts(bytes, table, Reader::new(reader.take(reader.left())?, "parts"))?;
    Ok((Metadata::new(Identity { size, mtime }, block_bytes), parts))
}

/// Takes the parts: each begins where the one before it ends, and the last ends with the file.
fn parts<'a>(
    bytes: &[u8],
    table: &[u8],
    mut rest: Reader<'a>,
) -> Result<Vec<Part<'a>>, FormatError> {
    let mut parts: Vec<Part> = Vec::with_capacity(table.len() / ENTRY_BYTES);
    let mut entries = Reader::new(table, "table");
    while entries.left() > 0 {
        let (kind, flags) = (entries.u32()?, entries.u32()?);
        let (offset, length) = (entries.u64()?, entries.u64()?);
        let wanted: [u8; CHECKSUM_BYTES] = entries.array()?;
        if offset != (bytes.len() - rest.left()) as u64 {
            return Err(FormatError::Malformed { what: "parts with gaps or overlaps" });
        }
        if parts.last().is_some_and(|last| last.kind >= kind) {
            return Err(FormatError::Malformed { what: "parts out of order, or twice" });
        }
        if flags & FLAG_REQUIRED != 0 && !(ZERO_MAP..=WORKING_SET).contains(&kind) {
            return Err(FormatError::Required(kind));
        }
        let length = usize::try_from(length).map_err(|_| FormatError::Cut { what: "parts" })?;
        let bytes = rest.take(length)?;
        if *blake3::hash(bytes).as_bytes() != wanted {
            return Err(FormatError::Checksum { what: name_of(kind) });
        }
        parts.push(Part { kind, bytes });
    }
    rest.end()?;
    Ok(parts)
}

fn name_of(kind: u32) -> &'static str {
    match kind {
        ZERO_MAP => "zero map",
        HASHES => "hashes",
        ACTIONS => "actions",
        WORKING_SET => "working set",
        _ => "part of a kind not known here",
    }
}
