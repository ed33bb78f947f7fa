//! The client against NFS-Ganesha over TCP. Needs root, since the server opens files by handle.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use gridvfs_upstream::{ClientOptions, ConnectError, MountTarget, NfsClient, TcpConnector};
use gridvfs_vfs::{
    Access, Caller, CreateHow, Error, FileKind, NodeKind, SeekWhence, SetAttr, SetTime, Stability,
    Status, Time, Vfs,
};

struct Ganesha {
    folder: tempfile::TempDir,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support/ganesha.sh")
}

impl Ganesha {
    /// Starts a server; `None`, with a word on it, where that is not possible.
    fn start(test: &str) -> Option<Self> {
        let installed = ["/usr/bin", "/usr/sbin", "/usr/local/bin"]
            .iter()
            .any(|place| Path::new(place).join("ganesha.nfsd").exists());
        if !nix::unistd::geteuid().is_root() || !installed {
            println!("SKIPPED: {test}: needs root and NFS-Ganesha");
            return None;
        }
        let folder = tempfile::tempdir().expect("folder");
        std::fs::create_dir(folder.path().join("export")).expect("export");
        let ganesha = Self { folder };
        ganesha.run(&["start", &ganesha.server(), &ganesha.export()]);
        Some(ganesha)
    }

    fn server(&self) -> String {
        self.folder.path().join("server").display().to_string()
    }

    fn export(&self) -> String {
        self.folder.path().join("export").display().to_string()
    }

