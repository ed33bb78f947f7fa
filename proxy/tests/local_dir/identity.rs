//! Acting as the caller, as the process, and the identity map.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::sync::Arc;

use bytes::Bytes;
use gridvfs_proxy::identity::{IdentityLayer, IdentityMap, NOBODY};
use gridvfs_vfs::{
    Access, Caller, CreateHow, NodeKind, SetAttr, SetTime, Stability, Status, Time, Vfs,
};
use tempfile::tempdir;

use crate::{can_be_others, create, lookup, mode, now, open, root, status};

fn user(uid: u32, groups: &[u32]) -> Caller {
    Caller { uid, gid: uid, groups: groups.to_vec() }
}

fn public_dir() -> tempfile::TempDir {
    let dir = tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    dir
}

#[test]
fn root_acts_as_each_caller() {
    if !can_be_others("root_acts_as_each_caller") {
        return;
    }
    let dir = public_dir();
    let fs = open(dir.path());
    assert!(fs.acts_as_callers());
    let (anna, ben, top) = (user(1001, &[3001]), user(1002, &[]), fs.root());
    let how = CreateHow::Guarded(mode(0o640));
    let made = now(fs.create(&anna, &top, b"file", &how)).unwrap();
    let file = made.handle.unwrap();
    assert_eq!((made.attr.unwrap().uid, made.attr.unwrap().gid), (1001, 1001));
    let data = || Bytes::from_static(b"data");
    now(fs.write(&anna, &file, 0, data(), Stability::Unstable)).unwrap();
    // The descriptor that Anna's call has opened is not Ben's to use.
    assert_eq!(status(now(fs.write(&ben, &file, 0, data(), Stability::Unstable))), Status::ACCES);
    assert_eq!(status(now(fs.read(&ben, &file, 0, 10))), Status::ACCES);
    assert_eq!(status(now(fs.setattr(&ben, &file, &mode(0o666), None))), Status::PERM);
    assert_eq!(now(fs.read(&root(), &file, 0, 10)).unwrap().data, "data");
    let granted = |caller: &Caller| now(fs.access(caller, &file, Access(0x3f))).unwrap().granted.0;
    assert_eq!(granted(&ben), 0);
    assert_eq!(granted(&anna), Access::READ | Access::MODIFY | Access::EXTEND);
    // By a supplementary group, and only by it.
    chown(dir.path().join("file"), None, Some(3001)).unwrap();
    now(fs.read(&user(1003, &[3000, 3001]), &file, 0, 10)).unwrap();
    assert_eq!(status(now(fs.read(&user(1003, &[3000]), &file, 0, 10))), Status::ACCES);
    // The owner reads and writes against the mode, and executing is reading.
    now(fs.setattr(&anna, &file, &mode(0o001), None)).unwrap();
    now(fs.write(&anna, &file, 0, data(), Stability::Unstable)).unwrap();
    now(fs.read(&anna, &file, 0, 10)).unwrap();
    now(fs.read(&ben, &file, 0, 10)).unwrap();
    // Only root gives files away, makes devices and breaks into directories.
    let give = SetAttr { uid: Some(1002), ..SetAttr::default() };
    assert_eq!(status(now(fs.setattr(&anna, &file, &give, None))), Status::PERM);
    let device = NodeKind::Character(gridvfs_vfs::DeviceNumber { major: 1, minor: 3 });
    assert_eq!(status(now(fs.mknod(&anna, &top, b"null", device, &mode(0o666)))), Status::PERM);
    let closed = now(fs.mkdir(&anna, &top, b"closed", &mode(0o700))).unwrap().handle.unwrap();
    create(&fs, &closed, "x");
    assert_eq!(status(now(fs.lookup(&ben, &closed, b"x"))), Status::ACCES);
    assert_eq!(status(now(fs.readdir(&ben, &closed, 0, [0; 8], 4096, true))), Status::ACCES);
    assert_eq!(status(now(fs.remove(&ben, &closed, b"x"))), Status::ACCES);
    // After all of which this thread is itself again.
    fs::write(dir.path().join("mine"), "").unwrap();
    assert_eq!(fs::metadata(dir.path().join("mine")).unwrap().uid(), 0);
    now(fs.mknod(&root(), &top, b"null", device, &mode(0o666))).unwrap();
}

#[test]
fn others_lose_set_id_bits_when_they_write() {
    if !can_be_others("others_lose_set_id_bits_when_they_write") {
        return;
    }
    let dir = public_dir();
    let fs = open(dir.path());
    let anna = user(1001, &[]);
    let how = CreateHow::Guarded(mode(0o755));
    let file = now(fs.create(&anna, &fs.root(), b"file", &how)).unwrap().handle.unwrap();
    let mode_after = |caller: &Caller| {
        now(fs.setattr(&anna, &file, &mode(0o6777), None)).unwrap();
        let data = Bytes::from_static(b"x");
        let written = now(fs.write(caller, &file, 0, data, Stability::Unstable)).unwrap();
        written.wcc.after.unwrap().mode
    };
    assert_eq!(mode_after(&user(1002, &[])), 0o777);
    assert_eq!(mode_after(&root()), 0o6777);
    // A group that the owner is not in does not get the set-group-id bit.
    chown(dir.path().join("file"), None, Some(3001)).unwrap();
    let wcc = now(fs.setattr(&anna, &file, &mode(0o2755), None)).unwrap();
    assert_eq!(wcc.after.unwrap().mode, 0o755);
}

