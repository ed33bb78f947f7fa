//! Appending: one write under the log's mutex.

use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::format::{self, ALIGN, HEADER_BYTES, Header, PIECE_BYTES, SEGMENT_HEADER_BYTES};
use super::format::{SegmentHeader, TABLE_MAX};
use super::record::{Place, Record, WriteHeader};
use super::segment::{self, Segment};
use super::{Journal, PATH_BYTES_MAX, PAYLOAD_MAX};
use crate::crash::{self, Point};

/// Where the next record goes.
#[derive(Debug)]
pub(super) struct Tail {
    /// `None` until something is appended, and after a failure that left the end unknown.
    pub active: Option<Arc<Segment>>,
    pub next_number: u32,
    pub next_seq: u64,
    /// Segments with something appended since the last sync began, each once.
    pub unsynced: Vec<Arc<Segment>>,
    /// A segment was made since the directory was last synced.
    pub directory_unsynced: bool,
    /// The segment that the disk was last told to begin writing, and up to where.
    pub begun: (u32, u64),
}

impl Journal {
    /// Appends written data, at most [`PAYLOAD_MAX`] bytes; returns its sequence number (that of
    /// the original, for a copy) and place. After an error nothing of it is in the log.
    pub fn append_write(&self, write: &WriteHeader, data: &[u8]) -> io::Result<(u64, Place)> {
        if data.is_empty() || data.len() > PAYLOAD_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut table = [0; TABLE_MAX];
        let table = &mut table[..format::pieces(data.len() as u32) * 4];
        for (sum, piece) in table.chunks_exact_mut(4).zip(data.chunks(PIECE_BYTES)) {
            sum.copy_from_slice(&format::checksum(piece).to_le_bytes());
        }
        let (mut header, _) = format::encode(&Record::Write(*write));
        header.length = data.len() as u32;
        header.body_sum = format::checksum(table);
        self.put(&mut header, table, data)?;
        let at = header.at + (HEADER_BYTES + table.len()) as u32;
        self.live.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok((header.order, Place { segment: header.segment, at, length: header.length }))
    }

    /// Appends a record other than a Write; returns its sequence number.
    pub fn append(&self, record: &Record) -> io::Result<u64> {
        let (mut header, body) = format::encode(record);
        if matches!(record, Record::Write(_)) || body.len() > PATH_BYTES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.put(&mut header, &body, &[])?;
        Ok(header.seq)
    }

    fn put(&self, header: &mut Header, table: &[u8], payload: &[u8]) -> io::Result<()> {
        let bytes = HEADER_BYTES + table.len() + payload.len();
        let padded = bytes.next_multiple_of(ALIGN);
        let mut tail = self.tail.lock();
        self.fail_if_failed()?;
        let segment = self.segment_for(&mut tail, padded as u64)?;
        let at = segment.bytes.load(Ordering::Relaxed);
        header.seq = tail.next_seq;
        if header.order == 0 {
            header.order = header.seq;
        }
        header.durable = self.durable.load(Ordering::Relaxed);
        header.segment = segment.number;
        header.at = at as u32;
        header.log_id = self.log_id;
        let fixed = header.encode();
        let padding = &[0; ALIGN][..padded - bytes];
        let slices = &mut [
            IoSlice::new(&fixed),
            IoSlice::new(table),
            IoSlice::new(payload),
            IoSlice::new(padding),
        ];
        crash::point(Point::JOURNAL_BEFORE_WRITE);
        #[cfg(test)]
        let written = self.write_or_fail(&segment, slices, at);
        #[cfg(not(test))]
        let written = segment::write_all(&segment.file, slices, at);
        if let Err(error) = written {
            if segment.file.set_len(at).is_err() {
                // The end of that file holds half a record now: nothing may follow it there.
                tail.active = None;
            }
            return Err(error);
        }
        crash::point(Point::JOURNAL_AFTER_WRITE);
        segment.bytes.store(at + padded as u64, Ordering::Relaxed);
        segment.live.fetch_add(payload.len() as u64, Ordering::Relaxed);
        self.unbegun.fetch_add(padded as u64, Ordering::Relaxed);
        self.used.fetch_add(padded as u64, Ordering::Relaxed);
        tail.next_seq += 1;
        if tail.unsynced.last().is_none_or(|last| last.number != segment.number) {
            tail.unsynced.push(segment);
        }
        Ok(())
    }

    /// Returns the segment that has room for a record, a new one if need be.
    fn segment_for(&self, tail: &mut Tail, bytes: u64) -> io::Result<Arc<Segment>> {
        if let Some(active) = &tail.active {
            let at = active.bytes.load(Ordering::Relaxed);
            if at + bytes <= self.options.segment_bytes || at == SEGMENT_HEADER_BYTES as u64 {
                return Ok(active.clone());
            }
        }
        let number = tail.next_number;
        let path = segment::path_of(&self.dir_path, number);
        let header =
            SegmentHeader { number, log_id: self.log_id, run: self.run, first_seq: tail.next_seq };
        let bytes = header.encode();
        let ready = self.room.lock().take(&path, &bytes);
        let (file, written) = match ready {
            Some(file) => (file, Ok(())),
            None => {
                let mut options = OpenOptions::new();
                let options = options.read(true).write(true).create_new(true).mode(0o600);
                let file = options.open(&path)?;
                let written = segment::write_all(&file, &mut [IoSlice::new(&bytes)], 0);
                (file, written)
            }
        };
        if let Err(error) = written {
            // Should it stay, it is an empty segment, and its number is not used again.
            if std::fs::remove_file(&path).is_err() {
                tail.next_number += 1;
            }
            return Err(error);
        }
        let segment = Arc::new(Segment::new(number, path, file, bytes.len() as u64));
        self.used.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.segments.write().insert(number, segment.clone());
        tail.next_number += 1;
        tail.directory_unsynced = true;
        tail.active = Some(segment.clone());
        Ok(segment)
    }

    /// Writes, or fails in the way that a test has asked for.
    #[cfg(test)]
    fn write_or_fail(
        &self,
        segment: &Segment,
        slices: &mut [IoSlice<'_>],
        at: u64,
    ) -> io::Result<()> {
        let Some(bytes) = self.fail_after.lock().take() else {
            return segment::write_all(&segment.file, slices, at);
        };
        let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        let half = &all[..bytes.min(all.len())];
        segment::write_all(&segment.file, &mut [IoSlice::new(half)], at)?;
        Err(io::ErrorKind::StorageFull.into())
    }
}
