//! Walks the records of one segment file, over damaged places, too.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::{self, ALIGN, HEADER_BYTES, Header, PIECE_BYTES, SEGMENT_HEADER_BYTES};

/// What lies at a place of a segment.
#[derive(Debug)]
pub enum Item<'a> {
    /// A record whose header and table (or body) are right. The payload is not looked at.
    Record { header: Header, body: &'a [u8] },
    /// Bytes that are no record, up to the next one or to the zeros at the end, which are room for
    /// records. With a header, the header is right and the rest of the record is not.
    Bad { at: u64, bytes: u64, header: Option<Header> },
}

/// Which records belong to the segment.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    pub segment: u32,
    /// `None`: any log's.
    pub log_id: Option<u64>,
}

/// How much is read at once: two of the largest tables fit, and reading on is sequential.
const WINDOW_BYTES: usize = 128 << 10;

/// Calls `f` with all items in order, until it returns false.
pub fn walk(
    file: &File,
    identity: Identity,
    f: &mut dyn FnMut(Item<'_>) -> io::Result<bool>,
) -> io::Result<()> {
    let mut window = Window { file, buffer: vec![0; WINDOW_BYTES], start: 0, filled: 0 };
    let end = file.metadata()?.len();
    let mut at = SEGMENT_HEADER_BYTES as u64;
    let mut bad_from = None;
    let mut nonzero_end = at;
    while at < end {
        let Some(header) = header_at(&mut window, identity, at)? else {
            bad_from.get_or_insert(at);
            let zeros = window.zeros(at)? / ALIGN as u64 * ALIGN as u64;
            if zeros == 0 {
                nonzero_end = (at + ALIGN as u64).min(end);
            }
            at += zeros.max(ALIGN as u64);
            continue;
        };
        if let Some(from) = bad_from.take()
            && !f(Item::Bad { at: from, bytes: at - from, header: None })?
        {
            return Ok(());
        }
        let record_bytes = header.record_bytes() as u64;
        let behind = if header.is_write() { header.table_bytes() } else { header.length as usize };
        let body = window.get(at + HEADER_BYTES as u64, behind)?;
        let go_on = match body {
            Some(body) if format::checksum(body) == header.body_sum && at + record_bytes <= end => {
                f(Item::Record { header, body })?
            }
            _ => f(Item::Bad { at, bytes: record_bytes.min(end - at), header: Some(header) })?,
        };
        if !go_on {
            return Ok(());
        }
        at += record_bytes.next_multiple_of(ALIGN as u64);
    }
    if let Some(from) = bad_from.filter(|from| *from < nonzero_end) {
        f(Item::Bad { at: from, bytes: nonzero_end - from, header: None })?;
    }
    Ok(())
}

fn header_at(window: &mut Window<'_>, identity: Identity, at: u64) -> io::Result<Option<Header>> {
    let Some(bytes) = window.get(at, HEADER_BYTES)? else { return Ok(None) };
    Ok(Header::decode(bytes).filter(|header| {
        header.segment == identity.segment
            && u64::from(header.at) == at
            && identity.log_id.is_none_or(|id| id == header.log_id)
    }))
}

/// Says whether the payload behind a Write record's header is what its table says.
pub fn payload_is_right(
    file: &File,
    header: &Header,
    table: &[u8],
    buffer: &mut Vec<u8>,
) -> io::Result<bool> {
    buffer.resize(header.length as usize, 0);
    let at = u64::from(header.at) + (HEADER_BYTES + header.table_bytes()) as u64;
    match file.read_exact_at(buffer, at) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(error),
    }
    let sums = table.chunks_exact(4);
    Ok(buffer
        .chunks(PIECE_BYTES)
        .zip(sums)
        .all(|(piece, sum)| format::checksum(piece).to_le_bytes() == sum))
}

/// A part of a file in memory.
struct Window<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    start: u64,
    filled: usize,
}

impl Window<'_> {
    /// Returns how many zero bytes there are from `at` on, as far as the window goes.
    fn zeros(&mut self, at: u64) -> io::Result<u64> {
        let held = self.start..self.start + self.filled as u64;
        if !held.contains(&at) && self.get(at, 1)?.is_none() {
            return Ok(0);
        }
        let bytes = &self.buffer[(at - self.start) as usize..self.filled];
        Ok(bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len()) as u64)
    }

    /// Returns `count` bytes (less than the window) from `at`; `None` if the file ends before.
    fn get(&mut self, at: u64, count: usize) -> io::Result<Option<&[u8]>> {
        let held = self.start..self.start + self.filled as u64;
        if at < held.start || at + count as u64 > held.end {
            self.start = at;
            self.filled = 0;
            while self.filled < self.buffer.len() {
                let from = at + self.filled as u64;
                match self.file.read_at(&mut self.buffer[self.filled..], from) {
                    Ok(0) => break,
                    Ok(read) => self.filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let from = (at - self.start) as usize;
        Ok(self.buffer[..self.filled].get(from..from + count))
    }
}
