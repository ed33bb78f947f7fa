//! Calls on names: look-up, creation, removal, renaming, and files that are removed while open.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use fuser::FileAttr;
use gridvfs_vfs::{
    Caller, CreateHow, Created, Error, FileHandle, FileKind, NodeKind, Result, SetAttr, SetTime,
    Status, Time, Verifier, is_dots,
};

use super::{Core, Found, Opened};
use crate::inodes::{Hidden, Inode};
use crate::passthrough::Wish;
use crate::silly::{is_silly, silly_name};

/// How often the removal of a hidden file is tried while the server is busy or away.
const REMOVALS_MAX: u32 = 10;

impl Core {
    pub async fn lookup(&self, caller: &Caller, parent: u64, name: &[u8]) -> Result<Found> {
        self.check_name(name)?;
        let dir = self.dir(parent)?;
        let entry = self.vfs.lookup(caller, &dir, name).await?;
        let attr = match entry.attr {
            Some(attr) => attr,
            None => self.vfs.getattr(caller, &entry.handle).await?,
        };
        Ok(self.found(entry.handle, &attr))
    }

    /// Completes what a creation answered: servers may leave out handle and attributes.
    async fn created(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        created: Created,
    ) -> Result<Found> {
        let (handle, attr) = match created {
            Created { handle: Some(handle), attr, .. } => (handle, attr),
            _ => {
                let entry = self.vfs.lookup(caller, dir, name).await?;
                (entry.handle, entry.attr)
            }
        };
        let attr = match attr {
            Some(attr) => attr,
            None => self.vfs.getattr(caller, &handle).await?,
        };
        Ok(self.found(handle, &attr))
    }

