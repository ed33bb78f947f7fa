//! Verified reads of payload.

use std::io::{self, IoSliceMut};

use super::format::{self, PIECE_BYTES, TABLE_MAX};
use super::record::Place;
use super::{Journal, segment};

/// Why payload could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The bytes are not those that were written.
    #[error(
        "journal segment {}: {length} bytes at {} are damaged (payload of {} bytes at {})",
        place.segment, u64::from(place.at) + skip, place.length, place.at
    )]
    Damaged {
        /// The record's payload.
        place: Place,
        /// Where in the payload the damaged piece begins.
        skip: u64,
        /// The piece's length.
        length: u64,
    },
    /// The segment has been deleted: all of its data had been released. Who read without holding
    /// the file's lock looks again where the data is now.
    #[error("journal segment {0} has been deleted")]
    Gone(u32),
    /// The disk's error.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Journal {
    /// Reads `out.len()` bytes of a Write record's payload from byte `skip` of it on, and verifies
    /// them: the pieces of 4 KiB that they lie in are read wholly. Holds no lock while it reads.
    pub fn read(&self, place: &Place, skip: u64, out: &mut [u8]) -> Result<(), ReadError> {
        if out.is_empty() {
            return Ok(());
        }
        let end = skip + out.len() as u64;
        if end > u64::from(place.length) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        let held = self.segments.read().get(&place.segment).cloned();
        let segment = held.ok_or(ReadError::Gone(place.segment))?;
        let (skip, end) = (skip as usize, end as usize);
        let first = skip / PIECE_BYTES;
        let last = (end - 1) / PIECE_BYTES;
        let from = first * PIECE_BYTES;
        let to = ((last + 1) * PIECE_BYTES).min(place.length as usize);

        // What of the first and the last piece the caller does not want goes to these.
        let mut before = [0; PIECE_BYTES];
        let mut behind = [0; PIECE_BYTES];
        let mut table = [0; TABLE_MAX];
        let before = &mut before[..skip - from];
        let behind = &mut behind[..to - end];
        let table = &mut table[..(last - first + 1) * 4];
        let pieces = format::pieces(place.length);
        let table_at = u64::from(place.at) - ((pieces - first) * 4) as u64;
        let data_at = u64::from(place.at) + from as u64;
        let file = &segment.file;
        if table_at + table.len() as u64 == data_at {
            let slices = &mut [
                IoSliceMut::new(table),
                IoSliceMut::new(before),
                IoSliceMut::new(out),
                IoSliceMut::new(behind),
            ];
            segment::read_all(file, slices, table_at)
        } else {
            let slices =
                &mut [IoSliceMut::new(before), IoSliceMut::new(out), IoSliceMut::new(behind)];
            segment::read_all(file, &mut [IoSliceMut::new(table)], table_at)
                .and_then(|()| segment::read_all(file, slices, data_at))
        }
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged(place, from, to),
            _ => error.into(),
        })?;

        for (index, sum) in (first..=last).zip(table.chunks_exact(4)) {
            let (start, stop) = (index * PIECE_BYTES, ((index + 1) * PIECE_BYTES).min(to));
            let wanted = &out[start.max(skip) - skip..stop.min(end) - skip];
            let actual = if wanted.len() == stop - start {
                format::checksum(wanted)
            } else {
                let mut piece = [0; PIECE_BYTES];
                let piece = &mut piece[..stop - start];
                let (head, rest) = piece.split_at_mut(skip.saturating_sub(start));
                let (middle, tail) = rest.split_at_mut(wanted.len());
                head.copy_from_slice(&before[..head.len()]);
                middle.copy_from_slice(wanted);
                tail.copy_from_slice(&behind[..tail.len()]);
                format::checksum(piece)
            };
            if actual.to_le_bytes() != sum {
                return Err(damaged(place, start, stop));
            }
        }
        Ok(())
    }
}

fn damaged(place: &Place, start: usize, stop: usize) -> ReadError {
    ReadError::Damaged { place: *place, skip: start as u64, length: (stop - start) as u64 }
}
