//! A state server (a directory, behind a layer that counts and lies) and a mount's layers over it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use gridvfs_cache::disk::{Consistency, DiskOptions, NameLayer, Policy, Settings};
use gridvfs_cache::store::Geometry;
use gridvfs_cache::{BufferLayer, BufferOptions, DiskCache};
use gridvfs_metadata::actions::Actions;
use gridvfs_metadata::content::ContentIndex;
use gridvfs_metadata::format::{
    Action, Compression, Hashes, Identity, Metadata, WorkingSet, ZeroMap, metadata_name,
};
use gridvfs_metadata::layer::WHOLE_BYTES_MAX;
use gridvfs_metadata::profile::Profiles;
use gridvfs_metadata::{MetaLayer, MetaOptions};
use gridvfs_proxy::local_dir::{LocalDir, LocalDirOptions};
use gridvfs_vfs::*;
use tokio::runtime::Runtime;

pub const BLOCK: usize = 8192;

/// The far side.
pub struct Far {
    inner: LocalDir,
    path: PathBuf,
    /// Bytes of files that were read, by READ and by FETCH.
    pub read_bytes: AtomicU64,
    pub fetches: AtomicU64,
    pub reads: AtomicU64,
    /// There is no FETCH.
    pub plain: AtomicBool,
    /// FETCH answers with other data than the file's.
    pub lies: AtomicBool,
    /// Each FETCH waits for so long first.
    pub delay_ms: AtomicU64,
    /// The file is written after so many FETCHes, if it is not 0.
    pub change_after: AtomicU64,
}

macro_rules! pass_on {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        #[async_trait]
        impl Vfs for Far {
            fn root(&self) -> FileHandle {
                self.inner.root()
            }
            async fn read(
                &self,
                caller: &Caller,
                file: &FileHandle,
                offset: u64,
                count: u32,
            ) -> Result<ReadData> {
                let read = self.inner.read(caller, file, offset, count).await?;
                self.reads.fetch_add(1, Ordering::SeqCst);
                self.read_bytes.fetch_add(read.data.len() as u64, Ordering::SeqCst);
                Ok(read)
            }
            async fn fetch(
                &self,
                caller: &Caller,
                file: &FileHandle,
                ranges: &[(u64, u32)],
                _level: i32,
            ) -> Result<Fetched> {
                self.fetch_here(caller, file, ranges).await
            }
            $(async fn $name(&self, $($arg: $type),*) -> Result<$result> {
                self.inner.$name($($arg),*).await
            })*
        }
    };
}

pass_on! {
    getattr(caller: &Caller, file: &FileHandle) -> Attr;
    setattr(caller: &Caller, file: &FileHandle, changes: &SetAttr, guard: Option<Time>) -> Wcc;
    lookup(caller: &Caller, dir: &FileHandle, name: &[u8]) -> Entry;
    access(caller: &Caller, file: &FileHandle, wanted: Access) -> AccessGranted;
    readlink(caller: &Caller, file: &FileHandle) -> Bytes;
    write(caller: &Caller, file: &FileHandle, offset: u64, data: Bytes, stable: Stability) -> Written;
    create(caller: &Caller, dir: &FileHandle, name: &[u8], how: &CreateHow) -> Created;
    mkdir(caller: &Caller, dir: &FileHandle, name: &[u8], attr: &SetAttr) -> Created;
    symlink(caller: &Caller, dir: &FileHandle, name: &[u8], target: &[u8], attr: &SetAttr) -> Created;
    mknod(caller: &Caller, dir: &FileHandle, name: &[u8], kind: NodeKind, attr: &SetAttr) -> Created;
    remove(caller: &Caller, dir: &FileHandle, name: &[u8]) -> Wcc;
    rmdir(caller: &Caller, dir: &FileHandle, name: &[u8]) -> Wcc;
    rename(caller: &Caller, from_dir: &FileHandle, from: &[u8], to_dir: &FileHandle, to: &[u8], no_replace: bool) -> (Wcc, Wcc);
    link(caller: &Caller, file: &FileHandle, dir: &FileHandle, name: &[u8]) -> Linked;
    readdir(caller: &Caller, dir: &FileHandle, cookie: u64, verifier: Verifier, size: u32, plus: bool) -> DirPage;
    fsstat(caller: &Caller, file: &FileHandle) -> FsStat;
    fsinfo(caller: &Caller, file: &FileHandle) -> FsInfo;
    pathconf(caller: &Caller, file: &FileHandle) -> PathConf;
    commit(caller: &Caller, file: &FileHandle, offset: u64, count: u32) -> Committed;
    seek(caller: &Caller, file: &FileHandle, offset: u64, whence: SeekWhence) -> u64;
    allocate(caller: &Caller, file: &FileHandle, offset: u64, length: u64, how: Allocation) -> Wcc;
}

