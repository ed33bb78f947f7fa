//! The search of the whole export, for files that were renamed behind our back.
//!
//! It lists every directory once, compares inode numbers and looks at no file. One runs at a time,
//! whoever waits shares it, everything it sees goes to the database, and it takes at most half of
//! the time, however often it is asked for.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gridvfs_vfs::Result;
use parking_lot::{Condvar, Mutex};

use super::LocalDir;
use super::key::Id;
use super::node::Fd;
use super::store::Update;
use super::sys::{self, SysResult};
use super::sys_names::for_each_entry;

/// How many directories may wait to be listed (some 100 MiB); more are left out, with a word.
const PENDING_MAX: usize = 1_000_000;
/// How deep it goes where descriptors are plenty; each level holds one.
const DEPTH_MAX: usize = 1024;
/// Locations written to the database at a time.
const BATCH: usize = 4096;
/// The longest rest between two searches.
const REST_MAX: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(super) struct Searches {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    running: bool,
    /// When the last search began and ended.
    last: Option<(Instant, Instant)>,
    wanted: HashSet<Id>,
}

/// Ends the turn of the thread that searches, even if it panics.
struct Turn<'a>(&'a Searches, Instant);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.running = false;
        state.last = Some((self.1, Instant::now()));
        self.0.ended.notify_all();
    }
}

struct Pending {
    parent: Arc<Fd>,
    parent_id: Id,
    name: CString,
    depth: usize,
}

impl LocalDir {
    /// Returns when a search that began after `since` has ended.
    pub(super) fn search(&self, wanted: Id, since: Instant) -> Result<()> {
        let searches = &self.searches;
        let mut state = searches.state.lock();
        state.wanted.insert(wanted);
        while state.last.is_none_or(|(began, _)| began < since) {
            if state.running {
                searches.ended.wait(&mut state);
                continue;
            }
            state.running = true;
            let rest = state.last.map_or(Duration::ZERO, |(began, ended)| {
                (ended - began).min(REST_MAX).saturating_sub(ended.elapsed())
            });
            drop(state);
            std::thread::sleep(rest);
            let turn = Turn(searches, Instant::now());
            let result = self.search_all();
            drop(turn);
            result?;
            state = searches.state.lock();
        }
        state.wanted.remove(&wanted);
        Ok(())
    }

    fn search_all(&self) -> SysResult<()> {
        let depth_max = (self.nodes.kept_max() / 2).min(DEPTH_MAX);
        let mut pending = Vec::new();
        let mut rows = Vec::new();
        let mut left_out = 0usize;
        let root = self.nodes.with_room(|| sys::open_listing(self.root.path.as_fd()))?;
        let root = Arc::new(self.nodes.count(root));
        self.list(root, self.root.key.id, 0, &mut pending, &mut rows)?;
        while let Some(Pending { parent, parent_id, name, depth }) = pending.pop() {
            if depth > depth_max || pending.len() > PENDING_MAX {
                left_out += 1;
                continue;
            }
            let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NONBLOCK;
            let opened = self.nodes.with_room(|| sys::open_child(parent.as_fd(), &name, flags, 0));
            // Not a directory, gone since, or not ours to read.
            let Ok(opened) = opened else { continue };
            let dir = Arc::new(self.nodes.count(opened));
            let Ok(stat) = sys::fstat(dir.as_fd()) else { continue };
            let Ok(id) = self.devices.id(dir.as_fd(), &stat) else { continue };
            self.saw(id, parent_id, name.to_bytes(), &mut rows);
            if let Err(errno) = self.list(dir, id, depth, &mut pending, &mut rows) {
                log::debug!("search for a file: cannot list a directory: {errno:?}");
            }
        }
        self.table.store().write(&rows);
        if left_out > 0 {
            log::warn!(
                "the search for a file left out {left_out} directories below level {depth_max}"
            );
        }
        Ok(())
    }

    /// Takes down what a directory holds.
    fn list(
        &self,
        dir: Arc<Fd>,
        id: Id,
        depth: usize,
        pending: &mut Vec<Pending>,
        rows: &mut Vec<Update>,
    ) -> SysResult<()> {
        for_each_entry(dir.as_fd(), |entry| {
            if matches!(entry.kind, libc::DT_DIR | libc::DT_UNKNOWN)
                && let Ok(name) = CString::new(entry.name)
            {
                let parent = dir.clone();
                pending.push(Pending { parent, parent_id: id, name, depth: depth + 1 });
            }
            if entry.kind != libc::DT_DIR {
                let entry_id = Id { device: id.device, inode: entry.inode };
                self.saw(entry_id, id, entry.name, rows);
            }
            true
        })
    }

    fn saw(&self, id: Id, parent: Id, name: &[u8], rows: &mut Vec<Update>) {
        if self.searches.state.lock().wanted.contains(&id) {
            self.table.note(id, parent, name);
        }
        rows.push(Update::Put { id, parent, name: name.into() });
        if rows.len() >= BATCH {
            self.table.store().write(rows);
            rows.clear();
        }
    }
}
