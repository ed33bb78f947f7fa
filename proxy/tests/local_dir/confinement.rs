//! Nothing leads out of the export.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gridvfs_vfs::{FileKind, Status, Vfs};
use tempfile::tempdir;

use crate::{Stop, create, lookup, mode, now, open, read, root, status};

#[test]
fn names_are_single_and_dots_end_at_the_root() {
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    let fs = open(dir.path());
    let (me, top) = (root(), fs.root());
    let sub = lookup(&fs, "sub").unwrap();
    for bad in [&b""[..], b"a/b", b"/", b"/etc", b"../x", b"sub/..", b"a\0b", b"\0"] {
        assert_eq!(status(now(fs.lookup(&me, &top, bad))), Status::INVAL, "{bad:?}");
        assert_eq!(status(now(fs.mkdir(&me, &top, bad, &mode(0o755)))), Status::INVAL);
        assert_eq!(status(now(fs.remove(&me, &top, bad))), Status::INVAL);
        assert_eq!(status(now(fs.rename(&me, &top, b"sub", &top, bad, false))), Status::INVAL);
        assert_eq!(status(now(fs.link(&me, &sub, &top, bad))), Status::INVAL);
    }
    assert_eq!(now(fs.lookup(&me, &top, b"..")).unwrap().handle, top);
    assert_eq!(now(fs.lookup(&me, &top, b".")).unwrap().handle, top);
    assert_eq!(now(fs.lookup(&me, &sub, b"..")).unwrap().handle, top);
    for dots in [&b"."[..], b".."] {
        assert_eq!(status(now(fs.mkdir(&me, &top, dots, &mode(0o755)))), Status::EXIST);
        assert_eq!(status(now(fs.remove(&me, &top, dots))), Status::ISDIR);
        assert_eq!(status(now(fs.rename(&me, &top, dots, &sub, b"x", false))), Status::INVAL);
    }
    assert_eq!(status(now(fs.rmdir(&me, &sub, b".."))), Status::NOTEMPTY);
    assert_eq!(status(now(fs.rmdir(&me, &sub, b"."))), Status::INVAL);
}

#[test]
fn symbolic_links_are_files_and_not_ways() {
    let (dir, outside) = (tempdir().unwrap(), tempdir().unwrap());
    fs::write(outside.path().join("secret"), "secret").unwrap();
    symlink(outside.path(), dir.path().join("way")).unwrap();
    symlink(outside.path().join("secret"), dir.path().join("link")).unwrap();
    let fs = open(dir.path());
    let way = now(fs.lookup(&root(), &fs.root(), b"way")).unwrap();
    assert_eq!(way.attr.unwrap().kind, FileKind::Symlink);
    assert_eq!(status(now(fs.lookup(&root(), &way.handle, b"secret"))), Status::NOTDIR);
    let link = lookup(&fs, "link").unwrap();
    assert_eq!(status(read(&fs, &link)), Status::INVAL);
    let cut = gridvfs_vfs::SetAttr { size: Some(0), ..Default::default() };
    assert!(now(fs.setattr(&root(), &link, &cut, None)).is_err());
    assert!(now(fs.setattr(&root(), &link, &mode(0o000), None)).is_err());
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"secret");
}

#[test]
fn a_link_swapped_in_never_leads_outside() {
    let (dir, outside) = (tempdir().unwrap(), tempdir().unwrap());
    for (place, data) in [(dir.path(), "inside"), (outside.path(), "SECRET")] {
        fs::create_dir(place.join("real")).unwrap();
        fs::write(place.join("real/file"), data).unwrap();
    }
    symlink(outside.path().join("real"), dir.path().join("trap")).unwrap();
    let fs = open(dir.path());
    let handle = lookup(&fs, "real/file").unwrap();
    let (stop, found) = (AtomicBool::new(false), AtomicBool::new(false));
    let (real, trap, aside) =
        (dir.path().join("real"), dir.path().join("trap"), dir.path().join("aside"));
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fs::rename(&real, &aside).unwrap();
                fs::rename(&trap, &real).unwrap();
                fs::rename(&real, &trap).unwrap();
                fs::rename(&aside, &real).unwrap();
            }
        });
        for round in 0..4000 {
            if let Ok(file) = lookup(&fs, "real/file") {
                assert_eq!(read(&fs, &file).unwrap(), "inside");
                found.store(true, Ordering::Relaxed);
            }
            if let Ok(dir) = lookup(&fs, "real")
                && let Ok(made) = now(fs.mkdir(&root(), &dir, b"made", &mode(0o755)))
            {
                assert!(made.handle.is_some());
                let _ = now(fs.rmdir(&root(), &dir, b"made"));
            }
            if round % 50 == 0 {
                fs.forget(&handle);
                match read(&fs, &handle) {
                    Ok(data) => assert_eq!(data, "inside"),
                    Err(error) => assert_eq!(error.status(), Status::STALE),
                }
            }
        }
    });
    assert!(found.load(Ordering::Relaxed));
    assert!(!outside.path().join("real/made").exists());
}

#[test]
fn a_directory_moved_out_is_out_of_reach() {
    let parent = tempdir().unwrap();
    let export = parent.path().join("export");
    fs::create_dir_all(export.join("sub/deep")).unwrap();
    fs::write(export.join("sub/deep/file"), "data").unwrap();
    let fs = open(&export);
    let (sub, deep) = (lookup(&fs, "sub").unwrap(), lookup(&fs, "sub/deep").unwrap());
    let file = lookup(&fs, "sub/deep/file").unwrap();
    fs::rename(export.join("sub"), parent.path().join("gone")).unwrap();
    assert_eq!(status(now(fs.lookup(&root(), &sub, b".."))), Status::STALE);
    std::thread::sleep(Duration::from_millis(1100));
    for handle in [&sub, &deep, &file] {
        assert_eq!(status(now(fs.getattr(&root(), handle))), Status::STALE);
    }
    // The whole export may move: it is still the same one.
    let moved = parent.path().join("moved");
    fs::rename(&export, &moved).unwrap();
    fs::rename(parent.path().join("gone"), moved.join("back")).unwrap();
    std::thread::sleep(Duration::from_millis(3100));
    assert_eq!(read(&fs, &file).unwrap(), "data");
    create(&fs, &deep, "new");
    assert!(moved.join("back/deep/new").exists());
}
