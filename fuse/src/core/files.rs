//! Calls on files: open, read, write, attributes, space.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use fuser::FileAttr;
use gridvfs_vfs::{
    Access, Allocation, Caller, Error, FileKind, Result, SeekWhence, SetAttr, Stability, Status,
    Written,
};

use super::Core;
use crate::inodes::Inode;

/// How often a read may bring nothing in the middle of a file before it is an error.
const EMPTY_READS_MAX: u32 = 3;
/// The bit that the kernel sets in the flags of an open for execve(2) (FMODE_EXEC).
const OPEN_FOR_EXEC: i32 = 0x20;

impl Core {
    /// Opens. Returns the open's number, and whether what the kernel has cached is still good.
    pub async fn open(
        self: &Arc<Self>,
        caller: &Caller,
        number: u64,
        flags: i32,
    ) -> Result<(u64, bool)> {
        let inode = self.inode(number)?;
        let wanted = match flags & libc::O_ACCMODE {
            libc::O_WRONLY => Access::MODIFY | Access::EXTEND,
            libc::O_RDWR => Access::READ | Access::MODIFY | Access::EXTEND,
            _ if flags & OPEN_FOR_EXEC != 0 => Access::EXECUTE,
            _ => Access::READ,
        };
        // One round trip for permission and attributes, as close-to-open asks for.
        let answer = self.vfs.access(caller, &inode.handle, Access(wanted)).await?;
        if answer.granted.0 & wanted != wanted {
            return Err(Status::ACCES.into());
        }
        let attr = match answer.attr {
            Some(attr) => attr,
            None => self.vfs.getattr(caller, &inode.handle).await?,
        };
        let changed = inode.note_at_open(&attr);
        if changed {
            self.vfs.invalidate(&inode.handle);
        }
        let open = self.add_file(inode.clone(), caller);
        if flags & libc::O_TRUNC != 0 && flags & libc::O_ACCMODE != libc::O_RDONLY {
            let empty = SetAttr { size: Some(0), ..SetAttr::default() };
            match self.vfs.setattr(caller, &inode.handle, &empty, None).await {
                Ok(wcc) => inode.note_own(&wcc),
                Err(error) => {
                    self.release(open);
                    return Err(error);
                }
            }
        }
        Ok((open, !changed))
    }

    /// Reads exactly `size` bytes, or up to the end of the file.
    pub async fn read(
        &self,
        caller: &Caller,
        inode: &Inode,
        offset: u64,
        size: u32,
    ) -> Result<Bytes> {
        let first = self.vfs.read(caller, &inode.handle, offset, size).await?;
        if first.eof || first.data.len() >= size as usize {
            return Ok(first.data);
        }
        let mut data = BytesMut::with_capacity(size as usize);
        data.extend_from_slice(&first.data);
        let mut empty = u32::from(first.data.is_empty());
        while data.len() < size as usize {
            if empty > EMPTY_READS_MAX {
                return Err(Error::Protocol("no data in the middle of a file".into()));
            }
            let at = offset + data.len() as u64;
            let left = size - data.len() as u32;
            let next = self.vfs.read(caller, &inode.handle, at, left).await?;
            empty = if next.data.is_empty() { empty + 1 } else { 0 };
            data.extend_from_slice(&next.data);
            if next.eof {
                break;
            }
        }
        Ok(data.freeze())
    }

    /// Writes all of `data`.
    pub async fn write(
        &self,
        caller: &Caller,
        inode: &Inode,
        offset: u64,
        mut data: Bytes,
    ) -> Result<()> {
        inode.note_write();
        let mut at = offset;
        loop {
            let whole = data.len();
            let answer =
                self.vfs.write(caller, &inode.handle, at, data.clone(), Stability::Unstable);
            let Written { count, wcc, .. } = answer.await?;
            inode.note_own(&wcc);
            inode.note_write();
            let count = (count as usize).min(whole);
            if count == whole {
                return Ok(());
            }
            if count == 0 {
                return Err(Error::Protocol("the server takes no data".into()));
            }
            data = data.slice(count..);
            at += count as u64;
        }
    }

    pub async fn flush(&self, caller: &Caller, inode: &Inode) -> Result<()> {
        self.vfs.flush(caller, &inode.handle).await
    }

    pub async fn fsync(&self, caller: &Caller, inode: &Inode) -> Result<()> {
        self.vfs.commit(caller, &inode.handle, 0, 0).await.map(drop)
    }

    pub async fn setattr(
        &self,
        caller: &Caller,
        inode: &Inode,
        changes: &SetAttr,
    ) -> Result<FileAttr> {
        let wcc = self.vfs.setattr(caller, &inode.handle, changes, None).await?;
        match wcc.after {
            Some(attr) => {
                inode.note_own(&wcc);
                Ok(self.kernel_attr(inode, &attr))
            }
            None => {
                inode.note_write();
                self.getattr(caller, inode).await
            }
        }
    }

    /// access(2), and the kernel's own question at chdir(2).
    pub async fn access(&self, caller: &Caller, inode: &Inode, mask: i32) -> Result<()> {
        let is_dir = inode.kind == FileKind::Directory;
        let mut wanted = 0;
        if mask & libc::R_OK != 0 {
            wanted |= Access::READ;
        }
        if mask & libc::W_OK != 0 {
            wanted |= Access::MODIFY | Access::EXTEND;
        }
        if mask & libc::X_OK != 0 {
            wanted |= if is_dir { Access::LOOKUP } else { Access::EXECUTE };
        }
        if wanted == 0 {
            return self.getattr(caller, inode).await.map(drop);
        }
        let answer = self.vfs.access(caller, &inode.handle, Access(wanted)).await?;
        if let Some(attr) = &answer.attr {
            self.noted(inode, attr);
        }
        if answer.granted.0 & wanted == wanted { Ok(()) } else { Err(Status::ACCES.into()) }
    }

    /// lseek(2) for data and holes. A server that cannot tell has data everywhere.
    pub async fn seek(
        &self,
        caller: &Caller,
        inode: &Inode,
        offset: u64,
        whence: SeekWhence,
    ) -> Result<u64> {
        match self.vfs.seek(caller, &inode.handle, offset, whence).await {
            Err(Error::Status(Status::NOTSUPP)) => {
                let size = self.vfs.getattr(caller, &inode.handle).await?.size;
                match whence {
                    _ if offset >= size => Err(Status::NXIO.into()),
                    SeekWhence::Data => Ok(offset),
                    SeekWhence::Hole => Ok(size),
                }
            }
            result => result,
        }
    }

    pub async fn allocate(
        &self,
        caller: &Caller,
        inode: &Inode,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Result<()> {
        const ZERO_RANGE_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH_HOLE_KEEP: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let how = match mode {
            0 => Allocation::Reserve,
            libc::FALLOC_FL_KEEP_SIZE => Allocation::ReserveKeepSize,
            PUNCH_HOLE_KEEP => Allocation::PunchHole,
            libc::FALLOC_FL_ZERO_RANGE => Allocation::ZeroRange,
            ZERO_RANGE_KEEP => Allocation::ZeroRangeKeepSize,
            _ => return Err(Status::NOTSUPP.into()),
        };
        inode.note_write();
        let wcc = self.vfs.allocate(caller, &inode.handle, offset, length, how).await?;
        inode.note_own(&wcc);
        Ok(())
    }
}
