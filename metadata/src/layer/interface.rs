//! The layer as a [`Vfs`].

use std::sync::Weak;

use async_trait::async_trait;
use bytes::Bytes;
use gridvfs_vfs::{
    Access, AccessGranted, Allocation, Attr, Caller, Committed, CreateHow, Created, DirPage, Entry,
    FileHandle, FsInfo, FsStat, Linked, Listener, NodeKind, PathConf, ReadData, Result, SeekWhence,
    SetAttr, Stability, Time, Verifier, Vfs, Wcc, Written,
};

use super::MetaLayer;
use crate::format::is_metadata_name;

#[async_trait]
impl Vfs for MetaLayer {
    fn listen(&self, listener: Weak<dyn Listener>) {
        self.core.below.listen(listener);
    }

    fn root(&self) -> FileHandle {
        self.core.below.root()
    }

    async fn getattr(&self, caller: &Caller, file: &FileHandle) -> Result<Attr> {
        self.core.below.getattr(caller, file).await
    }

    async fn setattr(
        &self,
        caller: &Caller,
        file: &FileHandle,
        changes: &SetAttr,
        guard: Option<Time>,
    ) -> Result<Wcc> {
        if changes.size.is_some() {
            self.core.written(file);
        }
        self.core.below.setattr(caller, file, changes, guard).await
    }

    async fn lookup(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Entry> {
        let entry = self.core.below.lookup(caller, dir, name).await?;
        if !is_metadata_name(name)
            && self.core.seen(dir, name, &entry.handle, entry.attr.as_ref())
            && self.core.subject(&entry.handle).is_none()
        {
            // It is about to be opened: by its first read, what is known of it is here.
            self.core.look_later(caller, &entry.handle);
        }
        Ok(entry)
    }

    async fn access(
        &self,
        caller: &Caller,
        file: &FileHandle,
        wanted: Access,
    ) -> Result<AccessGranted> {
        self.core.below.access(caller, file, wanted).await
    }

    async fn readlink(&self, caller: &Caller, file: &FileHandle) -> Result<Bytes> {
        self.core.below.readlink(caller, file).await
    }

    async fn read(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<ReadData> {
        self.core.read(caller, file, offset, count).await
    }

    fn read_now(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        out: &mut [u8],
    ) -> Option<Result<usize>> {
        self.core.read_now(caller, file, offset, out)
    }

    fn write_now(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        data: &[u8],
    ) -> Option<Result<()>> {
        self.core.written(file);
        self.core.below.write_now(caller, file, offset, data)
    }

    fn whole(&self, file: &FileHandle) -> Option<std::fs::File> {
        self.core.below.whole(file)
    }

    async fn write(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        data: Bytes,
        stable: Stability,
    ) -> Result<Written> {
        self.core.written(file);
        self.core.below.write(caller, file, offset, data, stable).await
    }

    async fn create(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        how: &CreateHow,
    ) -> Result<Created> {
        let created = self.core.below.create(caller, dir, name, how).await?;
        if let Some(file) = &created.handle {
            // One that was there may have been cut to nothing.
            self.core.written(file);
        }
        Ok(created)
    }

    async fn mkdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        self.core.below.mkdir(caller, dir, name, attr).await
    }

    async fn symlink(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        target: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        self.core.below.symlink(caller, dir, name, target, attr).await
    }

    async fn mknod(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        kind: NodeKind,
        attr: &SetAttr,
    ) -> Result<Created> {
        self.core.below.mknod(caller, dir, name, kind, attr).await
    }

    async fn remove(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        self.core.remove(caller, dir, name).await
    }

    async fn rmdir(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        self.core.rmdir(caller, dir, name).await
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
        self.core.rename(caller, (from_dir, from_name), (to_dir, to_name), no_replace).await
    }

    async fn link(
        &self,
        caller: &Caller,
        file: &FileHandle,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Linked> {
        self.core.below.link(caller, file, dir, name).await
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
        self.core.readdir(caller, dir, cookie, verifier, size_bytes, plus).await
    }

    async fn fsstat(&self, caller: &Caller, file: &FileHandle) -> Result<FsStat> {
        self.core.below.fsstat(caller, file).await
    }

    async fn fsinfo(&self, caller: &Caller, file: &FileHandle) -> Result<FsInfo> {
        self.core.below.fsinfo(caller, file).await
    }

    async fn pathconf(&self, caller: &Caller, file: &FileHandle) -> Result<PathConf> {
        self.core.below.pathconf(caller, file).await
    }

    async fn commit(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<Committed> {
        self.core.below.commit(caller, file, offset, count).await
    }

    async fn seek(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        whence: SeekWhence,
    ) -> Result<u64> {
        self.core.seek(caller, file, offset, whence).await
    }

    async fn allocate(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        length: u64,
        how: Allocation,
    ) -> Result<Wcc> {
        self.core.written(file);
        self.core.below.allocate(caller, file, offset, length, how).await
    }

    async fn sync_names(&self) -> Result<()> {
        self.core.below.sync_names().await
    }

    async fn flush(&self, caller: &Caller, file: &FileHandle) -> Result<()> {
        self.core.below.flush(caller, file).await
    }

    fn forget(&self, file: &FileHandle) {
        self.core.forget(file);
        self.core.below.forget(file);
    }

    fn invalidate(&self, file: &FileHandle) {
        self.core.outdated(file);
        self.core.below.invalidate(file);
    }

    fn discard(&self, file: &FileHandle) {
        self.core.written(file);
        self.core.below.discard(file);
    }

    async fn shutdown(&self) -> Result<()> {
        self.core.below.shutdown().await
    }
}
