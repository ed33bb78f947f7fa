//! Several threads, several stores on one directory, and processes that are killed.

use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::*;

/// 12 frames of 4 blocks: each of the keys' files alone fills it.
fn tiny() -> Geometry {
    Geometry { size_bytes: 192 << 10, banks: 2, ways: 3, frame_bytes: 16 << 10 }
}

const NUMBERS: u64 = 40;

/// Writes newer and newer versions of a file's blocks until told to stop.
fn write(store: &Store, key: FileKey, seed: u64, stop: &AtomicBool) {
    let mut state = seed;
    for version in 1.. {
        if stop.load(Relaxed) {
            return;
        }
        state = geometry::mix(state);
        let number = state % NUMBERS;
        let blocks = 1 + (state >> 20) % 7;
        let data: Vec<u8> =
            (number..number + blocks).flat_map(|n| versioned(key, n, version)).collect();
        let at = number * BLOCK_BYTES as u64;
        match (state >> 40) % 8 {
            0 => store.cut(key, at, at + data.len() as u64),
            1 => {
                // Block by block, each in pieces of which the first makes it missing or mixed...
                let half = BLOCK_BYTES / 2;
                store.cut(key, at, at + 1);
                store.patch(key, at, &data[..half], true).unwrap();
                store.patch(key, at + half as u64, &data[half..BLOCK_BYTES], false).unwrap();
            }
            2..5 => store.patch(key, at, &data, false).unwrap(),
            _ => store.put(key, at, &data).unwrap(),
        }
    }
}

/// Reads blocks of a file until told to stop: each is right, and never older than one seen before.
/// Returns how many were there.
fn watch(store: &Store, key: FileKey, seed: u64, stop: &AtomicBool) -> u64 {
    let mut seen = [0; NUMBERS as usize + 8];
    let mut state = seed;
    let mut hits = 0;
    let mut out = vec![0; 9 * BLOCK_BYTES];
    while !stop.load(Relaxed) {
        state = geometry::mix(state);
        let number = state % NUMBERS;
        let blocks = 1 + (state >> 20) as usize % 8;
        let had = store.read(key, number * 4096, &mut out[..blocks * BLOCK_BYTES]);
        for (i, data) in out[..had].chunks(BLOCK_BYTES).enumerate() {
            let n = number + i as u64;
            let version = u64::from_le_bytes(data[..8].try_into().unwrap());
            let half = BLOCK_BYTES / 2;
            if data[half..].iter().all(|byte| *byte == 0) {
                // The first half of a block that is written in two.
                assert!(data[..half] == versioned(key, n, version)[..half]);
            } else {
                version_of(key, n, data);
            }
            let seen = &mut seen[n as usize];
            assert!(version >= *seen, "block {n}: version {version} after {seen}");
            *seen = version;
            hits += 1;
        }
    }
    hits
}

fn threads(stores: &[Store; 2], time: Duration) -> u64 {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut watchers = Vec::new();
        for key in [1, 2, 3] {
            let stop = &stop;
            let key = FileKey(key);
            scope.spawn(move || write(&stores[key.0 as usize % 2], key, key.0 + 1000, stop));
            for store in stores {
                watchers.push(scope.spawn(move || watch(store, key, key.0, stop)));
            }
        }
        std::thread::sleep(time);
        stop.store(true, Relaxed);
        watchers.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

#[test]
fn threads_of_two_stores_see_right_blocks_while_frames_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let stores = [0, 1].map(|_| Store::open(dir.path(), &tiny(), true).unwrap());
    let hits = threads(&stores, Duration::from_millis(700));
    assert!(hits > 100, "{hits} hits");
    for store in &stores {
        assert!(count(&store.counters().evicted) > 0);
        assert_eq!(count(&store.counters().repaired), 0);
    }
    assert_eq!(stores[0].usage(), stores[1].usage());
    assert_eq!(stores[0].verify(&mut |_, _| {}).bad_count, 0);
}

#[test]
fn what_one_store_clears_and_gives_back_another_misses() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = [0, 1].map(|_| Store::open(dir.path(), &small(), true).unwrap());
    one.put(KEY, 0, &filled(1, 500_000)).unwrap();
    assert_eq!(two.bytes_of(KEY, 500_000), 500_000);
    assert!(two.give_back(200_000) >= 200_000);
    assert!(one.bytes_of(KEY, 500_000) <= 300_000);
    two.clear();
    assert_eq!(one.bytes_of(KEY, 500_000), 0);
    assert_eq!(one.usage().disk_bytes, 0);
    assert_eq!(count(&one.counters().repaired), 0);
}

const CHILD_DIR: &str = "GRIDVFS_TEST_STORE";
const CHILD_SEED: &str = "GRIDVFS_TEST_SEED";

#[test]
#[ignore = "the process that the next test kills"]
fn killed_writer() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let seed = std::env::var(CHILD_SEED).unwrap().parse().unwrap();
    let store = Store::open(Path::new(&dir), &tiny(), true).unwrap();
    write(&store, KEY, seed, &AtomicBool::new(false));
}

#[test]
fn a_killed_writer_leaves_right_blocks_and_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), &tiny(), true).unwrap();
    let mut held = 0;
    for round in 0..12 {
        let written = store.tags.installed();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::sharing::killed_writer", "--ignored"])
            .env(CHILD_DIR, dir.path())
            .env(CHILD_SEED, round.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while store.tags.installed() < written + 10 {
            assert!(start.elapsed() < Duration::from_secs(20), "the writer does not write");
            std::thread::sleep(Duration::from_millis(1));
        }
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| watch(&store, KEY, round, &stop));
            std::thread::sleep(Duration::from_micros(3000 + 977 * round));
            child.kill().unwrap();
            child.wait().unwrap();
            stop.store(true, Relaxed);
        });
        for number in 0..NUMBERS + 8 {
            held += u64::from(read_block(&store, KEY, number).is_some());
        }
        // No lock is left, and nothing half written is taken for whole.
        assert_eq!(store.verify(&mut |_, _| {}).bad_count, 0);
        store.cut(KEY, 0, u64::MAX);
        assert_eq!(count(&store.counters().repaired), 0);
    }
    assert!(held > 0);
}
