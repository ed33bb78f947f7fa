//! A writer that dies at each named place.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

/// Runs a write that dies at a place; returns whether it came there.
fn die_at(place: &'static str, write: impl FnOnce()) -> bool {
    crash::STOP_AT.set(place);
    let died = catch_unwind(AssertUnwindSafe(write)).is_err();
    crash::STOP_AT.set("");
    died
}

#[test]
fn a_writer_that_dies_leaves_right_or_missing_blocks() {
    // One set of two ways, both taken.
    let geometry = Geometry { size_bytes: 32 << 10, banks: 1, ways: 2, frame_bytes: 16 << 10 };
    let [old, other, new] = [1, 2, 3].map(FileKey);
    let blocks = |key, version| -> Vec<u8> {
        (0..4).flat_map(|number| versioned(key, number, version)).collect()
    };
    for place in crash::ALL {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &geometry, false).unwrap();
        let check = |oldest: [u64; 3]| {
            for (key, oldest) in [old, other, new].into_iter().zip(oldest) {
                for number in 0..4 {
                    if let Some(data) = read_block(&store, key, number) {
                        assert!(version_of(key, number, &data) >= oldest, "{place}");
                    }
                }
            }
            // A bad block would have been right by its tag.
            assert_eq!(store.verify(&mut |_, _| {}).bad_count, 0, "{place}");
            assert_eq!(count(&store.counters().repaired), 0, "{place}");
        };
        store.put(old, 0, &blocks(old, 1)).unwrap();
        store.put(other, 0, &blocks(other, 1)).unwrap();
        let mut died = die_at(place, || store.put(new, 0, &blocks(new, 1)).unwrap());
        check([1, 1, 1]);
        assert_eq!(read_block(&store, other, 0), Some(versioned(other, 0, 1)));
        died |= die_at(place, || store.put(other, 0, &blocks(other, 2)).unwrap());
        check([1, 1, 1]);
        store.put(other, 4096, &blocks(other, 2)[4096..8192]).unwrap();
        died |= die_at(place, || store.patch(other, 5000, &[1; 50], false).unwrap());
        assert!(died, "nothing comes by {place}");
        // Life goes on: no lock is held, every block can be stored again.
        for key in [old, other, new] {
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
