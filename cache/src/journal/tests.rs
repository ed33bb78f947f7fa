use std::collections::HashMap;

use gridvfs_vfs::{Attr, DeviceNumber, FileKind, Time};

use super::*;

mod figures;
mod flips;
mod kills;
mod model;
mod owner;

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

/// In memory where possible: these tests sync often.
fn tempdir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

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
    let dir = tempdir();
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

#[test]
fn writing_ahead_follows_the_segments_and_is_no_sync() {
    let dir = tempfile::tempdir().unwrap();
    let options = JournalOptions { segment_bytes: 3 << 20, verify: true };
    let (journal, _, _) = reopen(dir.path(), options.clone());
    let mut begun = Vec::new();
    for number in 0..40u64 {
        journal.append_write(&write(1, number << 18, 0), &[number as u8; 256 << 10]).unwrap();
        journal.write_ahead();
        begun.push(journal.tail.lock().begun);
    }
    begun.dedup();
    assert!(begun.is_sorted());
    assert!(begun.len() >= 8 && begun.last().unwrap().0 >= 3, "{begun:?}");
    assert_eq!(journal.durable.load(Ordering::Relaxed), 0, "nothing is promised by it");
    journal.sync().unwrap();
    assert_eq!(journal.durable.load(Ordering::Relaxed), 40);
    drop(journal);
    let (_, files, damages) = reopen(dir.path(), options);
    assert_eq!(damages, []);
    assert_eq!(files[&handle(1)].dirty.bytes(), 40 << 18);
}

#[test]
fn room_is_used_and_used_again() {
    let dir = tempdir();
    let (journal, _, _) = reopen(dir.path(), small());
    let names = || {
        let entries = std::fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let inode = |name: &str| {
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(dir.path().join(name)).unwrap())
    };
    journal.make_room().unwrap();
    let room = inode("ready.room");
    for number in 1..=3 {
        let (seq, place) = journal.append_write(&write(1, 0, 0), &[number; 3000]).unwrap();
        let segment = format!("{number:08}.log");
        assert_eq!(names(), [segment.as_str()]);
        assert_eq!(inode(&segment), room);
        let mut out = [0; 3000];
        journal.read(&place, 0, &mut out).unwrap();
        assert_eq!(out, [number; 3000]);
        let (handle, end) = (handle(1), u64::MAX);
        let sent = Record::Sent { handle, up_to_seq: seq, start: 0, end, base: None };
        journal.append(&sent).unwrap();
        journal.release(&place, 3000);
        journal.reclaim_all(&mut |_| Ok(())).unwrap();
        assert_eq!(names(), ["spent.room"]);
        journal.make_room().unwrap();
        assert_eq!(names(), ["ready.room"]);
        let bytes = std::fs::read(dir.path().join("ready.room")).unwrap();
        assert!(bytes.len() == 8192 && bytes.iter().all(|byte| *byte == 0));
    }
    // The next process takes it, unless it has been a segment.
    drop(journal);
    let (journal, _, _) = reopen(dir.path(), small());
    journal.append(&Record::Barrier { handle: handle(1) }).unwrap();
    assert_eq!((names(), inode("00000001.log")), (vec!["00000001.log".into()], room));
    drop(journal);
    std::fs::copy(dir.path().join("00000001.log"), dir.path().join("ready.room")).unwrap();
    let (journal, _, damages) = reopen(dir.path(), small());
    assert_eq!(damages, []);
    journal.append(&Record::Barrier { handle: handle(1) }).unwrap();
    assert_eq!(std::fs::metadata(dir.path().join("00000002.log")).unwrap().len(), 64 + 160);
}

