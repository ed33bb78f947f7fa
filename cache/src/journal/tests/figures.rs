//! Figures, for a release build: `cargo test --release -p gridvfs-cache --lib figures -- --ignored
//! --nocapture`. GRIDVFS_TEST_DIR says on which disk.

use std::os::unix::fs::FileExt;
use std::time::Instant;

use super::*;
use crate::dirty::Dirty;

fn directory() -> tempfile::TempDir {
    match std::env::var_os("GRIDVFS_TEST_DIR") {
        Some(dir) => tempfile::tempdir_in(dir).unwrap(),
        None => tempfile::tempdir().unwrap(),
    }
}

fn block(number: u64) -> u64 {
    number * 40_503 % 65_536 * 4096
}

#[test]
#[ignore = "prints figures; for a release build"]
fn figures() {
    let dir = directory();
    let data: Vec<u8> = (0..1 << 20).map(|i: u32| (i ^ (i >> 9)) as u8).collect();
    let (journal, _, _) = reopen(&dir.path().join("journal"), JournalOptions::default());
    let plain = std::fs::File::create(dir.path().join("plain")).unwrap();
    plain.set_len(256 << 20).unwrap();
    plain.sync_all().unwrap();

    for round in 0..5 {
        let started = Instant::now();
        for i in 0..2048 {
            plain.write_all_at(&data[..4096], block(i + round * 2048)).unwrap();
        }
        let written = started.elapsed();
        plain.sync_data().unwrap();
        let other = started.elapsed();
        let started = Instant::now();
        for i in 0..2048 {
            journal.append_write(&write(1, block(i), 0), &data[..4096]).unwrap();
        }
        let appended = started.elapsed();
        journal.sync().unwrap();
        let total = started.elapsed();
        println!(
            "8 MB in 4 KiB: journal {appended:?} + sync = {total:?}; plain {written:?} + sync = \
             {other:?}; ratio {:.2}",
            total.as_secs_f64() / other.as_secs_f64()
        );
    }

    let started = Instant::now();
    let mut dirty = Dirty::new();
    let mut places = Vec::new();
    for i in 0..20_000 {
        let (seq, place) = journal.append_write(&write(1, block(i), 0), &data[..4096]).unwrap();
        let freed = dirty.insert(block(i), 4096, seq, place);
        journal.release_all(&freed);
        places.push(place);
    }
    println!("append_write of 4 KiB and insert: {:?}", started.elapsed() / 20_000);
    let mut out = vec![0; 4096];
    let started = Instant::now();
    for place in &places {
        journal.read(place, 0, &mut out).unwrap();
    }
    println!("read of 4 KiB: {:?}", started.elapsed() / 20_000);
    let (_, large) = journal.append_write(&write(2, 0, 0), &data).unwrap();
    let started = Instant::now();
    for i in 0..20_000u64 {
        journal.read(&large, i % 255 * 4096 + 100, &mut out).unwrap();
    }
    println!("read of 4 KiB across two pieces of 1 MiB: {:?}", started.elapsed() / 20_000);
    let started = Instant::now();
    for _ in 0..200 {
        journal.append_write(&write(2, 0, 0), &data).unwrap();
    }
    println!("append_write of 1 MiB: {:?}", started.elapsed() / 200);
    let started = Instant::now();
    for _ in 0..10_000 {
        std::hint::black_box(format::checksum(std::hint::black_box(&data[..4096])));
    }
    println!("checksum of 4 KiB: {:?}", started.elapsed() / 10_000);
    journal.sync().unwrap();
    drop(journal);
    let started = Instant::now();
    let (journal, files, _) = reopen(&dir.path().join("journal"), JournalOptions::default());
    println!("open {} MB: {:?}", journal.used_bytes() >> 20, started.elapsed());
    assert_eq!(files.len(), 2);

    const MANY: u64 = 1_000_000;
    let mut dirty = Dirty::new();
    let place = Place { segment: 1, at: 0, length: 4096 };
    let started = Instant::now();
    for i in 0..MANY {
        dirty.insert(i * 614_657 % MANY * 8192, 4096, i, place);
    }
    println!("insert of 1,000,000 extents at random: {:?} each", started.elapsed() / MANY as u32);
    let started = Instant::now();
    let mut from = 0;
    while let Some(last) = dirty.oldest(from, 1 << 20).last().copied() {
        dirty.clear_sent(MANY, from, last.end());
        from = last.end();
    }
    println!("sending and clearing them: {:?} each", started.elapsed() / MANY as u32);
}
