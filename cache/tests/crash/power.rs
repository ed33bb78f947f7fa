//! Power loss: the cache's directory is on an ext4 of its own, which is made to lose what was not
//! synced (EXT4_IOC_SHUTDOWN) while a program writes; then it is mounted again, its journal is
//! replayed, and the cache is opened as after a restart of the machine.
//!
//! GRIDVFS_CRASH_LOSSES=N: N power losses instead of 16. GRIDVFS_CRASH_SEED=N: this one only.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gridvfs_cache::disk::{Consistency, Policy, Settings};

use super::program::Dice;
use super::world::*;

const BLOCK: usize = 4096;
const BLOCKS: u64 = 160;
const FILES: u64 = 2;

/// A small disk for a cache.
pub struct Disk {
    folder: tempfile::TempDir,
    pub path: PathBuf,
    mounted: bool,
}

impl Disk {
    /// `None`, and a word about it, where that cannot be.
    pub fn new(test: &str, bytes: u64) -> Option<Self> {
        let skipped = |reason: &str| println!("SKIPPED: {test}: {reason}");
        if !nix::unistd::geteuid().is_root() {
            skipped("needs root (mounts a disk image)");
            return None;
        }
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("mnt");
        std::fs::create_dir(&path).expect("made");
        let image = File::create(folder.path().join("image")).expect("made");
        image.set_len(bytes).expect("made");
        let path_env = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let mut format = Command::new("mkfs.ext4");
        format.env("PATH", path_env).args(["-q", "-m", "0"]).arg(folder.path().join("image"));
        if !format.status().is_ok_and(|status| status.success()) {
            skipped("needs mkfs.ext4");
            return None;
        }
        let mut disk = Self { folder, path, mounted: false };
        if !disk.mount() {
            skipped("cannot mount a disk image (loop device)");
            return None;
        }
        Some(disk)
    }

    /// Nothing is written to it that nobody asks to have synced.
    pub fn mount(&mut self) -> bool {
        let mut command = Command::new("mount");
        command.args(["-o", "loop,commit=300"]).arg(self.folder.path().join("image"));
        self.mounted = command.arg(&self.path).status().is_ok_and(|status| status.success());
        self.mounted
    }

    pub fn umount(&mut self) {
        let mut command = Command::new("umount");
        assert!(command.arg(&self.path).status().expect("umount").success());
        self.mounted = false;
    }

