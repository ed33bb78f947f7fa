//! Reads are the server's file's, whatever the metadata says, and cost what it says.

use std::sync::atomic::Ordering;

use gridvfs_metadata::format::Metadata;
use gridvfs_metadata::layer::ReadOf;
use gridvfs_vfs::{Error, SeekWhence, SetAttr, Stability, Status, Vfs};

use super::world::{BLOCK, Parts, World, mixed};

fn every_combination() -> impl Iterator<Item = Parts> {
    (0..16).map(|bits: u8| Parts {
        zero: bits & 1 != 0,
        hashes: bits & 2 != 0,
        whole: bits & 4 != 0,
        working_set: bits & 8 != 0,
    })
}

#[test]
fn reads_are_the_servers_under_every_combination_of_parts() {
    for cache in [true, false] {
        let world = World::with(cache, Default::default());
        for (number, parts) in every_combination().enumerate() {
            let data = mixed(150, [0, 100, 4096, 5000][number % 4], number as u64 + 1);
            let name = format!("file{number}");
            world.put(&name, &data, parts);
            world.far.plain.store(number % 3 == 0, Ordering::SeqCst);
            let file = world.find(&name);
            let mut at = (number * 7919) as u64;
            for _ in 0..40 {
                at = (at * 31 + 12_345) % data.len() as u64;
                let count = [1, 4096, 10_000, 131_072][(at % 4) as usize];
                let end = data.len().min(at as usize + count);
                let read = world.read(&file, at, count as u32);
                assert!(read == data[at as usize..end], "{parts:?} at {at}, {count} bytes");
            }
            let mut all = Vec::new();
            while all.len() < data.len() {
                let part = world.read(&file, all.len() as u64, 131_072);
                assert!(!part.is_empty(), "{parts:?}: ends at {}", all.len());
                all.extend(part);
            }
            assert!(all == data, "{parts:?}");
            assert_eq!(world.read(&file, data.len() as u64, 10), b"", "{parts:?}");
        }
        assert_eq!(world.count("refused"), 0);
    }
}

#[test]
fn zero_blocks_cost_no_request_and_no_room() {
    let world = World::new();
    let data = mixed(400, 0, 7);
    world.put("file", &data, Parts { zero: true, ..Parts::default() });
    let file = world.find("file");
    assert!(world.read(&file, 0, 1) == data[..1], "the metadata is here");
    let before = world.far.read_bytes.load(Ordering::SeqCst);
    let zero_bytes = world.count("zero_bytes");
    for (i, block) in data.chunks(BLOCK).enumerate().filter(|(_, b)| b[0] == 0) {
        assert!(world.read(&file, (i * BLOCK) as u64, BLOCK as u32) == block);
    }
    assert_eq!(world.far.read_bytes.load(Ordering::SeqCst), before);
    let zeros = data.chunks(BLOCK).filter(|block| block[0] == 0).count() * BLOCK;
    assert_eq!(world.count("zero_bytes") - zero_bytes, zeros as u64);

    let mut all = Vec::new();
    while all.len() < data.len() {
        all.extend(world.read(&file, all.len() as u64, 131_072));
    }
    assert!(all == data);
    let came = world.far.read_bytes.load(Ordering::SeqCst);
    assert!(
        came <= (data.len() - zeros) as u64 + 65_536,
        "{came} bytes for {}",
        data.len() - zeros
    );
    let (stored, _) = world.disk.as_ref().expect("a cache").stored(&file);
    assert!(stored <= (data.len() - zeros) as u64, "{stored}");
}

#[test]
fn what_the_zero_map_answers_is_counted_for_each_file() {
    for cache in [true, false] {
        let world = World::with(cache, Default::default());
        let parts = Parts { zero: true, ..Parts::default() };
        // Two blocks of data, then zeros.
        let mut data = vec![0; 100 * BLOCK];
        data[..2 * BLOCK].fill(7);
        world.put("memory", &data, parts);
        world.put("disk", &data, parts);
        let no_map = Parts { hashes: true, ..Parts::default() };
        world.put("other", &data, no_map);
        let [memory, disk, other] = ["memory", "disk", "other"].map(|name| world.find(name));
        world.read(&memory, 0, 4 * BLOCK as u32);
        world.read(&memory, 50 * BLOCK as u64 + 1, 100);
        world.read(&disk, 0, BLOCK as u32);
        world.read(&other, 0, 9 * BLOCK as u32);
        let block = BLOCK as u64;
        let read = |path: &str, guided_bytes, zero_bytes| ReadOf {
            path: path.into(),
            guided_bytes,
            zero_bytes,
        };
        let memory = read("memory", 4 * block + 100, 2 * block + 100);
        assert_eq!(world.layer.reads(9), [memory.clone(), read("disk", block, 0)]);
        assert_eq!(world.layer.reads(1), [memory]);
        assert_eq!(world.count("guided_bytes"), 5 * block + 100, "of files with a map");
        assert_eq!(world.count("zero_bytes"), 2 * block + 100);
    }
}

