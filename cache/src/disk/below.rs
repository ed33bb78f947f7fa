//! What the disk cache takes for the server: the server, and over it the changes of names that it
//! does not know yet (docs/decisions/0013).
//!
//! Handles of ours become the server's here, and nowhere else; what the server says of a file is
//! told under the handle by which it is known above. A call that needs the server's own word waits
//! for the changes that it depends on, which are made at once then.

mod settle;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use gridvfs_vfs::{
    Access, AccessGranted, Allocation, Attr, Caller, Committed, CreateHow, Created, DirEntry,
    DirPage, Entry, Error, Fetched, FileHandle, FsInfo, FsStat, Linked, Listener, NodeKind,
    PathConf, ReadData, Result, SeekWhence, SetAttr, Stability, Status, Time, Verifier, Vfs, Wcc,
    Written, is_dots,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Core;
use super::pending::{Queue, is_ours};
use crate::index::OUR_COOKIES;
use crate::journal::At;

/// The layer below a [`super::DiskCache`] and its buffer layer; see the module's description. Without
/// a cache over it, it only passes calls on.
pub struct NameLayer {
    /// The server.
    pub(super) client: Arc<dyn Vfs>,
    pub(super) queue: Mutex<Queue>,
    /// For the task that sends: there may be something to do.
    pub(super) wake: Notify,
    /// For those who wait: something was done.
    pub(super) progress: Notify,
    core: OnceLock<Weak<Core>>,
    /// The last record about names in the journal.
    pub(super) last_record: AtomicU64,
    made: settle::Made,
    /// Whether the server keeps times so exactly that a new file can be told by them.
    pub(super) exact: AtomicBool,
}

impl NameLayer {
    /// Makes one over the server.
    pub fn new(client: Arc<dyn Vfs>) -> Self {
        Self {
            client,
            queue: Mutex::default(),
            wake: Notify::new(),
            progress: Notify::new(),
            core: OnceLock::new(),
            last_record: AtomicU64::new(0),
            made: settle::Made::default(),
            exact: AtomicBool::new(false),
        }
    }

    /// Begins to defer names for a cache, with what an earlier process has left.
    pub(super) fn begin(&self, core: Weak<Core>, queue: Queue, exact: bool) {
        *self.queue.lock() = queue;
        self.exact.store(exact, Ordering::Release);
        // Whoever calls has just made the cache.
        let _ = self.core.set(core);
    }

    pub(super) fn core(&self) -> Option<Arc<Core>> {
        self.core.get().and_then(Weak::upgrade)
    }

    /// Says whether anything is pending.
    pub(super) fn is_quiet(&self) -> bool {
        self.queue.lock().is_empty()
    }

    /// The server's handle of a file of which nothing needs to be waited for.
    fn server(&self, file: &FileHandle) -> Result<FileHandle> {
        self.queue.lock().server(file).ok_or(Error::Status(Status::STALE))
    }

    /// Tells attributes of the server's as they are seen above.
    fn show(&self, file: &FileHandle, attr: &mut Option<Attr>) {
        if let Some(attr) = attr {
            self.queue.lock().show(file, attr);
        }
    }

    fn show_wcc(&self, file: &FileHandle, mut wcc: Wcc) -> Wcc {
        self.show(file, &mut wcc.after);
        wcc
    }

    fn show_created(&self, mut created: Created) -> Created {
        if let Some(handle) = &mut created.handle {
            *handle = self.queue.lock().ours(handle);
            let handle = *handle;
            self.show(&handle, &mut created.attr);
        }
        created
    }

    fn at(dir: &FileHandle, name: &[u8]) -> At {
        At { dir: *dir, name: name.into() }
    }

    /// The names of a directory of which only the cache knows, in the order of their cookies.
    fn own_entries(&self, dir: &FileHandle) -> Vec<(Box<[u8]>, Option<FileHandle>)> {
        self.queue.lock().children(dir)
    }

    /// Corrects the server's listing by what is pending.
    async fn correct(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        cookie: u64,
        page: &mut DirPage,
    ) -> Result<()> {
        for entry in page.entries.iter_mut().filter(|entry| !is_dots(&entry.name)) {
            let Some(handle) = &mut entry.handle else { continue };
            let queue = self.queue.lock();
            *handle = queue.ours(handle);
            if is_ours(handle) {
                entry.fileid = super::pending::fileid_of(handle);
            }
            if let Some(attr) = &mut entry.attr {
                queue.show(handle, attr);
            }
        }
        let own = self.own_entries(dir);
        if own.is_empty() {
            return Ok(());
        }
        page.entries.retain(|entry| own.iter().all(|(name, _)| **name != *entry.name));
        if page.eof {
            page.entries.extend(self.listed_here(caller, &own, cookie).await?);
        }
        Ok(())
    }

