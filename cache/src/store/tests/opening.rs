//! Opening: formats, geometries, who else is there.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use super::*;

fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn an_unknown_format_is_refused_and_nothing_touched() {
    let dir = tempfile::tempdir().unwrap();
    let head = "gridvfs block store\nversion";
    let rest = "size_bytes 4194304\nbanks 4\nways 4\nframe_bytes 65536\n";
    for text in [
        format!("{head} 3\nsomething new\n"),
        format!("{head} 2\nchecksum xxh4\n{rest}"),
        format!("{head} 2\n{rest}"),
        format!("{head} 1\nchecksum xxh3\n{rest}"),
        String::new(),
        "something else".into(),
    ] {
        fs::write(dir.path().join("format"), &text).unwrap();
        for shared in [false, true] {
            let error = Store::open(dir.path(), &small(), shared).unwrap_err();
            assert!(matches!(error, StoreError::Format { known: 2, .. }), "{error}");
            for (said, shown) in [("version 3", "format 3,"), ("xxh4", "the checksum xxh4,")] {
                assert!(!text.contains(said) || error.to_string().contains(shown), "{error}");
            }
            assert_eq!(listing(dir.path()), ["format"]);
            assert_eq!(fs::read_to_string(dir.path().join("format")).unwrap(), text);
        }
    }
}

#[test]
fn a_store_is_found_again_and_remade_for_another_geometry() {
    let dir = tempfile::tempdir().unwrap();
    let other = Geometry { ways: 8, ..small() };
    let open = |geometry: &Geometry, shared| Store::open(dir.path(), geometry, shared).unwrap();
    open(&small(), false).put(KEY, 0, &filled(1, 9000)).unwrap();
    assert_eq!(open(&small(), false).bytes_of(KEY, 9000), 9000);
    let store = open(&other, true);
    assert_eq!((*store.geometry(), store.bytes_of(KEY, 9000)), (small(), 9000));
    assert_eq!(store.replaced(), None);
    drop(store);
    let store = open(&other, false);
    assert_eq!((*store.geometry(), store.bytes_of(KEY, 9000)), (other, 0));
    assert_eq!(store.replaced(), Some(&small()));
    assert_eq!(store.usage().disk_bytes, 0);
    assert_eq!(listing(dir.path()), ["banks", "format", "lock", "tags"]);
}

#[test]
fn a_store_of_the_first_format_is_used_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let old = Format { sum: Algorithm::Crc32, geometry: small() };
    format::save(dir.path(), &old).unwrap();
    let text = fs::read_to_string(dir.path().join("format")).unwrap();
    assert_eq!(
        text,
        "gridvfs block store\nversion 1\nsize_bytes 4194304\nbanks 4\nways 4\nframe_bytes 65536\n"
    );
    let open = |geometry: &Geometry| Store::open(dir.path(), geometry, false).unwrap();
    let data = versioned(KEY, 0, 1);
    open(&small()).put(KEY, 0, &data).unwrap();
    let tags = fs::read(dir.path().join("tags")).unwrap();
    let sum = crc32fast::hash(&data) ^ (geometry::mix(KEY.0 ^ geometry::mix(0)) >> 32) as u32;
    assert_eq!(tags[8], 1, "as the program that made it wrote them");
    assert!(tags.chunks_exact(4).any(|bytes| bytes == sum.to_le_bytes()));

    let store = open(&small());
    assert_eq!(read_block(&store, KEY, 0), Some(data.clone()));
    assert!(store.verify(&mut |_, _| {}).bad.is_empty());
    drop(store);
    assert_eq!(fs::read_to_string(dir.path().join("format")).unwrap(), text);
    let other = Geometry { ways: 8, ..small() };
    let store = open(&other);
    store.put(KEY, 0, &data).unwrap();
    assert_eq!(read_block(&store, KEY, 0), Some(data));
    assert!(fs::read_to_string(dir.path().join("format")).unwrap().contains("\nchecksum xxh3\n"));
}

#[test]
fn tags_of_another_checksum_are_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let data = versioned(KEY, 0, 1);
    Store::open(dir.path(), &small(), false).unwrap().put(KEY, 0, &data).unwrap();
    format::save(dir.path(), &Format { sum: Algorithm::Crc32, geometry: small() }).unwrap();
    let store = Store::open(dir.path(), &small(), false).unwrap();
    assert_eq!(read_block(&store, KEY, 0), None);
    assert_eq!(count(&store.counters().repaired), 0, "they are made anew");
}

