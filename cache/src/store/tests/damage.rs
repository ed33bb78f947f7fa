//! Flipped bits, torn tags, what a power loss leaves.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;

/// The 64-bit XXH3 of 4096 zeros.
const XXH3_OF_ZEROS: u64 = 0x93d7_6fe1_48c6_89ba;

/// Where a block of a file is: the bank file and its place there.
fn place(store: &Store, key: FileKey, number: u64) -> (PathBuf, u64) {
    let offset = number * BLOCK_BYTES as u64;
    let frame = store.layout.frame(offset).unwrap();
    let set = store.layout.set(key, frame);
    let way = store.tags.find(set, key, frame).unwrap().0;
    let at = u64::from(store.layout.block(offset)) * BLOCK_BYTES as u64;
    (store.banks.path(store.layout.bank(set, way)), store.layout.bank_offset(set, way) + at)
}

#[test]
fn every_flipped_bit_changes_the_checksum() {
    for sum in [Algorithm::Crc32, Algorithm::Xxh3] {
        for mut data in [filled(9, BLOCK_BYTES), vec![0; BLOCK_BYTES]] {
            let right = sum.checksum(KEY, 5, &data);
            for bit in 0..BLOCK_BYTES * 8 {
                data[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(sum.checksum(KEY, 5, &data), right, "{sum:?}, bit {bit}");
                data[bit / 8] ^= 1 << (bit % 8);
            }
            assert_ne!(sum.checksum(KEY, 6, &data), right);
            assert_ne!(sum.checksum(FileKey(KEY.0 ^ 1), 5, &data), right);
        }
    }
}

#[test]
fn checksums_are_what_the_format_says() {
    // The values for 4096 zeros, by other implementations (zlib, xxhash-rust).
    let (key, data) = (FileKey(1), [0; BLOCK_BYTES]);
    let place = (geometry::mix(key.0 ^ geometry::mix(3)) >> 32) as u32;
    assert_eq!(Algorithm::Crc32.checksum(key, 3, &data), 0xc71c_0011 ^ place);
    assert_eq!(Algorithm::Xxh3.checksum(key, 3, &data), XXH3_OF_ZEROS as u32 ^ place);
}

#[test]
fn a_flipped_bit_anywhere_in_a_block_is_a_miss_and_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), &small(), false).unwrap();
    let data = versioned(KEY, 3, 1);
    store.put(KEY, 3 * 4096, &data).unwrap();
    let (path, at) = place(&store, KEY, 3);
    let bank = OpenOptions::new().write(true).open(path).unwrap();
    for (i, byte) in data.iter().enumerate() {
        bank.write_all_at(&[byte ^ 1 << (i % 8)], at + i as u64).unwrap();
        assert_eq!(read_block(&store, KEY, 3), None, "byte {i}");
        assert_eq!(count(&store.counters().repaired), i as u64 + 1);
        store.put(KEY, 3 * 4096, &data).unwrap();
    }
    assert_eq!(read_block(&store, KEY, 3), Some(data));
}

#[test]
fn a_bad_block_ends_a_read_and_costs_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), &small(), false).unwrap();
    let data = filled(4, 200_000);
    for (from, bad) in [(0, 0u64), (0, 20), (100, 20), (8192, 48), (5000, 1), (90_000, 21)] {
        store.put(KEY, 0, &data).unwrap();
        let (path, at) = place(&store, KEY, bad);
        OpenOptions::new().write(true).open(path).unwrap().write_all_at(&[0; 9], at).unwrap();
        let mut out = vec![0; data.len() - from];
        let had = store.read(KEY, from as u64, &mut out);
        assert_eq!(had as u64, (bad * 4096).saturating_sub(from as u64), "{from}, {bad}");
        assert!(out[..had] == data[from..from + had]);
        let gap = (bad * 4096, ((bad + 1) * 4096).min(200_000));
        assert_eq!(
            store.first_gap(KEY, 0, 200_000),
            (had > 0 || from == 0).then_some(gap).or(
                // A read that begins in the bad block finds it too.
                (from as u64 / 4096 == bad).then_some(gap)
            )
        );
    }
}

