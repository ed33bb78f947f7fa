//! FETCH by way of the NFS front end, for a directory of this machine and for a server behind it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use gridvfs_proxy::gate::{Export, Guest, OneGuest};
use gridvfs_proxy::local_dir::{LocalDir, LocalDirOptions};
use gridvfs_proxy::server::{Server, ServerOptions};
use gridvfs_upstream::{
    CallClass, Channel, ClientOptions, ConnectError, Connector, NfsClient, Request, RpcClient,
    Terms,
};
use gridvfs_vfs::ext::{self, FetchArgs};
use gridvfs_vfs::xdr::{Encoder, Xdr};
use gridvfs_vfs::*;
use tokio::sync::Semaphore;

/// Opens channels to a server of this process.
struct Near {
    server: Arc<Server>,
    root: FileHandle,
}

#[async_trait]
impl Connector for Near {
    async fn connect(&self, _stripe: usize) -> Result<Channel, ConnectError> {
        let (client, server) = tokio::io::duplex(1 << 20);
        let (reader, writer) = tokio::io::split(server);
        tokio::spawn(self.server.clone().serve(reader, writer));
        let (reader, writer) = tokio::io::split(client);
        let root = Some(self.root);
        let terms = Terms { extensions: true, fetch: true, root, ..Terms::plain() };
        Ok(Channel::new(reader, writer, terms))
    }

    fn describe(&self) -> String {
        "a server of this process".into()
    }
}

fn serve(vfs: Arc<dyn Vfs>, blocking: bool) -> Arc<Near> {
    let root = vfs.root();
    let export = Export { path: b"/".to_vec(), vfs, blocking, seal: None, changes: None };
    let options = ServerOptions::new(Arc::new(OneGuest::new(Guest::new("", None, vec![export]))));
    Arc::new(Near { server: Server::new(options), root })
}

async fn client(near: Arc<Near>, stripes: usize) -> Arc<NfsClient> {
    let options = ClientOptions { stripes, ..ClientOptions::default() };
    NfsClient::connect(near, options).await.expect("connects")
}

fn local(folder: &tempfile::TempDir) -> Arc<LocalDir> {
    let options = LocalDirOptions::default();
    Arc::new(LocalDir::open(folder.path(), options).expect("opens"))
}

fn me() -> Caller {
    // SAFETY: no preconditions.
    unsafe { Caller { uid: libc::geteuid(), gid: libc::getegid(), groups: Vec::new() } }
}

async fn find(vfs: &dyn Vfs, name: &str) -> FileHandle {
    vfs.lookup(&me(), &vfs.root(), name.as_bytes()).await.expect("there").handle
}

