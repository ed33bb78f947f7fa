//! A state server (a directory, behind a layer that can be slow, cut or full) and a cache over it.

#![allow(dead_code)] // Each test binary uses a part of it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use gridvfs_cache::disk::{
    AtEnd, Consistency, DiskOptions, Left, NameLayer, OpenError, Policy, Settings,
};
use gridvfs_cache::store::Geometry;
use gridvfs_cache::{BufferLayer, BufferOptions, DiskCache};
use gridvfs_proxy::local_dir::{LocalDir, LocalDirOptions};
use gridvfs_vfs::*;
use tokio::runtime::Runtime;

/// The far side: counts calls, and fails as it is told.
pub struct Far {
    inner: LocalDir,
    pub calls: AtomicU64,
    pub reads: AtomicU64,
    pub written_bytes: AtomicU64,
    pub setattrs: AtomicU64,
    /// Nothing is answered while this is set.
    pub cut: AtomicBool,
    /// WRITEs fail with this status, if it is not 0.
    pub refuse: AtomicU32,
    pub delay_ms: AtomicU64,
    /// Every call fails at once while this is set: the server cannot be reached.
    pub unreachable: AtomicBool,
    /// So many WRITEs more are taken before [`Self::refuse`] holds, if it is not 0.
    pub taken: AtomicU64,
    /// Unstable data is lost by [`Self::restart`] until it is committed.
    pub volatile: AtomicBool,
    /// What unstable WRITEs have written over.
    undo: tokio::sync::Mutex<Vec<Undo>>,
    /// How often the server was restarted.
    boots: AtomicU64,
    /// Of whom a test tells changes.
    pub ears: Ears,
}

/// What there was before an unstable WRITE.
struct Undo {
    file: FileHandle,
    offset: u64,
    data: Bytes,
    size: u64,
}

impl Far {
    /// The server loses its memory: what was not committed is as it was before, and its verifier is
    /// another.
    pub async fn restart(&self, caller: &Caller) {
        let mut undo = self.undo.lock().await;
        self.boots.fetch_add(1, Ordering::SeqCst);
        for Undo { file, offset, data, size } in undo.drain(..).rev() {
            let cut = SetAttr { size: Some(size), ..SetAttr::default() };
            if !data.is_empty() {
                let stable = Stability::FileSync;
                self.inner.write(caller, &file, offset, data, stable).await.expect("undone");
            }
            self.inner.setattr(caller, &file, &cut, None).await.expect("undone");
        }
    }

    fn of_this_boot(&self, mut verifier: Verifier) -> Verifier {
        verifier[0] ^= self.boots.load(Ordering::SeqCst) as u8;
        verifier
    }

    async fn pass(&self) -> Result<()> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let delay = self.delay_ms.load(Ordering::SeqCst);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        while self.cut.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if self.unreachable.load(Ordering::SeqCst) {
            return Err(Error::Unreachable("the link is down".into()));
        }
        Ok(())
    }
}

