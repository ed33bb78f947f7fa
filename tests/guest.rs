//! An unmodified QEMU boots a guest from the mount, and what the guest wrote is on the server.

mod common;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use common::policies::{self, Case, Policy};
use common::{Rig, Way, installed, run, skipped};

/// The golden VM, made once a test run and kept between runs.
fn golden() -> Option<&'static PathBuf> {
    static GOLDEN: OnceLock<Option<PathBuf>> = OnceLock::new();
    GOLDEN
        .get_or_init(|| {
            let project = Path::new(env!("CARGO_MANIFEST_DIR"));
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("golden");
            let mut build = std::process::Command::new(project.join("bench/guest/build.sh"));
            let output = build.arg(&folder).output().ok()?;
            if output.status.success() {
                return Some(folder);
            }
            println!("{}", String::from_utf8_lossy(&output.stderr));
            None
        })
        .as_ref()
}

fn boots_and_writes(case: Case, cache: &str, as_user: bool) {
    let test = format!("a_guest_boots_and_writes_its_disk ({cache})");
    if !installed("qemu-system-x86_64") {
        return skipped(&test, "needs qemu-system-x86_64");
    }
    let Some(golden) = golden() else {
        return skipped(&test, "the guest cannot be made here (no kernel package?)");
    };
    let rig = match as_user {
        true => Rig::mounted_as_user(&test, case),
        false => Rig::mounted_under(&test, case),
    };
    let Some(mut rig) = rig else { return };
    common::shell(golden, &format!("cp --sparse=always -r . {}/vm", rig.export.display()));
    if as_user {
        let owner = run(rig.command("id").arg("-un")).stdout;
        let owner = String::from_utf8_lossy(&owner);
        common::shell(&rig.export, &format!("chown -R {} .", owner.trim()));
    }
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut boot = rig.command(project.join("bench/guest/run.sh"));
    boot.arg(rig.mountpoint.join("vm")).args(["--cache", cache]).args(["--action", "poweroff"]);
    let output = run(&mut boot);
    println!("{case:?} {cache}: {}", String::from_utf8_lossy(&output.stdout));
    rig.write_back();
    // Through the mount and beside it: the same image.
    let there = rig.export.join("vm/disk.raw");
    let mut compare = std::process::Command::new("qemu-img");
    compare.args(["compare", "-f", "raw", "-F", "raw"]).arg(rig.mountpoint.join("vm/disk.raw"));
    if !as_user {
        run(compare.arg(&there));
    }
    rig.umount();
    // The guest's own marker is in the server's copy, and the file system in it is sound.
    let disk = there.display();
    let marks = common::shell(
        &rig.folder,
        &format!(
            "PATH=$PATH:/sbin e2fsck -fn {disk} > e2fsck.log && debugfs -R 'ls -p /var/log' {disk} 2>/dev/null"
        ),
    );
    assert!(marks.contains("boot-"), "{case:?} {cache}: the guest's write did not arrive: {marks}");
}

#[test]
fn a_guest_boots_and_writes_its_disk_writeback() {
    policies::each(&policies::ROTATED, |case| {
        boots_and_writes(case, "writeback", false);
    });
}

#[test]
fn a_guest_boots_and_writes_its_disk_o_direct() {
    for (way, policy) in [(Way::Ssh, Policy::Default), (Way::Forward, Policy::BackDedicated)] {
        boots_and_writes(Case { way, policy }, "none", false);
    }
}

#[test]
fn an_ordinary_user_boots_a_guest() {
    let case = Case { way: Way::Ssh, policy: Policy::BackShared };
    boots_and_writes(case, "writeback", true);
}

#[test]
fn a_suspended_guest_resumes_from_the_mount() {
    let test = "a_suspended_guest_resumes_from_the_mount";
    if !installed("qemu-system-x86_64") || !installed("python3") {
        return skipped(test, "needs qemu-system-x86_64 and python3");
    }
    let Some(golden) = golden() else {
        return skipped(test, "the guest cannot be made here (no kernel package?)");
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/suspend.py");
    for (way, policy) in [(Way::Ssh, Policy::BackDedicated), (Way::Forward, Policy::Default)] {
        let case = Case { way, policy };
        let Some(mut rig) = Rig::mounted_under(test, case) else { continue };
        for state in ["mapped", "shared", "exec"] {
            let copy = format!("cp --sparse=always -r . {}/{state}", rig.export.display());
            common::shell(golden, &copy);
            let mut suspend = rig.command("timeout");
            suspend.args(["200", "python3"]).arg(&script).arg(rig.mountpoint.join(state));
            let output = suspend.arg(state).output().expect("python3");
            if output.status.code() == Some(77) {
                skipped(&format!("{test} ({state})"), "this QEMU is too old for it");
                continue;
            }
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{case:?} {state}: {words}");
            println!("{case:?} {}", String::from_utf8_lossy(&output.stdout));
        }
        rig.umount();
        let check = "for state in mapped shared exec; do \
                     [ ! -e $state/overlay.qcow2 ] || qemu-img check -q $state/overlay.qcow2; done";
        common::shell(&rig.export, check);
    }
}
