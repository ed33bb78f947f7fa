//! Tests of the index through what others see of it.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use gridvfs_vfs::{
    Attr, Caller, DeviceNumber, DirEntry, FileHandle, FileKind, Time, Verifier, WccAttr,
};
use rusqlite::Connection;

use super::{Index, IndexError, IndexOptions, Known, Name};

mod large;
mod model;
mod trouble;

const VERIFIER: Verifier = [7; 8];

fn handle(number: u64) -> FileHandle {
    FileHandle::new(&[&number.to_be_bytes()[..], &[0xab; 20]].concat()).expect("short")
}

fn attr(fileid: u64) -> Attr {
    let time = Time { seconds: 1_700_000_000 + fileid as i64, nanoseconds: 123_456_789 };
    Attr {
        kind: FileKind::Regular,
        mode: 0o4755,
        links: 2,
        uid: 1000,
        gid: 100,
        size: 12_345 + fileid,
        used: 16_384,
        device: DeviceNumber { major: 8, minor: 1 },
        fsid: 0x1234_5678_9abc_def0,
        fileid,
        atime: time,
        mtime: Time { nanoseconds: 1, ..time },
        ctime: Time { seconds: -5, ..time },
    }
}

fn entry(number: u64, name: &str) -> DirEntry {
    DirEntry {
        fileid: number,
        name: Bytes::copy_from_slice(name.as_bytes()),
        cookie: number + 1,
        attr: Some(attr(number)),
        handle: Some(handle(number)),
    }
}

fn small() -> IndexOptions {
    IndexOptions {
        nodes_max: 16,
        names_max: 16,
        write_delay: Duration::from_millis(2),
        ..IndexOptions::default()
    }
}

fn open(dir: &Path, options: IndexOptions) -> Index {
    Index::open(&dir.join("index.sqlite"), options).expect("a known format")
}

/// The whole listing, in pages of this many entries: names and handles.
fn list(index: &Index, dir: &FileHandle, page: usize) -> Option<Vec<(Bytes, Option<FileHandle>)>> {
    let (mut cookie, mut names) = (0, Vec::new());
    loop {
        let listed = index.listing(dir, cookie, page)?;
        assert!(listed.eof || !listed.entries.is_empty(), "an empty page that is not the last");
        cookie = listed.entries.last().map_or(cookie, |entry| entry.cookie);
        names.extend(listed.entries.into_iter().map(|entry| (entry.name, entry.handle)));
        if listed.eof {
            return Some(names);
        }
    }
}

#[test]
fn what_is_known_is_known_after_reopening() {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, root, caller) =
        (handle(1), handle(0), Caller { uid: 1, gid: 2, groups: vec![3, 4] });
    let index = open(dir.path(), IndexOptions::default());
    assert!(index.closed_cleanly() && index.node(&file).is_none());
    let known = index.update(&file, |known| {
        known.attr = Some(attr(1));
        known.base = Some(WccAttr::from(&attr(1)));
        known.at = 42;
    });
    index.set_name(&root, b"dir", Some(handle(2)));
    index.set_name(&handle(2), b"file", Some(file));
    index.set_name(&root, b"gone", None);
    index.set_target(&handle(3), Bytes::from_static(b"a target"));
    index.set_granted(&file, &caller, 7, 5);
    assert_eq!(index.granted(&file, &caller, 3), Some(1));
    assert_eq!(index.granted(&file, &caller, 8), None);
    let other = Caller { groups: vec![3], ..caller.clone() };
    assert_eq!(index.granted(&file, &other, 1), None);
    drop(index);

    let index = open(dir.path(), IndexOptions::default());
    assert!(index.closed_cleanly());
    assert_eq!(index.node(&file), Some(known));
    assert_eq!(index.lookup(&root, b"dir"), Name::Here(handle(2)));
    assert_eq!(index.lookup(&root, b"gone"), Name::Absent);
    assert_eq!(index.lookup(&root, b"other"), Name::Unknown);
    assert_eq!(index.path_of(&file, &root).as_deref(), Some(&b"dir/file"[..]));
    assert_eq!(index.path_of(&root, &root).as_deref(), Some(&b""[..]));
    assert_eq!(index.path_of(&handle(3), &root), None);
    assert_eq!(index.target(&handle(3)).as_deref(), Some(&b"a target"[..]));
    assert_eq!(index.handle_of_key(known.key), Some(file));
    assert_eq!(index.granted(&file, &caller, 1), None);
}

