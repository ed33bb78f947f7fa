//! Metadata files over real mounts: what they save, and that reads are the server's all the same.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Rig, WAYS, Way, gridvfs, run, shell};
use serde_json::Value;

/// A file like a guest's memory: pieces of programs, zeros that are there, holes, a ragged end.
fn memory(path: &Path) {
    let program = std::fs::read(gridvfs()).expect("this program");
    let mut data = vec![0; 24 << 20];
    for number in (0..24).step_by(3) {
        let from = (number * 700_001) % (program.len() - (1 << 20));
        let at = number << 20;
        data[at..at + 900_000].copy_from_slice(&program[from..from + 900_000]);
    }
    data.extend_from_slice(b"the end");
    std::fs::write(path, &data).expect("written");
    shell(path.parent().expect("a folder"), "fallocate -d memory");
}

fn meta(rig: &Rig, words: &[&str], file: &str) {
    let mut command = rig.command(gridvfs());
    run(command.arg("meta").args(words).arg(rig.export.join(file)));
}

fn counter(status: &Value, of: &str, name: &str) -> u64 {
    status[of][name].as_u64().unwrap_or_else(|| panic!("{of}.{name}: {status}"))
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..600 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("not within 60 s: {what}");
}

#[test]
fn zeros_stay_here_and_the_rest_comes_whole() {
    let test = "zeros_stay_here_and_the_rest_comes_whole";
    for way in WAYS {
        let Some(mut rig) = Rig::new(test, way) else { continue };
        memory(&rig.export.join("memory"));
        meta(&rig, &["build", "--zero", "--hash", "--action", "zstd"], "memory");
        rig.set_options(&["cache=on"]);
        rig.mount();
        rig.shell(&format!("cmp memory {}/memory", rig.export.display()));
        assert_eq!(rig.shell("ls -A"), "memory\n", "{way:?}: metadata is not listed");
        rig.shell("test -f .memory.gvfs-meta");
        let status = rig.status();
        assert_eq!(counter(&status, "metadata", "loaded"), 1, "{way:?}");
        let zeros = counter(&status, "metadata", "zero_bytes");
        assert!(zeros > 16 << 20, "{way:?}: {zeros} bytes of zeros");
        let of_file = &status["metadata"]["files"][0];
        assert_eq!((&of_file["path"], &of_file["zero_bytes"]), (&"memory".into(), &zeros.into()));
        let mut command = rig.command(gridvfs());
        let told = run(command.arg("status").arg(&rig.mountpoint));
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let line = told.lines().find(|line| line.contains(" memory ")).expect(&told);
        let blocks = format!("answered {} of ", zeros.div_ceil(8192));
        assert!(line.contains(&blocks) && line.contains(" blocks of 8 KiB read ("), "{line}");
        if way != Way::Local {
            let received = counter(&status, "link", "received_bytes");
            // Compressed where there is a proxy of ours; without one at most the data itself.
            let most = match way {
                Way::Ssh | Way::Forward => 6 << 20,
                _ => 8 << 20,
            };
            assert!(received < most, "{way:?}: {received} bytes came");
        }
        let whole = || counter(&rig.status(), "cache", "whole_files") == 1;
        until("the file is here as a whole", whole);

        // The next session has it, and holes are holes.
        rig.umount();
        rig.mount();
        let folder = rig.folder.display();
        rig.shell(&format!("cp --sparse=auto memory {folder}/copy"));
        shell(&rig.folder, "cmp copy export/memory; test $(du -k copy | cut -f1) -lt 9000");
        let status = rig.status();
        if way != Way::Local {
            let received = counter(&status, "link", "received_bytes");
            assert!(received < 500_000, "{way:?}: {received} bytes came again");
        }
        rig.umount();
    }
}

#[test]
fn a_file_that_changes_on_the_server_is_read_as_it_is() {
    let test = "a_file_that_changes_on_the_server_is_read_as_it_is";
    let Some(mut rig) = Rig::new(test, Way::Ssh) else { return };
    memory(&rig.export.join("memory"));
    meta(&rig, &["build"], "memory");
    rig.mount();
    rig.shell("head -c 5000000 memory >/dev/null");
    shell(&rig.export, "printf changed | dd of=memory bs=1 seek=2000000 conv=notrunc status=none");
    std::thread::sleep(Duration::from_millis(2100));
    rig.shell(&format!("cmp memory {}/memory", rig.export.display()));
    // Metadata of what it is now is used again by the next session; damaged metadata by none.
    meta(&rig, &["build"], "memory");
    rig.umount();
    rig.mount();
    rig.shell(&format!("cmp memory {}/memory", rig.export.display()));
    assert_eq!(counter(&rig.status(), "metadata", "loaded"), 1);
    rig.umount();
    shell(&rig.export, "printf x | dd of=.memory.gvfs-meta bs=1 seek=200 conv=notrunc status=none");
    rig.mount();
    rig.shell(&format!("cmp memory {}/memory", rig.export.display()));
    let status = rig.status();
    assert_eq!(counter(&status, "metadata", "loaded"), 0);
    assert_eq!(counter(&status, "metadata", "refused"), 1);
    rig.umount();
}

