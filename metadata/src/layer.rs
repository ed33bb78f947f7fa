//! The metadata layer (paper, section 5): a [`Vfs`] over the disk cache (or over what stands in its
//! place) that knows beforehand what files hold.
//!
//! A large file's metadata is looked for when the file is looked up or first read. What it says is
//! then used, for as long as the file is the version that it speaks of:
//!
//! - blocks of the zero map are answered here: no request, no room in the cache;
//! - everything else that is missing *arrives* ([`crate::arrive`]): in bulk and compressed where the
//!   server can, from what the cache holds of other files where hashes say that it is the same,
//!   checked against the hashes; ahead of need where an action or a working set says so.
//!
//! A file that is written through this layer is no longer what its metadata says: all of it is
//! forgotten before the write. Damaged or outdated metadata is named once in the log, and the file
//! is read as any other. Listings do not show metadata files, unless asked to; their names can be
//! used all the same. They follow their file when it is renamed or removed.

mod guide;
mod interface;
mod metafile;
mod names;
mod profiles;
mod read;
mod subject;
mod warm;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use dashmap::DashMap;
use gridvfs_cache::DiskCache;
use gridvfs_vfs::{Attr, FileHandle, FileKind, Vfs};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::actions::Actions;
use crate::content::ContentIndex;
use crate::counters::Counters;
use crate::profile::Profiles;
pub(crate) use guide::Guide;
pub(crate) use metafile::{MetaFile, Told};
pub use profiles::Profiled;
use subject::Subject;
pub use warm::Held;

/// A metadata file of so many bytes takes half of a round trip's time on a link of 1 Gbit/s and 32 ms,
/// and hashes that had to be asked for would take another round trip.
pub const WHOLE_BYTES_MAX: u64 = 2 << 20;
/// Smaller files are not looked at: two or three round trips bring all of them.
pub const SIZE_MIN: u64 = 256 << 10;
/// Of so many files it is remembered whether they have metadata.
const SUBJECTS_MAX: usize = 64 * 1024;
/// Of so many listed files it is remembered where they are.
const PLACES_MAX: NonZeroUsize = NonZeroUsize::new(16 * 1024).unwrap();

/// How the layer works.
pub struct MetaOptions {
    /// Listings show metadata files.
    pub show: bool,
    /// What a session remembers of the files that it used, for the next one.
    pub profiles: Option<Profiles>,
    /// What the cache holds, by its hashes.
    pub content: Option<ContentIndex>,
    /// What metadata files may have done.
    pub actions: Actions,
    /// Of larger metadata files the hashes are read in pieces, where they are used, in bytes;
    /// [`WHOLE_BYTES_MAX`] unless there is a reason.
    pub whole_bytes_max: u64,
}

/// What was read of a file with a zero map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOf {
    /// The file's path in the mount; its name alone where no more is known.
    pub path: Vec<u8>,
    /// Bytes that were read.
    pub guided_bytes: u64,
    /// Those of them that the zero map answered.
    pub zero_bytes: u64,
}

/// See the module's description.
pub struct MetaLayer {
    core: Arc<Core>,
}

pub(crate) struct Core {
    pub below: Arc<dyn Vfs>,
    /// The disk cache, which is `below` then.
    pub disk: Option<Arc<DiskCache>>,
    /// What stands at the other end of the wide-area network: for what needs no trace in the
    /// layers between.
    pub source: Arc<dyn Vfs>,
    pub runtime: Handle,
    pub show: bool,
    pub profiles: Option<Profiles>,
    pub content: Option<Arc<ContentIndex>>,
    pub actions: Arc<Actions>,
    pub whole_bytes_max: u64,
    pub counters: Arc<Counters>,
    subjects: DashMap<FileHandle, Arc<Subject>>,
    /// Where the files of `subjects` are, the other way round.
    by_place: DashMap<(FileHandle, Bytes), FileHandle>,
    places: Mutex<LruCache<FileHandle, (FileHandle, Bytes)>>,
}

