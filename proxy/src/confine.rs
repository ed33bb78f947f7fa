//! Confinement of a session that is forwarded to an NFS server: by handle, never by path.
//!
//! NFS servers take any handle of an export, and a handle can be guessed or learnt elsewhere. So
//! the proxy seals the handles that it gives out with a keyed tag, and takes no others. The secret
//! is kept, so that handles outlive a restart of the proxy. A handle that has no room for the tag
//! is exchanged for a sealed number, which the proxy remembers.
//!
//! Together with the refusal to climb above the root and of names that are paths, a session reaches
//! its export and nothing else, whatever the server would allow.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use gridvfs_vfs::{
    Access, AccessGranted, Allocation, Attr, Caller, Committed, CreateHow, Created, DirPage, Entry,
    FileHandle, FsInfo, FsStat, HANDLE_BYTES_MAX, Linked, NodeKind, PathConf, ReadData, Result,
    SeekWhence, SetAttr, Stability, Status, Time, Verifier, Vfs, Wcc, Written,
};
use parking_lot::Mutex;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use rusqlite::{Connection, OptionalExtension};

/// The tag's length in bytes: 2^63 guesses on average, each a call over the network.
const TAG_BYTES: usize = 8;
/// The secret's length in bytes.
const SECRET_BYTES: usize = 32;
/// What a sealed handle begins with: the server's own handle follows.
const KIND_PLAIN: u8 = 1;
/// What a sealed handle begins with: a number follows that stands for a long handle.
const KIND_NUMBER: u8 = 2;
/// The longest handle that is sealed as it is.
const PLAIN_BYTES_MAX: usize = HANDLE_BYTES_MAX - 1 - TAG_BYTES;

/// A [`Vfs`] whose handles cannot be forged.
pub struct ConfinedLayer {
    inner: Arc<dyn Vfs>,
    seal: Arc<Seal>,
    root: FileHandle,
    read_only: bool,
}

