//! Data is what was written: random operations against a model (as fsx does), and fio's verify.

mod common;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::policies::{self, Case, Policy};
use common::{Rig, Way, installed, run, shell, skipped};

/// The largest file of the random operations, in bytes.
const SIZE_MAX: u64 = 3 << 20;
/// The largest single operation, in bytes.
const LENGTH_MAX: u64 = 300 << 10;

/// A small generator of numbers: one seed is one run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}

/// A file and what it must hold.
struct Checked {
    file: File,
    model: Vec<u8>,
    random: Random,
    allocates: bool,
}

impl Checked {
    fn range(&mut self) -> (u64, u64) {
        let offset = self.random.below(SIZE_MAX);
        // Now and then at page boundaries, where most mistakes are.
        let offset = if self.random.below(3) == 0 { offset & !4095 } else { offset };
        let length = 1 + self.random.below(LENGTH_MAX.min(SIZE_MAX - offset));
        (offset, length)
    }

    fn grow(&mut self, end: u64) {
        if self.model.len() < end as usize {
            self.model.resize(end as usize, 0);
        }
    }

    fn expected(&self, offset: u64, length: u64) -> &[u8] {
        let start = (offset as usize).min(self.model.len());
        let end = ((offset + length) as usize).min(self.model.len());
        &self.model[start..end]
    }

    fn check(&self, what: &str, offset: u64, length: u64) {
        let mut data = vec![0xEE; length as usize];
        let mut filled = 0;
        while filled < data.len() {
            match self.file.read_at(&mut data[filled..], offset + filled as u64).expect("read") {
                0 => break,
                count => filled += count,
            }
        }
        let expected = self.expected(offset, length);
        if data[..filled] != *expected {
            let at = data[..filled].iter().zip(expected).position(|(a, b)| a != b);
            panic!(
                "{what}: {offset}+{length}: read {filled}, expected {}, first difference {at:?}",
                expected.len()
            );
        }
    }

    fn write(&mut self) {
        let (offset, length) = self.range();
        let seed = self.random.next();
        let data: Vec<u8> = (0..length).map(|at| (seed.wrapping_mul(at | 1) >> 32) as u8).collect();
        self.file.write_all_at(&data, offset).expect("write");
        self.grow(offset + length);
        self.model[offset as usize..(offset + length) as usize].copy_from_slice(&data);
    }

    fn map_write(&mut self) {
        let (offset, length) = self.range();
        let end = (offset + length).min(self.model.len() as u64);
        if offset >= end {
            return;
        }
        let fill = self.random.next() as u8;
        let map = Map::new(&self.file, self.model.len());
        map.slice()[offset as usize..end as usize].fill(fill);
        self.model[offset as usize..end as usize].fill(fill);
        if self.random.below(2) == 0 {
            map.sync();
        }
    }

    fn map_read(&mut self) {
        if self.model.is_empty() {
            return;
        }
        let map = Map::reading(&self.file, self.model.len());
        let (offset, length) = self.range();
        let expected = self.expected(offset, length).to_vec();
        let start = (offset as usize).min(self.model.len());
        assert!(map.bytes()[start..start + expected.len()] == expected[..], "mapped {offset}");
    }

    fn truncate(&mut self) {
        let size = self.random.below(SIZE_MAX);
        self.file.set_len(size).expect("truncate");
        self.model.resize(size as usize, 0);
    }

