//! The buffer layer: a [`Vfs`] over a far one, with read-ahead and write-behind in memory.
//!
//! It keeps what was fetched for a few seconds, and what was written until the server has
//! committed it. It never blocks the calling thread, and answers what it has on the first poll of a
//! call's future; everything that must outlive a call runs on the runtime it was given.
//!
//! Errors of the server about data that it was sent later than the program's write are *deferred*:
//! the next write, flush or commit of the file reports the first of them, once, and the data that
//! it was about is dropped (as Linux does). A server that does not answer loses nothing: the data
//! is kept and sent again, and the calls that wait for it fail only if the inner file system gives
//! up on it ([`gridvfs_vfs::Error::Unreachable`]).

mod driver;
mod fetch;
mod order;
mod read;
mod shared;
mod write;

use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use gridvfs_vfs::{
    Access, AccessGranted, Allocation, Caller, Committed, CreateHow, Created, DirPage, Entry,
    Error, Fetched, FileHandle, FsInfo, FsStat, Linked, Listener, NodeKind, PathConf, ReadData,
    Result, SeekWhence, SetAttr, Stability, Status, Time, Verifier, Vfs, Wcc, WccAttr, Written,
};
use tokio::runtime::Handle;

use crate::counters::Counters;
use crate::options::BufferOptions;
pub(crate) use shared::Asked;
use shared::Shared;
use write::Report;

/// What is held of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// The file.
    pub handle: FileHandle,
    /// Bytes that the server does not have yet.
    pub unsent_bytes: u64,
    /// Bytes that the server has, but has not committed.
    pub unstable_bytes: u64,
    /// Why data was lost, if nobody has been told yet.
    pub error: Option<Error>,
}

/// Read-ahead and write-behind in memory; see the crate's description.
pub struct BufferLayer {
    shared: Arc<Shared>,
}

impl BufferLayer {
    /// Puts a layer over `inner`, whose limits it asks for (FSINFO). Calls that outlive a request
    /// run on `runtime`.
    pub async fn new(inner: Arc<dyn Vfs>, runtime: Handle, options: BufferOptions) -> Result<Self> {
        let caller = Caller { uid: 0, gid: 0, groups: Vec::new() };
        let info = inner.fsinfo(&caller, &inner.root()).await?;
        // Differs from that of the process before, whose unstable data is gone.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let verifier = (now.as_nanos() as u64).to_be_bytes();
        Ok(Self { shared: Arc::new(Shared::new(inner, runtime, options, &info, verifier)) })
    }

    /// Returns the counters.
    pub fn counters(&self) -> Arc<Counters> {
        self.shared.counters.clone()
    }

    /// Returns how many written bytes are held, because they are not yet committed.
    pub fn dirty_bytes(&self) -> u64 {
        self.shared.held_bytes()
    }

    /// Returns how many WRITEs are on their way.
    pub fn writes_in_flight(&self) -> u64 {
        self.shared.in_flight()
    }

    /// Returns how much memory is charged now: for read units, and for held writes.
    pub fn memory_bytes(&self) -> (usize, usize) {
        (self.shared.reads.used(), self.shared.writes.used())
    }

    /// Returns the files of which written data is held, or an error is to be reported.
    pub fn files(&self) -> Vec<FileInfo> {
        let files: Vec<_> = self.shared.files.iter().map(|file| file.clone()).collect();
        let info = |file: Arc<crate::file::File>| {
            let state = file.state.lock();
            FileInfo {
                handle: file.handle,
                unsent_bytes: state.writing.extents.unsent_bytes(),
                unstable_bytes: state.writing.extents.unstable_bytes(),
                error: state.writing.error.clone(),
            }
        };
        let held =
            |info: &FileInfo| info.unsent_bytes + info.unstable_bytes > 0 || info.error.is_some();
        files.into_iter().map(info).filter(held).collect()
    }

    /// Returns what the server said last that a file's data is like, which its answers to WRITEs do.
    pub fn signature(&self, file: &FileHandle) -> Option<WccAttr> {
        self.shared.known(file)?.state.lock().reading.known
    }

