//! LOOKUP, ACCESS, READLINK, REMOVE, RMDIR, RENAME and LINK.

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;
use std::sync::Arc;

use bytes::Bytes;
use gridvfs_vfs::{
    Access, AccessGranted, Caller, Entry, FileHandle, FileKind, Linked, Result, Status, Wcc,
    is_dots,
};

use super::LocalDir;
use super::key::Id;
use super::node::Node;
use super::sys::{self, Errno, SysResult};
use super::sys_names;

/// Checks a name that is to be looked up.
pub(super) fn name(name: &[u8]) -> Result<CString> {
    if name.is_empty() || name.contains(&b'/') {
        return Err(Status::INVAL.into());
    }
    Ok(sys::c_string(name)?)
}

/// Checks a name that is to be made: `.` and `..` are always there.
pub(super) fn new_name(new: &[u8]) -> Result<CString> {
    if is_dots(new) {
        return Err(Status::EXIST.into());
    }
    name(new)
}

impl LocalDir {
    pub(super) fn do_lookup(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        wanted: &[u8],
    ) -> Result<Entry> {
        let dir = self.resolve_dir(dir)?;
        let dir_stat = self.stat(&dir)?;
        let wanted = name(wanted)?;
        let found = {
            let _acting = self.privilege.assume(caller)?;
            match wanted.to_bytes() {
                b"." => dir.clone(),
                b".." => self.parent(&dir)?,
                _ => self.pin_child(&dir, &wanted)?,
            }
        };
        // Removed since it was opened, and then not to be kept either.
        let stat = self.stat(&found).map_err(|_| Status::NOENT)?;
        Ok(Entry {
            handle: found.key.encode(),
            attr: Some(self.attr_of(&found, &stat)),
            dir_attr: Some(self.attr_of(&dir, &dir_stat)),
        })
    }

    /// The directory above: the root's is itself, and no other way leads above the root.
    fn parent(&self, dir: &Arc<Node>) -> Result<Arc<Node>> {
        if dir.key == self.root.key {
            return Ok(dir.clone());
        }
        let parent = self.nodes.with_room(|| sys::pin_parent(dir.path.as_fd()))?;
        if !self.is_inside(parent.as_fd())? {
            return Err(Status::STALE.into());
        }
        Ok(self.pin(parent, None)?)
    }

    pub(super) fn do_access(
        &self,
        caller: &Caller,
        file: &FileHandle,
        wanted: Access,
    ) -> Result<AccessGranted> {
        let node = self.resolve(file)?;
        let stat = self.stat(&node)?;
        let is_dir = node.kind == FileKind::Directory;
        let write = Access::MODIFY | Access::EXTEND | if is_dir { Access::DELETE } else { 0 };
        let execute = if is_dir { Access::LOOKUP } else { Access::EXECUTE };
        let mut granted = 0;
        {
            let _acting = self.privilege.assume(caller)?;
            for (bits, mode) in
                [(Access::READ, libc::R_OK), (write, libc::W_OK), (execute, libc::X_OK)]
            {
                if mode == libc::W_OK && self.read_only {
                    continue;
                }
                if wanted.0 & bits != 0 && self.may(&node, &stat, caller, mode).is_ok() {
                    granted |= wanted.0 & bits;
                }
            }
        }
        Ok(AccessGranted { granted: Access(granted), attr: Some(self.attr_of(&node, &stat)) })
    }

    /// Whether the identity in force, which is the caller's, may do `mode`.
    pub(super) fn may(
        &self,
        node: &Node,
        stat: &libc::stat,
        caller: &Caller,
        mode: i32,
    ) -> SysResult<()> {
        match sys::may(node.path.as_fd(), mode) {
            Err(Errno(libc::ENOSYS)) if !self.privilege.acts_as_callers() => {
                sys::process_may(node.path.as_fd(), mode)
            }
            Err(Errno(libc::ENOSYS)) => by_mode_bits(stat, caller, mode),
            result => result,
        }
    }

    pub(super) fn do_readlink(&self, file: &FileHandle) -> Result<Bytes> {
        let node = self.resolve(file)?;
        self.stat(&node)?;
        if node.kind != FileKind::Symlink {
            return Err(Status::INVAL.into());
        }
        Ok(Bytes::from(sys::read_link(node.path.as_fd())?))
    }

    pub(super) fn do_remove(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        victim: &[u8],
        directory: bool,
    ) -> Result<Wcc> {
        self.check_writable()?;
        let dir = self.resolve_dir(dir)?;
        let before = self.stat(&dir)?;
        let victim = match (victim, directory) {
            (b"." | b"..", false) => return Err(Status::ISDIR.into()),
            (b".", true) => return Err(Status::INVAL.into()),
            (b"..", true) => return Err(Status::NOTEMPTY.into()),
            (victim, _) => name(victim)?,
        };
        {
            let _acting = self.privilege.assume(caller)?;
            let pinned = self.nodes.with_room(|| sys::pin_child(dir.path.as_fd(), &victim));
            sys_names::unlink(dir.path.as_fd(), &victim, directory)?;
            if let Ok(pinned) = pinned {
                self.name_is_gone(&pinned, &dir, &victim);
            }
        }
        Ok(self.wcc(&dir, &before))
    }

    /// Forgets a name, and with the last one the file.
    fn name_is_gone(&self, pinned: &impl AsFd, dir: &Node, name: &CStr) {
        let Ok(stat) = sys::fstat(pinned.as_fd()) else { return };
        let Ok(id) = self.devices.id(pinned.as_fd(), &stat) else { return };
        self.watches.left((&id, pinned.as_fd()), dir.key.id, name.to_bytes(), None);
        if stat.st_nlink == 0 {
            self.nodes.remove(&id);
            self.table.remove(&id);
            self.streams.drop_where(|key, _| key.dir == id);
        } else {
            self.table.drop_location(&id, &dir.key.id, name.to_bytes());
        }
    }

