//! READDIR and READDIRPLUS.
//!
//! Cookies are the kernel's own positions (d_off of getdents64), which stay valid while entries
//! come and go. Where a page ends, the open directory and what it had read ahead are parked under
//! the cookie at which the next page is expected; any other page seeks.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gridvfs_vfs::{
    Caller, DirEntry, DirPage, FileHandle, FileKind, Result, Status, Verifier, is_dots,
};

use super::LocalDir;
use super::attr;
use super::key::Id;
use super::node::{Fd, Node};
use super::sys::{self, Errno, SysResult};
use super::sys_names::{self, first_entry};

/// How many listings are parked at most.
pub(super) const PARKED_MAX: usize = 64;
/// How long what was read ahead is good for.
const PARKED: Duration = Duration::from_secs(10);
/// The largest page.
const PAGE_BYTES_MAX: u32 = 1 << 20;
/// How much is read ahead from the kernel.
const READ_BYTES: usize = 32 << 10;

/// What a page costs on the wire besides its entries: status, attributes, verifier, the ends.
const PAGE_OVERHEAD: usize = 4 + 88 + 8 + 4 + 4;
/// What an entry costs besides its name: presence, fileid, the name's length, cookie.
const ENTRY_OVERHEAD: usize = 4 + 8 + 4 + 8;
/// What attributes and a handle of ours add.
const PLUS_OVERHEAD: usize = 4 + 84 + 4 + 4 + 28;
/// Cookies have changed their meaning when it does: never.
const VERIFIER: Verifier = [0; 8];

/// Whose listing goes on where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct StreamKey {
    pub dir: Id,
    cookie: u64,
    uid: u32,
    gid: u32,
}

/// An open directory and what has been read ahead of it.
#[derive(Debug)]
pub(super) struct Stream {
    fd: Fd,
    buffer: Vec<u8>,
    start: usize,
    parked: Instant,
}

impl Stream {
    /// Whether it has waited too long to be continued.
    pub(super) fn is_old(&self) -> bool {
        self.parked.elapsed() > PARKED
    }

    /// The entries read ahead; after an empty answer the directory has ended.
    fn fill(&mut self) -> SysResult<bool> {
        if self.start < self.buffer.len() {
            return Ok(true);
        }
        self.buffer.resize(READ_BYTES, 0);
        let length = sys_names::getdents(self.fd.as_fd(), &mut self.buffer)?;
        self.buffer.truncate(length);
        self.start = 0;
        Ok(length > 0)
    }
}

