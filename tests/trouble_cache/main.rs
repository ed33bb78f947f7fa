//! The disk cache in trouble, over real mounts: processes killed at every named point, directories
//! that cannot be used, damage, and a server that goes away or is full while it is being written to.
//!
//! What the options and verbs say is in `cache_command.rs`; what only the layer can show (power loss,
//! every file deleted, every flip) is in `cache/tests/crash`.

#[path = "../common/mod.rs"]
mod common;

mod damage;
mod directory;
mod kills;
mod sending;
mod told;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Rig, gridvfs, run};
use serde_json::Value;

/// How long anything may take before a test calls it hung.
const LIMIT: Duration = Duration::from_secs(120);

/// A cache of a size that tests can do with, which sends nothing by itself.
const LAZY: &str = "cache=on,cache_size=64M,cache_banks=4,write_policy=write-back,\
                    writeback_delay=600,writeback_age=600";

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `gridvfs WORDS…` on the rig's mount; the mount point stands for `@`.
fn verb(rig: &Rig, words: &[&str]) -> Command {
    let mut command = rig.command(gridvfs());
    for word in words {
        match *word {
            "@" => command.arg(&rig.mountpoint),
            word => command.arg(word),
        };
    }
    command
}

/// What it answers as JSON.
fn ask(rig: &Rig, words: &[&str]) -> Value {
    let output = run(verb(rig, words).arg("--json"));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// What it says when it fails, as it must.
fn refused(command: &mut Command) -> String {
    let output = command.output().expect("runs");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{command:?} should fail; {words}");
    assert!(words.contains("rror") && !words.contains("panicked"), "{command:?}: {words}");
    words
}

fn says(words: &str, parts: &[&str]) {
    for part in parts {
        assert!(words.contains(part), "{part:?} is missing in: {words}");
    }
}

fn unsent_bytes(rig: &Rig) -> u64 {
    rig.status()["cache"]["unsent_bytes"].as_u64().expect("a number")
}

/// Some bytes that no other offset has.
fn pattern(offset: u64, length: usize) -> Vec<u8> {
    (offset / 8..)
        .flat_map(|word| word.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes())
        .take(length)
        .collect()
}

fn is_alive(pid: i32) -> bool {
    // A process that has ended and was not waited for has no namespaces.
    Path::new(&format!("/proc/{pid}/ns/mnt")).exists()
}
