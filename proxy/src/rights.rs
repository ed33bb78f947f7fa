//! Rights of callers on files that are answered from a cache.
//!
//! A cache gives what it holds to whoever asks: it was made for one user. Where several users share
//! it, and are not squashed to one, this layer asks first whether the caller may, as NFS clients do
//! (ACCESS), and remembers the answer for a while. What changes names is left to the server, which
//! is asked in any case.

use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use gridvfs_vfs::{
    Access, AccessGranted, Allocation, Attr, Caller, Committed, CreateHow, Created, DirPage, Entry,
    Error, Fetched, FileHandle, FsInfo, FsStat, Linked, Listener, NodeKind, PathConf, ReadData,
    Result, SeekWhence, SetAttr, SetTime, Stability, Status, Time, Verifier, Vfs, Wcc, Written,
};
use lru::LruCache;
use parking_lot::Mutex;

/// For how long an answer is remembered: as long as NFS clients believe it at least.
const LIFE: Duration = Duration::from_secs(3);
/// The most answers that are remembered, about 150 bytes each.
const ANSWERS_MAX: NonZeroUsize = NonZeroUsize::new(64 * 1024).unwrap();
/// What is asked for.
const ALL: u32 = Access::READ | Access::LOOKUP | Access::MODIFY | Access::EXTEND | Access::EXECUTE;

const WRITING: u32 = Access::MODIFY | Access::EXTEND;

type Who = (FileHandle, u32, u32, Vec<u32>);

/// See the module's description.
pub struct RightsLayer {
    inner: Arc<dyn Vfs>,
    answers: Mutex<LruCache<Who, (u32, Instant)>>,
}

impl RightsLayer {
    /// Puts the layer over a cache.
    pub fn new(inner: Arc<dyn Vfs>) -> Self {
        Self { inner, answers: Mutex::new(LruCache::new(ANSWERS_MAX)) }
    }

    async fn granted(&self, caller: &Caller, file: &FileHandle) -> Result<u32> {
        let who = (*file, caller.uid, caller.gid, caller.groups.clone());
        if let Some((granted, at)) = self.answers.lock().get(&who)
            && at.elapsed() < LIFE
        {
            return Ok(*granted);
        }
        let granted = match self.inner.access(caller, file, Access(ALL)).await {
            // A read-only cache refuses the question.
            Err(Error::Status(Status::ROFS)) => {
                self.inner.access(caller, file, Access(ALL & !WRITING)).await?
            }
            answer => answer?,
        };
        let granted = granted.granted.0;
        self.answers.lock().put(who, (granted, Instant::now()));
        Ok(granted)
    }

    async fn is_owner(&self, caller: &Caller, file: &FileHandle) -> Result<bool> {
        Ok(self.inner.getattr(caller, file).await?.uid == caller.uid)
    }

    async fn may_look(&self, caller: &Caller, dir: &FileHandle, right: u32) -> Result<()> {
        match self.granted(caller, dir).await? & right {
            0 => Err(Status::ACCES.into()),
            _ => Ok(()),
        }
    }

    /// The owner may whatever the mode says: it was asked when the file was opened. Who may only
    /// execute reads for that.
    async fn may_read(&self, caller: &Caller, file: &FileHandle) -> Result<()> {
        let enough = Access::READ | Access::EXECUTE;
        if self.granted(caller, file).await? & enough != 0 || self.is_owner(caller, file).await? {
            return Ok(());
        }
        Err(Status::ACCES.into())
    }

    async fn may_write(&self, caller: &Caller, file: &FileHandle) -> Result<()> {
        if self.granted(caller, file).await? & WRITING != 0 || self.is_owner(caller, file).await? {
            return Ok(());
        }
        Err(Status::ACCES.into())
    }
}

#[async_trait]
impl Vfs for RightsLayer {
    fn listen(&self, listener: Weak<dyn Listener>) {
        self.inner.listen(listener);
    }

    fn root(&self) -> FileHandle {
        self.inner.root()
    }

    async fn getattr(&self, caller: &Caller, file: &FileHandle) -> Result<Attr> {
        self.inner.getattr(caller, file).await
    }

