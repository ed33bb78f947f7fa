//! A process that dies at each named point, and what the next one finds.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use super::*;
use crate::crash::{self, Point};

const DIR: &str = "GRIDVFS_TEST_JOURNAL_DIR";
const POINT: &str = "GRIDVFS_TEST_CRASH_POINT";

/// The process that dies; does nothing when run as a test.
#[test]
fn child() {
    let (Ok(dir), Ok(point)) = (std::env::var(DIR), std::env::var(POINT)) else { return };
    let (name, countdown) = point.split_once(':').unwrap();
    let options = JournalOptions { segment_bytes: 4096, verify: false };
    let (journal, _, _) = reopen(dir.as_ref(), options);
    crash::arm(name, countdown.parse().unwrap()).unwrap();
    for i in 0..20u8 {
        journal.make_room().unwrap();
        let header = write(1, u64::from(i) * 1000, 0);
        let (seq, place) = journal.append_write(&header, &[i; 1000]).unwrap();
        println!("acknowledged {i}");
        journal.sync().unwrap();
        if i % 2 == 1 {
            let record = Record::Sent {
                handle: handle(1),
                up_to_seq: seq,
                start: header.offset,
                end: header.offset + 1000,
                base: None,
            };
            journal.append(&record).unwrap();
            println!("sent {i}");
            journal.release(&place, 1000);
        }
        if i % 8 == 7 {
            let all = Record::Sent {
                handle: handle(1),
                up_to_seq: seq,
                start: 0,
                end: u64::MAX,
                base: None,
            };
            println!("clearing {i}");
            journal.append(&all).unwrap();
            println!("all {i}");
            (0..4).for_each(|back| {
                let at = i - 1 - 2 * back;
                let place = journal_place(dir.as_ref(), at);
                journal.release(&place, 1000);
            });
            journal.reclaim(&mut |_| Ok(())).unwrap();
        }
    }
}

/// Finds a write's place by its data's number, in the files.
fn journal_place(dir: &std::path::Path, number: u8) -> Place {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let Some(segment) = segment::number_of(path.file_name().unwrap().to_str().unwrap()) else {
            continue;
        };
        let file = std::fs::File::open(&path).unwrap();
        let mut found = None;
        scan::walk(&file, scan::Identity { segment, log_id: None }, &mut |item| {
            if let scan::Item::Record { header, .. } = item
                && header.is_write()
                && header.a == u64::from(number) * 1000
            {
                found = Some(Place { segment, at: header.at + 164, length: header.length });
            }
            Ok(true)
        })
        .unwrap();
        if let Some(place) = found {
            return place;
        }
    }
    panic!("write {number} is not in the log");
}

#[test]
fn a_kill_at_any_point_loses_nothing() {
    if !cfg!(debug_assertions) {
        return;
    }
    let mut deaths = 0;
    for point in Point::ALL.iter().filter(|point| point.name().starts_with("JOURNAL")) {
        for countdown in [1, 2, 5, 14] {
            let dir = tempdir();
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "journal::tests::kills::child",
                    "--nocapture",
                    "--test-threads=1",
                ])
                .env(DIR, dir.path())
                .env(POINT, format!("{}:{countdown}", point.name()))
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut dirty = std::collections::BTreeSet::new();
            let mut last = 0;
            // Below this, a Sent that nobody has told us of may be in the log.
            let mut certain_from = 0;
            for line in BufReader::new(child.stdout.take().unwrap()).lines() {
                let line = line.unwrap();
                let Some((what, number)) = line.rsplit_once(' ') else { continue };
                let Ok(number) = number.parse::<u64>() else { continue };
                match what.rsplit(' ').next() {
                    Some("acknowledged") => drop(dirty.insert(number)),
                    Some("sent") => drop(dirty.remove(&number)),
                    Some("clearing") => certain_from = number + 1,
                    Some("all") => {
                        dirty.clear();
                        certain_from = 0;
                    }
                    _ => continue,
                }
                last = number;
            }
            let status = child.wait().unwrap();
            deaths += u32::from(status.signal() == Some(9));
            let (journal, files, damages) = reopen(dir.path(), small());
            assert_eq!(damages, [], "{point:?} {countdown}");
            let empty = RecoveredFile::default();
            let found = &files.get(&handle(1)).unwrap_or(&empty).dirty;
            // What was being done when it died may be there or not.
            for number in certain_from..last {
                let held = found.covers(number * 1000, number * 1000 + 1000);
                assert_eq!(held, dirty.contains(&number), "{point:?} {countdown} {number}");
            }
            for extent in found.oldest(0, u64::MAX) {
                let mut data = vec![0; extent.len as usize];
                journal.read(&extent.place, u64::from(extent.skip), &mut data).unwrap();
                assert!(data.iter().all(|byte| u64::from(*byte) == extent.start / 1000));
            }
        }
    }
    assert!(deaths >= 18, "only {deaths} processes died");
}