    fn run(&self, arguments: &[&str]) {
        let output = Command::new("bash").arg(script()).args(arguments).output().expect("bash");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn port(&self, name: &str) -> u16 {
        let text = std::fs::read_to_string(self.folder.path().join("server").join(name));
        text.expect("written").trim().parse().expect("a port")
    }

    fn connector(&self, port: &str) -> TcpConnector {
        TcpConnector::new("127.0.0.1".into(), self.port(port))
    }

    async fn client(&self, options: ClientOptions) -> Arc<NfsClient> {
        let path = self.export();
        let root = MountTarget::mount(&self.connector("mount_port"), &root_caller(), &path).await;
        let connector = Arc::new(self.connector("port"));
        NfsClient::connect_with_root(connector, root.expect("mounts"), options)
            .await
            .expect("connects")
    }
}

impl Drop for Ganesha {
    fn drop(&mut self) {
        let _ = Command::new("bash").arg(script()).args(["kill", &self.server()]).output();
    }
}

fn root_caller() -> Caller {
    Caller { uid: 0, gid: 0, groups: Vec::new() }
}

#[tokio::test]
async fn every_procedure_works() {
    let Some(ganesha) = Ganesha::start("every_procedure_works") else { return };
    let client = ganesha.client(ClientOptions::default()).await;
    let (me, root) = (root_caller(), client.root());
    assert_eq!(client.getattr(&me, &root).await.expect("getattr").kind, FileKind::Directory);
    let info = client.fsinfo(&me, &root).await.expect("fsinfo");
    assert!(info.read_max >= 65536 && info.read_max <= 1 << 20, "{info:?}");
    assert!(client.fsstat(&me, &root).await.expect("fsstat").total_bytes > 0);
    assert!(client.pathconf(&me, &root).await.expect("pathconf").name_max >= 255);

    let made =
        client.create(&me, &root, b"f\xff", &CreateHow::Exclusive([5; 8])).await.expect("create");
    let again = client.create(&me, &root, b"f\xff", &CreateHow::Exclusive([5; 8])).await;
    assert_eq!(again.expect("the same call").handle, made.handle);
    let file = made.handle.expect("told");
    let mode = SetAttr { mode: Some(0o640), ..SetAttr::default() };
    let exists = client.create(&me, &root, b"f\xff", &CreateHow::Guarded(mode)).await;
    assert_eq!(exists.err(), Some(Error::Status(Status::EXIST)));

    let wcc = client.setattr(&me, &file, &mode, None).await.expect("setattr");
    assert_eq!(wcc.after.expect("told").mode & 0o7777, 0o640);
    let times = SetAttr {
        atime: SetTime::To(Time { seconds: 5, nanoseconds: 6 }),
        mtime: SetTime::ServerNow,
        ..SetAttr::default()
    };
    client.setattr(&me, &file, &times, None).await.expect("times");
    let attr = client.getattr(&me, &file).await.expect("attr");
    assert_eq!(attr.atime, Time { seconds: 5, nanoseconds: 6 });
    let stale = Some(Time { seconds: 1, nanoseconds: 0 });
    let guarded = client.setattr(&me, &file, &mode, stale).await;
    assert_eq!(guarded, Err(Error::Status(Status::NOT_SYNC)));

    // Larger than a call, not a multiple of anything, over 4 GiB into the file.
    let data: Vec<u8> = (0..3_500_001u32).map(|at| (at % 251) as u8).collect();
    let offset = (5 << 30) + 13;
    let written = client.write(&me, &file, offset, data.clone().into(), Stability::Unstable).await;
    let written = written.expect("write");
    assert_eq!(written.count as usize, data.len());
    let committed = client.commit(&me, &file, 0, 0).await.expect("commit");
    assert_eq!(committed.verifier, written.verifier);
    let read = client.read(&me, &file, offset, 4_000_000).await.expect("read");
    assert!(read.data == data && read.eof);
    let hole = client.read(&me, &file, 4096, 1 << 20).await.expect("hole");
    assert!(hole.data.len() == 1 << 20 && hole.data.iter().all(|byte| *byte == 0) && !hole.eof);
    let behind = client.read(&me, &file, offset * 2, 100).await.expect("behind the end");
    assert!(behind.data.is_empty() && behind.eof);

    let dir = client.mkdir(&me, &root, b"dir", &SetAttr { mode: Some(0o755), ..mode }).await;
    let dir = dir.expect("mkdir").handle.expect("told");
    let link = client.symlink(&me, &dir, b"s", b"../f\xff", &SetAttr::default()).await;
    let link = link.expect("symlink").handle.expect("told");
    assert_eq!(client.readlink(&me, &link).await.expect("readlink"), &b"../f\xff"[..]);
    client.mknod(&me, &dir, b"fifo", NodeKind::Fifo, &mode).await.expect("fifo");
    client.mknod(&me, &dir, b"socket", NodeKind::Socket, &mode).await.expect("socket");
    client.link(&me, &file, &dir, b"hard").await.expect("link");
    assert_eq!(client.getattr(&me, &file).await.expect("attr").links, 2);
    let granted = client.access(&me, &file, Access(Access::READ | Access::MODIFY)).await;
    assert_eq!(granted.expect("access").granted, Access(Access::READ | Access::MODIFY));

    client.rename(&me, &dir, b"hard", &root, b"moved", false).await.expect("rename");
    let exists = client.rename(&me, &root, b"moved", &dir, b"fifo", true).await;
    assert_eq!(exists, Err(Error::Status(Status::EXIST)));
    client.rename(&me, &root, b"moved", &dir, b"back", true).await.expect("no replace");
    assert_eq!(client.lookup(&me, &dir, b"back").await.expect("there").handle, file);
    let full = client.rmdir(&me, &root, b"dir").await;
    assert_eq!(full, Err(Error::Status(Status::NOTEMPTY)));
    let long = client.lookup(&me, &root, &[b'n'; 300]).await;
    assert_eq!(long, Err(Error::Status(Status::NAMETOOLONG)));
    let seek = client.seek(&me, &file, 0, SeekWhence::Data).await;
    assert_eq!(seek, Err(Error::Status(Status::NOTSUPP)));
    for name in [&b"s"[..], b"fifo", b"socket", b"back"] {
        client.remove(&me, &dir, name).await.expect("remove");
    }
    client.rmdir(&me, &root, b"dir").await.expect("rmdir");
    let gone = client.getattr(&me, &dir).await;
    assert_eq!(gone.err(), Some(Error::Status(Status::STALE)));
}

#[tokio::test]
async fn identities_and_large_directories() {
    let Some(ganesha) = Ganesha::start("identities_and_large_directories") else { return };
    let client = ganesha.client(ClientOptions::default()).await;
    let (me, root) = (root_caller(), client.root());
    let all = SetAttr { mode: Some(0o777), ..SetAttr::default() };
    client.setattr(&me, &root, &all, None).await.expect("setattr");
    let other = Caller { uid: 1234, gid: 4321, groups: vec![77] };
    let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    let made = client.create(&other, &root, b"own", &CreateHow::Guarded(mode)).await;
    let attr = made.expect("made").attr.expect("told");
    assert_eq!((attr.uid, attr.gid), (1234, 4321));
    let stranger = Caller { uid: 1235, gid: 4321, groups: Vec::new() };
    let own = client.lookup(&me, &root, b"own").await.expect("there").handle;
    let refused = client.read(&stranger, &own, 0, 1).await;
    assert_eq!(refused.err(), Some(Error::Status(Status::ACCES)));
    let options = ClientOptions { credential: Some((1234, 4321)), ..ClientOptions::default() };
    let shown = ganesha.client(options).await;
    shown.read(&stranger, &own, 0, 1).await.expect("shown as the owner");

    for number in 0..3000 {
        let path = Path::new(&ganesha.export()).join(format!("file-{number:04}"));
        std::fs::write(path, b"").expect("file");
    }
    for plus in [true, false] {
        let (mut cookie, mut verifier, mut names) = (0, [0; 8], Vec::new());
        loop {
            let page = client.readdir(&me, &root, cookie, verifier, 32 << 10, plus).await;
            let page = page.expect("page");
            verifier = page.verifier;
            for entry in page.entries {
                assert!(!plus || entry.attr.is_some() || entry.name.starts_with(b"."));
                cookie = entry.cookie;
                names.push(entry.name);
            }
            if page.eof {
                break;
            }
        }
        names.retain(|name| name.starts_with(b"file-"));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 3000);
    }
}