    /// Reads what a program has not asked for, but may next.
    pub(crate) async fn read_around(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<ReadData> {
        self.shared.read(caller, file, (offset, count), false).await
    }

    /// Says whether a range has been fetched, or is being.
    pub(crate) fn is_asked_for(&self, file: &FileHandle, from: u64, to: u64) -> bool {
        let known = self.shared.known(file);
        known.is_some_and(|file| file.state.lock().reading.covers(from, to))
    }

    /// Sends what is held of a file; leaves an error for whoever wrote.
    async fn send_first(&self, file: &FileHandle) -> Result<()> {
        match self.shared.known(file) {
            Some(file) => self.shared.flush(&file, Report::Leave).await,
            None => Ok(()),
        }
    }

    /// Says whether data is held that was written and may not be durable on the server.
    fn holds_written(&self, file: &FileHandle) -> bool {
        let held = |file: Arc<crate::file::File>| {
            let writing = &file.state.lock().writing;
            writing.extents.unsent_bytes() + writing.extents.unstable_bytes() > 0
        };
        self.shared.known(file).is_some_and(held)
    }

    /// Finds out whether the server has lost data, and gives it back if so.
    async fn make_certain(&self, file: &FileHandle) {
        if let Some(file) = self.shared.known(file) {
            let _ = self.shared.commit(&file, Report::Leave).await;
        }
    }

    fn settle_created(&self, created: &mut Created, asked: Asked) {
        if let (Some(handle), Some(attr)) = (&created.handle, &mut created.attr) {
            self.shared.settle(handle, attr, asked);
        }
    }
}

#[async_trait]
impl Vfs for BufferLayer {
    fn listen(&self, listener: Weak<dyn Listener>) {
        self.shared.inner.listen(listener);
    }

    fn root(&self) -> FileHandle {
        self.shared.inner.root()
    }

    async fn getattr(&self, caller: &Caller, file: &FileHandle) -> Result<gridvfs_vfs::Attr> {
        // Only the server knows the times that its WRITEs leave. An error of theirs is not this
        // caller's, and a server that does not answer will not answer this either.
        let _ = self.send_first(file).await;
        let asked = self.shared.ask();
        let mut attr = self.shared.inner.getattr(caller, file).await?;
        if self.shared.settle(file, &mut attr, asked) {
            self.make_certain(file).await;
            let asked = self.shared.ask();
            attr = self.shared.inner.getattr(caller, file).await?;
            self.shared.settle(file, &mut attr, asked);
        }
        Ok(attr)
    }

    async fn setattr(
        &self,
        caller: &Caller,
        file: &FileHandle,
        changes: &SetAttr,
        guard: Option<Time>,
    ) -> Result<Wcc> {
        self.shared.setattr(caller, file, changes, guard).await
    }