#[test]
fn access_rights_go_with_what_they_depend_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path(), IndexOptions::default());
    let caller = Caller { uid: 1, gid: 2, groups: Vec::new() };
    let changes: [fn(&mut Attr); 5] = [
        |attr| attr.size += 1,
        |attr| attr.mode = 0,
        |attr| attr.uid += 1,
        |attr| attr.gid += 1,
        |attr| attr.ctime.nanoseconds += 1,
    ];
    for (change, stays) in changes.into_iter().zip([true, false, false, false, false]) {
        index.update(&handle(1), |known| known.attr = Some(attr(1)));
        index.set_granted(&handle(1), &caller, 1, 1);
        index.update(&handle(1), |known| change(known.attr.as_mut().expect("set")));
        assert_eq!(index.granted(&handle(1), &caller, 1).is_some(), stays);
    }
}

#[test]
fn a_link_target_goes_with_the_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path(), IndexOptions::default());
    index.set_target(&handle(1), Bytes::from_static(b"old"));
    let (before, after) =
        (index.node(&handle(1)), index.update(&handle(1), |known| known.renew_key(None)));
    assert_ne!(before.map(|known| known.key), Some(after.key));
    assert_eq!(index.target(&handle(1)), None);
}

#[test]
fn a_listing_is_served_as_the_server_gave_it_and_as_we_changed_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path(), small());
    let root = handle(0);
    let token = index.token(&root);
    let entries: Vec<_> = (1..=10).map(|number| entry(number, &format!("n{number}"))).collect();
    for entry in &entries {
        index.update(&handle(entry.fileid), |known| known.attr = entry.attr);
    }
    assert!(!index.set_listing_part(&root, 0, &entries[..6], false, VERIFIER, token));
    assert_eq!(index.listing(&root, 0, 100), None);
    assert_eq!(index.lookup(&root, b"other"), Name::Unknown);
    assert!(index.set_listing_part(&root, 7, &entries[6..], true, VERIFIER, token));
    index.flush();
    assert_eq!(index.lookup(&root, b"other"), Name::Absent);
    assert_eq!(index.lookup(&root, b"n3"), Name::Here(handle(3)));
    let listed = index.listing(&root, 3, 2).expect("known");
    assert_eq!((listed.eof, listed.verifier), (false, VERIFIER));
    let got: Vec<_> = listed.entries.iter().map(|e| (e.fileid, e.cookie, e.kind)).collect();
    let regular = Some(FileKind::Regular);
    assert_eq!(got, [(Some(3), 4, regular), (Some(4), 5, regular)]);

    // `rm` while it lists: the cookie of a removed entry is still good.
    index.removed(&root, b"n4");
    index.removed(&root, b"n5");
    assert_eq!(index.listing(&root, 5, 1).expect("known").entries[0].fileid, Some(6));
    // New ones come last, with their number if it is known; what comes again keeps its place.
    index.created(&root, b"new", &handle(11));
    assert_eq!(index.listing(&root, 11, 1).expect("known").entries[0].fileid, None);
    index.update(&handle(11), |known| known.attr = Some(attr(11)));
    index.created(&root, b"n4", &handle(11));
    let names: Vec<_> = list(&index, &root, 3).expect("known").into_iter().map(|e| e.0).collect();
    assert_eq!(names, ["n1", "n2", "n3", "n4", "n6", "n7", "n8", "n9", "n10", "new"]);
    let ours = index.listing(&root, 11, 100).expect("known").entries[0].cookie;
    index.forget_dir(&root);
    assert_eq!(index.listing(&root, 3, 100), None);
    assert!(index.listing(&root, ours, 100).expect("the end").eof);
}

#[test]
fn a_listing_that_we_changed_meanwhile_is_not_believed() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path(), small());
    let (root, page) = (handle(0), [entry(1, "a")]);
    let token = index.token(&root);
    index.set_listing_part(&root, 0, &page, false, VERIFIER, token);
    index.created(&root, b"b", &handle(2));
    assert!(!index.set_listing_part(&root, 2, &[], true, VERIFIER, token));
    assert!(!index.set_listing_part(&root, 2, &[], true, VERIFIER, index.token(&root)));
    assert!(!index.set_listing_part(&root, 0, &page, true, VERIFIER, token));
    assert!(!index.note_name(&root, b"b", None, token));
    assert_eq!(index.lookup(&root, b"b"), Name::Here(handle(2)));
    assert_eq!(index.lookup(&root, b"c"), Name::Unknown);
    assert!(index.note_name(&root, b"c", None, index.token(&root)));
    assert_eq!(index.lookup(&root, b"c"), Name::Absent);
}

