//! A cache of which bits are flipped, or parts are missing.

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use gridvfs_cache::disk::{AtEnd, Consistency, Policy};

use super::program::Dice;
use super::world::*;

const SIZE: usize = 200_000;

/// What is logged; several tests' lines together.
static LOG: parking_lot::Mutex<Vec<String>> = parking_lot::Mutex::new(Vec::new());

struct Listener;

impl log::Log for Listener {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        if record.level() <= log::Level::Warn {
            LOG.lock().push(record.args().to_string());
        }
    }
    fn flush(&self) {}
}

fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Listener).expect("the first");
        log::set_max_level(log::LevelFilter::Warn);
    });
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let done =
        std::process::Command::new("cp").args(["-a", "--sparse=always"]).args([from, to]).status();
    assert!(done.expect("cp").success());
}

/// All files and directories below, by path.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).expect("listed") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            all.extend(below(&path));
        }
        all.push(path);
    }
    all.sort();
    all
}

/// A world with a clean file (stored) and one with unsent data over a stored one, in a cache that
/// was put aside.
struct Kept {
    world: World,
    aside: PathBuf,
    _aside: tempfile::TempDir,
    mine: Vec<u8>,
}

/// The names' last parts tell the tests' lines in the log apart.
fn kept(name: &str) -> Kept {
    let mut world = World::new(Policy::WriteBack, Consistency::Dedicated);
    world.settings.writeback_delay = Duration::from_secs(3600);
    world.settings.at_end = AtEnd::Preserve;
    for (file, seed) in [("clean", 1), (name, 2)] {
        std::fs::write(world.at_server(file), pattern(seed, SIZE)).expect("written");
    }
    let session = world.open();
    for file in ["clean", name] {
        let handle = session.lookup(file).expect("there");
        session.read(&handle, 0, SIZE).expect("read");
    }
    let file = session.lookup(name).expect("there");
    let mut mine = pattern(2, SIZE);
    for at in (0..SIZE - 9000).step_by(20_000) {
        let data = pattern(at as u64 + 3, 9000);
        session.write(&file, at as u64, &data).expect("written");
        mine[at..at + 9000].copy_from_slice(&data);
        // Each fsync is known by the records behind it.
        session.fsync(&file).expect("synced");
    }
    session.close().expect("ended");
    let folder = tempfile::tempdir().expect("folder");
    let aside = folder.path().join("aside");
    copy(&world.cache_dir(), &aside);
    Kept { world, aside, _aside: folder, mine }
}

#[test]
fn no_flipped_bit_is_served() {
    listen();
    let name = "flipped";
    let Kept { world, aside, mine, _aside } = kept(name);
    let mut dice = Dice::new(11);
    let (mut refused, mut errors, mut lost, mut repaired) = (0, 0, 0, 0);
    let files: Vec<_> = below(&aside).into_iter().filter(|path| path.is_file()).collect();
    for path in files {
        let part = path.strip_prefix(&aside).expect("below").to_path_buf();
        let good = std::fs::read(&path).expect("read");
        // Where there is something.
        let used = (0..good.len())
            .step_by(64)
            .filter(|at| good[*at..good.len().min(at + 64)].iter().any(|byte| *byte != 0));
        let used: Vec<_> = used.collect();
        let flips = if used.is_empty() { 0 } else { 10 };
        for _ in 0..flips {
            copy(&aside, &world.cache_dir());
            let start = used[dice.below(used.len() as u64) as usize];
            let at = start + dice.below((good.len() - start).min(64) as u64) as usize;
            let mut bad = good.clone();
            bad[at] ^= 1 << dice.below(8);
            std::fs::write(world.cache_dir().join(&part), &bad).expect("written");
            let what = format!("{} byte {at}", part.display());
            let said = LOG.lock().len();
            let session = match world.try_open() {
                Ok(session) => session,
                Err(_) => {
                    refused += 1;
                    continue;
                }
            };
            let clean = session.lookup("clean").expect("there");
            let read = session.read(&clean, 0, SIZE).expect("read");
            assert!(read == pattern(1, SIZE), "{what}: a clean file is another");
            let file = session.lookup(name).expect("there");
            let theirs = pattern(2, SIZE);
            let mut reported = false;
            for at in (0..SIZE).step_by(1000) {
                match session.read(&file, at as u64, 1000) {
                    Ok(data) if data == mine[at..at + 1000] => {}
                    Ok(data) => {
                        // A record that is no record is not there; the log says of which range.
                        assert!(data == theirs[at..at + 1000], "{what}: neither version at {at}");
                        reported = true;
                        lost += 1;
                    }
                    Err(_) => {
                        reported = true;
                        errors += 1;
                    }
                }
            }
            if reported {
                let log = LOG.lock();
                let told = log[said..].iter().any(|line| {
                    // Behind the last sync nobody can tell a flipped bit from a lost write.
                    let what = line.contains("damaged") || line.contains("did not reach the disk");
                    what && (line.contains(name) || line.contains("segment"))
                });
                assert!(told, "{what}: nothing is said of it: {:?}", &log[said..]);
            }
            repaired += session.cache.store_counters()["repaired"];
            session.kill();
        }
    }
    println!("{refused} refused, {repaired} repaired; {errors} errors, {lost} parts lost and told");
    assert!(repaired > 0 && errors > 0, "flips are found");
}

#[test]
fn a_cache_of_which_a_part_is_missing_serves_nothing_wrong() {
    let name = "partly";
    let Kept { world, aside, mine, _aside } = kept(name);
    for path in below(&aside) {
        let part = path.strip_prefix(&aside).expect("below").to_path_buf();
        copy(&aside, &world.cache_dir());
        let gone = world.cache_dir().join(&part);
        if gone.is_dir() {
            std::fs::remove_dir_all(&gone).expect("removed");
        } else {
            std::fs::remove_file(&gone).expect("removed");
        }
        let what = part.display();
        let session = match world.try_open() {
            Ok(session) => session,
            Err(error) => {
                println!("without {what}: {error}");
                continue;
            }
        };
        let clean = session.lookup("clean").expect("there");
        assert!(session.read(&clean, 0, SIZE).expect("read") == pattern(1, SIZE), "{what}");
        let file = session.lookup(name).expect("there");
        let read = session.read(&file, 0, SIZE).expect("read");
        if part.starts_with("journal") {
            assert!(read == mine || read == pattern(2, SIZE), "{what}: one of both versions");
        } else {
            assert!(read == mine, "{what}: unsent data is in the journal alone");
        }
        assert_eq!(session.cache.conflicts(), [], "{what}");
        session.kill();
    }
}

#[test]
fn a_clean_cache_may_be_deleted() {
    let world = World::new(Policy::WriteBack, Consistency::Dedicated);
    let session = world.open();
    let file = session.create("a");
    session.write(&file, 0, &pattern(1, SIZE)).expect("written");
    session.close().expect("ended");
    std::fs::remove_dir_all(world.cache_dir()).expect("removed");
    std::fs::create_dir(world.cache_dir()).expect("made");
    let session = world.open();
    let file = session.lookup("a").expect("there");
    assert!(session.read(&file, 0, SIZE).expect("read") == pattern(1, SIZE));
    session.close().expect("ended");
}
