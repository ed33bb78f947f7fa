//! Calls on files: open, read, write, attributes, space.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use fuser::FileAttr;
use gridvfs_vfs::{
    Access, Allocation, Caller, Error, FileKind, Result, SeekWhence, SetAttr, SetTime, Stability,
    Status, Written,
};
use tokio::sync::oneshot;

use super::{Core, Invalidation, OpenFile, Opened};
use crate::inodes::{Inode, KernelTime};
use crate::passthrough::Wish;

/// How often a read may bring nothing in the middle of a file before it is an error.
const EMPTY_READS_MAX: u32 = 3;
/// The bit that the kernel sets in the flags of an open for execve(2) (FMODE_EXEC).
const OPEN_FOR_EXEC: i32 = 0x20;
/// Who may write, of all that a mode says.
const WRITE_BITS: u32 = 0o222;

impl Core {
    /// Opens.
    pub async fn open(
        self: &Arc<Self>,
        caller: &Caller,
        number: u64,
        flags: i32,
    ) -> Result<Opened> {
        let inode = self.inode(number)?;
        let writes_back = self.writes_back.load(Ordering::Relaxed);
        let wanted = match flags & libc::O_ACCMODE {
            libc::O_WRONLY => Access::MODIFY | Access::EXTEND,
            libc::O_RDWR => Access::READ | Access::MODIFY | Access::EXTEND,
            _ if flags & OPEN_FOR_EXEC != 0 => Access::EXECUTE,
            _ => Access::READ,
        };
        let changes = self.changes.load(Ordering::Acquire);
        // One round trip for permission and attributes, as close-to-open asks for.
        // A page that is written in part is read first by a kernel that writes pages back.
        let fills = if writes_back { Access::READ } else { 0 };
        let answer = self.vfs.access(caller, &inode.handle, Access(wanted | fills)).await?;
        if answer.granted.0 & wanted != wanted {
            return Err(Status::ACCES.into());
        }
        let direct = answer.granted.0 & fills != fills;
        let attr = match answer.attr {
            Some(attr) => attr,
            None => self.vfs.getattr(caller, &inode.handle).await?,
        };
        inode.note_seen(&attr, changes);
        let changed = inode.note_at_open(&attr);
        if changed {
            self.vfs.invalidate(&inode.handle);
            inode.ways.outdate();
        }
        let is_read_only = flags & libc::O_ACCMODE == libc::O_RDONLY;
        let passthrough = is_read_only
            && self.passthrough.load(Ordering::Relaxed)
            && (self.options.read_only || attr.mode & WRITE_BITS == 0);
        let wish = Wish { passthrough, direct: direct && !is_read_only };
        let (open, file) = self.add_file(inode.clone(), caller, flags);
        if flags & libc::O_TRUNC != 0 && flags & libc::O_ACCMODE != libc::O_RDONLY {
            let empty = SetAttr { size: Some(0), ..SetAttr::default() };
            self.note_change();
            let emptied = self.vfs.setattr(caller, &inode.handle, &empty, None).await;
            self.note_change();
            match emptied {
                Ok(wcc) => {
                    inode.note_own(&wcc);
                    inode.ways.resized(0);
                }
                Err(error) => {
                    self.release(open);
                    return Err(error);
                }
            }
        }
        Ok(Opened { number: open, file, keep: !changed, wish })
    }

