//! A layer that notes the calls that pass it, and may refuse or answer some itself.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use gridvfs_proxy::local_dir::{LocalDir, LocalDirOptions};
use gridvfs_vfs::{
    Access, AccessGranted, Allocation, Attr, Caller, Committed, CreateHow, Created, DirPage, Entry,
    FileHandle, FsInfo, FsStat, Linked, NodeKind, PathConf, ReadData, Result, SeekWhence, SetAttr,
    SetTime, Stability, Status, Time, Verifier, Vfs, Wcc, Written,
};

/// The layer, over a directory.
pub struct Probe {
    inner: LocalDir,
    /// The calls that have passed, each with what matters of it.
    pub calls: Mutex<Vec<String>>,
    /// The local file that [`Vfs::whole`] gives, of whatever file.
    pub whole: Mutex<Option<PathBuf>>,
    /// A local file that reads are answered from at once, of whatever file.
    pub at_hand: Mutex<Option<File>>,
    /// Whose modification times are refused.
    pub refuse_times: AtomicBool,
    /// Files that were written: they are not whole any more.
    written: Mutex<HashSet<FileHandle>>,
}

impl Probe {
    pub fn new(directory: &std::path::Path) -> Self {
        Self {
            inner: LocalDir::open(directory, LocalDirOptions::default()).expect("directory"),
            calls: Mutex::default(),
            whole: Mutex::default(),
            at_hand: Mutex::default(),
            refuse_times: AtomicBool::new(false),
            written: Mutex::default(),
        }
    }

    fn note(&self, call: String) {
        self.calls.lock().expect("calls").push(call);
    }

    /// Returns the calls since the last time.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().expect("calls"))
    }
}

#[async_trait]
impl Vfs for Probe {
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
        let sets_time = matches!(changes.mtime, SetTime::To(_));
        let time = if sets_time { " mtime" } else { "" };
        self.note(format!("setattr{time} size={:?} mode={:?}", changes.size, changes.mode));
        if sets_time && self.refuse_times.load(Ordering::Relaxed) {
            return Err(Status::PERM.into());
        }
        self.inner.setattr(caller, file, changes, guard).await
    }

    async fn lookup(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Entry> {
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
        self.note(format!("read {offset} {count}"));
        self.inner.read(caller, file, offset, count).await
    }

    fn read_now(
        &self,
        _caller: &Caller,
        _file: &FileHandle,
        offset: u64,
        out: &mut [u8],
    ) -> Option<Result<usize>> {
        let at_hand = self.at_hand.lock().expect("file");
        Some(Ok(at_hand.as_ref()?.read_at(out, offset).expect("read")))
    }

    fn whole(&self, file: &FileHandle) -> Option<File> {
        if self.written.lock().expect("written").contains(file) {
            return None;
        }
        Some(File::open(self.whole.lock().expect("path").as_ref()?).expect("open"))
    }

    async fn write(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        data: Bytes,
        stable: Stability,
    ) -> Result<Written> {
        self.note(format!("write {offset} {}", data.len()));
        self.written.lock().expect("written").insert(*file);
        self.inner.write(caller, file, offset, data, stable).await
    }

    async fn create(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        how: &CreateHow,
    ) -> Result<Created> {
        let kind = match how {
            CreateHow::Unchecked(_) => "unchecked",
            CreateHow::Guarded(_) => "guarded",
            CreateHow::Exclusive(_) => "exclusive",
        };
        self.note(format!("create {kind}"));
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
        if name.starts_with(b".nfs") {
            // As over a long link.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
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
        self.note("commit".into());
        self.inner.commit(caller, file, offset, count).await
    }

    async fn seek(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        whence: SeekWhence,
    ) -> Result<u64> {
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
        self.inner.allocate(caller, file, offset, length, how).await
    }

    async fn flush(&self, _caller: &Caller, _file: &FileHandle) -> Result<()> {
        self.note("flush".into());
        Ok(())
    }
}
