//! The verbs of sessions as scripts and monitoring use them: exit statuses, JSON, metrics, and what
//! happens when clients of the control socket misbehave.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::{Rig, Way, gridvfs, run};
use serde_json::Value;

const LAZY: &str = "cache=on,cache_size=64M,cache_banks=4,write_policy=write-back,\
                    writeback_delay=600,writeback_age=600";

/// `gridvfs WORDS…`; the mount point stands for `@`.
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

/// Runs a command with `--json`, which must end so; returns what it said.
fn ends(rig: &Rig, words: &[&str], status: i32) -> Value {
    let output = verb(rig, words).arg("--json").output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words_of_error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{words:?}: {text}{words_of_error}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words:?}: {error}: {text}"))
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within 60 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: no memory is touched.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

fn socket(rig: &Rig) -> PathBuf {
    let name = rig.status()["session"].as_str().expect("a name").to_string();
    let listed = ends(rig, &["sessions"], 0);
    let row =
        listed.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == name.as_str()));
    row.expect("listed")["socket"].as_str().expect("a path").into()
}

#[test]
fn exit_statuses_tell_scripts_what_happened() {
    let test = "exit_statuses_tell_scripts_what_happened";
    let Some(mut rig) = Rig::mounted_with(test, Way::Local, &[LAZY]) else { return };
    for (words, status, code) in [
        (&["status", "nobody"][..], 3, "no-session"),
        (&["writeback", "nobody"], 3, "no-session"),
        (&["config", "show", "nobody"], 3, "no-session"),
        (&["umount", "/nonexistent/x"], 3, "no-session"),
        (&["set", "@", "stripes=2"], 6, "refused"),
        (&["set", "@", "atend=flush"], 2, "usage"),
        (&["set", "@", "at_end=never"], 2, "usage"),
        (&["set", "@", "consistency=read-only-shared"], 6, "refused"),
        (&["mount", "/usr", "/tmp", "-o", "strips=1"], 2, "usage"),
        (&["mount", "/nonexistent", "/tmp", "-o", "nonempty"], 1, "failed"),
    ] {
        let said = ends(&rig, words, status);
        assert_eq!((&said["ok"], said["code"].as_str()), (&Value::Bool(false), Some(code)));
        assert!(said["error"].is_string(), "{said}");
    }
    let hint = ends(&rig, &["set", "@", "cache_size=1G"], 6)["hint"].clone();
    assert!(hint.as_str().is_some_and(|hint| hint.contains("write_policy, consistency")), "{hint}");

    // Twice is as good as once.
    std::fs::write(rig.mountpoint.join("f"), vec![1; 100_000]).expect("write");
    assert_eq!(ends(&rig, &["writeback", "@"], 0)["written_back_bytes"], 100_000);
    assert_eq!(ends(&rig, &["writeback", "@"], 0)["written_back_bytes"], 0);
    ends(&rig, &["flush", "@"], 0);
    ends(&rig, &["flush", "@"], 0);

    // Others change a file under unsent data.
    std::fs::write(rig.mountpoint.join("f"), vec![2; 100]).expect("write");
    let later = std::time::SystemTime::now() + Duration::from_secs(100);
    let theirs = std::fs::File::options().write(true).open(rig.export.join("f")).expect("theirs");
    theirs.set_modified(later).expect("time");
    assert_eq!(ends(&rig, &["writeback", "@"], 7)["code"], "conflict");
    assert_eq!(ends(&rig, &["umount", "@"], 7)["code"], "conflict");
    run(&mut verb(&rig, &["conflicts", "@", "f", "keep-mine"]));
    ends(&rig, &["writeback", "@"], 0);

    // A process that is stopped answers nobody.
    let pid = rig.pid();
    signal(pid, libc::SIGSTOP);
    let said =
        verb(&rig, &["writeback", "@", "--timeout", "0.3", "--json"]).output().expect("runs");
    signal(pid, libc::SIGCONT);
    assert_eq!(said.status.code(), Some(5), "{said:?}");

    // Two at once, and once more.
    let mut other = verb(&rig, &["umount", "@", "--json"]).spawn().expect("runs");
    ends(&rig, &["umount", "@"], 0);
    assert_eq!(other.wait().expect("ends").code(), Some(0));
    ends(&rig, &["umount", "@"], 0);
    rig.mount();

    signal(rig.pid(), libc::SIGKILL);
    let name = rig.mountpoint.display().to_string();
    eventually("it is dead", || {
        let output = verb(&rig, &["status", &name]).output().expect("runs");
        output.status.code() == Some(8)
    });
    ends(&rig, &["umount", "@"], 0);
    assert_eq!(ends(&rig, &["status", "@"], 3)["code"], "no-session");
}

