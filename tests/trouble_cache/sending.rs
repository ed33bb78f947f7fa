//! The link and the state server while unsent data is being sent.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::common::{self, Link, Rig, Way, is_root, skipped};
use super::*;

const SIZE: usize = 64 << 20;
/// Of so much unsent data, more than usual for so small a cache, none is sent by itself.
const MUCH: &str = "dirty_max=256M";

/// Writes a file that stays here, made durable.
fn write_lazily(rig: &Rig, name: &str, seed: u64, size: usize) {
    let path = rig.mountpoint.join(name);
    std::fs::write(&path, pattern(seed, size)).expect("write");
    std::fs::File::open(&path).and_then(|file| file.sync_all()).expect("fsync");
    let there = std::fs::metadata(rig.export.join(name)).expect("made at once").len();
    assert_eq!(there, 0, "it stays here");
}

/// `gridvfs writeback`, which has begun to send.
fn sending(rig: &Rig) -> Child {
    let sent = || rig.status()["link"]["sent_bytes"].as_u64().expect("a number");
    let before = sent();
    let mut command = verb(rig, &["writeback", "@"]);
    let child = command.stderr(Stdio::piped()).spawn().expect("writeback");
    wait_for("it is being sent", || sent() > before + (1 << 20));
    child
}

fn ends_well(child: Child) {
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_link_cut_during_write_back_delays_it() {
    let test = "a_link_cut_during_write_back_delays_it";
    let options = format!("{LAZY},{MUCH},consistency=dedicated");
    let rig = Rig::mounted_over(test, Way::Ssh, Link::up(test), &[&options]);
    let Some(mut rig) = rig else { return };
    let data = pattern(1, SIZE);
    write_lazily(&rig, "file", 1, SIZE);
    let mut child = sending(&rig);
    rig.link("cut");
    // All of it cannot have arrived: the link needs half a second for it.
    assert!(child.try_wait().expect("wait").is_none(), "it waits");
    assert!(unsent_bytes(&rig) > 0);
    // Work goes on here.
    assert!(std::fs::read(rig.mountpoint.join("file")).expect("read") == data);
    let file = std::fs::File::options().write(true).open(rig.mountpoint.join("file"));
    let file = file.expect("open");
    std::os::unix::fs::FileExt::write_all_at(&file, b"meanwhile", 10 << 20).expect("write");
    file.sync_all().expect("fsync");
    assert!(child.try_wait().expect("wait").is_none(), "it still waits");
    rig.link("restore");
    ends_well(child);
    drop(file);
    assert_eq!(rig.status()["cache"]["unsent_conflicts"], 0);
    rig.umount();
    let mut data = data;
    data[10 << 20..][..9].copy_from_slice(b"meanwhile");
    assert!(std::fs::read(rig.export.join("file")).expect("there") == data);
}

#[test]
fn a_server_restarted_during_write_back_is_sent_all_of_it() {
    let test = "a_server_restarted_during_write_back_is_sent_all_of_it";
    let Some(mut rig) = Rig::mounted_with(test, Way::Nfs, &[LAZY, MUCH]) else { return };
    // Now and then all of it is there before the server has been killed.
    let mut in_the_middle = 0;
    for attempt in 0..10 {
        let name = format!("file-{attempt}");
        write_lazily(&rig, &name, attempt, SIZE);
        let child = sending(&rig);
        rig.ganesha("kill");
        in_the_middle += u32::from(unsent_bytes(&rig) > 0);
        rig.ganesha("start");
        ends_well(child);
        assert_eq!(unsent_bytes(&rig), 0);
        assert_eq!(rig.status()["cache"]["unsent_conflicts"], 0);
        assert!(std::fs::read(rig.export.join(&name)).expect("there") == pattern(attempt, SIZE));
        if in_the_middle == 2 {
            break;
        }
    }
    assert!(in_the_middle > 0, "the server was never killed in the middle");
    rig.umount();
}

/// A small file system in the place of the export.
struct Small(PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_server_that_is_full_during_write_back_gets_the_data_later() {
    const SIZE: usize = 12 << 20;
    let test = "a_server_that_is_full_during_write_back_gets_the_data_later";
    if !is_root() {
        return skipped(test, "needs root (mounts a small tmpfs)");
    }
    for way in [Way::Local, Way::Ssh] {
        let Some(mut rig) = Rig::new(test, way) else { continue };
        common::shell(&rig.folder, "mount -t tmpfs -o size=24m none export");
        let _small = Small(rig.export.clone());
        // There is room for half of what comes.
        std::fs::write(rig.export.join("ballast"), vec![1; 18 << 20]).expect("fits");
        rig.set_options(&[LAZY]);
        rig.mount();
        write_lazily(&rig, "file", 3, SIZE);
        says(&refused(&mut verb(&rig, &["writeback", "@"])), &["No space left"]);
        let status = ask(&rig, &["cache", "status", "@"]);
        assert_eq!(status["unsent"][0]["path"], "file", "{status}");
        says(&status["unsent"][0]["error"].to_string(), &["o space"]);
        assert_eq!(rig.status()["cache"]["unsent_conflicts"], 0);
        // All of it is still here.
        assert!(std::fs::read(rig.mountpoint.join("file")).expect("read") == pattern(3, SIZE));
        says(&refused(&mut verb(&rig, &["umount", "@"])), &["still mounted"]);
        std::fs::remove_file(rig.export.join("ballast")).expect("remove there");
        run(&mut verb(&rig, &["writeback", "@"]));
        assert!(std::fs::read(rig.export.join("file")).expect("there") == pattern(3, SIZE));
        rig.umount();
    }
}
