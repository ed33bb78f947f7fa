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

use parking_lot::{Condvar, Mutex};

use super::LocalDir;
use super::key::Id;
use super::node::Fd;
use super::store::Update;
use super::sys::{self, Errno, SysResult};
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
    last: Option<Last>,
    wanted: HashSet<Id>,
}

/// The last search: when it began and ended, and whether it has seen everything.
#[derive(Clone, Copy, Debug)]
struct Last {
    began: Instant,
    ended: Instant,
    result: SysResult<()>,
}

/// Ends the turn of the thread that searches, even if it panics.
struct Turn<'a> {
    searches: &'a Searches,
    began: Instant,
    result: SysResult<()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.searches.state.lock();
        state.running = false;
        state.last = Some(Last { began: self.began, ended: Instant::now(), result: self.result });
        self.searches.ended.notify_all();
    }
}

/// File systems that show the kernel and hold no files: proc, sysfs, cgroup, cgroup2, debugfs,
/// tracefs, securityfs, bpf (statfs(2)). They may be mounted below an export and have no end.
const KERNEL_VIEWS: [u32; 8] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
];

fn is_kernel_view(dir: &Fd) -> bool {
    sys::fstatfs(dir.as_fd()).is_ok_and(|stat| KERNEL_VIEWS.contains(&(stat.f_type as u32)))
}

struct Pending {
    parent: Arc<Fd>,
    parent_id: Id,
    name: CString,
    depth: usize,
}

impl LocalDir {
    /// Returns when a search that began after `since` has ended. One that could not see
    /// everything is an error for all who waited: what it has not found may be there.
    pub(super) fn search(&self, wanted: Id, since: Instant) -> SysResult<()> {
        let searches = &self.searches;
        let mut state = searches.state.lock();
        state.wanted.insert(wanted);
        loop {
            let last = state.last;
            if let Some(last) = last
                && last.began >= since
            {
                state.wanted.remove(&wanted);
                return last.result;
            }
            if state.running {
                searches.ended.wait(&mut state);
                continue;
            }
            state.running = true;
            let rest = last.map_or(Duration::ZERO, |last| {
                (last.ended - last.began).min(REST_MAX).saturating_sub(last.ended.elapsed())
            });
            drop(state);
            std::thread::sleep(rest);
            let result = Err(Errno(libc::EIO));
            let mut turn = Turn { searches, began: Instant::now(), result };
            turn.result = self.search_all();
            drop(turn);
            state = searches.state.lock();
        }
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
            let opened = match opened {
                Ok(opened) => opened,
                Err(errno) if errno.is_shortage() => return Err(errno),
                // Not a directory, gone since, or not ours to read.
                Err(_) => continue,
            };
            let dir = Arc::new(self.nodes.count(opened));
            let Ok(stat) = sys::fstat(dir.as_fd()) else { continue };
            let Ok(id) = self.devices.id(dir.as_fd(), &stat) else { continue };
            if id.device != parent_id.device && is_kernel_view(&dir) {
                continue;
            }
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