    pub async fn create(
        &self,
        caller: &Caller,
        parent: u64,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> Result<(Opened, FileAttr)> {
        self.check_name(name)?;
        let dir = self.dir(parent)?;
        let mode = mode & 0o7777;
        let found = if flags & libc::O_EXCL != 0 {
            let attr = SetAttr { mode: Some(mode), ..SetAttr::default() };
            self.create_new(caller, &dir, name, attr).await?
        } else {
            let size = (flags & libc::O_TRUNC != 0).then_some(0);
            let attr = SetAttr { mode: Some(mode), size, ..SetAttr::default() };
            let how = CreateHow::Unchecked(attr);
            let created = self.vfs.create(caller, &dir, name, &how).await?;
            self.created(caller, &dir, name, created).await?
        };
        let (number, file) = self.add_file(found.inode.clone(), caller, flags);
        let keep = flags & libc::O_TRUNC == 0;
        Ok((Opened { number, file, keep, wish: Wish::default() }, found.attr))
    }

    /// Creates a file that must not be there yet: it may be somebody's lock.
    ///
    /// A CREATE whose answer is lost is sent again and finds its own file. RFC 1813 has EXCLUSIVE
    /// for it, whose verifier tells the file from others, and which takes a SETATTR for the mode.
    /// Where the server keeps times to the nanosecond, GUARDED does the same in one call: it sets
    /// the access time, to one that nobody else has.
    async fn create_new(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        attr: SetAttr,
    ) -> Result<Found> {
        let random: Verifier = crate::silly::random();
        if self.keeps_nanoseconds(caller).await {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let nanoseconds = (u64::from_ne_bytes(random) % 1_000_000_000) as u32;
            let mark = Time { seconds: since.as_secs() as i64, nanoseconds };
            let how = CreateHow::Guarded(SetAttr { atime: SetTime::To(mark), ..attr });
            let created = self.vfs.create(caller, dir, name, &how).await?;
            return self.created(caller, dir, name, created).await;
        }
        let how = CreateHow::Exclusive(random);
        let created = self.vfs.create(caller, dir, name, &how).await?;
        let found = self.created(caller, dir, name, created).await?;
        // The server keeps the verifier in the times; mode and times are set now.
        let (atime, mtime) = (SetTime::ServerNow, SetTime::ServerNow);
        let attr = self.setattr(caller, &found.inode, &SetAttr { atime, mtime, ..attr }).await?;
        Ok(Found { attr, ..found })
    }

    async fn keeps_nanoseconds(&self, caller: &Caller) -> bool {
        if let Some(known) = self.keeps_nanoseconds.get() {
            return *known;
        }
        match self.vfs.fsinfo(caller, &self.vfs.root()).await {
            Ok(info) => *self.keeps_nanoseconds.get_or_init(|| info.time_delta_ns == 1),
            Err(_) => false,
        }
    }

    pub async fn mknod(
        &self,
        caller: &Caller,
        parent: u64,
        name: &[u8],
        mode: u32,
        device: u32,
    ) -> Result<Found> {
        self.check_name(name)?;
        let dir = self.dir(parent)?;
        let attr = SetAttr { mode: Some(mode & 0o7777), ..SetAttr::default() };
        let device = super::decoded_device(device);
        let kind = match mode & libc::S_IFMT {
            libc::S_IFIFO => NodeKind::Fifo,
            libc::S_IFSOCK => NodeKind::Socket,
            libc::S_IFBLK => NodeKind::Block(device),
            libc::S_IFCHR => NodeKind::Character(device),
            libc::S_IFREG | 0 => {
                let how = CreateHow::Guarded(attr);
                let created = self.vfs.create(caller, &dir, name, &how).await?;
                return self.created(caller, &dir, name, created).await;
            }
            _ => return Err(Status::INVAL.into()),
        };
        let created = self.vfs.mknod(caller, &dir, name, kind, &attr).await?;
        self.created(caller, &dir, name, created).await
    }

    pub async fn mkdir(
        &self,
        caller: &Caller,
        parent: u64,
        name: &[u8],
        mode: u32,
    ) -> Result<Found> {
        self.check_name(name)?;
        let dir = self.dir(parent)?;
        let attr = SetAttr { mode: Some(mode & 0o7777), ..SetAttr::default() };
        let created = self.vfs.mkdir(caller, &dir, name, &attr).await?;
        self.created(caller, &dir, name, created).await
    }

    pub async fn symlink(
        &self,
        caller: &Caller,
        parent: u64,
        name: &[u8],
        target: &[u8],
    ) -> Result<Found> {
        self.check_name(name)?;
        let dir = self.dir(parent)?;
        let attr = SetAttr { mode: Some(0o777), ..SetAttr::default() };
        let created = self.vfs.symlink(caller, &dir, name, target, &attr).await?;
        self.created(caller, &dir, name, created).await
    }

    pub async fn link(
        &self,
        caller: &Caller,
        number: u64,
        parent: u64,
        name: &[u8],
    ) -> Result<Found> {
        self.check_name(name)?;
        let inode = self.inode(number)?;
        let dir = self.dir(parent)?;
        let linked = self.vfs.link(caller, &inode.handle, &dir, name).await?;
        let attr = match linked.attr {
            Some(attr) => attr,
            None => self.vfs.getattr(caller, &inode.handle).await?,
        };
        Ok(self.found(inode.handle, &attr))
    }

    pub async fn unlink(&self, caller: &Caller, parent: u64, name: &[u8]) -> Result<()> {
        self.check_name(name)?;
        let dir = self.dir(parent)?;
        if let Some(inode) = self.open_file_at(caller, &dir, name).await? {
            return self.hide_by_rename(caller, &inode, &dir, name).await;
        }
        self.vfs.remove(caller, &dir, name).await.map(drop)
    }

    /// Returns the inode of a name if it is open and not a directory. A look-up is only made while
    /// files are open at all.
    async fn open_file_at(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Option<Arc<Inode>>> {
        if self.files.read().is_empty() {
            return Ok(None);
        }
        let entry = match self.vfs.lookup(caller, dir, name).await {
            Ok(entry) => entry,
            Err(Error::Status(Status::NOENT)) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Other names keep the file.
        let others = entry.attr.is_some_and(|attr| attr.links > 1);
        let inode = self.inodes.find(&entry.handle).filter(|inode| inode.is_open());
        Ok(inode.filter(|inode| inode.kind == FileKind::Regular && !inode.is_hidden() && !others))
    }

    fn new_silly_name(&self, inode: &Inode) -> Vec<u8> {
        silly_name(inode.id, self.silly_number.fetch_add(1, Ordering::Relaxed))
    }

    fn log_hidden(&self, hidden: &Hidden) {
        if let Some(log) = &self.silly_log {
            log.record(hidden);
        }
    }

    async fn hide_by_rename(
        &self,
        caller: &Caller,
        inode: &Arc<Inode>,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<()> {
        let hidden = Hidden { dir: *dir, name: self.new_silly_name(inode) };
        self.log_hidden(&hidden);
        self.vfs.rename(caller, dir, name, dir, &hidden.name, false).await?;
        self.keep_hidden(inode, hidden).await;
        Ok(())
    }

    /// Notes where a file is hidden. It may have been closed meanwhile.
    async fn keep_hidden(&self, inode: &Arc<Inode>, hidden: Hidden) {
        if let Some(spare) = inode.hide(hidden) {
            self.remove_hidden(&spare).await;
        } else if !inode.is_open()
            && let Some(hidden) = inode.take_hidden()
        {
            self.remove_hidden(&hidden).await;
        }
    }

    /// Removes a hidden file for good.
    pub async fn remove_hidden(&self, hidden: &Hidden) {
        let own = Self::own_caller();
        for attempt in 0..REMOVALS_MAX {
            match self.vfs.remove(&own, &hidden.dir, &hidden.name).await {
                Ok(_) | Err(Error::Status(Status::NOENT | Status::STALE)) => {
                    if let Some(log) = &self.silly_log {
                        log.erase(hidden);
                    }
                    return;
                }
                Err(error) => {
                    log::debug!("cannot remove a hidden file yet: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(100 << attempt)).await;
                }
            }
        }
        let name = String::from_utf8_lossy(&hidden.name);
        log::warn!("the hidden file {name} could not be removed; the next mount tries again");
    }

    /// Removes all hidden files: the session ends, and nobody has them open any more.
    pub async fn remove_all_hidden(&self) {
        for inode in self.inodes.hidden_in(None) {
            if let Some(hidden) = inode.take_hidden() {
                self.vfs.discard(&inode.handle);
                self.remove_hidden(&hidden).await;
            }
        }
        if let Some(log) = &self.silly_log {
            log.finish();
        }
    }

    /// Waits for the removals of hidden files that are under way in a directory. Returns whether
    /// there were any.
    async fn wait_for_removals(&self, dir: &FileHandle) -> bool {
        let mut any = false;
        while let Some(mut removal) = self.removal_in(dir) {
            any = true;
            // An error says that the last of them is done.
            while removal.changed().await.is_ok() {}
        }
        any
    }

    pub async fn rmdir(&self, caller: &Caller, parent: u64, name: &[u8]) -> Result<()> {
        self.check_name(name)?;
        let dir = self.dir(parent)?;
        match self.vfs.rmdir(caller, &dir, name).await {
            Err(error) if error.status() == Status::NOTEMPTY => {
                let entry = self.vfs.lookup(caller, &dir, name).await?;
                // In this order: what is closed meanwhile is on its way to be removed.
                let moved = self.move_hidden_away(caller, &entry.handle, &dir).await?;
                if !self.wait_for_removals(&entry.handle).await && !moved {
                    return Err(error);
                }
                self.vfs.rmdir(caller, &dir, name).await.map(drop)
            }
            result => result.map(drop),
        }
    }

    /// Moves hidden files from a directory that is to be removed to the one above, if there is
    /// nothing else in it.
    async fn move_hidden_away(
        &self,
        caller: &Caller,
        from: &FileHandle,
        to: &FileHandle,
    ) -> Result<bool> {
        let inodes = self.inodes.hidden_in(Some(from));
        if inodes.is_empty() {
            return Ok(false);
        }
        let page = self.vfs.readdir(caller, from, 0, Verifier::default(), 64 << 10, false).await?;
        let others = |name: &[u8]| !is_dots(name) && !is_silly(name);
        if !page.eof || page.entries.iter().any(|entry| others(&entry.name)) {
            return Ok(false);
        }
        for inode in inodes {
            let Some(hidden) = inode.hidden() else { continue };
            let moved = Hidden { dir: *to, name: self.new_silly_name(&inode) };
            self.log_hidden(&moved);
            match self.vfs.rename(caller, from, &hidden.name, to, &moved.name, false).await {
                // It has just been closed, and removed.
                Err(Error::Status(Status::NOENT)) => continue,
                result => result?,
            };
            inode.hidden_moved(moved);
            if !inode.is_open()
                && let Some(hidden) = inode.take_hidden()
            {
                self.remove_hidden(&hidden).await;
            }
        }
        Ok(true)
    }

    pub async fn rename(
        &self,
        caller: &Caller,
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        no_replace: bool,
    ) -> Result<()> {
        self.check_name(from.1)?;
        self.check_name(to.1)?;
        let (from_dir, to_dir) = (self.dir(from.0)?, self.dir(to.0)?);
        let mut replaced = None;
        if !no_replace && let Some(inode) = self.open_file_at(caller, &to_dir, to.1).await? {
            let source = self.vfs.lookup(caller, &from_dir, from.1).await?;
            if source.handle != inode.handle {
                // A second name keeps the file; then the rename replaces the first in one step.
                let hidden = Hidden { dir: to_dir, name: self.new_silly_name(&inode) };
                self.log_hidden(&hidden);
                match self.vfs.link(caller, &inode.handle, &to_dir, &hidden.name).await {
                    Ok(_) => replaced = Some((inode, hidden)),
                    Err(_) => self.hide_by_rename(caller, &inode, &to_dir, to.1).await?,
                }
            }
        }
        let renamed = self.vfs.rename(caller, &from_dir, from.1, &to_dir, to.1, no_replace).await;
        if let Some((inode, hidden)) = replaced {
            match &renamed {
                Ok(_) => self.keep_hidden(&inode, hidden).await,
                Err(_) => self.remove_hidden(&hidden).await,
            }
        }
        renamed.map(drop)
    }
}
