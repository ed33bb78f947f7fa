//! The local directory with few descriptors to spare. A program of its own, because the limit is
//! the process's.

use std::fs;
use std::future::Future;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use gridvfs_proxy::local_dir::{LocalDir, LocalDirOptions};
use gridvfs_vfs::{Caller, CreateHow, SetAttr, Stability, Vfs};

fn now<T>(call: impl Future<Output = T>) -> T {
    let mut call = std::pin::pin!(call);
    match call.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("a call of the local directory has awaited"),
    }
}

#[test]
fn ten_thousand_files_with_two_hundred_and_fifty_six_descriptors() {
    const FILES: usize = 10_000;
    let limit = libc::rlimit { rlim_cur: 256, rlim_max: 256 };
    // SAFETY: a live value.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    let dir = tempfile::tempdir().unwrap();
    let fs = LocalDir::open(dir.path(), LocalDirOptions::default()).unwrap();
    let me = Caller { uid: 0, gid: 0, groups: vec![] };
    let files: Vec<_> = (0..FILES)
        .map(|n| {
            let how = CreateHow::Guarded(SetAttr { mode: Some(0o444), ..SetAttr::default() });
            let name = format!("file{n}");
            let made = now(fs.create(&me, &fs.root(), name.as_bytes(), &how)).unwrap();
            made.handle.unwrap()
        })
        .collect();
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let (fs, files, me) = (&fs, &files, &me);
            scope.spawn(move || {
                for n in (thread..FILES).step_by(16) {
                    let data = Bytes::from(n.to_string());
                    now(fs.write(me, &files[n], 0, data, Stability::Unstable)).unwrap();
                }
                for n in (thread..FILES).step_by(16) {
                    let read = now(fs.read(me, &files[n], 0, 100)).unwrap();
                    assert_eq!(read.data, n.to_string());
                }
            });
        }
    });
    assert!(fs::read_dir("/proc/self/fd").unwrap().count() < 200);
}