#[test]
fn holes_are_those_of_the_zero_map() {
    let world = World::new();
    let data = mixed(64, 300, 3);
    world.put("file", &data, Parts { zero: true, ..Parts::default() });
    let file = world.find("file");
    world.read(&file, 0, 1);
    let is_zero = |at: u64| data[at as usize / BLOCK * BLOCK] == 0;
    let seek =
        |at, whence| world.runtime.block_on(world.layer.seek(&world.caller, &file, at, whence));
    for at in (0..data.len() as u64).step_by(1000) {
        let end = data.len() as u64;
        let data_at = (at..end).find(|at| !is_zero(*at));
        let hole_at = (at..end).find(|at| is_zero(*at)).unwrap_or(end);
        assert_eq!(seek(at, SeekWhence::Data).ok(), data_at);
        assert_eq!(seek(at, SeekWhence::Hole).ok(), Some(hole_at));
    }
    let past = seek(data.len() as u64, SeekWhence::Data);
    assert_eq!(past, Err(Error::Status(Status::NXIO)));
}

#[test]
fn what_is_damaged_or_of_another_version_is_ignored() {
    let all = Parts { zero: true, hashes: true, whole: true, working_set: true };
    let data = mixed(100, 0, 9);
    let good = |world: &World| world.metadata("file", &data, all).encode();
    type Case<'a> = (&'a str, &'a dyn Fn(&World) -> Vec<u8>);
    let cases: [Case; 6] = [
        ("truncated", &|world| good(world)[..50].to_vec()),
        ("empty", &|_| Vec::new()),
        ("garbage", &|_| vec![0x5a; 5000]),
        ("flipped", &|world| {
            let mut bytes = good(world);
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            bytes
        }),
        ("of another size", &|world| {
            let other = mixed(101, 0, 9);
            std::fs::write(world.path("other"), &other).expect("written");
            world.metadata("other", &other, all).encode()
        }),
        ("of another time", &|world| {
            let mut metadata = Metadata::decode(&good(world)).expect("good");
            metadata.identity.mtime.seconds -= 1;
            metadata.encode()
        }),
    ];
    for (what, bytes) in cases {
        let world = World::new();
        std::fs::write(world.path("file"), &data).expect("written");
        world.put_metadata("file", &bytes(&world));
        let file = world.find("file");
        assert!(world.read(&file, 0, data.len() as u32) == data, "{what}");
        assert_eq!((world.count("refused"), world.count("loaded")), (1, 0), "{what}");
        assert_eq!(world.count("guided_bytes"), 0, "{what}");
    }
}

#[test]
fn a_map_that_lies_is_caught_by_hashes() {
    let world = World::new();
    let data = mixed(100, 0, 4);
    // The zeros of other data: as many, elsewhere.
    let mut other = data.clone();
    other.rotate_right(BLOCK);
    std::fs::write(world.path("file"), &data).expect("written");
    let parts = Parts { zero: true, hashes: true, ..Parts::default() };
    let (mut metadata, lying) =
        (world.metadata("file", &data, parts), world.metadata("file", &other, parts));
    metadata.zero = lying.zero;
    world.put_metadata("file", &metadata.encode());
    let file = world.find("file");
    let first = data.chunks(BLOCK).position(|block| block[0] != 0).expect("data");
    let at = (first + 1) * BLOCK;
    world.read(&file, at as u64, BLOCK as u32);
    let refused = world.count("refused");
    assert_eq!(refused, 1);
    assert!(world.read(&file, 0, data.len() as u32) == data, "and is not believed any more");
}

#[test]
fn a_written_file_is_as_it_was_written() {
    for parts in every_combination() {
        let world = World::new();
        let mut data = mixed(100, 50, 5);
        world.put("file", &data, parts);
        let file = world.find("file");
        assert!(world.read(&file, 0, 300_000) == data[..300_000]);
        let text: Vec<u8> = (0..20_000).map(|i| i as u8).collect();
        for at in [5u64, 400_000] {
            let write = world.layer.write(
                &world.caller,
                &file,
                at,
                text.clone().into(),
                Stability::Unstable,
            );
            world.runtime.block_on(write).expect("written");
            data[at as usize..at as usize + text.len()].copy_from_slice(&text);
            assert!(world.read(&file, 0, data.len() as u32) == data, "{parts:?}");
        }
        let cut = SetAttr { size: Some(300_001), ..SetAttr::default() };
        let done = world.runtime.block_on(world.layer.setattr(&world.caller, &file, &cut, None));
        done.expect("cut");
        let grow = SetAttr { size: Some(500_000), ..SetAttr::default() };
        let done = world.runtime.block_on(world.layer.setattr(&world.caller, &file, &grow, None));
        done.expect("grown");
        data.truncate(300_001);
        data.resize(500_000, 0);
        assert!(world.read(&file, 0, 500_000) == data, "{parts:?}");
        world.runtime.block_on(world.layer.shutdown()).expect("sent");
        assert!(std::fs::read(world.path("file")).expect("read") == data, "{parts:?}");
    }
}

#[test]
fn a_file_that_others_change_is_as_they_left_it() {
    for parts in every_combination() {
        let world = World::new();
        let data = mixed(100, 0, 6);
        world.put("file", &data, parts);
        let file = world.find("file");
        world.read(&file, 0, 200_000);
        let other = mixed(100, 77, 8);
        std::fs::write(world.path("file"), &other).expect("written");
        // As an open does.
        world.runtime.block_on(world.layer.getattr(&world.caller, &file)).expect("asked");
        assert!(world.read(&file, 0, 1 << 20) == other, "{parts:?}");
        // And metadata of what it is now is used again.
        world.put_metadata("file", &world.metadata("file", &other, parts).encode());
    }
}