    /// Entries of names that the server has not been told of, behind a cookie.
    async fn listed_here(
        &self,
        caller: &Caller,
        own: &[(Box<[u8]>, Option<FileHandle>)],
        cookie: u64,
    ) -> Result<Vec<DirEntry>> {
        let passed = if is_own_cookie(cookie) { cookie & u64::from(u32::MAX) } else { 0 };
        let mut entries = Vec::new();
        for (number, (name, child)) in own.iter().enumerate() {
            let number = number as u64 + 1;
            let Some(handle) = child.filter(|_| number > passed) else { continue };
            let attr = self.getattr(caller, &handle).await?;
            entries.push(DirEntry {
                fileid: attr.fileid,
                name: Bytes::copy_from_slice(name),
                cookie: OUR_COOKIES | number,
                attr: Some(attr),
                handle: Some(handle),
            });
        }
        Ok(entries)
    }
}

/// Says whether a listing goes on behind a name that only this machine knows.
fn is_own_cookie(cookie: u64) -> bool {
    cookie >> 32 == OUR_COOKIES >> 32
}

#[async_trait]
impl Vfs for NameLayer {
    fn listen(&self, listener: Weak<dyn Listener>) {
        self.client.listen(listener);
    }

    fn root(&self) -> FileHandle {
        self.client.root()
    }

    async fn getattr(&self, caller: &Caller, file: &FileHandle) -> Result<Attr> {
        let server = {
            let queue = self.queue.lock();
            if queue.is_gone(file) {
                return Err(Status::STALE.into());
            }
            if let Some(attr) = queue.created(file) {
                return Ok(attr);
            }
            queue.server(file).ok_or(Error::Status(Status::STALE))?
        };
        let mut attr = self.client.getattr(caller, &server).await?;
        self.queue.lock().show(file, &mut attr);
        Ok(attr)
    }

    async fn setattr(
        &self,
        caller: &Caller,
        file: &FileHandle,
        changes: &SetAttr,
        guard: Option<Time>,
    ) -> Result<Wcc> {
        if let Some(core) = self.core()
            && guard.is_none()
            && let Some(wcc) = core.defer_set(caller, file, changes)?
        {
            return Ok(wcc);
        }
        // A directory's times are set after what is done in it.
        self.settle_dir(file).await?;
        let server = self.settle_before_change(file).await?;
        let wcc = self.client.setattr(caller, &server, changes, guard).await?;
        Ok(self.show_wcc(file, wcc))
    }