    fn allocate(&mut self, mode: i32) {
        let (offset, length) = self.range();
        // SAFETY: a plain system call on a descriptor that is open.
        let result =
            unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset as i64, length as i64) };
        if result != 0 {
            let error = std::io::Error::last_os_error();
            assert!(!self.allocates, "fallocate {mode:#x}: {error}");
            assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP), "fallocate {mode:#x}");
            return;
        }
        if mode & libc::FALLOC_FL_KEEP_SIZE == 0 {
            self.grow(offset + length);
        }
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 {
            let end = ((offset + length) as usize).min(self.model.len());
            let start = (offset as usize).min(end);
            self.model[start..end].fill(0);
        }
    }

    fn step(&mut self, path: &Path) {
        match self.random.below(20) {
            0..6 => self.write(),
            6..11 => {
                let (offset, length) = self.range();
                self.check("read", offset, length);
            }
            11..13 => self.map_read(),
            13..15 => self.map_write(),
            15 => self.truncate(),
            16 => {
                let modes = [
                    0,
                    libc::FALLOC_FL_KEEP_SIZE,
                    libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                    libc::FALLOC_FL_ZERO_RANGE,
                    libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
                ];
                let mode = modes[self.random.below(modes.len() as u64) as usize];
                self.allocate(mode);
            }
            17 => self.file.sync_all().expect("fsync"),
            18 => {
                let size = self.file.metadata().expect("fstat").len();
                assert_eq!(size, self.model.len() as u64, "size");
            }
            _ => self.file = open(path), // Closes the old one.
        }
    }
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).expect("open")
}

/// A shared mapping.
struct Map(*mut libc::c_void, usize);