    pub(super) fn do_rename(
        &self,
        caller: &Caller,
        from_dir: &FileHandle,
        from_name: &[u8],
        to_dir: &FileHandle,
        to_name: &[u8],
        no_replace: bool,
    ) -> Result<(Wcc, Wcc)> {
        self.check_writable()?;
        let from_dir = self.resolve_dir(from_dir)?;
        let to_dir = self.resolve_dir(to_dir)?;
        let from_before = self.stat(&from_dir)?;
        let to_before = self.stat(&to_dir)?;
        if is_dots(from_name) || is_dots(to_name) {
            return Err(Status::INVAL.into());
        }
        let (from_name, to_name) = (name(from_name)?, name(to_name)?);
        {
            let _acting = self.privilege.assume(caller)?;
            let (from, to) = (from_dir.path.as_fd(), to_dir.path.as_fd());
            let moved = self.nodes.with_room(|| sys::pin_child(from, &from_name));
            let replaced = self.nodes.with_room(|| sys::pin_child(to, &to_name));
            let result = sys_names::rename((from, &from_name), (to, &to_name), no_replace);
            match result {
                Err(Errno(libc::EINVAL | libc::ENOSYS)) if no_replace => {
                    let moved = moved.as_ref().map_err(|errno| *errno)?;
                    rename_in_steps(moved, (from, &from_name), (to, &to_name))?;
                }
                result => result?,
            }
            if let Ok(moved) = &moved {
                self.was_renamed(
                    moved,
                    replaced.as_ref().ok(),
                    (&from_dir, &from_name),
                    (&to_dir, &to_name),
                );
            }
        }
        Ok((self.wcc(&from_dir, &from_before), self.wcc(&to_dir, &to_before)))
    }

    fn was_renamed(
        &self,
        moved: &impl AsFd,
        replaced: Option<&impl AsFd>,
        from: (&Node, &CStr),
        to: (&Node, &CStr),
    ) {
        let id_of = |fd: &dyn Fn() -> SysResult<Id>| fd().ok();
        let moved_id = id_of(&|| self.devices.id(moved.as_fd(), &sys::fstat(moved.as_fd())?));
        let replaced_id = replaced
            .and_then(|fd| id_of(&|| self.devices.id(fd.as_fd(), &sys::fstat(fd.as_fd())?)));
        let Some(moved_id) = moved_id else { return };
        if replaced_id == Some(moved_id) {
            // Two names of one file: rename(2) then does nothing.
            return;
        }
        if let Some(replaced) = replaced {
            self.name_is_gone(replaced, to.0, to.1);
        }
        self.table.note(moved_id, to.0.key.id, to.1.to_bytes());
        self.table.drop_location(&moved_id, &from.0.key.id, from.1.to_bytes());
        let to = (to.0.key.id, to.1.to_bytes());
        let file = (&moved_id, moved.as_fd());
        self.watches.left(file, from.0.key.id, from.1.to_bytes(), Some(to));
    }

    pub(super) fn do_link(
        &self,
        caller: &Caller,
        file: &FileHandle,
        dir: &FileHandle,
        link: &[u8],
    ) -> Result<Linked> {
        self.check_writable()?;
        let node = self.resolve(file)?;
        let dir = self.resolve_dir(dir)?;
        let before = self.stat(&dir)?;
        self.stat(&node)?;
        let link = new_name(link)?;
        {
            let _acting = self.privilege.assume(caller)?;
            sys_names::link(node.path.as_fd(), dir.path.as_fd(), &link)?;
        }
        self.table.note(node.key.id, dir.key.id, link.to_bytes());
        // It may now be changed by way of either name.
        let attr = self.stat(&node).ok().map(|stat| self.attr_of(&node, &stat));
        Ok(Linked { attr, dir_wcc: self.wcc(&dir, &before) })
    }
}

/// What the mode bits alone say; for kernels that cannot be asked on behalf of another user.
fn by_mode_bits(stat: &libc::stat, caller: &Caller, mode: i32) -> SysResult<()> {
    let in_group = caller.gid == stat.st_gid || caller.groups.contains(&stat.st_gid);
    let shift = match () {
        () if caller.uid == stat.st_uid => 6,
        () if in_group => 3,
        () => 0,
    };
    let allowed = if caller.uid == 0 {
        mode != libc::X_OK
            || stat.st_mode & 0o111 != 0
            || stat.st_mode & libc::S_IFMT == libc::S_IFDIR
    } else {
        (stat.st_mode >> shift) & mode as u32 == mode as u32
    };
    if allowed { Ok(()) } else { Err(Errno(libc::EACCES)) }
}

/// RENAME_NOREPLACE where the file system has none: LINK and REMOVE, which is as atomic for the
/// target; for a directory, which cannot be linked, a look and a rename.
fn rename_in_steps(
    moved: &impl AsFd,
    from: (std::os::fd::BorrowedFd<'_>, &CStr),
    to: (std::os::fd::BorrowedFd<'_>, &CStr),
) -> SysResult<()> {
    let stat = sys::fstat(moved.as_fd())?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
        sys_names::link(moved.as_fd(), to.0, to.1)?;
        return sys_names::unlink(from.0, from.1, false);
    }
    match sys::pin_child(to.0, to.1) {
        Ok(_) => Err(Errno(libc::EEXIST)),
        Err(Errno(libc::ENOENT)) => sys_names::rename(from, to, false),
        Err(errno) => Err(errno),
    }
}
