//! Listings of which memory does not hold all names.

use super::*;

const COUNT: u64 = 10_000;

/// With the usual room: a directory that is let go in the middle is not noted.
fn usual() -> IndexOptions {
    IndexOptions { write_delay: Duration::from_millis(2), ..IndexOptions::default() }
}

/// Lists a large directory, as a client would that is answered in pages of 1000.
fn list(index: &Index, dir: &FileHandle) {
    let token = index.token(dir);
    for page in 0..COUNT / 1000 {
        let numbers = page * 1000 + 1..=(page + 1) * 1000;
        let entries: Vec<_> = numbers.map(|n| entry(n, &format!("name{n}"))).collect();
        index.prepare(entries.iter().filter_map(|entry| entry.handle));
        for entry in &entries {
            let handle = entry.handle.expect("given");
            index.update(&handle, |known| known.attr = entry.attr);
        }
        let (start, eof) = (if page == 0 { 0 } else { page * 1000 + 1 }, page == COUNT / 1000 - 1);
        assert_eq!(index.set_listing_part(dir, start, &entries, eof, VERIFIER, token), eof);
    }
}

fn check(index: &Index, dir: &FileHandle) {
    let (mut cookie, mut count) = (0, 0);
    loop {
        let page = index.listing(dir, cookie, 1500).expect("known");
        count += page.entries.len() as u64;
        assert!(page.entries.iter().all(|entry| entry.handle == Some(handle(entry.cookie - 1))));
        cookie = page.entries.last().expect("not empty").cookie;
        if page.eof {
            break;
        }
    }
    assert_eq!(count, COUNT);
    for number in [1, 777, COUNT] {
        let name = format!("name{number}");
        assert_eq!(index.lookup(dir, name.as_bytes()), Name::Here(handle(number)));
        assert_eq!(index.node(&handle(number)).and_then(|known| known.attr), Some(attr(number)));
        let place = Some((*dir, Bytes::from(name)));
        assert_eq!(index.name_of(&handle(number)), place);
    }
    assert_eq!(index.lookup(dir, b"another"), Name::Absent);
}

#[test]
fn a_large_listing_is_known_at_once_and_to_later_sessions() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("index.sqlite");
    let dir = handle(0);
    let index = Index::open(&path, usual()).expect("opened");
    list(&index, &dir);
    check(&index, &dir);
    drop(index);
    let index = Index::open(&path, usual()).expect("opened");
    check(&index, &dir);
    assert!(index.check());
    // Listed again, and closed before anybody has asked for it.
    index.forget_dir(&dir);
    list(&index, &dir);
    drop(index);
    let index = Index::open(&path, usual()).expect("opened");
    check(&index, &dir);
}

#[test]
fn a_large_listing_that_is_forgotten_before_it_is_written_is_not_known() {
    let folder = tempfile::tempdir().expect("folder");
    let dir = handle(0);
    let index = Index::open(&folder.path().join("index.sqlite"), usual()).expect("opened");
    list(&index, &dir);
    index.forget_all();
    assert_eq!(index.listing(&dir, 0, 10), None);
    assert_eq!(index.lookup(&dir, b"name1"), Name::Unknown);
    // Nor is one that we have changed the directory since.
    list(&index, &dir);
    index.dir_changed(&dir);
    assert_eq!(index.listing(&dir, 0, 10), None);
    index.flush();
    list(&index, &dir);
    check(&index, &dir);
}