#[tokio::test]
async fn mount_errors_are_told() {
    let Some(ganesha) = Ganesha::start("mount_errors_are_told") else { return };
    let connector = ganesha.connector("mount_port");
    let missing = MountTarget::mount(&connector, &root_caller(), "/no/such/export").await;
    match missing {
        Err(ConnectError::Fatal(text)) => assert!(text.contains("/no/such/export"), "{text}"),
        other => panic!("{other:?}"),
    }
    let nobody = TcpConnector::new("127.0.0.1".into(), 1);
    let refused = MountTarget::mount(&nobody, &root_caller(), "/").await;
    assert!(matches!(refused, Err(ConnectError::Transient(_))), "{refused:?}");
    let nowhere = TcpConnector::new("no-such-host.invalid".into(), 2049);
    let unknown = MountTarget::mount(&nowhere, &root_caller(), "/").await;
    assert!(unknown.is_err(), "{unknown:?}");
    let portmapper = TcpConnector::new("127.0.0.1".into(), 111);
    let port = MountTarget::ask_portmapper(&portmapper).await.expect("registered");
    assert_ne!(port, 0);
}

#[tokio::test]
async fn a_server_killed_under_load_loses_nothing() {
    let Some(ganesha) = Ganesha::start("a_server_killed_under_load_loses_nothing") else { return };
    let client = ganesha.client(ClientOptions::default()).await;
    let (me, root) = (root_caller(), client.root());
    let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    let file = client.create(&me, &root, b"f", &CreateHow::Guarded(mode)).await;
    let file = file.expect("made").handle.expect("told");
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..16u64 {
        let client = client.clone();
        tasks.spawn(async move {
            let me = root_caller();
            for round in 0..40u64 {
                let number = worker * 40 + round;
                let data = Bytes::from(vec![number as u8 | 1; 100_000]);
                let at = number * 100_000;
                let written = client.write(&me, &file, at, data.clone(), Stability::FileSync).await;
                assert_eq!(written.expect("written").count, 100_000);
                let name = format!("dir-{number}");
                client.mkdir(&me, &client.root(), name.as_bytes(), &mode).await.expect("mkdir");
                let read = client.read(&me, &file, at, 100_000).await.expect("read");
                assert!(read.data == data);
                client.rmdir(&me, &client.root(), name.as_bytes()).await.expect("rmdir");
            }
        });
    }
    let (server, export) = (ganesha.server(), ganesha.export());
    let restarts = tokio::task::spawn_blocking(move || {
        for _ in 0..2 {
            std::thread::sleep(std::time::Duration::from_millis(400));
            for arguments in [&["kill", &server][..], &["start", &server, &export]] {
                let output =
                    Command::new("bash").arg(script()).args(arguments).output().expect("bash");
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
        }
    });
    restarts.await.expect("restarts");
    while let Some(done) = tasks.join_next().await {
        done.expect("no error reaches the caller");
    }
    let reconnects = client.counters().reconnects.load(Ordering::Relaxed);
    assert!(reconnects >= 2, "the server was killed while calls were in flight");
    let data = std::fs::read(Path::new(&ganesha.export()).join("f")).expect("file");
    assert_eq!(data.len(), 640 * 100_000);
    for (number, piece) in data.chunks(100_000).enumerate() {
        assert!(piece.iter().all(|byte| *byte == number as u8 | 1), "piece {number}");
    }
}
