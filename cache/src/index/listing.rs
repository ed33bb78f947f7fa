//! Listings: a directory's names in the server's order and with its cookies, page by page.
//!
//! They are in the database alone. A listing is collected while a client lists the directory, as
//! the names of a new version of it, which takes the place of the old one when it is whole. Our own
//! changes keep it true afterwards: a new name comes last, with a cookie of ours; a removed one is
//! passed over, but the listing still goes on from its cookie.

use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use gridvfs_vfs::{DirEntry, FileHandle, FileKind, Verifier, is_dots};

use super::name_rows::{self, NameRow, is_ours};
use super::node::Node;
use super::writer::Change;
use super::{Child, Index};
use crate::key::random_number;

/// How many directories are collected at a time; the one that waits longest for a page is given up.
pub(super) const COLLECTIONS_MAX: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// The names of a larger directory do not go to memory when it is listed: they would drive
/// everything else out.
const IN_MEMORY_MAX: i64 = 4096;
/// How many whole listings wait until they are written; then the one who lists waits.
const FINISHED_MAX: usize = 16;
/// A page of the database, at most: about 3 ms.
const PAGE_ENTRIES_MAX: usize = 2000;

/// A directory's state, as far as we change it: taken before the server is asked, it tells
/// afterwards whether the answer may be noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListingToken(pub(super) u64);

/// A page of a known listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The entries, in the server's order.
    pub entries: Vec<ListedEntry>,
    /// Whether the listing ends here.
    pub eof: bool,
    /// The verifier of the server's last page.
    pub verifier: Verifier,
}

/// An entry of a known listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedEntry {
    /// The file's number. `None` where we have added the name and the file's attributes are not
    /// known: its handle is.
    pub fileid: Option<u64>,
    /// Its name.
    pub name: Bytes,
    /// Where the listing goes on behind this entry.
    pub cookie: u64,
    /// Its type, if known.
    pub kind: Option<FileKind>,
    /// Its handle, if known.
    pub handle: Option<FileHandle>,
}

/// A listing that is being collected.
pub(super) struct Collection {
    names: u64,
    token: u64,
    losses: u64,
    /// With which cookie the next page has to begin.
    next_cookie: u64,
    places: i64,
    /// A cookie of the server looks like one of ours: the order is not kept.
    mistakable: bool,
}

/// A listing that is whole: known as soon as all of it is written.
pub(super) struct Finished {
    dir: FileHandle,
    collection: Collection,
    verifier: Verifier,
    /// The number of its last change.
    change: u64,
}

impl Index {
    /// Returns the directory's token, to be given with what the server answers from now on.
    pub fn token(&self, dir: &FileHandle) -> ListingToken {
        ListingToken(self.change_node(dir, |node| (false, node.token)))
    }

    /// Returns at most `count_max` entries of a listing behind `cookie` (0: from the start).
    /// `None`: the server has to be asked.
    ///
    /// Where a listing is forgotten while a client stands behind an entry that only we have listed,
    /// it ends there: the client has had all of the server's.
    pub fn listing(&self, dir: &FileHandle, cookie: u64, count_max: usize) -> Option<Listed> {
        let ended = || {
            let (entries, verifier) = (Vec::new(), Verifier::default());
            is_ours(cookie).then_some(Listed { entries, eof: true, verifier })
        };
        self.known_listing(dir, cookie, count_max).or_else(ended)
    }

    fn known_listing(&self, dir: &FileHandle, cookie: u64, count_max: usize) -> Option<Listed> {
        if self.finished.lock().iter().any(|finished| finished.dir == *dir) {
            self.flush();
        }
        let look = |node: &mut Node| (node.names, node.listed, node.verifier);
        let (names, listed, verifier) = self.with_node(dir, look)?;
        if names == 0 || !listed || count_max == 0 {
            return None;
        }
        if self.names_changed.load(Ordering::Acquire) > self.queue.written() {
            self.flush();
        }
        let count = count_max.min(PAGE_ENTRIES_MAX);
        let mut rows = self.database.read(|database| {
            let behind = match cookie {
                0 => Some(0),
                _ => name_rows::place(database, names, cookie)?,
            };
            let Some(behind) = behind else { return Ok(None) };
            let rows = name_rows::page(database, names, behind, count + 1)?;
            Ok(rows.filter(|_| name_rows::is_whole(database, names).unwrap_or(false)))
        })?;
        let eof = rows.len() <= count;
        rows.truncate(count);
        let entries = rows.into_iter().map(|row| self.entry(row)).collect::<Option<_>>()?;
        Some(Listed { entries, eof, verifier })
    }

    /// The entry of a row. The number of one that we have added is in its attributes.
    fn entry(&self, row: NameRow) -> Option<ListedEntry> {
        let handle = match row.child {
            Child::Here(handle) => Some(handle),
            Child::Absent | Child::Unknown => None,
        };
        let attr = match (row.fileid, &handle) {
            (None, Some(handle)) => self.node(handle).and_then(|known| known.attr),
            (None, None) => return None,
            _ => None,
        };
        Some(ListedEntry {
            fileid: row.fileid.map(|id| id as u64).or(attr.map(|attr| attr.fileid)),
            kind: row.kind().or(attr.map(|attr| attr.kind)),
            name: row.name,
            cookie: row.cookie? as u64,
            handle,
        })
    }

