//! Several sessions of one machine on one golden state: one read-only cache for all, and a redo log
//! for each.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Rig, Way, gridvfs, installed, run, shell, skipped};

const SESSIONS: usize = 3;
const GOLDEN_BYTES: u64 = 12 << 20;

fn status(rig: &Rig, mountpoint: &Path) -> serde_json::Value {
    let mut command = rig.command(gridvfs());
    let output = run(command.arg("status").arg(mountpoint).arg("--json"));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn sessions_share_the_golden_cache_and_have_a_redo_log_each() {
    let test = "sessions_share_the_golden_cache_and_have_a_redo_log_each";
    if !installed("qemu-img") || !installed("qemu-io") {
        return skipped(test, "needs qemu-img and qemu-io");
    }
    let Some(mut rig) = Rig::new(test, Way::Ssh) else { return };
    shell(
        &rig.export,
        "for i in $(seq 12); do head -c 1048576 /dev/urandom; done >disk.raw; sha256sum disk.raw >../sum",
    );
    let cache = rig.folder.join("golden-cache");
    rig.set_options(&[&format!(
        "cache_dir={},cache_size=64M,cache_banks=4,cache_share,consistency=read-only-shared,metadata=off",
        cache.display()
    )]);
    rig.mount();
    let others: Vec<_> =
        (1..SESSIONS).map(|number| rig.folder.join(format!("m{number}"))).collect();
    for other in &others {
        std::fs::create_dir(other).expect("mount point");
        run(&mut rig.mount_also(other, &[]));
    }
    let points: Vec<_> = std::iter::once(&rig.mountpoint).chain(&others).collect();
    // Each its own clone: a redo log over the golden disk, as the first reads all of it.
    for (number, point) in points.iter().enumerate() {
        let script = format!(
            "qemu-img create -q -f qcow2 -F raw -b '{0}/disk.raw' redo{1}.qcow2
             qemu-io -f qcow2 -c 'write -q -P {1} 1M 64k' -c 'read -q 0 12M' redo{1}.qcow2",
            point.display(),
            number + 1,
        );
        shell(&rig.folder, &script);
        if number == 0 {
            // What one session knows of a file the others hear of when it is written down: a second
            // later at most, and then as soon as the disk has time.
            std::thread::sleep(Duration::from_secs(4));
        }
    }
    let received: Vec<u64> = points
        .iter()
        .map(|point| status(&rig, point)["link"]["received_bytes"].as_u64().expect("bytes"))
        .collect();
    assert!(received[0] >= GOLDEN_BYTES - (64 << 10), "the first brings it: {received:?}");
    for bytes in &received[1..] {
        assert!(*bytes < GOLDEN_BYTES / 20, "the others find it here: {received:?}");
    }
    // Each sees what it wrote, and the golden disk below.
    for number in 1..=SESSIONS {
        let script = format!(
            "qemu-io -f qcow2 -c 'read -P {number} 1M 64k' redo{number}.qcow2 | grep -qv verification"
        );
        shell(&rig.folder, &script);
    }
    let golden = "cd export && sha256sum disk.raw | cmp - ../sum";
    shell(&rig.folder, golden);
    for other in &others {
        run(rig.command(gridvfs()).arg("umount").arg(other));
        let _ = Command::new("fusermount3").args(["-u", "-z", "-q"]).arg(other).output();
    }
    rig.umount();
}
