//! The bytes of the journal's files (docs/on-disk-format.md, "Journal"). No I/O.
//!
//! A record's header says which log, segment and place it belongs to, so that no bytes of a
//! payload, not even those of another journal, can pass for one.

use gridvfs_vfs::{FileHandle, HANDLE_BYTES_MAX, Time};

use super::names;
use super::record::{Base, Record, WriteHeader};

/// The version of the format that this program writes.
pub const VERSION: u32 = 3;
/// Earlier versions that are read, too: 1 lacks the records about names, and in both a segment ends
/// with its last record.
const VERSIONS_BEFORE: [u32; 2] = [1, 2];
/// The bytes at the begin of a segment that say what it is.
pub const SEGMENT_HEADER_BYTES: usize = 64;
/// The bytes of a record's header.
pub const HEADER_BYTES: usize = 160;
/// The bytes of payload that one checksum covers.
pub const PIECE_BYTES: usize = 4096;
/// The most payload of a Write record.
pub const PAYLOAD_MAX: usize = 1 << 20;
/// The longest path in a record (PATH_MAX).
pub const PATH_BYTES_MAX: usize = 4096;
/// The most bytes of a checksum table.
pub const TABLE_MAX: usize = PAYLOAD_MAX / PIECE_BYTES * 4;
/// Records begin at multiples of this.
pub const ALIGN: usize = 8;

const SEGMENT_MAGIC: [u8; 8] = *b"GVFSJRNL";
const RECORD_MAGIC: [u8; 4] = *b"GVjr";
/// A segment's checksum covers this much of its header, in every version.
const SEGMENT_CHECKED: usize = 48;

/// The checksum: CRC-32 (IEEE).
pub fn checksum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// Returns how many checksums cover a payload.
pub fn pieces(length: u32) -> usize {
    (length as usize).div_ceil(PIECE_BYTES)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
}

/// The begin of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub number: u32,
    /// The log's random number.
    pub log_id: u64,
    /// How often the log had been opened for writing before.
    pub run: u64,
    /// The sequence number that the first record was to have.
    pub first_seq: u64,
}

/// What the begin of a segment file turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum SegmentKind {
    Good(SegmentHeader),
    /// Another version's, intact.
    Version(u32),
    Damaged,
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[0..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.log_id.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.run.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.first_seq.to_le_bytes());
        let sum = checksum(&bytes[..SEGMENT_CHECKED]);
        bytes[SEGMENT_CHECKED..SEGMENT_CHECKED + 4].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> SegmentKind {
        let Some(bytes) = bytes.get(..SEGMENT_HEADER_BYTES) else { return SegmentKind::Damaged };
        let sum = checksum(&bytes[..SEGMENT_CHECKED]);
        if bytes[..8] != SEGMENT_MAGIC || u32_at(bytes, SEGMENT_CHECKED) != sum {
            return SegmentKind::Damaged;
        }
        match u32_at(bytes, 8) {
            version if version == VERSION || VERSIONS_BEFORE.contains(&version) => {
                SegmentKind::Good(SegmentHeader {
                    number: u32_at(bytes, 12),
                    log_id: u64_at(bytes, 16),
                    run: u64_at(bytes, 24),
                    first_seq: u64_at(bytes, 32),
                })
            }
            other => SegmentKind::Version(other),
        }
    }
}

