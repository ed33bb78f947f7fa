//! What a session makes of others' changes that it is told of.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use gridvfs_cache::disk::{ConflictKind, Consistency, Policy};
use gridvfs_vfs::{Change, Coverage, FileHandle, Vfs};

use super::world::*;

/// Others write to a file, and leave it the size and the time of modification that it had: as they do
/// within a tick of the server's clock, or just before our own change is answered.
fn change_unseen(world: &World, name: &str, data: &[u8]) {
    let path = world.at_server(name);
    let before = std::fs::metadata(&path).expect("there");
    assert_eq!(before.len(), data.len() as u64);
    std::fs::write(&path, data).expect("written");
    set_time(world, name, before.modified().expect("a time"));
}

fn set_time(world: &World, name: &str, time: SystemTime) {
    let file = std::fs::File::options().write(true).open(world.at_server(name)).expect("there");
    file.set_modified(time).expect("set");
}

/// A session that hears.
fn hearing(world: &World) -> Session {
    let session = world.open();
    session.far.ears.asking();
    session.far.ears.covered(&Coverage::Whole);
    session
}

/// Tells a change, with the attributes that the file has now.
fn tell(
    session: &Session,
    file: &FileHandle,
    change: fn(FileHandle, Option<gridvfs_vfs::Attr>) -> Change,
) {
    let attr = session.wait(session.far.getattr(&session.caller(), file)).expect("attributes");
    session.far.ears.changed(&change(*file, Some(attr)));
    session.far.ears.asking();
}

#[test]
fn data_that_is_told_as_changed_is_read_again_whatever_the_attributes() {
    for own in [false, true] {
        let world = World::new(Policy::WriteThrough, Consistency::Shared);
        std::fs::write(world.at_server("a"), pattern(1, 100_000)).expect("written");
        let session = hearing(&world);
        let file = session.lookup("a").expect("there");
        session.open_file(&file).expect("opened");
        if own {
            session.write(&file, 0, &pattern(2, 100_000)).expect("written");
            session.fsync(&file).expect("synced");
            eventually("settled", || session.cache.unsent().bytes == 0);
            session.size(&file);
        }
        let held = session.read(&file, 0, 100_000).expect("read");
        assert!(held == pattern(if own { 2 } else { 1 }, 100_000));
        let calls = session.far.calls.load(Ordering::SeqCst);
        session.open_file(&file).expect("opened");
        assert!(session.read(&file, 0, 100_000).expect("read") == held);
        assert_eq!(session.far.calls.load(Ordering::SeqCst), calls, "it is believed");
        change_unseen(&world, "a", &pattern(3, 100_000));
        tell(&session, &file, Change::File);
        assert!(
            session.read(&file, 0, 100_000).expect("read") == pattern(3, 100_000),
            "own: {own}"
        );
        // A mode is no reason to read data again.
        let reads = session.far.reads.load(Ordering::SeqCst);
        tell(&session, &file, Change::Attributes);
        assert!(session.read(&file, 0, 100_000).expect("read") == pattern(3, 100_000));
        assert_eq!(session.far.reads.load(Ordering::SeqCst), reads);
    }
}

#[test]
fn data_of_ours_that_is_not_committed_does_not_hide_what_others_wrote_over_it() {
    let world = World::new(Policy::WriteThrough, Consistency::Shared);
    std::fs::write(world.at_server("a"), pattern(1, 100_000)).expect("written");
    let session = hearing(&world);
    let file = session.lookup("a").expect("there");
    session.open_file(&file).expect("opened");
    session.write(&file, 4096, &[7; 4096]).expect("written");
    session.close_file(&file).expect("sent");
    assert!(session.cache.unsent().bytes > 0, "the journal has it until it is committed");
    change_unseen(&world, "a", &pattern(3, 100_000));
    tell(&session, &file, Change::File);
    let theirs = || session.read(&file, 0, 100_000).expect("read") == pattern(3, 100_000);
    let begun = std::time::Instant::now();
    eventually("theirs", theirs);
    assert!(begun.elapsed() < Duration::from_millis(1500), "it is committed at once");
    std::thread::sleep(Duration::from_millis(100));
    assert!(theirs(), "and nothing of ours was stored");
    // What is written after that is over theirs.
    session.write(&file, 0, &[9; 4096]).expect("written");
    session.fsync(&file).expect("synced");
    let read = session.read(&file, 0, 100_000).expect("read");
    assert!(read[..4096] == [9; 4096] && read[4096..] == pattern(3, 100_000)[4096..]);
}

#[test]
fn a_change_that_the_base_has_in_it_is_a_conflict_when_it_is_told() {
    let mut world = World::new(Policy::WriteBack, Consistency::Shared);
    world.settings.writeback_delay = Duration::from_secs(3600);
    std::fs::write(world.at_server("a"), pattern(1, 8192)).expect("written");
    let session = hearing(&world);
    let file = session.lookup("a").expect("there");
    session.open_file(&file).expect("opened");
    session.write(&file, 0, &[7; 4096]).expect("written");
    session.wait(session.cache.write_back()).expect("sent");
    eventually("settled", || session.far.setattrs.load(Ordering::SeqCst) > 0);
    session.size(&file);
    change_unseen(&world, "a", &pattern(3, 8192));
    session.write(&file, 4096, &[8; 4096]).expect("written");
    assert_eq!(session.cache.conflicts().len(), 0, "nobody could know");
    tell(&session, &file, Change::File);
    let conflicts = session.cache.conflicts();
    assert_eq!(conflicts.len(), 1);
    assert_eq!(conflicts[0].kind, ConflictKind::Changed);
    assert_eq!(std::fs::read(world.at_server("a")).expect("there"), pattern(3, 8192));
}

#[test]
fn after_lost_changes_data_that_we_have_changed_is_not_believed() {
    let world = World::new(Policy::WriteThrough, Consistency::Shared);
    std::fs::write(world.at_server("a"), pattern(1, 8192)).expect("written");
    let session = hearing(&world);
    let file = session.lookup("a").expect("there");
    session.open_file(&file).expect("opened");
    session.write(&file, 0, &pattern(2, 8192)).expect("written");
    session.fsync(&file).expect("synced");
    eventually("settled", || session.cache.unsent().bytes == 0);
    session.size(&file);
    change_unseen(&world, "a", &pattern(3, 8192));
    assert!(session.read(&file, 0, 8192).expect("read") == pattern(2, 8192), "nobody could know");
    session.far.ears.covered(&Coverage::Whole);
    session.open_file(&file).expect("opened");
    assert!(session.read(&file, 0, 8192).expect("read") == pattern(3, 8192));
}
