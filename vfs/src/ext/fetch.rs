//! The wire form of FETCH: lengths and maps of the ranges, then their data in one frame.
//!
//! All data of a reply is one zstd frame rather than one for each range: short ranges of one file
//! resemble each other. Data that hardly shrinks is sent as it is, so that nobody pays for
//! decompressing it. A receiver knows from the maps how long the data must be before it looks at
//! the frame, and gives the decompressor room for that and no more.

use bytes::Bytes;

use crate::fetch::{
    FETCH_BLOCK_BYTES, FETCH_BYTES_MAX, FETCH_LEVEL_MAX, FETCH_RANGES_MAX, Fetched, FetchedRange,
    block_count, data_bytes,
};
use crate::nfs3::Reply;
use crate::xdr::{Decoder, Encoder, Xdr, XdrError, XdrResult};
use crate::{Attr, FileHandle};

/// The longest map, in bytes: one range of all that a fetch may ask for.
const MAP_BYTES_MAX: usize = FETCH_BYTES_MAX / FETCH_BLOCK_BYTES / 8;
/// Data that does not shrink by a sixteenth is sent as it is.
const SHRINK_MIN: usize = 16;
/// Up to this level a compressor needs a few MiB of memory, which may be kept for the next call.
/// At 19 it needs 50.
const KEPT_LEVEL_MAX: i32 = 9;

/// The arguments of FETCH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchArgs {
    /// The file.
    pub file: FileHandle,
    /// The level of compression; 0 for none.
    pub level: i32,
    /// Offset and length of each range, in bytes.
    pub ranges: Vec<(u64, u32)>,
}

/// The results of FETCH.
pub type FetchReply = Reply<PackedFetch, ()>;

/// What a fetch found, in the form in which it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedFetch {
    /// See [`Fetched::attr`].
    pub attr: Attr,
    /// See [`FetchedRange::length`] and [`FetchedRange::zero`].
    pub ranges: Vec<(u32, Vec<u8>)>,
    /// How long the data of all ranges is, before it was compressed.
    pub raw_bytes: u32,
    /// Whether `data` is a zstd frame.
    pub compressed: bool,
    /// The data of all ranges, one behind the other.
    pub data: Bytes,
}

/// Why a reply is not one to what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchLie {
    /// Another number of ranges.
    #[error("FETCH of {asked} ranges brought {brought}")]
    Ranges {
        /// How many were asked for.
        asked: usize,
        /// How many came.
        brought: usize,
    },
    /// A range is not as long as the file and the question make it.
    #[error("FETCH brought {brought} bytes where the file has {expected}")]
    Length {
        /// How many bytes are said to have come.
        brought: u32,
        /// How many there must be.
        expected: u32,
    },
    /// A map that is not one of its range.
    #[error("FETCH brought a map of zeros that is not the range's")]
    Map,
    /// The length of the data is not that which the maps make.
    #[error("FETCH brought {brought} bytes of data where its maps leave {expected}")]
    Data {
        /// How long it is, or is said to be.
        brought: usize,
        /// How long it must be.
        expected: usize,
    },
    /// The frame is damaged, or longer or shorter than it should be.
    #[error("FETCH brought a frame that is none: {0}")]
    Frame(String),
}

impl Xdr for FetchArgs {
    fn encode(&self, to: &mut Encoder) {
        self.file.encode(to);
        to.u32(self.level as u32);
        to.u32(self.ranges.len() as u32);
        for (offset, length) in &self.ranges {
            to.u64(*offset);
            to.u32(*length);
        }
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        let file = Xdr::decode(from)?;
        // A level out of range is refused by [`crate::check_fetch`]; as a number it fits.
        let level = i32::try_from(from.u32()?).unwrap_or(i32::MAX);
        let ranges = (0..count(from)?).map(|_| Ok((from.u64()?, from.u32()?)));
        Ok(Self { file, level, ranges: ranges.collect::<XdrResult<_>>()? })
    }
}

