//! Handles: functions of the file, valid as long as it is there.

use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use gridvfs_vfs::{FileHandle, Status, Vfs};
use tempfile::tempdir;

use crate::{create, list, lookup, now, open, open_with_state, read, root, status, write};

#[test]
fn handles_outlive_the_process_with_and_without_its_state() {
    let (dir, state) = (tempdir().unwrap(), tempdir().unwrap());
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    fs::write(dir.path().join("a/b/file"), "data").unwrap();
    let fs = open_with_state(dir.path(), state.path());
    let (sub, file) = (lookup(&fs, "a/b").unwrap(), lookup(&fs, "a/b/file").unwrap());
    let top = fs.root();
    drop(fs);
    for again in [open_with_state(dir.path(), state.path()), open(dir.path())] {
        assert_eq!(again.root(), top);
        assert_eq!(read(&again, &file).unwrap(), "data");
        assert_eq!(now(again.lookup(&root(), &sub, b"file")).unwrap().handle, file);
    }
    // A damaged table is begun anew.
    for entry in fs::read_dir(state.path()).unwrap() {
        fs::write(
            entry.unwrap().path(),
            "not a database, and longer than a header of one is: ".repeat(99),
        )
        .unwrap();
    }
    let again = open_with_state(dir.path(), state.path());
    assert_eq!(read(&again, &file).unwrap(), "data");
}

#[test]
fn handles_survive_renames_by_anybody() {
    let (dir, state) = (tempdir().unwrap(), tempdir().unwrap());
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::create_dir_all(at("c")).unwrap();
    fs::write(at("a/b/file"), "data").unwrap();
    let fs = open_with_state(dir.path(), state.path());
    let file = lookup(&fs, "a/b/file").unwrap();
    let moves = [("a/b/file", "a/b/other"), ("a/b", "c/d"), ("c/d/other", "file"), ("file", "a/x")];
    for (from, to) in moves {
        fs::rename(at(from), at(to)).unwrap();
        assert_eq!(read(&fs, &file).unwrap(), "data", "pinned, after {from} to {to}");
        fs.forget(&file);
        assert_eq!(read(&fs, &file).unwrap(), "data", "by hint or search, after {from} to {to}");
    }
    // While nobody was there to see it.
    drop(fs);
    fs::rename(at("a/x"), at("c/d/y")).unwrap();
    let fs = open_with_state(dir.path(), state.path());
    assert_eq!(read(&fs, &file).unwrap(), "data");
    // By ourselves.
    let (top, deep) = (fs.root(), lookup(&fs, "c/d").unwrap());
    now(fs.rename(&root(), &deep, b"y", &top, b"z", false)).unwrap();
    fs.forget(&file);
    assert_eq!(read(&fs, &file).unwrap(), "data");
}

#[test]
fn a_reused_inode_number_is_another_file() {
    let dir = tempdir().unwrap();
    let fs = open(dir.path());
    let mut reused = false;
    for _ in 0..200 {
        let old = create(&fs, &fs.root(), "old");
        let old_id = now(fs.getattr(&root(), &old)).unwrap().fileid;
        now(fs.remove(&root(), &fs.root(), b"old")).unwrap();
        let new = create(&fs, &fs.root(), "new");
        reused |= now(fs.getattr(&root(), &new)).unwrap().fileid == old_id;
        assert_ne!(old, new);
        assert_eq!(status(now(fs.getattr(&root(), &old))), Status::STALE);
        now(fs.remove(&root(), &fs.root(), b"new")).unwrap();
    }
    if !reused {
        println!("SKIPPED: the file system has not reused an inode number");
    }
}

/// How many descriptors of this process are open beneath a name.
fn held(dir: &Path, name: &str) -> usize {
    let prefix = dir.join(name).into_os_string().into_string().unwrap();
    let open = fs::read_dir("/proc/self/fd").unwrap();
    open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|path| path.to_string_lossy().starts_with(&prefix))
        .count()
}

#[test]
fn a_file_removed_by_others_is_stale_and_its_space_is_free() {
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    let fs = open(dir.path());
    let sub = lookup(&fs, "sub").unwrap();
    let file = create(&fs, &sub, "file");
    fs::remove_file(dir.path().join("sub/file")).unwrap();
    fs::remove_dir(dir.path().join("sub")).unwrap();
    assert_eq!(status(read(&fs, &file)), Status::STALE);
    assert_eq!(status(now(fs.readdir(&root(), &sub, 0, [0; 8], 4096, true))), Status::STALE);
    assert_eq!(held(dir.path(), "sub"), 0);
    // Nor is one that we remove, or replace, ourselves.
    for name in ["one", "two", "three"] {
        write(&fs, &create(&fs, &fs.root(), name), 0, b"data");
    }
    now(fs.remove(&root(), &fs.root(), b"one")).unwrap();
    now(fs.rename(&root(), &fs.root(), b"two", &fs.root(), b"three", false)).unwrap();
    assert_eq!(held(dir.path(), "one"), 0);
    assert_eq!(held(dir.path(), "three (deleted)"), 0);
}

