//! What is told of a cache, and what it is told to do: the verbs of a session.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gridvfs_vfs::{Caller, Error, FileHandle, Result, Status, Vfs};
use tokio::task::JoinSet;

use super::node::Node;
use super::options::{AtEnd, Policy, Settings};
use super::{Core, DiskCache, DiskCounters};
use crate::FileKey;
use crate::dirty::Piece;
use crate::store::{Geometry, Usage, VerifyReport};

/// How much is unsent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unsent {
    /// Files with unsent data.
    pub files: u64,
    /// Their unsent bytes.
    pub bytes: u64,
    /// Files in conflict.
    pub conflicts: u64,
    /// Changes of names and attributes that the server does not know yet.
    pub names: u64,
}

impl Unsent {
    /// Says whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.files == 0 && self.names == 0
    }
}

/// A file with unsent data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStatus {
    /// The file.
    pub handle: FileHandle,
    /// Its path in the mount, as last known.
    pub path: String,
    /// Its unsent bytes.
    pub unsent_bytes: u64,
    /// Why they are still here, if the server was asked to take them.
    pub error: Option<Error>,
    /// Whether it is in conflict.
    pub conflict: bool,
}

/// A write-back of everything that is under way: for as long, nothing is held back.
struct WritingBack<'a> {
    core: &'a Core,
    /// It has come to its end; what could not be sent is tried again.
    waited: bool,
}

impl<'a> WritingBack<'a> {
    fn begin(core: &'a Core) -> Self {
        core.write_backs.fetch_add(1, Ordering::AcqRel);
        Self { core, waited: false }
    }
}

impl Drop for WritingBack<'_> {
    fn drop(&mut self) {
        let others = self.core.write_backs.fetch_sub(1, Ordering::AcqRel) > 1;
        if !self.waited && !others {
            self.core.want_all_no_more();
        }
    }
}

impl Core {
    fn want_all_no_more(&self) {
        self.names.queue.lock().want_all_no_more();
        for node in self.nodes.iter().filter(|node| node.is_local()) {
            node.state.lock().all_wanted = 0;
            node.wake.notify_one();
        }
    }

    fn unsent(&self) -> Unsent {
        let mut unsent = Unsent::default();
        {
            let queue = self.names.queue.lock();
            unsent.names = queue.ops.len() as u64;
            let stopped = queue.ops.values().filter(|pending| pending.conflict.is_some());
            unsent.conflicts = stopped.count() as u64;
        }
        for node in self.nodes.iter().filter(|node| node.is_local()) {
            let state = node.state.lock();
            unsent.files += 1;
            unsent.bytes += state.dirty.bytes();
            unsent.conflicts += u64::from(state.conflict.is_some());
        }
        unsent
    }

    /// Sends all unsent data; done when it is on the server's disk. Goes on after a file that
    /// cannot be sent; returns the first reason. Dropped half way, or cancelled (`Interrupted`), it is
    /// taken back: what is under way arrives, the rest stays here as if nobody had asked.
    pub async fn write_back(self: &Arc<Self>) -> Result<()> {
        let mut cancelled = self.cancelled.subscribe();
        let mut writing_back = WritingBack::begin(self);
        let result = tokio::select! {
            result = self.send_all() => result,
            _ = cancelled.changed() => return Err(Error::Interrupted),
        };
        writing_back.waited = true;
        result
    }

    async fn send_all(self: &Arc<Self>) -> Result<()> {
        let names = self.names.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn_on(async move { names.settle_with_all().await }, &self.runtime);
        for node in self.all_nodes() {
            if node.is_local() || node.state.lock().driven {
                let core = self.clone();
                tasks.spawn_on(async move { core.finish(&node).await }, &self.runtime);
            }
        }
        let mut first = Ok(());
        while let Some(ended) = tasks.join_next().await {
            first = first.and(ended.unwrap_or(Err(Error::Interrupted)));
        }
        first
    }

    /// Sends what is unsent of a file, and waits until its times are set, too.
    async fn finish(self: &Arc<Self>, node: &Arc<Node>) -> Result<()> {
        {
            let mut state = node.state.lock();
            state.retry_at = None;
            state.failing = None;
        }
        node.wake.notify_one();
        if node.is_local() {
            self.send_with_all(node).await?;
        }
        loop {
            let mut progress = std::pin::pin!(node.progress.notified());
            progress.as_mut().enable();
            {
                let state = node.state.lock();
                if !state.driven || !state.dirty.is_empty() {
                    return Ok(());
                }
                if let Some(error) = &state.failing {
                    return Err(error.clone());
                }
            }
            progress.await;
        }
    }

