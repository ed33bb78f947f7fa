//! Files that are damaged, foreign, full, unwritable, shared, or left by a crash.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

fn fill(index: &Index, count: u64) {
    let root = handle(0);
    for number in 1..=count {
        index.update(&handle(number), |known| known.attr = Some(attr(number)));
        index.set_name(&root, format!("n{number}").as_bytes(), Some(handle(number)));
    }
    index.flush();
}

fn list_root(index: &Index, count: u64) {
    let token = index.token(&handle(0));
    let entries: Vec<_> = (1..=count).map(|at| entry(at, &format!("n{at}"))).collect();
    assert!(index.set_listing_part(&handle(0), 0, &entries, true, VERIFIER, token));
    index.flush();
}

#[test]
fn another_format_is_refused_and_not_touched() {
    for (version, with_tables) in [(99, true), (0, true)] {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("index.sqlite");
        let other = Connection::open(&path).expect("a database");
        if with_tables {
            other.execute_batch("CREATE TABLE node(other)").expect("a table");
        }
        other.pragma_update(None, "user_version", version).expect("set");
        drop(other);
        let before = fs::read(&path).expect("there");
        let Err(error) = Index::open(&path, IndexOptions::default()) else {
            panic!("format {version} was taken")
        };
        let IndexError::Version { found, known, .. } = &error;
        assert_eq!((*found, *known), (version, 2));
        assert!(error.to_string().contains("index.sqlite has format"), "{error}");
        assert_eq!(fs::read(&path).expect("there"), before);
    }
}

#[test]
fn the_format_before_is_taken_over_and_aliases_are_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("index.sqlite");
    let index = open(dir.path(), IndexOptions::default());
    fill(&index, 3);
    drop(index);
    let before = Connection::open(&path).expect("a database");
    before.execute_batch("DROP TABLE alias; PRAGMA user_version = 1").expect("as it was");
    drop(before);

    let index = open(dir.path(), IndexOptions::default());
    assert!(index.closed_cleanly());
    assert!(matches!(index.lookup(&handle(0), b"n1"), Name::Here(_)), "what was known is known");
    assert_eq!(index.aliases(), []);
    index.set_alias(&handle(1), Some(&handle(11)));
    index.set_alias(&handle(2), Some(&handle(12)));
    index.set_alias(&handle(3), Some(&handle(13)));
    index.set_alias(&handle(2), None);
    drop(index);
    let database = Connection::open(&path).expect("a database");
    let flip = "UPDATE alias SET server = ?1 WHERE ours = ?2";
    database.execute(flip, [handle(14).as_bytes(), handle(3).as_bytes()]).expect("flipped");
    drop(database);
    let index = open(dir.path(), IndexOptions::default());
    assert_eq!(index.aliases(), [(handle(1), handle(11))]);
    index.forget_aliases();
    assert_eq!(index.aliases(), []);
}

#[test]
fn a_damaged_file_is_set_aside() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("index.sqlite");
    for number in 1..8 {
        fs::write(&path, vec![0x5a; 20_000]).expect("written");
        let index = open(dir.path(), IndexOptions::default());
        assert!(index.stats().persistent);
        fill(&index, 3);
        drop(index);
        let aside = dir.path().join(format!("index.sqlite.damaged-{}", number.min(5)));
        assert_eq!(fs::read(aside).expect("kept").len(), 20_000);
    }
    let files = fs::read_dir(dir.path()).expect("there").count();
    assert!(files <= 7, "{files} files");
}

#[test]
fn pages_overwritten_under_it_are_no_error_to_anybody() {
    for from_start in [true, false] {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("index.sqlite");
        let index = open(dir.path(), small());
        fill(&index, 500);
        drop(index);
        let mut bytes = fs::read(&path).expect("there");
        let start = if from_start { 4096 } else { bytes.len() / 2 };
        bytes[start..].fill(0xff);
        fs::write(&path, bytes).expect("written");
        let index = open(dir.path(), small());
        for number in 1..=500 {
            match index.lookup(&handle(0), format!("n{number}").as_bytes()) {
                Name::Here(found) => assert_eq!(found, handle(number)),
                Name::Unknown => {}
                Name::Absent => panic!("n{number} is not absent"),
            }
        }
        fill(&index, 20);
        drop(index);
        let index = open(dir.path(), small());
        fill(&index, 20);
        assert_eq!(index.lookup(&handle(0), b"n20"), Name::Here(handle(20)));
        assert!(index.stats().persistent);
    }
}

