//! What metadata files say: names, parts, and that they are read as they were written.

mod samples;

use gridvfs_metadata::format::*;
use gridvfs_vfs::Time;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn what_is_written_is_read(metadata in samples::metadata()) {
        prop_assert_eq!(metadata.check(), Ok(()));
        let bytes = metadata.encode();
        prop_assert_eq!(Metadata::decode(&bytes), Ok(metadata.clone()));
        prop_assert_eq!(Metadata::decode(&bytes).expect("read").encode(), bytes);
    }

    #[test]
    fn hashes_in_pieces_are_those_of_the_whole(metadata in samples::metadata()) {
        let bytes = metadata.encode();
        let size = bytes.len() as u64;
        let outline = Outline::read(&bytes[..bytes.len().min(Outline::BYTES_MAX)], size);
        let outline = outline.expect("read");
        let Some(parts) = outline.but_for_hashes() else {
            prop_assert!(metadata.hashes.is_none_or(|hashes| hashes.listed() <= PIECE_HASHES));
            return Ok(());
        };
        prop_assert!(parts.iter().map(|part| part.end - part.start).sum::<u64>() < size / 2);
        let part = |part: std::ops::Range<u64>| {
            Some((part.start, &bytes[part.start as usize..part.end as usize]))
        };
        let (read, pieces) = outline.decode(part).expect("all parts");
        prop_assert_eq!(&read, &Metadata { hashes: None, ..metadata.clone() });
        let all = metadata.hashes.expect("there are pieces");
        let missing: Vec<_> = pieces.missing(0..pieces.blocks()).collect();
        prop_assert_eq!(missing.len() as u64, all.listed().div_ceil(PIECE_HASHES));
        for piece in missing {
            let span = pieces.span(piece);
            let bytes = &bytes[span.start as usize..span.end as usize];
            let blocks = pieces.blocks_of(piece);
            prop_assert!(pieces.missing(blocks.clone()).next() == Some(piece));
            let mut damaged = bytes.to_vec();
            damaged[bytes.len() / 2] ^= 1;
            prop_assert!(pieces.put(piece, &damaged).is_err());
            prop_assert!(pieces.put(piece, &bytes[1..]).is_err());
            prop_assert!(!pieces.is_here(piece));
            prop_assert_eq!(pieces.put(piece, bytes), Ok(()));
            prop_assert!(blocks.clone().all(|block| pieces.get(block) == all.get(block)));
            prop_assert_eq!(pieces.missing(blocks).next(), None);
        }
        prop_assert!((0..=all.blocks()).all(|block| pieces.get(block) == all.get(block)));
    }

    #[test]
    fn runs_are_those_of_single_blocks(
        bits in prop::collection::vec(prop::bool::weighted(0.7), 1..300),
        short in 0..4096u64,
        offset in 0..310 * 4096u64,
        length in 0..310 * 4096u64,
    ) {
        let size = bits.len() as u64 * 4096 - short;
        let zeros = (0u64..).zip(&bits).filter(|(_, zero)| **zero).map(|(block, _)| (block, 1));
        let map = ZeroMap::from_runs(4096, size, zeros).expect("a map");
        let zero_at = |at: u64| at < size && bits.get((at / 4096) as usize) == Some(&true);
        let limit = offset + length;
        let (zero, end) = map.run_at(offset, limit);
        if length == 0 {
            prop_assert_eq!((zero, end), (false, offset));
        } else {
            prop_assert_eq!(zero, zero_at(offset));
            prop_assert!(end > offset && end <= limit);
            prop_assert!((offset..end).step_by(512).all(|at| zero_at(at) == zero));
            prop_assert!(zero_at(end - 1) == zero && (end == limit || zero_at(end) != zero));
        }
        let bytes = (0..size).step_by(4096).filter(|at| zero_at(*at)).map(|at| 4096.min(size - at));
        prop_assert_eq!(map.zero_bytes(), bytes.sum::<u64>());
    }

    #[test]
    fn names_lead_there_and_back(name in prop::collection::vec(any::<u8>(), 0..260)) {
        match metadata_name(&name) {
            Some(special) => {
                prop_assert!(special.len() <= NAME_BYTES_MAX && is_metadata_name(&special));
                prop_assert_eq!(subject_name(&special), Some(&name[..]));
                prop_assert_eq!(metadata_name(&special), None);
            }
            None => prop_assert!(
                name.is_empty() || name.len() > 244 || name.contains(&0) || name.contains(&b'/')
                    || name == b"." || name == b".." || is_metadata_name(&name)
            ),
        }
    }
}

