//! The disk cache (paper, section 4): a [`Vfs`] over a far one that keeps blocks, names and
//! attributes on this machine's disk, and what is written until the state server has it.
//!
//! | what | where | lost by |
//! | --- | --- | --- |
//! | clean blocks | [`crate::store`], checked on every read | nothing; fetched again if damaged |
//! | unsent data | [`crate::journal`], and only there | nothing: sent by this process or the next |
//! | attributes, names | [`crate::index`] | nothing that matters: asked for again |
//!
//! A read that hits is answered on the calling thread: no lock (one for a file with unsent data),
//! no allocation. A miss goes to the buffer layer, which joins it with others and reads ahead, and
//! what it brings is stored. A write is one append to the journal. Each file with unsent data has a
//! driver, a task that hands it to the buffer layer (which gathers, sends and commits) in the order
//! of the file's fsyncs, and drops it from the journal when the server has it on disk; only then do
//! its blocks enter the store, so that the store never holds what a crash could unmake.

mod arrive;
mod attributes;
mod below;
mod coherence;
mod conflict;
mod data;
mod defer;
mod deliver;
mod doubt;
mod fetch;
mod left;
mod look_again;
mod name_conflict;
mod names;
mod node;
mod open;
mod options;
mod pending;
mod read;
mod recover;
mod send;
mod setattr;
mod settle;
mod status;
mod walk;
mod whole;
mod write;

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slot;
use gridvfs_vfs::{
    Access, AccessGranted, Allocation, Attr, Caller, Committed, CreateHow, Created, DirPage, Entry,
    Error, FileHandle, FsInfo, FsStat, Linked, Listener, NodeKind, PathConf, ReadData, Result,
    SeekWhence, SetAttr, Stability, Status, Time, Verifier, Vfs, Wcc, Written,
};
use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};

use crate::BufferLayer;
use crate::blocks::Blocks;
use crate::index::Index;
use crate::journal::Journal;

pub use arrive::{Expected, Version};
pub use below::NameLayer;
pub use coherence::CoherenceStatus;
pub use conflict::{Conflict, Resolution};
pub use data::Counters as DiskCounters;
pub use left::Left;
pub use node::ConflictKind;
pub use open::OpenError;
pub use options::{AtEnd, CacheKind, Consistency, DiskOptions, Policy, Rule, Settings, Treatment};
pub use status::{FileStatus, Unsent};

use coherence::Coherence;
use node::Node;
use open::Origin;

/// Beyond this many nodes, idle ones are let go.
const NODES_MAX: usize = 16 * 1024;
/// Of so many listed files it is known where they are, before they are used.
const PLACES_MAX: NonZeroUsize = NonZeroUsize::new(16 * 1024).unwrap();
/// How many files are sent at once.
const SENDING_MAX: usize = 16;
/// How many READs for walks are under way at once.
const WALK_READS_MAX: usize = 64;

/// The disk cache; see the module's description.
pub struct DiskCache {
    core: Arc<Core>,
}

pub(crate) struct Core {
    this: Weak<Core>,
    root: FileHandle,
    /// The layer below: it gathers, joins, and reads ahead.
    buffer: Arc<BufferLayer>,
    /// What is below that layer, for reads that are to leave no trace in it.
    client: Arc<dyn Vfs>,
    /// The same: changes of names that the server does not know yet.
    names: Arc<NameLayer>,
    runtime: Handle,
    store: Blocks,
    /// One file is moved from the store to the file cache at a time.
    making_whole: Mutex<()>,
    journal: Journal,
    index: Index,
    origin: Mutex<Origin>,
    origin_path: PathBuf,
    /// Whether we have changed files since the store was last made durable.
    changed_files: AtomicBool,
    journal_dir: PathBuf,
    shared: bool,
    small_max_bytes: u64,
    settings: RwLock<Arc<Settings>>,
    settings_version: AtomicU64,
    nodes: DashMap<FileHandle, Arc<Node>>,
    /// Where files are that were listed and not looked at yet: their rules and their reports need
    /// the path. Of a file that is used the index knows it.
    places: Mutex<LruCache<FileHandle, (FileHandle, Bytes)>>,
    dirty_bytes: AtomicU64,
    /// Unsent data is being sent whatever its age: somebody asked, or there is much of it.
    hurry: AtomicBool,
    closing: AtomicBool,
    /// Unsent data stays here until somebody asks for it to be sent.
    held: AtomicBool,
    /// How many write-backs of everything are under way.
    write_backs: AtomicUsize,
    /// Takes them back; how often that was done.
    cancelled: watch::Sender<u64>,
    /// The last number of what was found unsent at the start.
    found_seq: u64,
    /// Bytes of the journal that have been released since old segments were last looked for.
    dead_bytes: AtomicU64,
    /// For the house-keeper: segments of the journal may go.
    reclaim: Arc<Notify>,
    /// Writers that wait for room wait here.
    room: Notify,
    sending: Arc<Semaphore>,
    walking: Arc<Semaphore>,
    walks: walk::Walks,
    pins: Mutex<HashSet<FileHandle>>,
    fetch_number: AtomicU64,
    /// Ticks with each change of ours on the server.
    clock: AtomicU64,
    coherence: Coherence,
    /// When the session began, in milliseconds since 1970.
    began_ms: u64,
    own: Caller,
    verifier: Verifier,
    counters: Arc<DiskCounters>,
    file_size_max: u64,
}

pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

pub(crate) fn now() -> Time {
    Time::from_system_time(SystemTime::now())
}

impl Core {
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.read().clone()
    }

    /// The clock now: to be read before a call whose answer is to be judged.
    pub fn ask(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    /// Lets the clock tick: for a change of ours.
    pub fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Returns the file's node, known or new.
    pub fn node(&self, handle: &FileHandle) -> Arc<Node> {
        if let Some(node) = self.nodes.get(handle) {
            return node.clone();
        }
        let count = self.nodes.len();
        if count >= NODES_MAX && count.is_multiple_of(1024) {
            self.nodes
                .retain(|_, node| Arc::strong_count(node) > 1 || !node.state.lock().is_idle());
        }
        self.nodes
            .entry(*handle)
            .or_insert_with(|| {
                let known = self.index.update(handle, |_| {});
                if let Some((dir, name)) = self.places.lock().pop(handle) {
                    self.index.set_place(handle, &dir, &name);
                }
                let size = known.attr.map(|attr| attr.size);
                let node = Node::new(*handle, known.key, size, known.base);
                {
                    let mut state = node.state.lock();
                    (state.changed_at, state.told_at) = (known.changed_at, known.told_at);
                }
                Arc::new(node)
            })
            .clone()
    }

    /// Returns the file's node; if there is none, calls `absent` while none can come about.
    pub fn known_or(&self, handle: &FileHandle, absent: impl FnOnce()) -> Option<Arc<Node>> {
        match self.nodes.entry(*handle) {
            Slot::Occupied(node) => Some(node.get().clone()),
            Slot::Vacant(_) => {
                absent();
                None
            }
        }
    }

    /// Returns the file's node if there is one.
    pub fn known(&self, handle: &FileHandle) -> Option<Arc<Node>> {
        self.nodes.get(handle).map(|node| node.clone())
    }

    /// All nodes, for work that must not hold the map.
    pub fn all_nodes(&self) -> Vec<Arc<Node>> {
        self.nodes.iter().map(|node| node.clone()).collect()
    }

    /// Returns what the rules say of a file.
    pub fn treatment(&self, node: &Node) -> Treatment {
        node.treatment(self.settings_version.load(Ordering::Acquire), || {
            let settings = self.settings();
            if settings.rules.is_empty() {
                return settings.treatment(None);
            }
            settings.treatment(self.index.path_of(&node.handle, &self.buffer.root()).as_deref())
        })
    }

    pub fn refuse_if_read_only(&self) -> Result<()> {
        match self.settings.read().policy {
            Policy::ReadOnly => Err(Status::ROFS.into()),
            _ => Ok(()),
        }
    }
}

impl DiskCache {
    /// Runs a change of the server's files in a task of its own: a caller that goes away cannot leave
    /// it half done.
    async fn whole<T, F>(&self, change: impl FnOnce(Arc<Core>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let task = self.core.runtime.spawn(change(self.core.clone()));
        task.await.unwrap_or(Err(Error::Interrupted))
    }
}

#[async_trait]
impl Vfs for DiskCache {
    fn root(&self) -> FileHandle {
        self.core.buffer.root()
    }

    fn listen(&self, listener: Weak<dyn Listener>) {
        self.add_listener(listener);
    }

    async fn getattr(&self, caller: &Caller, file: &FileHandle) -> Result<Attr> {
        self.core.getattr(caller, file).await
    }

    async fn setattr(
        &self,
        caller: &Caller,
        file: &FileHandle,
        changes: &SetAttr,
        guard: Option<Time>,
    ) -> Result<Wcc> {
        if changes.size.is_none() {
            return self.core.setattr(caller, file, changes, guard).await;
        }
        let (caller, file, changes) = (caller.clone(), *file, *changes);
        self.whole(|core| async move { core.setattr(&caller, &file, &changes, guard).await }).await
    }