/// Why the layer cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The secret cannot be kept or read.
    #[error("the secret of file handles: {0}")]
    Io(#[from] std::io::Error),
    /// The table of long handles cannot be used.
    #[error("the table of file handles: {0}")]
    Table(#[from] rusqlite::Error),
    /// The system has no random numbers.
    #[error("no random numbers to make a secret of")]
    NoRandomness,
}

/// Seals handles and checks the seals.
pub struct Seal {
    key: hmac::Key,
    long: Mutex<Connection>,
}

impl Seal {
    /// Opens the seal of an export. Those of other names are other seals, though one secret in
    /// `state_dir` is behind all.
    pub fn open(state_dir: &Path, export: &str) -> std::result::Result<Self, SealError> {
        let mut secret = secret(&state_dir.join("handle-secret"))?;
        if !export.is_empty() {
            let own = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), export.as_bytes());
            secret.copy_from_slice(&own.as_ref()[..SECRET_BYTES]);
        }
        let long = Connection::open(state_dir.join("long-handles.sqlite"))?;
        long.busy_timeout(std::time::Duration::from_secs(5))?;
        long.pragma_update(None, "journal_mode", "wal")?;
        long.execute_batch(
            "create table if not exists handles(number integer primary key, bytes blob unique)",
        )?;
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &secret), long: Mutex::new(long) })
    }

    fn sealed(&self, kind: u8, body: &[u8]) -> Option<FileHandle> {
        let mut bytes = Vec::with_capacity(HANDLE_BYTES_MAX);
        bytes.push(kind);
        bytes.extend_from_slice(body);
        let tag = hmac::sign(&self.key, &bytes);
        bytes.extend_from_slice(&tag.as_ref()[..TAG_BYTES]);
        FileHandle::new(&bytes)
    }

    fn seal(&self, handle: &FileHandle) -> Result<FileHandle> {
        let bytes = handle.as_bytes();
        let sealed = if bytes.len() <= PLAIN_BYTES_MAX {
            self.sealed(KIND_PLAIN, bytes)
        } else {
            self.number(bytes).and_then(|number| self.sealed(KIND_NUMBER, &number.to_be_bytes()))
        };
        sealed.ok_or(Status::SERVERFAULT.into())
    }

    /// Returns the number of a long handle; a new one if it has none.
    fn number(&self, bytes: &[u8]) -> Option<i64> {
        let long = self.long.lock();
        long.execute("insert or ignore into handles(bytes) values(?1)", [bytes]).ok()?;
        let find = "select number from handles where bytes = ?1";
        long.query_row(find, [bytes], |row| row.get(0)).ok()
    }

    /// Takes the tag off a handle; `None` if it is not one of this seal.
    fn unsealed<'a>(&self, handle: &'a FileHandle) -> Option<&'a [u8]> {
        let bytes = handle.as_bytes();
        let (sealed, tag) = bytes.split_at(bytes.len().checked_sub(TAG_BYTES)?);
        let expected = hmac::sign(&self.key, sealed);
        let pairs = expected.as_ref()[..TAG_BYTES].iter().zip(tag);
        let differences = pairs.fold(0, |sum, (a, b)| sum | (a ^ b));
        (std::hint::black_box(differences) == 0).then_some(sealed)
    }

    /// Returns a handle as clients know it.
    pub(crate) fn sealed_handle(&self, handle: &FileHandle) -> Option<FileHandle> {
        self.seal(handle).ok()
    }

    /// Says whether a handle was sealed here.
    pub fn is_of(&self, handle: &FileHandle) -> bool {
        self.unsealed(handle).is_some()
    }

    fn open_handle(&self, handle: &FileHandle) -> Result<FileHandle> {
        let bad = || Status::BADHANDLE;
        let sealed = self.unsealed(handle).ok_or_else(bad)?;
        let opened = match sealed.split_first() {
            Some((&KIND_PLAIN, body)) => FileHandle::new(body),
            Some((&KIND_NUMBER, body)) => {
                let number = i64::from_be_bytes(body.try_into().map_err(|_| bad())?);
                let find = "select bytes from handles where number = ?1";
                let long = self.long.lock();
                let row = long.query_row(find, [number], |row| row.get::<_, Vec<u8>>(0)).optional();
                row.ok().flatten().and_then(|bytes| FileHandle::new(&bytes))
            }
            _ => None,
        };
        opened.ok_or(Status::STALE.into())
    }
}

/// Reads the secret, or makes it.
fn secret(path: &Path) -> std::result::Result<[u8; SECRET_BYTES], SealError> {
    let mut secret = [0; SECRET_BYTES];
    if let Ok(mut file) = File::open(path) {
        file.read_exact(&mut secret)?;
        return Ok(secret);
    }
    SystemRandom::new().fill(&mut secret).map_err(|_| SealError::NoRandomness)?;
    // Written whole under another name, so that of two that make it at once one wins.
    let draft = path.with_extension(format!("draft-{}", std::process::id()));
    let mut file =
        File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(&secret)?;
    file.sync_all()?;
    let linked = std::fs::hard_link(&draft, path);
    std::fs::remove_file(&draft)?;
    match linked {
        Ok(()) => Ok(secret),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            File::open(path)?.read_exact(&mut secret)?;
            Ok(secret)
        }
        Err(error) => Err(error.into()),
    }
}

impl ConfinedLayer {
    /// Confines `inner` to what is reached from its root. The secret is kept in `state_dir`.
    pub fn new(
        inner: Arc<dyn Vfs>,
        state_dir: &Path,
        read_only: bool,
    ) -> std::result::Result<Self, SealError> {
        Ok(Self::sealed_by(Arc::new(Seal::open(state_dir, "")?), inner, read_only))
    }

    /// The same with a seal that is there already.
    pub fn sealed_by(seal: Arc<Seal>, inner: Arc<dyn Vfs>, read_only: bool) -> Self {
        let root = inner.root();
        Self { inner, seal, root, read_only }
    }

