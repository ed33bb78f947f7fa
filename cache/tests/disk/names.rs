//! Deferred names: what is answered here, what travels, and what is left after a kill, a lost index,
//! a lost link and others' changes.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use gridvfs_cache::DiskCache;
use gridvfs_cache::disk::{AtEnd, Consistency, Policy, Resolution, Unsent};
use gridvfs_vfs::*;

use super::world::*;

/// A session that owns its files, sends nothing before it is asked, and knows its root.
fn owned() -> World {
    let mut world = World::new(Policy::WriteBack, Consistency::Dedicated);
    world.settings.writeback_delay = Duration::from_secs(3600);
    world.settings.writeback_age_max = Duration::from_secs(3600);
    world
}

/// Files that were made through the cache, by an earlier session, and are on the server.
fn prepare(world: &World, files: &[(&str, &str)]) {
    let session = world.open();
    list(&session);
    for (name, text) in files {
        let file = create_new(&session, name).expect("created");
        session.write(&file, 0, text.as_bytes()).expect("written");
    }
    session.wait(session.cache.write_back()).expect("written back");
    session.close().expect("ended");
}

fn calls(session: &Session) -> u64 {
    session.far.calls.load(SeqCst)
}

/// Lists the root, as a program does.
fn list(session: &Session) -> BTreeSet<String> {
    let (root, caller) = (session.cache.root(), session.caller());
    attr(session, &root);
    // Root's rights are asked for once.
    let absent = session.remove("absent");
    assert_eq!(absent, Err(Status::NOENT.into()));
    let mut names = BTreeSet::new();
    let mut cookie = 0;
    loop {
        let call = session.cache.readdir(&caller, &root, cookie, [0; 8], 4096, true);
        let page = session.wait(call).expect("listed");
        for entry in &page.entries {
            let name = String::from_utf8(entry.name.to_vec()).expect("text");
            if !is_dots(&entry.name) {
                assert!(names.insert(name.clone()), "{name} is listed twice");
                if let Some(attr) = entry.attr {
                    assert_eq!(attr.fileid, entry.fileid, "{name}");
                }
            }
            cookie = entry.cookie;
        }
        if page.eof {
            break;
        }
        assert!(!page.entries.is_empty());
    }
    // That a name is absent is told by the index when it has written the listing down.
    let mut number = 0;
    eventually("the listing is known", || {
        number += 1;
        let before = calls(session);
        let absent = session.lookup(&format!("absent{number}"));
        absent == Err(Status::NOENT.into()) && calls(session) == before
    });
    names
}

fn attr(session: &Session, file: &FileHandle) -> Attr {
    session.wait(session.cache.getattr(&session.caller(), file)).expect("attributes")
}

fn set(session: &Session, file: &FileHandle, changes: SetAttr) -> Result<Wcc> {
    session.wait(session.cache.setattr(&session.caller(), file, &changes, None))
}

/// Creates as open(2) with O_EXCL does.
fn create_new(session: &Session, name: &str) -> Result<FileHandle> {
    let how = CreateHow::Guarded(SetAttr { mode: Some(0o640), ..SetAttr::default() });
    let (root, caller) = (session.cache.root(), session.caller());
    let made = session.wait(session.cache.create(&caller, &root, name.as_bytes(), &how));
    made.map(|made| made.handle.expect("handle"))
}

fn at_server(world: &World) -> BTreeSet<String> {
    let entries = std::fs::read_dir(world.at_server("")).expect("listed");
    entries.map(|entry| entry.expect("entry").file_name().into_string().expect("text")).collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| name.to_string()).collect()
}

fn pending(session: &Session) -> u64 {
    session.cache.unsent().names
}

