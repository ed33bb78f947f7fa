//! What is told of odd names, and of a cache that is not what it was.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::common::{Rig, Way};
use super::*;

/// Another file on the server than the mount knows, whatever the clock's steps.
fn change_on_server(path: &Path, data: &[u8]) {
    std::fs::write(path, data).expect("write");
    let later = std::time::SystemTime::now() + Duration::from_secs(100);
    std::fs::File::options().write(true).open(path).and_then(|f| f.set_modified(later)).expect("t");
}

#[test]
fn conflicts_of_files_whose_names_are_no_text_are_named_and_resolved() {
    let test = "conflicts_of_files_whose_names_are_no_text_are_named_and_resolved";
    let Some(rig) = Rig::mounted_with(test, Way::Local, &[LAZY]) else { return };
    let names = [&b"dir\xfe/mine\xff"[..], b"dir\xfe/both\xff\n", b"dir\xfe/gone\xff"];
    let [mine, both, gone] = names.map(OsStr::from_bytes);
    std::fs::create_dir(rig.mountpoint.join(OsStr::from_bytes(b"dir\xfe"))).expect("folder");
    for name in [mine, both, gone] {
        std::fs::write(rig.mountpoint.join(name), b"at first").expect("write");
    }
    run(&mut verb(&rig, &["writeback", "@"]));
    for name in [mine, both, gone] {
        let file = std::fs::File::options().write(true).open(rig.mountpoint.join(name));
        file.expect("open").write_all_at(b"ours....", 0).expect("write");
        change_on_server(&rig.export.join(name), b"theirs..");
    }
    std::fs::remove_file(rig.export.join(gone)).expect("remove there");
    refused(&mut verb(&rig, &["writeback", "@"]));
    let listed = run(&mut verb(&rig, &["conflicts", "@"])).stdout;
    let listed = String::from_utf8(listed).expect("text");
    says(&listed, &[r"dir\xfe/mine\xff: changed", r"dir\xfe/both\xff\n: changed"]);
    says(&listed, &[r"dir\xfe/gone\xff: removed"]);

    // By its bytes, and as it is listed.
    run(verb(&rig, &["conflicts", "@"]).arg(mine).arg("keep-mine"));
    let saved = ask(&rig, &["conflicts", "@", r"dir\xfe/both\xff\n", "save-mine"]);
    let saved: Vec<u8> = serde_json::from_value(saved["saved"].clone()).expect("bytes");
    assert!(saved.starts_with(b"dir\xfe/both\xff\n.conflict-"), "{saved:?}");
    let output = run(&mut verb(&rig, &["conflicts", "@", r"dir\xfe/gone\xff", "keep-mine"]));
    says(&String::from_utf8_lossy(&output.stdout), &[r"is saved as dir\xfe/gone\xff"]);
    run(&mut verb(&rig, &["writeback", "@"]));
    let server = |name: &OsStr| std::fs::read(rig.export.join(name)).expect("there");
    for (name, data) in [(mine, b"ours...."), (both, b"theirs.."), (gone, b"ours....")] {
        assert_eq!(server(name), data, "{name:?}");
        assert_eq!(std::fs::read(rig.mountpoint.join(name)).expect("read"), data, "{name:?}");
    }
    assert_eq!(server(OsStr::from_bytes(&saved)), b"ours....");
    assert_eq!(ask(&rig, &["conflicts", "@"]).as_array().map(Vec::len), Some(0));
}

#[test]
fn a_cache_made_anew_for_another_size_says_so() {
    let test = "a_cache_made_anew_for_another_size_says_so";
    let Some(mut rig) = Rig::new(test, Way::Local) else { return };
    std::fs::write(rig.export.join("file"), pattern(1, 1 << 20)).expect("write there");
    let mount = |rig: &mut Rig, options: &str| {
        let lazy = "cache=on,cache_banks=4,write_policy=write-back,writeback_delay=600";
        rig.set_options(&[&format!("{lazy},{options}")]);
        let output = run(&mut rig.mount_command());
        rig.is_mounted();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(mount(&mut rig, "cache_size=64M"), "");
    let used = |rig: &Rig| ask(rig, &["cache", "status", "@"])["used_bytes"].as_u64();
    assert!(std::fs::read(rig.mountpoint.join("file")).expect("read") == pattern(1, 1 << 20));
    assert_eq!(used(&rig), Some(1 << 20));
    std::fs::write(rig.mountpoint.join("unsent"), b"kept").expect("write");
    run(&mut verb(&rig, &["umount", "--preserve", "@"]));

    let said = mount(&mut rig, "cache_size=32M,at_end=preserve");
    says(&said, &["64.00 MiB", "made anew", "32.00 MiB", "4 B in 1 file of an earlier session"]);
    assert_eq!(said.lines().count(), 2, "{said}");
    assert_eq!(used(&rig), Some(0));
    assert_eq!(std::fs::read(rig.mountpoint.join("unsent")).expect("read"), b"kept");
    run(&mut verb(&rig, &["umount", "@"]));
    // Nothing more is said of it.
    let said = mount(&mut rig, "cache_size=32M");
    assert!(!said.contains("made anew"), "{said}");
    rig.umount();
    assert_eq!(std::fs::read(rig.export.join("unsent")).expect("there"), b"kept");
}