/// The fixed part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: u8,
    pub flags: u16,
    /// The length of the payload (Write) or of the body (the others).
    pub length: u32,
    pub seq: u64,
    /// Its place in the order of the writes: `seq`, or that of the record which it is a copy of.
    pub order: u64,
    /// The log was synced up to this sequence number when the record was appended.
    pub durable: u64,
    pub segment: u32,
    /// Where the record begins in the segment.
    pub at: u32,
    pub a: u64,
    pub time: Time,
    pub uid: u32,
    pub gid: u32,
    /// The checksum of the table (Write) or of the body (the others).
    pub body_sum: u32,
    pub b: u64,
    pub log_id: u64,
    pub handle: FileHandle,
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let handle = self.handle.as_bytes();
        bytes[0..4].copy_from_slice(&RECORD_MAGIC);
        bytes[8] = self.kind;
        bytes[9] = handle.len() as u8;
        bytes[10..12].copy_from_slice(&self.flags.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.length.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.seq.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.order.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.durable.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.segment.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.at.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.a.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.time.seconds.to_le_bytes());
        bytes[64..68].copy_from_slice(&self.time.nanoseconds.to_le_bytes());
        bytes[68..72].copy_from_slice(&self.uid.to_le_bytes());
        bytes[72..76].copy_from_slice(&self.gid.to_le_bytes());
        bytes[76..80].copy_from_slice(&self.body_sum.to_le_bytes());
        bytes[80..88].copy_from_slice(&self.b.to_le_bytes());
        bytes[88..96].copy_from_slice(&self.log_id.to_le_bytes());
        bytes[96..96 + handle.len()].copy_from_slice(handle);
        let sum = checksum(&bytes[8..]);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        if bytes[0..4] != RECORD_MAGIC || u32_at(bytes, 4) != checksum(&bytes[8..]) {
            return None;
        }
        let handle_length = usize::from(bytes[9]);
        if handle_length > HANDLE_BYTES_MAX {
            return None;
        }
        let header = Self {
            kind: bytes[8],
            flags: u16::from_le_bytes([bytes[10], bytes[11]]),
            length: u32_at(bytes, 12),
            seq: u64_at(bytes, 16),
            order: u64_at(bytes, 24),
            durable: u64_at(bytes, 32),
            segment: u32_at(bytes, 40),
            at: u32_at(bytes, 44),
            a: u64_at(bytes, 48),
            time: Time { seconds: u64_at(bytes, 56) as i64, nanoseconds: u32_at(bytes, 64) },
            uid: u32_at(bytes, 68),
            gid: u32_at(bytes, 72),
            body_sum: u32_at(bytes, 76),
            b: u64_at(bytes, 80),
            log_id: u64_at(bytes, 88),
            handle: FileHandle::new(&bytes[96..96 + handle_length])?,
        };
        let most = if header.is_write() { PAYLOAD_MAX } else { PATH_BYTES_MAX };
        (header.length as usize <= most).then_some(header)
    }

    pub fn is_write(&self) -> bool {
        self.kind == kind::WRITE
    }

    /// The bytes between the header and the payload.
    pub fn table_bytes(&self) -> usize {
        if self.is_write() { pieces(self.length) * 4 } else { 0 }
    }

    /// All bytes of the record, without what is left free behind it.
    pub fn record_bytes(&self) -> usize {
        HEADER_BYTES + self.table_bytes() + self.length as usize
    }
}

/// The numbers of the record kinds.
pub mod kind {
    pub const WRITE: u8 = 1;
    pub const BASE: u8 = 2;
    pub const SENDING: u8 = 3;
    pub const SENT: u8 = 4;
    pub const BARRIER: u8 = 5;
    pub const CUT_INTENT: u8 = 6;
    pub const CUT: u8 = 7;
    pub const REMOVE_INTENT: u8 = 8;
    pub const REMOVED: u8 = 9;
    pub const ABANDONED: u8 = 10;
    pub const TIMES: u8 = 11;
    pub const CONFLICT: u8 = 12;
    pub const RESOLVED: u8 = 13;
    pub const PATH: u8 = 14;
    pub const BOUND: u8 = 15;
    pub const NAME: u8 = 16;
}

const TIMES_ATIME: u16 = 1;
const TIMES_MTIME: u16 = 2;
const BASE_BYTES: usize = 40;

fn put_time(body: &mut Vec<u8>, time: Time) {
    body.extend(time.seconds.to_le_bytes());
    body.extend(time.nanoseconds.to_le_bytes());
}

fn time_at(body: &[u8], at: usize) -> Time {
    Time { seconds: u64_at(body, at) as i64, nanoseconds: u32_at(body, at + 8) }
}

fn put_base(body: &mut Vec<u8>, base: &Base) {
    body.extend(base.size.to_le_bytes());
    put_time(body, base.mtime);
    put_time(body, base.ctime);
    body.extend(base.key.to_le_bytes());
}

fn base_of(body: &[u8]) -> Option<Base> {
    let body = body.get(..BASE_BYTES)?;
    Some(Base {
        size: u64_at(body, 0),
        mtime: time_at(body, 8),
        ctime: time_at(body, 20),
        key: u64_at(body, 32),
    })
}

