//! Files that the kernel reads by itself.

use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};

use gridvfs_fuse::SessionOptions;

use crate::rig::{Rig, content, is_root};

/// A mount with a file `image` that nobody may write, and what the kernel may read in its stead:
/// other bytes, so that the test sees who has answered.
fn rig(test: &str) -> Option<Rig> {
    if !is_root() {
        println!("SKIPPED: {test}: needs root (CAP_SYS_ADMIN)");
        return None;
    }
    let options = SessionOptions { attr_timeout: std::time::Duration::ZERO, ..Default::default() };
    let rig = Rig::new(test, options)?;
    std::fs::write(rig.behind("image"), b"by the server").expect("write");
    std::fs::set_permissions(rig.behind("image"), Permissions::from_mode(0o444)).expect("chmod");
    std::fs::write(rig.folder.join("whole"), b"by the kernel").expect("write");
    *rig.probe.whole.lock().expect("path") = Some(rig.folder.join("whole"));
    if content(&rig.at("image")) != b"by the kernel" {
        println!("SKIPPED: {test}: this kernel has no FUSE passthrough");
        return None;
    }
    assert!(!rig.probe.take().iter().any(|call| call.starts_with("read")));
    Some(rig)
}

#[test]
fn a_writer_and_readers_in_passthrough_see_the_same() {
    let Some(rig) = rig("passthrough-writer") else { return };
    let mut first = File::open(rig.at("image")).expect("open");
    let second = File::open(rig.at("image")).expect("open");
    // Root may write what nobody may.
    let writer = File::options().read(true).write(true).open(rig.at("image")).expect("open");
    writer.write_all_at(b"THE", 3).expect("write");
    assert_eq!(&content(&rig.behind("image"))[..6], b"by THE", "the server has it");
    let mut bytes = [0; 13];
    second.read_exact_at(&mut bytes, 0).expect("read");
    assert_eq!(&bytes, b"by THE kernel", "and the readers");
    writer.set_len(6).expect("truncate");
    let mut text = String::new();
    first.read_to_string(&mut text).expect("read");
    assert_eq!(text, "by THE");
    writer.read_exact_at(&mut bytes[..6], 0).expect("read");
    assert_eq!(&bytes[..6], b"by THE");
    drop((first, second, writer));
    // From now on the Vfs does not call it whole; the page cache serves it.
    assert_eq!(content(&rig.at("image")), b"by THE");
    let mapped = File::options().read(true).write(true).open(rig.at("image")).expect("open");
    assert_eq!(content(&rig.at("image")), b"by THE");
    drop(mapped);
}

#[test]
fn readers_come_and_go_beside_other_opens() {
    let Some(rig) = rig("passthrough-mix") else { return };
    let writer = File::options().append(true).open(rig.at("image")).expect("open");
    assert_eq!(content(&rig.at("image")), b"by the server", "the page cache is in use");
    drop(writer);
    // The kernel says RELEASE some time after close has returned.
    let closed = std::time::Instant::now();
    while content(&rig.at("image")) != b"by the kernel" {
        assert!(
            closed.elapsed() < std::time::Duration::from_secs(10),
            "the page cache is not let go"
        );
    }
    std::thread::scope(|scope| {
        for number in 0..8 {
            let path = rig.at("image");
            scope.spawn(move || {
                for _ in 0..200 {
                    if number == 0 {
                        drop(File::options().write(true).open(&path).expect("to write"));
                    }
                    let mut file = File::open(&path).expect("to read");
                    let mut text = String::new();
                    file.read_to_string(&mut text).expect("read");
                    assert!(text == "by the kernel" || text == "by the server", "{text}");
                }
            });
        }
    });
}

#[test]
fn files_that_can_be_written_are_left_to_the_page_cache() {
    let Some(rig) = rig("passthrough-writable") else { return };
    std::fs::write(rig.behind("disk"), b"by the server").expect("write");
    assert_eq!(content(&rig.at("disk")), b"by the server");
}

#[test]
fn a_file_that_changed_on_the_server_is_served() {
    let Some(rig) = rig("passthrough-change") else { return };
    let reader = File::open(rig.at("image")).expect("open");
    std::fs::write(rig.behind("image"), b"changed since").expect("write");
    assert_eq!(content(&rig.at("image")), b"changed since");
    let mut bytes = [0; 13];
    reader.read_exact_at(&mut bytes, 0).expect("read");
    assert_eq!(&bytes, b"by the kernel", "as it was when it was opened");
}