    fn opened(&self, handle: &FileHandle) -> Result<FileHandle> {
        self.seal.open_handle(handle)
    }

    /// Opens a handle for a change.
    fn changed(&self, handle: &FileHandle) -> Result<FileHandle> {
        if self.read_only {
            return Err(Status::ROFS.into());
        }
        self.opened(handle)
    }

    fn created(&self, created: Created) -> Result<Created> {
        let handle = created.handle.map(|handle| self.seal.seal(&handle)).transpose()?;
        Ok(Created { handle, ..created })
    }
}

/// Refuses names that could be paths.
fn checked(name: &[u8]) -> Result<&[u8]> {
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
        return Err(Status::INVAL.into());
    }
    Ok(name)
}

#[async_trait]
impl Vfs for ConfinedLayer {
    fn root(&self) -> FileHandle {
        // Sealing fails only for long handles while the table cannot be written.
        self.seal.seal(&self.root).unwrap_or(self.root)
    }

    async fn getattr(&self, caller: &Caller, file: &FileHandle) -> Result<Attr> {
        self.inner.getattr(caller, &self.opened(file)?).await
    }

    async fn setattr(
        &self,
        caller: &Caller,
        file: &FileHandle,
        changes: &SetAttr,
        guard: Option<Time>,
    ) -> Result<Wcc> {
        self.inner.setattr(caller, &self.changed(file)?, changes, guard).await
    }

