//! Walks: a program that reads the small files of a directory one after the other (tar, grep, cp,
//! a compiler's headers) has them fetched ahead of it, as a stream's next bytes are.
//!
//! A directory that was listed and of which two small files were then asked for is being walked: the
//! files behind the last one in the listing are fetched, some tens at once, each whole by one READ;
//! those before it if the walk goes that way, or if there are no others: many programs sort.
//! In a session that trusts nothing, the attributes that come with such a READ also stand for the
//! revalidation of the file's next open, once, and for a second: what a program reads a moment after
//! it was fetched for it is as new as if it had asked. Files that were opened before are not part of
//! that: two opens of one file are always two questions.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gridvfs_vfs::{Attr, Caller, DirEntry, FileHandle, FileKind};
use parking_lot::Mutex;

use super::Core;
use super::options::Consistency;
use crate::counters::add;

/// How many files of a listed directory that the server was asked for make a walk; one less where
/// the directory is listed in the course of one.
const MISSES_MIN: u32 = 2;
/// How long after its last file a walk may come to another directory.
const WALKING_FOR: Duration = Duration::from_secs(2);
/// How many files are fetched ahead, and how many of their bytes.
const AHEAD_FILES: usize = 64;
const AHEAD_BYTES: u64 = 4 << 20;
/// How long the attributes of a walk stand for the revalidation of an open.
const CONFIRMED_FOR: Duration = Duration::from_secs(1);
/// How many directories, and how many files of each, are remembered.
const DIRECTORIES_MAX: usize = 64;
const FILES_MAX: usize = 8192;

#[derive(Default)]
struct Listed {
    files: Vec<(FileHandle, u64)>,
    places: HashMap<FileHandle, usize>,
    /// What is known of each of the files.
    marks: Vec<Mark>,
    misses: u32,
    /// Files that were fetched ahead and not yet opened.
    ahead: usize,
    /// Where the walk was last.
    last: usize,
    used: Option<Instant>,
}

/// What is known of a file of a listed directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// Nothing.
    Listed,
    /// It was fetched ahead, or is being fetched.
    Ahead,
    /// It was opened, and nobody was asked for that.
    Opened,
    /// The server was asked for it.
    Missed,
}

impl Listed {
    /// The walk is at a file now, which the server was asked for if `missed`. Returns what is to be
    /// fetched ahead.
    fn at(&mut self, place: usize, missed: bool) -> Vec<(FileHandle, u64)> {
        self.used = Some(Instant::now());
        let before = self.marks[place];
        if before == Mark::Ahead {
            self.ahead -= 1;
        }
        if missed && before != Mark::Missed {
            self.marks[place] = Mark::Missed;
            // One that is on its way is part of the walk already.
            self.misses += u32::from(before != Mark::Ahead);
        } else if before != Mark::Missed {
            self.marks[place] = Mark::Opened;
        }
        let backwards = place < std::mem::replace(&mut self.last, place);
        if self.misses < MISSES_MIN || (!missed && self.ahead > AHEAD_FILES / 2) {
            return Vec::new();
        }
        let (behind, before) = (place + 1..self.files.len(), (0..place).rev());
        match backwards {
            false => self.take(behind.chain(before)),
            true => self.take(before.chain(behind)),
        }
    }

    /// Takes files that nothing is known of, in that order.
    fn take(&mut self, order: impl Iterator<Item = usize>) -> Vec<(FileHandle, u64)> {
        let mut bytes = 0;
        let mut wanted = Vec::new();
        for place in order {
            if self.marks[place] != Mark::Listed {
                continue;
            }
            bytes += self.files[place].1;
            if wanted.len() == AHEAD_FILES || bytes > AHEAD_BYTES {
                break;
            }
            self.marks[place] = Mark::Ahead;
            self.ahead += 1;
            wanted.push(self.files[place]);
        }
        wanted
    }
}

/// What is known of walks.
#[derive(Default)]
pub(crate) struct Walks {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    listed: HashMap<FileHandle, Listed>,
    directory_of: HashMap<FileHandle, FileHandle>,
    confirmed: HashMap<FileHandle, Instant>,
    opened: HashSet<FileHandle>,
    /// When a directory was last found being walked.
    walking: Option<Instant>,
}

