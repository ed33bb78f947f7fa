//! Each promise of the cache on its own.

use std::sync::atomic::Ordering;
use std::time::Duration;

use gridvfs_cache::disk::{AtEnd, ConflictKind, Consistency, Left, Policy, Resolution};
use gridvfs_vfs::{Allocation, Error, SetAttr, SetTime, Status, Time, Vfs};

use super::world::*;

fn read_at_server(world: &World, name: &str) -> Vec<u8> {
    std::fs::read(world.at_server(name)).unwrap_or_default()
}

#[test]
fn what_was_read_is_read_again_without_the_server() {
    let world = World::new(Policy::WriteThrough, Consistency::Dedicated);
    let data = pattern(1, 1 << 20);
    std::fs::write(world.at_server("a"), &data).expect("written");
    let session = world.open();
    let file = session.lookup("a").expect("there");
    assert!(session.read(&file, 0, data.len()).expect("read") == data);
    session.close().expect("ended");
    let session = world.open();
    let file = session.lookup("a").expect("there");
    let before = session.far.calls.load(Ordering::SeqCst);
    session.open_file(&file).expect("opened");
    assert!(session.read(&file, 0, data.len()).expect("read") == data);
    assert_eq!(session.far.calls.load(Ordering::SeqCst), before);
    session.close().expect("ended");
}

#[test]
fn a_change_by_others_is_seen_at_the_next_open() {
    let world = World::new(Policy::WriteThrough, Consistency::Shared);
    std::fs::write(world.at_server("a"), pattern(1, 100_000)).expect("written");
    let session = world.open();
    let file = session.lookup("a").expect("there");
    session.read(&file, 0, 100_000).expect("read");
    let changed = pattern(2, 100_000);
    std::fs::write(world.at_server("a"), &changed).expect("written");
    session.open_file(&file).expect("opened");
    assert!(session.read(&file, 0, 100_000).expect("read") == changed);
    session.close().expect("ended");
    let changed = pattern(3, 90_000);
    std::fs::write(world.at_server("a"), &changed).expect("written");
    let session = world.open();
    let file = session.lookup("a").expect("there");
    session.open_file(&file).expect("opened");
    assert!(session.read(&file, 0, 100_000).expect("read") == changed);
}

#[test]
fn allocated_room_is_there_at_once() {
    for (policy, consistency) in [
        (Policy::WriteBack, Consistency::Shared),
        (Policy::WriteBack, Consistency::Dedicated),
        (Policy::WriteThrough, Consistency::Shared),
    ] {
        let world = World::new(policy, consistency);
        std::fs::write(world.at_server("a"), b"x").expect("written");
        let session = world.open();
        let file = session.lookup("a").expect("there");
        session.open_file(&file).expect("opened");
        // Some of them come between the data's being sent and the setting of its times.
        for number in 1..60 {
            session.write(&file, 0, &pattern(number, 4096)).expect("written");
            let size = number * 8192;
            let (caller, how) = (session.caller(), Allocation::Reserve);
            let call = session.cache.allocate(&caller, &file, 0, size, how);
            session.wait(call).expect("allocated");
            assert_eq!(session.size(&file), size, "{policy:?}, {consistency:?}, {number}");
        }
        session.close().expect("ended");
        assert_eq!(read_at_server(&world, "a").len(), 59 * 8192);
    }
}

#[test]
fn a_write_into_an_absent_block_asks_nothing() {
    let world = World::new(Policy::WriteBack, Consistency::Dedicated);
    std::fs::write(world.at_server("a"), pattern(1, 1 << 20)).expect("written");
    let session = world.open();
    let file = session.lookup("a").expect("there");
    session.open_file(&file).expect("opened");
    session.write(&file, 8192, &[7; 4096]).expect("written");
    assert_eq!(session.read(&file, 8192, 4096).expect("read"), [7; 4096]);
    session.fsync(&file).expect("synced");
    assert_eq!(session.far.reads.load(Ordering::SeqCst), 0);
    session.close().expect("ended");
    assert_eq!(&read_at_server(&world, "a")[8192..12288], [7; 4096]);
}

#[test]
fn only_what_changed_travels() {
    let world = World::new(Policy::WriteBack, Consistency::Dedicated);
    std::fs::write(world.at_server("a"), vec![1; 8 << 20]).expect("written");
    let session = world.open();
    let file = session.lookup("a").expect("there");
    for block in 0..64 {
        session.write(&file, block * 97 * 1024 / 4096 * 4096, &[2; 4096]).expect("written");
    }
    session.wait(session.cache.write_back()).expect("written back");
    assert_eq!(session.far.written_bytes.load(Ordering::SeqCst), 64 * 4096);
    assert_eq!(session.cache.unsent().bytes, 0);
}