#[test]
fn an_unfinished_listing_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path(), small());
    let token = index.token(&handle(0));
    index.set_listing_part(&handle(0), 0, &[entry(1, "a")], false, VERIFIER, token);
    drop(index);
    let raw = Connection::open(dir.path().join("index.sqlite")).expect("a database");
    let count = raw.query_row("SELECT count(*) FROM name", [], |row| row.get::<_, i64>(0));
    assert_eq!(count, Ok(0));
}

#[test]
fn cookies_like_ours_are_not_mixed_with_ours() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path(), small());
    let mut page = [entry(1, "a")];
    page[0].cookie = 0x4756_4653_0000_0001;
    let token = index.token(&handle(0));
    assert!(index.set_listing_part(&handle(0), 0, &page, true, VERIFIER, token));
    index.flush();
    assert_eq!(index.listing(&handle(0), 0, 10), None);
    assert_eq!(index.lookup(&handle(0), b"b"), Name::Absent);
}

#[test]
fn a_large_directory_is_listed_by_page() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path(), IndexOptions { names_max: 1024, ..IndexOptions::default() });
    let (root, count) = (handle(0), 6_000);
    let token = index.token(&root);
    let names: Vec<_> = (1..=count).map(|number| format!("file-{number:06}")).collect();
    for (page, part) in names.chunks(1000).enumerate() {
        let start = page as u64 * 1000;
        let entries: Vec<_> = (start + 1..).zip(part).map(|(at, name)| entry(at, name)).collect();
        let cookie = if page == 0 { 0 } else { start + 1 };
        let eof = start + 1000 == count;
        assert_eq!(index.set_listing_part(&root, cookie, &entries, eof, VERIFIER, token), eof);
    }
    let listed = list(&index, &root, 700).expect("known");
    assert!(listed.iter().map(|(name, _)| &name[..]).eq(names.iter().map(|name| name.as_bytes())));
    assert_eq!(index.lookup(&root, b"file-005999"), Name::Here(handle(5999)));
    assert_eq!(index.lookup(&root, b"file-006001"), Name::Absent);
    index.flush();
    for name in &names {
        assert_ne!(index.lookup(&root, name.as_bytes()), Name::Absent);
    }
    assert!(index.stats().names <= 1024);
}

#[test]
fn everything_is_forgotten_but_keys_and_bases() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, base) = (handle(0), WccAttr::from(&attr(1)));
    let mut index = open(dir.path(), small());
    let keys: Vec<_> = (1..40)
        .map(|number| {
            index.set_name(&root, format!("n{number}").as_bytes(), Some(handle(number)));
            let fill = |known: &mut Known| (known.attr, known.base) = (Some(attr(1)), Some(base));
            index.update(&handle(number), fill).key
        })
        .collect();
    index.forget_all();
    for reopened in [false, true] {
        if reopened {
            drop(index);
            index = open(dir.path(), small());
        }
        for (number, key) in (1..).zip(&keys) {
            let name = format!("n{number}");
            assert_eq!(index.lookup(&root, name.as_bytes()), Name::Unknown);
            let expected = Known { key: *key, base: Some(base), ..Known::new() };
            assert_eq!(index.node(&handle(number)), Some(expected));
        }
    }
}

#[test]
fn files_changed_too_late_are_forgotten() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("index");
    let file = |number| FileHandle::new(&[number]).expect("short");
    let index = Index::open(&path, IndexOptions::default()).expect("opened");
    let keys: Vec<_> =
        (0..3).map(|n| index.update(&file(n), |known| known.written = u64::from(n)).key).collect();
    drop(index);
    let index = Index::open(&path, IndexOptions::default()).expect("opened");
    index.distrust_written(1);
    let key = |number| index.node(&file(number)).map(|known| known.key);
    assert_eq!([key(0), key(1), key(2)], [Some(keys[0]), Some(keys[1]), None]);
    assert!(index.stats().persistent);
}
