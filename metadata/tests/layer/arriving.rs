//! How what is missing arrives: whole files, known content, working sets, and what goes wrong.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use gridvfs_metadata::format::{Action, Metadata};
use gridvfs_vfs::Vfs;

use super::world::{BLOCK, Parts, World, mixed};

const WHOLE: Parts = Parts { zero: true, hashes: false, whole: true, working_set: false };

fn zeros(data: &[u8]) -> usize {
    data.chunks(BLOCK).filter(|block| block.iter().all(|byte| *byte == 0)).map(<[u8]>::len).sum()
}

fn local_file(world: &World, name: &str) -> Option<std::path::PathBuf> {
    world.disk.as_ref().expect("a cache").local_path(&world.find(name))
}

#[test]
fn an_action_brings_the_whole_file() {
    for plain in [false, true] {
        let mut world = World::new();
        let data = mixed(700, 123, 2);
        world.put("file", &data, WHOLE);
        world.far.plain.store(plain, Ordering::SeqCst);
        let file = world.find("file");
        assert!(world.read(&file, 5, 10) == data[5..15]);
        world.until("it is here as a whole", || local_file(&world, "file").is_some());
        let local = local_file(&world, "file").expect("whole");
        assert!(std::fs::read(local).expect("read") == data);
        let came = world.far.read_bytes.load(Ordering::SeqCst) as usize;
        assert!(came <= data.len() - zeros(&data) + 200_000, "{came}: zeros are left out");
        assert_eq!(world.count("whole_files"), 1);

        // The next session has it without asking.
        world.again();
        let file = world.find("file");
        assert!(world.read(&file, 0, data.len() as u32) == data);
        let came = world.far.read_bytes.load(Ordering::SeqCst) as usize;
        assert!(came < 100_000, "{came}: only the metadata, if anything");
    }
}

#[test]
fn a_read_does_not_wait_for_the_whole_file() {
    let world = World::new();
    let data = mixed(4000, 0, 3);
    world.put("file", &data, WHOLE);
    // Each call takes a while, so that the whole takes long.
    world.far.delay_ms.store(100, Ordering::SeqCst);
    let file = world.find("file");
    let last = data.len() as u64 - 4096;
    assert!(world.read(&file, last, 4096) == data[last as usize..]);
    assert!(local_file(&world, "file").is_none(), "the rest is still on its way");
    world.until("it is here as a whole", || local_file(&world, "file").is_some());
    assert!(world.read(&file, 0, data.len() as u32) == data);
}

#[test]
fn a_file_that_changes_while_it_arrives_is_never_a_mix() {
    for hashes in [false, true] {
        let world = World::new();
        let data = mixed(2000, 0, 4);
        world.put("file", &data, Parts { hashes, ..WHOLE });
        world.far.delay_ms.store(20, Ordering::SeqCst);
        world.far.change_after.store(3, Ordering::SeqCst);
        let file = world.find("file");
        world.read(&file, 0, 4096);
        world.until("the change is noticed", || world.count("refused") == 1);
        world.far.delay_ms.store(0, Ordering::SeqCst);
        world.runtime.block_on(world.layer.getattr(&world.caller, &file)).expect("asked");
        let now = std::fs::read(world.path("file")).expect("read");
        assert!(now != data);
        assert!(world.read(&file, 0, now.len() as u32) == now);
        assert!(local_file(&world, "file").is_none());
    }
}

#[test]
fn content_that_is_here_under_another_name_is_not_fetched() {
    let mut world = World::new();
    let data = mixed(500, 0, 5);
    let parts = Parts { zero: true, hashes: true, ..Parts::default() };
    world.put("golden", &data, parts);
    let file = world.find("golden");
    assert!(world.read(&file, 0, data.len() as u32) == data);
    world.again();

    // The same blocks in another order, and a few new ones.
    let mut other: Vec<u8> = data.chunks(BLOCK).rev().flatten().copied().collect();
    for number in [3, 100, 333] {
        let block = &mut other[number * BLOCK..(number + 1) * BLOCK];
        block.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i * number) as u8 | 1);
    }
    world.put("other", &other, parts);
    let file = world.find("other");
    let before = world.far.read_bytes.load(Ordering::SeqCst);
    assert!(world.read(&file, 0, other.len() as u32) == other);
    let came = world.far.read_bytes.load(Ordering::SeqCst) - before;
    let metadata = std::fs::metadata(world.path(".other.gvfs-meta")).expect("there").len();
    assert!(came <= 3 * BLOCK as u64 + metadata, "{came} bytes for three new blocks");
    assert!(world.count("content_bytes") > 0);
}

