//! Kernel requests to calls of [`Core`], and their results to replies.
//!
//! Each call is polled once on the thread that received the request: what is at hand is answered
//! there, with no hand-off. What waits for the server goes on in the network runtime, and the
//! thread takes the next request.

mod kernel;
mod run;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileHandle as Fh, Filesystem, FopenFlags, Generation,
    INodeNo, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use gridvfs_vfs::{Caller, Error, FileKind, Result, SeekWhence, SetAttr, Status};

use crate::callers::Callers;
use crate::core::{Core, Found, file_type};
use crate::counters::{Counters, Operation};
use crate::entries::{absent, add_entry, visible};
use crate::hand;
use crate::inodes::Inode;
use crate::locality;
use crate::passthrough::Way;
use crate::pending::Pending;
use crate::replies::{attr_reply, data_reply, empty_reply, errno, open_flags, set_time};

/// The longest name that Linux file systems have, in bytes.
const NAME_MAX: u32 = 255;

/// The most entries that are taken from a directory's buffer for one reply: what 1 MiB can hold.
const ENTRIES_MAX: usize = 8192;
/// Block size in the answers of statfs(2), in bytes.
const STATFS_BLOCK_BYTES: u64 = 4096;

/// The file system that `fuser` drives.
pub(crate) struct Front {
    pub core: Arc<Core>,
    pub pending: Arc<Pending>,
    pub callers: Callers,
    pub counters: Arc<Counters>,
}

impl Front {
    fn caller(&self, request: &Request) -> Caller {
        self.callers.of(request.uid(), request.gid(), request.pid())
    }

    fn entry_reply(&self, reply: ReplyEntry) -> impl FnOnce(Result<Found>) + Send + 'static {
        self.entry_reply_or_absence(reply, Duration::ZERO)
    }
}