#[test]
fn unsent_data_outlives_a_kill_and_is_sent_by_the_next() {
    let mut world = World::new(Policy::WriteBack, Consistency::Dedicated);
    world.settings.writeback_delay = Duration::from_secs(3600);
    let session = world.open();
    let file = session.create("a");
    let data = pattern(5, 3 << 20);
    session.write(&file, 0, &data).expect("written");
    session.fsync(&file).expect("synced");
    session.kill();
    assert_eq!(read_at_server(&world, "a"), b"");
    let session = world.open();
    let file = session.lookup("a").expect("there");
    assert_eq!(session.size(&file), data.len() as u64);
    assert!(session.read(&file, 0, data.len()).expect("read") == data);
    eventually("sent by itself", || read_at_server(&world, "a") == data);
    session.close().expect("ended");
}

#[test]
fn a_journal_that_was_read_is_not_read_again() {
    let mut world = World::new(Policy::WriteBack, Consistency::Dedicated);
    world.settings.writeback_delay = Duration::from_secs(3600);
    let session = world.open();
    let file = session.create("a");
    let data = pattern(5, 100_000);
    session.write(&file, 0, &data).expect("written");
    session.fsync(&file).expect("synced");
    session.kill();
    let read = || Left::read(&world.cache_dir()).expect("read").expect("there");
    let left = read();
    assert_eq!((left.unsent().files, left.unsent().bytes), (1, 100_000));

    // The first record's header: who reads the journal now does not find the file's state.
    let segment = world.cache_dir().join("journal/00000001.log");
    let intact = std::fs::read(&segment).expect("there");
    let mut damaged = intact.clone();
    damaged[64..intact.len() - 100_000].fill(0);
    std::fs::write(&segment, damaged).expect("written");
    let session = world.open_over(left);
    assert_eq!(session.cache.unsent().bytes, 100_000);
    std::fs::write(&segment, intact).expect("written");
    eventually("sent", || read_at_server(&world, "a") == data);
    session.close().expect("ended");

    // One that belongs to another cache is not taken for this one's.
    let other = World::new(Policy::WriteBack, Consistency::Dedicated);
    assert!(Left::read(&other.cache_dir()).expect("read").is_none());
    let session = other.open_over(read());
    assert_eq!(session.cache.unsent().bytes, 0);
    session.create("b");
    session.close().expect("ended");
    assert!(other.cache_dir().join("journal").is_dir());
}

#[test]
fn a_removed_or_cut_file_is_never_sent() {
    let mut world = World::new(Policy::WriteBack, Consistency::Dedicated);
    world.settings.writeback_delay = Duration::from_secs(3600);
    let session = world.open();
    let (gone, cut) = (session.create("gone"), session.create("cut"));
    session.write(&gone, 0, &[1; 100_000]).expect("written");
    session.write(&cut, 0, &[1; 100_000]).expect("written");
    session.remove("gone").expect("removed");
    session.truncate(&cut, 10).expect("cut");
    session.wait(session.cache.write_back()).expect("written back");
    assert_eq!(session.far.written_bytes.load(Ordering::SeqCst), 10);
    assert!(!world.at_server("gone").exists());
    session.kill();
    let session = world.open();
    assert_eq!(session.cache.unsent().bytes, 0, "a kill does not bring it back");
    assert!(matches!(session.lookup("gone"), Err(Error::Status(Status::NOENT))));
}

#[test]
fn a_change_under_unsent_data_is_a_conflict() {
    for how in [Resolution::KeepMine, Resolution::KeepTheirs, Resolution::SaveMine] {
        let mut world = World::new(Policy::WriteBack, Consistency::Dedicated);
        world.settings.writeback_delay = Duration::from_secs(3600);
        let original = pattern(1, 200_000);
        std::fs::write(world.at_server("a"), &original).expect("written");
        let session = world.open();
        let file = session.lookup("a").expect("there");
        session.read(&file, 0, 200_000).expect("read");
        session.write(&file, 5000, &[9; 1000]).expect("written");
        let theirs = pattern(2, 150_000);
        std::fs::write(world.at_server("a"), &theirs).expect("written");
        assert!(session.wait(session.cache.write_back()).is_err());
        let conflicts = session.cache.conflicts();
        assert_eq!(conflicts.len(), 1);
        assert_eq!(conflicts[0].path.as_deref(), Some(&b"a"[..]));
        assert_eq!(conflicts[0].kind, ConflictKind::Changed);
        assert!(read_at_server(&world, "a") == theirs, "not overwritten");
        // It is still one after a kill.
        session.kill();
        let session = world.open();
        assert_eq!(session.cache.conflicts().len(), 1);
        let file = conflicts[0].handle;
        let saved = session.wait(session.cache.resolve(&file, how)).expect("resolved");
        session.wait(session.cache.write_back()).expect("written back");
        assert!(session.cache.conflicts().is_empty());
        let mut mine = theirs.clone();
        mine[5000..6000].fill(9);
        let mut whole = original.clone();
        whole[5000..6000].fill(9);
        match how {
            Resolution::KeepMine => assert!(read_at_server(&world, "a") == mine),
            Resolution::KeepTheirs => assert!(read_at_server(&world, "a") == theirs),
            Resolution::SaveMine => {
                assert!(read_at_server(&world, "a") == theirs);
                let saved = String::from_utf8(saved.expect("a name")).expect("text");
                assert!(read_at_server(&world, &saved) == whole);
            }
        }
        let file = session.lookup("a").expect("there");
        session.open_file(&file).expect("opened");
        let read = session.read(&file, 0, 300_000).expect("read");
        assert!(read == read_at_server(&world, "a"));
        session.close().expect("ended");
    }
}

