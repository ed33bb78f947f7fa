//! What a fetch finds comes back from its wire form, and nothing that arrives in its place makes
//! more of it than was asked for.

use bytes::Bytes;
use gridvfs_vfs::ext::{FetchArgs, FetchBuilder, FetchLie, FetchPacker, PackedFetch};
use gridvfs_vfs::xdr::{Decoder, Encoder, Xdr};
use gridvfs_vfs::*;
use proptest::prelude::*;

/// A part of a file, in bytes: zeros, text, or what nobody can compress.
#[derive(Clone, Debug)]
enum Part {
    Zero(usize),
    Text(usize, u8),
    Noise(usize, u64),
}

fn part() -> impl Strategy<Value = Part> {
    let length = prop_oneof![1usize..5000, Just(4096), Just(8192), Just(40_960)];
    prop_oneof![
        length.clone().prop_map(Part::Zero),
        (length.clone(), any::<u8>()).prop_map(|(length, seed)| Part::Text(length, seed)),
        (length, any::<u64>()).prop_map(|(length, seed)| Part::Noise(length, seed)),
    ]
}

fn content(parts: &[Part]) -> Vec<u8> {
    let mut content = Vec::new();
    for part in parts {
        match part {
            Part::Zero(length) => content.resize(content.len() + length, 0),
            Part::Text(length, seed) => {
                content
                    .extend((0..*length).map(|at| b'a' + (at as u8 / 3).wrapping_mul(*seed) % 20));
            }
            Part::Noise(length, seed) => {
                let mut random = seed | 1;
                content.extend((0..*length).map(|_| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    (random >> 24) as u8
                }));
            }
        }
    }
    content
}

fn attr(size: u64) -> Attr {
    let time = Time { seconds: 5, nanoseconds: 6 };
    Attr {
        kind: FileKind::Regular,
        mode: 0o644,
        links: 1,
        uid: 1,
        gid: 2,
        size,
        used: 0,
        device: DeviceNumber::default(),
        fsid: 3,
        fileid: 4,
        atime: time,
        mtime: time,
        ctime: time,
    }
}

/// Ranges of a file, some of them behind its end.
fn ranges(number: usize) -> impl Strategy<Value = Vec<(u64, u32)>> {
    prop::collection::vec((0..40u64, 1..50_000u32), 0..=number)
        .prop_map(|ranges| ranges.into_iter().map(|(at, length)| (at * 4096, length)).collect())
}

/// What a server makes of a question, with pieces of the given sizes as they were read.
fn answer(content: &[u8], ranges: &[(u64, u32)], level: i32, sizes: &[usize]) -> PackedFetch {
    let mut built = FetchBuilder::default();
    let mut sizes = sizes.iter().cycle();
    for &(offset, length) in ranges {
        let start = (offset as usize).min(content.len());
        let part = &content[start..(start + length as usize).min(content.len())];
        let (mut at, mut pieces) = (0, Vec::new());
        while at < part.len() {
            let end = (at + sizes.next().expect("never ends")).min(part.len());
            // As with a hole: nothing is read where there are zeros.
            if part[at..end].iter().any(|byte| *byte != 0) {
                pieces.push((at, Bytes::copy_from_slice(&part[at..end])));
            }
            at = end;
        }
        built.push(part.len() as u32, &pieces);
    }
    built.pack(attr(content.len() as u64), level, &mut FetchPacker::default())
}

fn wire(value: &impl Xdr) -> Vec<u8> {
    let mut encoder = Encoder::new();
    value.encode(&mut encoder);
    encoder.into_vec()
}

