//! The parser of metadata files against bytes that nobody wrote so: what the fuzz target does, a
//! bounded number of times.

#[path = "../fuzz/entry.rs"]
mod entry;
mod samples;

use gridvfs_metadata::format::{FormatError, Metadata};
use proptest::prelude::*;

/// A change of the bytes.
#[derive(Clone, Debug)]
enum Change {
    Flip(prop::sample::Index, u8),
    Number(prop::sample::Index, u64),
    Cut(prop::sample::Index),
    Drop(prop::sample::Index, usize),
    Insert(prop::sample::Index, Vec<u8>),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    let number = prop_oneof![Just(0), Just(1), Just(u64::MAX), Just(1 << 63), any::<u64>()];
    prop_oneof![
        (at(), 1..=255u8).prop_map(|(at, bits)| Change::Flip(at, bits)),
        (at(), number).prop_map(|(at, number)| Change::Number(at, number)),
        at().prop_map(Change::Cut),
        (at(), 1..9usize).prop_map(|(at, count)| Change::Drop(at, count)),
        (at(), prop::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(at, more)| Change::Insert(at, more)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    if bytes.is_empty() {
        return;
    }
    let length = bytes.len();
    match change {
        Change::Flip(at, bits) => bytes[at.index(length)] ^= bits,
        Change::Number(at, number) => {
            let at = at.index(length);
            let count = (length - at).min(8);
            bytes[at..at + count].copy_from_slice(&number.to_le_bytes()[..count]);
        }
        Change::Cut(at) => bytes.truncate(at.index(length)),
        Change::Drop(at, count) => {
            let at = at.index(length);
            bytes.drain(at..(at + count).min(length));
        }
        Change::Insert(at, more) => {
            let at = at.index(length);
            bytes.splice(at..at, more.iter().copied());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(700))]

    #[test]
    fn changed_bytes_are_refused_or_sound(
        metadata in samples::metadata(),
        changes in prop::collection::vec(change(), 1..4),
    ) {
        let whole = metadata.encode();
        let mut bytes = whole.clone();
        changes.iter().for_each(|change| apply(&mut bytes, change));
        let [as_is, _] = entry::parse(&bytes);
        prop_assert_eq!(as_is.is_ok(), bytes == whole, "no change passes the checksums");
    }

    #[test]
    fn a_change_of_one_part_is_refused_or_sound_behind_right_checksums(
        metadata in samples::metadata(),
        at in any::<prop::sample::Index>(),
        bits in 1..=255u8,
    ) {
        let mut bytes = metadata.encode();
        let at = at.index(bytes.len());
        bytes[at] ^= bits;
        entry::mend(&mut bytes);
        let [as_is, mended] = entry::parse(&bytes);
        prop_assert_eq!(as_is, mended, "the checksums are right already");
    }

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(entry::parse(&bytes).iter().all(Result::is_err));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_truncation_passes(metadata in samples::metadata()) {
        let whole = metadata.encode();
        let step = (whole.len() / 200).max(1);
        for length in (0..whole.len()).step_by(step) {
            prop_assert!(entry::parse(&whole[..length]).iter().all(Result::is_err), "{}", length);
        }
    }
}

/// How many mutants [`mutants_are_refused_or_sound`] tries: some seconds without optimisation.
const MUTANTS: u64 = 200_000;

/// Mutants of mutants, as the fuzzer makes them: what passes is mutated further. The seed is that of
/// the clock, or GRIDVFS_TEST_SEED.
#[test]
fn mutants_are_refused_or_sound() {
    let clock = || std::time::UNIX_EPOCH.elapsed().map_or(1, |time| time.as_nanos() as u64);
    let given = std::env::var("GRIDVFS_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(clock);
    println!("GRIDVFS_TEST_SEED={seed}");
    let mut state = seed | 1;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below
    };
    let whole = samples::full().encode();
    let mut pool = vec![whole.clone(); 16];
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..MUTANTS {
        let mut bytes = pool[random(16)].clone();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(6) {
                0 => bytes[at] ^= 1 << random(8),
                1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random(5)],
                2 => bytes[at] = bytes[at].wrapping_add([1, 255][random(2)]),
                3 => drop(bytes.remove(at)),
                4 => bytes.insert(at, random(256) as u8),
                // From elsewhere in it, over it.
                _ => {
                    let length = 1 + random(16).min(bytes.len() - at - 1);
                    let from = random(bytes.len() - length + 1);
                    bytes.copy_within(from..from + length, at);
                }
            }
            if bytes.is_empty() {
                bytes = whole.clone();
            }
        }
        let [_, mended] = entry::parse(&bytes);
        match mended {
            Ok(_) => {
                accepted += 1;
                pool[random(16)] = bytes;
            }
            Err(_) => refused += 1,
        }
    }
    println!("{accepted} accepted, {refused} refused");
    assert!(accepted > MUTANTS / 100 && refused > MUTANTS / 100, "mutants are of both kinds");
}

