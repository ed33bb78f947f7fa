//! Walks: a program that reads the small files of a directory one after the other (tar, grep, cp,
//! a compiler's headers) has them fetched ahead of it, as a stream's next bytes are.
//!
//! A directory that was listed and of which two small files were then missed is being walked: the
//! files behind the last one in the listing are fetched, some tens at once, each whole by one READ.
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
use crate::counters::add;

/// How many misses in a listed directory make a walk.
const MISSES_MIN: u32 = 2;
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
    misses: u32,
    /// Files up to here were fetched, or are being fetched.
    fetched: usize,
    used: Option<Instant>,
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
}

impl State {
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
        }
        let listed = state.listed.entry(*dir).or_default();
        listed.used = Some(Instant::now());
        let mut added = Vec::new();
        for (handle, size) in files {
            if listed.files.len() < FILES_MAX && !listed.places.contains_key(&handle) {
                listed.places.insert(handle, listed.files.len());
                listed.files.push((handle, size));
                added.push(handle);
            }
        }
        for handle in added {
            state.directory_of.insert(handle, *dir);
        }
    }

    /// A read of a file has missed: if its directory is being walked, those behind it are fetched.
    pub fn walk_missed(&self, caller: &Caller, node: &super::node::Node) {
        let wanted = {
            let mut state = self.walks.state.lock();
            let Some(dir) = state.directory_of.get(&node.handle).copied() else { return };
            let Some(listed) = state.listed.get_mut(&dir) else { return };
            let Some(place) = listed.places.get(&node.handle).copied() else { return };
            listed.misses += 1;
            listed.used = Some(Instant::now());
            if listed.misses < MISSES_MIN {
                return;
            }
            ahead_of(listed, place + 1)
        };
        self.fetch_ahead(caller, wanted);
    }

    /// A file was opened. A walk that is half way through what was fetched has more fetched.
    pub fn walk_opened(&self, handle: &FileHandle, attr: &Attr) {
        if attr.kind != FileKind::Regular || attr.size > self.small_max_bytes {
            return;
        }
        let wanted = {
            let mut state = self.walks.state.lock();
            let Some(dir) = state.directory_of.get(handle).copied() else { return };
            state.opened.insert(*handle);
            state.confirmed.remove(handle);
            let Some(listed) = state.listed.get_mut(&dir) else { return };
            let Some(place) = listed.places.get(handle).copied() else { return };
            if listed.misses < MISSES_MIN || place + AHEAD_FILES / 2 < listed.fetched {
                return;
            }
            ahead_of(listed, place + 1)
        };
        self.fetch_ahead(&self.own, wanted);
    }

    /// Returns attributes that a walk has just brought, for one open.
    pub fn walked_attr(&self, handle: &FileHandle) -> Option<Attr> {
        let at = self.walks.state.lock().confirmed.remove(handle)?;
        if at.elapsed() > CONFIRMED_FOR {
            return None;
        }
        self.index.node(handle)?.attr
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
        let trusts = self.settings.read().consistency.trusts();
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
        let registered = self.register(&node, 0, u64::from(count));
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

fn ahead_of(listed: &mut Listed, from: usize) -> Vec<(FileHandle, u64)> {
    let from = from.max(listed.fetched.min(listed.files.len()));
    let mut bytes = 0;
    let mut wanted = Vec::new();
    for file in listed.files.iter().skip(from).take(AHEAD_FILES) {
        bytes += file.1;
        if bytes > AHEAD_BYTES {
            break;
        }
        wanted.push(*file);
    }
    listed.fetched = from + wanted.len();
    wanted
}
