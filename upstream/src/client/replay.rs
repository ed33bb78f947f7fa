//! Errors that mean success.
//!
//! When a connection is lost, so are replies; the calls are sent again. Our own proxies remember
//! their replies and repeat them. A plain NFS server remembers them for a connection at best, and
//! executes the call once more: MKDIR then finds the directory that it has made itself. Errors of
//! such calls ([`crate::Reply::retransmitted`]), and only of such, are looked into:
//!
//! | call | error | is success if |
//! | --- | --- | --- |
//! | CREATE GUARDED | EXIST | the name is a regular file, with one link, of the size, mode, owner and times asked for |
//! | CREATE EXCLUSIVE | — | the server itself tells by the verifier |
//! | MKDIR | EXIST | the name is a directory without subdirectories, of the mode and owner asked for |
//! | SYMLINK | EXIST | the name is a symbolic link to the same target |
//! | MKNOD | EXIST | the name is a node of the same kind, device, mode and owner |
//! | LINK | EXIST | the name is the same file |
//! | REMOVE, RMDIR | NOENT | always |
//! | RENAME | NOENT | the old name is gone and the new one is there |
//! | RENAME_NOREPLACE | EXIST | the old name is gone and the new one is there |
//! | SETATTR with a guard | NOT_SYNC | the attributes are as asked for |
//!
//! All others may be executed twice without harm. What remains: an object that somebody else made
//! in the same instant and that looks the same counts as ours (a CREATE that must not has a time
//! asked for that nobody else has), and a name that somebody else made
//! anew between both executions is removed with the old one. And a plain server that hung may
//! execute what it received on a connection that was given up after it has answered the repetition,
//! in whatever order: nothing in NFSv3 can recall it. Our own proxies drop the second of two equal
//! calls. Linux's own client is in the same position.
//! A question that fails, for whatever reason, leaves the error as it was.

use std::sync::atomic::Ordering;

use gridvfs_vfs::nfs3::{DirOpArgs, LinkArgs, RenameArgs};
use gridvfs_vfs::{
    Attr, Caller, Created, DeviceNumber, Entry, Error, FileHandle, FileKind, Linked, NodeKind,
    SetAttr, SetTime, Status, Time, Vfs, Wcc,
};

use super::NfsClient;

/// The permission bits that are compared: servers set set-id bits by the directory's.
const MODE_BITS: u32 = 0o777;

fn owner_and_mode_match(attr: &Attr, wanted: &SetAttr) -> bool {
    wanted.mode.is_none_or(|mode| (mode ^ attr.mode) & MODE_BITS == 0)
        && wanted.uid.is_none_or(|uid| uid == attr.uid)
        && wanted.gid.is_none_or(|gid| gid == attr.gid)
}

fn time_matches(wanted: SetTime, time: Time) -> bool {
    match wanted {
        SetTime::To(wanted) => wanted == time,
        SetTime::Keep | SetTime::ServerNow => true,
    }
}

