//! The harness's own logic, with experiments that measure nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Lists the parts of the variable PARTS (NAME:REPEATS:NEEDS) and runs a shell function of that name.
const SCRIPT: &str = r#"#!/usr/bin/env bash
set -euo pipefail
here=$(dirname "$0")
sample() { echo "{\"experiment\":\"EXPERIMENT\",\"series\":\"$1\",\"x\":\"$2\",\"metric\":\"time\",\"unit\":\"s\",\"value\":$3}"; }
BODY
if [[ $1 == list ]]; then
    for part in $PARTS; do
        IFS=: read -r name repeats needs <<<"$part"
        echo "{\"part\":\"$name\",\"title\":\"Of $name\",\"seconds\":1,\"repeats\":$repeats,\"needs\":[${needs:+\"$needs\"}]}"
    done
    exit 0
fi
k=$4
echo "$2 $k" >>"$here/ran"
"$2"
"#;

struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        fs::create_dir(folder.path().join("experiments")).expect("makes");
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn script(&self, experiment: &str, parts: &str, body: &str) {
        let path = self.path("experiments").join(format!("{experiment}.sh"));
        let text = SCRIPT
            .replace("EXPERIMENT", experiment)
            .replace("BODY", &format!("PARTS='{parts}'\n{body}"));
        fs::write(&path, text).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("sets");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gridvfs-bench"));
        command.args(arguments).arg("--experiments").arg(self.path("experiments"));
        command.arg("--lock").arg(self.folder.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let results = self.path("results");
        let results = results.to_str().expect("utf-8");
        self.command(&[&["run", "--results", results], arguments].concat()).output().expect("runs")
    }

    fn ran(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("experiments/ran")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn report(&self) -> String {
        fs::read_to_string(self.path("results/report.md")).expect("has a report")
    }

    fn raw(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path("results/raw"))
            .expect("lists")
            .map(|entry| entry.expect("entry").file_name().into_string().expect("utf-8"))
            .collect();
        names.sort();
        names
    }
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(60), "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn repetitions_are_interleaved_and_nothing_is_run_twice() {
    let world = World::new();
    world.script("one", "a:3 b:2", "a() { sample S x $k; }\nb() { sample T x 1$k; }");
    world.script("two", "c:1", "c() { sample S 8 1; sample S 16 4; sample T 8 2; }");
    let first = world.run(&["--repeats", "1"]);
    assert!(first.status.success(), "{}", words(&first));
    assert_eq!(world.ran(), ["a 1", "b 1", "c 1"]);
    let report = fs::read(world.path("results/report.md")).expect("report");
    let rest = world.run(&[]);
    assert!(rest.status.success(), "{}", words(&rest));
    assert_eq!(world.ran()[3..], ["a 2", "b 2", "a 3"]);
    assert_eq!(
        world.raw(),
        [
            "one.a.1.jsonl",
            "one.a.2.jsonl",
            "one.a.3.jsonl",
            "one.b.1.jsonl",
            "one.b.2.jsonl",
            "two.c.1.jsonl"
        ]
    );
    assert_ne!(report, fs::read(world.path("results/report.md")).expect("report"));
    // Medians and spread, by hand: 1 2 3, and 11 12.
    let report = world.report();
    assert!(report.contains("| S | 2 (1–3) |"), "{report}");
    assert!(report.contains("| T | 11.5 (11–12) |"), "{report}");
    assert!(report.contains("3 of 3 parts have all their repetitions."), "{report}");
    for kind in ["svg", "png"] {
        let size =
            fs::metadata(world.path(&format!("results/two-time.{kind}"))).expect("figure").len();
        assert!(size > 1000, "{kind} has {size} bytes");
    }
}

#[test]
fn a_report_follows_from_raw_data_alone() {
    let world = World::new();
    world.script(
        "e",
        "a:2",
        "a() { for x in 1 2 4; do sample S $x $((x * k)); done; sample T 1 9; }",
    );
    assert!(world.run(&[]).status.success());
    let read = |name: &str| fs::read(world.path("results").join(name)).expect("is there");
    let made = ["report.md", "e-time.svg", "e-time.png"];
    let before = made.map(read);
    for name in made {
        fs::remove_file(world.path("results").join(name)).expect("removes");
    }
    fs::remove_dir_all(world.path("experiments")).expect("removes");
    fs::remove_dir_all(world.path("results/log")).expect("removes");
    let results = world.path("results");
    let again =
        world.command(&["report", results.to_str().expect("utf-8")]).output().expect("runs");
    assert!(again.status.success(), "{}", words(&again));
    assert!(made.map(read) == before);
}

#[test]
fn what_cannot_be_had_or_fails_is_named_in_the_report() {
    let world = World::new();
    world.script(
        "e",
        "good:1 absent:3 broken:3 babble:1 lacking:2:no-such-program full:1:disk:99999999999",
        "good() { sample S x 1; }\n\
         absent() { echo working >&2; echo 'no such thing here' >&2; exit 77; }\n\
         broken() { sample S x 2; echo 'it broke | badly' >&2; exit 3; }\n\
         babble() { echo 'done in 3 s'; }\n",
    );
    let output = world.run(&[]);
    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
    // What is skipped is not tried again in the same run, and what fails but once more.
    assert_eq!(world.ran(), ["good 1", "absent 1", "broken 1", "babble 1", "broken 2"]);
    let report = world.report();
    for told in [
        "| e/absent | Of absent | 0 of 3 | cannot be had here: no such thing here |",
        "| e/lacking | Of lacking | 0 of 2 | cannot be had here: no-such-program is not installed",
        "**failed**: exit status: 3: it broke \\| badly |",
        "**failed**: neither a sample nor a note: done in 3 s |",
        "1 of 6 parts",
    ] {
        assert!(report.contains(told), "{told} is not in {report}");
    }
    // Half of its samples are not used.
    assert_eq!(world.raw().iter().filter(|name| name.ends_with(".jsonl")).count(), 1);
    // Mended, it is run, and the failure forgotten.
    world.script("e", "broken:1", "broken() { sample S x 2; }");
    let output = world.run(&["e/broken"]);
    assert!(output.status.success(), "{}", words(&output));
    assert!(!world.report().contains("it broke"), "{}", world.report());
}