/// Makes the header and the body of a record; the log fills in where and when. A Write's body is
/// its table and payload, which are not made here.
pub fn encode(record: &Record) -> (Header, Vec<u8>) {
    let mut body = Vec::new();
    let mut header = Header {
        kind: 0,
        flags: 0,
        length: 0,
        seq: 0,
        order: 0,
        durable: 0,
        segment: 0,
        at: 0,
        a: 0,
        time: Time::default(),
        uid: 0,
        gid: 0,
        body_sum: 0,
        b: 0,
        log_id: 0,
        handle: *record.handle(),
    };
    header.kind = match record {
        Record::Write(write) => {
            header.a = write.offset;
            header.time = write.time;
            header.uid = write.uid;
            header.gid = write.gid;
            header.b = write.epoch;
            header.order = write.carried.unwrap_or(0);
            kind::WRITE
        }
        Record::Base { base, .. } => {
            put_base(&mut body, base);
            kind::BASE
        }
        Record::Sending { up_to_seq, .. } => {
            header.a = *up_to_seq;
            kind::SENDING
        }
        Record::Sent { up_to_seq, start, end, base, .. } => {
            header.a = *up_to_seq;
            header.b = *end;
            body.extend(start.to_le_bytes());
            base.iter().for_each(|base| put_base(&mut body, base));
            kind::SENT
        }
        Record::Barrier { .. } => kind::BARRIER,
        Record::CutIntent { size, .. } => {
            header.a = *size;
            kind::CUT_INTENT
        }
        Record::Cut { size, base, .. } => {
            header.a = *size;
            base.iter().for_each(|base| put_base(&mut body, base));
            kind::CUT
        }
        Record::RemoveIntent { .. } => kind::REMOVE_INTENT,
        Record::Removed { .. } => kind::REMOVED,
        Record::Abandoned { .. } => kind::ABANDONED,
        Record::Times { atime, mtime, .. } => {
            put_time(&mut body, atime.unwrap_or_default());
            put_time(&mut body, mtime.unwrap_or_default());
            header.flags |= atime.map_or(0, |_| TIMES_ATIME) | mtime.map_or(0, |_| TIMES_MTIME);
            kind::TIMES
        }
        Record::Conflict { kind: why, .. } => {
            header.a = u64::from(*why);
            kind::CONFLICT
        }
        Record::Resolved { .. } => kind::RESOLVED,
        Record::Path { path, .. } => {
            body.extend_from_slice(path);
            kind::PATH
        }
        Record::Bound { server, made_by, .. } => {
            header.a = *made_by;
            body.extend_from_slice(server.as_bytes());
            kind::BOUND
        }
        Record::Name(record) => {
            let parts = names::encode(record);
            (header.flags, header.a) = (parts.flags, parts.number);
            (header.uid, header.gid) = (parts.uid, parts.gid);
            body = parts.body;
            kind::NAME
        }
    };
    header.length = body.len() as u32;
    header.body_sum = checksum(&body);
    (header, body)
}

/// Understands a record; `None` for a kind that this version does not know.
pub fn decode(header: &Header, body: &[u8]) -> Option<Record> {
    let handle = header.handle;
    Some(match header.kind {
        kind::WRITE => Record::Write(WriteHeader {
            handle,
            offset: header.a,
            time: header.time,
            uid: header.uid,
            gid: header.gid,
            epoch: header.b,
            carried: (header.order != header.seq).then_some(header.order),
        }),
        kind::BASE => Record::Base { handle, base: base_of(body)? },
        kind::SENDING => Record::Sending { handle, up_to_seq: header.a },
        kind::SENT => {
            let (start, rest) = body.split_at_checked(8)?;
            let start = u64_at(start, 0);
            Record::Sent { handle, up_to_seq: header.a, start, end: header.b, base: base_of(rest) }
        }
        kind::BARRIER => Record::Barrier { handle },
        kind::CUT_INTENT => Record::CutIntent { handle, size: header.a },
        kind::CUT => Record::Cut { handle, size: header.a, base: base_of(body) },
        kind::REMOVE_INTENT => Record::RemoveIntent { handle },
        kind::REMOVED => Record::Removed { handle },
        kind::ABANDONED => Record::Abandoned { handle },
        kind::TIMES => {
            let body = body.get(..24)?;
            let given = |flag, at| (header.flags & flag != 0).then(|| time_at(body, at));
            Record::Times { handle, atime: given(TIMES_ATIME, 0), mtime: given(TIMES_MTIME, 12) }
        }
        kind::CONFLICT => Record::Conflict { handle, kind: header.a as u8 },
        kind::RESOLVED => Record::Resolved { handle },
        kind::PATH => Record::Path { handle, path: body.to_vec() },
        kind::BOUND => Record::Bound { handle, server: FileHandle::new(body)?, made_by: header.a },
        kind::NAME => {
            let Header { flags, a, uid, gid, .. } = *header;
            Record::Name(names::decode(flags, a, uid, gid, body)?)
        }
        _ => return None,
    })
}