    /// Reads for the kernel. Where the kernel writes pages back, it also reads by descriptors that
    /// were opened to write: to fill the rest of a page, which its writer never gets to see.
    pub async fn read_for(&self, file: &OpenFile, offset: u64, size: u32) -> Result<Bytes> {
        let result = self.read(&file.caller, &file.inode, offset, size).await;
        let refused = matches!(&result, Err(error) if error.status() == Status::ACCES);
        if refused && file.access == libc::O_WRONLY {
            return self.read(&Self::own_caller(), &file.inode, offset, size).await;
        }
        result
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
        let (mut at, kept) = (offset, inode.ways.is_backed().then(|| data.clone()));
        loop {
            let whole = data.len();
            let answer =
                self.vfs.write(caller, &inode.handle, at, data.clone(), Stability::Unstable);
            let Written { count, wcc, .. } = answer.await?;
            inode.note_own(&wcc);
            inode.note_write();
            let count = (count as usize).min(whole);
            if count == whole {
                if let Some(data) = kept {
                    inode.ways.written(offset, &data);
                }
                return Ok(());
            }
            if count == 0 {
                return Err(Error::Protocol("the server takes no data".into()));
            }
            data = data.slice(count..);
            at += count as u64;
        }
    }

    /// Gives the server the modification time that the kernel shows, where the kernel itself sees
    /// no need to: its data came later to the server than to it.
    async fn settle_time(&self, caller: &Caller, inode: &Inode) {
        if let Some(mtime) = inode.take_due_time() {
            let changes = SetAttr { mtime: SetTime::To(mtime), ..SetAttr::default() };
            self.note_change();
            if let Err(error) = self.setattr(caller, inode, &changes).await {
                log::debug!("a time of writing could not be set: {error}");
            }
            self.note_change();
        }
    }

    pub async fn flush(&self, caller: &Caller, inode: &Inode) -> Result<()> {
        self.settle_time(caller, inode).await;
        self.vfs.flush(caller, &inode.handle).await
    }

    pub async fn fsync(&self, caller: &Caller, inode: &Inode) -> Result<()> {
        self.settle_time(caller, inode).await;
        self.vfs.commit(caller, &inode.handle, 0, 0).await.map(drop)
    }

    /// SETATTR of a kernel that keeps size and times itself: the modification time may be of its
    /// own making, and need not be the caller's to set.
    pub async fn setattr_written_back(
        &self,
        callers: [&Caller; 2],
        inode: &Inode,
        changes: &SetAttr,
    ) -> Result<FileAttr> {
        let SetTime::To(mtime) = changes.mtime else {
            return self.setattr(callers[0], inode, changes).await;
        };
        let kernel_time = inode.judge_kernel_mtime(mtime);
        let rest = SetAttr { mtime: SetTime::Keep, ..*changes };
        if rest == SetAttr::default() && kernel_time == KernelTime::Repeated {
            return self.getattr(callers[0], inode).await;
        }
        let is_made_up = changes.size.is_some() || kernel_time == KernelTime::Written;
        let mut result = self.setattr(callers[0], inode, changes).await;
        let refused = |result: &Result<FileAttr>| matches!(result, Err(error) if matches!(error.status(), Status::PERM | Status::ACCES));
        if is_made_up && refused(&result) && callers[0] != callers[1] {
            result = self.setattr(callers[1], inode, changes).await;
        }
        // A writer that is not the owner may not set times; the server's own are as good.
        if is_made_up && refused(&result) {
            result = self.setattr(callers[0], inode, &rest).await;
        }
        if result.is_ok() {
            inode.note_kernel_mtime(mtime);
        }
        result
    }

    pub async fn setattr(
        &self,
        caller: &Caller,
        inode: &Inode,
        changes: &SetAttr,
    ) -> Result<FileAttr> {
        if *changes == SetAttr::default() {
            return self.getattr(caller, inode).await;
        }
        let wcc = self.vfs.setattr(caller, &inode.handle, changes, None).await?;
        if let Some(size) = changes.size {
            inode.ways.resized(size);
        }
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
        if self.writes_back.load(Ordering::Relaxed) && inode.has_writers() {
            // The kernel does not write its pages back for this question; it does to drop them.
            let (done, is_done) = oneshot::channel();
            let _ = self.invalidations.send(Invalidation::Pages(inode.id, Some(done)));
            let _ = is_done.await;
        }
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
        inode.ways.allocated(mode, offset, length);
        Ok(())
    }
}
