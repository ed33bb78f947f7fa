//! A process that dies at each named point of a write, under the eyes of another that uses the store.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use super::*;
use crate::crash::{self, Point};

const DIR: &str = "GRIDVFS_TEST_STORE_DIR";
const STEP: &str = "GRIDVFS_TEST_STORE_STEP";
const POINT: &str = "GRIDVFS_TEST_CRASH_POINT";

/// One set of two ways.
const GEOMETRY: Geometry =
    Geometry { size_bytes: 32 << 10, banks: 1, ways: 2, frame_bytes: 16 << 10 };
const OLD: FileKey = FileKey(1);
const OTHER: FileKey = FileKey(2);
const NEW: FileKey = FileKey(3);

fn blocks(key: FileKey, version: u64) -> Vec<u8> {
    (0..4).flat_map(|number| versioned(key, number, version)).collect()
}

/// The process that dies; does nothing when run as a test.
#[test]
fn child() {
    let variable = |name| std::env::var(name).ok();
    let (Some(dir), Some(step), Some(point)) = (variable(DIR), variable(STEP), variable(POINT))
    else {
        return;
    };
    let store = Store::open(dir.as_ref(), &GEOMETRY, true).unwrap();
    crash::arm(&point, 1).unwrap();
    match step.as_str() {
        "put" => store.put(NEW, 0, &blocks(NEW, 1)),
        "put again" => store.put(OTHER, 0, &blocks(OTHER, 2)),
        "patch" => store.patch(OTHER, 5000, &[1; 50], false),
        _ => panic!("{step}"),
    }
    .unwrap();
}

/// Runs a write that dies at a point; returns whether it came there.
fn die_at(point: Point, dir: &Path, step: &str) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::crashing::child", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .env(STEP, step)
        .env(POINT, point.name())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success() || status.signal() == Some(9), "{point:?}, {step}: {status}");
    !status.success()
}

#[test]
fn a_writer_that_dies_leaves_right_or_missing_blocks() {
    if !cfg!(debug_assertions) {
        return;
    }
    let of_the_store =
        |point: &&Point| ["FRAME_", "BLOCKS_"].iter().any(|part| point.name().starts_with(part));
    let points: Vec<_> = Point::ALL.iter().filter(of_the_store).collect();
    assert!(points.contains(&&Point::FRAME_AFTER_EVICT));
    for point in points {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &GEOMETRY, true).unwrap();
        let check = |oldest: [u64; 3]| {
            for (key, oldest) in [OLD, OTHER, NEW].into_iter().zip(oldest) {
                for number in 0..4 {
                    if let Some(data) = read_block(&store, key, number) {
                        assert!(version_of(key, number, &data) >= oldest, "{point:?}");
                    }
                }
            }
            // A bad block would have been right by its tag.
            assert_eq!(store.verify(&mut |_, _| {}).bad_count, 0, "{point:?}");
            assert_eq!(count(&store.counters().repaired), 0, "{point:?}");
        };
        store.put(OLD, 0, &blocks(OLD, 1)).unwrap();
        store.put(OTHER, 0, &blocks(OTHER, 1)).unwrap();
        let mut died = die_at(*point, dir.path(), "put");
        check([1, 1, 1]);
        assert_eq!(read_block(&store, OTHER, 0), Some(versioned(OTHER, 0, 1)));
        died |= die_at(*point, dir.path(), "put again");
        check([1, 1, 1]);
        store.put(OTHER, 4096, &blocks(OTHER, 2)[4096..8192]).unwrap();
        died |= die_at(*point, dir.path(), "patch");
        assert!(died, "nothing comes by {point:?}");
        // Life goes on: no lock is held, every block can be stored again.
        for key in [OLD, OTHER, NEW] {
            store.put(key, 0, &blocks(key, 3)).unwrap();
            assert_eq!(read_block(&store, key, 3), Some(versioned(key, 3, 3)));
        }
        check([3, 3, 3]);
    }
}

#[test]
fn a_write_that_fails_half_way_leaves_nothing_old() {
    let dir = tempfile::tempdir().unwrap();
    // A bank for each frame.
    let geometry = Geometry { banks: 64, ..small() };
    let store = Store::open(dir.path(), &geometry, true).unwrap();
    let data: Vec<u8> = (0..64).flat_map(|number| versioned(KEY, number, 1)).collect();
    store.put(KEY, 0, &data).unwrap();
    drop(store);
    // That of the file's third frame cannot be opened any more.
    let store = Store::open(dir.path(), &geometry, true).unwrap();
    let set = store.layout.set(KEY, 2);
    let way = store.tags.find(set, KEY, 2).unwrap().0;
    let path = store.banks.path(store.layout.bank(set, way));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let data: Vec<u8> = (0..64).flat_map(|number| versioned(KEY, number, 2)).collect();
    let error = store.patch(KEY, 100, &data[100..], true).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    for number in 0..64 {
        let found = read_block(&store, KEY, number).is_some();
        // The first block was changed in part, with what it had before.
        assert_eq!(found, number < 32, "block {number}");
    }
}