    async fn lookup(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Entry> {
        let dir = self.opened(dir)?;
        // The root is its own parent, as at the top of every file system.
        let name = if name == b".." && dir == self.root { b"." } else { checked(name)? };
        let entry = if name == b"." && dir == self.root {
            let attr = self.inner.getattr(caller, &dir).await?;
            Entry { handle: dir, attr: Some(attr), dir_attr: Some(attr) }
        } else {
            self.inner.lookup(caller, &dir, name).await?
        };
        Ok(Entry { handle: self.seal.seal(&entry.handle)?, ..entry })
    }

    async fn access(
        &self,
        caller: &Caller,
        file: &FileHandle,
        wanted: Access,
    ) -> Result<AccessGranted> {
        self.inner.access(caller, &self.opened(file)?, wanted).await
    }

    async fn readlink(&self, caller: &Caller, file: &FileHandle) -> Result<Bytes> {
        self.inner.readlink(caller, &self.opened(file)?).await
    }

    async fn read(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<ReadData> {
        self.inner.read(caller, &self.opened(file)?, offset, count).await
    }

    async fn write(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        data: Bytes,
        stable: Stability,
    ) -> Result<Written> {
        self.inner.write(caller, &self.changed(file)?, offset, data, stable).await
    }

    async fn create(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        how: &CreateHow,
    ) -> Result<Created> {
        let dir = self.changed(dir)?;
        self.created(self.inner.create(caller, &dir, checked(name)?, how).await?)
    }

    async fn mkdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        let dir = self.changed(dir)?;
        self.created(self.inner.mkdir(caller, &dir, checked(name)?, attr).await?)
    }

    async fn symlink(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        target: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        let dir = self.changed(dir)?;
        self.created(self.inner.symlink(caller, &dir, checked(name)?, target, attr).await?)
    }

    async fn mknod(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        kind: NodeKind,
        attr: &SetAttr,
    ) -> Result<Created> {
        let dir = self.changed(dir)?;
        self.created(self.inner.mknod(caller, &dir, checked(name)?, kind, attr).await?)
    }

    async fn remove(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        self.inner.remove(caller, &self.changed(dir)?, checked(name)?).await
    }

    async fn rmdir(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        self.inner.rmdir(caller, &self.changed(dir)?, checked(name)?).await
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
        let (from_dir, to_dir) = (self.changed(from_dir)?, self.changed(to_dir)?);
        let (from, to) = (checked(from_name)?, checked(to_name)?);
        self.inner.rename(caller, &from_dir, from, &to_dir, to, no_replace).await
    }

    async fn link(
        &self,
        caller: &Caller,
        file: &FileHandle,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Linked> {
        let (file, dir) = (self.changed(file)?, self.changed(dir)?);
        self.inner.link(caller, &file, &dir, checked(name)?).await
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
        let dir = self.opened(dir)?;
        let mut page = self.inner.readdir(caller, &dir, cookie, verifier, size_bytes, plus).await?;
        for entry in &mut page.entries {
            if &entry.name[..] == b".." && dir == self.root {
                // What is above the export is nobody's business.
                (entry.handle, entry.attr) = (None, None);
            }
            entry.handle = entry.handle.map(|handle| self.seal.seal(&handle)).transpose()?;
        }
        Ok(page)
    }

    async fn fsstat(&self, caller: &Caller, file: &FileHandle) -> Result<FsStat> {
        self.inner.fsstat(caller, &self.opened(file)?).await
    }

    async fn fsinfo(&self, caller: &Caller, file: &FileHandle) -> Result<FsInfo> {
        self.inner.fsinfo(caller, &self.opened(file)?).await
    }

    async fn pathconf(&self, caller: &Caller, file: &FileHandle) -> Result<PathConf> {
        self.inner.pathconf(caller, &self.opened(file)?).await
    }

    async fn commit(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<Committed> {
        self.inner.commit(caller, &self.opened(file)?, offset, count).await
    }

    async fn seek(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        whence: SeekWhence,
    ) -> Result<u64> {
        self.inner.seek(caller, &self.opened(file)?, offset, whence).await
    }

    async fn allocate(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        length: u64,
        how: Allocation,
    ) -> Result<Wcc> {
        self.inner.allocate(caller, &self.changed(file)?, offset, length, how).await
    }

    async fn flush(&self, caller: &Caller, file: &FileHandle) -> Result<()> {
        self.inner.flush(caller, &self.opened(file)?).await
    }

    async fn shutdown(&self) -> Result<()> {
        self.inner.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(length: usize) -> FileHandle {
        FileHandle::new(&vec![7; length]).expect("short enough")
    }

    #[test]
    fn sealed_handles_come_back_after_a_restart_and_no_others_do() {
        let folder = tempfile::tempdir().expect("folder");
        let sealed: Vec<FileHandle> = {
            let seal = Seal::open(folder.path(), "").expect("a seal");
            (0..=HANDLE_BYTES_MAX)
                .map(|length| seal.seal(&handle(length)).expect("sealed"))
                .collect()
        };
        let seal = Seal::open(folder.path(), "").expect("the same seal");
        for (length, sealed) in sealed.iter().enumerate() {
            assert_eq!(seal.open_handle(sealed), Ok(handle(length)), "{length}");
            assert_eq!(seal.seal(&handle(length)), Ok(*sealed), "the same handle each time");
            for at in 0..sealed.as_bytes().len() {
                let mut forged = sealed.as_bytes().to_vec();
                forged[at] ^= 1;
                let forged = FileHandle::new(&forged).expect("as long");
                assert!(seal.open_handle(&forged).is_err(), "{length} {at}");
            }
        }
        assert!(seal.open_handle(&handle(20)).is_err(), "the server's own handle");
        assert!(seal.open_handle(&handle(0)).is_err());
        let elsewhere = tempfile::tempdir().expect("folder");
        let other = Seal::open(elsewhere.path(), "").expect("another seal");
        assert!(other.open_handle(&sealed[20]).is_err(), "another secret");
        let named = Seal::open(folder.path(), "other").expect("another seal");
        assert!(named.open_handle(&sealed[20]).is_err(), "another export");
        assert!(!named.is_of(&sealed[20]) && seal.is_of(&sealed[20]));
    }
}
