//! The seismic job: what is left of it, and that it is the same everywhere.

use std::path::Path;
use std::process::Command;

fn run(folder: &Path, phase: &str) {
    let status = Command::new(env!("CARGO_BIN_EXE_gridvfs-seismic"))
        .arg(phase)
        .arg(folder)
        .args(["--mib", "1", "--aperture", "4"])
        .status()
        .unwrap();
    assert!(status.success(), "{phase}: {status}");
}

fn sizes(folder: &Path) -> Vec<(String, u64)> {
    let entries = folder.read_dir().unwrap().map(Result::unwrap);
    let mut sizes: Vec<_> = entries
        .map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().len()))
        .collect();
    sizes.sort();
    sizes
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[test]
fn an_image_is_left_that_is_the_same_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    for phase in ["generate", "sort", "stack"] {
        run(folder.path(), phase);
    }
    let made = [("gathers.tmp", 1 << 20), ("stacked.tmp", 1 << 16), ("traces.dat", 1 << 20)];
    assert_eq!(sizes(folder.path()), made.map(|(name, size)| (name.to_owned(), size)));
    run(folder.path(), "migrate");
    assert_eq!(sizes(folder.path()), [("image.out".to_owned(), 1 << 16)]);
    let image = std::fs::read(folder.path().join("image.out")).unwrap();
    assert_eq!(hash(&image), 0x8fc9_0c14_a1dd_97bd, "experiments compare images byte by byte");
}