/// Takes a number of ranges.
fn count(from: &mut Decoder) -> XdrResult<usize> {
    let length = from.u32()? as usize;
    if length > FETCH_RANGES_MAX {
        return Err(XdrError::TooLong { length, max: FETCH_RANGES_MAX });
    }
    Ok(length)
}

impl PackedFetch {
    /// Encodes all but the data, which (padded) is to follow.
    pub fn encode_head(&self, to: &mut Encoder) {
        self.attr.encode(to);
        to.u32(self.ranges.len() as u32);
        for (length, zero) in &self.ranges {
            to.u32(*length);
            to.opaque(zero);
        }
        to.u32(self.raw_bytes);
        to.bool(self.compressed);
        to.u32(self.data.len() as u32);
    }

    /// Unpacks what was `asked` for. Takes as long as decompressing it, and as much memory as was
    /// asked for, whatever the reply says.
    pub fn unpack(self, asked: &[(u64, u32)]) -> Result<Fetched, FetchLie> {
        let sizes = self.data_sizes(asked)?;
        let expected = sizes.iter().sum();
        if self.raw_bytes as usize != expected {
            return Err(FetchLie::Data { brought: self.raw_bytes as usize, expected });
        }
        let mut raw = match self.compressed {
            true => decompressed(&self.data, expected)?,
            false => self.data,
        };
        if raw.len() != expected {
            return Err(FetchLie::Data { brought: raw.len(), expected });
        }
        let parts = asked.iter().zip(self.ranges).zip(sizes);
        let ranges = parts
            .map(|((&(offset, _), (length, zero)), size)| FetchedRange {
                offset,
                length,
                zero,
                data: raw.split_to(size),
            })
            .collect();
        Ok(Fetched { attr: self.attr, ranges })
    }

    /// Checks lengths and maps; returns how much data each range has.
    fn data_sizes(&self, asked: &[(u64, u32)]) -> Result<Vec<usize>, FetchLie> {
        if self.ranges.len() != asked.len() {
            return Err(FetchLie::Ranges { asked: asked.len(), brought: self.ranges.len() });
        }
        let pairs = asked.iter().zip(&self.ranges);
        pairs
            .map(|(&(offset, wanted), &(brought, ref zero))| {
                let left = self.attr.size.saturating_sub(offset);
                let expected = u32::try_from(left).map_or(wanted, |left| left.min(wanted));
                if brought != expected {
                    return Err(FetchLie::Length { brought, expected });
                }
                data_bytes(brought, zero).ok_or(FetchLie::Map)
            })
            .collect()
    }
}

/// Decompresses a frame of exactly `expected` bytes.
fn decompressed(frame: &[u8], expected: usize) -> Result<Bytes, FetchLie> {
    let mut raw = vec![0; expected];
    // In one step and into a buffer of its size, so that no frame can make it allocate more.
    let length = zstd::bulk::decompress_to_buffer(frame, &mut raw[..])
        .map_err(|error| FetchLie::Frame(error.to_string()))?;
    match length == expected {
        true => Ok(raw.into()),
        false => Err(FetchLie::Data { brought: length, expected }),
    }
}

impl Xdr for PackedFetch {
    fn encode(&self, to: &mut Encoder) {
        self.encode_head(to);
        to.opaque_fixed(&self.data);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        let attr = Xdr::decode(from)?;
        let ranges =
            (0..count(from)?).map(|_| Ok((from.u32()?, from.opaque(MAP_BYTES_MAX)?.to_vec())));
        Ok(Self {
            attr,
            ranges: ranges.collect::<XdrResult<_>>()?,
            raw_bytes: from.u32()?,
            compressed: from.bool()?,
            data: from.opaque_last(FETCH_BYTES_MAX)?,
        })
    }
}

/// Collects the ranges of a reply, without their zeros.
#[derive(Debug, Default)]
pub struct FetchBuilder {
    ranges: Vec<(u32, Vec<u8>)>,
    raw: Vec<u8>,
}

