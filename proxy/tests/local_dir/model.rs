//! Random operations, here and by the standard library on a second directory: both end alike.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use gridvfs_vfs::{CreateHow, FileKind, SetAttr, Vfs};
use proptest::prelude::*;
use tempfile::tempdir;

use crate::{list, lookup, mode, now, open, read, root};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Clone, Debug)]
enum Op {
    Create(String),
    Mkdir(String),
    Write(String, u16, Vec<u8>),
    Cut(String, u16),
    Chmod(String, u32),
    Remove(String),
    Rmdir(String),
    Rename(String, String),
    Link(String, String),
    Symlink(String),
    /// Everything pinned is let go.
    Forget,
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(NAMES.to_vec()), 1..4).prop_map(|it| it.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => path().prop_map(Op::Create),
        3 => path().prop_map(Op::Mkdir),
        3 => (path(), any::<u16>(), prop::collection::vec(any::<u8>(), 0..50))
            .prop_map(|(path, at, data)| Op::Write(path, at, data)),
        1 => (path(), any::<u16>()).prop_map(|(path, size)| Op::Cut(path, size)),
        1 => (path(), 0u32..0o1000).prop_map(|(path, mode)| Op::Chmod(path, mode | 0o700)),
        2 => path().prop_map(Op::Remove),
        1 => path().prop_map(Op::Rmdir),
        3 => (path(), path()).prop_map(|(from, to)| Op::Rename(from, to)),
        2 => (path(), path()).prop_map(|(from, to)| Op::Link(from, to)),
        1 => path().prop_map(Op::Symlink),
        1 => Just(Op::Forget),
    ]
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// By the `Vfs`: whether it worked.
fn here(fs: &dyn Vfs, op: &Op) -> bool {
    let me = root();
    let parent = |path: &str| lookup(fs, split(path).0);
    let name = |path: &str| split(path).1.as_bytes().to_vec();
    let result: gridvfs_vfs::Result<()> = (|| {
        match op {
            Op::Create(at) => {
                let how = CreateHow::Guarded(mode(0o644));
                now(fs.create(&me, &parent(at)?, &name(at), &how))?;
            }
            Op::Mkdir(at) => {
                now(fs.mkdir(&me, &parent(at)?, &name(at), &mode(0o755)))?;
            }
            Op::Write(at, offset, data) => {
                let stable = gridvfs_vfs::Stability::Unstable;
                let data = data.clone().into();
                now(fs.write(&me, &lookup(fs, at)?, u64::from(*offset), data, stable))?;
            }
            Op::Cut(at, size) => {
                let changes = SetAttr { size: Some(u64::from(*size)), ..SetAttr::default() };
                now(fs.setattr(&me, &lookup(fs, at)?, &changes, None))?;
            }
            Op::Chmod(at, bits) => {
                now(fs.setattr(&me, &lookup(fs, at)?, &mode(*bits), None))?;
            }
            Op::Remove(at) => {
                now(fs.remove(&me, &parent(at)?, &name(at)))?;
            }
            Op::Rmdir(at) => {
                now(fs.rmdir(&me, &parent(at)?, &name(at)))?;
            }
            Op::Rename(from, to) => {
                let (from_dir, to_dir) = (parent(from)?, parent(to)?);
                now(fs.rename(&me, &from_dir, &name(from), &to_dir, &name(to), false))?;
            }
            Op::Link(from, to) => {
                now(fs.link(&me, &lookup(fs, from)?, &parent(to)?, &name(to)))?;
            }
            Op::Symlink(at) => {
                let attr = SetAttr::default();
                now(fs.symlink(&me, &parent(at)?, &name(at), b"nowhere", &attr))?;
            }
            Op::Forget => {}
        }
        Ok(())
    })();
    result.is_ok()
}

/// By the standard library. Links to nowhere, so that nothing is followed.
fn there(dir: &Path, op: &Op) -> bool {
    let at = |path: &String| dir.join(path);
    let is_link = |path: &String| fs::symlink_metadata(at(path)).is_ok_and(|it| it.is_symlink());
    match op {
        Op::Create(path) => fs::File::create_new(at(path))
            .and_then(|it| it.set_permissions(fs::Permissions::from_mode(0o644))),
        Op::Mkdir(path) => fs::create_dir(at(path))
            .and_then(|()| fs::set_permissions(at(path), fs::Permissions::from_mode(0o755))),
        Op::Write(path, offset, data) => fs::OpenOptions::new()
            .write(true)
            .open(at(path))
            .and_then(|file| file.write_all_at(data, u64::from(*offset))),
        Op::Cut(path, size) => fs::OpenOptions::new()
            .write(true)
            .open(at(path))
            .and_then(|file| file.set_len(u64::from(*size))),
        Op::Chmod(path, bits) if !is_link(path) => {
            fs::set_permissions(at(path), fs::Permissions::from_mode(*bits))
        }
        Op::Chmod(..) => return false,
        Op::Remove(path) => fs::remove_file(at(path)),
        Op::Rmdir(path) => fs::remove_dir(at(path)),
        Op::Rename(from, to) => fs::rename(at(from), at(to)),
        Op::Link(from, to) => fs::hard_link(at(from), at(to)),
        Op::Symlink(path) => std::os::unix::fs::symlink("nowhere", at(path)),
        Op::Forget => Ok(()),
    }
    .is_ok()
}

/// Compares the tree under `path` by way of the `Vfs` with the real one.
fn compare(fs: &dyn Vfs, model: &Path, path: &str) {
    let dir = lookup(fs, path).unwrap();
    let mut names = Vec::new();
    for entry in list(fs, &dir, 2048, true) {
        let name = String::from_utf8(entry.name.to_vec()).unwrap();
        if name == "." || name == ".." {
            continue;
        }
        let below = format!("{path}/{name}");
        let real = fs::symlink_metadata(model.join(&below[1..])).unwrap();
        let attr = entry.attr.unwrap();
        assert_eq!(attr.mode, real.mode() & 0o7777, "{below}");
        assert_eq!(attr.links as u64, real.nlink(), "{below}");
        match attr.kind {
            FileKind::Directory => compare(fs, model, &below),
            FileKind::Regular => {
                let data = read(fs, &entry.handle.unwrap()).unwrap();
                assert_eq!(data, fs::read(model.join(&below[1..])).unwrap(), "{below}");
            }
            _ => assert!(real.is_symlink()),
        }
        names.push(name);
    }
    names.sort();
    let mut real: Vec<_> = fs::read_dir(model.join(path.trim_start_matches('/')))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    real.sort();
    assert_eq!(names, real, "{path}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]
    #[test]
    fn random_operations_end_as_on_a_real_directory(ops in prop::collection::vec(op(), 1..80)) {
        let (ours, model) = (tempdir().unwrap(), tempdir().unwrap());
        let fs = open(ours.path());
        let mut handles = Vec::new();
        for op in &ops {
            prop_assert_eq!(here(&fs, op), there(model.path(), op), "{:?}", op);
            if let Op::Create(path) | Op::Rename(_, path) = op {
                handles.extend(lookup(&fs, path));
            }
            if let Op::Forget = op {
                handles.iter().for_each(|handle| fs.forget(handle));
            }
        }
        compare(&fs, model.path(), "");
        // A handle is stale or says the same before and after it has been let go.
        for handle in handles {
            let pinned = now(fs.getattr(&root(), &handle));
            fs.forget(&handle);
            prop_assert_eq!(now(fs.getattr(&root(), &handle)), pinned);
        }
    }
}
