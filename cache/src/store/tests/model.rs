//! The store against a model: a map of blocks. A missing block is allowed where frames make room
//! for others, a wrong one never.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const BLOCK: u64 = BLOCK_BYTES as u64;
const BLOCKS: u64 = 40;

#[derive(Clone, Debug)]
enum Op {
    Put { key: u64, block: u64, length: usize, seed: u64 },
    Patch { key: u64, offset: u64, length: usize, seed: u64, eof: bool },
    Cut { key: u64, from: u64, to: u64 },
    Read { key: u64, offset: u64, length: usize },
    Pin { keys: Vec<u64> },
    GiveBack { bytes: u64 },
    Reopen,
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    let bytes = BLOCKS * BLOCK;
    let key = || 1..4u64;
    let lengths = || prop_oneof![1..9000usize, 1..90_000usize];
    prop_oneof![
        4 => (key(), 0..BLOCKS, 1..90_000usize, any::<u64>())
            .prop_map(|(key, block, length, seed)| Op::Put { key, block, length, seed }),
        6 => (key(), 0..bytes, lengths(), any::<u64>(), any::<bool>())
            .prop_map(|(key, offset, length, seed, eof)| {
                Op::Patch { key, offset, length, seed, eof }
            }),
        2 => (key(), 0..bytes, prop_oneof![0..bytes, Just(u64::MAX)])
            .prop_map(|(key, from, to)| Op::Cut { key, from, to }),
        8 => (key(), 0..bytes, 1..170_000usize)
            .prop_map(|(key, offset, length)| Op::Read { key, offset, length }),
        1 => prop::collection::vec(key(), 0..3).prop_map(|keys| Op::Pin { keys }),
        1 => (0..200_000u64).prop_map(|bytes| Op::GiveBack { bytes }),
        1 => Just(Op::Reopen),
        1 => prop_oneof![9 => Just(Op::Reopen), 1 => Just(Op::Clear)],
    ]
}

/// The blocks that a store may hold. `exact`: must hold.
struct Model {
    blocks: HashMap<(u64, u64), Vec<u8>>,
    exact: bool,
}

impl Model {
    fn patch(&mut self, key: u64, offset: u64, data: &[u8], eof: bool) {
        let end = offset + data.len() as u64;
        for number in offset / BLOCK..end.div_ceil(BLOCK) {
            let start = number * BLOCK;
            let (from, to) = (start.max(offset), (start + BLOCK).min(end));
            let part = &data[(from - offset) as usize..(to - offset) as usize];
            let whole = from == start && (to == start + BLOCK || eof);
            if whole {
                let mut block = part.to_vec();
                block.resize(BLOCK_BYTES, 0);
                self.blocks.insert((key, number), block);
            } else if let Some(block) = self.blocks.get_mut(&(key, number)) {
                block[(from - start) as usize..(to - start) as usize].copy_from_slice(part);
            }
        }
    }

    /// Checks everything that can be asked of a range.
    fn check(&self, store: &Store, key: u64, offset: u64, length: usize) {
        let mut out = vec![0xAA; length];
        let gap = store.first_gap(FileKey(key), offset, offset + length as u64);
        let had = store.read(FileKey(key), offset, &mut out) as u64;
        assert_eq!(gap.map_or(length as u64, |gap| gap.0 - offset), had);
        let end = offset + length as u64;
        let last = if had > 0 { (offset + had).div_ceil(BLOCK) } else { 0 };
        for number in offset / BLOCK..last {
            let start = number * BLOCK;
            let (from, to) = (start.max(offset), (start + BLOCK).min(offset + had));
            let block = self.blocks.get(&(key, number)).expect("a block that nobody stored");
            assert!(
                out[(from - offset) as usize..(to - offset) as usize]
                    == block[(from - start) as usize..(to - start) as usize]
            );
        }
        if self.exact {
            let held = |number: u64| self.blocks.contains_key(&(key, number));
            let numbers = offset / BLOCK..end.div_ceil(BLOCK);
            let first = numbers.clone().find(|number| !held(*number));
            let wanted = first.map(|first| {
                let next = (first..numbers.end).find(|number| held(*number));
                ((first * BLOCK).max(offset), next.map_or(end, |next| next * BLOCK))
            });
            assert_eq!(gap, wanted);
        }
    }
}

fn run(ops: Vec<Op>, geometry: &Geometry, exact: bool) {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), geometry, false).unwrap();
    let mut model = Model { blocks: HashMap::new(), exact };
    for op in ops {
        match op {
            Op::Put { key, block, length, seed } => {
                let data = filled(seed, length);
                match store.put(FileKey(key), block * BLOCK, &data) {
                    Ok(()) => {}
                    Err(StoreError::Pinned) if !exact => {}
                    Err(error) => panic!("{error}"),
                }
                model.patch(key, block * BLOCK, &data, true);
                if exact {
                    model.check(&store, key, block * BLOCK, length);
                }
            }
            Op::Patch { key, offset, length, seed, eof } => {
                let data = filled(seed, length);
                match store.patch(FileKey(key), offset, &data, eof) {
                    Ok(()) => {}
                    Err(StoreError::Pinned) if !exact => {}
                    Err(error) => panic!("{error}"),
                }
                model.patch(key, offset, &data, eof);
            }
            Op::Cut { key, from, to } => {
                store.cut(FileKey(key), from, to);
                if from < to {
                    let range = from / BLOCK..to.div_ceil(BLOCK);
                    model.blocks.retain(|at, _| at.0 != key || !range.contains(&at.1));
                }
            }
            Op::Read { key, offset, length } => model.check(&store, key, offset, length),
            Op::Pin { keys } => store.set_pinned(keys.into_iter().map(FileKey).collect()),
            Op::GiveBack { .. } if exact => {}
            Op::GiveBack { bytes } => {
                store.give_back(bytes);
            }
            Op::Reopen => {
                drop(store);
                store = Store::open(dir.path(), geometry, false).unwrap();
            }
            Op::Clear => {
                store.clear();
                model.blocks.clear();
                assert_eq!(store.usage().blocks, 0);
            }
        }
    }
    for key in 1..4 {
        for number in 0..BLOCKS + 30 {
            model.check(&store, key, number * BLOCK, BLOCK_BYTES);
        }
        let held = model.blocks.keys().filter(|at| at.0 == key).count() as u64 * BLOCK;
        let counted = [400_000, u64::MAX].map(|size| store.bytes_of(FileKey(key), size));
        assert!(counted.iter().all(|bytes| if exact { *bytes == held } else { *bytes <= held }));
    }
    let report = store.verify(&mut |_, _| {});
    assert_eq!((report.bad_count, report.blocks), (0, store.usage().blocks));
    assert_eq!(count(&store.counters().repaired), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_store_with_room_holds_what_was_stored(ops in prop::collection::vec(op(), 1..50)) {
        let geometry = Geometry { size_bytes: 4 << 20, banks: 3, ways: 8, frame_bytes: 16 << 10 };
        run(ops, &geometry, true);
    }

    #[test]
    fn a_store_without_room_never_holds_anything_else(ops in prop::collection::vec(op(), 1..50)) {
        let geometry = Geometry { size_bytes: 192 << 10, banks: 2, ways: 3, frame_bytes: 16 << 10 };
        run(ops, &geometry, false);
    }
}
