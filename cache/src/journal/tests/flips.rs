//! Every flipped bit is found, and costs one record at most.

use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;

/// Sequence number, record, payload.
type Whole = (u64, Record, Vec<u8>);

/// What a reader of the whole log gets.
fn contents(dir: &std::path::Path, verify: bool) -> (Vec<Whole>, Vec<Damage>) {
    let mut records = Vec::new();
    let mut damages = Vec::new();
    let options = JournalOptions { verify, ..small() };
    let journal = Journal::open(dir, options, &mut |replayed| match replayed {
        Replayed::Record { seq, record, place } => records.push((seq, record, place)),
        Replayed::Damaged(damage) => damages.push(damage),
    })
    .unwrap();
    let mut read = Vec::new();
    for (seq, record, place) in records {
        let mut data = vec![0; place.map_or(0, |place| place.length as usize)];
        if let Some(place) = place
            && let Err(error) = journal.read(&place, 0, &mut data)
        {
            let ReadError::Damaged { place, skip, length } = error else { panic!("{error}") };
            let at = u64::from(place.at) + skip;
            let segment = place.segment;
            damages.push(Damage { segment, at, bytes: length, file: None, synced: true });
            continue;
        }
        read.push((seq, record, data));
    }
    (read, damages)
}

fn make(dir: &std::path::Path, room: bool) {
    let (journal, _, _) = reopen(dir, small());
    for i in 0..8u8 {
        if room {
            journal.make_room().unwrap();
        }
        let data: Vec<u8> = (0..700 * usize::from(i) + 1).map(|at| at as u8 ^ i).collect();
        journal.append_write(&write(i % 3, u64::from(i) * 5000, 0), &data).unwrap();
        let path = vec![b'a' + i; usize::from(i) * 9];
        journal.append(&Record::Path { handle: handle(i % 3), path }).unwrap();
    }
    journal.sync().unwrap();
    journal.append(&Record::Barrier { handle: handle(0) }).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn every_flip_is_found(
        which: prop::sample::Index,
        bit in 0..8u8,
        verify: bool,
        room: bool,
    ) {
        let dir = tempdir();
        make(dir.path(), room);
        let (good, damages) = contents(dir.path(), verify);
        prop_assert_eq!(damages, vec![]);
        let mut paths: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let images: Vec<_> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
        let mut at = which.index(images.iter().map(Vec::len).sum());
        let mut file = 0;
        while at >= images[file].len() {
            at -= images[file].len();
            file += 1;
        }
        let flipped = [images[file][at] ^ (1 << bit)];
        let open = std::fs::OpenOptions::new().write(true).open(&paths[file]).unwrap();
        open.write_all_at(&flipped, at as u64).unwrap();

        let (read, damages) = contents(dir.path(), verify);
        prop_assert!(read.len() + 1 >= good.len());
        prop_assert!(read.iter().all(|record| good.contains(record)));
        if damages.is_empty() {
            // Only where nothing is: between records, and behind a segment's header.
            prop_assert_eq!(&read, &good);
            prop_assert!(images[file][at] == 0);
        } else {
            let covers = |d: &Damage| d.at <= at as u64 && (at as u64) < d.at + d.bytes;
            prop_assert!(damages.iter().all(covers), "{} {:?}", at, damages);
            // All but the last record had been synced.
            // Or it is in the zeros behind it, where a record may have been.
            let last_is_lost = read.last().unwrap().0 < good.last().unwrap().0;
            let nothing_is = read == good && images[file][at] == 0;
            prop_assert!(damages[0].synced || last_is_lost || nothing_is);
        }
    }
}

#[test]
fn a_missing_segment_is_noticed() {
    let dir = tempdir();
    make(dir.path(), false);
    std::fs::remove_file(dir.path().join("00000002.log")).unwrap();
    let (_, damages) = contents(dir.path(), false);
    assert_eq!(damages.len(), 1);
    assert_eq!((damages[0].segment, damages[0].bytes, damages[0].synced), (3, 0, true));
}

#[test]
fn a_journal_inside_a_payload_is_not_taken_for_records() {
    let (inner, dir) = (tempdir(), tempdir());
    make(inner.path(), false);
    let image = std::fs::read(inner.path().join("00000001.log")).unwrap();
    let (journal, _, _) = reopen(dir.path(), JournalOptions::default());
    journal.append_write(&write(1, 0, 0), &image).unwrap();
    journal.append_write(&write(1, 0, 0), b"good").unwrap();
    drop(journal);
    // With the header of the first record gone, its payload is searched.
    let path = dir.path().join("00000001.log");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[70] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (read, damages) = contents(dir.path(), false);
    assert_eq!(read.len(), 1);
    assert_eq!(read[0].2, b"good");
    assert_eq!(damages.len(), 1);
}