    /// Notes a page that the server has answered, from `start_cookie` on, to a client that began at
    /// cookie 0. With the last page, all names of the directory are known, and its listing, unless
    /// we have changed the directory since the token was taken. Tells whether that is so; of a large
    /// directory, whether it is so when all of it is written.
    ///
    /// The attributes of the entries are the caller's to note.
    pub fn set_listing_part(
        &self,
        dir: &FileHandle,
        start_cookie: u64,
        entries: &[DirEntry],
        eof: bool,
        verifier: Verifier,
        token: ListingToken,
    ) -> bool {
        if !self.database.is_usable() {
            return false;
        }
        self.queue.admit();
        let Some(mut collection) = self.collection(dir, start_cookie, token) else { return false };
        for entry in entries {
            self.collect(dir, &mut collection, entry);
        }
        match entries.last() {
            _ if eof => return self.complete(dir, collection, verifier),
            // A page without entries, not the last: the client will ask for it again.
            None => {}
            Some(last) => collection.next_cookie = last.cookie,
        }
        self.keep(dir, collection);
        false
    }

    fn keep(&self, dir: &FileHandle, collection: Collection) {
        let pushed_out = self.collecting.lock().push(*dir, collection);
        if let Some((_, other)) = pushed_out {
            self.drop_names(other.names);
        }
    }

    /// Gives up what is being collected, and what was collected and is not known yet.
    pub(super) fn drop_collections(&self) {
        for finished in std::mem::take(&mut *self.finished.lock()) {
            self.drop_names(finished.collection.names);
        }
        let mut collecting = self.collecting.lock();
        while let Some((_, collection)) = collecting.pop_lru() {
            self.drop_names(collection.names);
        }
    }

    /// Takes out the collection that this page belongs to, or begins one.
    fn collection(
        &self,
        dir: &FileHandle,
        start_cookie: u64,
        token: ListingToken,
    ) -> Option<Collection> {
        let mut collecting = self.collecting.lock();
        let found = collecting.pop(dir);
        drop(collecting);
        let current = self.with_node(dir, |node| node.token) == Some(token.0);
        match found {
            // One page asked for twice, by two clients: the first is enough.
            Some(found) if current && start_cookie != 0 && found.token == token.0 => {
                if found.next_cookie == start_cookie {
                    return Some(found);
                }
                self.keep(dir, found);
                return None;
            }
            Some(found) => self.drop_names(found.names),
            None => {}
        }
        (current && start_cookie == 0).then(|| Collection {
            names: random_number(),
            token: token.0,
            losses: self.database.read(name_rows::losses),
            next_cookie: 0,
            places: 0,
            mistakable: false,
        })
    }

    fn collect(&self, dir: &FileHandle, collection: &mut Collection, entry: &DirEntry) {
        if entry.name.is_empty() {
            return;
        }
        let names = collection.names;
        collection.places += 1;
        collection.mistakable |= is_ours(entry.cookie);
        let child = entry.handle.map_or(Child::Unknown, Child::Here);
        let row = Box::new(NameRow {
            name: entry.name.clone(),
            child,
            place: Some(collection.places),
            cookie: Some(entry.cookie as i64),
            fileid: Some(entry.fileid as i64),
            kind: entry.attr.map(|attr| attr.kind as i64),
        });
        let change = self.push(|| Change::Listed { names, row });
        self.names_changed.fetch_max(change, Ordering::AcqRel);
        if is_dots(&entry.name) {
            return;
        }
        if collection.places <= IN_MEMORY_MAX {
            self.put_listed(names, &entry.name, child, change);
        }
        if let Some(handle) = &entry.handle {
            self.set_place(handle, dir, &entry.name);
        }
    }

    /// Says that all names are collected. Those of a large directory, which are not in memory, are
    /// known when they can be found in the database; who lists it does not wait for that.
    fn complete(&self, dir: &FileHandle, collection: Collection, verifier: Verifier) -> bool {
        let Collection { names, losses, places, .. } = collection;
        let change = self.push(|| Change::Whole { names, losses });
        self.names_changed.fetch_max(change, Ordering::AcqRel);
        self.queue.hurry();
        let finished = Finished { dir: *dir, collection, verifier, change };
        if places <= IN_MEMORY_MAX {
            return self.enter(finished);
        }
        let mut waiting = self.finished.lock();
        waiting.push(finished);
        let many = waiting.len() > FINISHED_MAX;
        drop(waiting);
        if many {
            self.flush();
        }
        true
    }

    /// Makes those listings known that are written by now.
    pub(super) fn enter_finished(&self) {
        let mut waiting = self.finished.lock();
        if waiting.is_empty() {
            return;
        }
        let written = self.queue.written();
        let ready: Vec<_> = waiting.extract_if(.., |finished| finished.change <= written).collect();
        drop(waiting);
        for finished in ready {
            self.enter(finished);
        }
    }

    /// Puts the collected names in the place of those known before, unless we have changed the
    /// directory meanwhile.
    fn enter(&self, finished: Finished) -> bool {
        let Finished { dir, collection, verifier, .. } = finished;
        let names = collection.names;
        let before = self.change_node(&dir, |node| {
            if node.token != collection.token {
                return (false, None);
            }
            let before = std::mem::replace(&mut node.names, names);
            (node.complete, node.listed) = (true, !collection.mistakable);
            node.verifier = verifier;
            (true, Some(before))
        });
        self.drop_names(before.unwrap_or(names));
        before.is_some()
    }
}
