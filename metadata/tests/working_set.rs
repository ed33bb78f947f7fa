//! Working sets: what is left of what was touched, and how runs are merged.

use gridvfs_metadata::format::{Touched, WORKING_SET_RANGES_MAX, WorkingSet};
use proptest::prelude::*;

const SIZE: u64 = 1 << 20;

fn set(runs: u32, ranges: &[(u64, u64, u32)]) -> WorkingSet {
    let touched = |&(offset, length, seen)| Touched { offset, length, seen };
    WorkingSet { runs, ranges: ranges.iter().map(touched).collect() }
}

fn merged(old: &WorkingSet, newer: &WorkingSet) -> WorkingSet {
    let mut all = old.clone();
    all.merge(newer);
    all
}

fn any_set() -> impl Strategy<Value = WorkingSet> {
    let range = (0..100u64, 0..30u64, 0..5u32);
    (1..5u32, prop::collection::vec(range, 0..20)).prop_map(|(runs, ranges)| set(runs, &ranges))
}

/// How often each of the first bytes was seen.
fn seen(set: &WorkingSet) -> Vec<u32> {
    let range_of = |at| set.ranges.iter().find(|range| (range.offset..range.end()).contains(&at));
    (0..140).map(|at| range_of(at).map_or(0, |range| range.seen)).collect()
}

proptest! {
    #[test]
    fn tidied_sets_have_each_byte_once_and_first_come_first(wild in any_set(), size in 0..140u64) {
        let tidy = wild.tidied(size);
        let mut bytes: Vec<u64> = tidy.ranges.iter().flat_map(|r| r.offset..r.end()).collect();
        let first: Vec<u64> = wild.ranges.iter().flat_map(|r| r.offset..r.end()).collect();
        let mut known = std::collections::HashSet::new();
        let expected: Vec<u64> =
            first.into_iter().filter(|at| *at < size && known.insert(*at)).collect();
        prop_assert_eq!(&bytes, &expected);
        bytes.sort_unstable();
        bytes.dedup();
        prop_assert_eq!(bytes.len(), expected.len());
        prop_assert!(tidy.ranges.iter().all(|range| (1..=tidy.runs).contains(&range.seen)));
        prop_assert_eq!(&tidy.tidied(size), &tidy);
    }

    #[test]
    fn merging_adds_up_what_was_seen(old in any_set(), newer in any_set()) {
        let (old, newer) = (old.tidied(SIZE), newer.tidied(SIZE));
        let all = merged(&old, &newer);
        prop_assert_eq!(all.runs, old.runs + newer.runs);
        let sums: Vec<u32> = seen(&old).iter().zip(seen(&newer)).map(|(a, b)| a + b).collect();
        prop_assert_eq!(seen(&all), sums);
        prop_assert_eq!(&all.tidied(SIZE), &all);
    }
}

#[test]
fn the_newer_order_goes_first() {
    let old = set(1, &[(0, 10, 1), (100, 10, 1), (200, 10, 1), (300, 10, 1)]);
    let newer = set(1, &[(300, 10, 1), (0, 5, 1)]);
    // 0 to 4 was seen again, late; 5 to 9 keeps its early place among the rest.
    assert_eq!(
        merged(&old, &newer),
        set(2, &[(5, 5, 1), (300, 10, 2), (100, 10, 1), (0, 5, 2), (200, 10, 1)])
    );
}

#[test]
fn what_is_seldom_touched_comes_last() {
    let old = set(4, &[(0, 10, 1), (100, 10, 4)]);
    let newer = set(1, &[(200, 10, 1), (100, 10, 1)]);
    assert_eq!(merged(&old, &newer), set(5, &[(100, 10, 5), (0, 10, 1), (200, 10, 1)]));
}

#[test]
fn a_change_of_behaviour_is_learned() {
    let mut all = WorkingSet::default();
    for _ in 0..20 {
        all.merge(&set(1, &[(0, 4096, 1)]));
    }
    all.merge(&set(1, &[(0, 4096, 1), (9000, 10, 1)]));
    assert!(all.ranges.iter().any(|range| range.offset == 9000));
    for _ in 0..100 {
        all.merge(&set(1, &[(4096, 4096, 1)]));
        assert!(all.runs <= 32, "{}", all.runs);
    }
    assert_eq!(all.ranges[0], Touched { offset: 4096, length: 4096, seen: all.ranges[0].seen });
    assert_eq!(all.ranges.len(), 1, "what is not touched any more is forgotten: {all:?}");
}

#[test]
fn the_first_run_is_taken_as_it_is() {
    let first = set(1, &[(8192, 100, 1), (0, 4096, 1)]);
    assert_eq!(merged(&WorkingSet::default(), &first), first);
    assert_eq!(merged(&first, &WorkingSet::default()), first);
}

#[test]
fn too_many_ranges_lose_those_least_seen() {
    let count = WORKING_SET_RANGES_MAX as u64;
    let evens: Vec<_> = (0..count).map(|n| (n * 4, 1, 2)).collect();
    let odds: Vec<_> = (0..10).map(|n| (n * 4 + 2, 1, 1)).collect();
    let all = merged(&set(2, &evens), &set(1, &odds));
    assert_eq!(all.ranges.len() as u64, count);
    assert!(all.ranges.iter().all(|range| range.seen == 2));
}

#[test]
fn absurd_sets_do_no_harm() {
    let wild = set(u32::MAX, &[(u64::MAX, u64::MAX, u32::MAX), (0, u64::MAX, u32::MAX), (5, 0, 0)]);
    let all = merged(&wild, &wild);
    assert!(all.runs <= 32);
    assert_eq!(
        all.tidied(10).ranges,
        [Touched { offset: 0, length: 10, seen: all.ranges[0].seen }]
    );
}

#[test]
fn json_is_that_of_profiles() {
    let text = r#"{"runs":2,"ranges":[{"offset":0,"length":4096,"seen":2}]}"#;
    let read: WorkingSet = serde_json::from_str(text).expect("read");
    assert_eq!(read, set(2, &[(0, 4096, 2)]));
    assert_eq!(serde_json::to_string(&read).expect("written"), text);
}
