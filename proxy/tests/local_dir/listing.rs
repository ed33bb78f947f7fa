//! READDIR and READDIRPLUS.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use gridvfs_vfs::{Status, Vfs};
use tempfile::tempdir;

use crate::{Stop, create, list, lookup, now, open, root, status};

#[test]
fn entries_say_what_lookup_says() {
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/file"), "data").unwrap();
    std::os::unix::fs::symlink("x", dir.path().join("sub/link")).unwrap();
    fs::create_dir(dir.path().join("sub/dir")).unwrap();
    let fs = open(dir.path());
    let sub = lookup(&fs, "sub").unwrap();
    for plus in [false, true] {
        let entries = list(&fs, &sub, 8192, plus);
        assert_eq!(entries.len(), 5);
        for entry in entries {
            let found = now(fs.lookup(&root(), &sub, &entry.name)).unwrap();
            assert_eq!(entry.fileid, found.attr.unwrap().fileid, "{:?}", entry.name);
            if entry.name != ".." {
                assert_eq!(entry.handle.is_some(), plus);
                assert!(entry.handle.is_none_or(|handle| handle == found.handle));
                assert_eq!(entry.attr, found.attr.filter(|_| plus));
            }
        }
    }
    let top = fs.root();
    let dots = list(&fs, &top, 8192, true);
    let parent = dots.iter().find(|entry| entry.name == "..").unwrap();
    assert_eq!(parent.fileid, fs::metadata(dir.path()).unwrap().ino());
    assert_eq!(parent.handle, Some(top));
    assert_eq!(status(now(fs.readdir(&root(), &sub, 0, [0; 8], 100, false))), Status::TOOSMALL);
    let file = lookup(&fs, "sub/file").unwrap();
    assert_eq!(status(now(fs.readdir(&root(), &file, 0, [0; 8], 4096, false))), Status::NOTDIR);
}

#[test]
fn any_page_can_be_asked_for_again() {
    let dir = tempdir().unwrap();
    for n in 0..500 {
        fs::write(dir.path().join(format!("file{n}")), "").unwrap();
    }
    let fs = open(dir.path());
    let all = list(&fs, &fs.root(), 1 << 20, false);
    assert_eq!(all.len(), 502);
    for (at, entry) in all.iter().enumerate().step_by(37) {
        let page = now(fs.readdir(&root(), &fs.root(), entry.cookie, [0; 8], 2048, false)).unwrap();
        let expected = &all[at + 1..];
        assert!(!page.entries.is_empty() || expected.is_empty());
        assert_eq!(page.entries, expected[..page.entries.len()]);
    }
}

/// Every entry that stays is seen once, whatever comes and goes meanwhile.
#[test]
fn a_hundred_thousand_entries_while_others_come_and_go() {
    const STAY: usize = 100_000;
    let dir = tempdir().unwrap();
    for n in 0..STAY {
        fs::write(dir.path().join(format!("stay{n:06}")), "").unwrap();
    }
    let fs = open(dir.path());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            for n in (0..1000).cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let name = dir.path().join(format!("come{n:04}"));
                if fs::remove_file(&name).is_err() {
                    fs::write(&name, "").unwrap();
                }
            }
        });
        for (size, plus) in [(32 << 10, true), (1 << 20, true), (8 << 10, false)] {
            let mut seen: HashMap<_, usize> = HashMap::new();
            for entry in list(&fs, &fs.root(), size, plus) {
                *seen.entry(entry.name).or_default() += 1;
            }
            let stayed: Vec<_> =
                seen.iter().filter(|(name, _)| name.starts_with(b"stay")).collect();
            assert_eq!(stayed.len(), STAY);
            assert!(stayed.iter().all(|(_, times)| **times == 1));
        }
    });
    let handles: HashSet<_> =
        list(&fs, &fs.root(), 1 << 20, true).into_iter().filter_map(|entry| entry.handle).collect();
    assert!(handles.len() >= STAY);
    // What was listed is found without a search, even if it is in memory no more.
    for handle in handles.iter().step_by(97) {
        if *handle != fs.root() && now(fs.getattr(&root(), handle)).is_err() {
            panic!("a listed file is not found");
        }
    }
    create(&fs, &fs.root(), "last");
}
