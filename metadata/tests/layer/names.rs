//! Metadata files are not listed, and follow their file.

use gridvfs_metadata::format::draft_name;
use gridvfs_vfs::{Error, Status, Vfs};

use super::world::{Parts, World, mixed};

fn listed(world: &World) -> Vec<String> {
    let (root, mut cookie, mut names) = (world.layer.root(), 0, Vec::new());
    let mut verifier = Default::default();
    loop {
        let page = world.layer.readdir(&world.caller, &root, cookie, verifier, 512, true);
        let page = world.runtime.block_on(page).expect("listed");
        verifier = page.verifier;
        for entry in page.entries {
            cookie = entry.cookie;
            names.push(String::from_utf8(entry.name.to_vec()).expect("text"));
        }
        if page.eof {
            names.retain(|name| name != "." && name != "..");
            names.sort();
            return names;
        }
    }
}

#[test]
fn metadata_files_are_found_by_name_but_not_listed() {
    let world = World::new();
    let data = mixed(40, 0, 1);
    for number in 0..40 {
        world.put(&format!("f{number:02}"), &data, Parts { zero: true, ..Parts::default() });
    }
    assert_eq!(listed(&world), (0..40).map(|n| format!("f{n:02}")).collect::<Vec<_>>());
    world.find(".f07.gvfs-meta");
    // Nor is one that is being written.
    let draft = String::from_utf8(draft_name(b".f07.gvfs-meta")).expect("text");
    std::fs::write(world.path(&draft), "half").expect("written");
    std::fs::write(world.path("g"), "").expect("written");
    world.runtime.block_on(world.layer.getattr(&world.caller, &world.layer.root())).expect("asked");
    assert!(listed(&world).contains(&"g".to_string()) && !listed(&world).contains(&draft));
    world.find(&draft);
}

#[test]
fn metadata_follows_its_file() {
    let world = World::new();
    let data = mixed(40, 0, 1);
    for name in ["a", "b"] {
        world.put(name, &data, Parts { zero: true, ..Parts::default() });
        let file = world.find(name);
        world.read(&file, 0, 10);
    }
    let (root, caller) = (world.layer.root(), &world.caller);
    let there = |name: &str| world.path(name).exists();
    let renamed = world.layer.rename(caller, &root, b"a", &root, b"c", false);
    world.runtime.block_on(renamed).expect("renamed");
    assert!(there(".c.gvfs-meta") && !there(".a.gvfs-meta"));
    let renamed = world.layer.rename(caller, &root, b"c", &root, b"b", false);
    world.runtime.block_on(renamed).expect("renamed");
    assert!(there(".b.gvfs-meta") && !there(".c.gvfs-meta"));
    world.runtime.block_on(world.layer.remove(caller, &root, b"b")).expect("removed");
    assert!(!there(".b.gvfs-meta"));
}

#[test]
fn a_directory_that_shows_nothing_is_empty() {
    let world = World::new();
    std::fs::create_dir(world.path("dir")).expect("made");
    std::fs::write(world.path("dir/.x.gvfs-meta"), "left").expect("written");
    std::fs::write(world.path("dir/y"), "there").expect("written");
    let (root, caller) = (world.layer.root(), &world.caller);
    let rmdir = || world.runtime.block_on(world.layer.rmdir(caller, &root, b"dir"));
    let full = rmdir();
    assert_eq!(full.map(drop), Err(Error::Status(Status::NOTEMPTY)));
    assert!(world.path("dir/.x.gvfs-meta").exists(), "and nothing was removed");
    std::fs::remove_file(world.path("dir/y")).expect("removed");
    rmdir().expect("removed");
    assert!(!world.path("dir").exists());
}
