//! The generator and the comparison, with real files.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use gridvfs_metadata::build::{BuildError, BuildOptions, Built, Place, Progress, build};
use gridvfs_metadata::format::*;
use gridvfs_metadata::verify::{Claim, Verdict, WrongRange, verify};
use tempfile::TempDir;

const BLOCK: u64 = BLOCK_BYTES_DEFAULT as u64;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// Data without zeros, not the same in any two blocks.
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8 | 1
    };
    (0..bytes).map(|_| next()).collect()
}

/// A file of data, written zeros, holes within blocks and between spans, and an odd end.
fn mixed(folder: &TempDir) -> (PathBuf, Vec<u8>) {
    let size = 9 * (1 << 20) + 777;
    let mut content = vec![0; size];
    for (at, bytes) in [(0, 20_000), (100_000, 1), (3 << 20, 300_000), ((4 << 20) - 5, 10)] {
        content[at..at + bytes].copy_from_slice(&noise(bytes, at as u64));
    }
    content[size - 1] = 1;
    let path = folder.path().join("mixed");
    let file = File::create(&path).expect("made");
    file.set_len(size as u64).expect("sparse");
    for (at, part) in (0..).step_by(4096).zip(content.chunks(4096)) {
        // A third of the zeros is written, the others are holes.
        if part.iter().any(|byte| *byte != 0) || at / 65_536 % 3 == 0 {
            file.write_all_at(part, at).expect("written");
        }
    }
    (path, content)
}

fn made(path: &Path, options: &BuildOptions) -> Built {
    build(path, options, &Progress::default()).expect("built")
}

fn both() -> BuildOptions {
    BuildOptions { zero: true, hashes: true, ..BuildOptions::default() }
}

fn compared(path: &Path) -> Verdict {
    verify(path, 2, &Progress::default()).expect("compared").expect("there is metadata")
}

fn is_true(metadata: &Metadata, content: &[u8]) {
    let (zero, hashes) = (metadata.zero.as_ref(), metadata.hashes.as_ref());
    for (block, bytes) in (0..).zip(content.chunks(metadata.block_bytes as usize)) {
        let is_zero = bytes.iter().all(|byte| *byte == 0);
        assert_eq!(zero.expect("a map").is_zero(block), is_zero, "block {block}");
        let hash = *blake3::hash(bytes).as_bytes();
        assert_eq!(hashes.expect("hashes").get(block), Some(hash), "block {block}");
    }
}

#[test]
fn zeros_and_hashes_are_those_of_the_file() {
    let folder = folder();
    let (path, content) = mixed(&folder);
    for (jobs, block_bytes) in [(1, 4096), (3, 8192), (2, 65_536), (64, 1 << 20)] {
        let options = BuildOptions { jobs, block_bytes: Some(block_bytes), ..both() };
        let progress = Progress::default();
        let built = build(&path, &options, &progress).expect("built");
        is_true(&built.metadata, &content);
        assert_eq!(progress.done_bytes(), content.len() as u64);
        assert!(
            block_bytes > 65_536 || built.read_bytes < content.len() as u64 / 2,
            "holes are not read"
        );
        let place = Place::of(&path).expect("a place");
        assert_eq!(place.read().expect("read"), Some(built.metadata));
        assert_eq!(place.metadata_bytes(), built.metadata_bytes);
        assert!(compared(&path).holds());
    }
}

#[test]
fn files_without_content_have_metadata_too() {
    let folder = folder();
    let path = folder.path().join("f");
    for (size, blocks) in [(0, 0), (1, 1), (BLOCK, 1), (3 << 30, (3 << 30) / BLOCK)] {
        File::create(&path).and_then(|file| file.set_len(size)).expect("made");
        let built = made(&path, &both());
        assert_eq!(built.read_bytes, 0);
        assert_eq!(built.metadata.zero.as_ref().expect("a map").zero_blocks(), blocks);
        assert_eq!(built.metadata.hashes.as_ref().expect("hashes").listed(), 0);
        assert!(built.metadata_bytes < 300, "{}", built.metadata_bytes);
        assert!(compared(&path).holds());
    }
}

