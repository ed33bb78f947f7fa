//! A cache of which a half is gone, or bits are flipped, while it holds unsent data.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::common::{Rig, Way};
use super::*;

const SIZE: usize = 300_000;

/// A rig whose cache, put aside, holds a clean file and unsent data over three others.
fn preserved(test: &str) -> Option<(Rig, PathBuf)> {
    let mut rig = Rig::new(test, Way::Ssh)?;
    for (seed, name) in ["clean", "first", "second", "third"].iter().enumerate() {
        std::fs::write(rig.export.join(name), pattern((seed as u64) << 30, SIZE)).expect("write");
    }
    let directory = rig.folder.join("c");
    rig.set_options(&[&format!("{LAZY},consistency=dedicated,cache_dir={}", directory.display())]);
    rig.mount();
    std::fs::read(rig.mountpoint.join("clean")).expect("read");
    for name in ["first", "second", "third"] {
        let file = File::options().write(true).open(rig.mountpoint.join(name)).expect("open");
        file.write_all_at(&changed(name)[4096..8192], 4096).expect("write");
        file.sync_all().expect("fsync");
    }
    run(&mut verb(&rig, &["umount", "--preserve", "@"]));
    Some((rig, directory))
}

/// What a file is like with the unsent data.
fn changed(name: &str) -> Vec<u8> {
    let seed = ["clean", "first", "second", "third"].iter().position(|one| *one == name);
    let seed = seed.expect("one of them") as u64;
    let mut data = pattern(seed << 30, SIZE);
    data[4096..8192].copy_from_slice(&pattern((seed << 30) + (1 << 20), 4096));
    data
}

#[test]
fn a_half_deleted_cache_still_sends_what_was_unsent() {
    let test = "a_half_deleted_cache_still_sends_what_was_unsent";
    let Some((mut rig, directory)) = preserved(test) else { return };
    common::shell(&directory, "rm -r store index.sqlite* origin source && ls");
    rig.mount();
    for name in ["first", "second", "third"] {
        assert!(std::fs::read(rig.mountpoint.join(name)).expect("read") == changed(name), "{name}");
    }
    let clean = std::fs::read(rig.mountpoint.join("clean")).expect("read");
    assert!(clean == pattern(0, SIZE));
    assert_eq!(rig.status()["cache"]["unsent_conflicts"], 0);
    rig.umount();
    for name in ["first", "second", "third"] {
        assert!(std::fs::read(rig.export.join(name)).expect("there") == changed(name), "{name}");
    }
}

/// Flips a bit of some data that a file of a directory holds.
fn flip(directory: &Path, data: &[u8]) {
    for entry in std::fs::read_dir(directory).expect("listed") {
        let path = entry.expect("entry").path();
        let bytes = std::fs::read(&path).expect("read");
        if let Some(at) = bytes.windows(data.len()).position(|part| part == data) {
            let file = File::options().write(true).open(&path).expect("opens");
            let at = at + data.len() / 2;
            file.write_all_at(&[bytes[at] ^ 8], at as u64).expect("written");
            return;
        }
    }
    panic!("{}: the data is not there", directory.display());
}

#[test]
fn damaged_unsent_data_is_named_and_not_sent() {
    let test = "damaged_unsent_data_is_named_and_not_sent";
    let Some((mut rig, directory)) = preserved(test) else { return };
    flip(&directory.join("journal"), &changed("second")[4096..8192]);
    rig.mount();
    for name in ["first", "third"] {
        assert!(std::fs::read(rig.mountpoint.join(name)).expect("read") == changed(name), "{name}");
    }
    let mut damaged = File::open(rig.mountpoint.join("second")).expect("open");
    let error = damaged.read_exact_at(&mut [0; 4096], 4096).expect_err("damaged");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let mut start = vec![0; 4096];
    damaged.read_exact(&mut start).expect("what is not damaged can be read");
    assert!(start == changed("second")[..4096]);
    drop(damaged);
    let session = rig.status()["session"].as_str().expect("a name").to_string();
    let log = rig.folder.join("state/gridvfs").join(format!("{session}.log"));
    let log = std::fs::read_to_string(log).expect("a log");
    let told = log.lines().any(|line| line.contains("damaged") && line.contains("second"));
    assert!(told, "{log}");
    says(&refused(&mut verb(&rig, &["writeback", "@"])), &["second", "damaged at 4096..8192"]);
    let there = |name: &str| std::fs::read(rig.export.join(name)).expect("there");
    assert!(there("first") == changed("first") && there("third") == changed("third"));
    assert!(there("second") == pattern(2 << 30, SIZE), "nothing of it is sent");
    run(&mut verb(&rig, &["umount", "--preserve", "@"]));
}