/// Checks that what was fetched is the file's content, told once and only once.
fn assert_content(fetched: &Fetched, content: &[u8], asked: &[(u64, u32)]) {
    assert_eq!(fetched.ranges.len(), asked.len());
    for (range, &(offset, length)) in fetched.ranges.iter().zip(asked) {
        let start = (offset as usize).min(content.len());
        let expected = &content[start..(start + length as usize).min(content.len())];
        assert_eq!((range.offset, range.length as usize), (offset, expected.len()));
        let mut at = offset;
        for run in range.runs() {
            assert_eq!(run.offset, at);
            at += u64::from(run.length);
            let bytes = &content[run.offset as usize..at as usize];
            match run.data {
                Some(data) => assert!(data == bytes, "at {}", run.offset),
                None => assert!(bytes.iter().all(|byte| *byte == 0), "at {}", run.offset),
            }
        }
        assert_eq!(at, offset + u64::from(range.length));
        let blocks = expected.chunks(FETCH_BLOCK_BYTES).enumerate();
        for (block, bytes) in blocks {
            let zero = range.zero[block / 8] & (1 << (block % 8)) != 0;
            assert_eq!(zero, bytes.iter().all(|byte| *byte == 0), "block {block}");
        }
    }
}

proptest! {
    #[test]
    fn what_is_fetched_is_the_file(
        parts in prop::collection::vec(part(), 0..8),
        ranges in ranges(6),
        level in 0..4i32,
        sizes in prop::collection::vec(1..20_000usize, 1..5),
    ) {
        let content = content(&parts);
        let packed = answer(&content, &ranges, level, &sizes);
        if level == 0 {
            assert!(!packed.compressed);
        }
        let wire = wire(&packed);
        let mut decoder = Decoder::new(wire.into());
        let decoded = PackedFetch::decode(&mut decoder).expect("decodes");
        assert_eq!(&decoded, &packed);
        let fetched = decoded.unpack(&ranges).expect("unpacks");
        assert_eq!(fetched.attr, attr(content.len() as u64));
        assert_content(&fetched, &content, &ranges);
    }

    #[test]
    fn questions_come_back(ranges in ranges(FETCH_RANGES_MAX), level in 0..=FETCH_LEVEL_MAX) {
        let file = FileHandle::new(&[7; 20]).expect("short enough");
        let arguments = FetchArgs { file, level, ranges };
        let wire = wire(&arguments);
        assert_eq!(FetchArgs::decode(&mut Decoder::new(wire.clone().into())), Ok(arguments));
        for length in (0..wire.len()).step_by(4) {
            assert!(FetchArgs::decode(&mut Decoder::new(wire[..length].to_vec().into())).is_err());
        }
    }

    #[test]
    fn whatever_arrives_is_no_more_than_was_asked_for(
        parts in prop::collection::vec(part(), 1..6),
        ranges in ranges(4),
        level in 0..2i32,
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..8u32), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let content = content(&parts);
        let mut wire = wire(&answer(&content, &ranges, level, &[9000]));
        for (at, bit) in changes {
            let at = at.index(wire.len());
            wire[at] ^= 1 << bit;
        }
        if let Some(cut) = cut {
            wire.truncate(cut.index(wire.len()));
        }
        let Ok(decoded) = PackedFetch::decode(&mut Decoder::new(wire.into())) else { return Ok(()) };
        let Ok(fetched) = decoded.unpack(&ranges) else { return Ok(()) };
        for (range, &(offset, length)) in fetched.ranges.iter().zip(&ranges) {
            assert!(range.offset == offset && range.length <= length);
            let told: usize = range.runs().filter_map(|run| run.data).map(|data| data.len()).sum();
            assert_eq!(told, range.data.len());
        }
    }

    #[test]
    fn a_damaged_frame_is_never_taken_for_another(
        seed: u8, at: prop::sample::Index, bit in 0..8u32,
    ) {
        let content = content(&[Part::Text(30_000, seed), Part::Zero(5000), Part::Text(9000, seed)]);
        let asked = [(0, content.len() as u32)];
        let mut packed = answer(&content, &asked, 3, &[7000]);
        assert!(packed.compressed);
        let mut frame = packed.data.to_vec();
        let at = at.index(frame.len());
        frame[at] ^= 1 << bit;
        packed.data = frame.into();
        if let Ok(fetched) = packed.unpack(&asked) {
            // A bit of the frame's head means nothing.
            assert_content(&fetched, &content, &asked);
        }
    }
}

