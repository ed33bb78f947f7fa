use std::collections::HashMap;

use gridvfs_vfs::Time;

use super::*;

fn handle(number: u8) -> FileHandle {
    FileHandle::new(&[number; 28]).unwrap()
}

fn write(file: u8, offset: u64, epoch: u64) -> WriteHeader {
    let time = Time { seconds: 1_700_000_000, nanoseconds: 5 };
    WriteHeader { handle: handle(file), offset, time, uid: 7, gid: 8, epoch, carried: None }
}

fn small() -> JournalOptions {
    JournalOptions { segment_bytes: 8192, verify: false }
}

type Files = HashMap<FileHandle, RecoveredFile>;

fn reopen(dir: &std::path::Path, options: JournalOptions) -> (Journal, Files, Vec<Damage>) {
    let mut rebuild = Rebuild::new();
    let mut damages = Vec::new();
    let journal = Journal::open(dir, options, &mut |replayed| match replayed {
        Replayed::Record { seq, record, place } => rebuild.push(seq, &record, place),
        Replayed::Damaged(damage) => damages.push(damage),
    })
    .unwrap();
    let files = rebuild.finish(&journal);
    (journal, files, damages)
}

#[test]
fn what_is_appended_is_read_and_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, files, _) = reopen(dir.path(), small());
    assert!(files.is_empty());
    let data: Vec<u8> = (0..10_000u32).map(|i| i as u8 ^ (i >> 8) as u8).collect();
    let (seq, place) = journal.append_write(&write(1, 500, 0), &data).unwrap();
    assert_eq!(seq, 1);
    for (skip, length) in [(0, 10_000), (0, 1), (9_999, 1), (4095, 2), (5000, 4000), (4096, 4096)] {
        let mut out = vec![0; length];
        journal.read(&place, skip as u64, &mut out).unwrap();
        assert_eq!(out, data[skip..skip + length], "{skip} {length}");
    }
    drop(journal);
    let (journal, files, damages) = reopen(dir.path(), small());
    assert_eq!(damages, []);
    let file = &files[&handle(1)];
    assert_eq!(file.caller, Some((7, 8)));
    let extent = file.dirty.oldest(0, u64::MAX)[0];
    assert_eq!((extent.start, extent.len, extent.seq, extent.place), (500, 10_000, 1, place));
    assert_eq!(journal.append_write(&write(1, 0, 0), b"x").unwrap().0, 2);
}
