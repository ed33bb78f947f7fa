//! The metadata file of a file: found, and read as a whole or in parts.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use gridvfs_cache::DiskCache;
use gridvfs_cache::disk::Version;
use gridvfs_vfs::{
    Attr, Caller, Error, FETCH_RANGES_MAX, FetchedRange, FileHandle, FileKind, Result, Status, Vfs,
};
use tokio::runtime::Handle;

use super::Core;
use super::subject::Subject;
use crate::actions::Actions;
use crate::arrive::HashList;
use crate::counters::add;
use crate::format::{
    FormatError, HashPieces, METADATA_BYTES_MAX, Metadata, Outline, metadata_name,
};

/// By what pieces a metadata file is read that is read as a whole, in bytes: a full READ.
const PIECE_BYTES: u64 = 1 << 20;
/// What is read of the start and of the end of a larger one, in bytes. What is not hashes is there,
/// mostly: the zero map of a disk of some GB at the start, the checksums of 1,000 pieces at the end.
const EDGE_BYTES: u64 = 32 << 10;
/// What is read besides is so much at most: more is no metadata file that has pieces for a reason.
const MORE_BYTES_MAX: u64 = 3 << 20;
/// The disk cache keeps data by blocks of so many bytes.
const BLOCK_BYTES: u64 = 4096;

/// What a metadata file says.
pub(crate) struct Told {
    /// But for the hashes.
    pub metadata: Metadata,
    pub hashes: Option<HashList>,
}

/// See the module's description.
#[derive(Clone)]
pub(crate) struct MetaFile {
    below: Arc<dyn Vfs>,
    source: Arc<dyn Vfs>,
    disk: Option<Arc<DiskCache>>,
    actions: Arc<Actions>,
    runtime: Handle,
    file: FileHandle,
    /// As they were when it was found.
    attr: Attr,
    /// The disk cache's, if it may keep what is read.
    version: Option<Version>,
}

impl Core {
    /// Reads all that a file's metadata file says; `None` if there is none that can be used.
    pub async fn read_metadata(
        &self,
        caller: &Caller,
        subject: &Subject,
    ) -> Result<Option<Metadata>> {
        let Some(file) = self.metadata_file(caller, subject).await? else { return Ok(None) };
        Ok(self.usable(subject, Metadata::decode(&file.read_all(caller).await?)))
    }

    /// Reads what a file's metadata file says; hashes, if there are many, when they are used.
    pub(super) async fn read_told(
        &self,
        caller: &Caller,
        subject: &Subject,
    ) -> Result<Option<Told>> {
        let Some(file) = self.metadata_file(caller, subject).await? else { return Ok(None) };
        if file.attr.size > self.whole_bytes_max
            && let Some(told) = file.read_outline(caller).await?
        {
            let told = told.map(|(metadata, pieces)| Told {
                metadata,
                hashes: Some(HashList::new(pieces, Some(file))),
            });
            return Ok(self.usable(subject, told));
        }
        let metadata = Metadata::decode(&file.read_all(caller).await?);
        let told = metadata.map(|mut metadata| {
            let hashes = metadata.hashes.take();
            Told { metadata, hashes: hashes.map(|hashes| HashList::new(hashes.into(), None)) }
        });
        Ok(self.usable(subject, told))
    }

    /// Finds a file's metadata file, unless that is plainly none.
    async fn metadata_file(&self, caller: &Caller, subject: &Subject) -> Result<Option<MetaFile>> {
        let Some((dir, name)) = subject.place() else { return Ok(None) };
        let Some(name) = metadata_name(&name) else { return Ok(None) };
        let entry = match self.below.lookup(caller, &dir, &name).await {
            Ok(entry) => entry,
            Err(Error::Status(Status::NOENT | Status::NAMETOOLONG)) => return Ok(None),
            Err(error) => return Err(error),
        };
        subject.found_metadata();
        let attr = match entry.attr {
            Some(attr) => attr,
            None => self.below.getattr(caller, &entry.handle).await?,
        };
        if attr.kind != FileKind::Regular {
            self.refuse(subject, &"it is not a file");
            return Ok(None);
        }
        if attr.size > METADATA_BYTES_MAX {
            self.refuse(subject, &FormatError::TooLarge(attr.size));
            return Ok(None);
        }
        let version = self.disk.as_ref().and_then(|disk| disk.version_of_new(&entry.handle));
        Ok(Some(MetaFile {
            below: self.below.clone(),
            source: self.source.clone(),
            disk: self.disk.clone(),
            actions: self.actions.clone(),
            runtime: self.runtime.clone(),
            file: entry.handle,
            version: version.filter(|version| version.size == attr.size),
            attr,
        }))
    }