/// Reads the text exposition format as a scraper does: families with help, type and samples.
fn parsed(text: &str) -> BTreeMap<String, (String, Vec<(String, f64)>)> {
    let mut families: BTreeMap<String, (String, Vec<(String, f64)>)> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help");
            assert!(!help.is_empty() && !families.contains_key(name), "{line}");
            families.insert(name.into(), Default::default());
            current = name.into();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert_eq!(name, current);
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(kind != "counter" || name.ends_with("_total"), "{line}");
            families.get_mut(name).expect("helped").0 = kind.into();
        } else {
            let (sample, value) = line.rsplit_once(' ').expect("a value");
            let (name, labels) =
                sample.strip_suffix('}').and_then(|s| s.split_once('{')).expect("l");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{line}");
            let endings = ["", "_bucket", "_sum", "_count"];
            assert!(endings.iter().any(|ending| format!("{current}{ending}") == name), "{line}");
            assert!(labels.starts_with("session=\""), "{line}");
            let family = families.get_mut(&current).expect("a family");
            family.1.push((sample.into(), value.parse().expect("a number")));
        }
    }
    families
}

#[test]
fn top_and_metrics_show_what_goes_on() {
    let test = "top_and_metrics_show_what_goes_on";
    let Some(rig) = Rig::mounted_with(test, Way::Ssh, &[LAZY]) else { return };
    let name = rig.status()["session"].as_str().expect("a name").to_string();
    std::fs::write(rig.export.join("read"), vec![1; 1 << 20]).expect("write");
    std::fs::write(rig.mountpoint.join("written"), vec![2; 300_000]).expect("write");
    rig.shell("cat read >/dev/null");

    let mut top = verb(&rig, &["top", &name, "--json", "--interval", "0.5"]);
    let mut top = top.stdout(std::process::Stdio::piped()).spawn().expect("runs");
    let mut lines = BufReader::new(top.stdout.take().expect("its output")).lines();
    let mut seen = Value::Null;
    for line in lines.by_ref().take(20) {
        // Past the kernel's own cache.
        rig.shell("dd if=read of=/dev/null bs=64k iflag=direct status=none");
        let told: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
        seen = told["sessions"][0].clone();
        if seen["files"].as_array().is_some_and(|files| !files.is_empty()) {
            break;
        }
    }
    top.kill().expect("killed");
    top.wait().expect("ended");
    assert_eq!(seen["name"], name.as_str());
    assert_eq!(seen["files"][0]["path"], "read", "{seen}");
    assert!(seen["files"][0]["read_bytes_per_second"].as_u64() > Some(0), "{seen}");
    assert!(seen["requests"]["read"]["count"].as_u64() > Some(0), "{seen}");
    assert!(seen["requests"]["read"]["p99_ms"].as_f64() > Some(0.0), "{seen}");
    assert!(
        seen["cache"]["hit_ratio"].as_f64().is_some_and(|r| (0.0..=1.0).contains(&r)),
        "{seen}"
    );
    assert_eq!(seen["cache"]["unsent_bytes"], 300_000, "{seen}");
    let text = run(&mut verb(&rig, &["top", "--once", "--interval", "0.1"]));
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains(&name) && text.contains("stripes") && !text.contains('\x1b'), "{text}");

    // Of all sessions: other tests' are among them.
    let text = run(&mut verb(&rig, &["status", "--prometheus"]));
    let families = parsed(&String::from_utf8_lossy(&text.stdout));
    let sample = |family: &str, labels: &str| {
        let labels = labels.replace('@', &format!("session=\"{name}\""));
        let (_, samples) = families.get(family).unwrap_or_else(|| panic!("{family}"));
        let found = samples.iter().find(|(sample, _)| sample.ends_with(&labels));
        found.unwrap_or_else(|| panic!("{labels} of {family} in {samples:?}")).1
    };
    assert_eq!(sample("gridvfs_cache_unsent_bytes", "{@}"), 300_000.0);
    assert_eq!(sample("gridvfs_link_up", "{@}"), 1.0);
    let reads = sample("gridvfs_requests_total", "{@,operation=\"read\"}");
    let timed = sample("gridvfs_request_duration_seconds", "_count{@,kind=\"read\"}");
    assert!(reads > 16.0 && reads == timed, "{reads} {timed}");
    assert_eq!(families["gridvfs_request_duration_seconds"].0, "histogram");
    let (_, buckets) = &families["gridvfs_call_duration_seconds"];
    let own = format!("_bucket{{session=\"{name}\",kind=\"small\"");
    let counts: Vec<f64> = buckets.iter().filter(|b| b.0.contains(&own)).map(|b| b.1).collect();
    assert!(counts.is_sorted() && counts.len() > 20 && counts.last() > Some(&0.0), "{counts:?}");
    let status = run(&mut verb(&rig, &["status", &name]));
    assert!(String::from_utf8_lossy(&status.stdout).contains("latency"));
}