fn noise(length: usize) -> Vec<u8> {
    let mut random = 0x9E37_79B9u32;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A file with holes, with zeros that are none, with text and noise, and an end that is not even.
fn make_file(folder: &tempfile::TempDir) -> Vec<u8> {
    let mut content = vec![0; 3_000_001];
    let file = File::create(folder.path().join("file")).expect("creates");
    let mut put = |at: usize, bytes: &[u8]| {
        file.write_all_at(bytes, at as u64).expect("writes");
        content[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &b"text ".repeat(30_000));
    put(400_000, &noise(200_000));
    put(1 << 20, &[0; 65_536]);
    put((1 << 20) + 70_000, b"x");
    put(2_500_000, &noise(5));
    put(2_999_998, b"end");
    content
}

fn assert_fetched(fetched: &Fetched, content: &[u8], asked: &[(u64, u32)]) {
    assert_eq!(fetched.ranges.len(), asked.len());
    for (range, &(offset, length)) in fetched.ranges.iter().zip(asked) {
        let end = content.len().min(offset as usize + length as usize);
        let expected = &content[(offset as usize).min(end)..end];
        let mut got = Vec::new();
        for run in range.runs() {
            match run.data {
                Some(data) => {
                    assert!(data.chunks(4096).all(|block| block.iter().any(|byte| *byte != 0)));
                    got.extend_from_slice(&data);
                }
                None => got.resize(got.len() + run.length as usize, 0),
            }
        }
        assert!(got == expected, "at {offset}");
    }
}

const ASKED: [&[(u64, u32)]; 5] = [
    &[(0, 3 << 20)],
    &[(0, 4096), (4096 * 97, 300_000), (1 << 20, 1 << 20), (2_994_176, 1 << 20)],
    &[(4096 * 20, 1); FETCH_RANGES_MAX],
    &[(3_002_368, 4096), (1 << 45, 4096)],
    &[],
];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_fetched_is_the_file() {
    let folder = tempfile::tempdir().expect("folder");
    let content = make_file(&folder);
    let near = client(serve(local(&folder), true), 2).await;
    // The same through a server that forwards to the first one.
    let forwarded = client(serve(near.clone(), false), 1).await;
    for vfs in [near, forwarded] {
        let file = find(&*vfs, "file").await;
        let before = vfs.getattr(&me(), &file).await.expect("attr");
        for level in [0, 1, 3, 19] {
            for asked in ASKED {
                let fetched = vfs.fetch(&me(), &file, asked, level).await.expect("fetched");
                assert_fetched(&fetched, &content, asked);
                assert_eq!((fetched.attr.size, fetched.attr.mtime), (before.size, before.mtime));
            }
        }
        let received = vfs.counters().received_bytes.load(Ordering::Relaxed);
        vfs.fetch(&me(), &file, &[(0, 3 << 20)], 1).await.expect("fetched");
        let received = vfs.counters().received_bytes.load(Ordering::Relaxed) - received;
        assert!(received < 230_000, "{received} bytes for 200,000 of noise, text and zeros");
    }
}

/// What a test does to the calls of a local directory.
struct Watched {
    inner: Arc<LocalDir>,
    read_bytes: AtomicU64,
    reading: AtomicUsize,
    reading_most: AtomicUsize,
    /// Reads wait for a permit of it.
    gate: Semaphore,
    /// Done at each read.
    at_read: Box<dyn Fn() + Send + Sync>,
}

impl Watched {
    fn new(inner: Arc<LocalDir>, at_read: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            inner,
            read_bytes: AtomicU64::new(0),
            reading: AtomicUsize::new(0),
            reading_most: AtomicUsize::new(0),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            at_read: Box::new(at_read),
        })
    }

    /// Closes the gate.
    fn closed(inner: Arc<LocalDir>) -> Arc<Self> {
        let watched = Self::new(inner, || {});
        watched.gate.forget_permits(Semaphore::MAX_PERMITS);
        watched
    }

    /// Waits until `number` reads are at the gate.
    async fn until_reading(&self, number: usize) {
        let waiting = async {
            while self.reading.load(Ordering::SeqCst) < number {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("they read");
    }
}

macro_rules! pass_on {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        #[async_trait]
        impl Vfs for Watched {
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
                let reading = self.reading.fetch_add(1, Ordering::SeqCst) + 1;
                self.reading_most.fetch_max(reading, Ordering::SeqCst);
                self.gate.acquire().await.expect("never closed").forget();
                self.reading.fetch_sub(1, Ordering::SeqCst);
                (self.at_read)();
                let read = self.inner.read(caller, file, offset, count).await?;
                self.read_bytes.fetch_add(read.data.len() as u64, Ordering::SeqCst);
                Ok(read)
            }
            $(async fn $name(&self, caller: &Caller $(, $arg: $type)*) -> Result<$result> {
                self.inner.$name(caller $(, $arg)*).await
            })*
        }
    };
}