#[test]
fn names_are_answered_here_and_made_there_later() {
    let world = owned();
    prepare(&world, &[("old", "old"), ("gone", "gone")]);
    let session = world.open();
    assert_eq!(list(&session), names(&["gone", "old"]));
    let before = calls(&session);

    let new = create_new(&session, "new").expect("created");
    assert_eq!(create_new(&session, "new"), Err(Status::EXIST.into()));
    session.write(&new, 0, b"some data").expect("written");
    session.remove("gone").expect("removed");
    assert_eq!(session.remove("gone"), Err(Status::NOENT.into()));
    session.rename("old", "renamed").expect("renamed");
    let renamed = session.lookup("renamed").expect("there");
    set(&session, &renamed, SetAttr { mode: Some(0o600), ..SetAttr::default() }).expect("set");
    session.truncate(&renamed, 0).expect("cut");
    session.write(&renamed, 0, b"anew").expect("written");
    session.fsync(&renamed).expect("synced");
    let number = attr(&session, &new).fileid;
    assert_eq!(attr(&session, &new).mode, 0o640);
    assert_eq!(session.lookup("gone"), Err(Status::NOENT.into()));
    assert_eq!(session.lookup("old"), Err(Status::NOENT.into()));
    assert_eq!(list(&session), names(&["new", "renamed"]));
    assert_eq!(at_server(&world), names(&["gone", "old"]), "the server knows nothing yet");
    assert_eq!(calls(&session), before);
    assert_eq!(pending(&session), 4, "a change of the mode is made with the truncation");

    session.wait(session.cache.write_back()).expect("written back");
    assert_eq!(at_server(&world), names(&["new", "renamed"]));
    let data = |name: &str| std::fs::read(world.at_server(name)).expect("there");
    assert_eq!((data("new"), data("renamed")), (b"some data".to_vec(), b"anew".to_vec()));
    let mode = |name: &str| {
        let metadata = std::fs::metadata(world.at_server(name)).expect("there");
        metadata.permissions().mode() & 0o7777
    };
    assert_eq!((mode("new"), mode("renamed")), (0o640, 0o600));
    assert_eq!(session.cache.unsent(), Unsent::default());
    assert_eq!(session.lookup("new"), Ok(new), "its handle stays");
    assert_eq!(attr(&session, &new).fileid, number, "and so does its number");
    assert_eq!(session.read(&new, 0, 99).expect("read"), b"some data");
    session.close().expect("ended");

    let session = world.open();
    assert_eq!(session.lookup("new"), Ok(new), "in the next session, too");
    assert_eq!(attr(&session, &new).fileid, number);
    session.write(&new, 4, b"!").expect("written");
    session.close().expect("ended");
    assert_eq!(data("new"), b"some!data");
}

#[test]
fn what_is_removed_before_it_was_sent_never_travels() {
    let world = owned();
    let session = world.open();
    assert_eq!(list(&session), names(&[]));
    let before = calls(&session);
    for round in 0..20 {
        let name = format!("temporary{round}");
        let file = create_new(&session, &name).expect("created");
        session.write(&file, 0, &pattern(round, 5000)).expect("written");
        session.rename(&name, ".nfs1").expect("renamed");
        session.write(&file, 5000, b"more").expect("written while it is hidden");
        session.remove(".nfs1").expect("removed");
    }
    // A temporary file in the place of one that is as new.
    for _ in 0..2 {
        let file = create_new(&session, "lock").expect("created");
        session.write(&file, 0, b"content").expect("written");
        session.rename("lock", "index").expect("renamed");
    }
    assert_eq!(calls(&session), before);
    assert_eq!(pending(&session), 1, "one file is left");
    session.close().expect("ended");
    assert_eq!(at_server(&world), names(&["index"]));
    assert_eq!(std::fs::read(world.at_server("index")).expect("there"), b"content");
}