impl NfsClient {
    fn recognised(&self) {
        self.counters().replays_recognised.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns what is at a name now, with attributes.
    async fn present(&self, caller: &Caller, at: &DirOpArgs) -> Option<(Entry, Attr)> {
        let entry = self.find(caller, &at.dir, &at.name.0).await.ok()?;
        let attr = match entry.attr {
            Some(attr) => attr,
            None => self.getattr(caller, &entry.handle).await.ok()?,
        };
        Some((entry, attr))
    }

    fn created(&self, entry: &Entry, attr: Attr) -> Created {
        self.recognised();
        Created {
            handle: Some(entry.handle),
            attr: Some(attr),
            dir_wcc: Wcc { before: None, after: entry.dir_attr },
        }
    }

    pub(super) async fn replayed_create(
        &self,
        caller: &Caller,
        at: &DirOpArgs,
        wanted: &SetAttr,
    ) -> Option<Created> {
        let (entry, attr) = self.present(caller, at).await?;
        let same = attr.kind == FileKind::Regular
            && attr.links == 1
            && attr.size == wanted.size.unwrap_or(0)
            && owner_and_mode_match(&attr, wanted)
            && time_matches(wanted.atime, attr.atime)
            && time_matches(wanted.mtime, attr.mtime);
        same.then(|| self.created(&entry, attr))
    }

    pub(super) async fn replayed_mkdir(
        &self,
        caller: &Caller,
        at: &DirOpArgs,
        wanted: &SetAttr,
    ) -> Option<Created> {
        let (entry, attr) = self.present(caller, at).await?;
        let same = attr.kind == FileKind::Directory
            && attr.links <= 2
            && owner_and_mode_match(&attr, wanted);
        same.then(|| self.created(&entry, attr))
    }

    pub(super) async fn replayed_symlink(
        &self,
        caller: &Caller,
        at: &DirOpArgs,
        target: &[u8],
    ) -> Option<Created> {
        let (entry, attr) = self.present(caller, at).await?;
        if attr.kind != FileKind::Symlink {
            return None;
        }
        let present = self.readlink(caller, &entry.handle).await.ok()?;
        (present == target).then(|| self.created(&entry, attr))
    }

    pub(super) async fn replayed_mknod(
        &self,
        caller: &Caller,
        at: &DirOpArgs,
        kind: NodeKind,
        wanted: &SetAttr,
    ) -> Option<Created> {
        let (entry, attr) = self.present(caller, at).await?;
        let none = DeviceNumber::default();
        let (kind, device) = match kind {
            NodeKind::Fifo => (FileKind::Fifo, none),
            NodeKind::Socket => (FileKind::Socket, none),
            NodeKind::Block(device) => (FileKind::Block, device),
            NodeKind::Character(device) => (FileKind::Character, device),
        };
        let same = attr.kind == kind
            && (device == none || attr.device == device)
            && owner_and_mode_match(&attr, wanted);
        same.then(|| self.created(&entry, attr))
    }

    pub(super) async fn replayed_link(
        &self,
        caller: &Caller,
        arguments: &LinkArgs,
    ) -> Option<Linked> {
        let (entry, attr) = self.present(caller, &arguments.at).await?;
        let file = self.getattr(caller, &arguments.file).await.ok()?;
        if (file.fsid, file.fileid) != (attr.fsid, attr.fileid) {
            return None;
        }
        self.recognised();
        Some(Linked { attr: Some(attr), dir_wcc: Wcc { before: None, after: entry.dir_attr } })
    }

    pub(super) fn replayed_remove(&self) -> Wcc {
        self.recognised();
        Wcc::default()
    }

    /// Says whether a rename has taken place.
    pub(super) async fn replayed_rename(
        &self,
        caller: &Caller,
        arguments: &RenameArgs,
    ) -> Option<(Wcc, Wcc)> {
        let RenameArgs { from, to } = arguments;
        let gone = self.find(caller, &from.dir, &from.name.0).await;
        if gone != Err(Error::Status(Status::NOENT)) {
            return None;
        }
        let (entry, _) = self.present(caller, to).await?;
        self.recognised();
        Some((Wcc::default(), Wcc { before: None, after: entry.dir_attr }))
    }

    pub(super) async fn replayed_setattr(
        &self,
        caller: &Caller,
        file: &FileHandle,
        changes: &SetAttr,
    ) -> Option<Wcc> {
        let attr = self.getattr(caller, file).await.ok()?;
        let same = changes.mode.is_none_or(|mode| mode & 0o7777 == attr.mode & 0o7777)
            && changes.uid.is_none_or(|uid| uid == attr.uid)
            && changes.gid.is_none_or(|gid| gid == attr.gid)
            && changes.size.is_none_or(|size| size == attr.size)
            && time_matches(changes.atime, attr.atime)
            && time_matches(changes.mtime, attr.mtime);
        same.then(|| {
            self.recognised();
            Wcc { before: None, after: Some(attr) }
        })
    }
}