fn ask(stream: &mut UnixStream, request: &[u8]) -> Value {
    stream.write_all(request).expect("written");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("a line");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn bad_clients_of_the_socket_hinder_nobody() {
    let test = "bad_clients_of_the_socket_hinder_nobody";
    let Some(mut rig) = Rig::mounted_with(test, Way::Local, &[LAZY]) else { return };
    let path = socket(&rig);
    let connect = || UnixStream::connect(&path).expect("connects");
    for (request, words) in [
        (&b"\n"[..], "not a request"),
        (b"nonsense\n", "not a request"),
        (b"\xff\xfe{\n", "not a request"),
        (b"{}\n", "not a request"),
        (b"{\"v\":99,\"verb\":\"status\"}\n", "version 1"),
        (b"{\"v\":1,\"verb\":\"explode\"}\n", "unknown verb"),
        (b"{\"v\":1,\"verb\":\"set\",\"arguments\":7}\n", "a list is expected"),
        (b"{\"v\":1,\"verb\":\"set\",\"arguments\":{\"changes\":[\"stripes=1\"]}}\n", "whole life"),
        (&[b'x'; 70_000], "at most 65536 bytes"),
    ] {
        let mut stream = connect();
        let said = ask(&mut stream, request);
        assert_eq!(said["ok"], Value::Bool(false));
        assert!(said["error"].as_str().is_some_and(|error| error.contains(words)), "{said}");
    }
    // Who says nothing, and more of them than there are places; who does not read, for long.
    let silent: Vec<UnixStream> = (0..100).map(|_| connect()).collect();
    let half: Vec<UnixStream> = (0..20)
        .map(|_| {
            let mut stream = connect();
            stream.write_all(b"{\"v\":1,").expect("written");
            stream
        })
        .collect();
    let mut deaf = connect();
    deaf.set_nonblocking(true).expect("set");
    while deaf.write(b"{\"v\":1,\"verb\":\"status\"}\n").is_ok() {}
    for _ in 0..3 {
        assert_eq!(ends(&rig, &["status", "@"], 0)["ok"], Value::Bool(true));
    }
    let closed = silent.iter().filter(|stream| {
        stream.set_nonblocking(true).expect("set");
        matches!((&**stream).read(&mut [0]), Ok(0))
    });
    assert!(closed.count() >= 36, "those that were idle for longest have lost their places");

    // Somebody cleans up: the socket comes back.
    std::fs::remove_file(&path).expect("removed");
    assert_eq!(ends(&rig, &["status", "@"], 8)["code"], "silent");
    eventually("a new socket", || UnixStream::connect(&path).is_ok());
    assert_eq!(ends(&rig, &["status", "@"], 0)["ok"], Value::Bool(true));

    // The session ends with them there, and data is sent.
    std::fs::write(rig.mountpoint.join("f"), vec![3; 100_000]).expect("write");
    let others: Vec<UnixStream> = (0..10).map(|_| connect()).collect();
    rig.umount();
    assert_eq!(std::fs::read(rig.export.join("f")).expect("there"), vec![3; 100_000]);
    drop((silent, half, deaf, others));

    // Without a socket, the mount point is enough.
    rig.mount();
    let path = socket(&rig);
    std::fs::write(rig.mountpoint.join("g"), vec![4; 100_000]).expect("write");
    std::fs::remove_file(&path).expect("removed");
    rig.umount();
    assert_eq!(std::fs::read(rig.export.join("g")).expect("there"), vec![4; 100_000]);
}

#[test]
fn signals_during_each_other_lose_nothing() {
    let test = "signals_during_each_other_lose_nothing";
    let Some(mut rig) = Rig::new(test, Way::Ssh) else { return };
    let settings = rig.folder.join("settings.toml");
    std::fs::write(&settings, "writeback_delay = 600\n").expect("write");
    rig.set_options(&[LAZY, &format!("settings={}", settings.display())]);
    let all = [libc::SIGUSR1, libc::SIGHUP, libc::SIGUSR2, libc::SIGTERM];
    // Each order of the first three, and the end at each place.
    for (round, order) in
        [[0, 1, 2, 3], [2, 3, 1, 0], [1, 3, 0, 2], [3, 2, 1, 0]].iter().enumerate()
    {
        rig.mount();
        let pid = rig.pid();
        for file in 0..8 {
            let name = format!("r{round}-{file}");
            std::fs::write(rig.mountpoint.join(name), vec![round as u8; 500_000]).expect("write");
        }
        for index in order {
            signal(pid, all[*index]);
        }
        let stat = format!("/proc/{pid}/stat");
        eventually("it has ended", || {
            std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "))
        });
        for file in 0..8 {
            let sent = std::fs::read(rig.export.join(format!("r{round}-{file}"))).expect("there");
            assert!(sent == vec![round as u8; 500_000], "round {round}, file {file}");
        }
    }
}

#[test]
fn a_name_is_told_from_a_mount_point() {
    let Some(rig) = Rig::new("a_name_is_told_from_a_mount_point", Way::Local) else { return };
    let (one, two) = (format!("one-{}", std::process::id()), format!("two-{}", std::process::id()));
    let mount = |directory: &str, name: &str| {
        let place = rig.folder.join(directory);
        std::fs::create_dir_all(&place).expect("folder");
        run(rig
            .command(gridvfs())
            .arg("mount")
            .arg(&rig.export)
            .arg(place)
            .args(["--session", name]));
    };
    let umount = |target: &str| -> Output {
        let mut command = rig.command(gridvfs());
        command.args(["umount", target]).current_dir(&rig.folder).output().expect("runs")
    };
    // A session called as the directory of another is.
    mount(&two, &one);
    mount("elsewhere", &two);
    let refused = umount(&two);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains(&format!("./{two}")));
    assert!(umount(&format!("./{two}")).status.success());
    assert_eq!(ends(&rig, &["status", &one], 3)["code"], "no-session");
    // A directory that is no mount point is in nobody's way.
    assert!(umount(&two).status.success());
    assert_eq!(ends(&rig, &["status", &two], 3)["code"], "no-session");
    // Another's name is not for the taking.
    mount("elsewhere", &one);
    let place = rig.folder.join("second");
    std::fs::create_dir_all(&place).expect("folder");
    let (export, place) = (rig.export.display().to_string(), place.display().to_string());
    let mut again = verb(&rig, &["mount", &export, &place, "--session", &one]);
    let again = again.output().expect("runs");
    assert_eq!(again.status.code(), Some(6), "{again:?}");
    assert!(umount(&one).status.success());
}

