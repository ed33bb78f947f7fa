//! What was touched: kept for the next session, and written into metadata files when asked.

use std::sync::Arc;

use bytes::Bytes;
use gridvfs_vfs::{Caller, CreateHow, Error, FileHandle, Result, SetAttr, Stability, Status};

use super::subject::{Known, Subject};
use super::{Core, MetaLayer};
use crate::format::{
    Identity, METADATA_BYTES_MAX, Metadata, WorkingSet, block_bytes_for, metadata_name,
};

/// A file whose working set was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profiled {
    /// The file's path in the mount.
    pub path: Vec<u8>,
    /// The file's size, in bytes.
    pub size: u64,
    /// What was touched of it.
    pub set: WorkingSet,
    /// Why it is not in the file's metadata now.
    pub error: Option<String>,
}

impl MetaLayer {
    /// Begins a recording: what was touched before does not belong to it.
    pub fn start_profile(&self) {
        for subject in self.core.subjects.iter() {
            subject.recorder.clear();
        }
    }

    /// Ends a recording: what was touched since its start is merged into the working sets of the
    /// files' metadata, on the state server. Files without metadata get some. Where that cannot be,
    /// what was touched is still there for the next session on this machine.
    pub async fn stop_profile(&self, caller: &Caller) -> Vec<Profiled> {
        let mut all = Vec::new();
        for (subject, path, set) in self.core.touched() {
            let written = self.core.write_working_set(caller, &subject, &set).await;
            if written.is_ok() {
                subject.recorder.clear();
            }
            let error = written.err().map(|error| error.to_string());
            all.push(Profiled { path, size: subject.recorder.size(), set, error });
        }
        all
    }

    /// Returns what was touched of each file since the last start.
    pub fn profile(&self) -> Vec<Profiled> {
        let profiled = |(subject, path, set): (Arc<Subject>, Vec<u8>, WorkingSet)| Profiled {
            path,
            size: subject.recorder.size(),
            set,
            error: None,
        };
        self.core.touched().into_iter().map(profiled).collect()
    }
}

impl Core {
    fn touched(&self) -> Vec<(Arc<Subject>, Vec<u8>, WorkingSet)> {
        let subjects: Vec<_> = self.subjects.iter().map(|subject| subject.clone()).collect();
        let mut touched: Vec<_> = subjects
            .into_iter()
            .filter(|subject| !subject.recorder.is_empty())
            .filter_map(|subject| {
                let path = self.disk.as_ref()?.path_of(&subject.file)?;
                let set = subject.recorder.working_set();
                Some((subject, path, set))
            })
            .collect();
        touched.sort_by(|a, b| a.1.cmp(&b.1));
        touched
    }

    /// Keeps what was touched for the next session on this machine.
    pub fn save_profiles(&self) {
        let Some(profiles) = &self.profiles else { return };
        for (subject, path, set) in self.touched() {
            if let Err(error) = profiles.save(&path, subject.recorder.size(), &set) {
                log::warn!("what was touched is not remembered: {error}");
                return;
            }
        }
    }

    /// Merges a working set into a file's metadata on the state server.
    async fn write_working_set(
        &self,
        caller: &Caller,
        subject: &Subject,
        set: &WorkingSet,
    ) -> Result<()> {
        let Some((dir, name)) = subject.place() else { return Err(Status::NOENT.into()) };
        let Some(to) = metadata_name(&name) else { return Err(Status::NAMETOOLONG.into()) };
        let attr = self.below.getattr(caller, &subject.file).await?;
        if self.disk.as_ref().is_some_and(|disk| disk.version_of_new(&subject.file).is_none()) {
            // What is unsent gives the file another time when it is sent.
            return Err(Status::JUKEBOX.into());
        }
        let identity = Identity { size: attr.size, mtime: attr.mtime };
        let known = self.read_metadata(caller, subject).await?;
        let known = known.filter(|known| {
            known.identity.size == attr.size
                && super::subject::same_time(known.identity.mtime, attr.mtime)
        });
        let mut metadata = known.unwrap_or(Metadata {
            identity,
            block_bytes: block_bytes_for(attr.size),
            zero: None,
            hashes: None,
            actions: Vec::new(),
            working_set: None,
        });
        match &mut metadata.working_set {
            Some(known) => known.merge(set),
            none => *none = Some(set.clone()),
        }
        let bytes = metadata.encode();
        if bytes.len() as u64 > METADATA_BYTES_MAX {
            return Err(Status::FBIG.into());
        }
        self.replace(caller, &dir, &to, bytes.into()).await?;
        if let Known::Guide(guide) = subject.known()
            && guide.reads_on()
        {
            // The file that it would read on is not there any more.
            subject.forget(&guide);
        }
        Ok(())
    }

    /// Puts a file in the place of another, whole or not at all.
    async fn replace(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        data: Bytes,
    ) -> Result<()> {
        let mut draft = name.to_vec();
        // Still a metadata file's name: it is not shown.
        draft.splice(0..1, *b".~");
        let attr = SetAttr { mode: Some(0o644), size: Some(0), ..SetAttr::default() };
        let created = self.below.create(caller, dir, &draft, &CreateHow::Unchecked(attr)).await?;
        let file = match created.handle {
            Some(file) => file,
            None => self.below.lookup(caller, dir, &draft).await?.handle,
        };
        let mut at = 0;
        while at < data.len() {
            let part = data.slice(at..data.len().min(at + (1 << 20)));
            let written =
                self.below.write(caller, &file, at as u64, part, Stability::Unstable).await?;
            if written.count == 0 {
                return Err(Error::Protocol("nothing was written".into()));
            }
            at += written.count as usize;
        }
        self.below.commit(caller, &file, 0, 0).await?;
        self.below.flush(caller, &file).await?;
        self.below.rename(caller, dir, &draft, dir, name, false).await.map(drop)
    }
}