    /// Forgets what is known, and what is stored of files without unsent data.
    pub fn drop_clean(&self) {
        self.index.forget_all();
        let mut kept = false;
        for node in self.all_nodes() {
            let mut state = node.state.lock();
            if !state.dirty.is_empty() || state.driven {
                kept = true;
                continue;
            }
            state.overtake(0, u64::MAX);
            self.buffer.invalidate(&node.handle);
        }
        if kept {
            for node in self.all_nodes() {
                if !node.is_local() {
                    self.store.cut(node.key(), 0, node.size().unwrap_or(u64::MAX));
                }
            }
        } else {
            self.store.clear();
        }
    }

    pub async fn shutdown(self: &Arc<Self>) -> Result<()> {
        let (at_end, policy) = {
            let settings = self.settings.read();
            (settings.at_end, settings.policy)
        };
        let result = match at_end {
            AtEnd::Preserve => Ok(()),
            _ if policy == Policy::ReadOnly && self.is_held() => Ok(()),
            AtEnd::WriteBack | AtEnd::Flush => self.write_back().await,
        };
        if at_end == AtEnd::Flush && result.is_ok() {
            self.drop_clean();
        }
        result
    }
}

impl DiskCache {
    /// Ends the session: what is unsent is dealt with as the settings say, and everything is made
    /// durable on this machine.
    pub async fn close(&self) -> Result<()> {
        let core = self.core.clone();
        core.closing.store(true, Ordering::Release);
        let result = core.shutdown().await;
        core.held.store(true, Ordering::Release);
        let below = core.buffer.shutdown().await;
        let runtime = core.runtime.clone();
        let made_durable = runtime.spawn_blocking(move || {
            if let Err(error) = core.journal.sync().and_then(|()| core.reclaim(true).map(drop)) {
                log::error!("cannot make the journal durable: {error}");
            }
            if !core.shared {
                core.sync_store();
            }
            core.index.flush();
            if core.shared {
                let _ = std::fs::remove_dir_all(&core.journal_dir);
            }
        });
        let _ = made_durable.await;
        result.and(below)
    }

    /// Returns the counters.
    pub fn counters(&self) -> Arc<DiskCounters> {
        self.core.counters.clone()
    }

    /// Returns how much is unsent.
    pub fn unsent(&self) -> Unsent {
        self.core.unsent()
    }

    /// Returns the files with unsent data, by path.
    pub fn unsent_files(&self) -> Vec<FileStatus> {
        let status = |node: Arc<Node>| {
            let (unsent_bytes, error, conflict) = {
                let state = node.state.lock();
                (state.dirty.bytes(), state.failing.clone(), state.conflict.is_some())
            };
            let (handle, path) = (node.handle, self.core.path_text(&node.handle));
            (unsent_bytes > 0).then_some(FileStatus { handle, path, unsent_bytes, error, conflict })
        };
        let mut files: Vec<_> = self.core.all_nodes().into_iter().filter_map(status).collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    }

    /// Returns the size and shape of the block store, which may be another than was asked for where
    /// sessions share it.
    pub fn geometry(&self) -> Geometry {
        *self.core.store.geometry()
    }

    /// Returns the size and shape of the block store that was here before, if that was another than
    /// was asked for: it has been made anew, empty.
    pub fn replaced(&self) -> Option<Geometry> {
        self.core.store.replaced().copied()
    }

    /// Returns the settings in force.
    pub fn settings(&self) -> Arc<Settings> {
        self.core.settings()
    }

    /// Changes the settings. A cache that is shared stays read-only.
    pub fn set(&self, settings: Settings) -> Result<(), String> {
        let core = &self.core;
        if core.shared && settings.policy != Policy::ReadOnly {
            return Err("the cache is shared with other sessions: it is read-only".into());
        }
        let before = core.settings();
        if before.consistency.trusts() && !settings.consistency.trusts() {
            core.index.forget_all();
        }
        // A session that only reads never sends what it found; one that begins to write does.
        let reads = before.policy == Policy::ReadOnly && settings.policy == Policy::ReadOnly;
        if settings.at_end != AtEnd::Preserve && !reads {
            core.held.store(false, Ordering::Release);
        }
        *core.settings.write() = Arc::new(settings);
        core.settings_version.fetch_add(1, Ordering::AcqRel);
        if before.consistency != core.settings().consistency {
            core.begin_to_listen();
        }
        core.wake_drivers();
        core.names.wake.notify_one();
        core.room.notify_waiters();
        Ok(())
    }

    /// Sends all unsent data and waits until it is on the server's disk (SIGUSR1).
    pub async fn write_back(&self) -> Result<()> {
        self.core.write_back().await
    }

    /// Takes back all write-backs of everything that are under way, that of [`Self::close`] among them:
    /// they return `Interrupted`, and what is not under way stays here. Returns whether there was one.
    pub fn cancel_write_back(&self) -> bool {
        let any = self.core.write_backs.load(Ordering::Acquire) > 0;
        if any {
            self.core.cancelled.send_modify(|times| *times += 1);
        }
        any
    }