impl Filesystem for Front {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        kernel::ask(&self.core, config);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (core, caller) = (self.core.clone(), self.caller(request));
        let name = name.as_bytes().to_vec();
        let negative = core.options.negative_timeout;
        let finish = self.entry_reply_or_absence(reply, negative);
        self.run(
            request,
            Operation::Lookup,
            async move { core.lookup(&caller, parent.0, &name).await },
            finish,
        );
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        self.core.forget(ino.0, lookups);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _fh: Option<Fh>, reply: ReplyAttr) {
        let (core, caller) = (self.core.clone(), self.caller(request));
        let life = core.options.attr_timeout;
        self.run(
            request,
            Operation::Getattr,
            async move {
                let inode = core.inode(ino.0)?;
                core.getattr(&caller, &inode).await
            },
            attr_reply(reply, life),
        );
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        fh: Option<Fh>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (core, mut caller) = (self.core.clone(), self.caller(request));
        // ftruncate(2) goes by what the descriptor was opened for; truncate(2) by the mode, which
        // NFS servers overlook for the owner, for the sake of ftruncate.
        let opened = fh.and_then(|fh| core.file(fh.0).ok());
        let ask_first = size.is_some() && opened.is_none() && !core.options.default_permissions;
        let opener = opened.as_ref().map_or(Core::own_caller(), |file| file.caller.clone());
        if opened.is_some() && size.is_some() {
            caller = opener.clone();
        }
        // A change time is never a program's to set: it marks the times that the kernel keeps.
        let writes_back = ctime.is_some() && core.writes_back.load(Ordering::Relaxed);
        let changes = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: set_time(atime),
            mtime: set_time(mtime),
        };
        let life = core.options.attr_timeout;
        self.run_to_the_end(
            request,
            Operation::Setattr,
            async move {
                let inode = core.inode(ino.0)?;
                if ask_first {
                    core.access(&caller, &inode, libc::W_OK).await?;
                }
                if writes_back && inode.kind == FileKind::Regular {
                    return core.setattr_written_back([&caller, &opener], &inode, &changes).await;
                }
                core.setattr(&caller, &inode, &changes).await
            },
            attr_reply(reply, life),
        );
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let (core, caller) = (self.core.clone(), self.caller(request));
        self.run(
            request,
            Operation::Readlink,
            async move { core.vfs.readlink(&caller, &core.dir(ino.0)?).await },
            data_reply(reply),
        );
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (core, caller) = (self.core.clone(), self.caller(request));
        let name = name.as_bytes().to_vec();
        let call = async move { core.mknod(&caller, parent.0, &name, mode, rdev).await };
        self.run_to_the_end(request, Operation::Mknod, call, self.entry_reply(reply));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let (core, caller) = (self.core.clone(), self.caller(request));
        let name = name.as_bytes().to_vec();
        let call = async move { core.mkdir(&caller, parent.0, &name, mode).await };
        self.run_to_the_end(request, Operation::Mkdir, call, self.entry_reply(reply));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (core, caller) = (self.core.clone(), self.caller(request));
        let name = name.as_bytes().to_vec();
        let call = async move { core.unlink(&caller, parent.0, &name).await };
        self.run_to_the_end(request, Operation::Unlink, call, empty_reply(reply));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (core, caller) = (self.core.clone(), self.caller(request));
        let name = name.as_bytes().to_vec();
        let call = async move { core.rmdir(&caller, parent.0, &name).await };
        self.run_to_the_end(request, Operation::Rmdir, call, empty_reply(reply));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (core, caller) = (self.core.clone(), self.caller(request));
        let name = name.as_bytes().to_vec();
        let target = target.as_os_str().as_bytes().to_vec();
        let call = async move { core.symlink(&caller, parent.0, &name, &target).await };
        self.run_to_the_end(request, Operation::Symlink, call, self.entry_reply(reply));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let no_replace = flags == RenameFlags::RENAME_NOREPLACE;
        if !flags.is_empty() && !no_replace {
            return reply.error(Errno::EINVAL);
        }
        let (core, caller) = (self.core.clone(), self.caller(request));
        let (name, newname) = (name.as_bytes().to_vec(), newname.as_bytes().to_vec());
        let call = async move {
            core.rename(&caller, (parent.0, &name), (newparent.0, &newname), no_replace).await
        };
        self.run_to_the_end(request, Operation::Rename, call, empty_reply(reply));
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let (core, caller) = (self.core.clone(), self.caller(request));
        let name = newname.as_bytes().to_vec();
        let call = async move { core.link(&caller, ino.0, newparent.0, &name).await };
        self.run_to_the_end(request, Operation::Link, call, self.entry_reply(reply));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (core, caller) = (self.core.clone(), self.caller(request));
        let finisher = core.clone();
        self.run(
            request,
            Operation::Open,
            async move { core.open(&caller, ino.0, flags.0).await },
            move |result| match result {
                Ok(opened) => {
                    let number = Fh(opened.number);
                    let way = finisher.choose_way(&opened, |file| reply.open_backing(file));
                    let flags = open_flags(&way, &opened);
                    match way {
                        Way::Cached | Way::Direct => reply.opened(number, flags),
                        Way::Passthrough(id) | Way::Served(id) => {
                            reply.opened_passthrough(number, flags, &id);
                        }
                    }
                }
                Err(error) => reply.error(errno(&error)),
            },
        );
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: Fh,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let began = Instant::now();
        locality::arrived(request.pid(), size as usize);
        let find = || self.core.file(fh.0).ok();
        let mut reply = Some(reply);
        if size as usize <= hand::BUFFER_BYTES_MAX {
            hand::with(fh.0, size as usize, find, |file, out| {
                let handle = &file.inode.handle;
                let answer = self.core.vfs.read_now(&file.caller, handle, offset, out)?;
                self.counters.count(Operation::Read);
                match (answer, reply.take()?) {
                    (Ok(count), reply) => {
                        reply.data(&out[..count.min(size as usize)]);
                        file.inode.traffic.read(count);
                    }
                    (Err(error), reply) => reply.error(errno(&error)),
                }
                self.counters.took(Operation::Read, began);
                Some(())
            });
        }
        let Some(reply) = reply else { return };
        let core = self.core.clone();
        let call = async move {
            match core.file(fh.0) {
                Ok(file) => {
                    let data = core.read_for(&file, offset, size).await?;
                    file.inode.traffic.read(data.len());
                    Ok(data)
                }
                Err(_) => {
                    let inode = core.inode(ino.0)?;
                    core.read(&Core::own_caller(), &inode, offset, size).await
                }
            }
        };
        self.run(request, Operation::Read, call, data_reply(reply));
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: Fh,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let size = data.len() as u32;
        let began = Instant::now();
        locality::arrived(request.pid(), data.len());
        if write_flags.contains(WriteFlags::FUSE_WRITE_CACHE)
            && self.core.writes_back.load(Ordering::Relaxed)
            && let Ok(inode) = self.core.inode(ino.0)
        {
            inode.note_kernel_write();
        }
        let find = || self.core.file(fh.0).ok();
        let taken = hand::with(fh.0, 0, find, |file, _| {
            let handle = &file.inode.handle;
            // Before and after: what is asked of the server meanwhile may tell either.
            file.inode.note_write();
            self.core.note_change();
            let answer = self.core.vfs.write_now(&file.caller, handle, offset, data);
            self.core.note_change();
            let answer = answer?;
            file.inode.note_write();
            if answer.is_ok() {
                file.inode.ways.written(offset, data);
                file.inode.traffic.wrote(data.len());
            }
            Some(answer)
        });
        if let Some(answer) = taken.flatten() {
            self.counters.count(Operation::Write);
            match answer {
                Ok(()) => reply.written(size),
                Err(error) => reply.error(errno(&error)),
            }
            return self.counters.took(Operation::Write, began);
        }
        let core = self.core.clone();
        let data = Bytes::copy_from_slice(data);
        let call = async move {
            let (caller, inode) = core.opened(fh.0, ino.0)?;
            inode.traffic.wrote(data.len());
            core.write(&caller, &inode, offset, data).await
        };
        self.run_to_the_end(request, Operation::Write, call, move |result| match result {
            Ok(()) => reply.written(size),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn flush(&self, request: &Request, ino: INodeNo, fh: Fh, _owner: LockOwner, reply: ReplyEmpty) {
        let core = self.core.clone();
        let call = async move {
            let (caller, inode) = core.opened(fh.0, ino.0)?;
            core.flush(&caller, &inode).await
        };
        self.run(request, Operation::Flush, call, empty_reply(reply));
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: Fh,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.counters.count(Operation::Release);
        self.core.release(fh.0);
        reply.ok();
    }

    fn fsync(&self, request: &Request, ino: INodeNo, fh: Fh, _datasync: bool, reply: ReplyEmpty) {
        let core = self.core.clone();
        let call = async move {
            let (caller, inode) = core.opened(fh.0, ino.0)?;
            core.fsync(&caller, &inode).await
        };
        self.run(request, Operation::Fsync, call, empty_reply(reply));
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.core.unopened_directories.load(Ordering::Relaxed) {
            // The kernel does not ask again, and keeps listings for as long as it keeps the rest.
            self.counters.count(Operation::Opendir);
            return reply.error(Errno::ENOSYS);
        }
        let (core, caller) = (self.core.clone(), self.caller(request));
        let call = async move { core.open_directory(&caller, ino.0).await };
        self.run(request, Operation::Opendir, call, |result| match result {
            Ok((number, kept)) => {
                let flags = match kept {
                    None => FopenFlags::empty(),
                    Some(false) => FopenFlags::FOPEN_CACHE_DIR,
                    Some(true) => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
                };
                reply.opened(Fh(number), flags);
            }
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: Fh,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let directory = self.core.directory(&self.caller(request), ino.0, fh.0);
        let call = async move { directory?.entries(offset, ENTRIES_MAX).await };
        self.run(request, Operation::Readdir, call, move |result| match result {
            Ok(entries) => {
                for entry in visible(&entries) {
                    let kind = entry.attr.map_or(FileKind::Regular, |attr| attr.kind);
                    let (number, name) = (INodeNo(entry.fileid), OsStr::from_bytes(&entry.name));
                    if reply.add(number, entry.cookie, file_type(kind), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: Fh,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let core = self.core.clone();
        let life = core.options.attr_timeout.min(core.options.entry_timeout);
        let directory = core.directory(&self.caller(request), ino.0, fh.0);
        let call = async move { directory?.entries(offset, ENTRIES_MAX).await };
        self.run(request, Operation::Readdirplus, call, move |result| match result {
            Ok(entries) => {
                for entry in visible(&entries) {
                    if add_entry(&core, entry, &life, &mut reply) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: Fh,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.core.release_directory(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, request: &Request, _: INodeNo, _: Fh, _datasync: bool, reply: ReplyEmpty) {
        let core = self.core.clone();
        let call = async move { core.vfs.sync_names().await };
        self.run(request, Operation::Fsyncdir, call, empty_reply(reply));
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let (core, caller) = (self.core.clone(), self.caller(request));
        let call = async move {
            let handle = core.dir(ino.0).unwrap_or(core.vfs.root());
            let names = core.vfs.pathconf(&caller, &handle).await;
            // Some servers promise more than their file systems take; kernels' NFS clients
            // do not believe it either.
            let name_max = names.map_or(NAME_MAX, |conf| conf.name_max.clamp(1, NAME_MAX));
            Ok((core.vfs.fsstat(&caller, &handle).await?, name_max))
        };
        self.run(request, Operation::Statfs, call, move |result| match result {
            Ok((stat, name_max)) => reply.statfs(
                stat.total_bytes / STATFS_BLOCK_BYTES,
                stat.free_bytes / STATFS_BLOCK_BYTES,
                stat.available_bytes / STATFS_BLOCK_BYTES,
                stat.total_files,
                stat.available_files,
                STATFS_BLOCK_BYTES as u32,
                name_max,
                STATFS_BLOCK_BYTES as u32,
            ),
            Err(error) => reply.error(errno(&error)),
        });
    }

    // NFSv3 has no extended attributes. After ENOSYS the kernel answers EOPNOTSUPP by itself.
    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, request: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let (core, caller) = (self.core.clone(), self.caller(request));
        let call = async move {
            let inode = core.inode(ino.0)?;
            core.access(&caller, &inode, mask.bits()).await
        };
        self.run(request, Operation::Access, call, empty_reply(reply));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (core, caller) = (self.core.clone(), self.caller(request));
        let name = name.as_bytes().to_vec();
        let life = core.options.attr_timeout.min(core.options.entry_timeout);
        let finisher = core.clone();
        self.run_to_the_end(
            request,
            Operation::Create,
            async move { core.create(&caller, parent.0, &name, mode, flags).await },
            move |result| match result {
                Ok((opened, attr)) => {
                    let (number, zero) = (Fh(opened.number), Generation(0));
                    let way = finisher.choose_way(&opened, |file| reply.open_backing(file));
                    let flags = open_flags(&way, &opened);
                    match way {
                        Way::Cached | Way::Direct => {
                            reply.created(&life, &attr, zero, number, flags);
                        }
                        Way::Passthrough(id) | Way::Served(id) => {
                            reply.created_passthrough(&life, &attr, zero, number, flags, &id);
                        }
                    }
                }
                Err(error) => reply.error(errno(&error)),
            },
        );
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: Fh,
        _: fuser::IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: Fh,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let core = self.core.clone();
        let call = async move {
            let (caller, inode) = core.opened(fh.0, ino.0)?;
            core.allocate(&caller, &inode, offset, length, mode).await
        };
        self.run_to_the_end(request, Operation::Fallocate, call, empty_reply(reply));
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: Fh,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let whence = match whence {
            libc::SEEK_DATA => SeekWhence::Data,
            libc::SEEK_HOLE => SeekWhence::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let core = self.core.clone();
        let call = async move {
            let (caller, inode) = core.opened(fh.0, ino.0)?;
            core.seek(&caller, &inode, offset, whence).await
        };
        self.run(request, Operation::Lseek, call, move |result| match result {
            Ok(offset) => reply.offset(offset as i64),
            Err(error) => reply.error(errno(&error)),
        });
    }
}

impl Front {
    /// A name that is not there is itself an answer, with a life of its own.
    fn entry_reply_or_absence(
        &self,
        reply: ReplyEntry,
        life: Duration,
    ) -> impl FnOnce(Result<Found>) + Send + 'static {
        let core = self.core.clone();
        move |result| match result {
            Ok(Found { attr, .. }) => {
                let (attr_life, entry_life) =
                    (core.options.attr_timeout, core.options.entry_timeout);
                reply.entry_with_ttls(&attr_life, &entry_life, &attr, Generation(0));
            }
            Err(Error::Status(Status::NOENT)) if !life.is_zero() => {
                reply.entry(&life, &absent(), Generation(0));
            }
            Err(error) => reply.error(errno(&error)),
        }
    }
}

impl Core {
    /// Returns whom an open file's calls are made for, and the file. The kernel may write mapped
    /// pages back by any open, or by one that is just being closed.
    fn opened(&self, open: u64, number: u64) -> Result<(Caller, Arc<Inode>)> {
        match self.file(open) {
            Ok(file) => Ok((file.caller.clone(), file.inode.clone())),
            Err(_) => Ok((Self::own_caller(), self.inode(number)?)),
        }
    }
}