    async fn lookup(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Entry> {
        self.core.lookup(caller, dir, name).await
    }

    async fn access(
        &self,
        caller: &Caller,
        file: &FileHandle,
        wanted: Access,
    ) -> Result<AccessGranted> {
        self.core.access(caller, file, wanted).await
    }

    async fn readlink(&self, caller: &Caller, file: &FileHandle) -> Result<Bytes> {
        self.core.readlink(caller, file).await
    }

    async fn read(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<ReadData> {
        self.core.read(caller, file, offset, count).await
    }

    fn read_now(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        out: &mut [u8],
    ) -> Option<Result<usize>> {
        self.core.read_now(caller, file, offset, out)
    }

    async fn write(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        data: Bytes,
        stable: Stability,
    ) -> Result<Written> {
        self.core.write(caller, file, offset, &data).await?;
        if stable != Stability::Unstable {
            self.core.commit(file).await?;
        }
        let committed = match stable {
            Stability::Unstable => Stability::Unstable,
            _ => Stability::FileSync,
        };
        let count = data.len() as u32;
        Ok(Written { count, committed, verifier: self.core.verifier, wcc: Wcc::default() })
    }

    fn write_now(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        data: &[u8],
    ) -> Option<Result<()>> {
        self.core.write_now(caller, file, offset, data)
    }

    fn whole(&self, file: &FileHandle) -> Option<std::fs::File> {
        self.core.whole(file)
    }

    async fn create(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        how: &CreateHow,
    ) -> Result<Created> {
        let (caller, dir, name, how) = (caller.clone(), *dir, name.to_vec(), *how);
        self.whole(|core| async move { core.create(&caller, &dir, &name, &how).await }).await
    }

    async fn mkdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        self.core.refuse_if_read_only()?;
        let asked = self.core.ask();
        let made = self.core.buffer.mkdir(caller, dir, name, attr).await;
        self.core.made(dir, name, made, (true, asked))
    }

    async fn symlink(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        target: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        self.core.refuse_if_read_only()?;
        let asked = self.core.ask();
        let made = self.core.buffer.symlink(caller, dir, name, target, attr).await;
        self.core.made(dir, name, made, (false, asked))
    }

    async fn mknod(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        kind: NodeKind,
        attr: &SetAttr,
    ) -> Result<Created> {
        self.core.refuse_if_read_only()?;
        let asked = self.core.ask();
        let made = self.core.buffer.mknod(caller, dir, name, kind, attr).await;
        self.core.made(dir, name, made, (false, asked))
    }

    async fn remove(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        let (caller, dir, name) = (caller.clone(), *dir, name.to_vec());
        self.whole(|core| async move { core.remove(&caller, &dir, &name).await }).await
    }

    async fn rmdir(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        self.core.rmdir(caller, dir, name).await
    }

    async fn rename(
        &self,
        caller: &Caller,
        from_dir: &FileHandle,
        from_name: &[u8],
        to_dir: &FileHandle,
        to_name: &[u8],
        no_replace: bool,
    ) -> Result<(Wcc, Wcc)> {
        let (caller, from_dir, to_dir) = (caller.clone(), *from_dir, *to_dir);
        let (from, to) = (from_name.to_vec(), to_name.to_vec());
        self.whole(|core| async move {
            core.rename(&caller, (&from_dir, &from), (&to_dir, &to), no_replace).await
        })
        .await
    }

    async fn link(
        &self,
        caller: &Caller,
        file: &FileHandle,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Linked> {
        self.core.link(caller, file, dir, name).await
    }

    async fn readdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        cookie: u64,
        verifier: Verifier,
        size_bytes: u32,
        plus: bool,
    ) -> Result<DirPage> {
        self.core.readdir(caller, dir, cookie, verifier, size_bytes, plus).await
    }

    async fn fsstat(&self, caller: &Caller, file: &FileHandle) -> Result<FsStat> {
        self.core.buffer.fsstat(caller, file).await
    }

    async fn fsinfo(&self, caller: &Caller, file: &FileHandle) -> Result<FsInfo> {
        self.core.buffer.fsinfo(caller, file).await
    }

    async fn pathconf(&self, caller: &Caller, file: &FileHandle) -> Result<PathConf> {
        self.core.buffer.pathconf(caller, file).await
    }

    async fn commit(
        &self,
        _caller: &Caller,
        file: &FileHandle,
        _offset: u64,
        _count: u32,
    ) -> Result<Committed> {
        self.core.commit(file).await?;
        Ok(Committed { verifier: self.core.verifier, wcc: Wcc::default() })
    }

    async fn seek(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        whence: SeekWhence,
    ) -> Result<u64> {
        self.core.seek(caller, file, offset, whence).await
    }

    async fn allocate(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        length: u64,
        how: Allocation,
    ) -> Result<Wcc> {
        self.core.allocate(caller, file, offset, length, how).await
    }

    async fn flush(&self, caller: &Caller, file: &FileHandle) -> Result<()> {
        self.core.flush(caller, file).await
    }

    fn forget(&self, file: &FileHandle) {
        self.core
            .nodes
            .remove_if(file, |_, node| Arc::strong_count(node) == 1 && node.state.lock().is_idle());
        self.core.buffer.forget(file);
    }

    /// The front end has seen other attributes than before. What that means for what is stored is
    /// judged where attributes arrive, by more than the front end knows.
    fn invalidate(&self, file: &FileHandle) {
        self.core.buffer.invalidate(file);
    }

    fn discard(&self, file: &FileHandle) {
        self.core.discard(file);
    }

    async fn sync_names(&self) -> Result<()> {
        self.core.sync_names().await
    }

    async fn shutdown(&self) -> Result<()> {
        self.core.shutdown().await
    }
}
