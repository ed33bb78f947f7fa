use super::*;
use crate::store::BLOCK_BYTES;
use std::io::Read;
use std::os::unix::fs::FileExt;

const BLOCK: usize = BLOCK_BYTES;

fn cache(max_bytes: u64) -> (tempfile::TempDir, FileCache) {
    let folder = tempfile::tempdir().expect("folder");
    let cache = FileCache::open(folder.path().join("files"), max_bytes).expect("opened");
    (folder, cache)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 4096) as u8 | 1).collect()
}

#[test]
fn what_arrives_is_read_and_what_has_not_is_not() {
    let (_folder, cache) = cache(1 << 30);
    let size = 10 * BLOCK + 100;
    let data = pattern(size);
    let file = cache.begin(FileKey(5), size as u64, 0).expect("begun");
    assert_eq!(file.first_gap(0, size as u64), Some((0, size as u64)));
    file.put(2 * BLOCK as u64, &data[2 * BLOCK..5 * BLOCK]).expect("put");
    file.put(10 * BLOCK as u64, &data[10 * BLOCK..]).expect("put");
    let mut out = vec![0; size];
    assert_eq!(file.read(0, &mut out), 0);
    assert_eq!(file.read(2 * BLOCK as u64 + 5, &mut out), 3 * BLOCK - 5);
    assert_eq!(out[..3 * BLOCK - 5], data[2 * BLOCK + 5..5 * BLOCK]);
    assert_eq!(file.read(10 * BLOCK as u64 + 7, &mut out), 93, "ends with the file");
    assert_eq!(out[..93], data[10 * BLOCK + 7..]);
    assert_eq!(
        file.first_gap(2 * BLOCK as u64, size as u64),
        Some((5 * BLOCK as u64, 10 * BLOCK as u64))
    );
    assert!(!file.complete().expect("synced"));
    assert!(file.lend().is_none(), "not all of it is there");
    file.put(0, &data[..2 * BLOCK]).expect("put");
    file.put_zeros(5 * BLOCK as u64, 10 * BLOCK as u64);
    assert!(file.complete().expect("synced"));
    assert_eq!(file.read(0, &mut out), size);
    let mut expected = data.clone();
    expected[5 * BLOCK..10 * BLOCK].fill(0);
    assert!(out == expected);
    let mut lent = Vec::new();
    file.lend().expect("complete").read_to_end(&mut lent).expect("read");
    assert!(lent == expected);
}

#[test]
fn zeros_take_no_room() {
    let (_folder, cache) = cache(1 << 30);
    let size = 4 << 20;
    let file = cache.begin(FileKey(9), size, 0).expect("begun");
    let mut data = vec![0; size as usize];
    data[1 << 20..(1 << 20) + BLOCK].copy_from_slice(&pattern(BLOCK));
    file.put(0, &data).expect("put");
    assert!(file.complete().expect("synced"));
    cache.completed(FileKey(9));
    assert!(cache.bytes() <= 64 << 10, "{}", cache.bytes());
    let mut out = vec![1; size as usize];
    assert_eq!(file.read(0, &mut out), size as usize);
    assert!(out == data);
    // Zeros over data are zeros.
    file.cut(1 << 20, (1 << 20) + BLOCK as u64);
    file.put_zeros(0, size);
    assert_eq!(file.read(0, &mut out), size as usize);
    assert!(out.iter().all(|byte| *byte == 0));
}