#[test]
fn a_file_removed_under_unsent_data_can_be_kept() {
    let mut world = World::new(Policy::WriteBack, Consistency::Dedicated);
    world.settings.writeback_delay = Duration::from_secs(3600);
    let session = world.open();
    let file = session.create("a");
    session.write(&file, 0, &[3; 50_000]).expect("written");
    std::fs::remove_file(world.at_server("a")).expect("removed");
    assert!(session.wait(session.cache.write_back()).is_err());
    let conflicts = session.cache.conflicts();
    assert_eq!(conflicts[0].kind, ConflictKind::Removed);
    session.wait(session.cache.resolve(&file, Resolution::KeepMine)).expect("resolved");
    assert_eq!(read_at_server(&world, "a"), [3; 50_000]);
}

#[test]
fn a_full_server_keeps_the_data_here() {
    let mut world = World::new(Policy::WriteBack, Consistency::Dedicated);
    world.settings.writeback_delay = Duration::from_millis(10);
    let session = world.open();
    let file = session.create("a");
    session.far.refuse.store(Status::NOSPC.0, Ordering::SeqCst);
    session.write(&file, 0, &[3; 50_000]).expect("written");
    eventually("the error is named", || {
        session.cache.unsent_files().first().is_some_and(|file| {
            file.error.as_ref().is_some_and(|error| error.status() == Status::NOSPC)
        })
    });
    assert_eq!(session.read(&file, 0, 10).expect("read"), [3; 10]);
    session.far.refuse.store(0, Ordering::SeqCst);
    eventually("sent in the end", || read_at_server(&world, "a") == [3; 50_000]);
    session.close().expect("ended");
}

#[test]
fn write_through_tells_the_writer() {
    let world = World::new(Policy::WriteThrough, Consistency::Shared);
    let session = world.open();
    let file = session.create("a");
    session.far.refuse.store(Status::DQUOT.0, Ordering::SeqCst);
    session.write(&file, 0, &[3; 50_000]).expect("written");
    let error = session.close_file(&file).expect_err("refused");
    assert_eq!(error.status(), Status::DQUOT);
    session.far.refuse.store(0, Ordering::SeqCst);
    assert_eq!(session.size(&file), 0);
    session.write(&file, 0, b"good").expect("written");
    session.fsync(&file).expect("synced");
    assert_eq!(read_at_server(&world, "a"), b"good");
}

#[test]
fn read_only_refuses() {
    let world = World::new(Policy::ReadOnly, Consistency::ReadOnlyShared);
    std::fs::write(world.at_server("a"), b"x").expect("written");
    let session = world.open();
    let file = session.lookup("a").expect("there");
    let rofs = |result: gridvfs_vfs::Result<()>| {
        assert!(matches!(result, Err(Error::Status(Status::ROFS))), "{result:?}");
    };
    rofs(session.write(&file, 0, b"y"));
    rofs(session.truncate(&file, 0));
    rofs(session.remove("a"));
    rofs(session.rename("a", "b"));
    rofs(session.open_file(&file));
    assert_eq!(session.read(&file, 0, 9).expect("read"), b"x");
}

