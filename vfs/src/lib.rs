//! The one interface that every part of GridVFS implements, wraps or serves.
//!
//! [`Vfs`] has the shape of NFS version 3 (RFC 1813): stateless calls over opaque file handles, no
//! open and no close. A disk cache wraps a `Vfs` and is one; the NFS client is one; the FUSE and
//! NFS front ends serve one; so proxies in series (the paper's section 2) are plain composition.
//!
//! The crate keeps the types and their wire form ([`xdr`], [`rpc`], [`nfs3`]). It does no I/O,
//! prints nothing and never panics on input.

mod attr;
mod error;
pub mod ext;
mod fetch;
mod handle;
mod histogram;
mod listen;
pub mod nfs3;
pub mod rpc;
mod types;
pub mod xdr;

pub use attr::{Attr, DeviceNumber, FileKind, SetAttr, SetTime, Time, Wcc, WccAttr};
pub use error::{Error, Result, Status};
pub use fetch::{
    FETCH_BLOCK_BYTES, FETCH_BYTES_MAX, FETCH_LEVEL_MAX, FETCH_RANGES_MAX, Fetched, FetchedRange,
    FetchedRun, check_fetch,
};
pub use handle::{FileHandle, HANDLE_BYTES_MAX};
pub use histogram::{Durations, Histogram};
pub use listen::{Change, Coverage, Ears, Leads, Listener};
pub use types::{
    Access, AccessGranted, Allocation, Caller, Committed, CreateHow, Created, DirEntry, DirPage,
    Entry, FsInfo, FsStat, Linked, NodeKind, PathConf, ReadData, SeekWhence, Stability, Verifier,
    Written, is_dots,
};

use std::sync::Weak;

use async_trait::async_trait;
use bytes::Bytes;