#[test]
fn flipped_bits_of_rows_are_found() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("index.sqlite");
    let index = open(dir.path(), small());
    fill(&index, 20);
    let keys: Vec<_> = (1..=20).map(|at| index.node(&handle(at)).expect("known").key).collect();
    drop(index);
    let bits = [
        "UPDATE node SET attr = zeroblob(length(attr))",
        "UPDATE node SET key = key + 1",
        "UPDATE node SET names = names + 1, flags = 1",
        "UPDATE name SET child = (SELECT handle FROM node ORDER BY handle DESC LIMIT 1),
         state = 1 WHERE name <> x'6e3230'",
    ];
    for statement in bits {
        let whole = fs::read(&path).expect("there");
        let damage = Connection::open(&path).expect("a database");
        damage.execute_batch(statement).expect("changed");
        drop(damage);
        let index = open(dir.path(), small());
        for (number, key) in (1..=20).zip(&keys) {
            if let Some(known) = index.node(&handle(number)) {
                assert_eq!((known.attr, known.key), (Some(attr(number)), *key));
            }
            let name = index.lookup(&handle(0), format!("n{number}").as_bytes());
            assert!([Name::Here(handle(number)), Name::Unknown].contains(&name), "{name:?}");
        }
        assert!(index.stats().damaged > 0, "{statement}");
        assert!(!index.check());
        drop(index);
        fs::write(&path, whole).expect("restored");
    }
    assert!(open(dir.path(), small()).check());
}

#[test]
fn without_a_database_memory_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(&dir.path().join("missing"), small());
    assert!(!index.stats().persistent && !index.closed_cleanly());
    let known = index.update(&handle(1), |known| known.attr = Some(attr(1)));
    // With room for so few, what shares a shard may have made room for another.
    assert!(index.node(&handle(1)).is_none_or(|found| found == known));
    index.set_name(&handle(0), b"a", Some(handle(1)));
    let found = index.lookup(&handle(0), b"a");
    assert!([Name::Unknown, Name::Here(handle(1))].contains(&found), "{found:?}");
    let token = index.token(&handle(0));
    assert!(!index.set_listing_part(&handle(0), 0, &[], true, VERIFIER, token));
    assert_eq!(index.lookup(&handle(0), b"b"), Name::Unknown);
    fill(&index, 500);
    index.forget_all();
    index.forget_dir(&handle(0));
    assert_eq!(index.lookup(&handle(0), b"n1"), Name::Unknown);
    // A shard may hold a little more than its share for a moment.
    assert!(index.stats().nodes <= 64 && index.stats().names <= 64);
}

#[test]
fn a_read_only_directory_is_done_without() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).expect("set");
    let index = open(dir.path(), small());
    // Root writes there all the same.
    fill(&index, 30);
    assert!(index.node(&handle(30)).is_some());
    drop(index);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("set");
}

#[test]
fn a_full_database_is_emptied() {
    let dir = tempfile::tempdir().expect("a directory");
    let full = IndexOptions { file_bytes_max: 1 << 20, nodes_max: 32 << 10, ..small() };
    let index = open(dir.path(), full);
    list_root(&index, 5);
    let (listing, token) = (handle(50_000), index.token(&handle(50_000)));
    index.set_listing_part(&listing, 0, &[entry(1, "a"), entry(2, "b")], false, VERIFIER, token);
    assert_eq!(index.lookup(&handle(0), b"other"), Name::Absent);
    for number in 0..8000 {
        index.update(&handle(number), |known| known.attr = Some(attr(number)));
    }
    index.flush();
    let stats = index.stats();
    assert!(stats.persistent, "{stats:?}");
    // Nor is a batch an error that has no room at all.
    for number in 0..500 {
        index.set_target(&handle(number), vec![b'/'; 4095].into());
    }
    index.flush();
    assert!(index.stats().persistent);
    // What was listed before is not all that is there.
    assert!(index.set_listing_part(&listing, 3, &[entry(3, "c")], true, VERIFIER, token));
    index.flush();
    assert_eq!(index.lookup(&listing, b"d"), Name::Unknown);
    // The names are gone with the rest: nothing is absent that is not known to be.
    for number in 1..=5 {
        let name = index.lookup(&handle(0), format!("n{number}").as_bytes());
        assert!([Name::Unknown, Name::Here(handle(number))].contains(&name), "{name:?}");
    }
    assert_eq!(index.lookup(&handle(0), b"another"), Name::Unknown);
    assert_eq!(index.listing(&handle(0), 0, 10), None);
    let size = fs::metadata(dir.path().join("index.sqlite")).expect("there").len();
    assert!(size <= 1 << 20, "{size}");
}

