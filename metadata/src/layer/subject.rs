//! A file that may have metadata: what is known of it, and how that is found out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use gridvfs_vfs::{Attr, Caller, Error, FileHandle, FileKind, Result, Time};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::{Core, Guide, SIZE_MIN, Told};
use crate::counters::{FileReads, add};
use crate::format::Metadata;
use crate::profile::Recorder;

/// What is known of a file.
#[derive(Clone)]
pub enum Known {
    /// It was not looked at yet.
    Unknown,
    /// There is nothing to know: it is read as it is.
    Nothing,
    /// This.
    Guide(Arc<Guide>),
}

/// See the module's description.
pub struct Subject {
    pub file: FileHandle,
    place: Mutex<Option<(FileHandle, Bytes)>>,
    known: RwLock<Known>,
    /// Writes so far: what was found out before one is of the file before it.
    writes: AtomicU64,
    /// One finds out, others wait.
    looking: tokio::sync::Mutex<()>,
    /// What was said of the file once is not said again.
    warned: AtomicBool,
    /// There is a metadata file, of whatever worth.
    has_metadata: AtomicBool,
    pub recorder: Recorder,
    /// What was read of it, whatever version it was.
    pub reads: Arc<FileReads>,
}

impl Subject {
    pub fn new(file: FileHandle, place: Option<(FileHandle, Bytes)>, size: u64) -> Self {
        Self {
            file,
            place: Mutex::new(place),
            known: RwLock::new(Known::Unknown),
            writes: AtomicU64::new(0),
            looking: tokio::sync::Mutex::new(()),
            warned: false.into(),
            has_metadata: false.into(),
            recorder: Recorder::new(size),
            reads: Arc::default(),
        }
    }

    pub fn known(&self) -> Known {
        self.known.read().clone()
    }

    /// The same without a copy, for the hit path.
    pub fn peek(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read()
    }

    /// Says whether a metadata file was found, of whatever worth.
    pub fn has_metadata(&self) -> bool {
        self.has_metadata.load(Ordering::Relaxed)
    }

    /// There is a metadata file, of whatever worth.
    pub fn found_metadata(&self) {
        self.has_metadata.store(true, Ordering::Relaxed);
    }

    /// Where the file is, as last seen.
    pub fn place(&self) -> Option<(FileHandle, Bytes)> {
        self.place.lock().clone()
    }

    /// It has another name now.
    pub fn moved(&self, dir: &FileHandle, name: &[u8]) {
        *self.place.lock() = Some((*dir, Bytes::copy_from_slice(name)));
    }

    /// The file is about to be changed: nothing is known of it any more.
    pub fn written(&self) {
        self.writes.fetch_add(1, Ordering::SeqCst);
        if !matches!(&*self.peek(), Known::Nothing) {
            self.give_up();
        }
    }

    /// The file is not what was known, for another reason: it is looked at anew.
    pub fn forget(&self, guide: &Arc<Guide>) {
        let mut known = self.known.write();
        if let Known::Guide(now) = &*known
            && Arc::ptr_eq(now, guide)
        {
            guide.stop();
            *known = Known::Unknown;
        }
    }

    /// Nothing of it is to be used any more in this session.
    pub fn give_up(&self) {
        let mut known = self.known.write();
        if let Known::Guide(guide) = &*known {
            guide.stop();
        }
        *known = Known::Nothing;
    }

    /// There is something that would be missed.
    pub fn is_used(&self) -> bool {
        matches!(self.known(), Known::Guide(_)) || !self.recorder.is_empty()
    }

    pub fn warn_once(&self, words: impl FnOnce() -> String) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            log::warn!("{}", words());
        }
    }
}

impl Core {
    /// Returns what is known of a file; finds it out if need be.
    pub async fn know(&self, caller: &Caller, file: &FileHandle) -> Result<(Arc<Subject>, Known)> {
        if let Some(subject) = self.subject(file) {
            match subject.known() {
                Known::Unknown => {}
                known => return Ok((subject, known)),
            }
        }
        let attr = self.below.getattr(caller, file).await?;
        let subject = self.subject_of(file, attr.size);
        let known = self.look(caller, &subject, &attr).await;
        Ok((subject, known))
    }

    async fn look(&self, caller: &Caller, subject: &Arc<Subject>, attr: &Attr) -> Known {
        let _one_at_a_time = subject.looking.lock().await;
        match subject.known() {
            Known::Unknown => {}
            known => return known,
        }
        let writes = subject.writes.load(Ordering::SeqCst);
        let found = match attr.kind == FileKind::Regular && attr.size >= SIZE_MIN {
            true => self.find(caller, subject).await,
            false => Ok(None),
        };
        let known = match found {
            Ok(Some(guide)) => Known::Guide(Arc::new(guide)),
            Ok(None) => Known::Nothing,
            // The next read asks again: nothing was learned.
            Err(Error::Unreachable(_) | Error::Interrupted) => return Known::Nothing,
            Err(error) => {
                log::debug!("{}: no metadata: {error}", self.path_text(&subject.file));
                Known::Nothing
            }
        };
        let mut now = subject.known.write();
        if subject.writes.load(Ordering::SeqCst) == writes {
            *now = known;
        }
        let known = now.clone();
        drop(now);
        if let Known::Guide(guide) = &known {
            guide.start(caller);
        }
        known
    }

    async fn find(&self, caller: &Caller, subject: &Arc<Subject>) -> Result<Option<Guide>> {
        let told = match self.read_told(caller, subject).await {
            Ok(told) => told,
            Err(error @ (Error::Unreachable(_) | Error::Interrupted)) => return Err(error),
            Err(_) => None,
        };
        // After the metadata was read: what is older than it is not newer than the attributes.
        let attr = self.below.getattr(caller, &subject.file).await?;
        let version = match &self.disk {
            // Unsent data is of no version that anybody could know of.
            Some(disk) => match disk.version_of_new(&subject.file) {
                Some(version) if version.size == attr.size => Some(version),
                _ => return Ok(None),
            },
            None => None,
        };
        let is_current = |metadata: &Metadata| {
            metadata.identity.size == attr.size && same_time(metadata.identity.mtime, attr.mtime)
        };
        let told = told.filter(|Told { metadata, .. }| {
            let current = is_current(metadata);
            if !current {
                add(&self.counters.refused, 1);
                subject.warn_once(|| {
                    let path = self.path_text(&subject.file);
                    format!("{path}: its metadata is of another version of it: not used")
                });
            }
            current
        });
        let profile = self.profiles.as_ref().and_then(|profiles| {
            let path = self.disk.as_ref()?.path_of(&subject.file)?;
            profiles.load(&path, attr.size)
        });
        if told.is_none() && profile.is_none() {
            return Ok(None);
        }
        if told.is_some() {
            add(&self.counters.loaded, 1);
        }
        Ok(Some(Guide::new(self, subject, &attr, version, told, profile)))
    }
}

/// Says whether two times are the same, as far as the server tells them: some have microseconds or
/// seconds only.
pub(crate) fn same_time(noted: Time, server: Time) -> bool {
    let (noted_ns, server_ns) = (noted.nanoseconds, server.nanoseconds);
    noted.seconds == server.seconds
        && (noted_ns == server_ns
            || server_ns == 0
            || (server_ns.is_multiple_of(1000) && noted_ns / 1000 == server_ns / 1000))
}
