//! Opening: the segments are looked at, then replayed.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use parking_lot::{Condvar, Mutex, RwLock};

use super::append::Tail;
use super::format::{
    self, ALIGN, HEADER_BYTES, Header, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind,
};
use super::record::Place;
use super::room::Room;
use super::scan::{self, Identity, Item};
use super::segment::{self, Segment};
use super::sync::SyncState;
use super::{Damage, Journal, JournalCounters, JournalError, JournalOptions, Replayed};
use crate::key::random_number;

/// Below this a segment is hardly more than its begin.
const SEGMENT_BYTES_MIN: u64 = 4096;
/// Places are kept in 32 bits.
const SEGMENT_BYTES_MAX: u64 = 1 << 31;

impl Journal {
    /// Opens the journal in `dir`, which is made if need be, and replays what it holds.
    ///
    /// Payload that may not have been synced is verified; all of it is with
    /// [`JournalOptions::verify`]. No file is changed.
    pub fn open(
        dir: &Path,
        mut options: JournalOptions,
        replay: &mut dyn FnMut(Replayed),
    ) -> Result<Journal, JournalError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| JournalError::Io { path, error }
        };
        options.segment_bytes = options.segment_bytes.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        if !dir.exists() {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))?;
            if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                File::open(parent).and_then(|parent| parent.sync_all()).map_err(at(parent))?;
            }
        }
        let lock = lock(dir)?;
        let room = Room::find(dir, options.segment_bytes);
        let mut found = find_segments(dir)?;
        let log_id = identify(&found).map_err(at(dir))?.unwrap_or_else(random_number);
        let mut run = 0;
        for item in &mut found {
            match item.header {
                Some(header) if header.log_id != log_id || header.number != item.segment.number => {
                    return Err(JournalError::Foreign(item.segment.path.clone()));
                }
                Some(header) => run = header.run,
                None => {}
            }
            item.run = run;
        }
        let durable = durable_by_run(&found, log_id).map_err(at(dir))?;
        let mut reader = Reader {
            log_id,
            verify: options.verify,
            last_seq: None,
            gaps: Vec::new(),
            buffer: Vec::new(),
            replay,
        };
        for item in &found {
            let durable = durable.get(&item.run).copied().unwrap_or(0);
            reader.segment(item, durable).map_err(at(&item.segment.path))?;
        }
        reader.flush_gaps(false);

        let next_seq = reader.last_seq.map_or(1, |last| last + 1);
        let segments: BTreeMap<_, _> =
            found.iter().map(|item| (item.segment.number, item.segment.clone())).collect();
        let sum = |of: fn(&Segment) -> &AtomicU64| {
            AtomicU64::new(found.iter().map(|item| of(&item.segment).load(Ordering::Relaxed)).sum())
        };
        Ok(Journal {
            dir_path: dir.to_owned(),
            dir: lock,
            options,
            log_id,
            run: if found.is_empty() { 0 } else { run + 1 },
            tail: Mutex::new(Tail {
                active: None,
                next_number: segments.last_key_value().map_or(1, |(number, _)| number + 1),
                next_seq,
                unsynced: segments.values().cloned().collect(),
                directory_unsynced: !segments.is_empty(),
                begun: (0, 0),
            }),
            used: sum(|segment| &segment.bytes),
            live: sum(|segment| &segment.live),
            unbegun: AtomicU64::new(0),
            segments: RwLock::new(segments),
            syncs: Mutex::new(SyncState::default()),
            synced: Condvar::new(),
            durable: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            reclaiming: Mutex::new(()),
            room: Mutex::new(room),
            counters: JournalCounters::default(),
            #[cfg(test)]
            fail_after: Mutex::new(None),
        })
    }
}

fn lock(dir: &Path) -> Result<Flock<File>, JournalError> {
    let error = |error| JournalError::Io { path: dir.to_owned(), error };
    let file = File::open(dir).map_err(error)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => JournalError::Busy(dir.to_owned()),
        other => error(other.into()),
    })
}

/// A segment that was found.
struct Found {
    segment: Arc<Segment>,
    /// `None`: damaged.
    header: Option<SegmentHeader>,
    run: u64,
}

/// Opens all segment files, the oldest first; refuses an unknown version.
fn find_segments(dir: &Path) -> Result<Vec<Found>, JournalError> {
    let at = |path: &Path, error| JournalError::Io { path: path.to_owned(), error };
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|error| at(dir, error))? {
        let name = entry.map_err(|error| at(dir, error))?.file_name();
        numbers.extend(name.to_str().and_then(segment::number_of));
    }
    numbers.sort_unstable();
    numbers.dedup();
    let mut found = Vec::new();
    for number in numbers {
        let path: PathBuf = segment::path_of(dir, number);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(|error| at(&path, error))?;
        let length = file.metadata().map_err(|error| at(&path, error))?.len();
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        let header = if length < bytes.len() as u64 {
            SegmentKind::Damaged
        } else {
            file.read_exact_at(&mut bytes, 0).map_err(|error| at(&path, error))?;
            SegmentHeader::decode(&bytes)
        };
        let header = match header {
            SegmentKind::Good(header) => Some(header),
            SegmentKind::Version(version) => return Err(JournalError::Version { path, version }),
            SegmentKind::Damaged => None,
        };
        let segment = Arc::new(Segment::new(number, path, file, length));
        found.push(Found { segment, header, run: 0 });
    }
    Ok(found)
}