impl State {
    /// The walk of a file's directory is at that file now ([`Listed::at`]). Returns what is to be
    /// fetched ahead.
    fn at(&mut self, file: &FileHandle, missed: bool) -> Vec<(FileHandle, u64)> {
        let dir = self.directory_of.get(file);
        let Some(listed) = dir.and_then(|dir| self.listed.get_mut(dir)) else { return Vec::new() };
        let Some(place) = listed.places.get(file).copied() else { return Vec::new() };
        let wanted = listed.at(place, missed);
        if listed.misses >= MISSES_MIN {
            self.walking = listed.used;
        }
        wanted
    }

    fn make_room(&mut self) {
        while self.listed.len() >= DIRECTORIES_MAX {
            let oldest = self.listed.iter().min_by_key(|(_, listed)| listed.used).map(|(d, _)| *d);
            let Some(gone) = oldest.and_then(|dir| self.listed.remove(&dir)) else { return };
            for (file, _) in gone.files {
                self.directory_of.remove(&file);
                self.opened.remove(&file);
                self.confirmed.remove(&file);
            }
        }
    }
}

impl Core {
    /// Notes the small files of a part of a listing.
    pub fn walk_listed(&self, dir: &FileHandle, entries: &[DirEntry]) {
        let small = |entry: &DirEntry| match (entry.handle, entry.attr) {
            (Some(handle), Some(attr))
                if attr.kind == FileKind::Regular
                    && (1..=self.small_max_bytes).contains(&attr.size) =>
            {
                Some((handle, attr.size))
            }
            _ => None,
        };
        let files: Vec<_> = entries.iter().filter_map(small).collect();
        if files.is_empty() {
            return;
        }
        let mut state = self.walks.state.lock();
        if !state.listed.contains_key(dir) {
            state.make_room();
            let walking = state.walking.is_some_and(|at| at.elapsed() < WALKING_FOR);
            let misses = if walking { MISSES_MIN - 1 } else { 0 };
            state.listed.insert(*dir, Listed { misses, ..Listed::default() });
        }
        let Some(listed) = state.listed.get_mut(dir) else { return };
        listed.used = Some(Instant::now());
        let mut added = Vec::new();
        for (handle, size) in files {
            if listed.files.len() < FILES_MAX && !listed.places.contains_key(&handle) {
                listed.places.insert(handle, listed.files.len());
                listed.files.push((handle, size));
                listed.marks.push(Mark::Listed);
                added.push(handle);
            }
        }
        for handle in added {
            state.directory_of.insert(handle, *dir);
        }
    }

    /// A read of a file has missed: if its directory is being walked, others are fetched.
    pub fn walk_missed(&self, caller: &Caller, node: &super::node::Node) {
        let wanted = self.walks.state.lock().at(&node.handle, true);
        self.fetch_ahead(caller, wanted);
    }

    /// A file was opened, and the server was asked for that or not. A walk that is half way through
    /// what was fetched has more fetched.
    pub fn walk_opened(&self, caller: &Caller, handle: &FileHandle, attr: &Attr, asked: bool) {
        if attr.kind != FileKind::Regular || attr.size > self.small_max_bytes {
            return;
        }
        let wanted = {
            let mut state = self.walks.state.lock();
            if state.directory_of.contains_key(handle) {
                state.opened.insert(*handle);
                state.confirmed.remove(handle);
            }
            state.at(handle, asked)
        };
        self.fetch_ahead(caller, wanted);
    }

    /// Returns attributes that a walk has just brought, for one open.
    pub fn walked_attr(&self, handle: &FileHandle) -> Option<Attr> {
        let at = self.walks.state.lock().confirmed.remove(handle)?;
        if at.elapsed() > CONFIRMED_FOR {
            return None;
        }
        let mut attr = self.index.node(handle)?.attr?;
        if let Some(node) = self.known(handle) {
            let lazy = self.treatment(&node).is_lazy();
            node.state.lock().overlay(&mut attr, node.size(), lazy);
        }
        Some(attr)
    }

