//! A [`Vfs`] that notes what its answers give to a client, and tells others what the client changes.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use gridvfs_vfs::{
    Access, AccessGranted, Allocation, Attr, Caller, Committed, CreateHow, Created, DirPage, Entry,
    Fetched, FileHandle, FsInfo, FsStat, Linked, NodeKind, PathConf, ReadData, Result, SeekWhence,
    SetAttr, Stability, Time, Verifier, Vfs, Wcc, Written, is_dots,
};

use super::{Client, Hub, Item};

/// See the module's description. It lasts for a call.
pub(crate) struct Attentive {
    inner: Arc<dyn Vfs>,
    hub: Arc<Hub>,
    /// Who calls, if it is told of changes.
    client: Option<Arc<Client>>,
    /// The number of the last change when the call began.
    since: u64,
}

impl Attentive {
    pub fn new(inner: Arc<dyn Vfs>, hub: Arc<Hub>, client: Option<Arc<Client>>) -> Self {
        let since = hub.now();
        Self { inner, hub, client, since }
    }

    fn gives(&self, file: &FileHandle) {
        if let Some(client) = &self.client {
            self.hub.give(client, file, self.since);
        }
    }

    /// What the call may change, to be told when it ends.
    fn changing(&self, items: impl IntoIterator<Item = Item>) -> Changing<'_> {
        Changing { vfs: self, items: items.into_iter().collect() }
    }

    /// The same for a name and its directory.
    fn changing_name(&self, dir: &FileHandle, name: &[u8]) -> Changing<'_> {
        self.changing([name_of(dir, name), Item::Attributes(*dir)])
    }

    /// The file of a name that is about to go, if anybody else may know it.
    async fn at(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Option<Item> {
        if !self.hub.has_others(self.client.as_ref()) {
            return None;
        }
        let entry = self.inner.lookup(caller, dir, name).await.ok()?;
        Some(Item::Attributes(entry.handle))
    }

    fn gives_created(&self, dir: &FileHandle, created: &Created) {
        self.gives(dir);
        if let Some(file) = &created.handle {
            self.gives(file);
        }
    }
}

fn name_of(dir: &FileHandle, name: &[u8]) -> Item {
    Item::Name(*dir, Bytes::copy_from_slice(name))
}

/// A change under way. Others are told of it when it is over, however it ends: one that has failed, or
/// that nobody waits for any more, may have come about in part.
struct Changing<'a> {
    vfs: &'a Attentive,
    items: Vec<Item>,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let Attentive { hub, client, .. } = self.vfs;
        self.items.iter().for_each(|item| hub.tell(item, client.as_ref()));
    }
}

#[async_trait]
impl Vfs for Attentive {
    fn root(&self) -> FileHandle {
        self.inner.root()
    }

    async fn getattr(&self, caller: &Caller, file: &FileHandle) -> Result<Attr> {
        let attr = self.inner.getattr(caller, file).await?;
        self.gives(file);
        Ok(attr)
    }

    async fn setattr(
        &self,
        caller: &Caller,
        file: &FileHandle,
        changes: &SetAttr,
        guard: Option<Time>,
    ) -> Result<Wcc> {
        let item = match changes.size {
            Some(_) => Item::File(*file),
            None => Item::Attributes(*file),
        };
        let _changing = self.changing([item]);
        let wcc = self.inner.setattr(caller, file, changes, guard).await?;
        self.gives(file);
        Ok(wcc)
    }

