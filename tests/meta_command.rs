//! Metadata files as a user meets them: `gridvfs meta`, what it says and what it leaves.

mod common;

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Rig, Way, gridvfs};
use gridvfs_metadata::format::{Metadata, ZeroMap, metadata_name};
use serde_json::Value;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

fn meta(arguments: &[&str], path: &Path) -> Output {
    let mut command = Command::new(gridvfs());
    command.arg("meta").args(arguments).arg(path).output().expect("runs")
}

fn words(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    let words = String::from_utf8_lossy(&both).into_owned();
    assert!(!words.contains("panicked"), "{words}");
    words
}

fn done(arguments: &[&str], path: &Path) -> String {
    let output = meta(arguments, path);
    assert!(output.status.success(), "{arguments:?}: {}", words(&output));
    words(&output)
}

/// What is said, and the exit status.
fn refused(arguments: &[&str], path: &Path) -> (String, i32) {
    let output = meta(arguments, path);
    assert!(!output.status.success(), "{arguments:?} should fail");
    (words(&output), output.status.code().expect("ended by itself"))
}

fn says(words: &str, parts: &[&str]) {
    for part in parts {
        assert!(words.contains(part), "{part:?} is missing in: {words}");
    }
}

fn json(arguments: &[&str], path: &Path) -> Value {
    let output = meta(&[arguments, &["--json"]].concat(), path);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {}", words(&output)))
}

fn metadata_of(path: &Path) -> PathBuf {
    let name = metadata_name(path.file_name().expect("a name").as_bytes()).expect("a file's name");
    path.with_file_name(OsStr::from_bytes(&name))
}

/// A file of 1 MiB of data, 4 MiB of hole, and 3 MiB of written zeros, and the folder it is in.
fn disk() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.raw");
    let file = File::create(&path).expect("made");
    file.write_all_at(&noise(MIB as usize), 0).expect("written");
    file.write_all_at(&vec![0; 3 * MIB as usize], 5 * MIB).expect("written");
    (folder, path)
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8 | 1
    };
    (0..bytes).map(|_| next()).collect()
}

#[test]
fn metadata_is_built_shown_verified_and_removed() {
    let (folder, path) = disk();
    let built = done(&["build"], &path);
    says(&built, &["87.5 % zero (7.00 MiB of 8.00 MiB)", "128 hashes", "metadata 4"]);
    let found = std::fs::read_dir(folder.path()).expect("listed").count();
    assert_eq!(found, 2, "a file and its metadata, nothing else");
    for shown in [done(&["show"], &path), done(&["show"], &metadata_of(&path))] {
        says(
            &shown,
            &[
                "current      yes",
                "87.5 % zero",
                "128 blocks, and 896 of zeros",
                "actions      none",
            ],
        );
    }
    let value = json(&["show"], &path);
    assert_eq!(value["current"], true);
    assert_eq!(value["identity"]["size_bytes"], 8 * MIB);
    assert_eq!(value["zero"]["zero_blocks"], 896);
    assert_eq!(value["hashes"]["listed"], 128);
    says(&done(&["verify"], &path), &["all true", "896 zero blocks, 128 hashes"]);
    assert_eq!(json(&["verify"], &path)[0]["holds"], true);
    says(&done(&["remove"], &path), &["metadata removed"]);
    says(&done(&["remove"], &path), &["there was no metadata"]);
    says(&refused(&["show"], &path).0, &["has no metadata", "Hint: gridvfs meta build"]);
}

#[test]
fn parts_are_built_by_themselves_and_stay() {
    let (_folder, path) = disk();
    let value = json(&["build", "--zero", "--block-size", "64K"], &path);
    assert_eq!((&value[0]["block_bytes"], &value[0]["hashes"]), (&65_536.into(), &Value::Null));
    let value = json(&["build", "--action", "zstd:9", "--action", "command:tell-me"], &path);
    assert_eq!(value[0]["read_bytes"], 0, "nothing is read for actions");
    assert_eq!(value[0]["actions"], serde_json::json!(["zstd:9", "command:tell-me"]));
    assert_eq!(value[0]["zero"]["zero_blocks"], 112);
    let value = json(&["build", "--hash"], &path);
    assert_eq!(value[0]["read_bytes"], 4 * MIB, "the hole is not read");
    assert_eq!(value[0]["hashes"]["listed"], 16);
    assert_eq!(value[0]["actions"][0], "zstd:9");
    assert_eq!(json(&["build", "--action", "none"], &path)[0]["actions"], serde_json::json!([]));
}

