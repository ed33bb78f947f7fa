//! Troubles of the server, of the link, and of more than one session.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use gridvfs_cache::disk::{AtEnd, ConflictKind, Consistency, OpenError, Policy};
use gridvfs_vfs::{Error, SetAttr, SetTime, Status, Time, Vfs};

use super::power::mebibyte;
use super::world::*;

fn lazy_world() -> World {
    let mut world = World::new(Policy::WriteBack, Consistency::Dedicated);
    world.settings.writeback_delay = Duration::from_secs(3600);
    world
}

fn at_server(world: &World, name: &str) -> Vec<u8> {
    std::fs::read(world.at_server(name)).unwrap_or_default()
}

/// Writes pieces of a file that are sent as WRITEs of their own.
fn write_pieces(session: &Session, file: &gridvfs_vfs::FileHandle, seed: u64) -> Vec<u8> {
    let mut all = vec![0; 12 << 20];
    for piece in 0..48 {
        let (at, data) = (piece * 250_000, pattern(seed + piece as u64, 100_000));
        session.write(file, at as u64, &data).expect("written");
        all[at..at + data.len()].copy_from_slice(&data);
    }
    all.truncate(47 * 250_000 + 100_000);
    all
}

#[test]
fn a_server_that_loses_its_memory_is_sent_everything_again() {
    for policy in [Policy::WriteBack, Policy::WriteThrough] {
        let mut world = lazy_world();
        world.settings.policy = policy;
        let session = world.open();
        session.far.volatile.store(true, Ordering::SeqCst);
        let file = session.create("a");
        let data = write_pieces(&session, &file, 1);
        session.far.delay_ms.store(4, Ordering::SeqCst);
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| session.wait(session.cache.write_back()));
            for _ in 0..4 {
                std::thread::sleep(Duration::from_millis(25));
                session.wait(session.far.restart(&session.caller()));
            }
            sending.join().expect("ran").expect("written back");
        });
        session.wait(session.far.restart(&session.caller()));
        assert!(at_server(&world, "a") == data, "{policy}");
        assert_eq!(session.cache.conflicts(), []);
        session.close().expect("ended");
    }
}

#[test]
fn a_link_that_is_cut_in_the_middle_is_no_conflict() {
    for silent in [true, false] {
        let world = lazy_world();
        let session = world.open();
        let file = session.create("a");
        let data = write_pieces(&session, &file, 2);
        session.far.delay_ms.store(3, Ordering::SeqCst);
        let cut = if silent { &session.far.cut } else { &session.far.unreachable };
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| session.wait(session.cache.write_back()));
            std::thread::sleep(Duration::from_millis(12));
            cut.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(100));
            assert!(session.read(&file, 0, data.len()).expect("read") == data, "meanwhile");
            session.write(&file, 5, b"more").expect("written meanwhile");
            cut.store(false, Ordering::SeqCst);
            let _ = sending.join().expect("ran");
        });
        let mut data = data;
        data[5..9].copy_from_slice(b"more");
        session.wait(session.cache.write_back()).expect("written back");
        assert_eq!(session.cache.conflicts(), []);
        assert!(at_server(&world, "a") == data);
        session.close().expect("ended");
    }
}

#[test]
fn a_server_that_is_full_in_the_middle_is_no_conflict() {
    for status in [Status::NOSPC, Status::DQUOT] {
        let world = lazy_world();
        let session = world.open();
        let file = session.create("a");
        let mut data = write_pieces(&session, &file, 3);
        session.far.taken.store(9, Ordering::SeqCst);
        session.far.refuse.store(status.0, Ordering::SeqCst);
        let error = session.wait(session.cache.write_back()).expect_err("refused");
        assert_eq!(error.status(), status, "the error is named");
        // What the server has taken is written over meanwhile.
        session.write(&file, 0, &[9; 12]).expect("written");
        data[..12].fill(9);
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(session.cache.conflicts(), []);
        assert!(session.read(&file, 0, data.len()).expect("read") == data, "all is still here");
        session.far.refuse.store(0, Ordering::SeqCst);
        session.wait(session.cache.write_back()).expect("written back");
        assert!(at_server(&world, "a") == data);
        assert_eq!(session.cache.conflicts(), []);
        session.close().expect("ended");
    }
}

#[test]
fn a_server_that_stays_full_is_asked_less_and_less_often() {
    let world = lazy_world();
    let session = world.open();
    let file = session.create("a");
    session.write(&file, 0, &[1; 5000]).expect("written");
    session.far.refuse.store(Status::NOSPC.0, Ordering::SeqCst);
    session.wait(session.cache.write_back()).expect_err("refused");
    let before = session.far.calls.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_secs(3));
    let calls = session.far.calls.load(Ordering::SeqCst) - before;
    // After 0.2 s, 0.4 s, 0.8 s and 1.6 s, with three or four calls each; fewer on a slow machine.
    assert!(calls < 25, "{calls} calls");
    session.far.refuse.store(0, Ordering::SeqCst);
    session.wait(session.cache.write_back()).expect("not only when its turn comes");
    session.close().expect("ended");
}

