//! What a read from a cache costs beside a bare fuser program that answers each by one pread.
//! `cargo test --release -p gridvfs-fuse --test mounted speed -- --ignored --nocapture`

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request, SessionACL,
};
use gridvfs_fuse::{MountOptions, SessionOptions};

use crate::rig::Rig;

const SIZE: u64 = 64 << 20;
const READS: u64 = 5_000;
const ROUNDS: usize = 30;
const BLOCK: usize = 4096;

struct Bare(File);

fn attr(number: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(number),
        size: SIZE,
        blocks: SIZE / 512,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if number == 1 { FileType::Directory } else { FileType::RegularFile },
        perm: 0o777,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Bare {
    fn lookup(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.entry(&Duration::from_secs(60), &attr(2), Generation(0));
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::from_secs(60), &attr(number.0));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(1), FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut data = vec![0; size as usize];
        let count = self.0.read_at(&mut data, offset).expect("read");
        reply.data(&data[..count]);
    }
}

/// Reads blocks at random past the page cache; returns microseconds for each.
fn measure(path: &Path) -> f64 {
    let mut options = File::options();
    let file = options.read(true).custom_flags(libc::O_DIRECT).open(path).expect("open");
    let mut memory = vec![0u8; 2 * BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    let buffer = &mut memory[start..start + BLOCK];
    let mut random = 1u64;
    let begin = Instant::now();
    for _ in 0..READS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let block = (random >> 33) % (SIZE / BLOCK as u64);
        file.read_exact_at(buffer, block * BLOCK as u64).expect("read");
    }
    begin.elapsed().as_secs_f64() * 1e6 / READS as f64
}

#[test]
#[ignore = "a measurement"]
fn a_hit_costs_what_a_bare_program_costs() {
    let folder = tempfile::tempdir().expect("folder");
    let held = folder.path().join("held");
    std::fs::write(&held, vec![7; SIZE as usize]).expect("write");
    let mnt = folder.path().join("bare");
    std::fs::create_dir(&mnt).expect("mkdir");
    let options = MountOptions { source: "bare".into(), ..MountOptions::default() };
    let device = gridvfs_fuse::mount(&mnt, &options).expect("mount");
    let mut config = Config::default();
    config.n_threads = Some(SessionOptions::default().event_loops);
    let bare = Bare(File::open(&held).expect("open"));
    let bare = fuser::Session::from_fd(bare, device, SessionACL::All, config).expect("session");
    let bare = std::thread::spawn(move || bare.run());
    let Some(rig) = Rig::new("speed", SessionOptions::default()) else { return };
    std::fs::write(rig.behind("file"), vec![7; SIZE as usize]).expect("write");
    // The best of many rounds in turn: whatever else runs here disturbs some of them.
    let (mut plain, mut hit, mut asked) = (f64::MAX, f64::MAX, f64::MAX);
    for _ in 0..ROUNDS {
        *rig.probe.at_hand.lock().expect("file") = None;
        asked = asked.min(measure(&rig.at("file")));
        rig.probe.take();
        *rig.probe.at_hand.lock().expect("file") = Some(File::open(&held).expect("open"));
        hit = hit.min(measure(&rig.at("file")));
        plain = plain.min(measure(&mnt.join("file")));
    }
    println!("bare {plain:.2} us, read_now {hit:.2} us, read {asked:.2} us");
    gridvfs_fuse::unmount(&mnt, false).expect("unmount");
    bare.join().expect("no panic").expect("served");
}
