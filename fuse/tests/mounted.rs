//! The front end between the kernel and a directory, in one process.

#[path = "mounted/passthrough.rs"]
mod passthrough;
#[path = "mounted/probe.rs"]
mod probe;
#[path = "mounted/rig.rs"]
mod rig;
#[path = "mounted/speed.rs"]
mod speed;
#[path = "mounted/writeback.rs"]
mod writeback;

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::time::{Duration, SystemTime};

use gridvfs_fuse::SessionOptions;
use rig::Rig;

#[test]
fn what_is_at_hand_is_answered_at_once() {
    let Some(rig) = Rig::new("at-hand", SessionOptions::default()) else { return };
    std::fs::write(rig.behind("file"), vec![b's'; 300_000]).expect("write");
    std::fs::write(rig.folder.join("held"), vec![b'h'; 300_000]).expect("write");
    *rig.probe.at_hand.lock().expect("file") =
        Some(File::open(rig.folder.join("held")).expect("open"));
    assert_eq!(rig::content(&rig.at("file")), vec![b'h'; 300_000]);
    assert!(!rig.probe.take().iter().any(|call| call.starts_with("read")));
    // What is not is asked for; the end of the file is where the answer is short.
    *rig.probe.at_hand.lock().expect("file") = None;
    std::fs::write(rig.behind("other"), b"short").expect("write");
    let file = File::open(rig.at("other")).expect("open");
    let mut answer = [0; 16];
    assert_eq!(file.read_at(&mut answer, 3).expect("read"), 2);
    assert_eq!(&answer[..2], b"rt");
}

#[test]
fn an_exclusive_create_is_one_call() {
    let Some(rig) = Rig::new("exclusive", SessionOptions::default()) else { return };
    let mut new = File::options();
    new.write(true).create_new(true).mode(0o640);
    let before = SystemTime::now();
    drop(new.open(rig.at("lock")).expect("created"));
    let calls = rig.probe.take();
    assert_eq!(calls.iter().filter(|call| *call != "flush").count(), 1, "{calls:?}");
    assert_eq!(calls[0], "create guarded");
    let meta = std::fs::metadata(rig.behind("lock")).expect("stat");
    assert_eq!(meta.permissions().mode() & 0o777, 0o640);
    let second = Duration::from_secs(1);
    assert!(meta.accessed().expect("time") > before - second, "a time of today");
    let again = new.open(rig.at("lock")).expect_err("there already");
    assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists);
}

#[test]
fn a_directory_can_go_once_what_was_hidden_in_it_is_closed() {
    let Some(rig) = Rig::new("rmdir", SessionOptions::default()) else { return };
    for round in 0..5 {
        std::fs::create_dir(rig.at("dir")).expect("mkdir");
        let files: Vec<File> = (0..3)
            .map(|number| {
                let path = rig.at(&format!("dir/{number}"));
                let file = File::create(&path).expect("create");
                std::fs::remove_file(&path).expect("unlink");
                file
            })
            .collect();
        // The kernel tells of a close a little later.
        drop(files);
        std::thread::sleep(Duration::from_millis(10 * round));
        assert_eq!(std::fs::read_dir(rig.at("dir")).expect("list").count(), 0);
        std::fs::remove_dir(rig.at("dir")).expect("rmdir");
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while std::fs::read_dir(&rig.export).expect("list").count() > 0 {
        assert!(std::time::Instant::now() < deadline, "hidden files are left");
        std::thread::sleep(Duration::from_millis(20));
    }
}
