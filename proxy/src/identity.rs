//! Who acts, and who is shown: the identities of a session on its way through the proxy.
//!
//! A session has a *shadow* identity, which is the mounting user's on the compute server, and a
//! *login*, which is the account on the state server that it runs as (the paper's section 3.2).
//! [`IdentityMap`] translates between the two; [`IdentityLayer`] does so for a whole [`Vfs`]. Where
//! a proxy may act as several, an [`IdentityTable`] says who is who. The layer keeps nothing else
//! and checks no rights: that is the file system's part.

mod table;

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use gridvfs_vfs::{
    Access, AccessGranted, Allocation, Attr, Caller, Committed, CreateHow, Created, DirPage, Entry,
    FileHandle, FsInfo, FsStat, Linked, Listener, NodeKind, PathConf, ReadData, Result, SeekWhence,
    SetAttr, Stability, Status, Time, Verifier, Vfs, Wcc, Written,
};

pub use table::{IdentityTable, TableConfig, TableError};

/// The number by which a foreign owner is shown who has the number of the shadow identity, so that
/// he is not taken for the mounting user.
pub const NOBODY: u32 = 65534;

/// How the identities of a session are translated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityMap {
    /// Not at all.
    Identity,
    /// Every caller acts as the login. Files of the login are shown as the shadow identity's, other
    /// owners as they are.
    Squash {
        /// Who acts.
        login: Caller,
        /// The user who is shown in the login's place.
        shadow_uid: u32,
        /// The group that is shown in place of the login's.
        shadow_gid: u32,
    },
    /// By a table; whom it does not give is refused, or squashed.
    Table(Arc<IdentityTable>),
}

impl IdentityMap {
    /// Says who acts for a caller; [`Status::ACCES`] where nobody does.
    pub fn caller(&self, caller: &Caller) -> Result<Caller, Status> {
        match self {
            Self::Identity => Ok(caller.clone()),
            Self::Squash { login, .. } => Ok(login.clone()),
            Self::Table(table) => table.caller(caller),
        }
    }

    /// The same for what tells nothing of any file: kernels ask it as root when they mount.
    fn looker(&self, caller: &Caller) -> Caller {
        let nobody = Caller { uid: NOBODY, gid: NOBODY, groups: Vec::new() };
        self.caller(caller).unwrap_or(nobody)
    }

    /// Says whether all callers act as one.
    pub fn is_squash(&self) -> bool {
        matches!(self, Self::Squash { .. })
    }

    /// Translates the owner in a change of attributes. An owner that nobody can be shown as cannot
    /// be given either.
    pub fn set_attr(&self, attr: &SetAttr) -> Result<SetAttr, Status> {
        let (uid, gid) = match self {
            Self::Identity => (attr.uid.map(Ok), attr.gid.map(Ok)),
            Self::Squash { login, shadow_uid, shadow_gid } => (
                attr.uid.map(|uid| to_login(uid, login.uid, *shadow_uid)),
                attr.gid.map(|gid| to_login(gid, login.gid, *shadow_gid)),
            ),
            Self::Table(table) => {
                (attr.uid.map(|uid| table.given_uid(uid)), attr.gid.map(|gid| table.given_gid(gid)))
            }
        };
        Ok(SetAttr { uid: uid.transpose()?, gid: gid.transpose()?, ..*attr })
    }

    /// Translates the owner in attributes.
    pub fn attr(&self, attr: Attr) -> Attr {
        let (uid, gid) = match self {
            Self::Identity => (attr.uid, attr.gid),
            Self::Squash { login, shadow_uid, shadow_gid } => (
                to_shadow(attr.uid, login.uid, *shadow_uid),
                to_shadow(attr.gid, login.gid, *shadow_gid),
            ),
            Self::Table(table) => (table.shown_uid(attr.uid), table.shown_gid(attr.gid)),
        };
        Attr { uid, gid, ..attr }
    }