#[test]
fn a_failed_append_leaves_nothing_and_harms_nothing() {
    let dir = tempdir();
    let (journal, _, _) = reopen(dir.path(), small());
    let (_, before) = journal.append_write(&write(1, 0, 0), &[1; 3000]).unwrap();
    let used = journal.used_bytes();
    for bytes in [0, 50, 200, 1000, 2000] {
        *journal.fail_after.lock() = Some(bytes);
        let error = journal.append_write(&write(1, 100, 0), &[2; 1500]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!((journal.used_bytes(), journal.live_bytes()), (used, 3000));
    }
    let (seq, after) = journal.append_write(&write(1, 200, 0), &[3; 1500]).unwrap();
    assert_eq!(seq, 2);
    assert_eq!(u64::from(after.at), (u64::from(before.at) + 3000).next_multiple_of(8) + 164);
    drop(journal);
    let (journal, files, damages) = reopen(dir.path(), small());
    assert_eq!(damages, []);
    assert_eq!(files[&handle(1)].dirty.bytes(), 3000);
    assert_eq!(journal.live_bytes(), 3000);
}

#[test]
fn records_are_what_they_were() {
    let dir = tempdir();
    let handle = handle(3);
    let time = Time { seconds: -5, nanoseconds: 999_999_999 };
    let base =
        Base { size: u64::MAX, mtime: time, ctime: Time { seconds: 1 << 40, ..time }, key: 5 };
    let some = Some(time);
    let records = vec![
        Record::Base { handle, base },
        Record::Sending { handle, up_to_seq: 77 },
        Record::Sent { handle, up_to_seq: 5, start: 9, end: 11, base: Some(base) },
        Record::Sent { handle, up_to_seq: 5, start: 0, end: u64::MAX, base: None },
        Record::Barrier { handle },
        Record::CutIntent { handle, size: 1 << 50 },
        Record::Cut { handle, size: 4, base: Some(base) },
        Record::Cut { handle, size: 4, base: None },
        Record::RemoveIntent { handle },
        Record::Removed { handle },
        Record::Abandoned { handle },
        Record::Times { handle, atime: some, mtime: None },
        Record::Times { handle, atime: None, mtime: some },
        Record::Conflict { handle, kind: 200 },
        Record::Resolved { handle },
        Record::Path { handle, path: b"/a/b\xff".to_vec() },
        Record::Path { handle, path: vec![7; PATH_BYTES_MAX] },
        Record::Path { handle: FileHandle::new(&[]).unwrap(), path: vec![] },
        Record::Bound { handle, server: FileHandle::new(&[9; 64]).unwrap(), made_by: 7 },
    ];
    let records: Vec<_> = records.into_iter().chain(name_records()).collect();
    let (journal, _, _) = reopen(dir.path(), small());
    for record in &records {
        journal.append(record).unwrap();
    }
    let path = vec![7; PATH_BYTES_MAX + 1];
    assert!(journal.append(&Record::Path { handle, path }).is_err());
    drop(journal);
    let mut read = Vec::new();
    Journal::open(dir.path(), small(), &mut |replayed| match replayed {
        Replayed::Record { record, .. } => read.push(record),
        Replayed::Damaged(damage) => panic!("{damage:?}"),
    })
    .unwrap();
    assert_eq!(read, records);
}

/// Records about names, of every kind.
fn name_records() -> Vec<Record> {
    let time = Time { seconds: -5, nanoseconds: 999_999_999 };
    let attr = Attr {
        kind: FileKind::Regular,
        mode: 0o640,
        links: 1,
        uid: 1,
        gid: 2,
        size: 3,
        used: 4,
        device: DeviceNumber::default(),
        fsid: 5,
        fileid: 6,
        atime: time,
        mtime: Time::default(),
        ctime: time,
    };
    let file = FileHandle::new(&[1; 64]).unwrap();
    let at = |name: &[u8]| At { dir: FileHandle::new(b"dir").unwrap(), name: name.into() };
    let set = Set { mode: Some(0o600), size: None, atime: Some(time), mtime: None };
    let changes = [
        NameChange::Create { at: at(&[7; NAME_BYTES_MAX]), file, attr },
        NameChange::Remove { at: at(b"\xff"), file, last: true },
        NameChange::Rename { from: at(b"a"), to: at(b"b"), file, replaced: None },
        NameChange::Rename { from: at(b"a"), to: at(b"b"), file, replaced: Some((file, false)) },
        NameChange::Rename { from: at(b"a"), to: at(b"b"), file, replaced: Some((file, true)) },
        NameChange::Set { file, set, before: None },
        NameChange::Set { file, set: Set::default(), before: Some((u64::MAX, time)) },
    ];
    let op = |change: NameChange| Box::new(NameOp { uid: 1000, gid: u32::MAX, change });
    let mut records: Vec<_> = changes.iter().cloned().map(op).map(NameRecord::Op).collect();
    records.extend(changes.into_iter().map(|change| NameRecord::Copy(3, true, op(change))));
    records.extend([
        NameRecord::Started((0..STARTED_MAX as u64).collect()),
        NameRecord::Done(u64::MAX),
        NameRecord::Begin,
        NameRecord::CopyBound(file, file),
        NameRecord::End(9),
    ]);
    records.into_iter().map(Record::Name).collect()
}

#[test]
fn a_log_of_the_version_before_is_read() {
    let dir = tempdir();
    let (journal, _, _) = reopen(dir.path(), small());
    journal.append_write(&write(1, 0, 0), b"data").unwrap();
    drop(journal);
    let path = dir.path().join("00000001.log");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 1;
    let sum = format::checksum(&bytes[..48]);
    bytes[48..52].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let mut records = 0;
    Journal::open(dir.path(), small(), &mut |replayed| match replayed {
        Replayed::Record { .. } => records += 1,
        Replayed::Damaged(damage) => panic!("{damage:?}"),
    })
    .unwrap();
    assert_eq!(records, 1);
}

#[test]
fn an_unknown_version_is_refused_and_nothing_touched() {
    let dir = tempdir();
    let (journal, _, _) = reopen(dir.path(), small());
    journal.append_write(&write(1, 0, 0), b"data").unwrap();
    drop(journal);
    let path = dir.path().join("00000001.log");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 77;
    let sum = format::checksum(&bytes[..48]);
    bytes[48..52].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let error = Journal::open(dir.path(), small(), &mut |_| panic!("replayed")).unwrap_err();
    assert!(matches!(error, JournalError::Version { version: 77, .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[test]
fn two_at_once_and_foreign_segments_are_refused() {
    let (one, two) = (tempdir(), tempdir());
    let (journal, _, _) = reopen(one.path(), small());
    journal.append_write(&write(1, 0, 0), b"data").unwrap();
    let error = Journal::open(one.path(), small(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, JournalError::Busy(_)), "{error}");
    let (other, _, _) = reopen(two.path(), small());
    other.append_write(&write(1, 0, 0), b"data").unwrap();
    drop((journal, other));
    std::fs::copy(two.path().join("00000001.log"), one.path().join("00000002.log")).unwrap();
    let error = Journal::open(one.path(), small(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, JournalError::Foreign(_)), "{error}");
}

#[test]
fn syncs_are_shared() {
    let dir = tempdir();
    let (journal, _, _) = reopen(dir.path(), JournalOptions::default());
    let journal = &journal;
    std::thread::scope(|scope| {
        for file in 0..8 {
            scope.spawn(move || {
                for i in 0..50 {
                    journal.append_write(&write(file, i * 10, 0), &[1; 10]).unwrap();
                    journal.sync().unwrap();
                }
            });
        }
    });
    let counters = journal.counters();
    assert_eq!(counters.syncs_asked.load(Ordering::Relaxed), 400);
    assert!(counters.syncs.load(Ordering::Relaxed) <= 400);
    assert_eq!(journal.durable.load(Ordering::Relaxed), 400);
    // Nothing new: nothing to do.
    let before = counters.syncs.load(Ordering::Relaxed);
    journal.sync().unwrap();
    assert_eq!(counters.syncs.load(Ordering::Relaxed), before);
}

#[test]
fn the_first_sync_covers_what_an_earlier_process_left() {
    let dir = tempdir();
    let (journal, _, _) = reopen(dir.path(), small());
    for i in 0..6 {
        journal.append_write(&write(1, i * 3000, 0), &[1; 3000]).unwrap();
    }
    let segments = journal.segments().len();
    drop(journal);
    let (journal, _, _) = reopen(dir.path(), small());
    assert_eq!(journal.tail.lock().unsynced.len(), segments);
    journal.sync().unwrap();
    assert!(journal.tail.lock().unsynced.is_empty());
    assert_eq!(journal.counters().syncs.load(Ordering::Relaxed), 1);
}

#[test]
fn after_a_failed_sync_nothing_is_promised() {
    let dir = tempdir();
    let (mut journal, _, _) = reopen(dir.path(), small());
    let (_, place) = journal.append_write(&write(1, 0, 0), b"data").unwrap();
    // A descriptor that cannot be synced.
    let (pipe, _other) = nix::unistd::pipe().unwrap();
    let pipe = Segment::new(9, PathBuf::new(), pipe.into(), 0);
    journal.tail.get_mut().unsynced.push(Arc::new(pipe));
    assert!(journal.sync().is_err());
    assert!(journal.sync().is_err());
    assert!(journal.append_write(&write(1, 0, 0), b"more").is_err());
    assert!(journal.reclaim(&mut |_| Ok(())).is_ok(), "nothing to delete, nothing to sync");
    let mut out = [0; 4];
    journal.read(&place, 0, &mut out).unwrap();
    assert_eq!(&out, b"data");
}

#[test]
fn an_idle_segment_is_given_back() {
    let dir = tempdir();
    let (journal, _, _) = reopen(dir.path(), small());
    let (up_to_seq, place) = journal.append_write(&write(1, 0, 0), &[1; 3000]).unwrap();
    assert_eq!(journal.reclaim(&mut |_| Ok(())).unwrap(), 0);
    let handle = handle(1);
    let sent = Record::Sent { handle, up_to_seq, start: 0, end: u64::MAX, base: None };
    journal.append(&sent).unwrap();
    journal.release(&place, 3000);
    let used = journal.used_bytes();
    assert_eq!(journal.reclaim(&mut |_| Ok(())).unwrap(), used);
    assert_eq!((journal.used_bytes(), journal.segments().len()), (0, 0));
    assert!(matches!(journal.read(&place, 0, &mut [0]), Err(ReadError::Gone(1))));
    let (seq, _) = journal.append_write(&write(1, 0, 0), &[1; 3000]).unwrap();
    assert_eq!(seq, 3);
    drop(journal);
    let (_, files, damages) = reopen(dir.path(), small());
    assert_eq!((files.len(), damages.len()), (1, 0));
}

#[test]
fn many_threads_at_once() {
    let dir = tempdir();
    let (journal, _, _) = reopen(dir.path(), small());
    let done = AtomicBool::new(false);
    let (journal, done) = (&journal, &done);
    std::thread::scope(|scope| {
        let reclaimer = scope.spawn(move || {
            let mut freed = 0;
            while !done.load(Ordering::Relaxed) {
                freed += journal.reclaim(&mut |_| Ok(())).unwrap();
                std::thread::yield_now();
            }
            freed
        });
        let writers: Vec<_> = (0..4u8)
            .map(|file| {
                scope.spawn(move || {
                    let mut dirty = crate::dirty::Dirty::new();
                    for i in 0..300u64 {
                        let value = [file ^ i as u8; 700];
                        let at = i * 37 % 50 * 500;
                        let (seq, place) =
                            journal.append_write(&write(file, at, 0), &value).unwrap();
                        journal.release_all(&dirty.insert(at, 700, seq, place));
                        let mut out = [0; 300];
                        journal.read(&place, 200, &mut out).unwrap();
                        assert_eq!(out, value[..300]);
                        if i % 20 == 19 {
                            let handle = handle(file);
                            let (start, end) = (0, u64::MAX);
                            let sent =
                                Record::Sent { handle, up_to_seq: seq, start, end, base: None };
                            journal.append(&sent).unwrap();
                            journal.release_all(&dirty.clear_sent(seq, start, end));
                        }
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Relaxed);
        assert!(reclaimer.join().unwrap() > 0);
    });
    assert_eq!(journal.live_bytes(), 0);
    journal.reclaim(&mut |_| Ok(())).unwrap();
    assert!(journal.used_bytes() < 8192);
}