/// A part that waits for long, and leaves word when it has cleared away.
fn waiting(world: &World) -> Child {
    world.script(
        "e",
        "a:1 slow:1",
        "a() { sample S x 1; }\n\
         slow() { trap 'echo cleared >\"$here/cleared\"' EXIT; trap 'exit 130' INT TERM; \
         sample S y 1; : >\"$here/waits\"; sleep 600; }",
    );
    let results = world.path("results");
    let child = world
        .command(&["run", "--results", results.to_str().expect("utf-8")])
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    until("it waits", || world.path("experiments/waits").exists());
    child
}

fn ended(child: Child) -> Output {
    child.wait_with_output().expect("ends")
}

#[test]
fn an_interrupted_run_clears_away_and_goes_on_where_it_was() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let world = World::new();
        let child = waiting(&world);
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("signals");
        let output = ended(child);
        assert_eq!(output.status.code(), Some(130), "{}", words(&output));
        assert!(world.path("experiments/cleared").exists(), "it did not clear away");
        let results = world.path("results");
        let told = format!("To go on: gridvfs-bench run --results {}", results.display());
        assert!(words(&output).contains(&told), "{}", words(&output));
        assert_eq!(world.raw(), ["e.a.1.jsonl"]);
        world.script("e", "a:1 slow:1", "a() { false; }\nslow() { sample S y 2; }");
        assert!(world.run(&[]).status.success());
        assert_eq!(world.ran(), ["a 1", "slow 1", "slow 1"]);
    }
}

#[test]
fn two_runs_at_once_are_refused() {
    let world = World::new();
    let child = waiting(&world);
    let second = world.run(&[]);
    assert!(!second.status.success());
    let holder = format!("another run is under way on this machine (process {})", child.id());
    assert!(words(&second).contains(&holder), "{}", words(&second));
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("signals");
    ended(child);
    world.script("e", "a:1", "a() { false; }");
    // The lock ends with the process that held it.
    assert!(world.run(&[]).status.success());
}

#[test]
fn time_that_is_over_leaves_the_rest_for_later() {
    let world = World::new();
    world.script("e", "a:2", "a() { sample S x 1; }");
    let output = world.run(&["--minutes", "0"]);
    assert!(output.status.success(), "{}", words(&output));
    assert!(words(&output).contains("the time is over"), "{}", words(&output));
    assert!(world.ran().is_empty());
    assert!(world.report().contains("| e/a | Of a | 0 of 2 | not run yet |"));
}

#[test]
fn bad_choices_and_scripts_are_told() {
    let world = World::new();
    world.script("e", "a:1", "a() { sample S x 1; }");
    let output = world.run(&["e/b"]);
    assert!(
        !output.status.success() && words(&output).contains("there is no e/b"),
        "{}",
        words(&output)
    );
    world.script("f", "../a:1", "");
    let output = world.command(&["list"]).output().expect("runs");
    assert!(words(&output).contains("\"../a\" is no name"), "{}", words(&output));
    world.script("f", "", "echo 'no list' >&2; exit 1");
    let output = world.command(&["list"]).output().expect("runs");
    assert!(words(&output).contains("no list"), "{}", words(&output));
    let nothing = world.folder.path().to_str().expect("utf-8");
    let output = world.command(&["report", nothing]).output().expect("runs");
    assert!(words(&output).contains("has no results"), "{}", words(&output));
}

#[test]
fn a_document_is_filled_and_checked() {
    let world = World::new();
    world.script("e", "a:1", "a() { sample S x 1; sample S y 2; sample S z 3; }");
    assert!(world.run(&[]).status.success());
    let document = world.path("docs.md");
    let text = "# Title\n<!-- gridvfs-bench results: nowhere -->\n<!-- gridvfs-bench: e -->\nold\n<!-- /gridvfs-bench -->\nEnd\n";
    fs::write(&document, text).expect("writes");
    let path = document.to_str().expect("utf-8");
    let results = world.path("results");
    let fill = |arguments: &[&str]| {
        world.command(&[&["fill", path], arguments].concat()).output().expect("runs")
    };
    assert!(!fill(&["--check"]).status.success());
    let output = fill(&["--results", results.to_str().expect("utf-8")]);
    assert!(output.status.success(), "{}", words(&output));
    let text = fs::read_to_string(&document).expect("reads");
    assert!(text.contains("<!-- gridvfs-bench results: results -->"), "{text}");
    assert!(text.contains("| S | 1 | 2 | 3 |") && text.contains("(results/e-time.svg)"), "{text}");
    assert!(!text.contains("old") && text.ends_with("End\n"), "{text}");
    assert!(fill(&["--check"]).status.success());
    fs::write(&document, text.replace("| S | 1 |", "| S | 0.9 |")).expect("writes");
    assert!(words(&fill(&["--check"])).contains("gridvfs-bench fill"));
}

/// What is committed as figures is what the raw data say.
#[test]
fn the_documentation_has_current_figures() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/performance.md");
    let output = Command::new(env!("CARGO_BIN_EXE_gridvfs-bench"))
        .args(["fill", "--check"])
        .arg(&document)
        .output()
        .expect("runs");
    assert!(output.status.success(), "{}", words(&output));
}