    /// Translates weak cache consistency data.
    pub fn wcc(&self, wcc: Wcc) -> Wcc {
        Wcc { after: wcc.after.map(|attr| self.attr(attr)), ..wcc }
    }

    fn create_how(&self, how: &CreateHow) -> Result<CreateHow, Status> {
        Ok(match how {
            CreateHow::Unchecked(attr) => CreateHow::Unchecked(self.set_attr(attr)?),
            CreateHow::Guarded(attr) => CreateHow::Guarded(self.set_attr(attr)?),
            CreateHow::Exclusive(verifier) => CreateHow::Exclusive(*verifier),
        })
    }

    fn created(&self, created: Created) -> Created {
        Created {
            attr: created.attr.map(|attr| self.attr(attr)),
            dir_wcc: self.wcc(created.dir_wcc),
            ..created
        }
    }
}

fn to_shadow(id: u32, login: u32, shadow: u32) -> u32 {
    match id {
        id if id == login => shadow,
        id if id == shadow => NOBODY,
        id => id,
    }
}

fn to_login(id: u32, login: u32, shadow: u32) -> Result<u32, Status> {
    match id {
        id if id == shadow => Ok(login),
        id if id == login => Err(Status::PERM),
        id => Ok(id),
    }
}

/// A [`Vfs`] whose callers and owners are translated.
pub struct IdentityLayer {
    inner: Arc<dyn Vfs>,
    map: IdentityMap,
}

impl IdentityLayer {
    /// Puts the map in front of `inner`.
    pub fn new(inner: Arc<dyn Vfs>, map: IdentityMap) -> Self {
        Self { inner, map }
    }

    fn attr(&self, attr: Option<Attr>) -> Option<Attr> {
        attr.map(|attr| self.map.attr(attr))
    }
}

#[async_trait]
impl Vfs for IdentityLayer {
    fn listen(&self, listener: Weak<dyn Listener>) {
        self.inner.listen(listener);
    }

    fn root(&self) -> FileHandle {
        self.inner.root()
    }

    async fn getattr(&self, caller: &Caller, file: &FileHandle) -> Result<Attr> {
        let caller = match *file == self.inner.root() {
            true => self.map.looker(caller),
            false => self.map.caller(caller)?,
        };
        Ok(self.map.attr(self.inner.getattr(&caller, file).await?))
    }

    async fn setattr(
        &self,
        caller: &Caller,
        file: &FileHandle,
        changes: &SetAttr,
        guard: Option<Time>,
    ) -> Result<Wcc> {
        let changes = self.map.set_attr(changes)?;
        let caller = self.map.caller(caller)?;
        Ok(self.map.wcc(self.inner.setattr(&caller, file, &changes, guard).await?))
    }

