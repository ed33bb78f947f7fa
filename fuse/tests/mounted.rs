//! The front end between the kernel and a directory, in one process.

#[path = "mounted/passthrough.rs"]
mod passthrough;
#[path = "mounted/probe.rs"]
mod probe;
#[path = "mounted/rig.rs"]
mod rig;
#[path = "mounted/writeback.rs"]
mod writeback;

use std::fs::File;
use std::os::unix::fs::FileExt;

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