#[test]
fn a_file_that_is_written_through_the_mount_is_what_was_written() {
    let test = "a_file_that_is_written_through_the_mount_is_what_was_written";
    for options in [&["write_policy=write-back", "consistency=dedicated"][..], &[]] {
        let Some(mut rig) = Rig::new(test, Way::Ssh) else { return };
        memory(&rig.export.join("memory"));
        meta(&rig, &["build", "--zero", "--hash", "--action", "zstd"], "memory");
        shell(&rig.folder, "cp --sparse=always export/memory copy");
        rig.set_options(options);
        rig.mount();
        let script = "head -c 100000 $F >/dev/null
            seq 100000 | dd of=$F bs=1000 seek=9777 conv=notrunc status=none
            fallocate -p -o 3000000 -l 500000 $F
            truncate -s 23000000 $F; printf tail >>$F; truncate -s 25000000 $F";
        for file in [rig.mountpoint.join("memory"), rig.folder.join("copy")] {
            run(Command::new("bash").args(["-ec", script]).env("F", file));
        }
        rig.shell(&format!("cmp memory {}/copy", rig.folder.display()));
        rig.write_back();
        shell(&rig.folder, "cmp export/memory copy");
        rig.umount();
        rig.mount();
        rig.shell(&format!("cmp memory {}/copy", rig.folder.display()));
        rig.umount();
    }
}

#[test]
fn known_content_does_not_cross_the_link() {
    let Some(mut rig) = Rig::new("known_content_does_not_cross_the_link", Way::Ssh) else { return };
    memory(&rig.export.join("memory"));
    shell(
        &rig.export,
        "cp --sparse=always memory other
         head -c 8192 /dev/urandom | dd of=other bs=8192 seek=100 conv=notrunc status=none",
    );
    meta(&rig, &["build", "--zero", "--hash"], "memory");
    meta(&rig, &["build", "--zero", "--hash"], "other");
    rig.mount();
    rig.shell("cat memory >/dev/null");
    rig.umount();
    rig.mount();
    rig.shell(&format!("cmp other {}/other", rig.export.display()));
    let status = rig.status();
    assert!(counter(&status, "metadata", "content_bytes") > 6 << 20, "{status}");
    let received = counter(&status, "link", "received_bytes");
    assert!(received < 500_000, "{received} bytes came for 8192 new ones");
    rig.umount();
}

