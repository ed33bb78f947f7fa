//! Deletion of segments, from the oldest on (the journal's description says why).

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gridvfs_vfs::FileHandle;

use super::record::Place;
use super::scan::{self, Identity, Item};
use super::segment::Segment;
use super::{Journal, format};
use crate::crash::{self, Point};

/// A segment, for the owner to judge which one holds up the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its number.
    pub number: u32,
    /// Up to where there are records.
    pub bytes: u64,
    /// Payload bytes in it that have not been released.
    pub live: u64,
    /// Whether it is still appended to.
    pub active: bool,
}

impl Journal {
    /// Says that `bytes` of the payload at `place` are no longer needed. The record that makes
    /// them so (a Sent, Cut, Removed, or a Write over them) has been appended before.
    pub fn release(&self, place: &Place, bytes: u64) {
        if let Some(segment) = self.segments.read().get(&place.segment) {
            let before = segment.live.fetch_sub(bytes, Ordering::AcqRel);
            debug_assert!(before >= bytes, "more released than was appended: {place:?}");
            self.live.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Does [`Self::release`] for each of these.
    pub fn release_all(&self, freed: &[(Place, u64)]) {
        freed.iter().for_each(|(place, bytes)| self.release(place, *bytes));
    }

    /// Returns all segments, the oldest first.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let active = self.tail.lock().active.as_ref().map(|segment| segment.number);
        let segments = self.segments.read();
        let info = |segment: &Arc<Segment>| SegmentInfo {
            number: segment.number,
            bytes: segment.bytes.load(Ordering::Relaxed),
            live: segment.live.load(Ordering::Relaxed),
            active: Some(segment.number) == active,
        };
        segments.values().map(info).collect()
    }

    /// Returns the files that have Write records in the oldest segment, with the bytes of them,
    /// needed or not. Reads the segment's headers.
    pub fn oldest_live_files(&self) -> io::Result<HashMap<FileHandle, u64>> {
        let mut files = HashMap::new();
        let oldest = self.segments.read().values().next().cloned();
        let Some(segment) = oldest else { return Ok(files) };
        scan::walk(&segment.file, self.identity(&segment), &mut |item| {
            if let Item::Record { header, .. } = item
                && header.is_write()
            {
                *files.entry(header.handle).or_insert(0) += u64::from(header.length);
            }
            Ok(true)
        })?;
        Ok(files)
    }

    /// Deletes the oldest segments that hold no needed payload; returns the bytes given back.
    ///
    /// `carry` is called, without any lock held, once for each file of which such a segment holds
    /// state ([`super::FileState`]). If the file is still dirty or has anything pending, the owner
    /// appends its state again ([`super::FileState::records`]) under the file's lock. Then the
    /// log is synced, and the segments go, oldest first. One call runs at a time; an idle active
    /// segment that is a quarter full is closed and goes, too.
    pub fn reclaim(&self, carry: &mut dyn FnMut(&FileHandle) -> io::Result<()>) -> io::Result<u64> {
        self.reclaim_from(carry, self.options.segment_bytes / 4)
    }

    /// The same at the end of a session: an idle active segment goes however little is in it.
    pub fn reclaim_all(
        &self,
        carry: &mut dyn FnMut(&FileHandle) -> io::Result<()>,
    ) -> io::Result<u64> {
        self.reclaim_from(carry, 0)
    }

    fn reclaim_from(
        &self,
        carry: &mut dyn FnMut(&FileHandle) -> io::Result<()>,
        idle_bytes_min: u64,
    ) -> io::Result<u64> {
        let _one_at_a_time = self.reclaiming.lock();
        self.close_idle(idle_bytes_min);
        let active = self.tail.lock().active.as_ref().map(|segment| segment.number);
        let unneeded: Vec<Arc<Segment>> = self
            .segments
            .read()
            .values()
            .take_while(|segment| {
                Some(segment.number) != active && segment.live.load(Ordering::Acquire) == 0
            })
            .cloned()
            .collect();
        if unneeded.is_empty() {
            return Ok(0);
        }
        let mut files = HashSet::new();
        for segment in &unneeded {
            self.files_with_state(segment, &mut files)?;
        }
        for handle in &files {
            carry(handle)?;
        }
        // Not only what was carried: also the records that made the payload unneeded.
        self.sync()?;
        let mut freed = 0;
        for segment in &unneeded {
            crash::point(Point::JOURNAL_BEFORE_DELETE);
            let kept = self.room.lock().keep(segment, self.options.segment_bytes)?;
            if !kept {
                match std::fs::remove_file(&segment.path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            crash::point(Point::JOURNAL_AFTER_DELETE);
            self.segments.write().remove(&segment.number);
            let bytes = segment.bytes.load(Ordering::Relaxed);
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            freed += bytes;
            // No later segment may be gone while this one comes back with a power loss.
            self.dir.sync_all()?;
            self.counters.segments_deleted.fetch_add(1, Ordering::Relaxed);
        }
        Ok(freed)
    }

    /// Lets the next record go to a new segment, if all of this one's payload is unneeded and
    /// deleting it is worth the trouble.
    fn close_idle(&self, bytes_min: u64) {
        let mut tail = self.tail.lock();
        let idle = tail.active.as_ref().is_some_and(|segment| {
            segment.live.load(Ordering::Acquire) == 0
                && segment.bytes.load(Ordering::Relaxed) >= bytes_min
        });
        if idle {
            tail.active = None;
        }
    }

    fn files_with_state(
        &self,
        segment: &Segment,
        files: &mut HashSet<FileHandle>,
    ) -> io::Result<()> {
        scan::walk(&segment.file, self.identity(segment), &mut |item| {
            if let Item::Record { header, body } = item
                && !header.is_write()
                && format::decode(&header, body).is_some_and(|record| record.is_state())
            {
                files.insert(header.handle);
            }
            Ok(true)
        })
    }

    fn identity(&self, segment: &Segment) -> Identity {
        Identity { segment: segment.number, log_id: Some(self.log_id) }
    }
}