    async fn lookup(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Entry> {
        let entry = self.inner.lookup(&self.map.caller(caller)?, dir, name).await?;
        Ok(Entry { attr: self.attr(entry.attr), dir_attr: self.attr(entry.dir_attr), ..entry })
    }

    async fn access(
        &self,
        caller: &Caller,
        file: &FileHandle,
        wanted: Access,
    ) -> Result<AccessGranted> {
        let answer = self.inner.access(&self.map.caller(caller)?, file, wanted).await?;
        Ok(AccessGranted { attr: self.attr(answer.attr), ..answer })
    }

    async fn readlink(&self, caller: &Caller, file: &FileHandle) -> Result<Bytes> {
        self.inner.readlink(&self.map.caller(caller)?, file).await
    }

    async fn read(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<ReadData> {
        let read = self.inner.read(&self.map.caller(caller)?, file, offset, count).await?;
        Ok(ReadData { attr: self.attr(read.attr), ..read })
    }

    async fn write(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        data: Bytes,
        stable: Stability,
    ) -> Result<Written> {
        let caller = self.map.caller(caller)?;
        let written = self.inner.write(&caller, file, offset, data, stable).await?;
        Ok(Written { wcc: self.map.wcc(written.wcc), ..written })
    }

    async fn create(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        how: &CreateHow,
    ) -> Result<Created> {
        let how = self.map.create_how(how)?;
        let created = self.inner.create(&self.map.caller(caller)?, dir, name, &how).await?;
        Ok(self.map.created(created))
    }

    async fn mkdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        let attr = self.map.set_attr(attr)?;
        let created = self.inner.mkdir(&self.map.caller(caller)?, dir, name, &attr).await?;
        Ok(self.map.created(created))
    }

    async fn symlink(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        target: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        let attr = self.map.set_attr(attr)?;
        let caller = self.map.caller(caller)?;
        Ok(self.map.created(self.inner.symlink(&caller, dir, name, target, &attr).await?))
    }

    async fn mknod(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        kind: NodeKind,
        attr: &SetAttr,
    ) -> Result<Created> {
        let attr = self.map.set_attr(attr)?;
        let caller = self.map.caller(caller)?;
        Ok(self.map.created(self.inner.mknod(&caller, dir, name, kind, &attr).await?))
    }

    async fn remove(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        Ok(self.map.wcc(self.inner.remove(&self.map.caller(caller)?, dir, name).await?))
    }

    async fn rmdir(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        Ok(self.map.wcc(self.inner.rmdir(&self.map.caller(caller)?, dir, name).await?))
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
        let caller = self.map.caller(caller)?;
        let (from, to) =
            self.inner.rename(&caller, from_dir, from_name, to_dir, to_name, no_replace).await?;
        Ok((self.map.wcc(from), self.map.wcc(to)))
    }

    async fn link(
        &self,
        caller: &Caller,
        file: &FileHandle,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Linked> {
        let linked = self.inner.link(&self.map.caller(caller)?, file, dir, name).await?;
        Ok(Linked { attr: self.attr(linked.attr), dir_wcc: self.map.wcc(linked.dir_wcc) })
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
        let caller = self.map.caller(caller)?;
        let mut page = self.inner.readdir(&caller, dir, cookie, verifier, size_bytes, plus).await?;
        for entry in &mut page.entries {
            entry.attr = self.attr(entry.attr);
        }
        page.dir_attr = self.attr(page.dir_attr);
        Ok(page)
    }

    async fn fsstat(&self, caller: &Caller, file: &FileHandle) -> Result<FsStat> {
        self.inner.fsstat(&self.map.looker(caller), file).await
    }

    async fn fsinfo(&self, caller: &Caller, file: &FileHandle) -> Result<FsInfo> {
        self.inner.fsinfo(&self.map.looker(caller), file).await
    }

    async fn pathconf(&self, caller: &Caller, file: &FileHandle) -> Result<PathConf> {
        self.inner.pathconf(&self.map.looker(caller), file).await
    }

    async fn commit(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<Committed> {
        let done = self.inner.commit(&self.map.caller(caller)?, file, offset, count).await?;
        Ok(Committed { wcc: self.map.wcc(done.wcc), ..done })
    }

    async fn seek(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        whence: SeekWhence,
    ) -> Result<u64> {
        self.inner.seek(&self.map.caller(caller)?, file, offset, whence).await
    }

    async fn allocate(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        length: u64,
        how: Allocation,
    ) -> Result<Wcc> {
        let caller = self.map.caller(caller)?;
        Ok(self.map.wcc(self.inner.allocate(&caller, file, offset, length, how).await?))
    }

    async fn flush(&self, caller: &Caller, file: &FileHandle) -> Result<()> {
        self.inner.flush(&self.map.caller(caller)?, file).await
    }

    fn forget(&self, file: &FileHandle) {
        self.inner.forget(file);
    }

    fn invalidate(&self, file: &FileHandle) {
        self.inner.invalidate(file);
    }

    fn discard(&self, file: &FileHandle) {
        self.inner.discard(file);
    }

    async fn shutdown(&self) -> Result<()> {
        self.inner.shutdown().await
    }
}