impl Far {
    async fn fetch_here(
        &self,
        caller: &Caller,
        file: &FileHandle,
        ranges: &[(u64, u32)],
    ) -> Result<Fetched> {
        if self.plain.load(Ordering::SeqCst) {
            return Err(Status::NOTSUPP.into());
        }
        let number = self.fetches.fetch_add(1, Ordering::SeqCst) + 1;
        tokio::time::sleep(Duration::from_millis(self.delay_ms.load(Ordering::SeqCst))).await;
        let mut found = Vec::new();
        for (offset, length) in ranges {
            let data = self.inner.read(caller, file, *offset, *length).await?.data;
            let (mut zero, mut rest) = (vec![0; data.len().div_ceil(4096).div_ceil(8)], Vec::new());
            for (i, block) in data.chunks(4096).enumerate() {
                if block.iter().all(|byte| *byte == 0) {
                    zero[i / 8] |= 1 << (i % 8);
                } else {
                    rest.extend_from_slice(block);
                }
            }
            if self.lies.load(Ordering::SeqCst)
                && let Some(byte) = rest.last_mut()
            {
                *byte ^= 1;
            }
            self.read_bytes.fetch_add(rest.len() as u64, Ordering::SeqCst);
            let (offset, length) = (*offset, data.len() as u32);
            found.push(FetchedRange { offset, length, zero, data: rest.into() });
        }
        if number == self.change_after.load(Ordering::SeqCst) {
            for entry in std::fs::read_dir(&self.path).expect("listed").flatten() {
                if !entry.file_name().to_string_lossy().starts_with('.') {
                    let data = std::fs::read(entry.path()).expect("read");
                    let changed: Vec<u8> = data.iter().map(|byte| byte ^ 0x55).collect();
                    std::fs::write(entry.path(), changed).expect("written");
                }
            }
        }
        let attr = self.inner.getattr(caller, file).await?;
        Ok(Fetched { attr, ranges: found })
    }
}

/// What a metadata file says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts {
    pub zero: bool,
    pub hashes: bool,
    pub whole: bool,
    pub working_set: bool,
}

pub struct World {
    pub folder: tempfile::TempDir,
    pub far: Arc<Far>,
    pub disk: Option<Arc<DiskCache>>,
    pub layer: Arc<MetaLayer>,
    pub caller: Caller,
    pub commands: BTreeMap<String, Vec<String>>,
    whole_bytes_max: u64,
    pub runtime: Runtime,
}

fn settings() -> Settings {
    Settings {
        policy: Policy::WriteThrough,
        consistency: Consistency::Shared,
        ..Settings::default()
    }
}

impl World {
    pub fn new() -> Self {
        Self::with(true, BTreeMap::new())
    }

    /// Hashes come in pieces, however short their list is.
    pub fn in_pieces() -> Self {
        Self::of(true, BTreeMap::new(), 0)
    }

    pub fn with(cache: bool, commands: BTreeMap<String, Vec<String>>) -> Self {
        Self::of(cache, commands, WHOLE_BYTES_MAX)
    }

