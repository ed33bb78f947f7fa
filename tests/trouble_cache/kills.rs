//! The mount process is killed at each named point while a program writes and calls fsync. What
//! fsync acknowledged is in the next mount, and then on the server; a removed file stays away.

use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use gridvfs_cache::crash::Point;

use super::common::{Rig, Way, skipped};
use super::*;

const BLOCK: usize = 4096;
/// Blocks of the file that is written to here and there.
const KEPT: usize = 64;
/// Blocks of the file that is cut again and again.
const CUT: usize = 16;
/// Blocks of the file that is overwritten until the journal has segments to delete: 4 MiB.
const BULK: usize = 1024;
/// Bytes of the file that is read through a cache of 1 MiB.
const READ: u64 = 8 << 20;
/// A process that nobody has killed by then is taken to have passed no such point.
const ROUNDS_MAX: u64 = 60;

/// A file of blocks, each of which says of which write it is; 0 is a block of zeros, or none.
struct Blocks {
    name: &'static str,
    /// What each block may be: of the last fsync, and of the writes since.
    versions: Vec<Vec<u64>>,
}

fn block(version: u64) -> Vec<u8> {
    version.to_le_bytes().repeat(BLOCK / 8)
}

impl Blocks {
    fn new(name: &'static str, count: usize) -> Self {
        Self { name, versions: vec![vec![0]; count] }
    }

    fn write(&mut self, file: &File, at: usize, count: usize, version: u64) -> Result<()> {
        self.versions[at..at + count].iter_mut().for_each(|all| all.push(version));
        file.write_all_at(&block(version).repeat(count), (at * BLOCK) as u64)
    }

    fn cut(&mut self, file: &File, count: usize) -> Result<()> {
        self.versions[count..].iter_mut().for_each(|all| all.push(0));
        file.set_len((count * BLOCK) as u64)
    }

    fn sync(&mut self, file: &File) -> Result<()> {
        file.sync_all()?;
        self.versions.iter_mut().for_each(|all| drop(all.drain(..all.len() - 1)));
        Ok(())
    }

    /// Checks a copy, which is the truth from now on.
    fn check(&mut self, folder: &Path, what: &str) {
        let mut data = std::fs::read(folder.join(self.name)).unwrap_or_default();
        assert!(data.len() <= self.versions.len() * BLOCK, "{what}: {} is too long", self.name);
        data.resize(self.versions.len() * BLOCK, 0);
        for (at, (all, data)) in self.versions.iter_mut().zip(data.chunks(BLOCK)).enumerate() {
            let found = u64::from_le_bytes(data[..8].try_into().expect("eight bytes"));
            assert!(data == block(found), "{what}: {} block {at} is a mixture", self.name);
            assert!(all.contains(&found), "{what}: {} block {at}: {found} of {all:?}", self.name);
            *all = vec![found];
        }
    }
}

/// The program, and what it knows.
struct Program {
    kept: Blocks,
    cut: Blocks,
    bulk: Blocks,
    /// Names that were removed, and are to stay away.
    removed: Vec<String>,
    version: u64,
}

impl Program {
    fn new() -> Self {
        let (kept, cut) = (Blocks::new("kept", KEPT), Blocks::new("cut", CUT));
        let bulk = Blocks::new("bulk", BULK);
        Self { kept, cut, bulk, removed: Vec::new(), version: 0 }
    }

