//! Names: in a directory, the handle that each leads to, or that it is absent.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use gridvfs_vfs::{FileHandle, is_dots};

use super::listing::ListingToken;
use super::name_rows::{self, NameRow};
use super::node::{Node, Place};
use super::rows::Found;
use super::table::Slot;
use super::writer::Change;
use super::{Child, Index};
use crate::key::random_number;

/// How deep a path may be: a loop of stale places ends here.
const DEPTH_MAX: usize = 256;

/// What a name is known to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// It leads to this file.
    Here(FileHandle),
    /// There is no such name.
    Absent,
    /// The server has to be asked.
    Unknown,
}

impl From<Child> for Name {
    fn from(child: Child) -> Self {
        match child {
            Child::Here(handle) => Self::Here(handle),
            Child::Absent => Self::Absent,
            Child::Unknown => Self::Unknown,
        }
    }
}

/// The key of a name in memory: the directory's number for its names, then the name.
pub(super) fn name_key(names: u64, name: &[u8]) -> Box<[u8]> {
    [&names.to_le_bytes(), name].concat().into()
}

/// Calls `with` with the key of a name, without allocating for names of usual length.
fn with_name_key<T>(names: u64, name: &[u8], with: impl FnOnce(&[u8]) -> T) -> T {
    let mut bytes = [0; 8 + 255];
    match bytes.get_mut(..8 + name.len()) {
        Some(key) => {
            key[..8].copy_from_slice(&names.to_le_bytes());
            key[8..].copy_from_slice(name);
            with(key)
        }
        None => with(&name_key(names, name)),
    }
}

impl Index {
    /// Returns what is known of a name: absent if that was noted, or if all names of the directory
    /// are known and it is not among them.
    pub fn lookup(&self, dir: &FileHandle, name: &[u8]) -> Name {
        self.enter_finished();
        let known = self.with_node(dir, |node| (node.names, node.complete));
        let Some((names, complete)) = known.filter(|(names, _)| *names != 0 && !name.is_empty())
        else {
            return Name::Unknown;
        };
        self.child(names, complete, name).into()
    }

    fn child(&self, names: u64, complete: bool, name: &[u8]) -> Child {
        let load = || {
            self.database.read(|database| {
                Ok(match name_rows::name(database, names, name)? {
                    Found::Row(row) => Some(row.child),
                    Found::Damaged => {
                        self.database.damaged.fetch_add(1, Ordering::Relaxed);
                        Some(Child::Unknown)
                    }
                    Found::Nothing if complete && name_rows::is_whole(database, names)? => {
                        Some(Child::Absent)
                    }
                    Found::Nothing => None,
                })
            })
        };
        with_name_key(names, name, |key| {
            let mut shard = self.names.find(key, |key| key.into(), || self.queue.written(), load);
            shard.get(key).and_then(|slot| slot.value).unwrap_or(Child::Unknown)
        })
    }

    /// Returns at most `count` names of a directory, with what they lead to, and whether there are no
    /// others. What was noted a moment ago may be missing.
    pub fn known_names(&self, dir: &FileHandle, count: usize) -> (Vec<(Bytes, FileHandle)>, bool) {
        let known = self.with_node(dir, |node| (node.names, node.listed));
        let Some((names, listed)) = known.filter(|(names, _)| *names != 0) else {
            return (Vec::new(), false);
        };
        let read = self.database.read(|database| {
            let whole = listed && name_rows::is_whole(database, names)?;
            Ok((name_rows::here(database, names, count)?, whole))
        });
        let child = |row: NameRow| match row.child {
            Child::Here(handle) => Some((row.name, handle)),
            Child::Absent | Child::Unknown => None,
        };
        (read.0.into_iter().filter_map(child).collect(), read.1)
    }

    /// Notes what a name of a directory leads to; `None`: it is absent. In a directory whose
    /// listing is known it is added to that, or removed.
    ///
    /// For the answer of a LOOKUP, which one of our own changes may have overtaken, there is
    /// [`Index::note_name`].
    pub fn set_name(&self, dir: &FileHandle, name: &[u8], child: Option<FileHandle>) {
        self.enter_name(dir, name, child.map_or(Child::Absent, Child::Here), None);
    }

    /// Does as [`Index::set_name`], unless [`Index::dir_changed`] was called for the directory
    /// since the token was taken: that is, before the server was asked. Tells whether it did.
    pub fn note_name(
        &self,
        dir: &FileHandle,
        name: &[u8],
        child: Option<FileHandle>,
        token: ListingToken,
    ) -> bool {
        self.enter_name(dir, name, child.map_or(Child::Absent, Child::Here), Some(token))
    }

    /// Forgets a name: whether it is there has to be asked. The listing is forgotten with it.
    pub fn forget_name(&self, dir: &FileHandle, name: &[u8]) {
        if self.with_node(dir, |node| node.names != 0) == Some(true) {
            self.change_node(dir, |node| (std::mem::take(&mut node.listed), ()));
            self.enter_name(dir, name, Child::Unknown, None);
        }
    }