#[test]
fn flipped_bits_are_found_and_dropped() {
    let (_folder, cache) = cache(1 << 30);
    let data = pattern(8 * BLOCK);
    let file = cache.begin(FileKey(3), data.len() as u64, 0).expect("begun");
    file.put(0, &data).expect("put");
    assert!(file.complete().expect("synced"));
    let raw = File::options().write(true).open(file.path()).expect("opened");
    for (at, bit) in [(3 * BLOCK + 77, 1u8), (6 * BLOCK, 128)] {
        raw.write_all_at(&[data[at] ^ bit], at as u64).expect("flipped");
    }
    let mut out = vec![0; data.len()];
    assert_eq!(file.read(0, &mut out), 3 * BLOCK);
    assert!(!file.is_complete());
    assert_eq!(file.verify(), (7, vec![6 * BLOCK as u64]));
    assert_eq!(cache.repaired(), 2);
    file.put(3 * BLOCK as u64, &data[3 * BLOCK..7 * BLOCK]).expect("put");
    assert_eq!(file.read(0, &mut out), data.len());
    assert!(out == data);
}

use std::fs::File;

#[test]
fn it_is_found_again_as_far_as_it_has_come() {
    let (folder, cache) = cache(1 << 30);
    let data = pattern(8 * BLOCK);
    cache
        .begin(FileKey(3), data.len() as u64, 0)
        .expect("begun")
        .put(0, &data[..BLOCK])
        .expect("put");
    cache.begin(FileKey(4), 10, 0).expect("begun").put(0, &data[..10]).expect("put");
    drop(cache);
    let dir = folder.path().join("files");
    // A file that had no table yet, and a table that is cut.
    fs::write(dir.join("0000000000000007"), b"x").expect("written");
    fs::write(dir.join("0000000000000008"), b"x").expect("written");
    fs::write(dir.join("0000000000000008.sums"), b"GVFSFIL1").expect("written");
    let cache = FileCache::open(dir.clone(), 1 << 30).expect("opened");
    let mut keys = cache.keys();
    keys.sort_by_key(|key| key.0);
    assert_eq!(keys, [FileKey(3), FileKey(4)]);
    let file = cache.get(FileKey(3)).expect("there");
    let mut out = vec![0; data.len()];
    assert_eq!(file.read(0, &mut out), BLOCK);
    assert!(!dir.join("0000000000000007").exists());

    fs::write(dir.join("0000000000000009.sums"), [b'9'; 4096]).expect("written");
    let refused = FileCache::open(dir.clone(), 1 << 30);
    assert!(matches!(refused, Err(StoreError::Format { .. })), "a later format");
    assert!(dir.join("0000000000000009.sums").exists(), "and nothing is changed");
}

#[test]
fn the_file_opened_longest_ago_makes_room() {
    let (_folder, cache) = cache(100 * BLOCK as u64);
    let data = pattern(30 * BLOCK);
    let bytes = data.len() as u64;
    for key in [1, 2, 3] {
        cache.begin(FileKey(key), bytes, bytes).expect("begun").put(0, &data).expect("put");
        cache.slots.get_mut(&FileKey(key)).expect("there").used_ms = key;
    }
    cache.begin(FileKey(4), bytes, bytes).expect("begun");
    assert!(cache.get(FileKey(1)).is_none());
    assert!(cache.get(FileKey(2)).is_some());
    let refused = cache.begin(FileKey(5), 1 << 30, 1 << 30);
    assert!(matches!(refused, Err(StoreError::NoSpace)));
    assert!(cache.get(FileKey(2)).is_some(), "nothing went for it");
}

#[test]
fn what_was_lent_is_never_written() {
    let (folder, cache) = cache(1 << 30);
    let data = pattern(2 * BLOCK);
    for (key, linked) in [(1, false), (2, true)] {
        let file = cache.begin(FileKey(key), data.len() as u64, 0).expect("begun");
        file.put(0, &data).expect("put");
        assert!(file.complete().expect("synced"));
        cache.changing(FileKey(key));
        assert!(cache.get(FileKey(key)).is_some(), "nobody has it");
        if linked {
            fs::hard_link(file.path(), folder.path().join("link")).expect("linked");
        } else {
            file.lend().expect("lent");
        }
        cache.changing(FileKey(key));
        assert!(cache.get(FileKey(key)).is_none());
    }
    assert!(fs::read(folder.path().join("link")).expect("read") == data);
}