    async fn lookup(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Entry> {
        let found = self.inner.lookup(caller, dir, name).await;
        // That there is no such name is given, too.
        self.gives(dir);
        let entry = found?;
        self.gives(&entry.handle);
        Ok(entry)
    }

    async fn access(
        &self,
        caller: &Caller,
        file: &FileHandle,
        wanted: Access,
    ) -> Result<AccessGranted> {
        let granted = self.inner.access(caller, file, wanted).await?;
        self.gives(file);
        Ok(granted)
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
        let read = self.inner.read(caller, file, offset, count).await?;
        self.gives(file);
        Ok(read)
    }

    async fn fetch(
        &self,
        caller: &Caller,
        file: &FileHandle,
        ranges: &[(u64, u32)],
        level: i32,
    ) -> Result<Fetched> {
        let fetched = self.inner.fetch(caller, file, ranges, level).await?;
        self.gives(file);
        Ok(fetched)
    }

    async fn write(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        data: Bytes,
        stable: Stability,
    ) -> Result<Written> {
        let _changing = self.changing([Item::File(*file)]);
        let written = self.inner.write(caller, file, offset, data, stable).await?;
        self.gives(file);
        Ok(written)
    }

    async fn create(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        how: &CreateHow,
    ) -> Result<Created> {
        let mut changing = self.changing_name(dir, name);
        if matches!(how, CreateHow::Unchecked(_)) {
            // If it is there, it may be cut.
            let at = self.at(caller, dir, name).await;
            changing.items.extend(at.map(|at| Item::File(*at.subject())));
        }
        let created = self.inner.create(caller, dir, name, how).await?;
        self.gives_created(dir, &created);
        Ok(created)
    }

    async fn mkdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        let _changing = self.changing_name(dir, name);
        let created = self.inner.mkdir(caller, dir, name, attr).await?;
        self.gives_created(dir, &created);
        Ok(created)
    }

    async fn symlink(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        target: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        let _changing = self.changing_name(dir, name);
        let created = self.inner.symlink(caller, dir, name, target, attr).await?;
        self.gives_created(dir, &created);
        Ok(created)
    }

    async fn mknod(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        kind: NodeKind,
        attr: &SetAttr,
    ) -> Result<Created> {
        let _changing = self.changing_name(dir, name);
        let created = self.inner.mknod(caller, dir, name, kind, attr).await?;
        self.gives_created(dir, &created);
        Ok(created)
    }

    async fn remove(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        let mut changing = self.changing_name(dir, name);
        changing.items.extend(self.at(caller, dir, name).await);
        let wcc = self.inner.remove(caller, dir, name).await?;
        self.gives(dir);
        Ok(wcc)
    }

    async fn rmdir(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        let mut changing = self.changing_name(dir, name);
        changing.items.extend(self.at(caller, dir, name).await);
        let wcc = self.inner.rmdir(caller, dir, name).await?;
        self.gives(dir);
        Ok(wcc)
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
        let mut changing = self.changing([
            name_of(from_dir, from_name),
            name_of(to_dir, to_name),
            Item::Attributes(*from_dir),
            Item::Attributes(*to_dir),
        ]);
        changing.items.extend(self.at(caller, from_dir, from_name).await);
        changing.items.extend(self.at(caller, to_dir, to_name).await);
        let (from, to) =
            self.inner.rename(caller, from_dir, from_name, to_dir, to_name, no_replace).await?;
        self.gives(from_dir);
        self.gives(to_dir);
        Ok((from, to))
    }

    async fn link(
        &self,
        caller: &Caller,
        file: &FileHandle,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Linked> {
        let mut changing = self.changing_name(dir, name);
        changing.items.push(Item::Attributes(*file));
        let linked = self.inner.link(caller, file, dir, name).await?;
        self.gives(dir);
        self.gives(file);
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
        let page = self.inner.readdir(caller, dir, cookie, verifier, size_bytes, plus).await?;
        self.gives(dir);
        for entry in page.entries.iter().filter(|entry| !is_dots(&entry.name)) {
            if let Some(file) = &entry.handle {
                self.gives(file);
            }
        }
        Ok(page)
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
        let committed = self.inner.commit(caller, file, offset, count).await?;
        self.gives(file);
        Ok(committed)
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
        let _changing = self.changing([Item::File(*file)]);
        let wcc = self.inner.allocate(caller, file, offset, length, how).await?;
        self.gives(file);
        Ok(wcc)
    }

    async fn flush(&self, caller: &Caller, file: &FileHandle) -> Result<()> {
        self.inner.flush(caller, file).await
    }

    fn forget(&self, file: &FileHandle) {
        self.inner.forget(file);
    }
}