macro_rules! pass_on {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        #[async_trait]
        impl Vfs for Far {
            fn root(&self) -> FileHandle {
                self.inner.root()
            }
            fn listen(&self, listener: Weak<dyn Listener>) {
                self.ears.add(listener);
            }
            async fn write(
                &self,
                caller: &Caller,
                file: &FileHandle,
                offset: u64,
                data: Bytes,
                stable: Stability,
            ) -> Result<Written> {
                self.pass().await?;
                let refuse = self.refuse.load(Ordering::SeqCst);
                let one_less = |left: u64| left.checked_sub(1);
                if refuse != 0
                    && self.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_err()
                {
                    return Err(Status(refuse).into());
                }
                self.written_bytes.fetch_add(data.len() as u64, Ordering::SeqCst);
                let mut undo = self.undo.lock().await;
                if self.volatile.load(Ordering::SeqCst) && stable == Stability::Unstable {
                    let size = self.inner.getattr(caller, file).await?.size;
                    let count = data.len() as u32;
                    let before = self.inner.read(caller, file, offset, count).await?.data;
                    undo.push(Undo { file: *file, offset, data: before, size });
                }
                let mut written = self.inner.write(caller, file, offset, data, stable).await?;
                written.verifier = self.of_this_boot(written.verifier);
                Ok(written)
            }
            async fn commit(
                &self,
                caller: &Caller,
                file: &FileHandle,
                offset: u64,
                count: u32,
            ) -> Result<Committed> {
                self.pass().await?;
                let mut undo = self.undo.lock().await;
                let mut committed = self.inner.commit(caller, file, offset, count).await?;
                undo.retain(|one| one.file != *file);
                committed.verifier = self.of_this_boot(committed.verifier);
                Ok(committed)
            }
            async fn read(
                &self,
                caller: &Caller,
                file: &FileHandle,
                offset: u64,
                count: u32,
            ) -> Result<ReadData> {
                self.reads.fetch_add(1, Ordering::SeqCst);
                self.pass().await?;
                self.inner.read(caller, file, offset, count).await
            }
            async fn getattr(&self, caller: &Caller, file: &FileHandle) -> Result<Attr> {
                self.pass().await?;
                let attr = self.inner.getattr(caller, file).await;
                // The answer travels, too.
                let delay_ms = self.delay_ms.load(Ordering::SeqCst);
                if delay_ms > 0 {
                    tokio::time::sleep(Duration::from_millis(delay_ms)).await;
                }
                attr
            }
            async fn setattr(
                &self,
                caller: &Caller,
                file: &FileHandle,
                changes: &SetAttr,
                guard: Option<Time>,
            ) -> Result<Wcc> {
                self.setattrs.fetch_add(1, Ordering::SeqCst);
                self.pass().await?;
                self.inner.setattr(caller, file, changes, guard).await
            }
            $(async fn $name(&self, caller: &Caller $(, $arg: $type)*) -> Result<$result> {
                self.pass().await?;
                self.inner.$name(caller $(, $arg)*).await
            })*
        }
    };
}

pass_on! {
    lookup(dir: &FileHandle, name: &[u8]) -> Entry;
    access(file: &FileHandle, wanted: Access) -> AccessGranted;
    readlink(file: &FileHandle) -> Bytes;
    create(dir: &FileHandle, name: &[u8], how: &CreateHow) -> Created;
    mkdir(dir: &FileHandle, name: &[u8], attr: &SetAttr) -> Created;
    symlink(dir: &FileHandle, name: &[u8], target: &[u8], attr: &SetAttr) -> Created;
    mknod(dir: &FileHandle, name: &[u8], kind: NodeKind, attr: &SetAttr) -> Created;
    remove(dir: &FileHandle, name: &[u8]) -> Wcc;
    rmdir(dir: &FileHandle, name: &[u8]) -> Wcc;
    rename(from_dir: &FileHandle, from: &[u8], to_dir: &FileHandle, to: &[u8], no_replace: bool)
        -> (Wcc, Wcc);
    link(file: &FileHandle, dir: &FileHandle, name: &[u8]) -> Linked;
    readdir(dir: &FileHandle, cookie: u64, verifier: Verifier, size_bytes: u32, plus: bool)
        -> DirPage;
    fsstat(file: &FileHandle) -> FsStat;
    fsinfo(file: &FileHandle) -> FsInfo;
    pathconf(file: &FileHandle) -> PathConf;
    seek(file: &FileHandle, offset: u64, whence: SeekWhence) -> u64;
    allocate(file: &FileHandle, offset: u64, length: u64, how: Allocation) -> Wcc;
}

/// Everything of a test.
pub struct World {
    folder: PathBuf,
    /// Gone when this is dropped.
    _owned: Option<tempfile::TempDir>,
    pub settings: Settings,
    pub geometry: Geometry,
}