#[test]
fn parts_that_are_not_built_stay() {
    let folder = folder();
    let (path, content) = mixed(&folder);
    let set = WorkingSet { runs: 1, ranges: vec![Touched { offset: 5, length: 9, seen: 1 }] };
    let actions: Vec<Action> = vec!["zstd".parse().expect("an action")];
    let first = BuildOptions {
        block_bytes: Some(4096),
        actions: Some(actions.clone()),
        working_set: Some(set.clone()),
        ..both()
    };
    made(&path, &first);
    let nothing = made(&path, &BuildOptions::default());
    assert_eq!(nothing.read_bytes, 0, "nothing is to be read");
    for again in [BuildOptions::default(), BuildOptions { zero: true, ..BuildOptions::default() }] {
        let built = made(&path, &again);
        is_true(&built.metadata, &content);
        assert_eq!(built.metadata.block_bytes, 4096);
        assert_eq!(
            (&built.metadata.actions, &built.metadata.working_set),
            (&actions, &Some(set.clone()))
        );
    }
    let cleared = BuildOptions { actions: Some(Vec::new()), ..BuildOptions::default() };
    assert!(made(&path, &cleared).metadata.actions.is_empty());
    let other_blocks =
        BuildOptions { block_bytes: Some(65_536), zero: true, ..BuildOptions::default() };
    is_true(&made(&path, &other_blocks).metadata, &content);
}

#[test]
fn of_another_version_nothing_is_believed() {
    let folder = folder();
    let path = folder.path().join("f");
    std::fs::write(&path, noise(100_000, 1)).expect("written");
    let ranges =
        [(90_000, 10_000), (10, 20)].map(|(offset, length)| Touched { offset, length, seen: 1 });
    let set = WorkingSet { runs: 1, ranges: ranges.into() };
    made(&path, &BuildOptions { working_set: Some(set), ..both() });
    let content = noise(95_000, 2);
    std::fs::write(&path, &content).expect("written");
    let verdict = compared(&path);
    assert!(!verdict.current && !verdict.holds());
    let actions = Some(vec!["gzip".parse().expect("an action")]);
    let built = made(&path, &BuildOptions { actions, ..BuildOptions::default() });
    is_true(&built.metadata, &content);
    let ranges = built.metadata.working_set.expect("kept").ranges;
    assert_eq!(
        ranges.iter().map(|range| (range.offset, range.length)).collect::<Vec<_>>(),
        [(90_000, 5_000), (10, 20)]
    );
}

#[test]
fn lies_are_found() {
    let folder = folder();
    let path = folder.path().join("f");
    let size = 40 * BLOCK + 5;
    let mut content = noise(size as usize, 3);
    content[(10 * BLOCK) as usize..(20 * BLOCK) as usize].fill(0);
    std::fs::write(&path, &content).expect("written");
    let place = Place::of(&path).expect("a place");
    let truth = made(&path, &both()).metadata;
    let told = |lie: Metadata| {
        std::fs::write(place.metadata(), lie.encode()).expect("written");
        let verdict = compared(&path);
        assert!(verdict.current);
        (verdict.wrong_zeros, verdict.wrong_hashes, verdict.first_wrong)
    };
    let wrong = |offset, length, claim| Some(WrongRange { offset, length, claim });
    assert_eq!(told(truth.clone()), (0, 0, None));

    let zero = ZeroMap::from_runs(BLOCK_BYTES_DEFAULT, size, [(8, 14), (40, 1)]).expect("a map");
    let lie = Metadata { zero: Some(zero), hashes: None, ..truth.clone() };
    assert_eq!(told(lie), (5, 0, wrong(8 * BLOCK, 2 * BLOCK, Claim::Zero)));

    let hash = |block| truth.hashes.as_ref().and_then(|hashes| hashes.get(block)).expect("there");
    let listed = (0..41).map(|block| if block > 37 { [9; 32] } else { hash(block) }).collect();
    let hashes = Hashes::new(BLOCK_BYTES_DEFAULT, size, None, listed).expect("hashes");
    let lie = Metadata { hashes: Some(hashes), ..truth.clone() };
    assert_eq!(told(lie), (0, 3, wrong(38 * BLOCK, 2 * BLOCK + 5, Claim::Hash)));
}

#[test]
fn damaged_metadata_is_replaced_and_that_of_a_later_version_is_not() {
    let folder = folder();
    let path = folder.path().join("f");
    std::fs::write(&path, noise(9_000, 1)).expect("written");
    let place = Place::of(&path).expect("a place");
    let bytes = made(&path, &both()).metadata.encode();
    std::fs::write(place.metadata(), &bytes[..bytes.len() - 1]).expect("cut");
    let error = verify(&path, 1, &Progress::default()).expect_err("refused");
    assert!(matches!(&error, BuildError::Format { error: FormatError::Cut { .. }, .. }), "{error}");
    assert_eq!(made(&path, &both()).replaced, Some(FormatError::Cut { what: "parts" }));

    let mut later = bytes;
    later[8] = 2;
    std::fs::write(place.metadata(), &later).expect("written");
    let error = build(&path, &both(), &Progress::default()).expect_err("refused");
    assert!(error.to_string().contains("version 2 is newer"), "{error}");
    assert_eq!(std::fs::read(place.metadata()).expect("read"), later, "left as it was");
}

