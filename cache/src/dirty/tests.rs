use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const SPACE: u64 = 96;

fn place(segment: u32, length: u32) -> Place {
    Place { segment, at: 1000, length }
}

/// A byte: the sequence number that wrote it, and its distance from that record's begin.
type Byte = Option<(u64, u32)>;

/// What [`Dirty`] should be: an array for each epoch, and how much of each record is in use.
struct Model {
    epochs: Vec<(u64, Vec<Byte>)>,
    number: u64,
}

impl Model {
    fn new() -> Self {
        Self { epochs: vec![(0, vec![None; SPACE as usize])], number: 0 }
    }

    fn insert(&mut self, start: u64, len: u32, seq: u64) {
        let bytes = &mut self.epochs.last_mut().unwrap().1;
        (0..len).for_each(|i| bytes[start as usize + i as usize] = Some((seq, i)));
    }

    fn barrier(&mut self) {
        let held = self.epochs.last().unwrap().1.iter().any(Option::is_some);
        if held && self.epochs.len() < EPOCHS_MAX {
            self.number += 1;
            self.epochs.push((self.number, vec![None; SPACE as usize]));
        }
    }

    fn drop_empty(&mut self) {
        let number = self.number;
        self.epochs.retain(|(n, bytes)| *n == number || bytes.iter().any(Option::is_some));
    }

    fn clear(&mut self, epochs: usize, up_to_seq: u64, start: u64, end: u64) {
        for (_, bytes) in self.epochs.iter_mut().take(epochs) {
            for byte in &mut bytes[start.min(SPACE) as usize..end.min(SPACE) as usize] {
                *byte = byte.filter(|(seq, _)| *seq > up_to_seq);
            }
        }
        self.drop_empty();
    }

    fn newest(&self, at: usize) -> Byte {
        self.epochs.iter().rev().find_map(|(_, bytes)| bytes[at])
    }

