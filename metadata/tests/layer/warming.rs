//! Files that are brought before anybody reads them.

use std::sync::atomic::{AtomicU64, Ordering};

use gridvfs_cache::FileKey;
use gridvfs_metadata::content::ContentIndex;
use gridvfs_metadata::layer::Held;
use gridvfs_vfs::FileHandle;

use super::world::{BLOCK, Parts, World, mixed};

const KNOWN: Parts = Parts { zero: true, hashes: true, whole: false, working_set: false };

fn zeros(data: &[u8]) -> u64 {
    let is_zero = |block: &&[u8]| block.iter().all(|byte| *byte == 0);
    data.chunks(BLOCK).filter(is_zero).map(|block| block.len() as u64).sum()
}

/// Warms a file; returns what it says to be here, and how much of the file came.
fn warm(world: &World, file: &FileHandle, size: u64) -> (Held, u64) {
    let before = world.far.read_bytes.load(Ordering::SeqCst);
    let told = AtomicU64::new(0);
    let tell = |bytes| {
        told.fetch_add(bytes, Ordering::SeqCst);
    };
    world.runtime.block_on(world.layer.warm(&world.caller, file, &tell)).expect("warmed");
    assert_eq!(told.load(Ordering::SeqCst), size, "all of it is told");
    let came = world.far.read_bytes.load(Ordering::SeqCst) - before;
    (world.layer.held(file, size), came)
}

#[test]
fn zeros_are_neither_asked_for_nor_stored() {
    for plain in [false, true] {
        let world = World::new();
        let data = mixed(700, 123, 31);
        let (size, zeros) = (data.len() as u64, zeros(&data));
        world.put("file", &data, KNOWN);
        world.far.plain.store(plain, Ordering::SeqCst);
        let file = world.find("file");
        let (held, came) = warm(&world, &file, size);
        assert_eq!(held, Held { bytes: size - zeros, zero_bytes: zeros });
        let metadata = std::fs::metadata(world.path(".file.gvfs-meta")).expect("there").len();
        assert!(came <= size - zeros + metadata, "{came} of {size} with {zeros} zeros");
        let (stored, _) = world.disk.as_ref().expect("a cache").stored(&file);
        assert!(stored <= size - zeros, "{stored}");
        let (again, came) = warm(&world, &file, size);
        assert_eq!((again, came), (held, 0), "it is here");
        let before = world.far.read_bytes.load(Ordering::SeqCst);
        assert!(world.read(&file, 0, size as u32) == data);
        assert_eq!(world.far.read_bytes.load(Ordering::SeqCst), before);
        assert_eq!(world.far.fetches.load(Ordering::SeqCst) == 0, plain, "bulk where it can be");
    }
}

#[test]
fn known_content_is_copied() {
    let mut world = World::new();
    let data = mixed(500, 0, 32);
    world.put("golden", &data, KNOWN);
    warm(&world, &world.find("golden"), data.len() as u64);
    world.again();
    // Whoever asks first has the lists of earlier sessions read.
    let index = ContentIndex::new(world.folder.path().join("cache").join("content"));
    let disk = world.disk.as_ref().expect("a cache");
    let block = data.chunks(BLOCK).find(|block| block[0] != 0).expect("data");
    let mut out = vec![0; BLOCK];
    assert!(index.find(disk, FileKey(0), blake3::hash(block).as_bytes(), &mut out));
    let mut other: Vec<u8> = data.chunks(BLOCK).rev().flatten().copied().collect();
    other[7 * BLOCK..8 * BLOCK].fill(7);
    world.put("other", &other, KNOWN);
    let file = world.find("other");
    let (held, came) = warm(&world, &file, other.len() as u64);
    assert_eq!(held.bytes + held.zero_bytes, other.len() as u64);
    let metadata = std::fs::metadata(world.path(".other.gvfs-meta")).expect("there").len();
    assert!(came <= BLOCK as u64 + metadata, "{came} bytes for one new block");
    assert!(world.read(&file, 0, other.len() as u32) == other);
}

#[test]
fn an_action_is_waited_for() {
    let world = World::new();
    let data = mixed(1500, 77, 33);
    world.put("file", &data, Parts { whole: true, ..KNOWN });
    world.far.delay_ms.store(10, Ordering::SeqCst);
    let file = world.find("file");
    let size = data.len() as u64;
    let (held, came) = warm(&world, &file, size);
    assert_eq!(held, Held { bytes: size - zeros(&data), zero_bytes: zeros(&data) });
    let metadata = std::fs::metadata(world.path(".file.gvfs-meta")).expect("there").len();
    assert!(came <= size - zeros(&data) + metadata, "{came}: nothing came twice");
    let local = world.disk.as_ref().expect("a cache").local_path(&file).expect("whole");
    assert!(std::fs::read(local).expect("read") == data);
}

#[test]
fn what_is_on_trial_is_no_longer_when_all_is_wanted() {
    let mut world = World::new();
    // More than is fetched on trial, all of it touched by an earlier session.
    let data = mixed(4000, 0, 34);
    std::fs::write(world.path("file"), &data).expect("written");
    let file = world.find("file");
    for at in (0..data.len() as u64).step_by(1 << 20) {
        world.read(&file, at, 1 << 20);
    }
    world.again();
    world.disk.as_ref().expect("a cache").prune(u64::MAX);
    let file = world.find("file");
    let (held, _) = warm(&world, &file, data.len() as u64);
    assert_eq!(held, Held { bytes: data.len() as u64, zero_bytes: 0 });
    assert!(world.read(&file, 0, data.len() as u32) == data);
}

#[test]
fn what_changes_meanwhile_is_here_as_it_is_now() {
    let world = World::new();
    let data = mixed(2000, 0, 35);
    world.put("file", &data, KNOWN);
    world.far.delay_ms.store(20, Ordering::SeqCst);
    world.far.change_after.store(3, Ordering::SeqCst);
    let file = world.find("file");
    world.runtime.block_on(world.layer.warm(&world.caller, &file, &|_| {})).expect("warmed");
    let now = std::fs::read(world.path("file")).expect("read");
    assert!(now != data);
    let held = world.layer.held(&file, now.len() as u64);
    assert_eq!(held, Held { bytes: now.len() as u64, zero_bytes: 0 });
    assert!(world.read(&file, 0, now.len() as u32) == now);
}