#[test]
fn a_profile_becomes_the_working_set() {
    let (folder, path) = disk();
    let profile = folder.path().join("recorded.json");
    let named = format!("--from-profile={}", profile.display());
    let write = |text: &str| std::fs::write(&profile, text).expect("written");
    write(
        r#"{"runs":3,"ranges":[{"offset":4096,"length":8192,"seen":3},{"offset":0,"length":99999999,"seen":1}]}"#,
    );
    says(&done(&["build", &named], &path), &["working set of 8.00 MiB in 3 ranges"]);
    assert_eq!(json(&["build", &named], &path)[0]["working_set"]["runs"], 3);
    write(r#"{"runs":3,"ranges":[{"offset":-1}]}"#);
    says(&refused(&["build", &named], &path).0, &["profile", "recorded.json"]);
    says(&done(&["show"], &path), &["in 3 ranges, from 3 runs"]);

    // Of several files: the longest path that the file's own ends with.
    let name = folder.path().file_name().expect("a name").to_str().expect("text");
    let file = |path: &str, length: u64| {
        format!(
            r#"{{"path":"{path}","runs":1,"ranges":[{{"offset":0,"length":{length},"seen":1}}]}}"#
        )
    };
    let [other, short, long] =
        [file("aw", 1), file("disk.raw", 2), file(&format!("{name}/disk.raw"), 4096)];
    write(&format!(r#"{{"files":[{other},{long},{short}]}}"#));
    says(&done(&["build", &named], &path), &["working set of 4.00 KiB in 1 range"]);
    write(&format!(r#"{{"files":[{other}]}}"#));
    says(&refused(&["build", &named], &path).0, &["says nothing of", "disk.raw", "but of: aw"]);
    write(r#"{"files":7}"#);
    says(&refused(&["build", &named], &path).0, &["profile", "recorded.json"]);
}

#[test]
fn bad_arguments_are_explained() {
    let (folder, path) = disk();
    let build = |arguments: &[&str]| refused(&[&["build"], arguments].concat(), &path).0;
    says(&build(&["--block-size", "5000"]), &["a power of two from 4K to 1M"]);
    says(&build(&["--block-size", "x"]), &["--block-size", "is no size"]);
    says(&build(&["--action", "../x"]), &["is no action", "command:NAME"]);
    says(&build(&["--action", "command:/bin/sh"]), &["is no action"]);
    says(&build(&["--jobs", "65"]), &["64 are the most"]);
    says(&build(&["--from-profile=/none.json"]), &["profile /none.json", "No such file"]);
    says(&build(&["--watch", "/tmp"]), &["cannot be used with"]);
    says(&refused(&["build"], folder.path()).0, &["is not a regular file"]);
    says(&refused(&["build"], &folder.path().join("none")).0, &["cannot find", "No such file"]);
    done(&["build"], &path);
    says(&refused(&["build"], &metadata_of(&path)).0, &["can have no metadata file"]);
    let watch = ["build", "--pattern", "[", "--watch"];
    says(&refused(&watch, folder.path()).0, &["--pattern ["]);
}

#[test]
fn verify_tells_wrong_from_unknown() {
    let (_folder, path) = disk();
    let special = metadata_of(&path);
    let verify = || refused(&["verify"], &path);
    assert_eq!(verify().1, 2, "there is no metadata");
    done(&["build", "--zero"], &path);
    let bytes = std::fs::read(&special).expect("read");

    let truth = Metadata::decode(&bytes).expect("valid");
    let zero = ZeroMap::from_runs(8192, 8 * MIB, [(100, 900)]).expect("a map");
    let lie = Metadata { zero: Some(zero), ..truth };
    std::fs::write(&special, lie.encode()).expect("written");
    let (words, status) = verify();
    says(
        &words,
        &["WRONG: 229376 bytes from 819200 on: is said to be zero, and is not; 28 blocks"],
    );
    assert_eq!(status, 1);
    let first = &json(&["verify"], &path)[0]["first_wrong"];
    assert_eq!((&first["offset"], &first["claim"]), (&819_200.into(), &"zero".into()));

    std::fs::write(&special, &bytes[..bytes.len() - 1]).expect("cut");
    let (words, status) = verify();
    says(&words, &["cut short", "disk.raw"]);
    assert_eq!(status, 1);

    let mut later = bytes.clone();
    later[8] = 9;
    std::fs::write(&special, &later).expect("written");
    let (words, status) = verify();
    says(&words, &["version 9 is newer than this program", "Hint"]);
    assert_eq!(status, 2);
    says(&refused(&["build"], &path).0, &["version 9 is newer"]);
    assert_eq!(std::fs::read(&special).expect("read"), later, "it is left alone");

    std::fs::write(&special, &bytes).expect("written");
    done(&["verify"], &path);
    OpenOptions::new()
        .append(true)
        .open(&path)
        .and_then(|file| file.set_len(9 * MIB))
        .expect("grown");
    let (words, status) = verify();
    says(&words, &["of another version of the file"]);
    assert_eq!(status, 1);
    says(&done(&["show"], &path), &["current      no"]);
}

#[test]
fn a_hash_that_is_wrong_is_found() {
    let (_folder, path) = disk();
    done(&["build", "--hash"], &path);
    // Another content behind the same size and mtime, as a careless restore leaves it.
    let file = OpenOptions::new().write(true).open(&path).expect("open");
    let mtime = file.metadata().and_then(|stat| stat.modified()).expect("a time");
    file.write_all_at(&[1], 6 * MIB + 5).expect("written");
    file.set_modified(mtime).expect("set back");
    let (words, status) = refused(&["verify"], &path);
    says(&words, &["WRONG: 8192 bytes from 6291456 on: has another hash; 1 block in all"]);
    assert_eq!(status, 1);
    // The zeros that are found now contradict the hashes that are kept.
    file.write_all_at(&[0; 8192], 0).expect("written");
    file.set_modified(mtime).expect("set back");
    says(&refused(&["build", "--zero"], &path).0, &["not by its hash", "Hint", "--hash"]);
    done(&["build", "--zero", "--hash"], &path);
    done(&["verify"], &path);
}

/// Runs until it has opened the file and stops it there. `None`: it was faster.
fn stopped_while_reading(path: &Path) -> Option<Child> {
    let mut command = Command::new(gridvfs());
    command.args(["meta", "build", "--jobs", "1"]).arg(path);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    let descriptors = format!("/proc/{}/fd", child.id());
    let opened = || {
        let links = std::fs::read_dir(&descriptors).into_iter().flatten().flatten();
        links.filter_map(|link| std::fs::read_link(link.path()).ok()).any(|target| target == path)
    };
    while !opened() {
        if child.try_wait().expect("waited for").is_some() {
            return None;
        }
    }
    signal(&child, libc::SIGSTOP);
    Some(child)
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: no memory is touched; the child has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

#[test]
fn a_file_that_changes_while_it_is_read_gets_nothing() {
    let (folder, path) = disk();
    let path = path.canonicalize().expect("real");
    let file = OpenOptions::new().append(true).open(&path).expect("open");
    // Data, so that reading takes a while.
    file.set_len(0).expect("emptied");
    (0..64).for_each(|_| file.write_all_at(&noise(MIB as usize), 0).expect("appended"));
    for _ in 0..20 {
        // Older than a step of the clock: it is not waited for at the begin.
        std::thread::sleep(Duration::from_millis(50));
        let Some(child) = stopped_while_reading(&path) else { continue };
        file.write_all_at(b"more", 0).expect("appended");
        signal(&child, libc::SIGCONT);
        let output = child.wait_with_output().expect("ends");
        let left = std::fs::read_dir(folder.path()).expect("listed").count();
        if output.status.success() {
            // It had read everything already.
            std::fs::remove_file(metadata_of(&path)).expect("removed");
            continue;
        }
        says(
            &words(&output),
            &["changed while it was read; nothing was written", "Hint: run it again"],
        );
        assert_eq!(left, 1, "the file, and nothing else");
        return;
    }
    panic!("it was never caught while it read");
}

/// `gridvfs meta build --watch`, until it is dropped.
struct Watch {
    child: Child,
}

impl Watch {
    fn of(directory: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(gridvfs());
        command.args(["meta", "build", "--settle", "0"]).args(arguments);
        let mut child =
            command.arg("--watch").arg(directory).stdout(Stdio::piped()).spawn().expect("runs");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let first = lines.next().expect("a line").expect("read");
        says(&first, &["watching"]);
        std::thread::spawn(move || lines.for_each(drop));
        Self { child }
    }

    fn ended(mut self) -> bool {
        signal(&self.child, libc::SIGTERM);
        self.child.wait().expect("ends").success()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_current(path: &Path) -> bool {
    let output = meta(&["show", "--json"], path);
    serde_json::from_slice::<Value>(&output.stdout).is_ok_and(|value| value["current"] == true)
}

#[test]
fn a_watched_directory_is_kept_current() {
    let (folder, path) = disk();
    let small = folder.path().join("small");
    std::fs::write(&small, "below 1 MiB").expect("written");
    // A look at all that never comes: what follows is seen by inotify.
    let watch = Watch::of(folder.path(), &["--rescan", "100000"]);
    eventually("the file that was there", || is_current(&path));
    let file = OpenOptions::new().write(true).open(&path).expect("open");
    file.write_all_at(b"other", 7 * MIB).expect("written");
    eventually("the file that changed", || is_current(&path));
    let deep = folder.path().join("a/b");
    std::fs::create_dir_all(&deep).expect("made");
    let new = deep.join("new.raw");
    std::fs::write(folder.path().join("part"), noise(2 * MIB as usize)).expect("written");
    std::fs::rename(folder.path().join("part"), &new).expect("moved in");
    eventually("a file in a directory that is new", || is_current(&new));
    assert!(!metadata_of(&small).exists(), "small files get none");
    // One that has metadata keeps it, whatever its size, with the parts that it has.
    done(&["build", "--zero"], &small);
    std::fs::write(&small, "other").expect("written");
    eventually("the small file", || is_current(&small));
    assert_eq!(json(&["show"], &small)["hashes"], Value::Null);
    done(&["verify"], &path);
    done(&["verify"], &new);
    assert!(watch.ended(), "a signal ends it in order");
}

#[test]
fn a_watched_directory_is_looked_at_as_a_whole() {
    let (folder, path) = disk();
    std::fs::create_dir(folder.path().join("in")).expect("made");
    let named = folder.path().join("in/x.mem");
    std::fs::write(&named, "small").expect("written");
    let watch =
        Watch::of(folder.path(), &["--rescan", "1", "--pattern", "*.mem", "--action", "gzip"]);
    eventually("the file of this name", || is_current(&named));
    assert_eq!(json(&["show"], &named)["actions"], serde_json::json!(["gzip:6"]));
    assert!(!metadata_of(&path).exists(), "others get none");
    // Damaged metadata is built anew: its own change is no event of the file.
    std::fs::write(metadata_of(&named), "damaged").expect("written");
    eventually("the damaged metadata", || is_current(&named));
    assert!(watch.ended());
}

#[test]
fn metadata_is_built_through_a_mount() {
    let test = "metadata_is_built_through_a_mount";
    let Some(rig) = Rig::mounted(test, Way::Local) else { return };
    let content = noise(3 * MIB as usize);
    std::fs::write(rig.export.join("disk.raw"), &content).expect("written");
    let mounted = rig.mountpoint.join("disk.raw");
    done(&["build", "--action", "zstd", "--zero", "--hash"], &mounted);
    done(&["verify"], &mounted);
    let there = rig.export.join("disk.raw");
    says(&done(&["verify"], &there), &["all true", "384 hashes"]);
    assert_eq!(json(&["show"], &there)["current"], true);
    done(&["remove"], &mounted);
    assert!(!metadata_of(&there).exists());
}