#[test]
fn a_file_is_warmed_without_its_zeros() {
    let test = "a_file_is_warmed_without_its_zeros";
    for (way, action) in [(Way::Ssh, "none"), (Way::Ssh, "zstd"), (Way::NoProxy, "zstd")] {
        let Some(mut rig) = Rig::new(test, way) else { continue };
        memory(&rig.export.join("memory"));
        meta(&rig, &["build", "--zero", "--hash", "--action", action], "memory");
        let mut command = rig.command(gridvfs());
        let shown = run(command.args(["meta", "show", "--json"]).arg(rig.export.join("memory")));
        let shown: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
        let zeros = shown["zero"]["zero_bytes"].as_u64().unwrap_or_else(|| panic!("{shown}"));
        rig.mount();
        let warm = |rig: &Rig, words: &[&str]| {
            let mut command = rig.command(gridvfs());
            let output = run(command.args(["cache", "warm"]).arg(&rig.mountpoint).args(words));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let told: Value = serde_json::from_str(&warm(&rig, &["/", "--json"])).expect("JSON");
        let size = std::fs::metadata(rig.export.join("memory")).expect("there").len();
        // The metadata file itself is not shown, and is no file that somebody warms.
        assert_eq!((&told["files"], &told["failed"]), (&1.into(), &0.into()), "{told}");
        assert_eq!(told["bytes"], size - zeros, "{way:?} {action}: {told}");
        assert_eq!(told["zero_bytes"], zeros, "{told}");
        assert!(warm(&rig, &["memory"]).contains("of zeros, which take no room"));
        let received = counter(&rig.status(), "link", "received_bytes");
        let most = if way == Way::Ssh { 6 << 20 } else { 9 << 20 };
        assert!(received < most, "{way:?} {action}: {received} bytes came");
        rig.shell(&format!("cmp memory {}/memory", rig.export.display()));
        let more = counter(&rig.status(), "link", "received_bytes") - received;
        assert!(more < 100_000, "{way:?} {action}: {more} bytes came after that");
        rig.umount();
    }
}

/// Reads 4 KiB of the mounted file past the kernel's cache, and compares.
fn touch(rig: &Rig, block: u64) {
    let at = format!("bs=4096 skip={block} count=1 status=none");
    let export = rig.export.display();
    rig.shell(&format!(
        "cmp <(dd if=vm/memory {at} iflag=direct) <(dd if={export}/vm/memory {at})"
    ));
}

fn profile(rig: &Rig, words: &[&str]) -> String {
    let mut command = rig.command(gridvfs());
    let output = run(command.arg("profile").args(words).arg(&rig.mountpoint));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_recording_becomes_the_working_set() {
    let test = "a_recording_becomes_the_working_set";
    for option in ["write_policy=write-through", "consistency=read-only-shared"] {
        let Some(mut rig) = Rig::new(test, Way::Ssh) else { return };
        shell(&rig.export, "mkdir vm");
        memory(&rig.export.join("vm/memory"));
        rig.set_options(&[option]);
        rig.mount();
        touch(&rig, 100);
        profile(&rig, &["start"]);
        [3100, 2400, 5400].iter().for_each(|block| touch(&rig, *block));
        let told: Value = serde_json::from_str(&profile(&rig, &["stop", "--json"])).expect("JSON");
        let file = &told["files"][0];
        assert_eq!((&file["path"], &file["runs"]), (&"vm/memory".into(), &1.into()), "{told}");
        let ranges = file["ranges"].as_array().expect("ranges").iter();
        let offsets: Vec<u64> = ranges.filter_map(|range| range["offset"].as_u64()).collect();
        let grain = 32 << 10;
        let expected = [3100, 2400, 5400].map(|block: u64| block * 4096 / grain * grain);
        assert_eq!(offsets, expected, "what was touched since the start, in order: {told}");
        let place = Path::new(told["profile"].as_str().expect("a place"));
        let kept = std::fs::read_to_string(place).expect("kept");
        let kept: Value = serde_json::from_str(&kept).expect("JSON");
        assert_eq!(kept["files"], told["files"], "what is printed is what is kept");
        let writable = option.starts_with("write");
        assert_eq!(file["error"].is_null(), writable, "{told}");
        if writable {
            rig.write_back();
            meta(&rig, &["build", "--zero"], "vm/memory");
        } else {
            let from = format!("--from-profile={}", place.display());
            meta(&rig, &["build", &from], "vm/memory");
        }
        let mut command = rig.command(gridvfs());
        let shown = run(command.args(["meta", "show", "--json"]).arg(rig.export.join("vm/memory")));
        let shown: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
        assert_eq!(shown["working_set"]["bytes"], file["bytes"], "{option}: {shown}");
        rig.umount();

        // Another machine: nothing is known here.
        let cold = format!("cache_dir={}/cold", rig.folder.display());
        rig.set_options(&[option, &cold]);
        rig.mount();
        touch(&rig, 3100);
        let bytes = file["bytes"].as_u64().expect("bytes");
        until("it is fetched ahead", || counter(&rig.status(), "metadata", "ahead_bytes") >= bytes);
        let held = || counter(&rig.status(), "cache", "filled_bytes") >= bytes;
        until("it is here", held);
        let before = counter(&rig.status(), "link", "received_bytes");
        [2400, 5400].iter().for_each(|block| touch(&rig, *block));
        let more = counter(&rig.status(), "link", "received_bytes") - before;
        assert!(more < 4096, "{option}: {more} bytes came though they were here");
        rig.shell(&format!("cmp vm/memory {}/vm/memory", rig.export.display()));
        rig.umount();
    }
}

#[test]
fn what_a_session_touched_is_fetched_ahead_in_the_next() {
    let test = "what_a_session_touched_is_fetched_ahead_in_the_next";
    for (option, remembers) in [
        ("consistency=read-only-shared", true),
        ("profile=on", true),
        ("consistency=read-only-shared,profile=off", false),
    ] {
        let Some(mut rig) = Rig::new(test, Way::Ssh) else { return };
        shell(&rig.export, "mkdir vm");
        memory(&rig.export.join("vm/memory"));
        rig.set_options(&[option]);
        rig.mount();
        [3100, 2400, 5400].iter().for_each(|block| touch(&rig, *block));
        let mut command = rig.command(gridvfs());
        run(command.args(["cache", "prune"]).arg(&rig.mountpoint).arg("1G"));
        let directory = rig.status()["cache"]["directory"].as_str().expect("one").to_string();
        rig.umount();
        let profiles = Path::new(&directory).join("profiles");
        let kept = std::fs::read_dir(profiles).map_or(0, |entries| entries.count());
        assert_eq!(kept, usize::from(remembers), "{option}");
        assert_eq!(std::fs::read_dir(rig.export.join("vm")).expect("listed").count(), 1);
        if remembers {
            rig.mount();
            rig.shell("stat vm/memory");
            let ahead = || counter(&rig.status(), "metadata", "ahead_bytes") > 0;
            until("it is fetched ahead", ahead);
            [3100, 2400, 5400].iter().for_each(|block| touch(&rig, *block));
            rig.umount();
        }
    }
}