/// The number of the part of a kind, in the table of a file.
fn entry_of(bytes: &[u8], kind: u32) -> usize {
    (0..)
        .map(|index| 96 + index * 56)
        .find(|at| bytes[*at..at + 4] == kind.to_le_bytes())
        .expect("the part is there")
}

fn mended(mut bytes: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Result<Metadata, FormatError> {
    change(&mut bytes);
    entry::mend(&mut bytes);
    let [_, parsed] = entry::parse(&bytes);
    parsed
}

#[test]
fn a_later_version_is_called_so() {
    for version in [2u32, 77, u32::MAX] {
        let mut bytes = samples::full().encode();
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        let error = Metadata::decode(&bytes).expect_err("refused");
        assert_eq!(error, FormatError::Version(version));
        assert!(error.to_string().contains("newer than this program"), "{error}");
    }
}

#[test]
fn unknown_parts_are_skipped_unless_required() {
    let whole = samples::full();
    let bytes = whole.encode();
    let last = entry_of(&bytes, 4);
    let unknown = |bytes: &mut Vec<u8>| bytes[last..last + 4].copy_from_slice(&99u32.to_le_bytes());
    let without = mended(bytes.clone(), unknown).expect("skipped");
    assert_eq!(without, Metadata { working_set: None, ..whole.clone() });
    let required = mended(bytes, |bytes| {
        unknown(bytes);
        bytes[last + 4] = 1;
    });
    assert_eq!(required, Err(FormatError::Required(99)));
}

#[test]
fn parts_lie_one_behind_the_other() {
    let bytes = samples::full().encode();
    let second = entry_of(&bytes, 2);
    for offset in [0u64, 96, u64::MAX] {
        let moved = mended(bytes.clone(), |bytes| {
            bytes[second + 8..second + 16].copy_from_slice(&offset.to_le_bytes());
        });
        assert!(matches!(moved, Err(FormatError::Malformed { .. })), "{moved:?}");
    }
    let longer = mended(bytes.clone(), |bytes| {
        let last = entry_of(bytes, 4);
        bytes[last + 16..last + 24].copy_from_slice(&(1u64 << 40).to_le_bytes());
    });
    assert_eq!(longer, Err(FormatError::Cut { what: "parts" }));
    let behind = mended(bytes.clone(), |bytes| bytes.push(0));
    assert!(matches!(behind, Err(FormatError::Malformed { .. })), "{behind:?}");
    let twice = mended(bytes, |bytes| bytes[second] = 1);
    assert!(matches!(twice, Err(FormatError::Malformed { .. })), "{twice:?}");
}

#[test]
fn absurd_counts_are_refused_before_anything_is_allocated() {
    let bytes = samples::full().encode();
    let size = mended(bytes.clone(), |bytes| bytes[24..32].fill(0xff));
    assert!(matches!(size, Err(FormatError::TooManyBlocks { .. })), "{size:?}");
    let block = mended(bytes.clone(), |bytes| bytes[44..48].fill(0));
    assert_eq!(block, Err(FormatError::BlockBytes(0)));
    let parts = mended(bytes, |bytes| bytes[12..16].fill(0xff));
    assert!(matches!(parts, Err(FormatError::Malformed { .. })), "{parts:?}");
}