#[test]
fn two_sessions_do_not_share_a_directory() {
    let world = lazy_world();
    let session = world.open();
    let file = session.create("a");
    session.write(&file, 0, b"mine").expect("written");
    let refused = world.try_open().err().expect("refused");
    assert!(refused.to_string().contains("used by another process"), "{refused}");
    session.close().expect("ended");
    assert_eq!(at_server(&world, "a"), b"mine");
}

#[test]
fn an_unknown_journal_format_is_refused_and_nothing_touched() {
    let world = lazy_world();
    let session = world.open();
    let file = session.create("a");
    session.write(&file, 0, b"mine").expect("written");
    session.kill();
    let journal = world.cache_dir().join("journal");
    let segments = std::fs::read_dir(&journal).expect("listed");
    let segment = segments
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|it| it == "log"))
        .expect("a segment");
    let good = std::fs::read(&segment).expect("read");
    let mut other = good.clone();
    other[8] = 77;
    let sum = crc32fast::hash(&other[..48]);
    other[48..52].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&segment, &other).expect("written");
    let refused = world.try_open().err().expect("refused");
    assert!(matches!(refused, OpenError::Journal(_)), "{refused}");
    assert!(refused.to_string().contains("version 77"), "{refused}");
    assert!(std::fs::read(&segment).expect("read") == other, "not touched");
    std::fs::write(&segment, &good).expect("written");
    world.open().close().expect("ended");
    assert_eq!(at_server(&world, "a"), b"mine");
}

#[test]
fn much_unsent_data_stays_here_when_it_is_to_be_preserved() {
    let mut world = lazy_world();
    world.settings.at_end = AtEnd::Preserve;
    let session = world.open();
    let file = session.create("a");
    for number in 0..300 {
        session.write(&file, number << 20, &mebibyte(number)).expect("written");
    }
    session.far.cut.store(true, Ordering::SeqCst);
    let begun = SystemTime::now();
    session.close().expect("ended without the server");
    assert!(begun.elapsed().is_ok_and(|time| time < Duration::from_secs(10)));
    let unsent = gridvfs_cache::DiskCache::unsent_in(&world.cache_dir()).expect("read");
    assert_eq!((unsent.files, unsent.bytes), (1, 300 << 20), "what is pending is told");
    let session = world.open();
    session.wait(session.cache.write_back()).expect("written back");
    session.close().expect("ended");
    let server = at_server(&world, "a");
    assert_eq!(server.len(), 300 << 20);
    assert!(server.chunks(1 << 20).enumerate().all(|(at, data)| data == mebibyte(at as u64)));
}

#[test]
fn clock_steps_hide_nothing() {
    let hours = |hours: u64| Duration::from_secs(3600 * hours);
    let past = SystemTime::now() - hours(24 * 365 * 20);
    let future = SystemTime::now() + hours(24 * 365);
    let set = |world: &World, time| {
        let file = std::fs::File::options().write(true).open(world.at_server("a"));
        file.expect("opened").set_modified(time).expect("set");
    };
    for (before, after) in [(past, future), (future, past), (past, past + hours(1))] {
        let world = World::new(Policy::WriteBack, Consistency::Shared);
        std::fs::write(world.at_server("a"), pattern(1, 100_000)).expect("written");
        set(&world, before);
        let session = world.open();
        let file = session.lookup("a").expect("there");
        session.read(&file, 0, 100_000).expect("read");
        // Another version of the same size, whatever its time.
        std::fs::write(world.at_server("a"), pattern(2, 100_000)).expect("written");
        set(&world, after);
        session.open_file(&file).expect("opened");
        assert!(session.read(&file, 0, 100_000).expect("read") == pattern(2, 100_000));
        // Ours is sent over it, and nothing of it looks like another's.
        let changes =
            SetAttr { mtime: SetTime::To(Time::from_system_time(before)), ..SetAttr::default() };
        let caller = session.caller();
        session.write(&file, 7, b"ours").expect("written");
        session.wait(session.cache.setattr(&caller, &file, &changes, None)).expect("set");
        session.wait(session.cache.write_back()).expect("written back");
        session.write(&file, 50_000, b"again").expect("written");
        session.wait(session.cache.write_back()).expect("written back");
        assert_eq!(session.cache.conflicts(), []);
        let server = at_server(&world, "a");
        assert_eq!((&server[7..11], &server[50_000..50_005]), (&b"ours"[..], &b"again"[..]));
        session.close().expect("ended");
    }
}

