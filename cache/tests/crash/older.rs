//! A power loss that brings back what the store held before: blocks that we have changed since the
//! store was last made durable are not believed, and no others are dropped for it.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gridvfs_cache::disk::{Consistency, Policy};
use gridvfs_vfs::{Allocation, FileHandle, Vfs};

use super::power::machine_restarted;
use super::world::*;

const SIZE: usize = 200_000;

/// A change of a file that reaches the server.
#[derive(Clone, Copy, Debug)]
enum Change {
    Write,
    Punch,
    Cut,
}

impl Change {
    fn make(self, session: &Session, file: &FileHandle) {
        match self {
            Self::Write => session.write(file, 4096, &[9; 8192]).expect("written"),
            Self::Punch => {
                let (caller, how) = (session.caller(), Allocation::PunchHole);
                let call = session.cache.allocate(&caller, file, 4096, 8192, how);
                session.wait(call).expect("punched");
            }
            Self::Cut => {
                session.truncate(file, 5000).expect("cut");
                session.truncate(file, SIZE as u64).expect("grown");
            }
        }
        session.wait(session.cache.write_back()).expect("written back");
    }
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let done = Command::new("cp").args(["-a", "--sparse=always"]).args([from, to]).status();
    assert!(done.expect("cp").success());
}

fn read(session: &Session, name: &str) -> Vec<u8> {
    let file = session.lookup(name).expect("there");
    session.read(&file, 0, SIZE).expect("read")
}

/// Puts the store back to what it was before the change, if `old_store`, and says how many READs the
/// changed and the unchanged file cost then.
fn reads_after_restart(policy: Policy, change: Change, old_store: bool) -> (u64, u64) {
    let mut world = World::new(policy, Consistency::Dedicated);
    world.settings.writeback_delay = Duration::from_secs(3600);
    for (name, seed) in [("changed", 1), ("other", 2)] {
        std::fs::write(world.at_server(name), pattern(seed, SIZE)).expect("written");
    }
    let session = world.open();
    let other = session.lookup("other").expect("there");
    read(&session, "changed");
    read(&session, "other");
    // Changed by us, too, but made durable by the orderly end.
    session.write(&other, 0, b"ours").expect("written");
    session.close().expect("ended");
    let store = world.cache_dir().join("store");
    let aside = world.cache_dir().with_file_name("aside");
    copy(&store, &aside);

    let session = world.open();
    let changed = session.lookup("changed").expect("there");
    change.make(&session, &changed);
    session.kill();
    if old_store {
        copy(&aside, &store);
        machine_restarted(&world.cache_dir());
    }
    let session = world.open();
    let count = |name: &str| {
        let before = session.far.reads.load(Ordering::SeqCst);
        let server = std::fs::read(world.at_server(name)).expect("there");
        assert!(read(&session, name) == server, "{policy} {change:?}: {name} is older");
        session.far.reads.load(Ordering::SeqCst) - before
    };
    let counts = (count("changed"), count("other"));
    session.close().expect("ended");
    counts
}

#[test]
fn blocks_that_a_power_loss_brings_back_are_not_served() {
    for policy in [Policy::WriteBack, Policy::WriteThrough] {
        for change in [Change::Write, Change::Punch, Change::Cut] {
            let (changed, other) = reads_after_restart(policy, change, true);
            assert!(changed > 0, "{policy} {change:?}: from the server");
            assert_eq!(other, 0, "{policy} {change:?}: what is durable is believed");
        }
        // A kill of the process alone brings nothing back.
        let (changed, _) = reads_after_restart(policy, Change::Write, false);
        assert_eq!(changed, 0, "{policy}");
    }
}