#[test]
fn pending_names_outlive_a_kill_and_a_lost_index() {
    for lose_index in [false, true] {
        let world = owned();
        prepare(&world, &[("old", "old"), ("gone", "gone"), ("cut", "a longer text")]);
        let session = world.open();
        list(&session);
        let new = create_new(&session, "new").expect("created");
        session.write(&new, 0, b"data").expect("written");
        session.remove("gone").expect("removed");
        session.rename("old", "renamed").expect("renamed");
        let cut = session.lookup("cut").expect("there");
        session.truncate(&cut, 0).expect("cut");
        session.write(&cut, 0, b"short").expect("written");
        session.kill();
        if lose_index {
            for name in ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"] {
                let _ = std::fs::remove_file(world.cache_dir().join(name));
            }
        }
        assert_eq!(at_server(&world), names(&["cut", "gone", "old"]));
        let left = DiskCache::unsent_in(&world.cache_dir()).expect("journal");
        assert_eq!((left.names, left.files), (4, 2));

        let mut world = world;
        world.settings.at_end = AtEnd::Preserve;
        let session = world.open();
        let shown = names(&["cut", "new", "renamed"]);
        assert_eq!(session.lookup("gone"), Err(Status::NOENT.into()));
        assert_eq!(session.lookup("old"), Err(Status::NOENT.into()));
        assert_eq!(list(&session), shown);
        let new = session.lookup("new").expect("there");
        assert_eq!(session.read(&new, 0, 99).expect("read"), b"data");
        let cut = session.lookup("cut").expect("there");
        assert_eq!(session.read(&cut, 0, 99).expect("read"), b"short");
        assert_eq!(at_server(&world), names(&["cut", "gone", "old"]), "it is preserved");
        session.close().expect("ended");

        let session = world.open();
        assert_eq!(list(&session), shown, "after a clean end, too");
        assert_eq!(pending(&session), 4);
        session.wait(session.cache.write_back()).expect("written back");
        assert_eq!(at_server(&world), shown);
        assert_eq!(std::fs::read(world.at_server("new")).expect("there"), b"data");
        assert_eq!(std::fs::read(world.at_server("cut")).expect("there"), b"short");
        assert_eq!(session.cache.conflicts(), []);
        session.close().expect("ended");
    }
}

#[test]
fn names_that_others_have_made_meanwhile_are_conflicts() {
    let world = owned();
    prepare(&world, &[("moved", "moved"), ("cut", "long"), ("gone", "gone")]);
    let all = ["mine", "theirs", "both"];
    let session = world.open();
    list(&session);
    for name in all {
        let file = create_new(&session, name).expect("created");
        session.write(&file, 0, b"ours").expect("written");
    }
    session.rename("moved", "target").expect("renamed");
    let cut = session.lookup("cut").expect("there");
    session.truncate(&cut, 0).expect("cut");
    session.remove("gone").expect("removed");
    for name in ["mine", "theirs", "both", "target"] {
        std::fs::write(world.at_server(name), "others'").expect("written");
    }
    std::fs::write(world.at_server("cut"), "others' work").expect("written");
    std::fs::write(world.at_server("new"), "others' file").expect("written");
    std::fs::rename(world.at_server("new"), world.at_server("gone")).expect("renamed");

    assert!(session.wait(session.cache.write_back()).is_err());
    let data = |name: &str| std::fs::read_to_string(world.at_server(name)).expect("there");
    for name in ["mine", "theirs", "both", "target"] {
        assert_eq!(data(name), "others'", "nothing is overwritten");
    }
    assert_eq!((data("cut"), data("moved")), ("others' work".into(), "moved".into()));
    assert_eq!(data("gone"), "others' file", "what was removed here was another file");
    assert_eq!(session.cache.conflicts().len(), 5);
    let mine = session.lookup("mine").expect("there");
    assert_eq!(session.read(&mine, 0, 99).expect("read"), b"ours", "the mount shows ours");
    session.kill();

    let session = world.open();
    assert!(session.wait(session.cache.write_back()).is_err());
    let found = session.cache.conflicts();
    let paths: BTreeSet<_> = found.iter().map(|conflict| conflict.path.clone()).collect();
    assert_eq!(found.len(), 5, "the next session finds them again: {paths:?}");
    let resolve = |name: &str, how| {
        let file = session.lookup(name).expect("there");
        let saved = session.wait(session.cache.resolve(&file, how)).expect("resolved");
        saved.map(|path| String::from_utf8(path).expect("text"))
    };
    resolve("mine", Resolution::KeepMine);
    resolve("theirs", Resolution::KeepTheirs);
    let saved = resolve("both", Resolution::SaveMine).expect("saved");
    let renamed = resolve("target", Resolution::SaveMine).expect("saved");
    resolve("cut", Resolution::KeepTheirs);
    session.wait(session.cache.write_back()).expect("written back");
    assert_eq!(session.cache.conflicts(), []);
    assert_eq!(
        (data("mine"), data("theirs"), data("both")),
        ("ours".into(), "others'".into(), "others'".into())
    );
    assert_eq!((data(&saved), data(&renamed)), ("ours".into(), "moved".into()));
    assert_eq!((data("cut"), data("target")), ("others' work".into(), "others'".into()));
    let theirs = session.lookup("theirs").expect("there");
    assert_eq!(session.read(&theirs, 0, 99).expect("read"), b"others'");
    let cut = session.lookup("cut").expect("there");
    assert_eq!(session.read(&cut, 0, 99).expect("read"), b"others' work");
    session.close().expect("ended");
}

