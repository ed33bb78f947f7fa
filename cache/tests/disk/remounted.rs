//! `read-only-shared` sessions over what an earlier one knew.

use std::sync::atomic::Ordering;

use gridvfs_cache::disk::{Consistency, Policy};
use gridvfs_vfs::{DirPage, FileHandle, Result, Status, Verifier, Vfs};

use super::world::{Session, World, eventually};

/// Looks up a path, and lists what it leads to if `list`.
fn walk(session: &Session, path: &str, list: bool) -> Result<FileHandle> {
    let caller = session.caller();
    let mut at = session.cache.root();
    for name in path.split('/') {
        at = session.wait(session.cache.lookup(&caller, &at, name.as_bytes()))?.handle;
    }
    if list {
        let page = session.cache.readdir(&caller, &at, 0, Verifier::default(), 1 << 16, true);
        let DirPage { entries, eof, .. } = session.wait(page)?;
        assert!(eof && entries.len() >= 2);
    }
    Ok(at)
}

fn world() -> World {
    let world = World::new(Policy::ReadOnly, Consistency::ReadOnlyShared);
    for dir in ["vm", "other"] {
        std::fs::create_dir(world.at_server(dir)).expect("made");
    }
    for file in ["vm/memory", "vm/state", "other/disk"] {
        std::fs::write(world.at_server(file), file).expect("written");
    }
    world
}

fn use_all(session: &Session) {
    walk(session, "vm", true).expect("listed");
    for file in ["vm/memory", "vm/state", "other/disk"] {
        let file = walk(session, file, false).expect("there");
        assert!(session.size(&file) > 0);
    }
}

#[test]
fn what_an_earlier_session_knew_is_asked_for_before_anybody_waits() {
    let world = world();
    let session = world.open();
    use_all(&session);
    session.close().expect("ended");
    let session = world.open();
    // The root's two names, one in `other`, `vm`'s attributes and its listing.
    let calls = || session.far.calls.load(Ordering::SeqCst);
    eventually("asked for", || calls() >= 5);
    eventually("answered without the server", || {
        let before = calls();
        use_all(&session);
        calls() == before
    });
    assert!(calls() < 12, "{} calls: each is asked once", calls());
}

#[test]
fn what_was_changed_between_sessions_is_noticed() {
    let world = world();
    let session = world.open();
    use_all(&session);
    let was = walk(&session, "vm", false).expect("there");
    let absent = walk(&session, "other/later", false).expect_err("absent");
    assert_eq!(absent.status(), Status::NOENT);
    session.close().expect("ended");
    std::fs::rename(world.at_server("vm"), world.at_server("vm.before")).expect("renamed");
    std::fs::create_dir(world.at_server("vm")).expect("made");
    std::fs::write(world.at_server("vm/memory"), "of another").expect("written");
    std::fs::write(world.at_server("other/later"), "there").expect("written");
    for _ in 0..2 {
        let session = world.open();
        assert_eq!(walk(&session, "vm.before", false).expect("there"), was);
        assert_ne!(walk(&session, "vm", true).expect("there"), was);
        let memory = walk(&session, "vm/memory", false).expect("there");
        assert_eq!(session.read(&memory, 0, 99).expect("read"), b"of another");
        assert!(walk(&session, "vm/state", false).is_err());
        walk(&session, "other/later", false).expect("there by now");
        session.close().expect("ended");
    }
}