    async fn lookup(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Entry> {
        let asked = self.shared.ask();
        let mut entry = self.shared.inner.lookup(caller, dir, name).await?;
        let Some(attr) = &mut entry.attr else { return Ok(entry) };
        if self.shared.settle(&entry.handle, attr, asked) {
            *attr = self.getattr(caller, &entry.handle).await?;
        }
        Ok(entry)
    }

    async fn access(
        &self,
        caller: &Caller,
        file: &FileHandle,
        wanted: Access,
    ) -> Result<AccessGranted> {
        let asked = self.shared.ask();
        let mut granted = self.shared.inner.access(caller, file, wanted).await?;
        let Some(attr) = &mut granted.attr else { return Ok(granted) };
        if self.shared.settle(file, attr, asked) {
            *attr = self.getattr(caller, file).await?;
        }
        Ok(granted)
    }

    async fn readlink(&self, caller: &Caller, file: &FileHandle) -> Result<Bytes> {
        self.shared.inner.readlink(caller, file).await
    }

    async fn read(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<ReadData> {
        self.shared.read(caller, file, (offset, count), true).await
    }

    async fn write(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        data: Bytes,
        stable: Stability,
    ) -> Result<Written> {
        let count = self.shared.write(caller, file, offset, data).await? as u32;
        if stable != Stability::Unstable {
            let file = self.shared.file(file);
            self.shared.commit(&file, Report::Take).await?;
        }
        let verifier = self.shared.verifier;
        let committed = match stable {
            Stability::Unstable => Stability::Unstable,
            _ => Stability::FileSync,
        };
        Ok(Written { count, committed, verifier, wcc: Wcc::default() })
    }

    async fn create(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        how: &CreateHow,
    ) -> Result<Created> {
        let asked = self.shared.ask();
        let mut created = self.shared.inner.create(caller, dir, name, how).await?;
        if let (CreateHow::Unchecked(SetAttr { size: Some(size), .. }), Some(handle)) =
            (how, &created.handle)
            && let Some(file) = self.shared.known(handle)
        {
            // The file may have been there, and have been cut.
            let dropped = self.shared.with(&file, |state| {
                let clock = self.shared.tick();
                state.resized(Some(*size), clock)
            });
            self.shared.dispose(dropped);
        }
        self.settle_created(&mut created, asked);
        Ok(created)
    }

    async fn mkdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        self.shared.inner.mkdir(caller, dir, name, attr).await
    }

    async fn symlink(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        target: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        self.shared.inner.symlink(caller, dir, name, target, attr).await
    }

    async fn mknod(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        kind: NodeKind,
        attr: &SetAttr,
    ) -> Result<Created> {
        self.shared.inner.mknod(caller, dir, name, kind, attr).await
    }

    async fn remove(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        self.shared.inner.remove(caller, dir, name).await
    }

    async fn rmdir(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        self.shared.inner.rmdir(caller, dir, name).await
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
        let inner = &self.shared.inner;
        inner.rename(caller, from_dir, from_name, to_dir, to_name, no_replace).await
    }

    async fn link(
        &self,
        caller: &Caller,
        file: &FileHandle,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Linked> {
        let asked = self.shared.ask();
        let mut linked = self.shared.inner.link(caller, file, dir, name).await?;
        if let Some(attr) = &mut linked.attr {
            self.shared.settle(file, attr, asked);
        }
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
        let asked = self.shared.ask();
        let inner = &self.shared.inner;
        let mut page = inner.readdir(caller, dir, cookie, verifier, size_bytes, plus).await?;
        for entry in &mut page.entries {
            if let (Some(handle), Some(attr)) = (&entry.handle, &mut entry.attr) {
                self.shared.settle(handle, attr, asked);
            }
        }
        Ok(page)
    }

    async fn fsstat(&self, caller: &Caller, file: &FileHandle) -> Result<FsStat> {
        self.shared.inner.fsstat(caller, file).await
    }

    async fn fsinfo(&self, caller: &Caller, file: &FileHandle) -> Result<FsInfo> {
        self.shared.inner.fsinfo(caller, file).await
    }

    async fn pathconf(&self, caller: &Caller, file: &FileHandle) -> Result<PathConf> {
        self.shared.inner.pathconf(caller, file).await
    }

    /// Commits the whole file: the server would not do less either.
    async fn commit(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<Committed> {
        let Some(known) = self.shared.known(file) else {
            // Nothing of ours: data of an earlier process may still be unstable on the server.
            let committed = self.shared.inner.commit(caller, file, offset, count).await?;
            return Ok(Committed { verifier: self.shared.verifier, ..committed });
        };
        self.shared.commit(&known, Report::Take).await?;
        Ok(Committed { verifier: self.shared.verifier, wcc: Wcc::default() })
    }

    async fn seek(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        whence: SeekWhence,
    ) -> Result<u64> {
        self.send_first(file).await?;
        self.shared.inner.seek(caller, file, offset, whence).await
    }

    /// Nothing of it is kept here: who asks for so much has a place of his own for it. While
    /// written data of the file is held the server's is not all there is: [`Status::JUKEBOX`].
    async fn fetch(
        &self,
        caller: &Caller,
        file: &FileHandle,
        ranges: &[(u64, u32)],
        level: i32,
    ) -> Result<Fetched> {
        if self.holds_written(file) {
            return Err(Status::JUKEBOX.into());
        }
        let asked = self.shared.ask();
        let mut fetched = self.shared.inner.fetch(caller, file, ranges, level).await?;
        if self.shared.settle(file, &mut fetched.attr, asked) || self.holds_written(file) {
            return Err(Status::JUKEBOX.into());
        }
        Ok(fetched)
    }

    async fn allocate(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        length: u64,
        how: Allocation,
    ) -> Result<Wcc> {
        self.shared.allocate(caller, file, offset, length, how).await
    }

    async fn flush(&self, caller: &Caller, file: &FileHandle) -> Result<()> {
        if let Some(known) = self.shared.known(file) {
            self.shared.flush(&known, Report::Take).await?;
        }
        self.shared.inner.flush(caller, file).await
    }

    fn forget(&self, file: &FileHandle) {
        if let Some(known) = self.shared.known(file) {
            let dropped = self.shared.with(&known, |state| {
                state.forgotten = true;
                state.reading.streams = Default::default();
                state.drop_units()
            });
            self.shared.dispose(dropped);
            drop(known);
            self.shared.prune(file);
        }
        self.shared.inner.forget(file);
    }

    fn invalidate(&self, file: &FileHandle) {
        if let Some(known) = self.shared.known(file) {
            let dropped = self.shared.with(&known, |state| state.drop_units());
            self.shared.dispose(dropped);
        }
        self.shared.inner.invalidate(file);
    }

    fn discard(&self, file: &FileHandle) {
        if let Some(known) = self.shared.known(file) {
            let dropped = self.shared.with(&known, |state| {
                state.writing.error = None;
                let clock = self.shared.tick();
                state.resized(Some(0), clock)
            });
            self.shared.dispose(dropped);
            known.wake.notify_one();
            known.progress.notify_waiters();
        }
        self.shared.inner.discard(file);
    }

    async fn shutdown(&self) -> Result<()> {
        let written = self.shared.write_back().await;
        written.and(self.shared.inner.shutdown().await)
    }
}