#[test]
fn a_store_for_one_is_not_opened_by_two() {
    let dir = tempfile::tempdir().unwrap();
    let open = |shared| Store::open(dir.path(), &small(), shared);
    let alone = open(false).unwrap();
    assert!(matches!(open(false), Err(StoreError::InUse { .. })));
    assert!(matches!(open(true), Err(StoreError::InUse { .. })));
    drop(alone);
    let _one = open(true).unwrap();
    let _two = open(true).unwrap();
    assert!(matches!(open(false), Err(StoreError::InUse { .. })));
}

#[test]
fn half_a_store_is_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let data = filled(1, 300_000);
    for gone in ["tags", "format", "lock", "banks", "tags, cut short"] {
        let store = Store::open(dir.path(), &small(), false).unwrap();
        store.put(KEY, 0, &data).unwrap();
        drop(store);
        let tags = dir.path().join("tags");
        match gone {
            "banks" => fs::remove_dir_all(dir.path().join(gone)).unwrap(),
            "tags, cut short" => fs::write(tags, [7; 5000]).unwrap(),
            file => fs::remove_file(dir.path().join(file)).unwrap(),
        }
        let store = Store::open(dir.path(), &small(), false).unwrap();
        let mut out = vec![0; data.len()];
        let had = store.read(KEY, 0, &mut out);
        assert_eq!(had, if gone == "lock" { data.len() } else { 0 }, "without {gone}");
        store.put(KEY, 0, &data).unwrap();
        assert_eq!(store.read(KEY, 0, &mut out), data.len());
        assert!(out == data);
    }
}

#[test]
fn banks_deleted_while_open_cost_only_what_was_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = [0, 1].map(|_| Store::open(dir.path(), &small(), true).unwrap());
    let data = versioned(KEY, 0, 1);
    one.put(KEY, 0, &data).unwrap();
    fs::remove_dir_all(dir.path().join("banks")).unwrap();
    assert_eq!(read_block(&two, KEY, 0), None);
    assert_eq!(count(&two.counters().repaired), 1);
    two.put(KEY, 0, &data).unwrap();
    assert_eq!(read_block(&two, KEY, 0), Some(data));
}

#[test]
fn geometries_that_cannot_be_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let good = small();
    for bad in [
        Geometry { frame_bytes: 8 << 10, ..good },
        Geometry { frame_bytes: 256 << 10, ..good },
        Geometry { frame_bytes: 96 << 10, ..good },
        Geometry { ways: 0, ..good },
        Geometry { ways: 65, ..good },
        Geometry { banks: 0, ..good },
        Geometry { size_bytes: 100_000, ..good },
        Geometry { size_bytes: u64::MAX, ..good },
    ] {
        assert!(matches!(bad.checked(), Err(StoreError::Geometry(_))), "{bad:?}");
        assert!(Store::open(&dir.path().join("x"), &bad, false).is_err());
    }
    assert_eq!(listing(dir.path()), [""; 0]);
    for frame_bytes in [16 << 10, 128 << 10] {
        let store = Store::open(dir.path(), &Geometry { frame_bytes, ..good }, false).unwrap();
        let data = filled(3, 500_000);
        store.put(KEY, 0, &data).unwrap();
        let mut out = vec![0; data.len()];
        assert_eq!(store.read(KEY, 0, &mut out), data.len());
        assert!(out == data);
    }
}

/// Bytes of this process's memory that are pages of files.
fn resident_file_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssFile:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn a_large_store_opens_at_once_and_in_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let geometry = Geometry { size_bytes: 100 << 30, ..Geometry::default() };
    drop(Store::open(dir.path(), &geometry, false).unwrap());
    let (start, before) = (Instant::now(), resident_file_bytes());
    let store = Store::open(dir.path(), &geometry, false).unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    for key in 1..=100 {
        store.put(FileKey(key), 0, &versioned(FileKey(key), 0, 1)).unwrap();
    }
    for key in 1..=100 {
        read_block(&store, FileKey(key), 0).unwrap();
    }
    let grown = resident_file_bytes().saturating_sub(before);
    // Other tests' pages count too.
    assert!(grown < 32 << 20, "{grown} bytes");
    let tags = fs::metadata(dir.path().join("tags")).unwrap();
    assert!(tags.blocks() * 512 >= tags.len(), "the tags have holes");
    assert!(tags.len() < 140 << 20);
}