#[test]
fn known_content_between_what_is_new_is_not_fetched() {
    let world = World::new();
    let data = mixed(500, 0, 13);
    let parts = Parts { zero: true, hashes: true, ..Parts::default() };
    world.put("golden", &data, parts);
    let file = world.find("golden");
    assert!(world.read(&file, 0, data.len() as u32) == data);

    let mut other = data.clone();
    let new: Vec<usize> = (0..500).step_by(3).collect();
    for number in &new {
        let block = &mut other[number * BLOCK..(number + 1) * BLOCK];
        block.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i * (number + 7)) as u8 | 1);
    }
    world.put("other", &other, parts);
    let file = world.find("other");
    let before = world.far.read_bytes.load(Ordering::SeqCst);
    assert!(world.read(&file, 0, other.len() as u32) == other);
    let came = world.far.read_bytes.load(Ordering::SeqCst) - before;
    let metadata = std::fs::metadata(world.path(".other.gvfs-meta")).expect("there").len();
    let wanted = (new.len() * BLOCK) as u64;
    assert!((wanted..=wanted + metadata).contains(&came), "{came} bytes for {wanted}");
}

#[test]
fn content_that_is_not_what_the_hashes_say_is_not_used() {
    let world = World::new();
    let data = mixed(300, 0, 6);
    world.put("file", &data, Parts { hashes: true, ..WHOLE });
    world.far.lies.store(true, Ordering::SeqCst);
    let file = world.find("file");
    assert!(world.read(&file, 0, data.len() as u32) == data, "it is read as any other");
    assert_eq!(world.count("refused"), 1);
}

#[test]
fn a_working_set_comes_first() {
    let world = World::new();
    let data = mixed(4000, 0, 7);
    world.put("file", &data, Parts { zero: true, working_set: true, ..Parts::default() });
    let file = world.find("file");
    let disk = world.disk.clone().expect("a cache");
    let middle = data.len() as u64 / 2 / 32768 * 32768;
    let is_here = || {
        let Some(version) = disk.version(&file) else { return false };
        (middle..middle + 65536).step_by(BLOCK).all(|at| {
            data[at as usize] == 0 || disk.gap(version.key, at, at + BLOCK as u64).is_none()
        })
    };
    // Looking it up is enough.
    world.until("the working set is here", is_here);
    assert!(world.far.read_bytes.load(Ordering::SeqCst) < 1 << 20, "and nothing else");
}

#[test]
fn what_was_touched_is_fetched_ahead_in_the_next_session() {
    let mut world = World::new();
    let data = mixed(4000, 0, 8);
    std::fs::write(world.path("file"), &data).expect("written");
    let file = world.find("file");
    let places = [3_000_000u64, 20_000_000, 1_000_000];
    for at in places {
        world.read(&file, at, 4096);
    }
    let shown = world.layer.profile();
    assert_eq!((shown.len(), shown[0].set.ranges.len()), (1, 3));
    world.again();
    world.disk.as_ref().expect("a cache").prune(u64::MAX);

    let file = world.find("file");
    world.read(&file, places[0], 10);
    world.until("the rest follows", || {
        let disk = world.disk.as_ref().expect("a cache");
        let Some(version) = disk.version(&file) else { return false };
        let key = version.key;
        places.iter().all(|at| disk.gap(key, *at, at + 4096).is_none())
    });
    // Recorded again, for the file's metadata on the server.
    let stopped = world.runtime.block_on(world.layer.stop_profile(&world.caller));
    assert_eq!(stopped.len(), 1);
    assert_eq!(stopped[0].error, None);
    let bytes = std::fs::read(world.path(".file.gvfs-meta")).expect("written");
    let metadata = Metadata::decode(&bytes).expect("good");
    let set = metadata.working_set.expect("a working set");
    assert_eq!((set.runs, set.ranges[0].offset), (1, 3_000_000 / 32768 * 32768));
}