    /// From now on nothing reaches the disk, and every use of it fails.
    pub fn cut_power(&self) {
        const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
        const WITHOUT_FLUSHING: u32 = 2;
        let root = File::open(&self.path).expect("opened");
        // SAFETY: the call reads a number.
        let done = unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN, &WITHOUT_FLUSHING) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    pub fn power_on(&mut self) {
        // As long as a process in another mount namespace has the disk, it stays as it is.
        for _ in 0..100 {
            self.umount();
            assert!(self.mount(), "the file system recovers");
            if std::fs::read_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the disk is still in use as it was before");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        }
    }
}

/// As after a restart of the machine.
pub fn machine_restarted(cache: &Path) {
    let origin = cache.join("origin");
    let Ok(text) = std::fs::read_to_string(&origin) else { return };
    let mut lines: Vec<_> = text.lines().collect();
    if lines.len() > 1 {
        lines[1] = "another-boot";
    }
    std::fs::write(&origin, lines.join("\n") + "\n").expect("written");
}

/// A block that says which write it is of.
fn block(version: u64) -> Vec<u8> {
    version.to_le_bytes().repeat(BLOCK / 8)
}

/// The MiB of that number of a file: quickly made.
pub fn mebibyte(number: u64) -> Vec<u8> {
    (0..256).map(|at| block(number << 8 | at)).collect::<Vec<_>>().concat()
}

/// Returns the version that a block is of; `None` if it is of none.
fn version_of(data: &[u8]) -> Option<u64> {
    let version = u64::from_le_bytes(data.get(..8)?.try_into().ok()?);
    (data == &block(version)[..data.len()]).then_some(version)
}

/// What was written to a block: the versions since the last fsync, that of the fsync first.
type Written = Vec<Vec<u64>>;

fn one(test: &str, seed: u64) -> bool {
    let Some(mut disk) = Disk::new(test, 160 << 20) else { return false };
    let mut dice = Dice::new(seed);
    let folder = World::folder();
    let export = folder.path().join("export");
    let delay = [5, 30, 3_600_000][dice.below(3) as usize];
    let settings = Settings {
        writeback_delay: Duration::from_millis(delay),
        ..settings(Policy::WriteBack, Consistency::Dedicated)
    };
    let cache = disk.path.join("cache");
    std::fs::create_dir(&cache).expect("made");
    let world = World::at(folder.path(), settings.clone());
    // Version 0 is what the server had.
    for file in 0..FILES {
        let name = format!("f{file}");
        std::fs::write(export.join(name), block(0).repeat(BLOCKS as usize)).expect("written");
    }
    let mut written: Vec<Written> = vec![vec![vec![0]; BLOCKS as usize]; FILES as usize];
    let mut version = 0;
    let mut read_some = true;
    for _round in 0..3 {
        let session = open(&export, &cache, settings.clone(), world.geometry);
        let files: Vec<_> =
            (0..FILES).map(|file| session.lookup(&format!("f{file}")).expect("there")).collect();
        let off = AtomicBool::new(false);
        let lasts = Duration::from_millis(30 + dice.below(400));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(lasts);
                // An fsync that ends from now on may have ended too late.
                off.store(true, Ordering::SeqCst);
                // Nor may a sync that seems to end meanwhile let anything more reach the server.
                session.far.unreachable.store(true, Ordering::SeqCst);
                disk.cut_power();
            });
            while !off.load(Ordering::SeqCst) {
                let file = dice.below(FILES) as usize;
                let at = dice.below(BLOCKS) as usize;
                match dice.below(12) {
                    0..6 => {
                        version += 1;
                        written[file][at].push(version);
                        let offset = (at * BLOCK) as u64;
                        if session.write(&files[file], offset, &block(version)).is_err() {
                            // It was taken by nobody: no fsync promises it.
                            written[file][at].pop();
                            written[file][at].insert(0, version);
                        }
                    }
                    6..8 => {
                        let before: Vec<_> = written[file].iter().map(Vec::len).collect();
                        let synced = session.fsync(&files[file]).is_ok();
                        if synced && !off.load(Ordering::SeqCst) {
                            let kept = written[file].iter_mut().zip(before);
                            kept.for_each(|(all, count)| drop(all.drain(..count - 1)));
                        }
                    }
                    8 if read_some => {
                        // Clean blocks enter the store.
                        let _ = session.read(&files[file], (at * BLOCK) as u64, 64 << 10);
                    }
                    9 => std::thread::sleep(Duration::from_millis(dice.below(30))),
                    _ => {}
                }
            }
        });
        session.kill();
        disk.power_on();
        machine_restarted(&cache);
        read_some = !read_some;

        let session = open(&export, &cache, settings.clone(), world.geometry);
        assert_eq!(session.cache.conflicts(), []);
        for (file, written) in written.iter_mut().enumerate() {
            let name = format!("f{file}");
            let handle = session.lookup(&name).expect("there");
            let read = |session: &Session| {
                session.read(&handle, 0, BLOCKS as usize * BLOCK).expect("read")
            };
            let first = read(&session);
            for (at, all) in written.iter().enumerate() {
                let data = &first[at * BLOCK..][..BLOCK];
                let found = version_of(data).unwrap_or_else(|| panic!("{name} {at}: no version"));
                let server = std::fs::read(export.join(&name)).expect("there");
                let there = version_of(&server[at * BLOCK..][..BLOCK]);
                assert!(
                    all.contains(&found),
                    "{name} block {at}: {found} is none of {all:?}; the server has {there:?}"
                );
            }
            session.wait(session.cache.write_back()).expect("written back");
            let server = std::fs::read(export.join(&name)).expect("there");
            assert!(read(&session) == server, "{name}: what is served is what the server has");
            assert!(first == server, "{name}: what was served has reached the server");
            for (at, all) in written.iter_mut().enumerate() {
                *all = vec![version_of(&server[at * BLOCK..][..BLOCK]).expect("a version")];
            }
        }
        assert_eq!(session.cache.conflicts(), []);
        // What is found damaged is what did not reach the disk; it has not been served.
        session.close().expect("ended");
        let session = open(&export, &cache, settings.clone(), world.geometry);
        assert_eq!(session.cache.verify(&mut |_, _| {}).bad_count, 0);
        session.close().expect("ended");
    }
    true
}

#[test]
fn what_fsync_acknowledged_survives_a_power_loss() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let losses = number("GRIDVFS_CRASH_LOSSES").unwrap_or(16);
    let seeds = match number("GRIDVFS_CRASH_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..1 + losses.div_ceil(3),
    };
    for seed in seeds {
        println!("GRIDVFS_CRASH_SEED={seed}");
        if !one("what_fsync_acknowledged_survives_a_power_loss", seed) {
            return;
        }
    }
}

