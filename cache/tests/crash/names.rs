//! Power loss while names are made, changed and removed in a session that defers them: what is left
//! is what there was at some moment since the last fsync, as a whole, and the server is brought to it.
//!
//! GRIDVFS_CRASH_LOSSES=N: N power losses instead of 12. GRIDVFS_CRASH_SEED=N: this one only.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gridvfs_cache::disk::{Consistency, Policy, Settings};
use gridvfs_vfs::{CreateHow, SetAttr, Verifier, Vfs};

use super::power::{Disk, machine_restarted};
use super::program::Dice;
use super::world::*;

const NAMES: u64 = 5;
const ROUNDS: u64 = 3;

/// What each name's file holds.
type Tree = BTreeMap<String, Vec<u8>>;

fn seen(session: &Session) -> Tree {
    let mut tree = Tree::new();
    for number in 0..NAMES {
        let name = format!("n{number}");
        let Ok(file) = session.lookup(&name) else { continue };
        tree.insert(name, session.read(&file, 0, 4096).expect("read"));
    }
    tree
}

fn at_server(export: &Path) -> Tree {
    let entries = std::fs::read_dir(export).expect("listed").map(|entry| entry.expect("entry"));
    let name = |path: &Path| path.file_name().expect("name").to_string_lossy().into_owned();
    entries.map(|it| (name(&it.path()), std::fs::read(it.path()).expect("read"))).collect()
}

/// What there was since the last fsync, its own moment first.
struct History(Vec<Tree>);

impl History {
    fn last(&self) -> Tree {
        self.0.last().cloned().unwrap_or_default()
    }

    /// Notes what a change makes, before it is made: it may be under way when the power goes.
    fn change(&mut self, change: impl FnOnce(&mut Tree)) {
        let mut next = self.last();
        change(&mut next);
        self.0.push(next);
    }
}

/// Makes one change. An error ends the round: the power has gone.
fn step(session: &Session, dice: &mut Dice, history: &mut History, number: u64) -> Option<()> {
    let (root, caller) = (session.cache.root(), session.caller());
    let name = format!("n{}", dice.below(NAMES));
    let other = format!("n{}", dice.below(NAMES));
    let there = history.last().contains_key(&name);
    let text = format!("version {number}").into_bytes();
    match dice.below(8) {
        0..3 if !there => {
            let _ = session.lookup(&name);
            history.change(|tree| drop(tree.insert(name.clone(), Vec::new())));
            let how = CreateHow::Guarded(SetAttr { mode: Some(0o644), ..SetAttr::default() });
            let made = session.wait(session.cache.create(&caller, &root, name.as_bytes(), &how));
            let file = made.ok()?.handle?;
            history.change(|tree| drop(tree.insert(name, text.clone())));
            session.write(&file, 0, &text).ok()
        }
        0..3 => {
            let file = session.lookup(&name).ok()?;
            history.change(|tree| drop(tree.insert(name.clone(), Vec::new())));
            session.truncate(&file, 0).ok()?;
            history.change(|tree| drop(tree.insert(name, text.clone())));
            session.write(&file, 0, &text).ok()
        }
        3 if there => {
            history.change(|tree| drop(tree.remove(&name)));
            session.remove(&name).ok()
        }
        4..6 if there && name != other => {
            history.change(|tree| {
                let moved = tree.remove(&name).unwrap_or_default();
                tree.insert(other.clone(), moved);
            });
            session.rename(&name, &other).ok()
        }
        6 => {
            let now = history.last();
            session.wait(session.cache.sync_names()).ok()?;
            if let Some(file) = now.keys().next().and_then(|name| session.lookup(name).ok()) {
                session.fsync(&file).ok()?;
            }
            Some(())
        }
        7 => {
            std::thread::sleep(Duration::from_millis(dice.below(20)));
            Some(())
        }
        _ => Some(()),
    }
}

fn one(test: &str, seed: u64) -> bool {
    let Some(mut disk) = Disk::new(test, 160 << 20) else { return false };
    let mut dice = Dice::new(seed);
    let folder = World::folder();
    let export = folder.path().join("export");
    let delay = [1, 10, 3_600_000][dice.below(3) as usize];
    let settings = Settings {
        writeback_delay: Duration::from_millis(delay),
        ..settings(Policy::WriteBack, Consistency::Dedicated)
    };
    let cache = disk.path.join("cache");
    std::fs::create_dir(&cache).expect("made");
    let world = World::at(folder.path(), settings.clone());
    let mut history = History(vec![Tree::new()]);
    let mut number = 0;
    for round in 0..ROUNDS {
        let session = open(&export, &cache, settings.clone(), world.geometry);
        let caller = session.caller();
        let root = session.cache.root();
        session.wait(session.cache.getattr(&caller, &root)).expect("attributes");
        let list = session.cache.readdir(&caller, &root, 0, Verifier::default(), 1 << 16, true);
        session.wait(list).expect("listed");
        // Until the index has written that down, the server is asked for each name.
        let mut asked = 0;
        eventually("names are answered here", || {
            asked += 1;
            let before = session.far.calls.load(Ordering::SeqCst);
            session.lookup(&format!("absent{asked}")).is_err()
                && session.far.calls.load(Ordering::SeqCst) == before
        });
        // Root's rights are asked for once.
        let _ = session.remove("absent0");
        let off = AtomicBool::new(false);
        let lasts = Duration::from_millis(20 + dice.below(300));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(lasts);
                off.store(true, Ordering::SeqCst);
                // Nor may a sync that seems to end meanwhile let anything more reach the server.
                session.far.unreachable.store(true, Ordering::SeqCst);
                disk.cut_power();
            });
            while !off.load(Ordering::SeqCst) {
                number += 1;
                let before = history.0.len();
                let syncs = dice.below(6) == 0;
                if syncs && session.wait(session.cache.sync_names()).is_ok() {
                    // One that ended when the power was off already promises nothing.
                    if !off.load(Ordering::SeqCst) {
                        history.0.drain(..before - 1);
                    }
                }
                if step(&session, &mut dice, &mut history, number).is_none() {
                    break;
                }
            }
        });
        session.kill();
        disk.power_on();
        machine_restarted(&cache);

        let session = open(&export, &cache, settings.clone(), world.geometry);
        let found = seen(&session);
        let what = format!("seed {seed}, round {round}, after {delay} ms");
        assert!(
            history.0.contains(&found),
            "{what}: {found:?} was never, of {:?}; the server has {:?}",
            history.0,
            at_server(&export)
        );
        session.wait(session.cache.write_back()).unwrap_or_else(|error| {
            panic!("{what}: {error}: {:?}", session.cache.conflicts());
        });
        assert_eq!(session.cache.conflicts(), [], "{what}");
        assert_eq!(at_server(&export), found, "{what}");
        assert_eq!(seen(&session), found, "{what}");
        session.close().expect("ended");
        history = History(vec![found]);
    }
    true
}

#[test]
fn names_are_those_of_one_moment_after_a_power_loss() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let losses = number("GRIDVFS_CRASH_LOSSES").unwrap_or(12);
    let seeds = match number("GRIDVFS_CRASH_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..1 + losses.div_ceil(ROUNDS),
    };
    for seed in seeds {
        println!("GRIDVFS_CRASH_SEED={seed}");
        if !one("names_are_those_of_one_moment_after_a_power_loss", seed) {
            return;
        }
    }
}
