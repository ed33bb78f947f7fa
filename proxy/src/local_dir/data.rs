//! READ, WRITE, COMMIT, SEEK and ALLOCATE of regular files.
//!
//! Descriptors for data are opened once and kept with the pinned file. NFS has no open, so the
//! right to read or write is checked on each call when callers differ (a privileged process), and
//! by the opening otherwise. As in every NFS server the owner may always read and write (the file
//! may have been opened before its mode changed), and the right to execute implies that to read.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use gridvfs_vfs::{
    Allocation, Caller, Committed, FileHandle, FileKind, ReadData, Result, SeekWhence, Stability,
    Status, Verifier, Wcc, Written,
};

use super::LocalDir;
use super::attr::MODE_BITS;
use super::node::{Fd, Node};
use super::sys::{self, Errno, SysResult};

/// The largest READ and WRITE: what the kernel's FUSE and NFS clients ask for at most.
pub(super) const TRANSFER_MAX: u32 = 1 << 20;

/// Where an allocator puts large pieces they begin 16 bytes behind a page, and the kernel copies to
/// such a place at a fifth of the speed.
const ALIGNMENT: usize = 4096;

fn check_regular(node: &Node) -> Result<()> {
    match node.kind {
        FileKind::Regular => Ok(()),
        FileKind::Directory => Err(Status::ISDIR.into()),
        _ => Err(Status::INVAL.into()),
    }
}