/// A running session.
pub struct Session {
    pub cache: Arc<DiskCache>,
    pub far: Arc<Far>,
    runtime: Option<Runtime>,
    caller: Caller,
}

pub fn settings(policy: Policy, consistency: Consistency) -> Settings {
    Settings {
        policy,
        consistency,
        at_end: AtEnd::WriteBack,
        writeback_delay: Duration::from_millis(40),
        ..Settings::default()
    }
}

impl World {
    pub fn new(policy: Policy, consistency: Consistency) -> Self {
        let folder = Self::folder();
        let world = Self::at(folder.path(), settings(policy, consistency));
        Self { _owned: Some(folder), ..world }
    }

    /// Makes a folder for a world.
    pub fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("folder");
        for name in ["export", "cache"] {
            std::fs::create_dir(folder.path().join(name)).expect("made");
        }
        folder
    }

    /// A world in a folder that somebody else has made and removes.
    pub fn at(folder: &Path, settings: Settings) -> Self {
        let geometry = Geometry { size_bytes: 16 << 20, banks: 4, ways: 4, ..Geometry::default() };
        Self { folder: folder.into(), _owned: None, settings, geometry }
    }

    /// A file's path on the server.
    pub fn at_server(&self, name: &str) -> PathBuf {
        self.folder.join("export").join(name)
    }

    pub fn cache_dir(&self) -> PathBuf {
        self.folder.join("cache")
    }

    pub fn try_open(&self) -> Result<Session, OpenError> {
        let export = self.folder.join("export");
        try_open(&export, &self.cache_dir(), self.settings.clone(), self.geometry)
    }

    pub fn open(&self) -> Session {
        open(&self.folder.join("export"), &self.cache_dir(), self.settings.clone(), self.geometry)
    }

    /// Starts a session with a journal that was read before.
    pub fn open_over(&self, left: Left) -> Session {
        let export = self.folder.join("export");
        let (cache, settings) = (self.cache_dir(), self.settings.clone());
        start(&export, &cache, settings, self.geometry, Some(left)).expect("opened")
    }
}

/// Starts a session.
pub fn open(export: &Path, cache: &Path, settings: Settings, geometry: Geometry) -> Session {
    try_open(export, cache, settings, geometry).expect("opened")
}

/// Starts a session, if the cache can be opened.
pub fn try_open(
    export: &Path,
    cache: &Path,
    settings: Settings,
    geometry: Geometry,
) -> Result<Session, OpenError> {
    start(export, cache, settings, geometry, None)
}

fn start(
    export: &Path,
    cache: &Path,
    settings: Settings,
    geometry: Geometry,
    left: Option<Left>,
) -> Result<Session, OpenError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    let inner = LocalDir::open(export, LocalDirOptions::default()).expect("exported");
    let far = Arc::new(Far {
        inner,
        calls: AtomicU64::new(0),
        reads: AtomicU64::new(0),
        written_bytes: AtomicU64::new(0),
        setattrs: AtomicU64::new(0),
        cut: AtomicBool::new(false),
        refuse: AtomicU32::new(0),
        delay_ms: AtomicU64::new(0),
        unreachable: AtomicBool::new(false),
        taken: AtomicU64::new(0),
        volatile: AtomicBool::new(false),
        undo: Default::default(),
        boots: AtomicU64::new(0),
        ears: Ears::default(),
    });
    let handle = runtime.handle().clone();
    let cache = runtime.block_on(async {
        let names = Arc::new(NameLayer::new(far.clone()));
        let options_below = BufferOptions::default();
        let buffer = BufferLayer::new(names.clone(), handle.clone(), options_below).await;
        let options = DiskOptions {
            defer_names: true,
            coherence: true,
            dir: cache.into(),
            geometry,
            shared: false,
            left,
            small_max_bytes: 64 << 10,
            settings,
        };
        let buffer = Arc::new(buffer.expect("answers"));
        DiskCache::open(buffer, names, handle, options).await
    });
    let caller = Caller {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        groups: Vec::new(),
    };
    Ok(Session { cache: Arc::new(cache?), far, runtime: Some(runtime), caller })
}