#[test]
fn names_wait_for_the_link() {
    let world = owned();
    let session = world.open();
    list(&session);
    session.far.unreachable.store(true, SeqCst);
    let file = create_new(&session, "file").expect("created");
    session.write(&file, 0, b"data").expect("written");
    let failed = session.wait(session.cache.write_back());
    assert!(matches!(failed, Err(Error::Unreachable(_))), "{failed:?}");
    assert_eq!(session.cache.conflicts(), []);
    session.far.unreachable.store(false, SeqCst);
    session.wait(session.cache.write_back()).expect("written back");
    assert_eq!(std::fs::read(world.at_server("file")).expect("there"), b"data");
    session.close().expect("ended");
}

/// As git makes a pack known: linked to its name and removed from the first one, while it is being sent.
#[test]
fn a_file_that_is_linked_while_it_is_sent_stays() {
    let world = owned();
    let session = world.open();
    list(&session);
    let (root, caller) = (session.cache.root(), session.caller());
    session.far.delay_ms.store(3, SeqCst);
    for pause_ms in 0..30 {
        let (first, second) = (format!("first-{pause_ms}"), format!("second-{pause_ms}"));
        let file = create_new(&session, &first).expect("created");
        session.write(&file, 0, b"one ").expect("written");
        std::thread::scope(|scope| {
            let sent = scope.spawn(|| session.wait(session.cache.write_back()));
            std::thread::sleep(Duration::from_millis(pause_ms));
            session.write(&file, 4, b"two").expect("written");
            let linked = session.cache.link(&caller, &file, &root, second.as_bytes());
            assert_eq!(session.wait(linked).expect("linked").attr.map(|attr| attr.links), Some(2));
            session.remove(&first).expect("removed");
            sent.join().expect("no panic").expect("written back");
        });
        assert_eq!(session.read(&file, 0, 99).expect("read"), b"one two", "after {pause_ms} ms");
        session.wait(session.cache.write_back()).expect("written back");
        let there = std::fs::read(world.at_server(&second)).expect("there");
        assert_eq!(there, b"one two", "after {pause_ms} ms");
    }
    session.close().expect("ended");
}

#[test]
fn calls_that_need_the_server_come_after_what_they_need() {
    let world = owned();
    let session = world.open();
    list(&session);
    let (root, caller) = (session.cache.root(), session.caller());
    let file = create_new(&session, "file").expect("created");
    session.write(&file, 0, b"data").expect("written");
    session.wait(session.cache.link(&caller, &file, &root, b"second")).expect("linked");
    assert_eq!(attr(&session, &file).links, 2);
    session.remove("file").expect("removed");
    assert_eq!(session.lookup("second"), Ok(file));
    assert_eq!(session.read(&file, 0, 99).expect("read"), b"data", "another name keeps it");

    // A directory takes the name of a removed file, and goes when it is empty here.
    create_new(&session, "place").expect("created");
    session.remove("place").expect("removed");
    let mode = SetAttr { mode: Some(0o755), ..SetAttr::default() };
    let made = session.wait(session.cache.mkdir(&caller, &root, b"place", &mode)).expect("made");
    let dir = made.handle.expect("handle");
    let how = CreateHow::Guarded(SetAttr { mode: Some(0o644), ..SetAttr::default() });
    session.wait(session.cache.create(&caller, &dir, b"inner", &how)).expect("created");
    let full = session.wait(session.cache.rmdir(&caller, &root, b"place"));
    assert_eq!(full.map(drop), Err(Status::NOTEMPTY.into()));
    session.wait(session.cache.remove(&caller, &dir, b"inner")).expect("removed");
    session.wait(session.cache.rmdir(&caller, &root, b"place")).expect("removed");
    session.close().expect("ended");
    assert_eq!(at_server(&world), names(&["second"]));
    assert_eq!(std::fs::read(world.at_server("second")).expect("there"), b"data");
}