#[test]
fn what_hardly_shrinks_is_sent_as_it_is() {
    let content = content(&[Part::Noise(100_000, 5)]);
    let asked = [(0, 100_000)];
    let packed = answer(&content, &asked, 3, &[50_000]);
    assert!(!packed.compressed && packed.data.len() == 100_000);
    assert_content(&packed.unpack(&asked).expect("unpacks"), &content, &asked);
}

/// A reply to a question for the first two blocks of a file of 10,000 bytes, all text.
fn good() -> (PackedFetch, [(u64, u32); 1]) {
    let asked = [(0, 8192)];
    (answer(&content(&[Part::Text(10_000, 1)]), &asked, 3, &[8192]), asked)
}

#[test]
fn lies_are_told_apart() {
    let (truth, asked) = good();
    assert!(truth.clone().unpack(&asked).is_ok());
    let lie = |change: fn(&mut PackedFetch)| {
        let mut packed = truth.clone();
        change(&mut packed);
        packed.unpack(&asked).expect_err("a lie")
    };
    let ranges = lie(|packed| packed.ranges.push((1, vec![0])));
    assert_eq!(ranges, FetchLie::Ranges { asked: 1, brought: 2 });
    // A range longer than asked for, and one that ends before the file does.
    let long = lie(|packed| packed.ranges[0] = (12_288, vec![0]));
    assert_eq!(long, FetchLie::Length { brought: 12_288, expected: 8192 });
    let short = lie(|packed| packed.ranges[0] = (4096, vec![0]));
    assert_eq!(short, FetchLie::Length { brought: 4096, expected: 8192 });
    let behind = lie(|packed| packed.attr.size = 100);
    assert_eq!(behind, FetchLie::Length { brought: 8192, expected: 100 });
    for map in [&[][..], &[0, 0], &[4]] {
        let mut packed = truth.clone();
        packed.ranges[0].1 = map.to_vec();
        assert_eq!(packed.unpack(&asked), Err(FetchLie::Map), "{map:?}");
    }
    let raw = lie(|packed| packed.raw_bytes = u32::MAX);
    assert_eq!(raw, FetchLie::Data { brought: u32::MAX as usize, expected: 8192 });
    let less = lie(|packed| packed.ranges[0].1 = vec![1]);
    assert_eq!(less, FetchLie::Data { brought: 8192, expected: 4096 });
    // The frame has more than the maps leave room for, however large it says that it is.
    let bomb = lie(|packed| {
        packed.data = zstd::bulk::compress(&vec![7; 64 << 20], 1).expect("compresses").into();
    });
    assert!(matches!(bomb, FetchLie::Frame(_)), "{bomb}");
    let scanty = lie(|packed| {
        packed.data = zstd::bulk::compress(&[7; 8000], 1).expect("compresses").into();
    });
    assert_eq!(scanty, FetchLie::Data { brought: 8000, expected: 8192 });
    let garbage = lie(|packed| packed.data = Bytes::from_static(b"no frame at all"));
    assert!(matches!(garbage, FetchLie::Frame(_)), "{garbage}");
    let nothing = lie(|packed| packed.data = Bytes::new());
    assert!(matches!(nothing, FetchLie::Frame(_) | FetchLie::Data { .. }), "{nothing}");
    let plain = lie(|packed| packed.compressed = false);
    assert!(matches!(plain, FetchLie::Data { expected: 8192, .. }), "{plain}");
}

#[test]
fn counts_are_capped_before_allocating() {
    let head = wire(&attr(1));
    for count in [FETCH_RANGES_MAX as u32 + 1, u32::MAX] {
        let wire = [&head[..], &count.to_be_bytes()].concat();
        assert!(PackedFetch::decode(&mut Decoder::new(wire.into())).is_err());
        let file = wire_of_handle();
        let question = [&file[..], &3u32.to_be_bytes(), &count.to_be_bytes()].concat();
        assert!(FetchArgs::decode(&mut Decoder::new(question.into())).is_err());
    }
}

fn wire_of_handle() -> Vec<u8> {
    wire(&FileHandle::new(&[1; 8]).expect("short enough"))
}