#[test]
fn names_are_the_documented_ones() {
    assert_eq!(metadata_name(b"disk.raw").as_deref(), Some(&b".disk.raw.gvfs-meta"[..]));
    assert_eq!(metadata_name(&[b'x'; 244]).map(|name| name.len()), Some(255));
    for none in [&[b'x'; 245][..], b"", b".", b"..", b"a/b", b"a\0b", b".disk.raw.gvfs-meta"] {
        assert_eq!(metadata_name(none), None, "{none:?}");
    }
    for other in [&b".gvfs-meta"[..], b"x.gvfs-meta", b".x.gvfs-metb", b""] {
        assert_eq!(subject_name(other), None, "{other:?}");
    }
}

/// The format does not change by accident: these bytes stay readable.
#[test]
fn the_bytes_are_the_documented_ones() {
    let zero = ZeroMap::from_runs(8192, 5 * 8192 - 1, [(1, 2), (4, 1)]).expect("a map");
    let identity = Identity { size: 5 * 8192 - 1, mtime: Time { seconds: -2, nanoseconds: 7 } };
    let actions = vec!["gzip".parse().expect("an action"), "command:x".parse().expect("one")];
    let range = Touched { offset: 300, length: 5, seen: 1 };
    let working_set = Some(WorkingSet { runs: 2, ranges: vec![range] });
    let metadata = Metadata {
        identity,
        block_bytes: 8192,
        zero: Some(zero),
        hashes: None,
        actions,
        working_set,
    };
    let bytes = metadata.encode();
    let mut expected = b"GVFSMETA\x01\0\0\0\x03\0\0\0".to_vec();
    expected.extend((96 + 3 * 56 + 2 + 7 + 6u64).to_le_bytes());
    expected.extend(40_959u64.to_le_bytes());
    expected.extend((-2i64).to_le_bytes());
    expected.extend([7, 0, 0, 0, 0, 0x20, 0, 0]);
    expected.resize(64, 0);
    assert_eq!(bytes[..64], expected);
    // As bits: one byte for five blocks is shorter than two runs.
    assert_eq!(bytes[264..266], [1, 0b10110]);
    assert_eq!(bytes[266..273], [2, 1, 2, 6, 2, 1, b'x']);
    // 300 forward (zigzag 600), 5 long, seen once.
    assert_eq!(bytes[273..], [2, 1, 0xd8, 0x04, 5, 1]);
    let first_entry =
        [&1u32.to_le_bytes()[..], &[0; 4], &264u64.to_le_bytes(), &2u64.to_le_bytes()];
    assert_eq!(bytes[96..120], first_entry.concat());
    assert_eq!(bytes[120..152], *blake3::hash(&[1, 0b10110]).as_bytes());
}

/// As version 1 was before lists of hashes had pieces.
#[test]
fn a_file_without_pieces_is_read() {
    let identity = Identity { size: 1000 * 4096, mtime: Time { seconds: 3, nanoseconds: 4 } };
    let listed = (0..1000u32).map(|block| *blake3::hash(&block.to_le_bytes()).as_bytes());
    let hashes = Hashes::new(4096, identity.size, None, listed.collect()).expect("hashes");
    let metadata = Metadata { hashes: Some(hashes), ..Metadata::new(identity, 4096) };
    let (new, old) = (metadata.encode(), samples::without_pieces(&metadata.encode()));
    assert_eq!(new.len() - old.len(), 56 + 2 + 2 * 32, "an entry, a number and two checksums");
    assert_eq!(Metadata::decode(&old), Ok(metadata));
    let outline = Outline::read(&old, old.len() as u64).expect("read");
    assert_eq!(outline.but_for_hashes(), None);
}

#[test]
fn a_zero_map_of_a_disk_takes_kilobytes() {
    // 1.6 GB in which zeros and data take turns every 30 blocks or so.
    let runs = (0..3_000u64).map(|n| (n * 65 + n % 7, 30 + n % 5));
    let map = ZeroMap::from_runs(8192, 1_600_000_000, runs).expect("a map");
    let identity = Identity { size: 1_600_000_000, mtime: Time { seconds: 0, nanoseconds: 0 } };
    let metadata = Metadata { zero: Some(map), ..Metadata::new(identity, 8192) };
    assert!(metadata.encode().len() < 8 << 10, "{}", metadata.encode().len());
}