#[test]
fn verify_lists_what_is_bad_and_drops_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), &small(), false).unwrap();
    store.put(KEY, 0, &filled(4, 200_000)).unwrap();
    store.put(FileKey(5), 0, &filled(5, 50_000)).unwrap();
    for (key, number) in [(KEY, 7), (FileKey(5), 12)] {
        let (path, at) = place(&store, key, number);
        OpenOptions::new().write(true).open(path).unwrap().write_all_at(&[1], at + 9).unwrap();
    }
    let mut last = (9, 9);
    let mut report = store.verify(&mut |done, of| last = (done, of));
    report.bad.sort_by_key(|bad| bad.key.0);
    let bad = [(FileKey(5), 12), (KEY, 7)].map(|(key, n)| BadBlock { key, offset: n * 4096 });
    assert_eq!((report.blocks, report.bad_count), (49 + 13, 2));
    assert_eq!(report.bad, bad);
    assert_eq!(last, (5, 5));
    assert_eq!(store.first_gap(KEY, 0, 200_000), Some((7 * 4096, 8 * 4096)));
    assert_eq!(store.verify(&mut |_, _| {}).bad_count, 0);
}

#[test]
fn a_partial_change_of_a_bad_block_drops_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), &small(), false).unwrap();
    store.put(KEY, 0, &filled(4, 8192)).unwrap();
    let (path, at) = place(&store, KEY, 1);
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(&[0; 9], at).unwrap();
    store.patch(KEY, 4000, &[1; 200], false).unwrap();
    assert_eq!(store.first_gap(KEY, 0, 8192), Some((4096, 8192)));
}

#[test]
fn a_frame_that_is_held_twice_is_written_once_and_found() {
    use std::sync::atomic::Ordering::Relaxed;
    for patched in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &small(), false).unwrap();
        store.put(KEY, 0, &versioned(KEY, 0, 1)).unwrap();
        let set = store.layout.set(KEY, 0);
        let way = store.tags.find(set, KEY, 0).unwrap().0 as usize;
        // A copy in another way, as tags and data of two times would show it.
        let copy = (way + 1) % 4;
        let (words, keys) = (store.tags.words(set), store.tags.keys(set));
        words[copy].store(words[way].load(Relaxed), Relaxed);
        keys[copy].store(KEY.0, Relaxed);
        let sum = store.tags.sums(set, way as u32)[0].load(Relaxed);
        store.tags.sums(set, copy as u32)[0].store(sum, Relaxed);
        let place = store.layout.bank_offset(set, copy as u32);
        let bank = store.layout.bank(set, copy as u32);
        store.banks.write(bank, place, &versioned(KEY, 0, 1)).unwrap();

        if patched {
            store.patch(KEY, 0, &versioned(KEY, 0, 2), false).unwrap();
            // The one that is found makes room: the other must not come forward.
            words[store.tags.find(set, KEY, 0).unwrap().0 as usize].store(0, Relaxed);
        } else {
            store.cut(KEY, 0, 1);
        }
        assert_eq!(read_block(&store, KEY, 0), None);
    }
}

#[test]
fn valid_bits_of_blocks_that_a_frame_does_not_have_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), &small(), false).unwrap();
    let data = filled(1, 65_536);
    store.put(KEY, 0, &data).unwrap();
    let set = store.layout.set(KEY, 0);
    let way = store.tags.find(set, KEY, 0).unwrap().0;
    let last = store.layout.sets - 1;
    for (set, way) in [(set, way), (last, store.layout.ways - 1)] {
        let word = &store.tags.words(set)[way as usize];
        word.fetch_or(0xFFFF_0000, std::sync::atomic::Ordering::Relaxed);
    }
    let mut out = vec![0; 100_000];
    assert_eq!(store.read(KEY, 0, &mut out), 65_536);
    assert!(out[..65_536] == data);
    assert_eq!(store.usage().blocks, 16);
    assert_eq!(store.verify(&mut |_, _| {}).blocks, 16);
}