/// Ways to find out that others have changed a file under unsent data.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Found {
    AtOpen,
    AtWriteBack,
    AfterKill,
    AfterKillWithTimes,
    AfterCleanEnd,
    AtTruncate,
}

#[test]
fn a_conflict_is_found_on_every_path() {
    use Found::*;
    for found in [AtOpen, AtWriteBack, AfterKill, AfterKillWithTimes, AfterCleanEnd, AtTruncate] {
        for removed in [false, true] {
            if removed && matches!(found, AtOpen | AtTruncate) {
                // There the server's own error is the answer.
                continue;
            }
            let mut world = lazy_world();
            world.settings.consistency = Consistency::Shared;
            if found == AfterCleanEnd {
                world.settings.at_end = AtEnd::Preserve;
            }
            std::fs::write(world.at_server("a"), pattern(1, 50_000)).expect("written");
            let session = world.open();
            let file = session.lookup("a").expect("there");
            session.write(&file, 10, b"mine").expect("written");
            if found == AfterKillWithTimes {
                let mtime = SetTime::To(Time { seconds: 5, nanoseconds: 0 });
                let changes = SetAttr { mtime, ..SetAttr::default() };
                let caller = session.caller();
                session.wait(session.cache.setattr(&caller, &file, &changes, None)).expect("set");
            }
            let mut session = Some(session);
            match found {
                AfterKill | AfterKillWithTimes => session.take().expect("there").kill(),
                AfterCleanEnd => session.take().expect("there").close().expect("ended"),
                _ => {}
            }
            change(&world, removed);
            let session = session.unwrap_or_else(|| world.open());
            match found {
                AtOpen => session.open_file(&file).expect("opened"),
                AtTruncate => drop(session.truncate(&file, 40_000)),
                AfterKill | AfterKillWithTimes => {
                    eventually("found", || !session.cache.conflicts().is_empty());
                }
                AtWriteBack | AfterCleanEnd => {
                    session.wait(session.cache.write_back()).expect_err("a conflict");
                }
            }
            let conflicts = session.cache.conflicts();
            let kind = if removed { ConflictKind::Removed } else { ConflictKind::Changed };
            assert_eq!(conflicts.len(), 1, "{found:?}, removed: {removed}");
            assert_eq!(conflicts[0].kind, kind, "{found:?}");
            if !removed && found != AtTruncate {
                assert!(at_server(&world, "a") == pattern(2, 50_000), "{found:?}: kept");
            }
            let file = conflicts[0].handle;
            assert_eq!(session.read(&file, 10, 4).expect("read"), b"mine", "{found:?}: kept");
            // Nor does the mount cut the server's version now.
            let cut = session.truncate(&file, 0);
            assert!(matches!(cut, Err(Error::Status(Status::STALE))), "{found:?}: {cut:?}");
        }
    }
}

fn change(world: &World, removed: bool) {
    if removed {
        std::fs::remove_file(world.at_server("a")).expect("removed");
    } else {
        std::fs::write(world.at_server("a"), pattern(2, 50_000)).expect("written");
    }
}

#[test]
fn what_others_put_in_the_place_of_a_file_is_not_its_end() {
    let mut world = lazy_world();
    world.settings.consistency = Consistency::Shared;
    let session = world.open();
    let file = session.create("a");
    session.write(&file, 0, b"mine").expect("written");
    // Another client moves it away, and makes another file of that name, which we remove.
    std::fs::rename(world.at_server("a"), world.at_server("b")).expect("renamed");
    std::fs::write(world.at_server("a"), b"theirs").expect("written");
    session.remove("a").expect("removed");
    session.wait(session.cache.write_back()).expect("written back");
    assert_eq!(at_server(&world, "b"), b"mine");
    session.close().expect("ended");
}

#[test]
fn a_file_emptied_while_its_data_is_held_can_be_written_back() {
    let mut world = lazy_world();
    world.settings.at_end = AtEnd::Preserve;
    let session = world.open();
    let file = session.create("a");
    session.write(&file, 0, &[1; 10_000]).expect("written");
    session.truncate(&file, 0).expect("cut");
    session.wait(session.cache.write_back()).expect("it does not wait for ever");
    session.close().expect("ended");
}

#[test]
fn fsync_ends_in_a_session_that_preserves_and_writes_through() {
    let mut world = lazy_world();
    world.settings.at_end = AtEnd::Preserve;
    world.settings.policy = Policy::WriteThrough;
    let session = world.open();
    let file = session.create("a");
    session.write(&file, 0, &[1; 10_000]).expect("written");
    session.fsync(&file).expect("synced");
    assert_eq!(at_server(&world, "a"), [1; 10_000]);
    session.close().expect("ended");
}
