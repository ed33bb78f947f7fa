//! Names: metadata files are not listed, and follow their file.

use bytes::Bytes;
use gridvfs_vfs::{Caller, DirPage, Error, FileHandle, Result, Status, Verifier, Wcc};

use super::Core;
use crate::format::{is_metadata_name, metadata_name};

/// Pages of a listing that are read to find a name that is to be shown.
const PAGES_MAX: u32 = 1024;
/// So many metadata files of files that are gone are removed with their directory.
const LEFT_MAX: usize = 1024;

impl Core {
    pub async fn readdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        cookie: u64,
        verifier: Verifier,
        size_bytes: u32,
        plus: bool,
    ) -> Result<DirPage> {
        let (mut cookie, mut verifier) = (cookie, verifier);
        for _ in 0..PAGES_MAX {
            let mut page =
                self.below.readdir(caller, dir, cookie, verifier, size_bytes, plus).await?;
            let last = page.entries.last().map(|entry| entry.cookie);
            if !self.show {
                page.entries.retain(|entry| !is_metadata_name(&entry.name));
            }
            for entry in &page.entries {
                if let Some(handle) = &entry.handle {
                    self.seen(dir, &entry.name, handle, entry.attr.as_ref());
                }
            }
            match last {
                // A page of nothing but what is not shown says nothing: on to the next.
                Some(last) if page.entries.is_empty() && !page.eof => {
                    (cookie, verifier) = (last, page.verifier);
                }
                _ => return Ok(page),
            }
        }
        Err(Status::JUKEBOX.into())
    }

    pub async fn remove(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        let has_metadata = self.has_metadata_at(dir, name);
        let wcc = self.below.remove(caller, dir, name).await?;
        if has_metadata && let Some(metadata) = metadata_name(name) {
            // If it stays, it is the metadata of nothing, and is ignored.
            let _ = self.below.remove(caller, dir, &metadata).await;
        }
        self.by_place.remove(&(*dir, Bytes::copy_from_slice(name)));
        Ok(wcc)
    }

    pub async fn rename(
        &self,
        caller: &Caller,
        (from_dir, from): (&FileHandle, &[u8]),
        (to_dir, to): (&FileHandle, &[u8]),
        no_replace: bool,
    ) -> Result<(Wcc, Wcc)> {
        let moves = self.has_metadata_at(from_dir, from);
        let replaces = self.has_metadata_at(to_dir, to);
        let answer = self.below.rename(caller, from_dir, from, to_dir, to, no_replace).await?;
        self.moved((from_dir, from), (to_dir, to));
        let names = metadata_name(from).zip(metadata_name(to));
        if let Some((from, to)) = names.filter(|_| moves || replaces) {
            let moved = match moves {
                true => {
                    self.below.rename(caller, from_dir, &from, to_dir, &to, false).await.is_ok()
                }
                false => false,
            };
            if !moved && replaces {
                let _ = self.below.remove(caller, to_dir, &to).await;
            }
        }
        Ok(answer)
    }

    /// A directory that shows nothing is empty, whatever metadata files are left in it.
    pub async fn rmdir(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        match self.below.rmdir(caller, dir, name).await {
            Err(Error::Status(Status::NOTEMPTY | Status::EXIST)) if !self.show => {}
            result => return result,
        }
        let inner = self.below.lookup(caller, dir, name).await?.handle;
        for name in self.left_over(caller, &inner).await? {
            self.below.remove(caller, &inner, &name).await?;
        }
        self.below.rmdir(caller, dir, name).await
    }

    /// The metadata files in a directory that has nothing else.
    async fn left_over(&self, caller: &Caller, dir: &FileHandle) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        let (mut cookie, mut verifier) = (0, Verifier::default());
        loop {
            let page = self.below.readdir(caller, dir, cookie, verifier, 64 << 10, false).await?;
            for entry in &page.entries {
                cookie = entry.cookie;
                if gridvfs_vfs::is_dots(&entry.name) {
                    continue;
                }
                if !is_metadata_name(&entry.name) || names.len() == LEFT_MAX {
                    return Err(Status::NOTEMPTY.into());
                }
                names.push(entry.name.to_vec());
            }
            if page.eof || page.entries.is_empty() {
                return Ok(names);
            }
            verifier = page.verifier;
        }
    }

    /// Says whether the file of that name is known to have metadata.
    fn has_metadata_at(&self, dir: &FileHandle, name: &[u8]) -> bool {
        let place = (*dir, Bytes::copy_from_slice(name));
        let Some(file) = self.by_place.get(&place).map(|file| *file) else { return false };
        self.subject(&file).is_some_and(|subject| subject.has_metadata())
    }

    /// A file has another name now.
    fn moved(&self, from: (&FileHandle, &[u8]), to: (&FileHandle, &[u8])) {
        let place = |(dir, name): (&FileHandle, &[u8])| (*dir, Bytes::copy_from_slice(name));
        self.by_place.remove(&place(to));
        if let Some((_, file)) = self.by_place.remove(&place(from)) {
            if let Some(subject) = self.subject(&file) {
                subject.moved(to.0, to.1);
            }
            self.by_place.insert(place(to), file);
        }
    }
}