#[test]
fn a_disk_that_fails_in_the_middle_is_an_error_and_no_loss() {
    let test = "a_disk_that_fails_in_the_middle_is_an_error_and_no_loss";
    let Some(mut disk) = Disk::new(test, 128 << 20) else { return };
    let folder = World::folder();
    let export = folder.path().join("export");
    let cache = disk.path.join("cache");
    std::fs::create_dir(&cache).expect("made");
    let mut settings = settings(Policy::WriteBack, Consistency::Dedicated);
    settings.writeback_delay = Duration::from_secs(3600);
    let geometry = World::at(folder.path(), settings.clone()).geometry;
    let clean = pattern(1, 100_000);
    std::fs::write(export.join("clean"), &clean).expect("written");
    let session = open(&export, &cache, settings.clone(), geometry);
    let file = session.create("a");
    session.write(&file, 0, &pattern(2, 50_000)).expect("written");
    session.fsync(&file).expect("synced");
    disk.cut_power();
    assert!(session.write(&file, 50_000, &[1; 5000]).is_err(), "the writer is told");
    assert!(session.fsync(&file).is_err(), "so is who wants it to be durable");
    let other = session.lookup("clean").expect("the server is still there");
    assert!(session.read(&other, 0, 100_000).expect("read") == clean);
    session.kill();
    disk.power_on();
    machine_restarted(&cache);
    let session = open(&export, &cache, settings, geometry);
    let file = session.lookup("a").expect("there");
    assert!(session.read(&file, 0, 60_000).expect("read") == pattern(2, 50_000));
    session.close().expect("ended");
    assert!(std::fs::read(export.join("a")).expect("there") == pattern(2, 50_000));
}

#[test]
fn on_a_full_disk_clean_blocks_go_first_and_writers_wait() {
    let Some(disk) = Disk::new("on_a_full_disk_clean_blocks_go_first_and_writers_wait", 192 << 20)
    else {
        return;
    };
    let folder = World::folder();
    let export = folder.path().join("export");
    let cache = disk.path.join("cache");
    std::fs::create_dir(&cache).expect("made");
    let mut settings = settings(Policy::WriteBack, Consistency::Dedicated);
    settings.writeback_delay = Duration::from_secs(3600);
    let geometry = gridvfs_cache::store::Geometry {
        size_bytes: 128 << 20,
        ..World::at(folder.path(), settings.clone()).geometry
    };
    let clean = pattern(1, 1 << 20);
    std::fs::write(export.join("clean"), clean.repeat(110)).expect("written");
    let session = open(&export, &cache, settings, geometry);
    let big = session.lookup("clean").expect("there");
    session.read(&big, 0, 110 << 20).expect("read");
    let stored = session.cache.stored(&big).0;
    assert!(stored > 60 << 20, "{stored} bytes are stored");
    // More than there is room for beside the clean blocks.
    let file = session.create("a");
    for number in 0..120 {
        session.write(&file, number << 20, &mebibyte(number)).expect("clean blocks make room");
    }
    assert!(session.cache.stored(&big).0 < stored, "clean blocks went");
    // More than there is room for at all: writers wait while it is sent.
    for number in 120..260 {
        session.write(&file, number << 20, &mebibyte(number)).expect("what was sent makes room");
    }
    // The server takes nothing: then there is no more room, and it is said.
    session.far.refuse.store(gridvfs_vfs::Status::NOSPC.0, Ordering::SeqCst);
    let mut number = 260;
    let error = loop {
        match session.write(&file, number << 20, &mebibyte(number)) {
            Ok(()) => number += 1,
            Err(error) => break error,
        }
        assert!(number < 600, "there must be an end");
    };
    assert_eq!(error.status(), gridvfs_vfs::Status::NOSPC);
    session.far.refuse.store(0, Ordering::SeqCst);
    // An answer from before may still be under way.
    eventually("written back", || session.wait(session.cache.write_back()).is_ok());
    session.write(&file, number << 20, &mebibyte(number)).expect("there is room again");
    session.close().expect("ended");
    let server = std::fs::read(export.join("a")).expect("there");
    assert_eq!(server.len() as u64, (number + 1) << 20);
    for (at, data) in server.chunks(1 << 20).enumerate() {
        assert!(data == mebibyte(at as u64), "MiB {at} is another");
    }
}
