//! Metadata of all shapes.

use gridvfs_metadata::format::*;
use gridvfs_vfs::Time;
use proptest::prelude::*;

/// One with all parts, and more than one of everything.
#[allow(dead_code, reason = "not every test file needs it")]
pub fn full() -> Metadata {
    let (block_bytes, size) = (4096, 40 * 4096 + 100);
    let zero = ZeroMap::from_runs(block_bytes, size, [(3, 5), (20, 1), (38, 3)]).expect("a map");
    let listed = (0..32u8).map(|n| [n; HASH_BYTES]).collect();
    let hashes = Hashes::new(block_bytes, size, Some(&zero), listed).expect("hashes");
    let actions = ["command:ask-first", "zstd:3"].map(|text| text.parse().expect("an action"));
    let touched = |offset, length, seen| Touched { offset, length, seen };
    let ranges = vec![touched(8192, 100, 3), touched(0, 4096, 2), touched(size - 1, 1, 1)];
    Metadata {
        identity: Identity { size, mtime: Time { seconds: 1_700_000_000, nanoseconds: 5 } },
        block_bytes,
        zero: Some(zero),
        hashes: Some(hashes),
        actions: actions.into(),
        working_set: Some(WorkingSet { runs: 3, ranges }),
    }
}

/// A file without the checksums of the pieces of its hashes, its last part.
#[allow(dead_code, reason = "not every test file needs it")]
pub fn without_pieces(bytes: &[u8]) -> Vec<u8> {
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let count = u32::from_le_bytes(bytes[12..16].try_into().expect("4 bytes"));
    let last = 96 + (count as usize - 1) * 56;
    assert_eq!(bytes[last..last + 4], 5u32.to_le_bytes());
    let (begin, end) = (number(last + 8) as usize, bytes.len());
    let mut old = [&bytes[..last], &bytes[last + 56..begin]].concat();
    old[12..16].copy_from_slice(&(count - 1).to_le_bytes());
    old[16..24].copy_from_slice(&((begin - 56) as u64).to_le_bytes());
    for entry in (96..last).step_by(56) {
        old[entry + 8..entry + 16].copy_from_slice(&(number(entry + 8) - 56).to_le_bytes());
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&old[..64]).update(&old[96..last]);
    old[64..96].copy_from_slice(hasher.finalize().as_bytes());
    assert_eq!(number(last + 16) as usize, end - begin);
    old
}

/// Any.
pub fn metadata() -> impl Strategy<Value = Metadata> {
    let block_bytes = (12..=20u32).prop_map(|bits| 1 << bits);
    let identity = (any::<i64>(), 0..1_000_000_000u32);
    let blocks = prop_oneof![4 => 0..3u64, 4 => 0..700u64, 1 => 1000..1800u64];
    (block_bytes, blocks, 0..4096u64, identity).prop_flat_map(
        |(block_bytes, blocks, less, mtime)| {
            let size = (blocks * u64::from(block_bytes)).saturating_sub(less);
            let identity =
                Identity { size, mtime: Time { seconds: mtime.0, nanoseconds: mtime.1 } };
            let zero = prop::option::of(zero_map(block_bytes, size));
            let seed = prop::option::of(any::<u64>());
            let actions = prop::collection::vec(action(), 0..=ACTIONS_MAX);
            let set = prop::option::of(working_set(size));
            (zero, seed, actions, set).prop_map(move |(zero, seed, actions, working_set)| {
                let hashes = seed.map(|seed| hashes(block_bytes, size, zero.as_ref(), seed));
                Metadata { identity, block_bytes, zero, hashes, actions, working_set }
            })
        },
    )
}

fn hashes(block_bytes: u32, size: u64, zero: Option<&ZeroMap>, seed: u64) -> Hashes {
    let blocks = size.div_ceil(block_bytes.into());
    let listed = (0..blocks)
        .filter(|block| !zero.is_some_and(|zero| zero.is_zero(*block)))
        .map(|block| *blake3::hash(&(block ^ seed).to_le_bytes()).as_bytes());
    Hashes::new(block_bytes, size, zero, listed.collect()).expect("as many as are wanted")
}

fn zero_map(block_bytes: u32, size: u64) -> impl Strategy<Value = ZeroMap> {
    let blocks = size.div_ceil(block_bytes.into()) as usize;
    let scattered = prop::collection::vec(any::<bool>(), blocks);
    let in_runs =
        prop::collection::vec((any::<bool>(), 1..200usize), 0..20).prop_map(move |runs| {
            let bits = runs.into_iter().flat_map(|(zero, count)| std::iter::repeat_n(zero, count));
            bits.chain(std::iter::repeat(false)).take(blocks).collect()
        });
    prop_oneof![scattered, in_runs].prop_map(move |bits: Vec<bool>| {
        let zeros = (0u64..).zip(bits).filter(|(_, zero)| *zero).map(|(block, _)| (block, 1));
        ZeroMap::from_runs(block_bytes, size, zeros).expect("within the file")
    })
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Fetch { compression: Compression::None, level: 0 }),
        (-7..=22i8).prop_map(|level| Action::Fetch { compression: Compression::Zstd, level }),
        (1..=9i8).prop_map(|level| Action::Fetch { compression: Compression::Gzip, level }),
        "[A-Za-z0-9_-]{1,64}".prop_map(|name| Action::Command { name }),
    ]
}

/// Any that a file of `size` bytes may have.
pub fn working_set(size: u64) -> impl Strategy<Value = WorkingSet> {
    let range = (0..=size, 0..100_000u64, 0..9u32);
    (0..9u32, prop::collection::vec(range, 0..60)).prop_map(move |(runs, ranges)| {
        let touched = |(offset, length, seen)| Touched { offset, length, seen };
        WorkingSet { runs, ranges: ranges.into_iter().map(touched).collect() }.tidied(size)
    })
}
