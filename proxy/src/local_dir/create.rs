//! CREATE, MKDIR, SYMLINK and MKNOD.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::sync::Arc;

use gridvfs_vfs::{
    Caller, CreateHow, Created, FileHandle, FileKind, NodeKind, Result, SetAttr, SetTime, Status,
    Time, Verifier,
};

use super::LocalDir;
use super::attr::MODE_BITS;
use super::names::new_name;
use super::node::Node;
use super::sys::{self, Errno};
use super::sys_names;

/// Modes where the client says none.
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;
/// The mode of a file from an EXCLUSIVE create, until the SETATTR that follows it.
const EXCLUSIVE_MODE: u32 = 0o600;
/// How often an UNCHECKED create that lost a race against a removal is tried.
const CREATE_ATTEMPTS: usize = 8;

/// The times in which a file made by an EXCLUSIVE create keeps its verifier, so that a repeated
/// call is recognised even by a new process. 31 bits each, which every file system can store.
fn verifier_times(verifier: Verifier) -> [i64; 2] {
    let [a, b, c, d, e, f, g, h] = verifier;
    let seconds = |bytes| i64::from(u32::from_be_bytes(bytes) & 0x7fff_ffff);
    [seconds([a, b, c, d]), seconds([e, f, g, h])]
}

impl LocalDir {
    pub(super) fn do_create(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        how: &CreateHow,
    ) -> Result<Created> {
        for _ in 1..CREATE_ATTEMPTS {
            match (self.try_create(caller, dir, name, how), how) {
                // There when it was to be made, and gone when it was to be used.
                (Err(error), CreateHow::Unchecked(_)) if error.status() == Status::NOENT => {}
                (result, _) => return result,
            }
        }
        self.try_create(caller, dir, name, how)
    }

    fn try_create(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        how: &CreateHow,
    ) -> Result<Created> {
        self.check_writable()?;
        let dir = self.resolve_dir(dir)?;
        let before = self.stat(&dir)?;
        let name = new_name(name)?;
        let (attr, mode) = match how {
            CreateHow::Unchecked(attr) | CreateHow::Guarded(attr) => {
                (*attr, attr.mode.unwrap_or(FILE_MODE) & MODE_BITS)
            }
            CreateHow::Exclusive(_) => (SetAttr::default(), EXCLUSIVE_MODE),
        };
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_NOCTTY;
        let opened = {
            let _acting = self.privilege.assume(caller)?;
            self.nodes.with_room(|| sys::open_child(dir.path.as_fd(), &name, flags, mode))
        };
        let node = match (opened, how) {
            (Ok(opened), _) => {
                // The descriptor that made the file writes it, whatever its mode.
                let data = Arc::new(self.nodes.count(opened));
                let path = self.nodes.with_room(|| sys::repin(data.as_fd()))?;
                let node = self.pin(path, Some((dir.key.id, name.to_bytes())))?;
                self.keep_write_fd(&node, data, true);
                let stat = self.stat(&node)?;
                self.change_new_mode(&node, &stat, caller, mode)?;
                let attr = match how {
                    CreateHow::Exclusive(verifier) => {
                        self.exclusive.lock().put(node.key.id, ());
                        let [atime, mtime] = verifier_times(*verifier)
                            .map(|seconds| SetTime::To(Time { seconds, nanoseconds: 0 }));
                        SetAttr { atime, mtime, ..attr }
                    }
                    _ => attr,
                };
                self.change_new(&node, &stat, caller, &attr)?;
                node
            }
            (Err(Errno(libc::EEXIST)), CreateHow::Unchecked(attr)) => {
                self.use_existing(caller, &dir, &name, attr)?
            }
            (Err(Errno(libc::EEXIST)), CreateHow::Exclusive(verifier)) => {
                self.recognise(caller, &dir, &name, *verifier)?
            }
            (Err(errno), _) => return Err(errno.into()),
        };
        Ok(self.created(&node, &dir, &before))
    }

