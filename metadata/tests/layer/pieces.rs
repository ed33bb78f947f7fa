//! Hashes that come in pieces.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gridvfs_metadata::format::Metadata;

use super::world::{BLOCK, Parts, World, mixed};

const HASHES: Parts = Parts { zero: false, hashes: true, whole: false, working_set: false };

/// Reads places of a file in no order, and all of it at last.
fn read_about(world: &World, name: &str, data: &[u8], what: &str) {
    let file = world.find(name);
    let size = data.len() as u64;
    for at in [size / 2, 0, size - 100_000, size / 3, size / 2 + 70_000, size - 5] {
        let end = data.len().min(at as usize + 150_000);
        assert!(world.read(&file, at, 150_000) == data[at as usize..end], "{what} at {at}");
    }
    assert!(world.read(&file, 0, data.len() as u32) == data, "{what}");
}

fn came(world: &World) -> u64 {
    world.far.read_bytes.load(Ordering::SeqCst)
}

#[test]
fn reads_are_the_servers_under_every_combination_of_parts() {
    let data = mixed(1300, 77, 20);
    for number in 0..8u32 {
        let bit = |bit| number & bit != 0;
        let plain = number.count_ones() == 2;
        let parts = Parts { zero: bit(1), hashes: true, whole: bit(2), working_set: bit(4) };
        let mut world = World::in_pieces();
        world.far.plain.store(plain, Ordering::SeqCst);
        world.put("file", &data, parts);
        let what = format!("{parts:?}, plain: {plain}");
        read_about(&world, "file", &data, &what);
        world.again();
        read_about(&world, "file", &data, &what);
        assert_eq!(world.count("refused"), 0, "{what}");
    }
}

#[test]
fn only_what_is_used_of_a_list_comes() {
    let mut world = World::in_pieces();
    let data = mixed(8000, 0, 21);
    world.put("file", &data, HASHES);
    let list = std::fs::metadata(world.path(".file.gvfs-meta")).expect("there").len();
    let file = world.find("file");
    let at = data.len() as u64 / 2;
    assert!(world.read(&file, at, 4096) == data[at as usize..at as usize + 4096]);
    let first = came(&world);
    // Both edges of the metadata file, a piece in whole blocks, and a chunk of the file.
    assert!(first <= (64 + 20 + 64) << 10, "{first} of {list} bytes");
    world.again();
    let file = world.find("file");
    assert!(world.read(&file, at, 4096) == data[at as usize..at as usize + 4096]);
    world.read(&file, at - 65536, 4096);
    assert!(came(&world) <= 64 << 10, "{}: the rest is in the cache", came(&world));
    assert_eq!((world.count("loaded"), world.count("refused")), (1, 0));
}

#[test]
fn a_read_waits_for_its_piece_and_its_data_at_once() {
    let world = World::in_pieces();
    let data = mixed(4000, 0, 22);
    world.put("file", &data, HASHES);
    let file = world.find("file");
    assert!(world.read(&file, 0, 4096) == data[..4096]);
    let delay = Duration::from_millis(700);
    world.far.delay_ms.store(delay.as_millis() as u64, Ordering::SeqCst);
    let (at, begin) = (data.len() / 2, Instant::now());
    assert!(world.read(&file, at as u64, 4096) == data[at..at + 4096]);
    assert!(begin.elapsed() < delay * 2, "{:?} for one round trip", begin.elapsed());
}

#[test]
fn a_piece_that_is_damaged_or_gone_is_not_believed() {
    let data = mixed(4000, 0, 23);
    let place = data.len() as u64 / 2;
    let good = |world: &World| std::fs::read(world.path(".file.gvfs-meta")).expect("there");
    type Change<'a> = (&'a str, &'a dyn Fn(&World));
    let changes: [Change; 4] = [
        ("damaged", &|world| {
            let mut bytes = good(world);
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(world.path(".file.gvfs-meta"), bytes).expect("written");
        }),
        ("of another version", &|world| {
            let other = mixed(4000, 0, 24);
            world.put_metadata("file", &world.metadata("file", &other, HASHES).encode());
        }),
        ("replaced", &|world| {
            std::fs::write(world.path("new"), good(world)).expect("written");
            std::fs::rename(world.path("new"), world.path(".file.gvfs-meta")).expect("renamed");
        }),
        ("gone", &|world| {
            std::fs::remove_file(world.path(".file.gvfs-meta")).expect("removed");
        }),
    ];
    for (what, change) in changes {
        for plain in [false, true] {
            let world = World::in_pieces();
            world.far.plain.store(plain, Ordering::SeqCst);
            world.put("file", &data, HASHES);
            let file = world.find("file");
            assert!(world.read(&file, 0, 100) == data[..100]);
            assert_eq!(world.count("loaded"), 1);
            change(&world);
            for at in [place, place + 3 * BLOCK as u64, place - (1 << 20)] {
                let (at, end) = (at as usize, at as usize + 50_000);
                assert!(world.read(&file, at as u64, 50_000) == data[at..end], "{what}");
            }
            assert!(world.read(&file, 0, data.len() as u32) == data, "{what}");
            assert!(world.count("refused") <= 1, "{what}: said once");
            if what == "damaged" && !plain {
                assert_eq!(world.count("refused"), 1);
            }
        }
    }
}

#[test]
fn known_content_is_found_by_pieces() {
    for whole in [false, true] {
        let mut world = World::in_pieces();
        let data = mixed(3000, 0, 25);
        let parts = Parts { zero: true, hashes: true, whole, working_set: false };
        world.put("golden", &data, parts);
        let file = world.find("golden");
        assert!(world.read(&file, 0, data.len() as u32) == data);
        world.again();

        let other: Vec<u8> = data.chunks(BLOCK).rev().flatten().copied().collect();
        world.put("other", &other, parts);
        let file = world.find("other");
        if whole {
            let here = || world.disk.as_ref().expect("a cache").local_path(&file).is_some();
            world.until("it is here as a whole", here);
        }
        assert!(world.read(&file, 0, other.len() as u32) == other);
        let data_bytes = other.chunks(BLOCK).filter(|block| block[0] != 0).count() * BLOCK;
        // A reader has the first data of each piece fetched beside it; bulk has none.
        let most = if whole { 512 << 10 } else { data_bytes as u64 / 2 };
        assert!(came(&world) < most, "{} of {data_bytes} bytes", came(&world));
    }
}

#[test]
fn a_recorded_working_set_leaves_the_hashes_in_use() {
    let world = World::in_pieces();
    let data = mixed(4000, 0, 26);
    world.put("file", &data, HASHES);
    let file = world.find("file");
    world.read(&file, 100, 100);
    let stopped = world.runtime.block_on(world.layer.stop_profile(&world.caller));
    assert_eq!((stopped.len(), stopped[0].error.clone()), (1, None));
    let bytes = std::fs::read(world.path(".file.gvfs-meta")).expect("written");
    assert!(Metadata::decode(&bytes).expect("good").hashes.is_some());
    read_about(&world, "file", &data, "afterwards");
    assert_eq!((world.count("refused"), world.count("loaded")), (0, 2));
}
