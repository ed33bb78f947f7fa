//! Attributes: from the kernel's to RFC 1813's, and their changes.

use std::os::fd::AsFd;
use std::sync::Arc;

use gridvfs_vfs::{
    Attr, Caller, DeviceNumber, FileHandle, FileKind, Result, SetAttr, SetTime, Status, Time, Wcc,
    WccAttr,
};

use super::LocalDir;
use super::node::Node;
use super::sys;

/// The permission, set-id and sticky bits of a mode.
pub(super) const MODE_BITS: u32 = 0o7777;

pub(super) fn kind(mode: u32) -> FileKind {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileKind::Directory,
        libc::S_IFBLK => FileKind::Block,
        libc::S_IFCHR => FileKind::Character,
        libc::S_IFLNK => FileKind::Symlink,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFIFO => FileKind::Fifo,
        _ => FileKind::Regular,
    }
}

pub(super) fn attr(fsid: u64, stat: &libc::stat) -> Attr {
    let time = |seconds, nanoseconds| Time { seconds, nanoseconds: nanoseconds as u32 };
    Attr {
        kind: kind(stat.st_mode),
        mode: stat.st_mode & MODE_BITS,
        links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: stat.st_size as u64,
        used: (stat.st_blocks as u64).saturating_mul(512),
        device: DeviceNumber { major: libc::major(stat.st_rdev), minor: libc::minor(stat.st_rdev) },
        fsid,
        fileid: stat.st_ino,
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
    }
}

/// The part of the attributes that says what a file was like before an operation.
pub(super) fn wcc_attr(stat: &libc::stat) -> WccAttr {
    WccAttr::from(&attr(0, stat))
}

fn timespec(time: SetTime) -> libc::timespec {
    match time {
        SetTime::Keep => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        SetTime::ServerNow => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
        SetTime::To(time) => {
            libc::timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds) }
        }
    }
}

impl LocalDir {
    pub(super) fn attr_of(&self, node: &Node, stat: &libc::stat) -> Attr {
        attr(node.key.id.device, stat)
    }

    /// The file's attributes, where they can be had.
    pub(super) fn attr_now(&self, node: &Node) -> Option<Attr> {
        sys::fstat(node.path.as_fd()).ok().map(|stat| self.attr_of(node, &stat))
    }

    /// What a reply says of a file that was `before` and has been changed since.
    pub(super) fn wcc(&self, node: &Node, before: &libc::stat) -> Wcc {
        Wcc { before: Some(wcc_attr(before)), after: self.attr_now(node) }
    }

    pub(super) fn check_writable(&self) -> Result<()> {
        if self.read_only { Err(Status::ROFS.into()) } else { Ok(()) }
    }

    pub(super) fn do_setattr(
        &self,
        caller: &Caller,
        file: &FileHandle,
        changes: &SetAttr,
        guard: Option<Time>,
    ) -> Result<Wcc> {
        self.check_writable()?;
        let node = self.resolve(file)?;
        let _serial = node.change.lock();
        let before = self.stat(&node)?;
        if guard.is_some_and(|guard| guard != wcc_attr(&before).ctime) {
            return Err(Status::NOT_SYNC.into());
        }
        let mut changes = *changes;
        if self.exclusive.lock().pop(&node.key.id).is_some() {
            // The times hold the verifier of the CREATE that has now had its effect.
            for time in [&mut changes.atime, &mut changes.mtime] {
                if *time == SetTime::Keep {
                    *time = SetTime::ServerNow;
                }
            }
        }
        self.change(&node, &before, caller, &changes)?;
        Ok(self.wcc(&node, &before))
    }

    /// Changes attributes in the order in which no step undoes another: the size touches set-id
    /// bits and times, the owner touches set-id bits, the times come last.
    pub(super) fn change(
        &self,
        node: &Arc<Node>,
        stat: &libc::stat,
        caller: &Caller,
        changes: &SetAttr,
    ) -> Result<()> {
        // Numbers that mean something else to the kernel: "keep" and "now".
        let is_time =
            |time| !matches!(time, SetTime::To(time) if time.nanoseconds >= 1_000_000_000);
        if [changes.uid, changes.gid].contains(&Some(u32::MAX))
            || !is_time(changes.atime)
            || !is_time(changes.mtime)
        {
            return Err(Status::INVAL.into());
        }
        if let Some(size) = changes.size {
            let size = i64::try_from(size).map_err(|_| Status::FBIG)?;
            let fd = self.write_fd(node, stat, caller)?;
            let _acting = self.privilege.assume(caller)?;
            sys::ftruncate(fd.as_fd(), size)?;
        }
        let _acting = self.privilege.assume(caller)?;
        let path = node.path.as_fd();
        if changes.uid.is_some() || changes.gid.is_some() {
            let keep = u32::MAX;
            sys::chown(path, changes.uid.unwrap_or(keep), changes.gid.unwrap_or(keep))?;
        }
        if let Some(mode) = changes.mode {
            if node.kind == FileKind::Symlink {
                return Err(Status::NOTSUPP.into());
            }
            sys::chmod(path, mode & MODE_BITS)?;
        }
        if changes.atime != SetTime::Keep || changes.mtime != SetTime::Keep {
            sys::set_times(path, &[timespec(changes.atime), timespec(changes.mtime)])?;
        }
        Ok(())
    }

    /// Changes what the creating call itself could not set. As kernel servers do, an owner that
    /// only root can give is not an error, because clients send their own identity here.
    pub(super) fn change_new(
        &self,
        node: &Arc<Node>,
        stat: &libc::stat,
        caller: &Caller,
        attr: &SetAttr,
    ) -> Result<()> {
        let mut changes = SetAttr { mode: None, ..*attr };
        changes.size = changes.size.filter(|size| *size != stat.st_size as u64);
        changes.uid = changes.uid.filter(|uid| *uid != stat.st_uid);
        changes.gid = changes.gid.filter(|gid| *gid != stat.st_gid);
        if !self.privilege.is_unlimited(caller) {
            changes.uid = None;
            if let Some(gid) = changes.gid.take() {
                let _acting = self.privilege.assume(caller)?;
                match sys::chown(node.path.as_fd(), u32::MAX, gid) {
                    Ok(()) | Err(sys::Errno(libc::EPERM | libc::EINVAL)) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        if changes == SetAttr::default() {
            return Ok(());
        }
        self.change(node, stat, caller, &changes)
    }

    /// Sets the mode of a new file where the process's file creation mask, or a call that knows
    /// only some bits, has left another.
    pub(super) fn change_new_mode(
        &self,
        node: &Node,
        stat: &libc::stat,
        caller: &Caller,
        wanted: u32,
    ) -> Result<()> {
        let inherited = if node.kind == FileKind::Directory { stat.st_mode & 0o2000 } else { 0 };
        let wanted = (wanted & MODE_BITS) | inherited;
        let masked = wanted & self.umask != 0;
        let special = node.kind == FileKind::Directory && wanted & 0o7000 != stat.st_mode & 0o7000;
        if (masked || special) && wanted != stat.st_mode & MODE_BITS {
            let _acting = self.privilege.assume(caller)?;
            sys::chmod(node.path.as_fd(), wanted)?;
        }
        Ok(())
    }
}