impl LocalDir {
    pub(super) fn do_read(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<ReadData> {
        let node = self.resolve(file)?;
        check_regular(&node)?;
        let stat = self.stat(&node)?;
        let fd = self.read_fd(&node, &stat, caller)?;
        let mut size = stat.st_size as u64;
        let wanted = size.saturating_sub(offset).min(u64::from(count.min(TRANSFER_MAX))) as usize;
        let mut data: Vec<u8> = Vec::with_capacity(wanted + ALIGNMENT);
        // The capacity is enough, so the data stays where it begins now.
        let skip = data.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        data.resize(skip, 0);
        while data.len() < wanted + skip {
            let at = (offset + (data.len() - skip) as u64) as i64;
            let length = wanted + skip - data.len();
            if sys::pread(fd.as_fd(), &mut data, length, at)? == 0 {
                // It has been cut since it was measured.
                size = sys::fstat(fd.as_fd())?.st_size as u64;
                break;
            }
        }
        let data = Bytes::from(data).slice(skip..);
        let eof = offset.saturating_add(data.len() as u64) >= size;
        Ok(ReadData { data, eof, attr: Some(self.attr_of(&node, &stat)) })
    }

    pub(super) fn do_write(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        data: &[u8],
        stable: Stability,
    ) -> Result<Written> {
        self.check_writable()?;
        let node = self.resolve(file)?;
        check_regular(&node)?;
        let before = self.stat(&node)?;
        let data = &data[..data.len().min(TRANSFER_MAX as usize)];
        let end = offset.checked_add(data.len() as u64).and_then(|end| i64::try_from(end).ok());
        if end.is_none() {
            return Err(Status::FBIG.into());
        }
        let fd = self.write_fd(&node, &before, caller)?;
        let verifier = self.verifier();
        let mut written = 0;
        {
            // As the caller, so that the kernel takes set-id bits away from what others change.
            let _acting = self.privilege.assume(caller)?;
            while written < data.len() {
                let at = (offset + written as u64) as i64;
                match sys::pwrite(fd.as_fd(), &data[written..], at) {
                    Ok(0) => break,
                    Ok(count) => written += count,
                    Err(_) if written > 0 => break,
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        if stable != Stability::Unstable {
            self.sync(&fd, stable == Stability::FileSync)?;
        }
        Ok(Written {
            count: written as u32,
            committed: stable,
            verifier,
            wcc: self.wcc(&node, &before),
        })
    }

    pub(super) fn do_commit(&self, file: &FileHandle) -> Result<Committed> {
        let node = self.resolve(file)?;
        let before = self.stat(&node)?;
        let verifier = self.verifier();
        match node.kind {
            FileKind::Regular => {
                // What was written by way of another descriptor is synced by any.
                let kept = {
                    let data = node.data.lock();
                    data.write.clone().or_else(|| data.read.clone())
                };
                let fd = match kept {
                    Some(fd) => fd,
                    None => Arc::new(self.nodes.count(self.open_any(&node, &before)?)),
                };
                self.sync(&fd, false)?;
            }
            FileKind::Directory => {
                let dir = self.nodes.with_room(|| sys::open_listing(node.path.as_fd()))?;
                self.sync(&self.nodes.count(dir), false)?;
            }
            _ => return Err(Status::INVAL.into()),
        }
        Ok(Committed { verifier, wcc: self.wcc(&node, &before) })
    }

    pub(super) fn do_seek(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        whence: SeekWhence,
    ) -> Result<u64> {
        let node = self.resolve(file)?;
        check_regular(&node)?;
        let stat = self.stat(&node)?;
        let fd = self.read_fd(&node, &stat, caller)?;
        let offset = i64::try_from(offset).map_err(|_| Status::NXIO)?;
        let whence = match whence {
            SeekWhence::Data => libc::SEEK_DATA,
            SeekWhence::Hole => libc::SEEK_HOLE,
        };
        // The position that this moves is nobody's: all reads and writes say theirs.
        Ok(sys::lseek(fd.as_fd(), offset, whence)? as u64)
    }

    pub(super) fn do_allocate(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        length: u64,
        how: Allocation,
    ) -> Result<Wcc> {
        self.check_writable()?;
        let node = self.resolve(file)?;
        check_regular(&node)?;
        let before = self.stat(&node)?;
        let end = offset.checked_add(length).and_then(|end| i64::try_from(end).ok());
        if end.is_none() {
            return Err(Status::FBIG.into());
        }
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        let mode = match how {
            Allocation::Reserve => 0,
            Allocation::ReserveKeepSize => keep,
            Allocation::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | keep,
            Allocation::ZeroRange => libc::FALLOC_FL_ZERO_RANGE,
            Allocation::ZeroRangeKeepSize => libc::FALLOC_FL_ZERO_RANGE | keep,
        };
        let fd = self.write_fd(&node, &before, caller)?;
        {
            let _acting = self.privilege.assume(caller)?;
            sys::fallocate(fd.as_fd(), mode, offset as i64, length as i64)?;
        }
        Ok(self.wcc(&node, &before))
    }

    /// Says by its change that unstable data may have been lost.
    pub(super) fn verifier(&self) -> Verifier {
        self.verifier.load(Ordering::Acquire).to_be_bytes()
    }

    /// A failed sync may have lost pages that were written before: clients are told to send their
    /// data again.
    fn sync(&self, fd: &Fd, all: bool) -> Result<()> {
        sys::sync(fd.as_fd(), all).map_err(|errno| {
            self.verifier.fetch_add(1, Ordering::AcqRel);
            errno.into()
        })
    }

    /// Whether the caller may do one of `modes` (R_OK, …), or owns the file.
    fn check_data_right(
        &self,
        node: &Node,
        stat: &libc::stat,
        caller: &Caller,
        modes: &[i32],
    ) -> Result<()> {
        if !self.privilege.acts_as_callers() || caller.uid == 0 || caller.uid == stat.st_uid {
            return Ok(());
        }
        let _acting = self.privilege.assume(caller)?;
        let mut result = Err(Errno(libc::EACCES));
        for mode in modes {
            result = self.may(node, stat, caller, *mode);
            if result.is_ok() {
                break;
            }
        }
        Ok(result?)
    }

    pub(super) fn read_fd(
        &self,
        node: &Arc<Node>,
        stat: &libc::stat,
        caller: &Caller,
    ) -> Result<Arc<Fd>> {
        self.check_data_right(node, stat, caller, &[libc::R_OK, libc::X_OK])?;
        if let Some(fd) = &node.data.lock().read {
            return Ok(fd.clone());
        }
        let fd = match self.reopen(node, libc::O_RDONLY) {
            Err(Errno(libc::EACCES)) => self.open_as_owner(node, libc::O_RDONLY, 0o400)?,
            result => result?,
        };
        let fd = Arc::new(self.nodes.count(fd));
        node.data.lock().read = Some(fd.clone());
        self.nodes.trim();
        Ok(fd)
    }

    pub(super) fn write_fd(
        &self,
        node: &Arc<Node>,
        stat: &libc::stat,
        caller: &Caller,
    ) -> Result<Arc<Fd>> {
        check_regular(node)?;
        self.check_data_right(node, stat, caller, &[libc::W_OK])?;
        if let Some(fd) = &node.data.lock().write {
            return Ok(fd.clone());
        }
        let (fd, readable) = match self.reopen(node, libc::O_RDWR) {
            Ok(fd) => (fd, true),
            Err(Errno(libc::EACCES)) => match self.reopen(node, libc::O_WRONLY) {
                Err(Errno(libc::EACCES)) => (self.open_as_owner(node, libc::O_RDWR, 0o600)?, true),
                result => (result?, false),
            },
            Err(errno) => return Err(errno.into()),
        };
        let fd = Arc::new(self.nodes.count(fd));
        self.keep_write_fd(node, fd.clone(), readable);
        Ok(fd)
    }

    pub(super) fn keep_write_fd(&self, node: &Node, fd: Arc<Fd>, readable: bool) {
        let old = {
            let mut data = node.data.lock();
            let read = if readable { data.read.replace(fd.clone()) } else { None };
            (data.write.replace(fd), read)
        };
        drop(old);
        self.nodes.trim();
    }

    fn reopen(&self, node: &Node, flags: i32) -> SysResult<OwnedFd> {
        self.nodes.with_room(|| sys::reopen(node.path.as_fd(), flags))
    }

    /// Opens a file of this process's own user against its mode, as NFS's owner override asks for.
    /// An unprivileged process has no other way than to change the mode for a moment.
    fn open_as_owner(&self, node: &Node, flags: i32, bits: u32) -> SysResult<OwnedFd> {
        let _serial = node.change.lock();
        let stat = sys::fstat(node.path.as_fd())?;
        if stat.st_uid != self.privilege.uid() {
            return Err(Errno(libc::EACCES));
        }
        let mode = stat.st_mode & MODE_BITS;
        sys::chmod(node.path.as_fd(), mode | bits)?;
        let opened = self.reopen(node, flags);
        let restored = sys::chmod(node.path.as_fd(), mode);
        let fd = opened?;
        restored?;
        Ok(fd)
    }

    fn open_any(&self, node: &Node, stat: &libc::stat) -> SysResult<OwnedFd> {
        match self.reopen(node, libc::O_RDONLY) {
            Err(Errno(libc::EACCES)) => match self.reopen(node, libc::O_WRONLY) {
                Err(Errno(libc::EACCES)) if stat.st_uid == self.privilege.uid() => {
                    self.open_as_owner(node, libc::O_RDONLY, 0o400)
                }
                result => result,
            },
            result => result,
        }
    }
}
