//! The trait's calls, one by one.

use std::sync::Weak;

use async_trait::async_trait;
use bytes::Bytes;
use gridvfs_vfs::{
    Access, AccessGranted, Allocation, Attr, Caller, Committed, CreateHow, Created, DirPage, Entry,
    Error, Fetched, FileHandle, FsInfo, FsStat, Linked, Listener, NodeKind, PathConf, ReadData,
    Result, SeekWhence, SetAttr, Stability, Time, Verifier, Vfs, Wcc, Written, nfs3,
};

use super::{NfsClient, names};
use crate::rpc::CallClass;

#[async_trait]
impl Vfs for NfsClient {
    fn listen(&self, listener: Weak<dyn Listener>) {
        self.begin_to_listen(listener);
    }

    fn root(&self) -> FileHandle {
        self.root
    }

    async fn getattr(&self, caller: &Caller, file: &FileHandle) -> Result<Attr> {
        self.ask(caller, nfs3::GETATTR, file).await
    }

    async fn setattr(
        &self,
        caller: &Caller,
        file: &FileHandle,
        changes: &SetAttr,
        guard: Option<Time>,
    ) -> Result<Wcc> {
        self.change_attributes(caller, file, changes, guard).await
    }

    async fn lookup(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Entry> {
        self.find(caller, dir, name).await
    }

    async fn access(
        &self,
        caller: &Caller,
        file: &FileHandle,
        wanted: Access,
    ) -> Result<AccessGranted> {
        let arguments = nfs3::AccessArgs { file: *file, wanted };
        let mut answer: AccessGranted = self.ask(caller, nfs3::ACCESS, &arguments).await?;
        answer.granted.0 &= wanted.0;
        Ok(answer)
    }

    async fn readlink(&self, caller: &Caller, file: &FileHandle) -> Result<Bytes> {
        let (_, target): (Option<Attr>, nfs3::Path) =
            self.ask(caller, nfs3::READLINK, file).await?;
        if target.0.contains(&0) {
            return Err(Error::Protocol("a link's target contains a NUL".into()));
        }
        Ok(target.0)
    }

    async fn read(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<ReadData> {
        self.read_range(caller, file, offset, count).await
    }

    async fn write(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        data: Bytes,
        stable: Stability,
    ) -> Result<Written> {
        self.write_range(caller, file, offset, data, stable).await
    }

    async fn create(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        how: &CreateHow,
    ) -> Result<Created> {
        self.create_file(caller, dir, name, how).await
    }

    async fn mkdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        self.create_directory(caller, dir, name, attr).await
    }

    async fn symlink(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        target: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        self.create_symlink(caller, dir, name, target, attr).await
    }

    async fn mknod(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        kind: NodeKind,
        attr: &SetAttr,
    ) -> Result<Created> {
        self.create_node(caller, dir, name, kind, attr).await
    }

    async fn remove(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        self.remove_name(caller, nfs3::REMOVE, dir, name).await
    }

    async fn rmdir(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        self.remove_name(caller, nfs3::RMDIR, dir, name).await
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
        let from = names::at(from_dir, from_name)?;
        let to = names::at(to_dir, to_name)?;
        match no_replace {
            true => self.rename_without_replacing(caller, from, to).await,
            false => self.rename_replacing(caller, from, to).await,
        }
    }

    async fn link(
        &self,
        caller: &Caller,
        file: &FileHandle,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Linked> {
        self.create_link(caller, file, names::at(dir, name)?).await
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
        self.list(caller, dir, cookie, verifier, size_bytes, plus).await
    }

    async fn fsstat(&self, caller: &Caller, file: &FileHandle) -> Result<FsStat> {
        let (_, answer): (Option<Attr>, FsStat) = self.ask(caller, nfs3::FSSTAT, file).await?;
        Ok(answer)
    }

    /// The sizes are those that were negotiated for the export. Larger requests are split.
    async fn fsinfo(&self, caller: &Caller, file: &FileHandle) -> Result<FsInfo> {
        Ok(self.sizes.applied_to(self.server_limits(caller, file).await?))
    }

    async fn pathconf(&self, caller: &Caller, file: &FileHandle) -> Result<PathConf> {
        let (_, answer): (Option<Attr>, PathConf) = self.ask(caller, nfs3::PATHCONF, file).await?;
        Ok(answer)
    }

    async fn commit(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<Committed> {
        let arguments = nfs3::CommitArgs { file: *file, offset, count };
        self.call(caller, nfs3::COMMIT, &arguments, CallClass::Slow).await?.into_result()
    }

    async fn seek(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        whence: SeekWhence,
    ) -> Result<u64> {
        self.seek_extended(caller, file, offset, whence).await
    }

    async fn allocate(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        length: u64,
        how: Allocation,
    ) -> Result<Wcc> {
        self.allocate_extended(caller, file, offset, length, how).await
    }

    async fn fetch(
        &self,
        caller: &Caller,
        file: &FileHandle,
        ranges: &[(u64, u32)],
        level: i32,
    ) -> Result<Fetched> {
        self.fetch_ranges(caller, file, ranges, level).await
    }
}
