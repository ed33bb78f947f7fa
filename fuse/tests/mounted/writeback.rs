//! The kernel's write-back cache.

use std::fs::{File, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use gridvfs_fuse::SessionOptions;

use crate::rig::{Rig, content, is_root};

fn rig(test: &str) -> Option<Rig> {
    Rig::new(test, SessionOptions { writeback_cache: true, ..SessionOptions::default() })
}

fn count(calls: &[String], start: &str) -> usize {
    calls.iter().filter(|call| call.starts_with(start)).count()
}

#[test]
fn many_small_writes_are_few_large_ones() {
    let Some(rig) = rig("writeback-small") else { return };
    let mut file = File::create(rig.at("file")).expect("create");
    let lines: Vec<String> = (0..5000).map(|number| format!("line {number}\n")).collect();
    for line in &lines {
        file.write_all(line.as_bytes()).expect("write");
    }
    drop(file);
    assert_eq!(content(&rig.behind("file")), lines.concat().into_bytes());
    let calls = rig.probe.take();
    assert!(count(&calls, "write") < 10, "{calls:?}");
    // The time of writing is the kernel's, and stays when the kernel has forgotten it.
    let mtime = |path| std::fs::metadata(path).expect("stat").modified().expect("time");
    assert_eq!(mtime(rig.at("file")), mtime(rig.behind("file")), "{calls:?}");
}

#[test]
fn appending_goes_to_the_end() {
    let Some(rig) = rig("writeback-append") else { return };
    std::fs::write(rig.behind("log"), b"zero\n").expect("write");
    let mut first = File::options().append(true).open(rig.at("log")).expect("open");
    let mut second = File::options().append(true).open(rig.at("log")).expect("open");
    first.write_all(b"one\n").expect("write");
    second.write_all(b"two\n").expect("write");
    first.write_all(b"three\n").expect("write");
    assert_eq!(content(&rig.at("log")), b"zero\none\ntwo\nthree\n");
    drop((first, second));
    assert_eq!(content(&rig.behind("log")), b"zero\none\ntwo\nthree\n");
}

#[test]
fn truncation_both_ways() {
    let Some(rig) = rig("writeback-truncate") else { return };
    let file = File::create(rig.at("file")).expect("create");
    file.write_all_at(&[b'x'; 10_000], 0).expect("write");
    file.set_len(5000).expect("shorter");
    file.set_len(20_000).expect("longer");
    file.write_all_at(b"end", 19_997).expect("write");
    drop(file);
    let mut wanted = vec![b'x'; 5000];
    wanted.resize(19_997, 0);
    wanted.extend_from_slice(b"end");
    assert_eq!(content(&rig.behind("file")), wanted);
    // O_TRUNC over unsent data.
    let file = File::create(rig.at("file")).expect("open");
    file.write_all_at(b"old", 100).expect("write");
    let second = File::create(rig.at("file")).expect("open");
    second.write_all_at(b"new", 0).expect("write");
    drop((file, second));
    assert_eq!(content(&rig.behind("file")), b"new");
}

#[test]
fn mapped_pages_reach_the_server() {
    let Some(rig) = rig("writeback-mmap") else { return };
    std::fs::write(rig.behind("file"), vec![b'.'; 12_000]).expect("write");
    // In a process of its own: unmapping holds a lock on the process's memory while it waits for
    // the file system, which needs memory.
    let mut mapper = Command::new(std::env::current_exe().expect("this test"));
    mapper.args(["--exact", "writeback::mapper", "--ignored"]).env("GRIDVFS_MAP", rig.at("file"));
    let output = mapper.output().expect("mapper");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let bytes = content(&rig.behind("file"));
    assert_eq!((bytes.len(), bytes[5000], bytes[9000]), (12_000, b'!', b'?'));
}

#[test]
#[ignore = "runs within another test"]
fn mapper() {
    let Some(path) = std::env::var_os("GRIDVFS_MAP") else { return };
    let file = File::options().read(true).write(true).open(path).expect("open");
    // SAFETY: a new mapping of a file that nobody cuts.
    unsafe {
        let (protection, null) = (libc::PROT_READ | libc::PROT_WRITE, std::ptr::null_mut());
        let map = libc::mmap(null, 12_000, protection, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(map, libc::MAP_FAILED);
        drop(file);
        map.cast::<u8>().add(5000).write(b'!');
        assert_eq!(libc::msync(map, 12_000, libc::MS_SYNC), 0);
        map.cast::<u8>().add(9000).write(b'?');
        assert_eq!(libc::munmap(map, 12_000), 0);
    }
}

#[test]
fn a_page_is_filled_through_a_descriptor_for_writing() {
    let Some(rig) = rig("writeback-fill") else { return };
    std::fs::write(rig.behind("file"), vec![b'a'; 9000]).expect("write");
    let file = File::options().write(true).open(rig.at("file")).expect("open");
    file.write_all_at(b"B", 5000).expect("write");
    drop(file);
    let mut wanted = vec![b'a'; 9000];
    wanted[5000] = b'B';
    assert_eq!(content(&rig.behind("file")), wanted);
}

#[test]
fn who_may_write_but_not_read_can_write_parts_of_pages() {
    let test = "writeback-write-only";
    if !is_root() {
        println!("SKIPPED: {test}: needs root (a second user)");
        return;
    }
    let options = SessionOptions {
        writeback_cache: true,
        allow_other: true,
        default_permissions: true,
        ..SessionOptions::default()
    };
    let Some(rig) = Rig::new(test, options) else { return };
    std::fs::set_permissions(&rig.folder, Permissions::from_mode(0o755)).expect("chmod");
    std::fs::write(rig.behind("drop"), vec![b'a'; 9000]).expect("write");
    std::fs::set_permissions(rig.behind("drop"), Permissions::from_mode(0o622)).expect("chmod");
    let (path, nobody) = (rig.at("drop"), 65_534);
    let script = format!("printf B | dd of={} bs=1 seek=5000 conv=notrunc 2>&1", path.display());
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir("/").uid(nobody).gid(nobody);
    let output = command.output().expect("sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let mut read = Command::new("cat");
    read.arg(&path).current_dir("/").uid(nobody).gid(nobody);
    assert!(!read.output().expect("cat").status.success(), "still not to be read");
    let mut wanted = vec![b'a'; 9000];
    wanted[5000] = b'B';
    assert_eq!(content(&rig.behind("drop")), wanted);
    assert_eq!(content(&rig.at("drop")), wanted);
}

#[test]
fn fsync_sends_then_commits() {
    let Some(rig) = rig("writeback-fsync") else { return };
    let file = File::create(rig.at("file")).expect("create");
    file.write_all_at(&[b'x'; 10_000], 0).expect("write");
    rig.probe.take();
    file.sync_all().expect("fsync");
    let calls = rig.probe.take();
    let at = |start: &str| calls.iter().rposition(|call| call.starts_with(start));
    let commit = at("commit").expect("commit");
    assert!(at("write").expect("data") < commit, "{calls:?}");
    assert!(at("setattr").is_none_or(|time| time < commit), "{calls:?}");
    assert_eq!(content(&rig.behind("file")), [b'x'; 10_000]);
}

#[test]
fn times_that_a_writer_may_not_set_do_no_harm() {
    let Some(rig) = rig("writeback-times") else { return };
    rig.probe.refuse_times.store(true, Ordering::Relaxed);
    let file = File::create(rig.at("file")).expect("create");
    file.write_all_at(&[b'x'; 5000], 0).expect("write");
    file.set_len(4000).expect("truncate");
    file.sync_all().expect("fsync");
    file.write_all_at(b"y", 0).expect("write");
    drop(file);
    assert_eq!(content(&rig.behind("file")).len(), 4000);
    // A program's own wish is refused as ever.
    let file = File::options().write(true).open(rig.at("file")).expect("open");
    let wish = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    assert!(file.set_modified(wish).is_err());
    rig.probe.refuse_times.store(false, Ordering::Relaxed);
    file.set_modified(wish).expect("granted");
    drop(file);
    assert_eq!(std::fs::metadata(rig.behind("file")).expect("stat").mtime(), 1_000_000);
}

#[test]
fn a_change_of_mode_does_not_send_old_times() {
    let Some(rig) = rig("writeback-chmod") else { return };
    std::fs::write(rig.behind("file"), b"content").expect("write");
    let path = rig.at("file");
    assert_eq!(content(&path), b"content");
    let later = SystemTime::now() + Duration::from_secs(1000);
    let behind = File::options().write(true).open(rig.behind("file")).expect("open");
    behind.set_modified(later).expect("utimes");
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("chmod");
    std::fs::hard_link(&path, rig.at("second")).expect("link");
    File::open(&path).expect("open").sync_all().expect("fsync");
    let meta = std::fs::metadata(rig.behind("file")).expect("stat");
    assert_eq!(meta.modified().expect("time"), later, "the server's own");
    assert_eq!(meta.mode() & 0o777, 0o600);
}

#[test]
fn data_that_was_not_sent_is_no_hole() {
    let Some(rig) = rig("writeback-seek") else { return };
    let mut file = File::create(rig.at("file")).expect("create");
    file.set_len(1 << 20).expect("size");
    file.write_all_at(b"data", 700_000).expect("write");
    let mut reader = File::open(rig.at("file")).expect("open");
    // SAFETY: a plain system call on a descriptor that is open.
    let data = unsafe { libc::lseek(reader.as_raw_fd(), 0, libc::SEEK_DATA) };
    assert!((0..=700_000).contains(&data), "{data}");
    reader.seek(SeekFrom::Start(0)).expect("seek");
    file.flush().expect("flush");
    assert_eq!(&content(&rig.at("file"))[700_000..700_004], b"data");
}

#[test]
fn clean_pages_follow_the_server() {
    let Some(rig) = rig("writeback-foreign") else { return };
    std::fs::write(rig.behind("file"), b"one").expect("write");
    assert_eq!(content(&rig.at("file")), b"one");
    std::thread::sleep(Duration::from_millis(20));
    std::fs::write(rig.behind("file"), b"two").expect("write");
    assert_eq!(content(&rig.at("file")), b"two", "the next open sees it");
}