    fn created(&self, node: &Node, dir: &Node, before: &libc::stat) -> Created {
        Created {
            handle: Some(node.key.encode()),
            attr: self.attr_now(node),
            dir_wcc: self.wcc(dir, before),
        }
    }

    /// UNCHECKED with a file that is there: only its size is set.
    fn use_existing(
        &self,
        caller: &Caller,
        dir: &Node,
        name: &CStr,
        attr: &SetAttr,
    ) -> Result<Arc<Node>> {
        let node = {
            let _acting = self.privilege.assume(caller)?;
            self.pin_child(dir, name)?
        };
        if node.kind != FileKind::Regular {
            return Err(Status::EXIST.into());
        }
        if attr.size.is_some() {
            let stat = self.stat(&node)?;
            let size = SetAttr { size: attr.size, ..SetAttr::default() };
            self.change(&node, &stat, caller, &size)?;
        }
        Ok(node)
    }

    /// EXCLUSIVE with a file that is there: it is the one that this very call has made, or an
    /// error.
    fn recognise(
        &self,
        caller: &Caller,
        dir: &Node,
        name: &CStr,
        verifier: Verifier,
    ) -> Result<Arc<Node>> {
        let node = {
            let _acting = self.privilege.assume(caller)?;
            self.pin_child(dir, name)?
        };
        let stat = self.stat(&node)?;
        let same = node.kind == FileKind::Regular
            && stat.st_size == 0
            && [stat.st_atime, stat.st_mtime] == verifier_times(verifier)
            && [stat.st_atime_nsec, stat.st_mtime_nsec] == [0, 0];
        if same { Ok(node) } else { Err(Status::EXIST.into()) }
    }

    pub(super) fn do_mkdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        let mode = attr.mode.unwrap_or(DIRECTORY_MODE) & MODE_BITS;
        self.make(caller, dir, name, attr, Some(mode), |dir, name| {
            sys_names::mkdir(dir.path.as_fd(), name, mode & 0o1777)
        })
    }

    pub(super) fn do_symlink(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        target: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        let target = sys::c_string(target)?;
        self.make(caller, dir, name, attr, None, |dir, name| {
            sys_names::symlink(&target, dir.path.as_fd(), name)
        })
    }

    pub(super) fn do_mknod(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        kind: NodeKind,
        attr: &SetAttr,
    ) -> Result<Created> {
        let (format, device) = match kind {
            NodeKind::Fifo => (libc::S_IFIFO, 0),
            NodeKind::Socket => (libc::S_IFSOCK, 0),
            NodeKind::Block(number) => (libc::S_IFBLK, libc::makedev(number.major, number.minor)),
            NodeKind::Character(number) => {
                (libc::S_IFCHR, libc::makedev(number.major, number.minor))
            }
        };
        let mode = attr.mode.unwrap_or(FILE_MODE) & MODE_BITS;
        self.make(caller, dir, name, attr, Some(mode), |dir, name| {
            sys_names::mknod(dir.path.as_fd(), name, format | mode, device)
        })
    }

    fn make(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        attr: &SetAttr,
        mode: Option<u32>,
        make: impl FnOnce(&Node, &CStr) -> sys::SysResult<()>,
    ) -> Result<Created> {
        self.check_writable()?;
        let dir = self.resolve_dir(dir)?;
        let before = self.stat(&dir)?;
        let name = new_name(name)?;
        let node = {
            let _acting = self.privilege.assume(caller)?;
            make(&dir, &name)?;
            self.pin_child(&dir, &name)?
        };
        let stat = self.stat(&node)?;
        if let Some(mode) = mode {
            self.change_new_mode(&node, &stat, caller, mode)?;
        }
        // A size makes no sense for any of these.
        self.change_new(&node, &stat, caller, &SetAttr { size: None, ..*attr })?;
        Ok(self.created(&node, &dir, &before))
    }
}