impl LocalDir {
    pub(super) fn do_readdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        cookie: u64,
        size_bytes: u32,
        plus: bool,
    ) -> Result<DirPage> {
        let dir = self.resolve_dir(dir)?;
        let stat = self.stat(&dir)?;
        let mut page = Page {
            entries: Vec::new(),
            room: (size_bytes.min(PAGE_BYTES_MAX) as usize).saturating_sub(PAGE_OVERHEAD),
            cookie,
            plus,
        };
        let eof = {
            let _acting = self.privilege.assume(caller)?;
            let mut stream = self.stream(&dir, caller, cookie)?;
            let eof = self.fill_page(&dir, &mut stream, &mut page)?;
            if !eof {
                stream.parked = Instant::now();
                self.streams.park(stream_key(&dir, caller, page.cookie), stream);
            }
            eof
        };
        if page.entries.is_empty() && !eof {
            return Err(Status::TOOSMALL.into());
        }
        let seen = page.entries.iter().filter(|entry| !is_dots(&entry.name)).filter_map(|entry| {
            let key = super::key::Key::decode(entry.handle.as_ref()?)?;
            Some((key.id, dir.key.id, &entry.name[..]))
        });
        self.table.note_all(seen);
        Ok(DirPage {
            entries: page.entries,
            eof,
            verifier: VERIFIER,
            dir_attr: Some(self.attr_of(&dir, &stat)),
        })
    }

    /// A parked listing, or one opened by the caller's own right.
    fn stream(&self, dir: &Arc<Node>, caller: &Caller, cookie: u64) -> Result<Stream> {
        let position = i64::try_from(cookie).map_err(|_| Status::BAD_COOKIE)?;
        if cookie != 0
            && let Some(stream) = self.streams.take(&stream_key(dir, caller, cookie))
            && !stream.is_old()
        {
            return Ok(stream);
        }
        let fd = self.nodes.with_room(|| sys::open_listing(dir.path.as_fd()))?;
        let fd = self.nodes.count(fd);
        if cookie != 0 {
            sys::lseek(fd.as_fd(), position, libc::SEEK_SET).map_err(|_| Status::BAD_COOKIE)?;
        }
        Ok(Stream { fd, buffer: Vec::new(), start: 0, parked: Instant::now() })
    }

    /// Takes entries until the page is full (`false`) or the directory has ended (`true`).
    fn fill_page(&self, dir: &Arc<Node>, stream: &mut Stream, page: &mut Page) -> Result<bool> {
        while stream.fill()? {
            let rest = &stream.buffer[stream.start..];
            let Some((raw, length)) = first_entry(rest) else {
                return Err(Status::IO.into());
            };
            let plus = if page.plus { PLUS_OVERHEAD } else { 0 };
            let cost = ENTRY_OVERHEAD + raw.name.len().next_multiple_of(4) + plus;
            if cost > page.room {
                return Ok(false);
            }
            if let Some(entry) = self.entry(dir, &stream.fd, &raw, page.plus)? {
                page.room -= cost;
                page.entries.push(entry);
            }
            page.cookie = raw.cookie;
            stream.start += length;
        }
        Ok(true)
    }

    /// Completes an entry; `None` for a name that is gone by now.
    fn entry(
        &self,
        dir: &Arc<Node>,
        listing: &Fd,
        raw: &sys_names::RawEntry<'_>,
        plus: bool,
    ) -> SysResult<Option<DirEntry>> {
        let mut entry = DirEntry {
            fileid: raw.inode,
            name: Bytes::copy_from_slice(raw.name),
            cookie: raw.cookie,
            attr: None,
            handle: None,
        };
        let at_root = dir.key == self.root.key;
        if raw.name == b".." {
            // The root's parent is itself, and a mount point's is not what the listing says.
            if at_root {
                entry.fileid = self.root.key.id.inode;
            } else if let Ok(parent) = sys::pin_parent(dir.path.as_fd()) {
                entry.fileid = sys::fstat(parent.as_fd())?.st_ino;
            }
        }
        if !plus {
            return Ok(Some(entry));
        }
        if raw.name == b"." || (raw.name == b".." && at_root) {
            let stat = sys::fstat(dir.path.as_fd())?;
            entry.attr = Some(self.attr_of(dir, &stat));
            entry.handle = Some(dir.key.encode());
            return Ok(Some(entry));
        }
        if raw.name == b".." {
            return Ok(Some(entry));
        }
        let Ok(name) = sys::c_string(raw.name) else { return Ok(None) };
        // Opened for a moment, so that attributes and handle are of one and the same file.
        let pinned = self.nodes.with_room(|| sys::pin_child(listing.as_fd(), &name));
        let described = pinned.and_then(|fd| {
            let stat = sys::fstat(fd.as_fd())?;
            let key = self.devices.key(fd.as_fd(), &stat)?;
            if !self.watches.are_on() {
                return Ok((key, stat));
            }
            let kind = attr::kind(stat.st_mode);
            let watched = match kind {
                FileKind::Directory => self.watches.watch(key, kind, fd.as_fd()),
                _ => {
                    self.watches.place((key, fd.as_fd()), dir.key.id, raw.name, stat.st_nlink)
                        && (stat.st_nlink == 1 || self.watches.watch(key, kind, fd.as_fd()))
                }
            };
            if !watched {
                self.watches.leave_uncovered(&key);
            }
            // As it is since it is watched.
            Ok((key, sys::fstat(fd.as_fd())?))
        });
        match described {
            Ok((key, stat)) => {
                entry.fileid = stat.st_ino;
                entry.attr = Some(attr::attr(key.id.device, &stat));
                entry.handle = Some(key.encode());
            }
            Err(Errno(libc::ENOENT | libc::ESTALE)) => return Ok(None),
            // Listed, but not to be looked at: readable and not searchable, for one.
            Err(_) => {}
        }
        Ok(Some(entry))
    }
}

struct Page {
    entries: Vec<DirEntry>,
    /// Bytes left on the wire.
    room: usize,
    /// Where the next page begins.
    cookie: u64,
    plus: bool,
}

fn stream_key(dir: &Node, caller: &Caller, cookie: u64) -> StreamKey {
    StreamKey { dir: dir.key.id, cookie, uid: caller.uid, gid: caller.gid }
}