    fn of(cache: bool, commands: BTreeMap<String, Vec<String>>, whole_bytes_max: u64) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::create_dir(folder.path().join("far")).expect("made");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("runtime");
        let (far, disk, layer) = layers(folder.path(), &runtime, cache, &commands, whole_bytes_max);
        let caller = Caller {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            groups: Vec::new(),
        };
        Self { folder, far, disk, layer, caller, commands, whole_bytes_max, runtime }
    }

    /// Ends the session and begins another one over the same cache.
    pub fn again(&mut self) {
        self.layer.end();
        let disk = self.disk.take().expect("a cache");
        self.runtime.block_on(disk.close()).expect("closed");
        let empty = tempfile::tempdir().expect("folder");
        std::fs::create_dir(empty.path().join("far")).expect("made");
        let most = self.whole_bytes_max;
        let (_, _, nothing) = layers(empty.path(), &self.runtime, false, &self.commands, most);
        // Tasks of the old layers end with what they hold.
        self.layer = nothing;
        let weak = Arc::downgrade(&disk);
        drop(disk);
        while weak.strong_count() > 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let made = layers(self.folder.path(), &self.runtime, true, &self.commands, most);
        (self.far, self.disk, self.layer) = made;
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("far").join(name)
    }

    /// Writes a file on the server, and its metadata.
    pub fn put(&self, name: &str, data: &[u8], parts: Parts) {
        std::fs::write(self.path(name), data).expect("written");
        let metadata = self.metadata(name, data, parts);
        self.put_metadata(name, &metadata.encode());
    }

    pub fn put_metadata(&self, name: &str, bytes: &[u8]) {
        let name =
            String::from_utf8(metadata_name(name.as_bytes()).expect("a name")).expect("text");
        std::fs::write(self.path(&name), bytes).expect("written");
    }

    pub fn metadata(&self, name: &str, data: &[u8], parts: Parts) -> Metadata {
        let about = std::fs::metadata(self.path(name)).expect("there");
        let mtime = Time::from_system_time(about.modified().expect("a time"));
        let size = data.len() as u64;
        let zeros = data.chunks(BLOCK).enumerate().filter(|(_, b)| b.iter().all(|byte| *byte == 0));
        let map = ZeroMap::from_runs(BLOCK as u32, size, zeros.map(|(i, _)| (i as u64, 1)));
        let map = map.expect("a map");
        let zero = parts.zero.then_some(map);
        let listed = data.chunks(BLOCK).enumerate().filter_map(|(i, block)| {
            let skipped = zero.as_ref().is_some_and(|zero| zero.is_zero(i as u64));
            (!skipped).then(|| *blake3::hash(block).as_bytes())
        });
        let hashes = Hashes::new(BLOCK as u32, size, zero.as_ref(), listed.collect());
        let last = size / 2 / 32768 * 32768;
        let touched =
            |offset, length| gridvfs_metadata::format::Touched { offset, length, seen: 1 };
        let ranges = vec![touched(last, 65536), touched(0, 32768)];
        let action = Action::Fetch { compression: Compression::Zstd, level: 3 };
        Metadata {
            identity: Identity { size, mtime },
            block_bytes: BLOCK as u32,
            hashes: parts.hashes.then(|| hashes.expect("hashes")),
            zero,
            actions: if parts.whole { vec![action] } else { Vec::new() },
            working_set: parts.working_set.then_some(WorkingSet { runs: 1, ranges }),
        }
    }

    pub fn find(&self, name: &str) -> FileHandle {
        let root = self.layer.root();
        let found = self.runtime.block_on(self.layer.lookup(&self.caller, &root, name.as_bytes()));
        found.expect("there").handle
    }

    pub fn read(&self, file: &FileHandle, offset: u64, count: u32) -> Vec<u8> {
        self.try_read(file, offset, count).expect("read")
    }

    /// As the front end reads: what is at hand first.
    pub fn try_read(&self, file: &FileHandle, offset: u64, count: u32) -> Result<Vec<u8>> {
        let mut out = vec![0; count as usize];
        let (mut done, end) = (0, count as usize);
        while done < end {
            let at = offset + done as u64;
            let (caller, part) = (&self.caller, &mut out[done..]);
            let (got, eof) = match self.layer.read_now(caller, file, at, part) {
                Some(got) => (got?, true),
                None => {
                    let read = self.layer.read(caller, file, at, (end - done) as u32);
                    let read = self.runtime.block_on(read)?;
                    part[..read.data.len()].copy_from_slice(&read.data);
                    (read.data.len(), read.eof)
                }
            };
            done += got;
            if eof || got == 0 {
                break;
            }
        }
        out.truncate(done);
        Ok(out)
    }

    pub fn count(&self, name: &str) -> u64 {
        self.layer.counters().to_map()[name]
    }

    /// Waits until something has come about in the background.
    pub fn until(&self, what: &str, done: impl Fn() -> bool) {
        for _ in 0..2000 {
            if done() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("not within 20 s: {what}");
    }
}

