//! A cache's directory that cannot be written to, or has no room.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::common::{Rig, Way, is_root, run, skipped};
use super::*;

/// What an ordinary user sees when a part of the cache cannot be written to: the mount is refused,
/// names the part and a way out, and what was unsent is sent when the part is writable again.
const UNWRITABLE: &str = r#"
gridvfs=$1
cd "$HOME"
mkdir export mnt
options="cache=on,cache_dir=$HOME/c,cache_size=64M,cache_banks=4"
options+=",write_policy=write-back,at_end=preserve"
mount() { "$gridvfs" mount ./export ./mnt -o "$options" >/dev/null; }
trap '"$gridvfs" umount ./mnt >/dev/null 2>&1 || true' EXIT
mount
echo unsent > mnt/file
"$gridvfs" umount ./mnt >/dev/null
for part in c/journal c/store c/store/banks c; do
    chmod 0500 $part
    if mount 2>said; then echo "$part: mounted"; else echo "$part: $(tr '\n' ' ' <said)"; fi
    chmod 0700 $part
done
[[ -z $(cat export/file) ]]
mount
"$gridvfs" writeback ./mnt >/dev/null
[[ $(cat export/file) == unsent ]]
"#;

/// The same under a running session: the writer is told, reading goes on, and what fsync had
/// acknowledged is sent.
const UNWRITABLE_MEANWHILE: &str = r#"
gridvfs=$1
cd "$HOME"
mkdir export mnt
options="cache=on,cache_dir=$HOME/c,cache_size=64M,cache_banks=4"
options+=",write_policy=write-back,writeback_delay=600,writeback_age=600"
trap '"$gridvfs" umount --preserve ./mnt >/dev/null 2>&1 || true' EXIT
"$gridvfs" mount ./export ./mnt -o "$options"
head -c 1000000 /dev/urandom > before
dd if=before of=mnt/kept bs=64k conv=fsync status=none
chmod 0500 c/journal
# More than the journal's segment has room for.
if dd if=/dev/zero of=mnt/more bs=1M count=48 conv=fsync status=none 2>said; then
    echo "written"
else
    cat said
fi
cmp before mnt/kept
chmod 0700 c/journal
dd if=before of=mnt/again bs=64k conv=fsync status=none
"$gridvfs" writeback ./mnt >/dev/null
cmp before export/kept
cmp before export/again
"$gridvfs" umount ./mnt >/dev/null
"#;

fn as_user(test: &str, script: &str) -> Option<String> {
    let rig = Rig::new(test, Way::Local)?;
    let support = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/as-user.sh");
    let mut command = Command::new(support);
    command.arg(rig.folder.join("home")).args(["--", "bash", "-euo", "pipefail", "-c"]);
    command.args([script, "as-user", gridvfs()]);
    if !is_root() {
        std::fs::create_dir(rig.folder.join("home")).expect("folder");
        command.env("HOME", rig.folder.join("home"));
    }
    Some(String::from_utf8_lossy(&run(&mut command).stdout).into_owned())
}

#[test]
fn an_unwritable_cache_is_explained_and_loses_nothing() {
    let test = "an_unwritable_cache_is_explained_and_loses_nothing";
    let Some(said) = as_user(test, UNWRITABLE) else { return };
    let of = |part: &str| said.lines().find(|line| line.starts_with(part)).expect("a line");
    for part in ["c/journal", "c/store", "c/store/banks", "c"] {
        let words = of(&format!("{part}: "));
        says(words, &[&format!("/{part}: "), "ermission denied", "-o cache_dir="]);
    }
}

#[test]
fn a_cache_that_becomes_unwritable_tells_the_writer() {
    let test = "a_cache_that_becomes_unwritable_tells_the_writer";
    let Some(said) = as_user(test, UNWRITABLE_MEANWHILE) else { return };
    says(&said, &["mnt/more", "rror"]);
}

/// A file system of 96 MiB for a cache.
struct Disk(PathBuf);

impl Disk {
    fn mounted(test: &str, rig: &Rig) -> Option<Self> {
        if !is_root() {
            skipped(test, "needs root (mounts a small file system)");
            return None;
        }
        let made = common::shell(
            &rig.folder,
            "mkdir disk && truncate -s 96M disk.img && PATH=$PATH:/sbin mke2fs -q -t ext4 disk.img \
             && mount -o loop disk.img disk 2>&1 || echo no",
        );
        if made.contains("no") {
            skipped(test, "no loop device");
            return None;
        }
        Some(Self(rig.folder.join("disk")))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_full_cache_disk_makes_writers_wait() {
    const PIECES: u64 = 200;
    let test = "a_full_cache_disk_makes_writers_wait";
    let Some(mut rig) = Rig::new(test, Way::Ssh) else { return };
    let Some(disk) = Disk::mounted(test, &rig) else { return };
    let directory = format!("{LAZY},cache_dir={}", disk.0.join("c").display());
    rig.set_options(&[&directory]);
    rig.mount();
    // Twice as much as there is room for, and nothing is sent unless it must be.
    let file = std::fs::File::create(rig.mountpoint.join("file")).expect("create");
    for piece in 0..PIECES {
        file.write_all_at(&pattern(piece << 20, 1 << 20), piece << 20).expect("it waits for room");
    }
    file.sync_all().expect("fsync");
    drop(file);
    let status = ask(&rig, &["cache", "status", "@"]);
    assert!(status["disk_bytes"].as_u64() <= Some(96 << 20), "{status}");
    rig.umount();
    let there = std::fs::read(rig.export.join("file")).expect("there");
    assert!(there == pattern(0, (PIECES as usize) << 20));
}