#[test]
fn what_can_have_no_metadata_is_refused() {
    let folder = folder();
    let refused = |path: &Path| build(path, &both(), &Progress::default()).expect_err("refused");
    assert!(matches!(refused(folder.path()), BuildError::NotRegular(_)));
    assert!(matches!(refused(&folder.path().join("none")), BuildError::Io { .. }));
    let special = folder.path().join(".x.gvfs-meta");
    let long = folder.path().join("x".repeat(250));
    for path in [special, long] {
        std::fs::write(&path, "x").expect("written");
        assert!(matches!(refused(&path), BuildError::NoName(_)));
    }
    let huge = folder.path().join("huge");
    File::create(&huge).and_then(|file| file.set_len(1 << 40)).expect("sparse");
    let small_blocks = BuildOptions { block_bytes: Some(4096), ..both() };
    let error = build(&huge, &small_blocks, &Progress::default()).expect_err("refused");
    assert!(matches!(error, BuildError::Unfit(FormatError::TooManyBlocks { .. })), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 3, "nothing was left");
}

#[test]
fn a_stopped_build_leaves_nothing() {
    let folder = folder();
    let (path, _) = mixed(&folder);
    let progress = Progress::default();
    progress.stop();
    assert!(matches!(build(&path, &both(), &progress), Err(BuildError::Stopped)));
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1);
}

#[test]
fn metadata_is_read_by_whoever_may_read_the_file() {
    let folder = folder();
    let path = folder.path().join("f");
    for mode in [0o600, 0o640, 0o755] {
        std::fs::write(&path, "data").expect("written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("set");
        let built = made(&path, &both());
        let found = std::fs::metadata(&built.path).expect("there").mode() & 0o777;
        assert_eq!(found, mode & 0o666);
    }
}

#[test]
fn a_link_has_the_metadata_of_its_target() {
    let folder = folder();
    let path = folder.path().join("f");
    let link = folder.path().join("sub");
    std::fs::create_dir(&link).expect("made");
    let link = link.join("link");
    std::fs::write(&path, "data").expect("written");
    symlink("../f", &link).expect("linked");
    let built = made(&link, &both());
    assert_eq!(built.path, folder.path().canonicalize().expect("real").join(".f.gvfs-meta"));
    assert!(compared(&link).holds() && compared(&built.path).holds());
    let place = Place::of_either(&built.path).expect("a place");
    assert!(place.remove().expect("removed") && !place.remove().expect("gone already"));
    assert_eq!(verify(&link, 1, &Progress::default()).expect("looked").map(|v| v.current), None);
}

fn draft_of(path: &Path) -> PathBuf {
    let name = metadata_name(path.file_name().expect("a name").as_bytes()).expect("short enough");
    path.with_file_name(OsStr::from_bytes(&draft_name(&name)))
}

#[test]
fn what_a_killed_build_has_left_is_removed_by_the_next() {
    let folder = folder();
    let (path, content) = mixed(&folder);
    let draft = draft_of(&path);
    std::fs::write(&draft, "GVFSMETA half of").expect("left");
    is_true(&made(&path, &both()).metadata, &content);
    assert!(!draft.exists());
    // Nor can anything else of that name be in the way.
    let elsewhere = folder.path().join("elsewhere");
    std::fs::write(&elsewhere, "kept").expect("written");
    symlink(&elsewhere, &draft).expect("linked");
    made(&path, &both());
    assert!(draft.symlink_metadata().is_err());
    assert_eq!(std::fs::read(&elsewhere).expect("read"), b"kept");
    assert_eq!(compared(&path).first_wrong, None);
}

#[test]
fn what_another_build_is_writing_is_waited_for() {
    let folder = folder();
    let (path, _) = mixed(&folder);
    let draft = draft_of(&path);
    let other = File::create(&draft).expect("made");
    // SAFETY: the descriptor is open; no memory is touched.
    assert_eq!(unsafe { libc::flock(other.as_raw_fd(), libc::LOCK_EX) }, 0);
    std::thread::scope(|scope| {
        let building = scope.spawn(|| made(&path, &both()));
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(draft.exists() && !building.is_finished());
        drop(other);
        building.join().expect("built");
    });
    assert!(!draft.exists());
}

#[test]
fn builds_at_the_same_time_leave_one_that_is_whole() {
    let folder = folder();
    let (path, content) = mixed(&folder);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..5).for_each(|_| drop(made(&path, &both()))));
        }
    });
    is_true(&Place::of(&path).expect("found").read().expect("read").expect("there"), &content);
    let left = std::fs::read_dir(folder.path()).expect("listed").count();
    assert_eq!(left, 2, "the file and its metadata");
}