#[test]
fn forged_handles_lead_nowhere() {
    let dir = tempdir().unwrap();
    let outside = tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    fs::write(dir.path().join("file"), "data").unwrap();
    // A valid handle of a file beside the export, on the same file system.
    let secret = {
        let fs = open(outside.path());
        lookup(&fs, "secret").unwrap()
    };
    let fs = open(dir.path());
    assert_eq!(status(read(&fs, &secret)), Status::STALE);
    assert_eq!(status(read(&fs, &secret)), Status::STALE);
    let file = lookup(&fs, "file").unwrap();
    for at in 0..file.as_bytes().len() {
        let mut forged = file.as_bytes().to_vec();
        forged[at] ^= 0x10;
        let answer = status(read(&fs, &FileHandle::new(&forged).unwrap()));
        let expected = if at == 0 { Status::BADHANDLE } else { Status::STALE };
        assert_eq!(answer, expected, "byte {at}");
    }
    assert_eq!(status(read(&fs, &FileHandle::new(b"").unwrap())), Status::BADHANDLE);
}

#[test]
fn a_tree_deeper_than_a_path_can_say() {
    let (dir, state) = (tempdir().unwrap(), tempdir().unwrap());
    let fs = open_with_state(dir.path(), state.path());
    let name = "d".repeat(200);
    let mut at = fs.root();
    for _ in 0..60 {
        let attr = crate::mode(0o755);
        at = now(fs.mkdir(&root(), &at, name.as_bytes(), &attr)).unwrap().handle.unwrap();
    }
    let file = create(&fs, &at, "file");
    write(&fs, &file, 0, b"deep");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(read(&fs, &file).unwrap(), "deep");
    assert_eq!(list(&fs, &at, 4096, true).len(), 3);
    drop(fs);
    let again = open_with_state(dir.path(), state.path());
    assert_eq!(read(&again, &file).unwrap(), "deep");
    drop(again);
    let again = open(dir.path());
    assert_eq!(read(&again, &file).unwrap(), "deep");
}

#[test]
fn many_threads_resolve_what_only_a_search_can_find() {
    let dir = tempdir().unwrap();
    let handles: Vec<_> = {
        let fs = open(dir.path());
        (0..64).map(|n| create(&fs, &fs.root(), &format!("file{n}"))).collect()
    };
    for n in 0..64 {
        let to = dir.path().join(format!("dir{n}"));
        fs::create_dir(&to).unwrap();
        fs::rename(dir.path().join(format!("file{n}")), to.join("moved")).unwrap();
    }
    let fs = Arc::new(open(dir.path()));
    std::thread::scope(|scope| {
        for handle in &handles {
            let fs = fs.clone();
            scope.spawn(move || now(fs.getattr(&root(), handle)).unwrap());
        }
    });
}

/// Mounts tmpfs at a path for the calling thread alone.
fn mount_for_this_thread(at: &Path) -> bool {
    let at = CString::new(at.to_str().unwrap()).unwrap();
    let none = std::ptr::null();
    // SAFETY: NUL-terminated strings, and null where the kernel expects nothing.
    unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast())
                == 0
            && libc::mount(c"x".as_ptr(), at.as_ptr(), c"tmpfs".as_ptr(), 0, none.cast()) == 0
    }
}

#[test]
fn mounts_below_are_crossed_and_told_apart() {
    let dir = tempdir().unwrap();
    let sub = dir.path().join("sub");
    fs::create_dir(&sub).unwrap();
    std::thread::spawn(move || {
        if !mount_for_this_thread(&sub) {
            println!("SKIPPED: mounts_below_are_crossed_and_told_apart: cannot mount");
            return;
        }
        fs::create_dir(sub.join("dir")).unwrap();
        fs::write(sub.join("dir/file"), "data").unwrap();
        let export = sub.parent().unwrap();
        let fs = open(export);
        let (mount, file) = (lookup(&fs, "sub").unwrap(), lookup(&fs, "sub/dir/file").unwrap());
        let fsid = |handle: &FileHandle| now(fs.getattr(&root(), handle)).unwrap().fsid;
        assert_ne!(fsid(&fs.root()), fsid(&file));
        assert_eq!(fsid(&mount), fsid(&file));
        assert_eq!(now(fs.lookup(&root(), &mount, b"..")).unwrap().handle, fs.root());
        let top = now(fs.getattr(&root(), &fs.root())).unwrap().fileid;
        let parent = list(&fs, &mount, 4096, true).into_iter().find(|entry| entry.name == "..");
        assert_eq!(parent.unwrap().fileid, top);
        let across = now(fs.link(&root(), &file, &fs.root(), b"link"));
        assert_eq!(status(across), Status::XDEV);
        fs::rename(sub.join("dir"), sub.join("moved")).unwrap();
        // By a search, which crosses them too.
        let again = open(export);
        assert_eq!(read(&again, &file).unwrap(), "data");
    })
    .join()
    .unwrap();
}