/// Returns the log's number: from a segment's header, or else from any record.
fn identify(found: &[Found]) -> io::Result<Option<u64>> {
    if let Some(header) = found.iter().find_map(|item| item.header) {
        return Ok(Some(header.log_id));
    }
    let mut log_id = None;
    for item in found {
        let identity = Identity { segment: item.segment.number, log_id: None };
        scan::walk(&item.segment.file, identity, &mut |found| {
            if let Item::Record { header, .. } = found {
                log_id = Some(header.log_id);
            }
            Ok(log_id.is_none())
        })?;
    }
    Ok(log_id)
}

/// For each run, up to which sequence number its records say that the log was synced: the last
/// record knows best.
fn durable_by_run(found: &[Found], log_id: u64) -> io::Result<BTreeMap<u64, u64>> {
    let mut durable = BTreeMap::new();
    for item in found.iter().rev() {
        if durable.contains_key(&item.run) {
            continue;
        }
        let identity = Identity { segment: item.segment.number, log_id: Some(log_id) };
        let mut last = None;
        scan::walk(&item.segment.file, identity, &mut |found| {
            if let Item::Record { header, .. } = found {
                last = last.max(Some(header.durable));
            }
            Ok(true)
        })?;
        if let Some(last) = last {
            durable.insert(item.run, last);
        }
    }
    Ok(durable)
}

/// Tells records from damage, and damage from what was never finished.
struct Reader<'a> {
    log_id: u64,
    verify: bool,
    last_seq: Option<u64>,
    /// Bytes that are no record, since the last record: damage only if a sequence number is
    /// missing, or at the end.
    gaps: Vec<Damage>,
    buffer: Vec<u8>,
    replay: &'a mut dyn FnMut(Replayed),
}

impl Reader<'_> {
    fn segment(&mut self, item: &Found, durable: u64) -> io::Result<()> {
        let segment = &item.segment;
        let damage =
            |at, bytes| Damage { segment: segment.number, at, bytes, file: None, synced: false };
        match item.header {
            // Records before the first segment have been deleted.
            Some(header) if self.last_seq.is_none() => {
                self.last_seq = Some(header.first_seq.saturating_sub(1));
            }
            Some(_) => {}
            None => {
                let length = segment.bytes.load(Ordering::Relaxed);
                self.gaps.push(damage(0, length.min(SEGMENT_HEADER_BYTES as u64)));
            }
        }
        let identity = Identity { segment: segment.number, log_id: Some(self.log_id) };
        let mut end = segment.bytes.load(Ordering::Relaxed).min(SEGMENT_HEADER_BYTES as u64);
        scan::walk(&segment.file, identity, &mut |found| {
            end = match &found {
                Item::Record { header, .. } => {
                    u64::from(header.at) + header.record_bytes().next_multiple_of(ALIGN) as u64
                }
                Item::Bad { at, bytes, .. } => at + bytes,
            };
            match found {
                Item::Record { header, body } => self.record(segment, &header, body, durable)?,
                Item::Bad { at, bytes, header: Some(header) } => {
                    self.pass(header.seq, segment, durable);
                    self.lost(&header, at, bytes, durable);
                }
                Item::Bad { at, bytes, header: None } => self.gaps.push(damage(at, bytes)),
            }
            Ok(true)
        })?;
        segment.bytes.store(end, Ordering::Relaxed);
        Ok(())
    }

    fn record(
        &mut self,
        segment: &Segment,
        header: &Header,
        body: &[u8],
        durable: u64,
    ) -> io::Result<()> {
        self.pass(header.seq, segment, durable);
        let payload_at = header.at + (HEADER_BYTES + header.table_bytes()) as u32;
        let place = Place { segment: segment.number, at: payload_at, length: header.length };
        let verify = header.is_write() && (self.verify || header.seq > durable);
        let right =
            !verify || scan::payload_is_right(&segment.file, header, body, &mut self.buffer)?;
        match format::decode(header, body).filter(|_| right) {
            Some(record) => {
                let place = header.is_write().then_some(place);
                if header.is_write() {
                    segment.live.fetch_add(u64::from(header.length), Ordering::Relaxed);
                }
                (self.replay)(Replayed::Record { seq: header.seq, record, place });
            }
            None => {
                let bytes = header.record_bytes() as u64;
                self.lost(header, u64::from(header.at), bytes, durable);
            }
        }
        Ok(())
    }

    /// A record with this number has been found: is one missing before it?
    fn pass(&mut self, seq: u64, segment: &Segment, durable: u64) {
        match self.last_seq {
            // The log's begin is damaged: nobody knows how many are missing.
            None => self.flush_gaps(seq <= durable + 1),
            Some(last) if seq > last + 1 => {
                if self.gaps.is_empty() {
                    let segment = segment.number;
                    self.gaps.push(Damage { segment, at: 0, bytes: 0, file: None, synced: false });
                }
                self.flush_gaps(last < durable);
            }
            // None is. But if it is this segment's begin that is damaged, no append made that.
            Some(_) => {
                self.gaps.retain(|gap| gap.segment == segment.number && gap.at == 0);
                self.flush_gaps(true);
            }
        }
        self.last_seq = self.last_seq.max(Some(seq));
    }

    fn lost(&mut self, header: &Header, at: u64, bytes: u64, durable: u64) {
        let (offset, length) = if header.is_write() { (header.a, header.length) } else { (0, 0) };
        (self.replay)(Replayed::Damaged(Damage {
            segment: header.segment,
            at,
            bytes,
            file: Some((header.handle, offset, length)),
            synced: header.seq <= durable,
        }));
    }

    fn flush_gaps(&mut self, synced: bool) {
        for gap in self.gaps.drain(..) {
            (self.replay)(Replayed::Damaged(Damage { synced, ..gap }));
        }
    }
}