#[test]
fn only_commands_that_the_user_allows_are_run() {
    let folder = tempfile::tempdir().expect("folder");
    let data = mixed(300, 9, 9);
    let near = folder.path().join("near");
    std::fs::write(&near, &data).expect("written");
    let ran = folder.path().join("ran");
    let script = format!("echo \"$GRIDVFS_PATH\" >> {}; cat {}", ran.display(), near.display());
    let short = format!("head -c 100000 {}", near.display());
    let long = format!("cat {0} {0}", near.display());
    let shell = |words: &str| vec!["sh".to_string(), "-c".into(), words.into()];
    let commands = BTreeMap::from([
        ("near".to_string(), shell(&script)),
        ("short".to_string(), shell(&short)),
        ("long".to_string(), shell(&long)),
        ("fails".to_string(), shell("exit 3")),
        ("missing".to_string(), vec!["/no/such/program".to_string()]),
    ]);
    for name in ["near", "short", "long", "fails", "missing", "forbidden"] {
        let world = World::with(true, commands.clone());
        std::fs::write(world.path("file"), &data).expect("written");
        let mut metadata = world.metadata("file", &data, Parts { hashes: true, ..WHOLE });
        metadata.actions = vec![Action::Command { name: name.into() }];
        world.put_metadata("file", &metadata.encode());
        let file = world.find("file");
        assert!(world.read(&file, 0, data.len() as u32) == data, "{name}");
        assert_eq!(world.count("refused"), 0, "{name}");
        if name == "near" {
            world.until("the command has brought it", || local_file(&world, "file").is_some());
            assert_eq!(std::fs::read_to_string(&ran).expect("ran"), "file\n");
        }
        assert!(world.read(&file, 0, data.len() as u32) == data, "{name}");
    }
}

#[test]
fn a_command_that_brings_something_else_is_not_believed() {
    let folder = tempfile::tempdir().expect("folder");
    let data = mixed(300, 0, 10);
    let near = folder.path().join("near");
    std::fs::write(&near, mixed(300, 0, 11)).expect("written");
    let command = vec!["cat".to_string(), near.display().to_string()];
    let world = World::with(true, BTreeMap::from([("near".to_string(), command)]));
    std::fs::write(world.path("file"), &data).expect("written");
    let mut metadata = world.metadata("file", &data, Parts { hashes: true, ..WHOLE });
    metadata.actions = vec![Action::Command { name: "near".into() }];
    world.put_metadata("file", &metadata.encode());
    let file = world.find("file");
    world.until("it is found out", || {
        world.read(&file, 0, 100_000);
        world.count("refused") == 1
    });
    assert!(world.read(&file, 0, data.len() as u32) == data);
    assert!(local_file(&world, "file").is_none());
}

#[test]
fn a_file_larger_than_the_file_cache_is_read_on_demand() {
    let world = World::new();
    // The file cache has half of 256 MiB.
    let size = 300u64 << 20;
    let file = std::fs::File::create(world.path("file")).expect("made");
    file.set_len(size).expect("grown");
    let text = mixed(20, 0, 12);
    std::os::unix::fs::FileExt::write_all_at(&file, &text, 200 << 20).expect("written");
    let mut metadata = world.metadata("file", &[], Parts::default());
    metadata.identity.size = size;
    let compression = gridvfs_metadata::format::Compression::Zstd;
    metadata.actions = vec![Action::Fetch { compression, level: 1 }];
    world.put_metadata("file", &metadata.encode());
    let found = world.find("file");
    assert!(world.read(&found, 200 << 20, text.len() as u32) == text);
    let files = std::fs::read_dir(world.folder.path().join("cache/files"));
    assert_eq!(files.map_or(0, Iterator::count), 0);
}