/// How a piece of the tags came out of a power loss.
#[derive(Clone, Debug)]
enum Tear {
    /// As it was at the first of two times.
    Old {
        sector: usize,
    },
    /// As another piece.
    Moved {
        from: usize,
        to: usize,
    },
    Zeros {
        sector: usize,
    },
    Ones {
        sector: usize,
    },
    Flip {
        bit: usize,
    },
}

fn tear() -> impl Strategy<Value = Tear> {
    let any = || 0..1_000_000usize;
    prop_oneof![
        6 => any().prop_map(|sector| Tear::Old { sector }),
        2 => (any(), any()).prop_map(|(from, to)| Tear::Moved { from, to }),
        1 => any().prop_map(|sector| Tear::Zeros { sector }),
        1 => any().prop_map(|sector| Tear::Ones { sector }),
        8 => (0..100_000_000usize).prop_map(|bit| Tear::Flip { bit }),
    ]
}

const SECTOR: usize = 512;

fn apply(tears: &[Tear], old: &[u8], new: &mut [u8]) {
    // Not the header: a store without one is made anew.
    let first = geometry::HEADER_BYTES / SECTOR;
    let sectors = new.len() / SECTOR - first;
    let at = |sector: usize| {
        let start = (first + sector % sectors) * SECTOR;
        start..start + SECTOR
    };
    for tear in tears {
        match *tear {
            Tear::Old { sector } => new[at(sector)].copy_from_slice(&old[at(sector)]),
            Tear::Moved { from, to } => new.copy_within(at(from), at(to).start),
            Tear::Zeros { sector } => new[at(sector)].fill(0),
            Tear::Ones { sector } => new[at(sector)].fill(0xFF),
            Tear::Flip { bit } => new[at(bit / 4096)][bit / 8 % SECTOR] ^= 1 << (bit % 8),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn torn_tags_never_make_a_wrong_block_right(tears in prop::collection::vec(tear(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let geometry = Geometry { size_bytes: 512 << 10, banks: 2, ways: 4, frame_bytes: 16 << 10 };
        let keys = [1, 2, 3].map(FileKey);
        let tags = dir.path().join("tags");
        let open = || Store::open(dir.path(), &geometry, false).unwrap();
        let fill = |store: &Store, version| {
            for key in keys {
                for number in 0..40 {
                    let data = versioned(key, number, version);
                    store.put(key, number * 4096, &data).unwrap();
                }
            }
        };
        let store = open();
        fill(&store, 1);
        let old = fs::read(&tags).unwrap();
        fill(&store, 2);
        drop(store);
        let mut new = fs::read(&tags).unwrap();
        apply(&tears, &old, &mut new);
        fs::write(&tags, &new).unwrap();

        let store = open();
        for key in keys {
            for number in 0..50 {
                if let Some(data) = read_block(&store, key, number) {
                    prop_assert!(version_of(key, number, &data) <= 2);
                }
            }
        }
        store.usage();
        store.bytes_of(keys[0], u64::MAX);
        // What is written from now on is what is found, whatever else the tags say.
        for key in keys {
            for number in [3, 4, 17] {
                store.patch(key, number * 4096, &versioned(key, number, 3), false).unwrap();
                let data = read_block(&store, key, number);
                prop_assert_eq!(data.map(|data| version_of(key, number, &data)), Some(3));
            }
        }
        store.cut(keys[1], 4 * 4096, u64::MAX);
        prop_assert_eq!(read_block(&store, keys[1], 17), None);
        store.verify(&mut |_, _| {});
        prop_assert_eq!(store.verify(&mut |_, _| {}).bad_count, 0);
        store.give_back(100_000);
        store.clear();
        prop_assert_eq!(store.usage().blocks, 0);
    }
}
