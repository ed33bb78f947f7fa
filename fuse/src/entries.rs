//! What the kernel is told of the entries of a listing, and of names that are not there.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use fuser::{FileAttr, Generation, INodeNo, ReplyDirectoryPlus};
use gridvfs_vfs::{Attr, DirEntry, FileKind, Time, is_dots};

use crate::core::{Core, Found, file_attr};
use crate::silly::is_silly;

/// A node id of 0 tells the kernel that there is no such name.
pub fn absent() -> FileAttr {
    file_attr(&blank(0), 0, 0)
}

/// Attributes that nobody takes for real: no file is so large.
fn blank(fileid: u64) -> Attr {
    Attr {
        kind: FileKind::Regular,
        mode: 0,
        links: 1,
        uid: 0,
        gid: 0,
        size: u64::MAX,
        used: 0,
        device: gridvfs_vfs::DeviceNumber::default(),
        fsid: 0,
        fileid,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
    }
}

pub fn visible(entries: &[DirEntry]) -> impl Iterator<Item = &DirEntry> {
    entries.iter().filter(|entry| !is_silly(&entry.name))
}

/// Adds an entry with what a look-up would tell. Returns whether the reply was full before it.
pub fn add_entry(
    core: &Core,
    entry: &DirEntry,
    life: &Duration,
    reply: &mut ReplyDirectoryPlus,
) -> bool {
    let name = OsStr::from_bytes(&entry.name);
    let dots = is_dots(&entry.name);
    match (entry.attr, entry.handle) {
        (Some(attr), Some(handle)) if !dots => {
            let Found { inode, attr } = core.found(handle, &attr);
            let full = reply.add(INodeNo(inode.id), entry.cookie, name, life, &attr, Generation(0));
            if full {
                core.forget(inode.id, 1);
            }
            full
        }
        (attr, _) => {
            // The kernel lists such an entry and, since no file is that large, forgets the look-up
            // that comes with it; `.` and `..` it never looks up.
            let attr = match attr {
                Some(attr) if dots => file_attr(&attr, entry.fileid, attr.links),
                Some(attr) => file_attr(&Attr { size: u64::MAX, ..attr }, entry.fileid, attr.links),
                None if dots => {
                    let kind = FileKind::Directory;
                    file_attr(&Attr { kind, ..blank(entry.fileid) }, entry.fileid, 1)
                }
                None => file_attr(&blank(entry.fileid), entry.fileid, 1),
            };
            let number = INodeNo(entry.fileid);
            let full = reply.add(number, entry.cookie, name, life, &attr, Generation(0));
            if !full && !dots {
                core.inodes.balance(entry.fileid);
            }
            full
        }
    }
}