#[test]
fn what_replaces_a_file_is_there_as_a_whole_first() {
    let world = owned();
    std::fs::write(world.at_server("index"), "before").expect("written");
    let session = world.open();
    list(&session);
    let number = std::fs::metadata(world.at_server("index")).expect("there").ino();
    let file = create_new(&session, "index.lock").expect("created");
    session.write(&file, 0, b"after").expect("written");
    session.rename("index.lock", "index").expect("renamed");
    // The server takes no data: the old file stays.
    session.far.refuse.store(Status::NOSPC.0, SeqCst);
    assert_eq!(session.wait(session.cache.write_back()), Err(Status::NOSPC.into()));
    assert_eq!(std::fs::read(world.at_server("index")).expect("there"), b"before");
    assert_eq!(std::fs::metadata(world.at_server("index")).expect("there").ino(), number);
    assert_eq!(session.cache.conflicts(), []);
    session.far.refuse.store(0, SeqCst);
    session.wait(session.cache.write_back()).expect("written back");
    assert_eq!(std::fs::read(world.at_server("index")).expect("there"), b"after");
    session.close().expect("ended");
    assert_eq!(at_server(&world), names(&["index"]));
}

#[test]
fn times_that_programs_have_seen_arrive() {
    let world = owned();
    let session = world.open();
    list(&session);
    let file = create_new(&session, "file").expect("created");
    let time = Time { seconds: 1_234_567, nanoseconds: 89 };
    let changes = SetAttr { mtime: SetTime::To(time), ..SetAttr::default() };
    set(&session, &file, changes).expect("set");
    let other = create_new(&session, "other").expect("created");
    let seen = attr(&session, &other).mtime;
    session.wait(session.cache.write_back()).expect("written back");
    let server = |name: &str| {
        let metadata = std::fs::metadata(world.at_server(name)).expect("there");
        Time { seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() as u32 }
    };
    assert_eq!((server("file"), server("other")), (time, seen));
    // Once more on a file that is there, at a time of its own.
    let changes = SetAttr { mtime: SetTime::To(seen), ..SetAttr::default() };
    let before = calls(&session);
    set(&session, &file, changes).expect("set");
    assert_eq!((calls(&session), attr(&session, &file).mtime), (before, seen));
    session.close().expect("ended");
    assert_eq!(server("file"), seen);
}

#[test]
fn other_sessions_defer_nothing() {
    for (policy, consistency) in [
        (Policy::WriteBack, Consistency::Shared),
        (Policy::WriteThrough, Consistency::Dedicated),
        (Policy::WriteThrough, Consistency::Shared),
    ] {
        let world = World::new(policy, consistency);
        let session = world.open();
        create_new(&session, "file").expect("created");
        assert_eq!(at_server(&world), names(&["file"]));
        session.remove("file").expect("removed");
        assert_eq!(at_server(&world), names(&[]));
        assert_eq!(pending(&session), 0);
        session.close().expect("ended");
    }
}

#[test]
fn a_session_that_stops_deferring_sends_what_is_pending() {
    let world = owned();
    let session = world.open();
    list(&session);
    create_new(&session, "file").expect("created");
    let mut settings = (*session.cache.settings()).clone();
    settings.policy = Policy::WriteThrough;
    session.cache.set(settings).expect("set");
    eventually("the file is there", || at_server(&world) == names(&["file"]));
    create_new(&session, "other").expect("created");
    assert!(at_server(&world).contains("other"));
    session.close().expect("ended");
}
