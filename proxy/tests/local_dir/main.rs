//! The local directory and the identity map, by way of the `Vfs` interface alone.

mod confinement;
mod handles;
mod identity;
mod listing;
mod model;
mod operations;

use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use gridvfs_proxy::local_dir::{LocalDir, LocalDirOptions};
use gridvfs_vfs::{
    Caller, CreateHow, DirEntry, FileHandle, Result, SetAttr, Stability, Status, Vfs,
};

/// Runs a call of the local directory, which never awaits.
pub(crate) fn now<T>(call: impl Future<Output = T>) -> T {
    let mut call = std::pin::pin!(call);
    match call.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("a call of the local directory has awaited"),
    }
}

pub(crate) fn open(path: impl AsRef<Path>) -> LocalDir {
    LocalDir::open(path, LocalDirOptions::default()).unwrap()
}

pub(crate) fn open_with_state(path: impl AsRef<Path>, state: impl AsRef<Path>) -> LocalDir {
    let options =
        LocalDirOptions { state_dir: Some(state.as_ref().into()), ..LocalDirOptions::default() };
    LocalDir::open(path, options).unwrap()
}

pub(crate) fn root() -> Caller {
    Caller { uid: 0, gid: 0, groups: vec![] }
}

pub(crate) fn mode(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..SetAttr::default() }
}

pub(crate) fn lookup(fs: &dyn Vfs, path: &str) -> Result<FileHandle> {
    path.split('/').filter(|name| !name.is_empty()).try_fold(fs.root(), |dir, name| {
        now(fs.lookup(&root(), &dir, name.as_bytes())).map(|entry| entry.handle)
    })
}

pub(crate) fn create(fs: &dyn Vfs, dir: &FileHandle, name: &str) -> FileHandle {
    let how = CreateHow::Guarded(mode(0o644));
    now(fs.create(&root(), dir, name.as_bytes(), &how)).unwrap().handle.unwrap()
}

pub(crate) fn write(fs: &dyn Vfs, file: &FileHandle, offset: u64, data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    let length = data.len() as u32;
    let written = now(fs.write(&root(), file, offset, data, Stability::Unstable)).unwrap();
    assert_eq!(written.count, length);
}

pub(crate) fn read(fs: &dyn Vfs, file: &FileHandle) -> Result<Bytes> {
    now(fs.read(&root(), file, 0, 1 << 20)).map(|read| read.data)
}

pub(crate) fn status<T: std::fmt::Debug>(result: Result<T>) -> Status {
    result.unwrap_err().status()
}

/// Lists a directory in pages of `size` bytes.
pub(crate) fn list(fs: &dyn Vfs, dir: &FileHandle, size: u32, plus: bool) -> Vec<DirEntry> {
    let mut entries: Vec<DirEntry> = Vec::new();
    loop {
        let cookie = entries.last().map_or(0, |entry| entry.cookie);
        let page = now(fs.readdir(&root(), dir, cookie, [0; 8], size, plus)).unwrap();
        let end = page.eof;
        assert!(end || !page.entries.is_empty());
        entries.extend(page.entries);
        if end {
            return entries;
        }
    }
}

/// Whether tests can become other users; says so where they cannot.
pub(crate) fn can_be_others(test: &str) -> bool {
    // SAFETY: cannot fail.
    let able = unsafe { libc::geteuid() } == 0;
    if !able {
        println!("SKIPPED: {test}: not root");
    }
    able
}

/// Tells a thread to stop, even if the test fails.
pub(crate) struct Stop<'a>(pub(crate) &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
