//! Tests of the block store, by what they are about.

mod crashing;
mod damage;
mod full;
mod model;
mod opening;
mod sharing;

use super::*;

/// 16 sets of 4 ways.
fn small() -> Geometry {
    Geometry { size_bytes: 4 << 20, banks: 4, ways: 4, frame_bytes: 64 << 10 }
}

fn filled(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = geometry::mix(seed);
    let mut data = Vec::with_capacity(bytes + 8);
    while data.len() < bytes {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(bytes);
    data
}

/// A block that says which it is: right if it equals the one of the version it names.
fn versioned(key: FileKey, number: u64, version: u64) -> Vec<u8> {
    let mut data = filled(key.0 ^ (number << 20) ^ (version << 40), BLOCK_BYTES);
    data[..8].copy_from_slice(&version.to_le_bytes());
    data
}

/// Returns the version of a block that was read. Panics if it is not this block.
fn version_of(key: FileKey, number: u64, data: &[u8]) -> u64 {
    let version = u64::from_le_bytes(data[..8].try_into().unwrap());
    assert!(data == versioned(key, number, version), "wrong data: {key:?} block {number}");
    version
}

fn read_block(store: &Store, key: FileKey, number: u64) -> Option<Vec<u8>> {
    let mut out = vec![0; BLOCK_BYTES];
    let had = store.read(key, number * BLOCK_BYTES as u64, &mut out);
    assert!(had == 0 || had == BLOCK_BYTES);
    (had > 0).then_some(out)
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(std::sync::atomic::Ordering::Relaxed)
}

const KEY: FileKey = FileKey(77);

#[test]
fn what_is_put_is_read_in_any_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), &small(), false).unwrap();
    let data = filled(1, 1_000_001);
    store.put(KEY, 0, &data).unwrap();
    for (from, to) in [(0, data.len()), (1, 2), (4095, 4097), (5, 700_001), (65_536, 131_072)] {
        let mut out = vec![0; to - from];
        assert_eq!(store.read(KEY, from as u64, &mut out), out.len());
        assert!(out == data[from..to]);
    }
    assert_eq!(store.first_gap(KEY, 0, data.len() as u64), None);
    assert_eq!(store.bytes_of(KEY, data.len() as u64), data.len() as u64);
    assert_eq!(store.read(FileKey(78), 0, &mut [0; 10]), 0);
}

#[test]
fn a_file_in_order_lies_in_few_places() {
    let dir = tempfile::tempdir().unwrap();
    let geometry = Geometry { size_bytes: 16 << 20, banks: 4, ways: 4, frame_bytes: 64 << 10 };
    let store = Store::open(dir.path(), &geometry, false).unwrap();
    store.put(FileKey(1), 0, &filled(1, 2 << 20)).unwrap();
    store.put(FileKey(2), 0, &filled(2, 2 << 20)).unwrap();
    let runs = |key: FileKey| {
        let ways: Vec<_> = (0..32)
            .map(|frame| {
                let set = store.layout.set(key, frame);
                let way = store.tags.find(set, key, frame).unwrap().0;
                store.layout.bank_offset(set, way)
                    + u64::from(store.layout.bank(set, way)) * store.layout.bank_bytes()
            })
            .collect();
        ways.windows(2).filter(|pair| pair[1] != pair[0] + (64 << 10)).count() + 1
    };
    assert!(runs(FileKey(1)) <= 3, "{} runs", runs(FileKey(1)));
    assert!(runs(FileKey(2)) <= 6, "{} runs", runs(FileKey(2)));
}

#[test]
fn the_frame_used_longest_ago_goes_and_pinned_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    // One set.
    let geometry = Geometry { size_bytes: 64 << 10, banks: 1, ways: 4, frame_bytes: 16 << 10 };
    let store = Store::open(dir.path(), &geometry, false).unwrap();
    let put = |key: u64| store.put(FileKey(key), 0, &versioned(FileKey(key), 0, 1));
    let held = |key: u64| store.first_gap(FileKey(key), 0, 1).is_none();
    for key in 1..=4 {
        put(key).unwrap();
    }
    read_block(&store, FileKey(1), 0).unwrap();
    put(5).unwrap();
    assert!(held(1) && !held(2) && held(3) && held(4) && held(5));
    store.set_pinned([FileKey(3), FileKey(4)].into());
    put(6).unwrap();
    put(7).unwrap();
    put(8).unwrap();
    assert!(held(3) && held(4) && held(8));
    store.set_pinned([3, 4, 7, 8].map(FileKey).into());
    assert!(matches!(put(9), Err(StoreError::Pinned)));
    assert!(held(3) && held(4) && held(7) && held(8) && !held(9));
    assert_eq!(store.usage().frames_pinned, 4);
    assert_eq!(count(&store.counters().evicted), 4);
}

#[test]
fn cut_drops_blocks_and_a_far_end_costs_a_scan() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), &small(), false).unwrap();
    store.put(KEY, 0, &filled(1, 300_000)).unwrap();
    store.cut(KEY, 100_000, 200_000);
    assert_eq!(store.first_gap(KEY, 0, 300_000), Some((98_304, 200_704)));
    store.cut(KEY, 250_000, u64::MAX);
    assert_eq!(store.first_gap(KEY, 200_704, 300_000), Some((249_856, 300_000)));
    assert_eq!(store.bytes_of(KEY, u64::MAX), 98_304 + 249_856 - 200_704);
    store.cut(KEY, u64::MAX - 5, u64::MAX);
    store.cut(KEY, 0, u64::MAX);
    assert_eq!(store.usage().frames, 0);
}

#[test]
fn what_lies_past_the_last_frame_is_not_held() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), &small(), false).unwrap();
    let edge = 1 << 48;
    store.put(KEY, edge - 4096, &filled(1, 8192)).unwrap();
    let mut out = vec![0; 8192];
    assert_eq!(store.read(KEY, edge - 4096, &mut out), 4096);
    assert!(out[..4096] == filled(1, 8192)[..4096]);
    store.put(KEY, u64::MAX / 4096 * 4096, &[1; 4096]).unwrap();
    store.patch(KEY, u64::MAX - 3, &[1; 3], false).unwrap();
    assert_eq!(store.read(KEY, u64::MAX - 3, &mut out), 0);
    assert_eq!(store.first_gap(KEY, u64::MAX - 3, u64::MAX), Some((u64::MAX - 3, u64::MAX)));
}