/// A file system in the shape of RFC 1813.
///
/// Names are bytes: any but `/` and NUL. Offsets and lengths are bytes. Every call carries the
/// [`Caller`] it is made for. An implementation may block the calling thread only where its
/// documentation says so (the local directory does; the NFS client never does).
#[async_trait]
pub trait Vfs: Send + Sync + 'static {
    /// Returns the handle of the export's root directory.
    fn root(&self) -> FileHandle;

    /// Returns the attributes of a file (RFC 1813, 3.3.1).
    async fn getattr(&self, caller: &Caller, file: &FileHandle) -> Result<Attr>;

    /// Changes attributes. With `guard`, only if the file's ctime still equals it (3.3.2).
    async fn setattr(
        &self,
        caller: &Caller,
        file: &FileHandle,
        changes: &SetAttr,
        guard: Option<Time>,
    ) -> Result<Wcc>;

    /// Finds a name in a directory (3.3.3).
    async fn lookup(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Entry>;

    /// Asks which of the `wanted` permissions the caller has (3.3.4).
    async fn access(
        &self,
        caller: &Caller,
        file: &FileHandle,
        wanted: Access,
    ) -> Result<AccessGranted>;

    /// Returns the target of a symbolic link (3.3.5).
    async fn readlink(&self, caller: &Caller, file: &FileHandle) -> Result<Bytes>;

    /// Reads up to `count` bytes at `offset` (3.3.6). Fewer bytes without `eof` is not the end of
    /// the file: the caller asks again for the rest.
    async fn read(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<ReadData>;

    /// Reads on the calling thread if all of it is at hand: fills `out` and returns how many bytes
    /// are there before the end of the file (fewer than `out` takes only at the end of the file).
    /// `None`: ask [`Vfs::read`]. Never waits for the network, and allocates nothing.
    fn read_now(
        &self,
        _caller: &Caller,
        _file: &FileHandle,
        _offset: u64,
        _out: &mut [u8],
    ) -> Option<Result<usize>> {
        None
    }

    /// Takes all of a write on the calling thread if it needs no server. `None`: ask
    /// [`Vfs::write`].
    fn write_now(
        &self,
        _caller: &Caller,
        _file: &FileHandle,
        _offset: u64,
        _data: &[u8],
    ) -> Option<Result<()>> {
        None
    }

    /// Returns a local file, opened for reading, that holds the whole of `file` as it is and
    /// stays: the front end may hand it to the kernel (FUSE passthrough) for a read-only open. It
    /// does so only for files that nobody may write. From the first change of `file` through this
    /// `Vfs` on, a local file that was given before belongs to the front end, which brings it along
    /// for those who have it open: it is not to be given or taken for the content again.
    fn whole(&self, _file: &FileHandle) -> Option<std::fs::File> {
        None
    }

    /// Writes `data` at `offset` (3.3.7). Fewer bytes may be taken than were given.
    async fn write(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        data: Bytes,
        stable: Stability,
    ) -> Result<Written>;

    /// Creates a regular file (3.3.8).
    async fn create(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        how: &CreateHow,
    ) -> Result<Created>;

    /// Creates a directory (3.3.9).
    async fn mkdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        attr: &SetAttr,
    ) -> Result<Created>;

    /// Creates a symbolic link (3.3.10).
    async fn symlink(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        target: &[u8],
        attr: &SetAttr,
    ) -> Result<Created>;

    /// Creates a fifo, a socket or a device node (3.3.11).
    async fn mknod(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        kind: NodeKind,
        attr: &SetAttr,
    ) -> Result<Created>;

    /// Removes a name that is not a directory (3.3.12).
    async fn remove(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc>;

    /// Removes an empty directory (3.3.13).
    async fn rmdir(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc>;

    /// Renames (3.3.14). With `no_replace`, an existing target fails with [`Status::EXIST`]
    /// (Linux's RENAME_NOREPLACE; where the server has no such call, it is composed of others).
    async fn rename(
        &self,
        caller: &Caller,
        from_dir: &FileHandle,
        from_name: &[u8],
        to_dir: &FileHandle,
        to_name: &[u8],
        no_replace: bool,
    ) -> Result<(Wcc, Wcc)>;

    /// Creates a hard link (3.3.15).
    async fn link(
        &self,
        caller: &Caller,
        file: &FileHandle,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Linked>;

    /// Lists a directory from `cookie` (0: the start) in at most about `size_bytes` of reply. With
    /// `plus`, entries carry attributes and handles where the server has them (3.3.16, 3.3.17).
    async fn readdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        cookie: u64,
        verifier: Verifier,
        size_bytes: u32,
        plus: bool,
    ) -> Result<DirPage>;

    /// Returns volatile file system state: space and inodes (3.3.18).
    async fn fsstat(&self, caller: &Caller, file: &FileHandle) -> Result<FsStat>;

    /// Returns static file system limits (3.3.19).
    async fn fsinfo(&self, caller: &Caller, file: &FileHandle) -> Result<FsInfo>;

    /// Returns POSIX limits (3.3.20).
    async fn pathconf(&self, caller: &Caller, file: &FileHandle) -> Result<PathConf>;

    /// Makes earlier unstable writes durable; a `count` of 0 means to the end (3.3.21).
    async fn commit(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<Committed>;

    /// Finds the next data or hole at or after `offset`, as lseek(2) does; [`Status::NXIO`] at or
    /// past the end. Not in NFSv3: [`Status::NOTSUPP`] where the server cannot tell.
    async fn seek(
        &self,
        _caller: &Caller,
        _file: &FileHandle,
        _offset: u64,
        _whence: SeekWhence,
    ) -> Result<u64> {
        Err(Status::NOTSUPP.into())
    }

    /// Allocates, zeroes or frees a range, as fallocate(2) does. Not in NFSv3:
    /// [`Status::NOTSUPP`] where the server cannot.
    async fn allocate(
        &self,
        _caller: &Caller,
        _file: &FileHandle,
        _offset: u64,
        _length: u64,
        _how: Allocation,
    ) -> Result<Wcc> {
        Err(Status::NOTSUPP.into())
    }

    /// Reads several ranges of a regular file (offset and length in bytes, the offset a multiple of
    /// [`FETCH_BLOCK_BYTES`]), compressed on the way and without zeros: at most
    /// [`FETCH_RANGES_MAX`] ranges and [`FETCH_BYTES_MAX`] bytes in all. `level` is zstd's, 1 to
    /// [`FETCH_LEVEL_MAX`], or 0 for no compression.
    ///
    /// All of it is of one state of the file, that of the attributes that come with it:
    /// [`Status::JUKEBOX`] if the file was changed meanwhile. That is not asked again here, because
    /// a file that is being written would have it so for ever; the caller reads on, or asks later.
    /// Two calls may see two states: compare their attributes. Not in NFSv3: [`Status::NOTSUPP`]
    /// where the server cannot.
    async fn fetch(
        &self,
        _caller: &Caller,
        _file: &FileHandle,
        _ranges: &[(u64, u32)],
        _level: i32,
    ) -> Result<Fetched> {
        Err(Status::NOTSUPP.into())
    }

    /// Sends what this layer holds of `file` to the server, so that others see it (close-to-open).
    /// It need not be durable there: that is [`Vfs::commit`]. A deferred write error is reported
    /// here, once.
    async fn flush(&self, _caller: &Caller, _file: &FileHandle) -> Result<()> {
        Ok(())
    }

    /// Makes the changes of names durable that have been answered (fsync(2) of a directory). NFSv3
    /// answers when they are on the server's disk.
    async fn sync_names(&self) -> Result<()> {
        Ok(())
    }

    /// Says that nobody refers to `file` for now: state kept for it may be let go. Held data is
    /// not lost by it.
    fn forget(&self, _file: &FileHandle) {}

    /// Drops clean data held of `file`, because the caller saw it change on the server.
    fn invalidate(&self, _file: &FileHandle) {}

    /// Says that the last name of `file` is gone: held data of it is not to be sent.
    fn discard(&self, _file: &FileHandle) {}

    /// Has changes of files told to `listener` from now on, whoever makes them, for as long as it is
    /// there. Until [`Listener::covered`] says otherwise, not all of them are.
    fn listen(&self, _listener: Weak<dyn Listener>) {}

    /// Ends the session: everything held is written back and committed.
    async fn shutdown(&self) -> Result<()> {
        Ok(())
    }
}
