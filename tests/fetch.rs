//! Bulk reads through a standing proxy of its own process, over a unix socket.

mod common;

use std::fs::File;
use std::io::BufRead;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::gridvfs;
use gridvfs_upstream::{ClientOptions, KeyedConnector, MountTarget, NfsClient, UnixConnector};
use gridvfs_vfs::{Caller, Vfs};

const KEY: &str = "00112233445566778899aabbccddeeff";
const SIZE: u64 = 24 << 20;

/// A proxy that ends when it is dropped.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(folder: &Path) -> Proxy {
    let key = folder.join("key");
    let mut options = File::options();
    let file = options.write(true).create_new(true).mode(0o600).open(&key).expect("creates");
    file.write_all_at(KEY.as_bytes(), 0).expect("writes");
    let mut serve = Command::new(gridvfs());
    serve.args(["proxy", "serve", "--listen"]);
    serve.arg(format!("unix:{}", folder.join("socket").display()));
    serve.arg("--key-file").arg(&key).arg("--export").arg(folder.join("export"));
    serve.env("XDG_STATE_HOME", folder.join("state")).env("XDG_RUNTIME_DIR", folder);
    serve.stdout(Stdio::piped());
    let mut proxy = Proxy(serve.spawn().expect("runs"));
    let mut line = String::new();
    let mut words = std::io::BufReader::new(proxy.0.stdout.take().expect("its words"));
    words.read_line(&mut line).expect("where it listens");
    assert!(line.starts_with("listening"), "{line}");
    proxy
}

/// A guest's memory in small: pages of programs, pages of zeros that are there, and holes.
fn memory() -> Vec<u8> {
    let program = std::fs::read(gridvfs()).expect("this program");
    let mut memory = vec![0; SIZE as usize];
    for (number, chunk) in memory.chunks_mut(1 << 20).enumerate() {
        if number % 5 < 2 {
            let from = (number << 20) % (program.len() - (1 << 20));
            chunk.copy_from_slice(&program[from..][..1 << 20]);
        }
    }
    memory
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_fetched_from_a_standing_proxy() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::create_dir(folder.path().join("export")).expect("mkdir");
    let memory = memory();
    let file = File::create(folder.path().join("export/memory")).expect("creates");
    for at in (0..SIZE).step_by(1 << 20).filter(|at| at >> 20 != 4) {
        let chunk = &memory[at as usize..][..1 << 20];
        file.write_all_at(chunk, at).expect("writes");
    }
    let _proxy = serve(folder.path());
    let socket = UnixConnector::new(folder.path().join("socket"));
    let caller = Caller { uid: 0, gid: 0, groups: Vec::new() };
    let stranger = KeyedConnector::new(socket.clone(), KEY.replace('0', "1"));
    MountTarget::mount(&stranger, &caller, "/").await.expect_err("another key");

    let connector = Arc::new(KeyedConnector::new(socket, KEY.into()));
    let root = MountTarget::mount(&*connector, &caller, "/").await.expect("mounts");
    let options = ClientOptions::default();
    let client = NfsClient::connect_with_root(connector, root, options).await.expect("connects");
    let handle = client.lookup(&caller, &root, b"memory").await.expect("there").handle;
    let attr = client.getattr(&caller, &handle).await.expect("attr");
    let before = client.counters().received_bytes.load(Ordering::Relaxed);
    let mut tasks = tokio::task::JoinSet::new();
    for at in (0..SIZE).step_by(2 << 20) {
        let (client, caller) = (client.clone(), caller.clone());
        tasks.spawn(async move {
            let ranges = [(at, 1 << 20), (at + (1 << 20), 1 << 20)];
            client.fetch(&caller, &handle, &ranges, 3).await.expect("fetched")
        });
    }
    let mut got = vec![0xEE; SIZE as usize];
    while let Some(done) = tasks.join_next().await {
        let fetched = done.expect("no panic");
        assert_eq!((fetched.attr.size, fetched.attr.mtime), (SIZE, attr.mtime));
        for run in fetched.ranges.iter().flat_map(|range| range.runs()) {
            let place = &mut got[run.offset as usize..][..run.length as usize];
            match run.data {
                Some(data) => place.copy_from_slice(&data),
                None => place.fill(0),
            }
        }
    }
    assert!(got == memory);
    // Two fifths are pages of a program.
    let received = client.counters().received_bytes.load(Ordering::Relaxed) - before;
    assert!(received < SIZE / 4, "{received} bytes");
}