impl MetaLayer {
    /// Puts the layer over `below`, which is `disk` if there is one. `source`: the file system at
    /// the far end.
    pub fn new(
        below: Arc<dyn Vfs>,
        disk: Option<Arc<DiskCache>>,
        source: Arc<dyn Vfs>,
        runtime: Handle,
        options: MetaOptions,
    ) -> Self {
        let core = Core {
            below,
            disk,
            source,
            runtime,
            show: options.show,
            profiles: options.profiles,
            content: options.content.map(Arc::new),
            actions: Arc::new(options.actions),
            whole_bytes_max: options.whole_bytes_max,
            counters: Arc::default(),
            subjects: DashMap::new(),
            by_place: DashMap::new(),
            places: Mutex::new(LruCache::new(PLACES_MAX)),
        };
        Self { core: Arc::new(core) }
    }

    /// Returns the counters.
    pub fn counters(&self) -> Arc<Counters> {
        self.core.counters.clone()
    }

    /// Returns what was read of files with a zero map; those most read come first, `max` at most.
    pub fn reads(&self, max: usize) -> Vec<ReadOf> {
        let subjects = self.core.subjects.iter();
        let mut read: Vec<_> = subjects
            .map(|subject| (subject.reads.guided_bytes.load(Ordering::Relaxed), subject.clone()))
            .filter(|(bytes, _)| *bytes > 0)
            .collect();
        read.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        read.truncate(max);
        let told = |(guided_bytes, subject): (u64, Arc<Subject>)| ReadOf {
            path: self.core.path_of(&subject.file),
            guided_bytes,
            zero_bytes: subject.reads.zero_bytes.load(Ordering::Relaxed),
        };
        read.into_iter().map(told).collect()
    }

    /// Ends the session's recording: what was touched is kept for the next session. Blocks while
    /// the disk works.
    pub fn end(&self) {
        self.core.save_profiles();
    }
}

impl Core {
    /// Notes where a file is, if it is one that may have metadata.
    fn seen(&self, dir: &FileHandle, name: &[u8], file: &FileHandle, attr: Option<&Attr>) -> bool {
        let worth =
            attr.is_some_and(|attr| attr.kind == FileKind::Regular && attr.size >= SIZE_MIN);
        if worth {
            let place = (*dir, Bytes::copy_from_slice(name));
            self.places.lock().put(*file, place);
        }
        worth
    }

    fn place_of(&self, file: &FileHandle) -> Option<(FileHandle, Bytes)> {
        let known = self.disk.as_ref().and_then(|disk| disk.place_of(file));
        known.or_else(|| self.places.lock().get(file).cloned())
    }

    /// Returns what is known of a file, if it was looked at.
    pub fn subject(&self, file: &FileHandle) -> Option<Arc<Subject>> {
        self.subjects.get(file).map(|subject| subject.clone())
    }

    /// Returns what is known of a file, from now on.
    fn subject_of(&self, file: &FileHandle, size: u64) -> Arc<Subject> {
        let count = self.subjects.len();
        if count >= SUBJECTS_MAX && count.is_multiple_of(1024) {
            self.subjects.retain(|_, subject| Arc::strong_count(subject) > 1 || subject.is_used());
            self.by_place.retain(|_, file| self.subjects.contains_key(file));
        }
        self.subjects
            .entry(*file)
            .or_insert_with(|| {
                let place = self.place_of(file);
                if let Some(place) = place.clone().filter(|_| size >= SIZE_MIN) {
                    self.by_place.insert(place, *file);
                }
                Arc::new(Subject::new(*file, place, size))
            })
            .clone()
    }

    /// The path of a file in the mount, or what is known instead.
    fn path_of(&self, file: &FileHandle) -> Vec<u8> {
        let known = self.disk.as_ref().and_then(|disk| disk.path_of(file));
        let known = known.or_else(|| self.place_of(file).map(|(_, name)| name.to_vec()));
        known.unwrap_or_else(|| format!("{file:?}").into_bytes())
    }

    /// The name of a file for messages.
    pub fn path_text(&self, file: &FileHandle) -> String {
        String::from_utf8_lossy(&self.path_of(file)).into()
    }
}

#[cfg(test)]
mod tests;