impl Map {
    fn new(file: &File, length: usize) -> Self {
        Self::with(file, length, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// A shared mapping that only reads.
    fn reading(file: &File, length: usize) -> Self {
        Self::with(file, length, libc::PROT_READ)
    }

    fn with(file: &File, length: usize, protection: i32) -> Self {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let address = unsafe {
            let (fd, shared) = (file.as_raw_fd(), libc::MAP_SHARED);
            libc::mmap(std::ptr::null_mut(), length, protection, shared, fd, 0)
        };
        assert_ne!(address, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Self(address, length)
    }

    #[allow(clippy::mut_from_ref)]
    fn slice(&self) -> &mut [u8] {
        // SAFETY: the mapping is as long and lives as long as self; one thread uses it.
        unsafe { std::slice::from_raw_parts_mut(self.0.cast(), self.1) }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is as long and lives as long as self; nobody writes to it meanwhile.
        unsafe { std::slice::from_raw_parts(self.0.cast(), self.1) }
    }

    fn sync(&self) {
        // SAFETY: the mapping is there.
        assert_eq!(unsafe { libc::msync(self.0, self.1, libc::MS_SYNC) }, 0, "msync");
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped by new, unmapped once.
        unsafe { libc::munmap(self.0, self.1) };
    }
}

fn random_operations(way: Way, policy: Policy, seed: u64, steps: usize) {
    let case = Case { way, policy };
    let test = format!("random_operations ({case:?})");
    let Some(mut rig) = Rig::mounted_under(&test, case) else { return };
    let path = rig.mountpoint.join("file");
    let mut checked = Checked {
        file: open(&path),
        model: Vec::new(),
        random: Random(seed),
        allocates: matches!(way, Way::Local | Way::Ssh),
    };
    for step in 0..steps {
        if step % 100 == 0 {
            println!("{case:?} seed {seed} step {step} size {}", checked.model.len());
        }
        checked.step(&path);
    }
    checked.check("at the end", 0, SIZE_MAX);
    let Checked { file, model, .. } = checked;
    drop(file);
    rig.umount();
    let stored = std::fs::read(rig.export.join("file")).expect("the server's copy");
    assert!(stored == model, "the server's copy differs");
}

#[test]
fn random_operations_local() {
    random_operations(Way::Local, Policy::Default, 0x5eed_0001, 1500);
}

#[test]
fn random_operations_ssh() {
    random_operations(Way::Ssh, Policy::Default, 0x5eed_0002, 1500);
}

#[test]
fn random_operations_forward() {
    random_operations(Way::Forward, Policy::Default, 0x5eed_0003, 1000);
}

#[test]
fn random_operations_no_proxy() {
    random_operations(Way::NoProxy, Policy::Default, 0x5eed_0004, 1000);
}

#[test]
fn random_operations_nfs() {
    random_operations(Way::Nfs, Policy::Default, 0x5eed_0005, 1000);
}

#[test]
fn random_operations_without_a_cache() {
    random_operations(Way::Ssh, Policy::Off, 0x5eed_0010, 1000);
}

#[test]
fn random_operations_write_through_dedicated() {
    random_operations(Way::Local, Policy::ThroughDedicated, 0x5eed_0011, 1000);
}

#[test]
fn random_operations_write_back_shared() {
    random_operations(Way::Ssh, Policy::BackShared, 0x5eed_0012, 1000);
}

#[test]
fn random_operations_write_back_dedicated() {
    random_operations(Way::Forward, Policy::BackDedicated, 0x5eed_0013, 1000);
}

#[test]
fn random_operations_write_back_without_the_kernel() {
    random_operations(Way::Local, Policy::BackHandedOver, 0x5eed_0014, 1000);
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !installed("fio") {
        return skipped("fio_verifies_what_it_wrote", "needs fio");
    }
    policies::each(&policies::ALL, |case| {
        let Some(rig) = Rig::mounted_under("fio_verifies_what_it_wrote", case) else { return };
        for (engine, direct) in [("psync", 0), ("libaio", 1), ("mmap", 0)] {
            shell(
                &rig.mountpoint,
                &format!(
                    "fio --name=v --filename=v-{engine} --size=24m --rw=randwrite --bs=4k-64k \
                     --bsrange=4k-64k --ioengine={engine} --direct={direct} --iodepth=16 \
                     --verify=crc32c --verify_fatal=1 --do_verify=1 --end_fsync=1 \
                     --output-format=terse --aux-path={}",
                    rig.folder.display()
                ),
            );
        }
    });
}

#[test]
fn sparse_files_beyond_4_gib() {
    policies::each(&policies::ALL, |case| {
        let Some(mut rig) = Rig::mounted_under("sparse_files_beyond_4_gib", case) else { return };
        let path = rig.mountpoint.join("sparse");
        let file = open(&path);
        for offset in [0, (4 << 30) - 2, (5 << 30) + 1, 40 << 30] {
            file.write_all_at(b"here", offset).expect("write");
        }
        file.sync_all().expect("fsync");
        let mut data = [0xEE; 8];
        file.read_exact_at(&mut data, (4 << 30) - 4).expect("read");
        assert_eq!(&data, b"\0\0here\0\0");
        file.read_exact_at(&mut data, 20 << 30).expect("read");
        assert_eq!(data, [0; 8], "{case:?}: a hole is zeros");
        assert_eq!(file.metadata().expect("fstat").len(), (40 << 30) + 4);
        let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().expect("fstat"));
        assert!(blocks < 2048, "{case:?}: {blocks} blocks: holes take no space");
        drop(file);
        rig.umount();
        let size = std::fs::metadata(rig.export.join("sparse")).expect("stat").len();
        assert_eq!(size, (40 << 30) + 4);
    });
}

#[test]
fn holes_are_found() {
    policies::each(&policies::ALL, |case| {
        let way = case.way;
        let Some(rig) = Rig::mounted_under("holes_are_found", case) else { return };
        let file = open(&rig.mountpoint.join("holes"));
        file.set_len(8 << 20).expect("truncate");
        file.write_all_at(&[1; 65536], 4 << 20).expect("write");
        file.sync_all().expect("fsync");
        let seek = |offset: i64, whence| {
            // SAFETY: a plain system call on an open descriptor.
            let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
            if found < 0 { Err(std::io::Error::last_os_error().raw_os_error()) } else { Ok(found) }
        };
        if matches!(way, Way::Local | Way::Ssh) {
            assert_eq!(seek(0, libc::SEEK_DATA), Ok(4 << 20), "{case:?}");
            assert_eq!(seek(4 << 20, libc::SEEK_HOLE), Ok((4 << 20) + 65536), "{case:?}");
            assert_eq!(seek(5 << 20, libc::SEEK_DATA), Err(Some(libc::ENXIO)), "{case:?}");
        } else {
            assert_eq!(seek(0, libc::SEEK_DATA), Ok(0), "{case:?}");
            assert_eq!(seek(0, libc::SEEK_HOLE), Ok(8 << 20), "{case:?}");
        }
        assert_eq!(seek(8 << 20, libc::SEEK_DATA), Err(Some(libc::ENXIO)), "{case:?}");
        assert_eq!(seek(8 << 20, libc::SEEK_HOLE), Err(Some(libc::ENXIO)), "{case:?}");
    });
}

/// Reads of all sizes, through read(2) and a mapping, twice (the second time from the cache), of what
/// is on the server and changes for nobody.
#[test]
fn what_is_there_is_read() {
    policies::each(&policies::READING, |case| {
        let test = "what_is_there_is_read";
        let Some(mut rig) = Rig::new(test, case.way) else { return };
        let mut random = Random(0x5eed_0020);
        let mut model: Vec<u8> = (0..SIZE_MAX).map(|at| ((at * at) >> 11) as u8).collect();
        model[1 << 20..2 << 20].fill(0);
        std::fs::write(rig.export.join("file"), &model).expect("write there");
        shell(&rig.export, "mkdir -p a/b && echo text > a/b/small && ln -s b a/link");
        let options = case.options();
        rig.set_options(&options.iter().map(String::as_str).collect::<Vec<_>>());
        for _ in 0..2 {
            rig.mount();
            let file = File::open(rig.mountpoint.join("file")).expect("open");
            let seed = random.next();
            let random = Random(seed);
            let mut checked = Checked { file, model, random, allocates: false };
            for _ in 0..60 {
                let (offset, length) = checked.range();
                checked.check("read", offset, length);
                checked.map_read();
            }
            checked.check("all of it", 0, SIZE_MAX);
            model = checked.model;
            drop(checked.file);
            assert_eq!(shell(&rig.mountpoint, "cat a/link/small && ls a"), "text\nb\nlink\n");
            if options.iter().any(|options| options.contains(",ro,")) {
                let refused = std::fs::write(rig.mountpoint.join("a/new"), b"x").err();
                let number = refused.and_then(|error| error.raw_os_error());
                assert_eq!(number, Some(libc::EROFS), "{case:?}");
            }
            rig.umount();
        }
        assert!(std::fs::read(rig.export.join("file")).expect("there") == model, "{case:?}");
    });
}

#[test]
fn qemu_img_finds_the_same_on_both_sides() {
    if !installed("qemu-img") {
        return skipped("qemu_img_finds_the_same_on_both_sides", "needs qemu-img");
    }
    policies::each(&policies::ALL, |case| {
        let test = "qemu_img_finds_the_same_on_both_sides";
        let Some(mut rig) = Rig::mounted_under(test, case) else { return };
        shell(
            &rig.mountpoint,
            "qemu-img create -q -f raw disk.raw 64M
             qemu-io -f raw -c 'write -P 7 1M 3M' -c 'write -z 2M 64k' -c 'discard 3M 64k' \
                -c 'flush' disk.raw > /dev/null
             for cache in none writeback directsync; do
                qemu-img convert -t $cache -f raw -O qcow2 disk.raw copy-$cache.qcow2
                qemu-img compare -q disk.raw copy-$cache.qcow2
                qemu-img create -q -f qcow2 -b copy-$cache.qcow2 -F qcow2 over-$cache.qcow2
                qemu-io -t $cache -f qcow2 -c 'write -P 9 5M 2M' -c 'discard 1M 64k' over-$cache.qcow2 > /dev/null
                qemu-img commit -q -t $cache over-$cache.qcow2
                qemu-img check -q copy-$cache.qcow2
             done
             qemu-img create -q -f qcow2 -o preallocation=falloc pre.qcow2 8M",
        );
        rig.umount();
        for cache in ["none", "writeback", "directsync"] {
            shell(&rig.export, &format!("qemu-img check -q copy-{cache}.qcow2"));
        }
        shell(&rig.export, "qemu-img compare -q copy-none.qcow2 copy-writeback.qcow2");
        run(std::process::Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", "read -P 9 5M 2M", "copy-none.qcow2"])
            .current_dir(&rig.export));
    });
}