    fn usable<T>(&self, subject: &Subject, read: Result<T, FormatError>) -> Option<T> {
        read.map_err(|error| self.refuse(subject, &error)).ok()
    }

    fn refuse(&self, subject: &Subject, why: &dyn std::fmt::Display) {
        add(&self.counters.refused, 1);
        subject.warn_once(|| {
            format!("{}: its metadata is not used: {why}", self.path_text(&subject.file))
        });
    }
}

impl MetaFile {
    /// Reads it from its start to its end: all of it is on its way at once, a few MiB mostly.
    async fn read_all(&self, caller: &Caller) -> Result<Vec<u8>> {
        let pieces: Vec<_> = (0..self.attr.size)
            .step_by(PIECE_BYTES as usize)
            .map(|at| {
                let (below, caller, file) = (self.below.clone(), caller.clone(), self.file);
                let count = (self.attr.size - at).min(PIECE_BYTES) as u32;
                self.runtime.spawn(async move { below.read(&caller, &file, at, count).await })
            })
            .collect();
        let mut all = Vec::with_capacity(self.attr.size as usize);
        for piece in pieces {
            let data = piece.await.unwrap_or(Err(Error::Interrupted))?.data;
            all.extend_from_slice(&data);
            if !(all.len() as u64).is_multiple_of(PIECE_BYTES) {
                // The end, or less than there was: then it is not the whole, and its checksums say
                // so.
                break;
            }
        }
        Ok(all)
    }

    /// Reads what it says but for the hashes, in one round trip if that is where it is expected;
    /// `None` if it has to be read as a whole.
    async fn read_outline(
        &self,
        caller: &Caller,
    ) -> Result<Option<Result<(Metadata, HashPieces), FormatError>>> {
        let size = self.attr.size;
        let mut ranges = vec![0..EDGE_BYTES.min(size), size.saturating_sub(EDGE_BYTES)..size];
        let mut held = match self.read(caller, &ranges).await {
            // It is not what it was a moment ago: as a whole, it is what it is.
            Err(Error::Status(_)) => return Ok(None),
            read => read?,
        };
        let outline = match Outline::read(&held[0], size) {
            Ok(outline) => outline,
            Err(error) => return Ok(Some(Err(error))),
        };
        let Some(wanted) = outline.but_for_hashes() else { return Ok(None) };
        let is_within =
            |part: &Range<u64>, held: &Range<u64>| held.start <= part.start && part.end <= held.end;
        let more: Vec<_> = wanted
            .into_iter()
            .filter(|part| !ranges.iter().any(|held| is_within(part, held)))
            .collect();
        let more_bytes: u64 = more.iter().map(|part| part.end - part.start).sum();
        let odd = more.len() > FETCH_RANGES_MAX || more.iter().any(Range::is_empty);
        if odd || more_bytes > MORE_BYTES_MAX {
            return Ok(None);
        }
        if !more.is_empty() {
            held.extend(self.read(caller, &more).await?);
            ranges.extend(more);
        }
        let part = |part: Range<u64>| {
            let at = ranges.iter().position(|held| is_within(&part, held))?;
            Some((ranges[at].start, &*held[at]))
        };
        Ok(Some(outline.decode(part)))
    }