impl FetchBuilder {
    /// Makes an empty one, with room for `capacity` bytes of data.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { ranges: Vec::new(), raw: Vec::with_capacity(capacity) }
    }

    /// Appends a range of `length` bytes that consists of `pieces`: where each starts in the range,
    /// in order and without overlaps. Where there are none, it is zero.
    pub fn push(&mut self, length: u32, pieces: &[(usize, Bytes)]) {
        let blocks = block_count(length);
        let mut zero = vec![0; blocks.div_ceil(8)];
        let mut pieces = pieces.iter().peekable();
        for block in 0..blocks {
            let start = block * FETCH_BLOCK_BYTES;
            let end = (start + FETCH_BLOCK_BYTES).min(length as usize);
            while pieces.next_if(|(at, piece)| at + piece.len() <= start).is_some() {}
            let found = match pieces.peek() {
                Some((at, _)) if *at >= end => false,
                Some((at, piece)) if *at <= start && at + piece.len() >= end => {
                    self.append(&piece[start - at..end - at])
                }
                Some(_) => self.append_parts(start, end, pieces.clone()),
                None => false,
            };
            if !found {
                zero[block / 8] |= 1 << (block % 8);
            }
        }
        self.ranges.push((length, zero));
    }

    /// Appends a block that does not lie in one piece.
    fn append_parts<'a>(
        &mut self,
        start: usize,
        end: usize,
        pieces: impl Iterator<Item = &'a (usize, Bytes)>,
    ) -> bool {
        let mut block = [0; FETCH_BLOCK_BYTES];
        for (at, piece) in pieces.take_while(|(at, _)| *at < end) {
            let (from, to) = ((*at).max(start), (at + piece.len()).min(end));
            if from < to {
                block[from - start..to - start].copy_from_slice(&piece[from - at..to - at]);
            }
        }
        self.append(&block[..end - start])
    }

    /// Appends a block unless it is zero; says whether it did.
    fn append(&mut self, block: &[u8]) -> bool {
        let data = !is_zero(block);
        if data {
            self.raw.extend_from_slice(block);
        }
        data
    }

    /// Compresses what was collected. Takes as long as that.
    pub fn pack(self, attr: Attr, level: i32, packer: &mut FetchPacker) -> PackedFetch {
        let raw_bytes = self.raw.len() as u32;
        let frame = packer.frame(&self.raw, level);
        let compressed = frame.is_some();
        let data = Bytes::from(frame.unwrap_or(self.raw));
        PackedFetch { attr, ranges: self.ranges, raw_bytes, compressed, data }
    }
}

fn is_zero(block: &[u8]) -> bool {
    // Most blocks with data say so early. A chunk at a time is what compilers make vectors of.
    let mut chunks = block.chunks_exact(64);
    let none = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all | byte) == 0;
    chunks.all(none) && none(chunks.remainder())
}

/// Compresses data of replies, one at a time. It keeps its working memory from one to the next.
#[derive(Default)]
pub struct FetchPacker {
    /// With the level that it is set to.
    compressor: Option<(zstd::bulk::Compressor<'static>, i32)>,
}

impl FetchPacker {
    /// Makes a frame of `raw`; `None` where that is not worth it.
    fn frame(&mut self, raw: &[u8], level: i32) -> Option<Vec<u8>> {
        let room = raw.len() - raw.len().div_ceil(SHRINK_MIN);
        if !(1..=FETCH_LEVEL_MAX).contains(&level) || room == 0 {
            return None;
        }
        let mut compressor = match self.compressor.take() {
            Some((compressor, at)) if at == level => compressor,
            _ => compressor(level)?,
        };
        let mut frame = Vec::with_capacity(room);
        // It fails where the frame needs more than the room.
        let made =
            compressor.compress_to_buffer(raw, &mut frame).is_ok_and(|length| length <= room);
        if level <= KEPT_LEVEL_MAX {
            self.compressor = Some((compressor, level));
        }
        made.then_some(frame)
    }
}

/// Makes a compressor whose frames carry a checksum, so that none that is damaged is taken.
fn compressor(level: i32) -> Option<zstd::bulk::Compressor<'static>> {
    let mut compressor = zstd::bulk::Compressor::new(level).ok()?;
    compressor.include_checksum(true).ok()?;
    Some(compressor)
}