#[test]
fn times_can_be_set_by_whom_the_kernel_allows() {
    if !can_be_others("times_can_be_set_by_whom_the_kernel_allows") {
        return;
    }
    let dir = public_dir();
    let fs = open(dir.path());
    let (anna, ben) = (user(1001, &[]), user(1002, &[]));
    let how = CreateHow::Guarded(mode(0o666));
    let file = now(fs.create(&anna, &fs.root(), b"file", &how)).unwrap().handle.unwrap();
    let touch =
        SetAttr { atime: SetTime::ServerNow, mtime: SetTime::ServerNow, ..SetAttr::default() };
    now(fs.setattr(&ben, &file, &touch, None)).unwrap();
    let fixed = SetTime::To(Time { seconds: 1, nanoseconds: 2 });
    let set = SetAttr { atime: fixed, mtime: fixed, ..SetAttr::default() };
    assert_eq!(status(now(fs.setattr(&ben, &file, &set, None))), Status::PERM);
    now(fs.setattr(&anna, &file, &set, None)).unwrap();
}

#[test]
fn squashed_callers_act_as_the_login_and_are_shown_as_themselves() {
    let dir = public_dir();
    let meta = fs::metadata(dir.path()).unwrap();
    let login = Caller { uid: meta.uid(), gid: meta.gid(), groups: vec![] };
    let map = IdentityMap::Squash { login: login.clone(), shadow_uid: 5001, shadow_gid: 5002 };
    let fs = IdentityLayer::new(Arc::new(open(dir.path())), map.clone());
    let shadow = Caller { uid: 5001, gid: 5002, groups: vec![5002] };
    let attr = SetAttr { uid: Some(5001), gid: Some(5002), ..mode(0o600) };
    let made = now(fs.create(&shadow, &fs.root(), b"file", &CreateHow::Guarded(attr))).unwrap();
    let owner = |attr: Option<gridvfs_vfs::Attr>| attr.map(|attr| (attr.uid, attr.gid));
    let shown = Some((5001, 5002));
    assert_eq!(owner(made.attr), shown);
    assert_eq!(owner(made.dir_wcc.after), shown);
    let real = fs::metadata(dir.path().join("file")).unwrap();
    assert_eq!((real.uid(), real.gid()), (login.uid, login.gid));
    let file = made.handle.unwrap();
    assert_eq!(owner(now(fs.getattr(&shadow, &file)).ok()), shown);
    assert_eq!(owner(now(fs.setattr(&shadow, &file, &attr, None)).unwrap().after), shown);
    let entry = now(fs.lookup(&shadow, &fs.root(), b"file")).unwrap();
    assert_eq!((owner(entry.attr), owner(entry.dir_attr)), (shown, shown));
    let page = now(fs.readdir(&shadow, &fs.root(), 0, [0; 8], 4096, true)).unwrap();
    assert!(page.entries.iter().all(|entry| owner(entry.attr) == shown));
    let give = SetAttr { uid: Some(login.uid), ..SetAttr::default() };
    assert_eq!(status(now(fs.setattr(&shadow, &file, &give, None))), Status::PERM);
    let mut foreign = now(fs.getattr(&shadow, &file)).unwrap();
    (foreign.uid, foreign.gid) = (5001, 7);
    assert_eq!(owner(Some(map.attr(foreign))), Some((NOBODY, 7)));
    assert_eq!(IdentityMap::Identity.attr(foreign), foreign);
}

#[test]
fn an_unprivileged_process_acts_as_itself() {
    // SAFETY: cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        println!("SKIPPED: an_unprivileged_process_acts_as_itself: root (run by an ordinary user)");
        return;
    }
    let dir = public_dir();
    let fs = open(dir.path());
    assert!(!fs.acts_as_callers());
    let file = create(&fs, &fs.root(), "file");
    fs::set_permissions(dir.path().join("file"), fs::Permissions::from_mode(0o0)).unwrap();
    fs.forget(&file);
    assert_eq!(lookup(&fs, "file").unwrap(), file);
    let data = Bytes::from_static(b"data");
    now(fs.write(&root(), &file, 0, data, Stability::Unstable)).unwrap();
    assert_eq!(fs::metadata(dir.path().join("file")).unwrap().mode() & 0o7777, 0);
    let device = NodeKind::Block(gridvfs_vfs::DeviceNumber { major: 1, minor: 3 });
    let made = now(fs.mknod(&root(), &fs.root(), b"dev", device, &mode(0o600)));
    assert_eq!(status(made), Status::PERM);
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    let handle = lookup(&fs, "closed").unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o0)).unwrap();
    assert_eq!(status(now(fs.lookup(&root(), &handle, b"x"))), Status::ACCES);
    assert_eq!(status(now(fs.readdir(&root(), &handle, 0, [0; 8], 4096, true))), Status::ACCES);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
}