#[test]
fn hits_go_on_while_the_link_is_cut() {
    let world = World::new(Policy::WriteBack, Consistency::Dedicated);
    let data = pattern(1, 100_000);
    std::fs::write(world.at_server("a"), &data).expect("written");
    let session = world.open();
    let file = session.lookup("a").expect("there");
    session.read(&file, 0, 100_000).expect("read");
    session.far.cut.store(true, Ordering::SeqCst);
    assert!(session.read(&file, 0, 100_000).expect("read") == data);
    session.write(&file, 0, b"here").expect("written");
    session.fsync(&file).expect("synced");
    assert_eq!(session.size(&file), 100_000);
    assert_eq!(session.read(&file, 0, 4).expect("read"), b"here");
    session.far.cut.store(false, Ordering::SeqCst);
    session.close().expect("ended");
    assert_eq!(&read_at_server(&world, "a")[..4], b"here");
}

#[test]
fn preserved_data_stays_until_it_is_asked_for() {
    let mut world = World::new(Policy::WriteBack, Consistency::Dedicated);
    world.settings.at_end = AtEnd::Preserve;
    let session = world.open();
    let file = session.create("a");
    session.write(&file, 0, b"kept").expect("written");
    session.close().expect("ended");
    assert_eq!(read_at_server(&world, "a"), b"");
    let session = world.open();
    assert_eq!(session.cache.unsent().bytes, 4);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(read_at_server(&world, "a"), b"");
    session.wait(session.cache.write_back()).expect("written back");
    assert_eq!(read_at_server(&world, "a"), b"kept");
}

#[test]
fn times_are_those_that_programs_have_seen() {
    let world = World::new(Policy::WriteBack, Consistency::Dedicated);
    let session = world.open();
    let (file, other) = (session.create("a"), session.create("b"));
    session.write(&file, 0, b"data").expect("written");
    session.write(&other, 0, b"data").expect("written");
    let caller = session.caller();
    let set = Time { seconds: 1_000_000_000, nanoseconds: 5 };
    let changes = SetAttr { mtime: SetTime::To(set), ..SetAttr::default() };
    session.wait(session.cache.setattr(&caller, &file, &changes, None)).expect("set");
    assert_eq!(session.far.setattrs.load(Ordering::SeqCst), 0, "together with the data");
    let seen = session.wait(session.cache.getattr(&caller, &other)).expect("attributes");
    session.close().expect("ended");
    let at_server = |name: &str| {
        let data = std::fs::metadata(world.at_server(name)).expect("there");
        Time::from_system_time(data.modified().expect("known"))
    };
    assert_eq!(at_server("a"), set);
    assert_eq!(at_server("b"), seen.mtime);
}

#[test]
fn unsent_data_has_a_limit() {
    let mut world = World::new(Policy::WriteBack, Consistency::Dedicated);
    world.settings.dirty_max_bytes = 1 << 20;
    world.settings.writeback_delay = Duration::from_secs(3600);
    let session = world.open();
    let file = session.create("a");
    let data = pattern(9, 8 << 20);
    for (number, part) in data.chunks(100_000).enumerate() {
        session.write(&file, number as u64 * 100_000, part).expect("written");
        assert!(session.cache.unsent().bytes <= 1 << 20);
    }
    session.close().expect("ended");
    assert!(read_at_server(&world, "a") == data);
}

#[test]
fn the_journal_is_given_back() {
    let world = World::new(Policy::WriteBack, Consistency::Dedicated);
    let session = world.open();
    let file = session.create("a");
    for round in 0..100u64 {
        session.write(&file, 0, &pattern(round, 1 << 20)).expect("written");
    }
    session.wait(session.cache.write_back()).expect("written back");
    session.close().expect("ended");
    let session = world.open();
    assert!(session.cache.journal_bytes() < 1 << 20, "{}", session.cache.journal_bytes());
}

#[test]
fn an_fsync_is_an_order_for_the_server() {
    let mut world = World::new(Policy::WriteBack, Consistency::Dedicated);
    world.settings.writeback_delay = Duration::from_secs(3600);
    let session = world.open();
    let file = session.create("a");
    // Each round overwrites a counter block and appends a record; after any prefix of what is sent,
    // the counter never promises a record that is not there.
    for round in 1..=20u64 {
        session.write(&file, round * 4096, &[round as u8; 4096]).expect("written");
        session.fsync(&file).expect("synced");
        session.write(&file, 0, &round.to_le_bytes()).expect("written");
        session.fsync(&file).expect("synced");
    }
    session.far.delay_ms.store(3, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| session.wait(session.cache.write_back()));
        while !sending.is_finished() {
            let data = read_at_server(&world, "a");
            let Some(counter) = data.get(..8) else { continue };
            let counter = u64::from_le_bytes(counter.try_into().expect("eight"));
            for round in 1..=counter {
                let at = round as usize * 4096;
                assert_eq!(data.get(at..at + 4096), Some(&[round as u8; 4096][..]), "{counter}");
            }
        }
        sending.join().expect("ran").expect("written back");
    });
    session.close().expect("ended");
}
