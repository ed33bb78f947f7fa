//! Room for the next segment: a file of zeros, made while nothing is appended.
//!
//! The directory has it as `ready.room`, or as `spent.room` as long as it is not all zero. Neither
//! is needed: what is missing, or of another length, is made anew.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::Journal;
use super::format::SEGMENT_HEADER_BYTES;
use super::segment::{self, Segment};

/// How much is zeroed before somebody is looked for who appends: some milliseconds of a disk's time.
const STEP_BYTES: u64 = 1 << 20;
/// The disk keeps as many times a segment's length free; otherwise no room is made.
const FREE_MIN: u64 = 16;

/// What is kept for the next segment.
#[derive(Debug)]
pub(super) struct Room {
    dir: PathBuf,
    /// A whole segment of zeros.
    ready: Option<File>,
    /// One that is not, and how much of its begin is not zero. Whoever still reads from it holds it.
    spent: Option<(Arc<Segment>, u64)>,
}

impl Room {
    /// Looks what an earlier process has left in the journal's directory.
    pub fn find(dir: &Path, segment_bytes: u64) -> Self {
        let _ = std::fs::remove_file(dir.join("spent.room"));
        let file = OpenOptions::new().read(true).write(true).open(dir.join("ready.room")).ok();
        let is_ready = |file: &File| {
            let mut begin = [1; SEGMENT_HEADER_BYTES];
            file.metadata().is_ok_and(|metadata| metadata.len() == segment_bytes)
                && file.read_exact_at(&mut begin, 0).is_ok()
                // Else it has become a segment, of which a power loss has left nothing but this.
                && begin == [0; SEGMENT_HEADER_BYTES]
        };
        Self { dir: dir.to_owned(), ready: file.filter(is_ready), spent: None }
    }

    /// Makes a segment of the room, if there is any: its header is on disk before its name is, so
    /// that whoever finds a header finds records behind it, too.
    pub fn take(&mut self, path: &Path, header: &[u8]) -> Option<File> {
        let file = self.ready.take()?;
        let ready = self.dir.join("ready.room");
        let begun = segment::write_all(&file, &mut [IoSlice::new(header)], 0)
            .and_then(|()| file.sync_data())
            .and_then(|()| {
                let flags = RenameFlags::RENAME_NOREPLACE;
                renameat2(AT_FDCWD, &ready, AT_FDCWD, path, flags).map_err(io::Error::from)
            });
        if begun.is_err() {
            let _ = std::fs::remove_file(ready);
            return None;
        }
        Some(file)
    }

    /// Takes a segment's file away from the journal, to be used again. Returns false if there is no
    /// need of it: it is to be deleted.
    pub fn keep(&mut self, segment: &Arc<Segment>, segment_bytes: u64) -> io::Result<bool> {
        let length = segment.file.metadata().map_or(0, |metadata| metadata.len());
        if self.ready.is_some() || self.spent.is_some() || length != segment_bytes {
            return Ok(false);
        }
        match std::fs::rename(&segment.path, self.dir.join("spent.room")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            result => result?,
        }
        self.spent = Some((segment.clone(), segment.bytes.load(Ordering::Relaxed)));
        Ok(true)
    }
}

impl Journal {
    /// Makes room for the next segment, unless there is some. Gives up, to go on at the next call,
    /// as soon as anything is appended. To be called when nothing else is to be done.
    pub fn make_room(&self) -> io::Result<()> {
        let seq = self.tail.lock().next_seq;
        let _one_at_a_time = self.reclaiming.lock();
        let mut room = self.room.lock();
        if room.ready.is_some() || self.failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (segment, mut left) = match room.spent.take() {
            Some(spent) => spent,
            None if !self.has_space()? => return Ok(()),
            None => {
                let path = room.dir.join("spent.room");
                let mut options = OpenOptions::new();
                let options =
                    options.read(true).write(true).create(true).truncate(true).mode(0o600);
                let file = options.open(&path)?;
                (Arc::new(Segment::new(0, path, file, 0)), self.options.segment_bytes)
            }
        };
        drop(room);
        // Before what it held is gone: under its old name a power loss would leave a part of it.
        let result = self.dir.sync_all().and_then(|()| self.zero(&segment, &mut left, seq));
        let mut room = self.room.lock();
        if result.is_ok() && left == 0 && Arc::strong_count(&segment) == 1 {
            std::fs::rename(room.dir.join("spent.room"), room.dir.join("ready.room"))?;
            room.ready = Arc::try_unwrap(segment).ok().map(|segment| segment.file);
        } else if result.is_ok() {
            room.spent = Some((segment, left));
        } else {
            let _ = std::fs::remove_file(room.dir.join("spent.room"));
        }
        result
    }

    /// Zeroes the first `left` bytes of a file, the last of them first, and counts down. Stops if the
    /// next record is not `seq` any more, or if somebody still reads what is there.
    fn zero(&self, segment: &Arc<Segment>, left: &mut u64, seq: u64) -> io::Result<()> {
        let zeros = vec![0; STEP_BYTES as usize];
        while *left > 0 {
            if Arc::strong_count(segment) > 1 || self.tail.lock().next_seq != seq {
                return Ok(());
            }
            let from = (*left - 1) / STEP_BYTES * STEP_BYTES;
            let step = &zeros[..(*left - from) as usize];
            segment::write_all(&segment.file, &mut [IoSlice::new(step)], from)?;
            *left = from;
        }
        segment.file.sync_data()
    }

    /// Says whether the disk has so much space left that a segment more is no matter.
    fn has_space(&self) -> io::Result<bool> {
        let disk = nix::sys::statvfs::fstatvfs(&*self.dir)?;
        let free = disk.blocks_available() as u64 * disk.fragment_size() as u64;
        Ok(free / FREE_MIN >= self.options.segment_bytes)
    }
}