    /// The bytes in use of each record.
    fn used(&self) -> HashMap<u64, u64> {
        let mut used = HashMap::new();
        self.epochs.iter().flat_map(|(_, bytes)| bytes).flatten().for_each(|(seq, _)| {
            *used.entry(*seq).or_insert(0) += 1;
        });
        used
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert(u64, u32),
    Barrier,
    Sent(u64, u64, u64),
    UpTo(u64, u64, u64),
    Truncate(u64),
    Move(u32),
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    let range = || (0..SPACE, 0..=SPACE).prop_map(|(a, b)| (a.min(b), a.max(b)));
    prop_oneof![
        12 => (0..SPACE - 1, 1..24u32)
            .prop_map(|(start, len)| Op::Insert(start, len.min((SPACE - start) as u32))),
        4 => Just(Op::Barrier),
        4 => (0..12u64, range()).prop_map(|(back, (start, end))| Op::Sent(back, start, end)),
        1 => (0..12u64, range()).prop_map(|(back, (start, end))| Op::UpTo(back, start, end)),
        2 => (0..SPACE).prop_map(Op::Truncate),
        2 => (0..4u32).prop_map(Op::Move),
        1 => Just(Op::Clear),
    ]
}

fn compare(dirty: &Dirty, model: &Model) -> Result<(), TestCaseError> {
    for (start, end) in [(0, SPACE), (7, 40), (33, 34), (50, 50)] {
        let mut at = start;
        dirty.overlay(start, end, &mut |piece| match piece {
            Piece::Held(extent) => {
                assert_eq!(extent.start, at);
                for i in 0..extent.len {
                    let byte = model.newest((extent.start + u64::from(i)) as usize);
                    assert_eq!(byte, Some((extent.seq, extent.skip + i)));
                }
                assert!(extent.len > 0);
                at = extent.end();
            }
            Piece::Gap { start, end } => {
                assert_eq!(start, at);
                assert!(start < end);
                (start..end).for_each(|i| assert_eq!(model.newest(i as usize), None));
                at = end;
            }
        });
        prop_assert_eq!(at, end.max(start));
        let held = (start..end).filter(|i| model.newest(*i as usize).is_some()).count() as u64;
        prop_assert_eq!(dirty.touches(start, end), held > 0);
        prop_assert_eq!(dirty.covers(start, end), held == end - start);
    }
    let first = model.epochs.iter().find(|(_, bytes)| bytes.iter().any(Option::is_some));
    prop_assert_eq!(dirty.oldest_epoch(), first.map(|(number, _)| *number));
    let mut oldest = vec![None; SPACE as usize];
    for extent in dirty.oldest(0, u64::MAX) {
        for i in 0..extent.len {
            oldest[extent.start as usize + i as usize] = Some((extent.seq, extent.skip + i));
        }
    }
    let none = vec![None; SPACE as usize];
    prop_assert_eq!(&oldest, first.map_or(&none, |(_, bytes)| bytes));
    prop_assert_eq!(dirty.bytes(), model.used().values().sum::<u64>());
    prop_assert_eq!(dirty.oldest_bytes(), oldest.iter().flatten().count() as u64);
    let end = (0..SPACE as usize).rev().find(|at| model.newest(*at).is_some());
    prop_assert_eq!(dirty.end(), end.map_or(0, |at| at as u64 + 1));
    prop_assert_eq!(dirty.is_empty(), end.is_none());
    prop_assert_eq!(dirty.epoch(), model.number);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is done, what is held is what an array for each epoch holds, and each byte of
    /// payload is freed exactly once.
    #[test]
    fn same_as_arrays(ops in prop::collection::vec(op(), 1..60)) {
        let mut dirty = Dirty::new();
        let mut model = Model::new();
        // Bytes in use by place; the segment number tells the places apart.
        let mut used: HashMap<Place, u64> = HashMap::new();
        let mut next = 1;
        let mut moves = 0;
        for op in ops {
            let freed = match op {
                Op::Insert(start, len) => {
                    let place = place(next as u32, len);
                    used.insert(place, u64::from(len));
                    model.insert(start, len, next);
                    next += 1;
                    dirty.insert(start, len, next - 1, place)
                }
                Op::Barrier => {
                    model.barrier();
                    dirty.barrier();
                    Freed::new()
                }
                Op::Sent(back, start, end) => {
                    let up_to = u64::saturating_sub(next, back);
                    model.clear(1, up_to, start, end);
                    dirty.clear_sent(up_to, start, end)
                }
                Op::UpTo(back, start, end) => {
                    let up_to = u64::saturating_sub(next, back);
                    model.clear(usize::MAX, up_to, start, end);
                    dirty.clear_up_to(up_to, start, end)
                }
                Op::Truncate(size) => {
                    model.clear(usize::MAX, u64::MAX, size, SPACE);
                    dirty.truncate(size)
                }
                Op::Clear => {
                    model.clear(usize::MAX, u64::MAX, 0, SPACE);
                    dirty.clear()
                }
                Op::Move(nth) => {
                    let all = dirty.oldest(0, u64::MAX);
                    let Some(extent) = all.get(nth as usize).copied() else { continue };
                    let epoch = dirty.oldest_epoch().unwrap();
                    moves += 1;
                    let to = Place { at: 1000 + moves, ..place(0, extent.len) };
                    used.insert(to, u64::from(extent.len));
                    let freed = dirty.moved(epoch, &extent, to);
                    let range = extent.start as usize..extent.end() as usize;
                    let held = model.epochs.iter_mut().find(|held| held.0 == epoch).unwrap();
                    held.1[range].iter_mut().flatten().for_each(|byte| byte.1 -= extent.skip);
                    freed
                }
            };
            for (place, bytes) in freed {
                let left = used.get_mut(&place).expect("a place that is known");
                prop_assert!(bytes > 0 && *left >= bytes);
                *left -= bytes;
            }
            compare(&dirty, &model)?;
            prop_assert_eq!(used.values().sum::<u64>(), dirty.bytes());
        }
    }
}

#[test]
fn epochs_are_kept_apart_up_to_a_limit() {
    let mut dirty = Dirty::new();
    for seq in 0..EPOCHS_MAX as u64 + 10 {
        dirty.insert(0, 4096, seq + 1, place(seq as u32, 4096));
        dirty.barrier();
    }
    assert_eq!(dirty.epochs(), EPOCHS_MAX);
    // Sending the oldest makes room for another.
    let oldest = dirty.oldest(0, u64::MAX)[0];
    assert_eq!(dirty.clear_sent(oldest.seq, 0, u64::MAX), vec![(oldest.place, 4096)]);
    dirty.barrier();
    dirty.insert(0, 4096, 1000, place(1000, 4096));
    assert_eq!(dirty.epochs(), EPOCHS_MAX);
    assert!(dirty.has_before(2) && !dirty.has_before(1));
}

#[test]
fn moving_keeps_what_was_overwritten_meanwhile() {
    let mut dirty = Dirty::new();
    dirty.insert(0, 100, 1, place(1, 100));
    let extent = dirty.oldest(0, u64::MAX)[0];
    dirty.insert(40, 20, 2, place(2, 20));
    let freed = dirty.moved(0, &extent, place(3, 100));
    let total: u64 = freed.iter().filter(|(p, _)| p.segment == 1).map(|(_, bytes)| bytes).sum();
    assert_eq!(total, 80);
    assert!(freed.contains(&(place(3, 100), 20)));
    assert_eq!(dirty.oldest(60, 1)[0].skip, 60);
    assert_eq!(dirty.oldest(60, 1)[0].place.segment, 3);
    assert_eq!(dirty.in_segment(2, 1), vec![(0, dirty.oldest(40, 1)[0])]);
}

/// A former structure was quadratic here.
#[test]
fn many_extents_come_and_go_quickly() {
    const COUNT: u64 = 100_000;
    let mut dirty = Dirty::new();
    let started = std::time::Instant::now();
    for i in 0..COUNT {
        // A permutation of the blocks.
        let block = i * 61_469 % COUNT;
        dirty.insert(block * 8192, 4096, i + 1, place(1, 4096));
    }
    assert_eq!(dirty.extents(), COUNT as usize);
    let mut from = 0;
    while let Some(extent) = dirty.oldest(from, 1 << 20).last().copied() {
        assert!(!dirty.clear_sent(COUNT, from, extent.end()).is_empty());
        from = extent.end();
    }
    assert!(dirty.is_empty());
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
}