impl Session {
    pub fn wait<T>(&self, call: impl Future<Output = T>) -> T {
        self.runtime.as_ref().expect("runs").block_on(call)
    }

    pub fn caller(&self) -> Caller {
        self.caller.clone()
    }

    pub fn lookup(&self, name: &str) -> Result<FileHandle> {
        let root = self.cache.root();
        self.wait(self.cache.lookup(&self.caller, &root, name.as_bytes())).map(|e| e.handle)
    }

    pub fn create(&self, name: &str) -> FileHandle {
        let how = CreateHow::Unchecked(SetAttr { mode: Some(0o644), ..SetAttr::default() });
        let root = self.cache.root();
        let made = self.wait(self.cache.create(&self.caller, &root, name.as_bytes(), &how));
        made.expect("created").handle.expect("handle")
    }

    /// As open(2): asks for permission, which revalidates.
    pub fn open_file(&self, file: &FileHandle) -> Result<()> {
        let wanted = Access(Access::READ | Access::MODIFY | Access::EXTEND);
        self.wait(self.cache.access(&self.caller, file, wanted)).map(drop)
    }

    pub fn write(&self, file: &FileHandle, offset: u64, data: &[u8]) -> Result<()> {
        if let Some(result) = self.cache.write_now(&self.caller, file, offset, data) {
            return result;
        }
        let data = Bytes::copy_from_slice(data);
        let stable = Stability::Unstable;
        self.wait(self.cache.write(&self.caller, file, offset, data, stable)).map(drop)
    }

    pub fn read(&self, file: &FileHandle, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut all = vec![0; length];
        if let Some(read) = self.cache.read_now(&self.caller, file, offset, &mut all) {
            all.truncate(read?);
            return Ok(all);
        }
        let mut all = Vec::new();
        while all.len() < length {
            let (at, left) = (offset + all.len() as u64, (length - all.len()) as u32);
            let read = self.wait(self.cache.read(&self.caller, file, at, left))?;
            all.extend_from_slice(&read.data);
            if read.eof {
                break;
            }
            assert!(!read.data.is_empty(), "nothing, and not the end");
        }
        Ok(all)
    }

    pub fn fsync(&self, file: &FileHandle) -> Result<()> {
        self.wait(self.cache.commit(&self.caller, file, 0, 0)).map(drop)
    }

    pub fn close_file(&self, file: &FileHandle) -> Result<()> {
        self.wait(self.cache.flush(&self.caller, file))
    }

    pub fn truncate(&self, file: &FileHandle, size: u64) -> Result<()> {
        let changes = SetAttr { size: Some(size), ..SetAttr::default() };
        self.wait(self.cache.setattr(&self.caller, file, &changes, None)).map(drop)
    }

    pub fn size(&self, file: &FileHandle) -> u64 {
        self.wait(self.cache.getattr(&self.caller, file)).expect("attributes").size
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        let root = self.cache.root();
        self.wait(self.cache.remove(&self.caller, &root, name.as_bytes())).map(drop)
    }

    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        let root = self.cache.root();
        let (from, to) = (from.as_bytes(), to.as_bytes());
        self.wait(self.cache.rename(&self.caller, &root, from, &root, to, false)).map(drop)
    }

    /// Ends in order.
    pub fn close(mut self) -> Result<()> {
        let result = self.wait(self.cache.close());
        self.end();
        result
    }

    /// Ends as a killed process does: what was appended is there, nothing else is done.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        runtime.shutdown_timeout(Duration::from_secs(5));
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits until something is so.
pub fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if test() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}

/// Data that differs from place to place.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}