#[test]
fn maps_outside_the_file_or_over_one_another_are_refused() {
    let map = |runs: &[(u64, u64)]| ZeroMap::from_runs(4096, 10 * 4096, runs.iter().copied());
    assert_eq!(map(&[(8, 2), (0, 8)]).expect("side by side").zero_blocks(), 10);
    assert!(matches!(map(&[(8, 3)]), Err(FormatError::Outside { .. })));
    assert!(matches!(map(&[(u64::MAX, 2)]), Err(FormatError::Outside { .. })));
    assert_eq!(map(&[(2, 4), (5, 1)]), Err(FormatError::Overlap(5)));
    assert!(matches!(ZeroMap::from_runs(6000, 1, []), Err(FormatError::BlockBytes(6000))));
    assert!(matches!(
        ZeroMap::from_runs(4096, u64::MAX, []),
        Err(FormatError::TooManyBlocks { .. })
    ));
}

#[test]
fn hashes_of_zero_blocks_are_known_without_being_kept() {
    let zero = ZeroMap::from_runs(4096, 3 * 4096 + 10, [(1, 1), (3, 1)]).expect("a map");
    let listed = vec![[1; 32], [2; 32]];
    let hashes = Hashes::new(4096, 3 * 4096 + 10, Some(&zero), listed).expect("hashes");
    let zeros = |count| Some(*blake3::hash(&vec![0; count]).as_bytes());
    let all: Vec<_> = (0..5).map(|block| hashes.get(block)).collect();
    assert_eq!(all, [Some([1; 32]), zeros(4096), Some([2; 32]), zeros(10), None]);
    let count = Hashes::new(4096, 4096, None, Vec::new());
    assert_eq!(count, Err(FormatError::HashCount { given: 0, wanted: 1 }));
}

#[test]
fn hashes_catch_a_zero_map_that_lies() {
    let (block_bytes, size) = (4096, 4 * 4096);
    let identity = Identity { size, mtime: Time { seconds: 0, nanoseconds: 0 } };
    let mut listed = vec![[7; 32]; 4];
    listed[2] = zero_hash(4096);
    let hashes = Hashes::new(block_bytes, size, None, listed).expect("hashes of all blocks");
    let with = |runs: [(u64, u64); 1]| {
        let zero = ZeroMap::from_runs(block_bytes, size, runs).expect("a map");
        let hashes = Some(hashes.clone());
        let metadata =
            Metadata { zero: Some(zero), hashes, ..Metadata::new(identity, block_bytes) };
        Metadata::decode(&metadata.encode())
    };
    assert_eq!(with([(2, 1)]).expect("true").hashes.expect("hashes").listed(), 3);
    assert_eq!(with([(1, 2)]), Err(FormatError::Contradiction(1)));
}

#[test]
fn what_may_not_be_there_is_not_written() {
    let whole = samples::full();
    let other = ZeroMap::from_runs(4096, 4096, []).expect("a map");
    let bad_name = Action::Command { name: "../x".into() };
    let mut actions = vec![bad_name; 3];
    actions.extend(vec![whole.actions[1].clone(); 20]);
    let wild = Metadata { zero: Some(other), actions, ..whole };
    assert!(wild.check().is_err());
    let read = Metadata::decode(&wild.encode()).expect("read");
    assert_eq!(read.zero, None);
    assert_eq!(read.hashes, wild.hashes);
    assert_eq!(read.actions, vec![wild.actions[3].clone(); ACTIONS_MAX]);
}

#[test]
fn actions_are_read_and_shown() {
    for (text, shown) in [
        ("zstd", "zstd:3"),
        ("zstd:-5", "zstd:-5"),
        ("gzip", "gzip:6"),
        ("fetch", "fetch"),
        ("command:a_B-9", "command:a_B-9"),
    ] {
        assert_eq!(text.parse::<Action>().expect(text).to_string(), shown);
    }
    for text in
        ["", "zstd:", "zstd:23", "gzip:0", "fetch:1", "command", "command:", "command:a/b", "x"]
    {
        assert_eq!(text.parse::<Action>(), Err(FormatError::Action(text.into())));
    }
}

#[test]
fn larger_files_have_larger_blocks() {
    assert_eq!(block_bytes_for(0), BLOCK_BYTES_DEFAULT);
    assert_eq!(block_bytes_for(8 << 30), BLOCK_BYTES_DEFAULT);
    assert_eq!(block_bytes_for((8 << 30) + 1), 2 * BLOCK_BYTES_DEFAULT);
    assert_eq!(block_bytes_for(1 << 40), BLOCK_BYTES_MAX);
    assert_eq!(block_bytes_for(u64::MAX), BLOCK_BYTES_MAX);
}