type Layers = (Arc<Far>, Option<Arc<DiskCache>>, Arc<MetaLayer>);

fn layers(
    folder: &Path,
    runtime: &Runtime,
    cache: bool,
    commands: &BTreeMap<String, Vec<String>>,
    whole_bytes_max: u64,
) -> Layers {
    let path = folder.join("far");
    let options = LocalDirOptions::default();
    let inner = LocalDir::open(&path, options).expect("opened");
    let far = Arc::new(Far {
        inner,
        path,
        read_bytes: AtomicU64::new(0),
        fetches: AtomicU64::new(0),
        reads: AtomicU64::new(0),
        plain: AtomicBool::new(false),
        lies: AtomicBool::new(false),
        delay_ms: AtomicU64::new(0),
        change_after: AtomicU64::new(0),
    });
    let handle = runtime.handle().clone();
    let dir = folder.join("cache");
    let disk = cache.then(|| {
        std::fs::create_dir_all(&dir).expect("made");
        runtime.block_on(async {
            // What the session before holds goes when its last task has ended.
            for _ in 0..1000 {
                let options = DiskOptions {
                    defer_names: true,
                    coherence: false,
                    dir: dir.clone(),
                    geometry: Geometry { size_bytes: 256 << 20, banks: 16, ..Geometry::default() },
                    shared: false,
                    left: None,
                    small_max_bytes: 64 << 10,
                    settings: settings(),
                };
                let names = Arc::new(NameLayer::new(far.clone()));
                let below: Arc<dyn Vfs> = names.clone();
                let buffer = BufferLayer::new(below, handle.clone(), BufferOptions::default());
                let buffer = Arc::new(buffer.await.expect("made"));
                match DiskCache::open(buffer, names, handle.clone(), options).await {
                    Ok(disk) => return Arc::new(disk),
                    Err(error) if error.to_string().contains("used by another process") => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    Err(error) => panic!("not opened: {error}"),
                }
            }
            panic!("the cache of the session before is still in use");
        })
    });
    let below: Arc<dyn Vfs> = match &disk {
        Some(disk) => disk.clone(),
        None => far.clone(),
    };
    let options = MetaOptions {
        show: false,
        profiles: cache.then(|| Profiles::new(dir.join("profiles"))),
        content: cache.then(|| ContentIndex::new(dir.join("content"))),
        actions: Actions { commands: commands.clone(), ..Actions::default() },
        whole_bytes_max,
    };
    let layer = MetaLayer::new(below, disk.clone(), far.clone(), handle, options);
    (far, disk, Arc::new(layer))
}

/// Data with zero blocks in between: of `blocks` blocks about half.
pub fn mixed(blocks: usize, tail: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut data = Vec::with_capacity(blocks * BLOCK + tail);
    let mut left = 0;
    let mut zero = false;
    for _ in 0..blocks {
        if left == 0 {
            left = next() % 9 + 1;
            zero = !zero;
        }
        left -= 1;
        let word = next();
        let fill = |i: usize| (word >> (i % 8 * 8)) as u8 ^ (i / 977) as u8 | 1;
        data.extend((0..BLOCK).map(|i| if zero { 0 } else { fill(i) }));
    }
    data.extend((0..tail).map(|i| i as u8 | 1));
    data
}
