use super::*;

fn small() -> Geometry {
    Geometry { size_bytes: 4 << 20, banks: 4, ways: 4, frame_bytes: 64 << 10 }
}

fn filled(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut data = Vec::with_capacity(bytes + 8);
    while data.len() < bytes {
        state = geometry::mix(state);
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(bytes);
    data
}

const KEY: FileKey = FileKey(77);

#[test]
fn what_is_put_is_read_in_any_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), &small(), false).unwrap();
    let data = filled(1, 1_000_001);
    store.put(KEY, 0, &data).unwrap();
    for (from, to) in [(0, data.len()), (1, 2), (4095, 4097), (5, 700_001), (65_536, 131_072)] {
        let mut out = vec![0; to - from];
        assert_eq!(store.read(KEY, from as u64, &mut out), out.len());
        assert!(out == data[from..to]);
    }
    assert_eq!(store.first_gap(KEY, 0, data.len() as u64), None);
    assert_eq!(store.bytes_of(KEY, data.len() as u64), data.len() as u64);
    assert_eq!(store.read(FileKey(78), 0, &mut [0; 10]), 0);
}