    async fn setattr(
        &self,
        caller: &Caller,
        file: &FileHandle,
        changes: &SetAttr,
        guard: Option<Time>,
    ) -> Result<Wcc> {
        let given = |time: &SetTime| matches!(time, SetTime::To(_));
        let owners = changes.mode.is_some()
            || changes.uid.is_some()
            || changes.gid.is_some()
            || given(&changes.atime)
            || given(&changes.mtime);
        if owners && caller.uid != 0 && !self.is_owner(caller, file).await? {
            return Err(Status::PERM.into());
        }
        if !owners || changes.size.is_some() {
            self.may_write(caller, file).await?;
        }
        let changed = self.inner.setattr(caller, file, changes, guard).await;
        if owners {
            self.answers.lock().clear();
        }
        changed
    }

    async fn lookup(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Entry> {
        self.may_look(caller, dir, Access::LOOKUP).await?;
        self.inner.lookup(caller, dir, name).await
    }

    async fn access(
        &self,
        caller: &Caller,
        file: &FileHandle,
        wanted: Access,
    ) -> Result<AccessGranted> {
        self.inner.access(caller, file, wanted).await
    }

    async fn readlink(&self, caller: &Caller, file: &FileHandle) -> Result<Bytes> {
        self.inner.readlink(caller, file).await
    }

    async fn read(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<ReadData> {
        self.may_read(caller, file).await?;
        self.inner.read(caller, file, offset, count).await
    }

    async fn write(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        data: Bytes,
        stable: Stability,
    ) -> Result<Written> {
        self.may_write(caller, file).await?;
        self.inner.write(caller, file, offset, data, stable).await
    }

    async fn create(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        how: &CreateHow,
    ) -> Result<Created> {
        self.inner.create(caller, dir, name, how).await
    }

    async fn mkdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        self.inner.mkdir(caller, dir, name, attr).await
    }

    async fn symlink(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        target: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        self.inner.symlink(caller, dir, name, target, attr).await
    }

    async fn mknod(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        kind: NodeKind,
        attr: &SetAttr,
    ) -> Result<Created> {
        self.inner.mknod(caller, dir, name, kind, attr).await
    }

    async fn remove(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        self.inner.remove(caller, dir, name).await
    }

    async fn rmdir(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        self.inner.rmdir(caller, dir, name).await
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
        self.inner.rename(caller, from_dir, from_name, to_dir, to_name, no_replace).await
    }

    async fn link(
        &self,
        caller: &Caller,
        file: &FileHandle,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Linked> {
        self.inner.link(caller, file, dir, name).await
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
        self.may_look(caller, dir, Access::READ).await?;
        self.inner.readdir(caller, dir, cookie, verifier, size_bytes, plus).await
    }

    async fn fsstat(&self, caller: &Caller, file: &FileHandle) -> Result<FsStat> {
        self.inner.fsstat(caller, file).await
    }

    async fn fsinfo(&self, caller: &Caller, file: &FileHandle) -> Result<FsInfo> {
        self.inner.fsinfo(caller, file).await
    }

    async fn pathconf(&self, caller: &Caller, file: &FileHandle) -> Result<PathConf> {
        self.inner.pathconf(caller, file).await
    }

    async fn commit(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<Committed> {
        self.inner.commit(caller, file, offset, count).await
    }

    async fn seek(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        whence: SeekWhence,
    ) -> Result<u64> {
        self.may_read(caller, file).await?;
        self.inner.seek(caller, file, offset, whence).await
    }

    async fn allocate(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        length: u64,
        how: Allocation,
    ) -> Result<Wcc> {
        self.may_write(caller, file).await?;
        self.inner.allocate(caller, file, offset, length, how).await
    }

    async fn fetch(
        &self,
        caller: &Caller,
        file: &FileHandle,
        ranges: &[(u64, u32)],
        level: i32,
    ) -> Result<Fetched> {
        self.may_read(caller, file).await?;
        self.inner.fetch(caller, file, ranges, level).await
    }

    async fn flush(&self, caller: &Caller, file: &FileHandle) -> Result<()> {
        self.inner.flush(caller, file).await
    }

    async fn shutdown(&self) -> Result<()> {
        self.inner.shutdown().await
    }
}