/// Runs a command on a terminal of its own, where Ctrl-C is typed at the first sight of a word.
fn interrupted(rig: &Rig, word: &str, words: &[&str]) -> (Option<i32>, String) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/at-terminal.py");
    let command = verb(rig, words);
    let mut typed = rig.command("python3");
    typed
        .args([script, "--once", word, "\x03"])
        .arg(command.get_program())
        .args(command.get_args());
    let output = typed.output().expect("runs");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_write_back_that_is_interrupted_or_cancelled_leaves_what_was() {
    let test = "a_write_back_that_is_interrupted_or_cancelled_leaves_what_was";
    if !common::installed("python3") {
        return common::skipped(test, "needs python3 (a terminal)");
    }
    let kept = format!("{LAZY},at_end=preserve");
    let Some(mut rig) = Rig::mounted_with(test, Way::Ssh, &[&kept]) else { return };
    std::fs::write(rig.mountpoint.join("f"), vec![1; 300_000]).expect("write");
    rig.umount();
    // What is found unsent is held back until somebody asks.
    rig.mount();
    let link =
        |rig: &Rig, what: i32| rig.ssh_pids(rig.pid()).iter().for_each(|ssh| signal(*ssh, what));
    link(&rig, libc::SIGSTOP);

    let (status, text) = interrupted(&rig, "writing back", &["writeback", "@"]);
    assert_eq!(status, Some(130), "{text}");
    assert!(text.contains("292.97 KiB not yet on the state server"), "{text}");
    assert!(text.contains("goes on sending; gridvfs cancel"), "{text}");
    assert_eq!(ends(&rig, &["cancel", "@"], 0)["cancelled"], true, "it went on");
    eventually("the end of it", || ends(&rig, &["cancel", "@"], 0)["cancelled"] == false);

    // Whoever waits for it is told.
    let mut waiting = verb(&rig, &["writeback", "@", "--json"]);
    let waiting = waiting.stdout(std::process::Stdio::piped()).spawn().expect("runs");
    eventually("a write-back", || ends(&rig, &["cancel", "@"], 0)["cancelled"] == true);
    let said = waiting.wait_with_output().expect("ends");
    assert_eq!(said.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&said.stdout).contains("cancelled"), "{said:?}");

    // umount: still mounted, with the settings that it had.
    let (status, text) = interrupted(&rig, "writing back", &["umount", "--flush", "@"]);
    assert_eq!(status, Some(130), "{text}");
    assert!(text.contains("still mounted"), "{text}");
    assert_eq!(rig.status()["cache"]["settings"]["at_end"], "preserve");
    assert_eq!(ends(&rig, &["cancel", "@"], 0)["cancelled"], true);

    // With the link there again it is held back as before.
    link(&rig, libc::SIGCONT);
    std::fs::write(rig.export.join("theirs"), b"here").expect("write");
    eventually("the link", || std::fs::read(rig.mountpoint.join("theirs")).is_ok());
    assert_eq!(rig.status()["cache"]["unsent_bytes"], 300_000);
    ends(&rig, &["writeback", "@"], 0);
    assert_eq!(std::fs::read(rig.export.join("f")).expect("there"), vec![1; 300_000]);

    // The one at the end: the rest stays for the next mount.
    ends(&rig, &["set", "@", "at_end=write-back"], 0);
    std::fs::write(rig.mountpoint.join("g"), vec![2; 300_000]).expect("write");
    let session = rig.status()["session"].as_str().expect("a name").to_string();
    let pid = rig.pid();
    link(&rig, libc::SIGSTOP);
    signal(pid, libc::SIGTERM);
    eventually("the end's write-back", || {
        let output = verb(&rig, &["cancel", &session, "--json"]).output().expect("runs");
        String::from_utf8_lossy(&output.stdout).contains("\"cancelled\":true")
    });
    let stat = format!("/proc/{pid}/stat");
    eventually("it has ended", || {
        std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "))
    });
    rig.mount();
    assert_eq!(rig.status()["cache"]["unsent_bytes"], 300_000);
    ends(&rig, &["writeback", "@"], 0);
    assert_eq!(std::fs::read(rig.export.join("g")).expect("there"), vec![2; 300_000]);
}

#[test]
fn of_two_that_want_a_name_at_once_one_gets_it() {
    let test = "of_two_that_want_a_name_at_once_one_gets_it";
    let Some(rig) = Rig::new(test, Way::Local) else { return };
    let name = format!("race-{}", std::process::id());
    let mounts: Vec<_> = (0..4)
        .map(|number| {
            let place = rig.folder.join(format!("place{number}"));
            std::fs::create_dir_all(&place).expect("folder");
            let mut command = rig.command(gridvfs());
            command.arg("mount").arg(&rig.export).arg(&place).args(["--session", &name]);
            command.stderr(std::process::Stdio::piped()).spawn().expect("runs")
        })
        .collect();
    let ended = mounts.into_iter().map(|mount| mount.wait_with_output().expect("ends"));
    let statuses: Vec<_> = ended.map(|output| output.status.code()).collect();
    let (good, refused) = (Some(0), Some(6));
    let count = |wanted| statuses.iter().filter(|status| **status == wanted).count();
    assert_eq!((count(good), count(refused)), (1, 3), "{statuses:?}");
    run(&mut verb(&rig, &["umount", &name]));
}
