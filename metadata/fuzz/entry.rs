// What the fuzz target and the ordinary test run (tests/format_mutated.rs) feed with bytes.

use gridvfs_metadata::format::{FormatError, Metadata, Outline};

/// Bytes before the table, and of an entry of it (docs/on-disk-format.md).
const TABLE_AT: usize = 96;
const ENTRY_BYTES: usize = 56;

/// Parses bytes as a metadata file, and once more with their checksums made right, without which
/// hardly any change would get past them. Panics if what is parsed breaks an invariant.
pub fn parse(bytes: &[u8]) -> [Result<Metadata, FormatError>; 2] {
    let mut mended = bytes.to_vec();
    mend(&mut mended);
    [bytes, &mended].map(|bytes| {
        let parsed = Metadata::decode(bytes);
        in_parts(bytes, parsed.as_ref());
        if let Ok(metadata) = &parsed {
            is_sound(metadata);
        }
        parsed
    })
}

/// Parses it part by part. Panics if that is not what is parsed as a whole.
fn in_parts(bytes: &[u8], whole: Result<&Metadata, &FormatError>) {
    let start = &bytes[..bytes.len().min(Outline::BYTES_MAX)];
    let outline = Outline::read(start, bytes.len() as u64);
    let Some(outline) = outline.ok().filter(|outline| outline.but_for_hashes().is_some()) else {
        return;
    };
    let part = |part: std::ops::Range<u64>| {
        Some((part.start, bytes.get(part.start as usize..part.end as usize)?))
    };
    let parts = outline.decode(part);
    if let Ok(whole) = whole {
        let (metadata, pieces) = parts.expect("what is read as a whole can be read in parts");
        assert!(metadata == Metadata { hashes: None, ..whole.clone() });
        let hashes = whole.hashes.as_ref().expect("there are pieces of them");
        for piece in pieces.missing(0..pieces.blocks()).collect::<Vec<_>>() {
            let span = pieces.span(piece);
            let bytes = &bytes[span.start as usize..span.end as usize];
            pieces.put(piece, bytes).expect("the piece is of the whole");
        }
        assert!((0..=pieces.blocks()).all(|block| pieces.get(block) == hashes.get(block)));
    } else if let Ok((metadata, pieces)) = parts {
        let _ = metadata.check();
        for piece in pieces.missing(0..pieces.blocks()).take(8) {
            let (blocks, span) = (pieces.blocks_of(piece), pieces.span(piece));
            assert!(blocks.start <= blocks.end && span.start <= span.end);
            assert_eq!(pieces.get(blocks.start), None);
        }
    }
}

/// Makes the checksums those of the bytes, as far as there is a table.
pub fn mend(bytes: &mut [u8]) {
    if bytes.len() < TABLE_AT {
        return;
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    let count = (number(&bytes[12..16]) as usize).min((bytes.len() - TABLE_AT) / ENTRY_BYTES);
    for entry in (0..count).map(|index| TABLE_AT + index * ENTRY_BYTES) {
        let begin = number(&bytes[entry + 8..entry + 16]);
        let end = begin.saturating_add(number(&bytes[entry + 16..entry + 24]));
        let range = usize::try_from(begin).ok().zip(usize::try_from(end).ok());
        if let Some(part) = range.and_then(|(begin, end)| bytes.get(begin..end)) {
            let sum = blake3::hash(part);
            bytes[entry + 24..entry + 56].copy_from_slice(sum.as_bytes());
        }
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..64]).update(&bytes[TABLE_AT..TABLE_AT + count * ENTRY_BYTES]);
    bytes[64..96].copy_from_slice(hasher.finalize().as_bytes());
}

/// Panics if metadata that was parsed breaks an invariant.
pub fn is_sound(metadata: &Metadata) {
    metadata.check().expect("what is parsed is valid");
    let size = metadata.identity.size;
    let blocks = size.div_ceil(metadata.block_bytes.into());
    if let Some(zero) = &metadata.zero {
        assert_eq!(zero.blocks(), blocks);
        let mut behind = 0;
        let mut sum = 0;
        for (first, count) in zero.runs() {
            assert!(count > 0 && (first > behind || behind == 0) && first + count <= blocks);
            assert!(zero.is_zero(first) && zero.is_zero(first + count - 1));
            assert!(!zero.is_zero(first + count));
            behind = first + count;
            sum += count;
        }
        assert_eq!(sum, zero.zero_blocks());
        assert!(zero.zero_bytes() <= size);
        assert_eq!(zero.run_at(size, u64::MAX), (false, u64::MAX));
    }
    if let Some(hashes) = &metadata.hashes {
        assert_eq!(hashes.blocks(), blocks);
        let listed = blocks - metadata.zero.as_ref().map_or(0, |zero| zero.zero_blocks());
        assert!(hashes.listed() == listed || hashes.listed() == blocks);
        assert_eq!(hashes.get(blocks), None);
        assert_eq!(hashes.get(blocks.wrapping_sub(1)).is_some(), blocks > 0);
    }
    if let Some(set) = &metadata.working_set {
        assert!(set.ranges.iter().all(|range| range.length > 0 && range.end() <= size));
        assert_eq!(set.tidied(size).ranges, set.ranges);
    }
    let again = Metadata::decode(&metadata.encode()).expect("what is written can be read");
    assert!(again == *metadata, "{again:?} is not {metadata:?}");
}