    fn enter_name(
        &self,
        dir: &FileHandle,
        name: &[u8],
        child: Child,
        token: Option<ListingToken>,
    ) -> bool {
        if name.is_empty() || is_dots(name) {
            return false;
        }
        let entered = self.change_node(dir, |node| {
            if token.is_some_and(|token| token.0 != node.token) {
                return (false, false);
            }
            let begun = node.names == 0;
            if begun {
                node.names = random_number();
            }
            // Under the directory's lock: the token cannot change in between.
            let (names, listed) = (node.names, node.listed);
            self.put_name(names, name, child, |name| Change::Name { names, name, child, listed });
            (begun, true)
        });
        if let Child::Here(handle) = child
            && entered
        {
            self.set_place(&handle, dir, name);
        }
        entered
    }

    /// Puts a name in memory and queues the change, unless memory says the same already.
    fn put_name(
        &self,
        names: u64,
        name: &[u8],
        child: Child,
        change: impl FnOnce(Bytes) -> Change,
    ) {
        with_name_key(names, name, |key| {
            let mut shard = self.names.lock(key);
            if shard.get(key).is_some_and(|slot| slot.value == Some(child)) {
                return;
            }
            shard.changing();
            let change = self.push(|| change(Bytes::copy_from_slice(name)));
            self.names_changed.fetch_max(change, Ordering::AcqRel);
            let slot = Slot { value: Some(child), change };
            shard.put(key.into(), slot, self.queue.written());
        });
    }

    /// Puts a name of a listing in memory, written or to be written as `change`.
    pub(super) fn put_listed(&self, names: u64, name: &[u8], child: Child, change: u64) {
        with_name_key(names, name, |key| {
            let mut shard = self.names.lock(key);
            shard.changing();
            let slot = Slot { value: Some(child), change };
            shard.put(key.into(), slot, self.queue.written());
        });
    }

    /// Notes where a file is.
    pub fn set_place(&self, child: &FileHandle, dir: &FileHandle, name: &[u8]) {
        let same = |node: &mut Node| {
            let place = node.extra.as_ref().and_then(|extra| extra.place.as_ref());
            place.is_some_and(|place| place.dir == *dir && *place.name == *name)
        };
        if self.with_node(child, same) != Some(true) {
            self.change_node(child, |node| {
                node.extra().place = Some(Place { dir: *dir, name: name.into() });
                (true, ())
            });
        }
    }

    /// Returns where a file was last known to be: its directory, and its name there.
    pub fn name_of(&self, handle: &FileHandle) -> Option<(FileHandle, Bytes)> {
        let place = self.with_node(handle, |node| node.extra.as_ref()?.place.clone()).flatten()?;
        Some((place.dir, Bytes::from(place.name)))
    }

    /// Returns the path, from `root`, where a file was last known to be: `a/b`, and nothing for the
    /// root itself.
    pub fn path_of(&self, handle: &FileHandle, root: &FileHandle) -> Option<Vec<u8>> {
        let mut names = Vec::new();
        let mut at = *handle;
        while at != *root {
            let (dir, name) = self.name_of(&at).filter(|_| names.len() < DEPTH_MAX)?;
            names.push(name);
            at = dir;
        }
        names.reverse();
        Some(names.join(&b'/'))
    }

    /// Says that the server has renamed, for us, what is known of it by these names.
    pub fn renamed(
        &self,
        from_dir: &FileHandle,
        from_name: &[u8],
        to_dir: &FileHandle,
        to_name: &[u8],
    ) {
        // First: what the server was asked before must not be noted from here on.
        self.dir_changed(from_dir);
        self.dir_changed(to_dir);
        let child = self.lookup(from_dir, from_name);
        let target = self.lookup(to_dir, to_name);
        if matches!(child, Name::Here(_)) && child == target {
            // Two names of one file: rename(2) does nothing.
            return;
        }
        self.set_name(from_dir, from_name, None);
        match child {
            Name::Here(handle) => self.set_name(to_dir, to_name, Some(handle)),
            Name::Absent | Name::Unknown => self.forget_name(to_dir, to_name),
        }
    }

    /// Says that the server has created or linked, for us, `child` under this name.
    pub fn created(&self, dir: &FileHandle, name: &[u8], child: &FileHandle) {
        self.dir_changed(dir);
        self.set_name(dir, name, Some(*child));
    }

    /// Says that the server has removed, for us, this name.
    pub fn removed(&self, dir: &FileHandle, name: &[u8]) {
        self.dir_changed(dir);
        self.set_name(dir, name, None);
    }

    /// Says that we have changed a directory: what the server was asked before is not noted any
    /// more ([`Index::note_name`], [`Index::set_listing_part`]). What is known stays, to be changed
    /// by [`Index::set_name`] or [`Index::forget_name`].
    pub fn dir_changed(&self, dir: &FileHandle) {
        self.with_node(dir, |node| node.token = self.new_token());
    }

    /// Forgets the names and the listing: the directory has changed on the server.
    pub fn forget_dir(&self, dir: &FileHandle) {
        let known = self.with_node(dir, |node| {
            node.token = self.new_token();
            node.names != 0
        });
        if known == Some(true) {
            let names = self.change_node(dir, |node| (true, node.forget_names()));
            self.drop_names(names);
        }
    }
}