    /// Reads ranges, in the file's order, and few enough for one call. What is not at hand comes by a
    /// FETCH: a READ through the layers below would have them read ahead.
    ///
    /// # Errors
    /// Those of the calls; `JUKEBOX` if the file is not what it was when it was found.
    pub async fn read(&self, caller: &Caller, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        if let Some(held) = ranges.iter().map(|range| self.held(range)).collect() {
            return Ok(held);
        }
        if !self.actions.no_fetch.load(Ordering::Relaxed) {
            match self.fetch(caller, ranges).await {
                Err(Error::Status(Status::NOTSUPP)) => {
                    self.actions.no_fetch.store(true, Ordering::Relaxed);
                }
                result => return result,
            }
        }
        let under_way: Vec<_> = ranges
            .iter()
            .map(|range| {
                let (this, caller, range) = (self.clone(), caller.clone(), range.clone());
                self.runtime.spawn(async move { this.read_below(&caller, &range).await })
            })
            .collect();
        let mut read = Vec::new();
        for range in under_way {
            read.push(range.await.unwrap_or(Err(Error::Interrupted))?);
        }
        Ok(read)
    }

    /// A range that the disk cache has.
    fn held(&self, range: &Range<u64>) -> Option<Bytes> {
        let (disk, version) = self.disk.as_ref().zip(self.version)?;
        let mut out = BytesMut::zeroed((range.end - range.start) as usize);
        let read = disk.read_version(version.key, range.start, &mut out);
        (read == out.len()).then(|| out.freeze())
    }

    async fn fetch(&self, caller: &Caller, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let size = self.attr.size;
        let asked = whole_blocks(ranges, size);
        let first = asked.first().map_or(0, |range| range.0);
        let expected = self
            .disk
            .as_ref()
            .zip(self.version)
            .and_then(|(disk, version)| disk.expect(&self.file, version.key, first, size));
        // Hashes cannot be compressed, and the rest is small.
        let fetched = self.source.fetch(caller, &self.file, &asked, 0).await?;
        if (fetched.attr.size, fetched.attr.mtime) != (size, self.attr.mtime) {
            return Err(Status::JUKEBOX.into());
        }
        let mut came = Vec::new();
        for range in fetched.ranges.iter().filter(|range| range.is_sound()) {
            let data = bytes_of(range);
            if let Some(expected) = &expected
                && let Err(error) = expected.put(range.offset, &data)
            {
                log::debug!("not stored: {error}");
            }
            came.push((range.offset, data));
        }
        let part = |range: &Range<u64>| {
            let (at, data) = came.iter().rfind(|(at, _)| *at <= range.start)?;
            let (from, to) = ((range.start - at) as usize, (range.end - at) as usize);
            (to <= data.len()).then(|| data.slice(from..to))
        };
        let parts: Option<Vec<Bytes>> = ranges.iter().map(part).collect();
        parts.ok_or_else(|| Error::Protocol("less came than was asked for".into()))
    }

    async fn read_below(&self, caller: &Caller, range: &Range<u64>) -> Result<Bytes> {
        let mut all = BytesMut::new();
        while (all.len() as u64) < range.end - range.start {
            let at = range.start + all.len() as u64;
            let count = (range.end - at).min(PIECE_BYTES) as u32;
            let read = self.below.read(caller, &self.file, at, count).await?;
            all.extend_from_slice(&read.data);
            if read.data.is_empty() {
                break;
            }
        }
        Ok(all.freeze())
    }
}

/// Ranges, in the file's order, in whole blocks; those that touch are one.
fn whole_blocks(ranges: &[Range<u64>], size: u64) -> Vec<(u64, u32)> {
    let mut whole: Vec<(u64, u32)> = Vec::new();
    for range in ranges {
        let start = range.start / BLOCK_BYTES * BLOCK_BYTES;
        let end = range.end.next_multiple_of(BLOCK_BYTES).min(size);
        match whole.last_mut() {
            Some((first, length)) if start <= *first + u64::from(*length) => {
                *length = (*length).max((end - *first) as u32);
            }
            _ => whole.push((start, (end - start) as u32)),
        }
    }
    whole
}

/// What came, with its zeros.
fn bytes_of(range: &FetchedRange) -> Bytes {
    let mut data = BytesMut::zeroed(range.length as usize);
    for run in range.runs() {
        let at = (run.offset - range.offset) as usize;
        if let Some(bytes) = run.data {
            data[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }
    data.freeze()
}