    async fn lookup(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Entry> {
        let child = self.queue.lock().child(&Self::at(dir, name));
        match child {
            Some(None) => Err(Status::NOENT.into()),
            Some(Some(handle)) => {
                let attr = self.getattr(caller, &handle).await?;
                Ok(Entry { handle, attr: Some(attr), dir_attr: None })
            }
            None => {
                let mut entry = self.client.lookup(caller, dir, name).await?;
                entry.handle = self.queue.lock().ours(&entry.handle);
                self.show(&entry.handle, &mut entry.attr);
                Ok(entry)
            }
        }
    }

    async fn access(
        &self,
        caller: &Caller,
        file: &FileHandle,
        wanted: Access,
    ) -> Result<AccessGranted> {
        let server = self.settle_file(file).await?;
        let mut granted = self.client.access(caller, &server, wanted).await?;
        self.show(file, &mut granted.attr);
        Ok(granted)
    }

    async fn readlink(&self, caller: &Caller, file: &FileHandle) -> Result<Bytes> {
        self.client.readlink(caller, &self.server(file)?).await
    }

    async fn read(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<ReadData> {
        let server = self.settle_file(file).await?;
        let mut read = self.client.read(caller, &server, offset, count).await?;
        self.show(file, &mut read.attr);
        Ok(read)
    }

    async fn write(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        data: Bytes,
        stable: Stability,
    ) -> Result<Written> {
        if self.queue.lock().is_gone(file) {
            return Err(Status::STALE.into());
        }
        let server = self.settle_before_change(file).await?;
        let mut written = self.client.write(caller, &server, offset, data, stable).await?;
        written.wcc = self.show_wcc(file, written.wcc);
        Ok(written)
    }

    async fn create(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        how: &CreateHow,
    ) -> Result<Created> {
        let at = Self::at(dir, name);
        if let Some(core) = self.core()
            && let Some(created) = core.defer_create(caller, &at, how).await?
        {
            return Ok(created);
        }
        self.settle_children(&[at]).await?;
        Ok(self.show_created(self.client.create(caller, dir, name, how).await?))
    }

    async fn mkdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        self.settle_names(&[Self::at(dir, name)]).await?;
        self.client.mkdir(caller, dir, name, attr).await
    }

    async fn symlink(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        target: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        self.settle_names(&[Self::at(dir, name)]).await?;
        self.client.symlink(caller, dir, name, target, attr).await
    }

    async fn mknod(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        kind: NodeKind,
        attr: &SetAttr,
    ) -> Result<Created> {
        self.settle_names(&[Self::at(dir, name)]).await?;
        self.client.mknod(caller, dir, name, kind, attr).await
    }

    async fn remove(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        let at = Self::at(dir, name);
        if let Some(core) = self.core()
            && let Some(wcc) = core.defer_remove(caller, &at).await?
        {
            return Ok(wcc);
        }
        self.settle_children(&[at]).await?;
        self.client.remove(caller, dir, name).await
    }

    async fn rmdir(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        let at = Self::at(dir, name);
        if !self.is_quiet() {
            match self.core().and_then(|core| core.known_child(&at)) {
                Some(child) => self.settle_dir(&child).await?,
                None => self.settle_all().await?,
            }
        }
        self.settle_names(&[at]).await?;
        self.client.rmdir(caller, dir, name).await
    }

    async fn rename(
        &self,
        caller: &Caller,
        from_dir: &FileHandle,
        from_name: &[u8],
        to_dir: &FileHandle,
        to_name: &[u8],
        no_replace: bool,
    ) -> Result<(Wcc, Wcc)> {
        let (from, to) = (Self::at(from_dir, from_name), Self::at(to_dir, to_name));
        if let Some(core) = self.core() {
            if let Some(wccs) = core.defer_rename(caller, &from, &to, no_replace).await? {
                return Ok(wccs);
            }
            if !self.is_quiet()
                && let Some(child) = core.known_child(&to)
            {
                // Should it be a directory, it has to be as empty there as it is here.
                self.settle_dir(&child).await?;
            }
        }
        self.settle_children(&[from, to]).await?;
        self.client.rename(caller, from_dir, from_name, to_dir, to_name, no_replace).await
    }

    async fn link(
        &self,
        caller: &Caller,
        file: &FileHandle,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Linked> {
        self.settle_names(&[Self::at(dir, name)]).await?;
        let server = self.settle_before_change(file).await?;
        let mut linked = self.client.link(caller, &server, dir, name).await?;
        self.show(file, &mut linked.attr);
        Ok(linked)
    }

    async fn readdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        cookie: u64,
        verifier: Verifier,
        size_bytes: u32,
        plus: bool,
    ) -> Result<DirPage> {
        if self.queue.lock().is_idle() {
            return self.client.readdir(caller, dir, cookie, verifier, size_bytes, plus).await;
        }
        if is_own_cookie(cookie) {
            let own = self.own_entries(dir);
            let entries = self.listed_here(caller, &own, cookie).await?;
            return Ok(DirPage { entries, eof: true, verifier, dir_attr: None });
        }
        if cookie == 0 && self.core().is_some_and(|core| !core.is_held()) {
            // What cannot be made now is put over the listing.
            let _ = self.settle_dir(dir).await;
        }
        // Only an entry's handle tells whose number it is.
        let page = self.client.readdir(caller, dir, cookie, verifier, size_bytes, true).await;
        let mut page = page?;
        self.correct(caller, dir, cookie, &mut page).await?;
        if !plus {
            page.entries.iter_mut().for_each(|entry| (entry.attr, entry.handle) = (None, None));
        }
        Ok(page)
    }

    async fn fsstat(&self, caller: &Caller, file: &FileHandle) -> Result<FsStat> {
        let server = self.server(file).unwrap_or(self.root());
        self.client.fsstat(caller, &server).await
    }

    async fn fsinfo(&self, caller: &Caller, file: &FileHandle) -> Result<FsInfo> {
        let server = self.server(file).unwrap_or(self.root());
        self.client.fsinfo(caller, &server).await
    }

    async fn pathconf(&self, caller: &Caller, file: &FileHandle) -> Result<PathConf> {
        let server = self.server(file).unwrap_or(self.root());
        self.client.pathconf(caller, &server).await
    }

    async fn commit(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<Committed> {
        let server = self.settle_file(file).await?;
        let mut committed = self.client.commit(caller, &server, offset, count).await?;
        committed.wcc = self.show_wcc(file, committed.wcc);
        Ok(committed)
    }

    async fn fetch(
        &self,
        caller: &Caller,
        file: &FileHandle,
        ranges: &[(u64, u32)],
        level: i32,
    ) -> Result<Fetched> {
        let server = self.settle_file(file).await?;
        let mut fetched = self.client.fetch(caller, &server, ranges, level).await?;
        self.queue.lock().show(file, &mut fetched.attr);
        Ok(fetched)
    }

    async fn seek(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        whence: SeekWhence,
    ) -> Result<u64> {
        let server = self.settle_file(file).await?;
        self.client.seek(caller, &server, offset, whence).await
    }

    async fn allocate(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        length: u64,
        how: Allocation,
    ) -> Result<Wcc> {
        let server = self.settle_before_change(file).await?;
        let wcc = self.client.allocate(caller, &server, offset, length, how).await?;
        Ok(self.show_wcc(file, wcc))
    }

    async fn flush(&self, caller: &Caller, file: &FileHandle) -> Result<()> {
        match self.server(file) {
            Ok(server) => self.client.flush(caller, &server).await,
            Err(_) => Ok(()),
        }
    }

    fn forget(&self, file: &FileHandle) {
        if let Ok(server) = self.server(file) {
            self.client.forget(&server);
        }
    }

    fn invalidate(&self, file: &FileHandle) {
        if let Ok(server) = self.server(file) {
            self.client.invalidate(&server);
        }
    }

    fn discard(&self, file: &FileHandle) {
        if let Ok(server) = self.server(file) {
            self.client.discard(&server);
        }
    }

    async fn shutdown(&self) -> Result<()> {
        self.client.shutdown().await
    }
}