    /// Sends all unsent data, then forgets what is clean (SIGUSR2; the paper's flush).
    pub async fn flush_all(&self) -> Result<()> {
        self.core.write_back().await?;
        self.core.drop_clean();
        Ok(())
    }

    /// Returns how full the store is. Reads all tags.
    pub fn usage(&self) -> Usage {
        self.core.store.usage()
    }

    /// Returns the store's and the journal's own counters by name.
    pub fn store_counters(&self) -> std::collections::BTreeMap<&'static str, u64> {
        let (counters, journal) = (self.core.store.counters(), self.core.journal.counters());
        let get = |value: &std::sync::atomic::AtomicU64| value.load(Ordering::Relaxed);
        [
            ("hit_bytes", get(&counters.hit_bytes)),
            ("evicted", get(&counters.evicted)),
            ("repaired", get(&counters.repaired) + self.core.store.files.repaired()),
            ("whole_files", self.core.store.files.keys().len() as u64),
            ("whole_file_bytes", self.core.store.files.bytes()),
            ("stored_bytes", get(&counters.stored_bytes)),
            ("no_space", get(&counters.no_space)),
            ("journal_syncs", get(&journal.syncs)),
            ("journal_syncs_asked", get(&journal.syncs_asked)),
            ("journal_segments_deleted", get(&journal.segments_deleted)),
        ]
        .into()
    }

    /// Returns the journal's length on disk, in bytes.
    pub fn journal_bytes(&self) -> u64 {
        self.core.journal.used_bytes()
    }

    /// Reads every stored block and drops those that are damaged. `progress` is told frames done
    /// and frames in all.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> VerifyReport {
        self.core.store.verify(progress)
    }

    /// Fetches what is missing of a file; `progress` is told how many bytes more are there.
    pub async fn warm(
        &self,
        caller: &Caller,
        file: &FileHandle,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        if !self.core.is_regular(file) {
            return Err(Status::INVAL.into());
        }
        let node = self.core.node(file);
        self.core.fetch_whole(caller, &node, progress).await
    }

    /// Says how many bytes of a file are stored, and its size.
    pub fn stored(&self, file: &FileHandle) -> (u64, u64) {
        let node = self.core.node(file);
        let size = node.size().unwrap_or(0);
        (self.core.store.bytes_of(node.key(), size), size)
    }

    /// Says how many bytes of a range are on this machine: stored, or not sent yet.
    pub fn held_bytes(&self, file: &FileHandle, start: u64, end: u64) -> u64 {
        let node = self.core.node(file);
        let (mut held, mut at) = (0, start);
        while at < end {
            let gap = self.core.store.first_gap(node.key(), at, end);
            let (from, to) = gap.unwrap_or((end, end));
            held += from - at;
            node.state.lock().dirty.overlay(from, to, &mut |piece| {
                if let Piece::Held(extent) = piece {
                    held += u64::from(extent.len);
                }
            });
            at = to;
        }
        held
    }

    /// Keeps a file's blocks from making room for others, or no longer, until the session ends.
    pub fn pin(&self, file: &FileHandle, pinned: bool) {
        let core = &self.core;
        core.node(file);
        let mut pins = core.pins.lock();
        if pinned {
            pins.insert(*file);
        } else {
            pins.remove(file);
        }
        drop(pins);
        core.repin();
    }

    /// Returns the pinned files.
    pub fn pinned(&self) -> Vec<FileHandle> {
        self.core.pins.lock().iter().copied().collect()
    }

    /// Returns the path of a file from the mount's root, as last known: `a/b`, as the bytes that it
    /// is.
    pub fn path_of(&self, file: &FileHandle) -> Option<Vec<u8>> {
        let core = &self.core;
        let of_unsent = || core.known(file)?.state.lock().said.path.clone();
        core.index.path_of(file, &core.root).or_else(of_unsent)
    }

    /// Finds the file that has its blocks under a key. May wait for the disk.
    pub fn file_of(&self, key: FileKey) -> Option<FileHandle> {
        self.core.index.handle_of_key(key)
    }

    /// Gives room back to the disk: whole files go first, then the oldest blocks. Returns how many
    /// bytes went.
    pub fn prune(&self, bytes: u64) -> u64 {
        let files = self.core.store.files.give_back(bytes);
        files + self.core.store.give_back(bytes.saturating_sub(files))
    }
}

impl Core {
    /// Tells the store which keys are pinned. To be called when a pinned file has a new one.
    pub fn repin(&self) {
        let pins = self.pins.lock();
        let keys: HashSet<_> =
            pins.iter().filter_map(|file| Some(self.index.node(file)?.key)).collect();
        self.store.set_pinned(keys);
    }
}
