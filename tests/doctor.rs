//! `gridvfs doctor`: what it finds on a machine in order, and that it finds what is not.

mod common;

use std::process::Command;

use common::{Rig, Way, gridvfs, is_root, run};
use serde_json::Value;

/// Runs it, with a `PATH` and further words; returns whether it was content, and its checks.
fn examine(rig: &Rig, words: &[&str]) -> (bool, Vec<Value>) {
    let mut command = rig.command(gridvfs());
    command.args(["doctor", "--json"]).args(words);
    checks(&mut command)
}

fn checks(command: &mut Command) -> (bool, Vec<Value>) {
    let output = command.output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let told: Value = serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr))
    });
    assert_eq!(output.status.success(), told["ok"] == true, "{told}");
    let checks = told["checks"].as_array().expect("checks").clone();
    for check in &checks {
        let result = check["result"].as_str().expect("a result");
        assert!(["ok", "warn", "fail"].contains(&result), "{check}");
        assert_eq!(result != "ok", check["mend"].is_string(), "{check}");
    }
    (told["ok"] == true, checks)
}

fn check<'a>(checks: &'a [Value], name: &str) -> &'a Value {
    let found = checks.iter().find(|check| check["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not among {checks:?}"))
}

#[test]
fn a_host_in_order_is_measured() {
    let Some(rig) = Rig::new("a_host_in_order_is_measured", Way::Ssh) else { return };
    let config = rig.folder.join("sshd/ssh_config").display().to_string();
    let source = rig.source();
    let state = rig.folder.join("state");
    let own = format!("gridvfs_command=env XDG_STATE_HOME={} {}", state.display(), gridvfs());
    let (content, all) = examine(&rig, &[&source, "-F", &config, "-o", &own]);
    assert!(content, "{all:?}");
    for name in ["fuse", "fusermount3", "ssh", "login", "clocks", "host gridvfs", "host open files"]
    {
        assert_eq!(check(&all, name)["result"], "ok", "{all:?}");
    }
    assert!(check(&all, "round trip")["round_trip_ms"].as_f64() > Some(0.0));
    let rates = check(&all, "rate")["rates"].as_array().expect("rates");
    assert_eq!(rates.len(), 4, "{rates:?}");
    assert!(
        rates.iter().all(|rate| rate["bytes_per_second"].as_u64() > Some(1 << 20)),
        "{rates:?}"
    );
    let best = check(&all, "stripes")["best_stripes"].as_u64().expect("a number");
    assert!([1, 2, 4, 8].contains(&best));
    assert!(check(&all, "rate up")["bytes_per_second"].as_u64() > Some(1 << 20));

    // What is wrong on the host, one thing at a time.
    let quick = |source: &str, options: &str| {
        let words = [source, "-F", &config, "--quick", "-o", options];
        let (content, all) = examine(&rig, &words);
        assert!(!content, "{all:?}");
        all
    };
    let all = quick("gvhost:/nonexistent/x", &own);
    assert!(check(&all, "host gridvfs")["found"].to_string().contains("/nonexistent/x"));
    let all = quick(&source, "gridvfs_command=/nonexistent/gridvfs");
    assert!(check(&all, "host gridvfs")["mend"].to_string().contains("bootstrap"), "{all:?}");
    rig.sshd("stop");
    let all = quick(&source, &own);
    assert_eq!(check(&all, "login")["result"], "fail");
    assert!(check(&all, "login")["mend"].to_string().contains("ssh gvhost true"));
}

#[test]
fn a_machine_that_lacks_something_is_told_how_to_mend_it() {
    let test = "a_machine_that_lacks_something_is_told";
    let Some(rig) = Rig::new(test, Way::Local) else { return };
    let fails = |command: &mut Command, name: &str, mend: &str| {
        let (content, all) = checks(command.args(["doctor", "--json"]));
        let check = check(&all, name);
        assert!(!content && check["result"] == "fail", "{all:?}");
        assert!(check["mend"].to_string().contains(mend), "{check}");
    };
    let mut bare = rig.command(gridvfs());
    fails(bare.env("PATH", "/nonexistent"), "fusermount3", "package fuse3");
    let mut bare = rig.command(gridvfs());
    fails(bare.env("PATH", "/nonexistent"), "ssh", "openssh-client");
    if !is_root() {
        common::shell(&rig.folder, "mkdir -m 500 closed");
        let mut closed = rig.command(gridvfs());
        fails(closed.env("XDG_CACHE_HOME", rig.folder.join("closed")), "cache", "XDG_CACHE_HOME");
    }
    common::shell(&rig.folder, "mkdir -p config/gridvfs/sessions");
    std::fs::write(rig.folder.join("config/gridvfs/sessions/x.toml"), "strips = 1\n").expect("w");
    fails(&mut rig.command(gridvfs()), "settings", "did you mean stripes?");
    let (content, all) = examine(&rig, &["/nonexistent/source"]);
    assert!(!content && check(&all, "source")["result"] == "fail", "{all:?}");
    std::fs::remove_file(rig.folder.join("config/gridvfs/sessions/x.toml")).expect("removed");
    let (content, all) = examine(&rig, &[&rig.source()]);
    assert!(content, "{all:?}");
    let text = run(rig.command(gridvfs()).arg("doctor"));
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.lines().any(|line| line.starts_with("ok") && line.contains("/dev/fuse")),
        "{text}"
    );
}