    fn next(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// Works in the mount until an error tells that the process is gone.
    fn work(&mut self, folder: &Path, in_bulk: bool) -> Option<Error> {
        (0..ROUNDS_MAX).find_map(|round| self.round(folder, round, in_bulk).err())
    }

    fn round(&mut self, folder: &Path, round: u64, in_bulk: bool) -> Result<()> {
        let open = |name: &str| {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(folder.join(name))
        };
        let file = open(self.kept.name)?;
        for step in 0..4 {
            let (version, at) = (self.next(), (round * 13 + step * 29) as usize % (KEPT - 2));
            self.kept.write(&file, at, 2, version)?;
        }
        self.kept.sync(&file)?;
        drop(file);
        if in_bulk {
            let (file, version) = (open(self.bulk.name)?, self.next());
            self.bulk.write(&file, 0, BULK, version)?;
            self.bulk.sync(&file)?;
        }
        self.read(folder, round)?;

        let (file, version) = (open(self.cut.name)?, self.next());
        self.cut.write(&file, 0, CUT, version)?;
        self.cut.sync(&file)?;
        let version = self.next();
        self.cut.write(&file, 3, CUT / 2, version)?;
        self.cut.cut(&file, CUT / 4)?;
        drop(file);

        let name = format!("gone-{}", self.next());
        std::fs::write(folder.join(&name), block(1))?;
        std::fs::remove_file(folder.join(&name))?;
        self.removed.push(name);
        // What was written is sent meanwhile.
        std::thread::sleep(Duration::from_millis(60));
        Ok(())
    }

    /// Reads a part of a file that is larger than the cache: frames are evicted.
    fn read(&self, folder: &Path, round: u64) -> Result<()> {
        let file = File::open(folder.join("read"))?;
        let mut data = vec![0; 512 << 10];
        let offset = round * data.len() as u64 % READ;
        file.read_exact_at(&mut data, offset)?;
        assert!(data == super::pattern(offset, data.len()), "at {offset}");
        // From the cache the next time, not from the kernel's memory.
        // SAFETY: a plain system call on an open descriptor.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        Ok(())
    }

    fn check(&mut self, folder: &Path, what: &str) {
        for file in [&mut self.kept, &mut self.cut, &mut self.bulk] {
            file.check(folder, what);
        }
        for name in &self.removed {
            assert!(!folder.join(name).exists(), "{what}: {name} is back");
        }
    }
}

/// How often a point is passed before the process dies there: some at once, others once there is
/// something to lose.
fn passage(point: Point) -> u32 {
    match point.name() {
        name if name.ends_with("_DELETE") => 1,
        name if name.starts_with("JOURNAL_") => 25,
        name if name.starts_with("BLOCKS_") || name == "FRAME_AFTER_KEY" => 40,
        _ => 3,
    }
}

fn kill_at(rig: &mut Rig, program: &mut Program, point: Point, settings: &str) {
    let what = format!("{} ({settings})", point.name());
    let small = "cache=on,cache_size=1M,cache_banks=1,cache_ways=4,write_policy=write-back";
    rig.set_options(&[&format!("{small},writeback_delay=0.02,writeback_age=0.1,{settings}")]);
    let armed = format!("{}:{}", point.name(), passage(point));
    run(rig.mount_command().env("GRIDVFS_CRASH_AT", armed));
    rig.is_mounted();
    let pid = rig.pid();
    let in_bulk = point.name().ends_with("_DELETE");
    let error = program.work(&rig.mountpoint, in_bulk);
    assert!(error.is_some(), "{what}: nobody came by");
    wait_for(&format!("{what}: the process dies ({error:?})"), || !is_alive(pid));
    run(Command::new("fusermount3").args(["-u", "-z"]).arg(&rig.mountpoint));

    rig.mount();
    program.check(&rig.mountpoint, &format!("{what}, mounted again"));
    let status = rig.status();
    assert_eq!(status["cache"]["unsent_conflicts"], 0, "{what}: a conflict of our own making");
    rig.umount();
    program.check(&rig.export, &format!("{what}, on the server"));
}

#[test]
fn what_fsync_acknowledged_survives_a_kill_at_every_point() {
    let test = "what_fsync_acknowledged_survives_a_kill_at_every_point";
    if !cfg!(debug_assertions) {
        return skipped(test, "needs a debug build");
    }
    let Some(mut rig) = Rig::new(test, Way::Ssh) else { return };
    std::fs::write(rig.export.join("read"), super::pattern(0, READ as usize)).expect("write there");
    let mut program = Program::new();
    let settings = [
        "consistency=dedicated",
        "consistency=dedicated,kernel_writeback=off",
        "consistency=shared",
    ];
    // Those of pending names are passed by few of these writes: cache/tests/crash/ kills there.
    let points = Point::ALL.iter().filter(|point| !point.name().contains("NAME"));
    for (index, point) in points.enumerate() {
        kill_at(&mut rig, &mut program, *point, settings[index % settings.len()]);
    }
}