#[test]
fn two_use_one_database() {
    let dir = tempfile::tempdir().expect("a directory");
    let one = open(dir.path(), small());
    fill(&one, 10);
    list_root(&one, 10);
    let two = open(dir.path(), small());
    assert!(one.closed_cleanly() && !two.closed_cleanly());
    // The second finds the first one's keys and names.
    for number in 1..=10 {
        assert_eq!(one.node(&handle(number)), two.node(&handle(number)));
    }
    assert_eq!(two.lookup(&handle(0), b"other"), Name::Absent);
    // The first notices that the directory has changed, and lists it: `n10` is gone, `n0` is new.
    one.forget_dir(&handle(0));
    let token = one.token(&handle(0));
    let entries: Vec<_> = (0..10).map(|at| entry(at, &format!("n{at}"))).collect();
    assert!(one.set_listing_part(&handle(0), 0, &entries, true, VERIFIER, token));
    one.flush();
    let raw = Connection::open(dir.path().join("index.sqlite")).expect("a database");
    let count = || raw.query_row("SELECT count(*) FROM name", [], |row| row.get::<_, i64>(0));
    while count().expect("a number") > 10 + 1 {
        std::thread::sleep(Duration::from_millis(1));
    }
    // What the second still believes is what was once so, or nothing; what it writes stays its own.
    for number in 1..=10 {
        let name = two.lookup(&handle(0), format!("n{number}").as_bytes());
        assert!([Name::Unknown, Name::Here(handle(number))].contains(&name), "{name:?}");
    }
    two.set_name(&handle(0), b"n10", Some(handle(10)));
    two.set_name(&handle(0), b"late", Some(handle(11)));
    two.flush();
    // Unless memory was short and the second has read the first one's listing since: then it was
    // that listing that it changed.
    for (name, child) in [(&b"n10"[..], 10), (b"late", 11)] {
        let found = one.lookup(&handle(0), name);
        assert!([Name::Absent, Name::Here(handle(child))].contains(&found), "{found:?}");
    }
    // Both write at once.
    std::thread::scope(|scope| {
        for index in [&one, &two] {
            scope.spawn(|| (0..20).for_each(|_| fill(index, 50)));
        }
    });
    assert!(one.stats().persistent && two.stats().persistent);
    drop((one, two));
    let three = open(dir.path(), small());
    assert!(three.closed_cleanly());
    assert!((1..=50).all(|number| three.node(&handle(number)).is_some()));
}

#[test]
fn a_crash_is_noticed_and_leaves_an_earlier_state() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path(), small());
    fill(&index, 100);
    // What a killed process leaves: the files as they are now.
    let left = tempfile::tempdir().expect("a directory");
    for number in 0..10000 {
        let size = 2 * number;
        index.update(&handle(1), |known| known.attr = Some(Attr { size, ..attr(1) }));
        index.update(&handle(2), |known| known.attr = Some(Attr { size, ..attr(2) }));
        if number == 2500 {
            for suffix in ["", "-wal"] {
                let name = format!("index.sqlite{suffix}");
                fs::copy(dir.path().join(&name), left.path().join(&name)).expect("copied");
            }
        }
    }
    let after = open(left.path(), small());
    assert!(!after.closed_cleanly());
    let size = |number| after.node(&handle(number)).and_then(|known| known.attr).map(|a| a.size);
    if let (Some(first), Some(second)) = (size(1), size(2))
        && first > 20_000
    {
        assert!(first == second || first == second + 2, "{first} {second}");
    }
    drop(after);
    assert!(open(left.path(), small()).closed_cleanly());
}

#[test]
fn threads_do_not_lose_each_others_changes() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path(), small());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let index = &index;
            scope.spawn(move || {
                for step in 0..500 {
                    // All of them pass through a memory of a dozen.
                    index.update(&handle(step % 40), |known| known.at += 1);
                    let name = format!("t{thread}-{step}");
                    index.set_name(&handle(100), name.as_bytes(), Some(handle(step)));
                    assert_eq!(
                        index.lookup(&handle(100), name.as_bytes()),
                        Name::Here(handle(step))
                    );
                }
            });
        }
    });
    let sum: u64 = (0..40).map(|number| index.node(&handle(number)).expect("known").at).sum();
    assert_eq!(sum, 4 * 500);
    drop(index);
    let index = open(dir.path(), small());
    for thread in 0..4 {
        for step in 0..500 {
            let name = format!("t{thread}-{step}");
            assert_eq!(index.lookup(&handle(100), name.as_bytes()), Name::Here(handle(step)));
        }
    }
}

#[test]
fn a_listing_and_our_own_changes_may_race() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path(), IndexOptions::default());
    let (root, there) = (handle(0), AtomicBool::new(false));
    let done = AtomicBool::new(false);
    /// Ends the other thread, whatever happens.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    std::thread::scope(|scope| {
        let _done = Done(&done);
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_micros(50));
                let token = index.token(&root);
                let mut page = vec![entry(2, "other")];
                if there.load(Ordering::SeqCst) {
                    page.push(entry(1, "x"));
                }
                index.set_listing_part(&root, 0, &page, true, VERIFIER, token);
            }
        });
        for round in 0..1000 {
            let created = round % 2 == 0;
            there.store(created, Ordering::SeqCst);
            match created {
                true => index.created(&root, b"x", &handle(1)),
                false => index.removed(&root, b"x"),
            }
            let wrong = if created { Name::Absent } else { Name::Here(handle(1)) };
            for _ in 0..3 {
                assert_ne!(index.lookup(&root, b"x"), wrong);
                std::thread::yield_now();
            }
        }
    });
}