pass_on! {
    getattr(file: &FileHandle) -> Attr;
    setattr(file: &FileHandle, changes: &SetAttr, guard: Option<Time>) -> Wcc;
    lookup(dir: &FileHandle, name: &[u8]) -> Entry;
    access(file: &FileHandle, wanted: Access) -> AccessGranted;
    readlink(file: &FileHandle) -> Bytes;
    write(file: &FileHandle, offset: u64, data: Bytes, stable: Stability) -> Written;
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
    commit(file: &FileHandle, offset: u64, count: u32) -> Committed;
    seek(file: &FileHandle, offset: u64, whence: SeekWhence) -> u64;
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_are_not_read() {
    let folder = tempfile::tempdir().expect("folder");
    let file = File::create(folder.path().join("file")).expect("creates");
    file.write_all_at(&[7; 8192], 1 << 20).expect("writes");
    file.set_len(4 << 20).expect("grows");
    let watched = Watched::new(local(&folder), || {});
    let vfs = client(serve(watched.clone(), true), 1).await;
    let file = find(&*vfs, "file").await;
    let asked = [(0, 3 << 20), (3 << 20, 1 << 20)];
    let fetched = vfs.fetch(&me(), &file, &asked, 1).await.expect("fetched");
    let mut content = vec![0; 4 << 20];
    content[1 << 20..][..8192].fill(7);
    assert_fetched(&fetched, &content, &asked);
    // File systems round holes to their own blocks.
    let read = watched.read_bytes.load(Ordering::SeqCst);
    assert!((8192..=64 << 10).contains(&read), "{read}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_meanwhile_is_told() {
    type Change = fn(&File);
    let changes: [(&str, Change); 3] = [
        ("written", |file| file.write_all_at(b"other", 5000).expect("writes")),
        ("longer", |file| file.set_len(3_100_000).expect("grows")),
        ("cut", |file| file.set_len(10).expect("cuts")),
    ];
    for (name, change) in changes {
        for blocking in [true, false] {
            let folder = tempfile::tempdir().expect("folder");
            make_file(&folder);
            let path = folder.path().join("file");
            let handle = File::options().write(true).open(&path).expect("opens");
            let times = AtomicUsize::new(0);
            let watched = Watched::new(local(&folder), move || {
                if times.fetch_add(1, Ordering::SeqCst) == 1 {
                    // Later than the clock of the file system can tell apart.
                    std::thread::sleep(Duration::from_millis(20));
                    change(&handle);
                }
            });
            let vfs = client(serve(watched, blocking), 1).await;
            let file = find(&*vfs, "file").await;
            let asked = [(0, 1 << 20), (1 << 20, 1 << 20), (2 << 20, 1 << 20)];
            let fetched = vfs.fetch(&me(), &file, &asked, 1).await;
            assert_eq!(fetched, Err(Error::Status(Status::JUKEBOX)), "{name}");
            let fetched = vfs.fetch(&me(), &file, &asked, 1).await.expect(name);
            assert_fetched(&fetched, &std::fs::read(&path).expect("reads"), &asked);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_regular_files_are_fetched_and_only_by_who_may_read() {
    let folder = tempfile::tempdir().expect("folder");
    let secret = File::create(folder.path().join("secret")).expect("creates");
    secret.set_len(8192).expect("grows");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    secret.set_permissions(mode).expect("mode");
    std::fs::create_dir(folder.path().join("dir")).expect("mkdir");
    std::os::unix::fs::symlink("secret", folder.path().join("link")).expect("symlink");
    let directory = local(&folder);
    let acts_as_callers = directory.acts_as_callers();
    let vfs = client(serve(directory, true), 1).await;
    let asked = [(0, 8192)];
    for (name, status) in [("dir", Status::ISDIR), ("link", Status::INVAL)] {
        let file = find(&*vfs, name).await;
        let fetched = vfs.fetch(&me(), &file, &asked, 1).await;
        assert_eq!(fetched, Err(Error::Status(status)), "{name}");
    }
    let forged = FileHandle::new(&[1; 30]).expect("short enough");
    vfs.fetch(&me(), &forged, &asked, 1).await.expect_err("no such file");
    let secret = find(&*vfs, "secret").await;
    vfs.fetch(&me(), &secret, &asked, 1).await.expect("the owner may");
    if acts_as_callers {
        // Though it is all one hole.
        let other = Caller { uid: 4711, gid: 4711, groups: Vec::new() };
        let fetched = vfs.fetch(&other, &secret, &asked, 1).await;
        assert_eq!(fetched, Err(Error::Status(Status::ACCES)));
    }
}

/// Asks without the client's own checks.
async fn ask(rpc: &RpcClient, file: FileHandle, ranges: Vec<(u64, u32)>, level: i32) -> Status {
    let mut arguments = Encoder::new();
    FetchArgs { file, level, ranges }.encode(&mut arguments);
    let request = Request {
        program: ext::PROGRAM,
        version: ext::VERSION,
        procedure: ext::FETCH,
        caller: me(),
        arguments: arguments.into_vec().into(),
        payload: None,
        reply_bytes: 0,
        class: CallClass::Read,
    };
    Status(rpc.call::<u32>(request).await.expect("an answer").results)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_for_too_much_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    make_file(&folder);
    let near = serve(local(&folder), true);
    let file = find(&*client(near.clone(), 1).await, "file").await;
    let rpc = RpcClient::connect(near, ClientOptions::default()).await.expect("connects");
    assert_eq!(ask(&rpc, file, vec![(0, FETCH_BYTES_MAX as u32)], 1).await, Status(0));
    for (ranges, level) in [
        (vec![(0, FETCH_BYTES_MAX as u32 + 1)], 1),
        (vec![(0, u32::MAX); FETCH_RANGES_MAX], 1),
        (vec![(5, 4096)], 1),
        (vec![(u64::MAX - 4095, 4096)], 1),
        (vec![(0, 0)], 1),
        (vec![(0, 4096)], 20),
        (vec![(0, 4096)], -1),
    ] {
        assert_eq!(ask(&rpc, file, ranges.clone(), level).await, Status::INVAL, "{ranges:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_calls_go_on_while_fetches_wait() {
    let folder = tempfile::tempdir().expect("folder");
    make_file(&folder);
    for (bytes, fetches, at_once) in [(4096, 60, 16), (4 << 20, 7, 4)] {
        let watched = Watched::closed(local(&folder));
        let vfs = client(serve(watched.clone(), false), 1).await;
        let file = find(&*vfs, "file").await;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..fetches {
            let vfs = vfs.clone();
            tasks.spawn(async move { vfs.fetch(&me(), &file, &[(0, bytes)], 1).await });
        }
        watched.until_reading(at_once).await;
        // All are on their way, on the channel of this call, too.
        let caller = me();
        let attr = tokio::time::timeout(Duration::from_secs(20), vfs.getattr(&caller, &file));
        attr.await.expect("not kept waiting").expect("attr");
        watched.gate.add_permits(10_000);
        while let Some(done) = tasks.join_next().await {
            done.expect("no panic").expect("fetched");
        }
        assert_eq!(watched.reading_most.load(Ordering::SeqCst), at_once, "of {bytes} bytes");
    }
}