    fn fetch_ahead(&self, caller: &Caller, wanted: Vec<(FileHandle, u64)>) {
        if wanted.is_empty() {
            return;
        }
        let Some(core) = self.this.upgrade() else { return };
        for (handle, size) in wanted {
            let Ok(slot) = core.walking.clone().try_acquire_owned() else { return };
            let (core, caller) = (core.clone(), caller.clone());
            self.runtime.spawn(async move {
                core.fetch_small(&caller, &handle, size).await;
                drop(slot);
            });
        }
    }

    /// Reads a small file by one call and stores it.
    async fn fetch_small(self: Arc<Self>, caller: &Caller, handle: &FileHandle, size: u64) {
        let node = self.node(handle);
        let treatment = self.treatment(&node);
        let trusts = match self.settings.read().consistency {
            Consistency::Shared => self.trusted_attr(handle).is_some(),
            consistency => consistency.trusts(),
        };
        let there = self.store.first_gap(node.key(), 0, size).is_none();
        if node.is_local() || !treatment.keeps() || (there && trusts) {
            return;
        }
        let asked = self.ask();
        if there {
            // Only the attributes are wanted.
            if let Ok(mut attr) = self.client.getattr(caller, handle).await {
                self.observe(handle, &mut attr, asked);
                self.confirm(handle);
            }
            return;
        }
        let count = (size.next_multiple_of(4096)).min(self.small_max_bytes) as u32;
        let registered = self.register(&*node, 0, u64::from(count));
        let Ok(read) = self.client.read(caller, handle, 0, count).await else { return };
        let Some(mut attr) = read.attr else { return };
        if !read.eof && (read.data.len() as u64) < attr.size {
            return;
        }
        self.observe(handle, &mut attr, asked);
        // What was written or changed since then is not to be covered by older data.
        let quiet = {
            let state = node.state.lock();
            state.dirty.is_empty() && state.can_judge(asked)
        };
        if quiet && attr.size == read.data.len() as u64 {
            let key = node.key();
            self.keep(&node, key, 0, &read.data, true);
            if registered.is_overtaken() {
                self.store.cut(key, 0, u64::from(count));
                return;
            }
            add(&self.counters.walked, 1);
            self.confirm(handle);
        }
    }

    fn confirm(&self, handle: &FileHandle) {
        let mut state = self.walks.state.lock();
        if !state.opened.contains(handle) && state.directory_of.contains_key(handle) {
            state.confirmed.insert(*handle, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(count: u8) -> Listed {
        let file = |number| (FileHandle::new(&[number]).expect("short"), 5000);
        let files: Vec<_> = (0..count).map(file).collect();
        Listed { marks: vec![Mark::Listed; files.len()], files, ..Listed::default() }
    }

    fn numbers(wanted: &[(FileHandle, u64)]) -> Vec<u8> {
        wanted.iter().map(|(handle, _)| handle.as_bytes()[0]).collect()
    }

    #[test]
    fn a_walk_is_found_in_whatever_order() {
        let mut forward = listed(6);
        assert_eq!(numbers(&forward.at(0, true)), []);
        assert_eq!(numbers(&forward.at(0, true)), [], "a file counts once");
        assert_eq!(numbers(&forward.at(1, true)), [2, 3, 4, 5]);
        assert_eq!(numbers(&forward.at(2, false)), []);

        // Whose attributes are known is opened without asking, and missed when it is read.
        let mut backward = listed(6);
        for (place, wanted) in [(5, &[][..]), (4, &[3, 2, 1, 0][..]), (3, &[])] {
            assert_eq!(numbers(&backward.at(place, false)), []);
            assert_eq!(numbers(&backward.at(place, place > 3)), wanted);
        }

        let mut sorted_otherwise = listed(6);
        sorted_otherwise.at(5, true);
        sorted_otherwise.at(0, true);
        assert_eq!(sorted_otherwise.ahead, 4);
    }

    #[test]
    fn a_large_directory_is_fetched_in_parts() {
        let mut listed = listed(200);
        listed.at(0, true);
        assert_eq!(listed.at(1, true).len(), AHEAD_FILES);
        for place in 2..2 + AHEAD_FILES / 2 - 1 {
            assert_eq!(numbers(&listed.at(place, false)), []);
        }
        let next = listed.at(2 + AHEAD_FILES / 2 - 1, false);
        assert_eq!(numbers(&next[..1]), [2 + AHEAD_FILES as u8]);
        assert_eq!(next.len(), AHEAD_FILES);
    }
}
