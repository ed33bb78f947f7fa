//! Session files, defaults for all sessions, and where each value in force comes from.

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::{Rig, Way, gridvfs, run};
use serde_json::{Value, json};

/// A rig with a session file of its own name, which no other test's session has.
struct Sessions {
    rig: Rig,
    name: String,
}

impl Sessions {
    fn new(test: &str) -> Option<Self> {
        let rig = Rig::new(test, Way::Local)?;
        std::fs::create_dir_all(rig.folder.join("config/gridvfs/sessions")).expect("folder");
        let name = format!("{:.20}-{}", test.replace('_', ""), std::process::id());
        Some(Self { rig, name })
    }

    fn write(&self, text: &str) {
        let (source, mountpoint) = (self.rig.export.display(), self.rig.mountpoint.display());
        let text = format!("source = \"{source}\"\nmountpoint = \"{mountpoint}\"\n{text}");
        let file = format!("config/gridvfs/sessions/{}.toml", self.name);
        std::fs::write(self.rig.folder.join(file), text).expect("written");
    }

    fn write_defaults(&self, text: &str) {
        std::fs::write(self.rig.folder.join("config/gridvfs/config.toml"), text).expect("written");
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.rig.command(gridvfs());
        command.args(words);
        command
    }

    fn refused(&self, words: &[&str]) -> String {
        let output = self.command(words).output().expect("runs");
        assert!(!output.status.success(), "{words:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// The value of a key, and where it comes from: a file's name and line, or a word.
    fn shown(&self, key: &str) -> (Value, String) {
        let output = run(&mut self.command(&["config", "show", &self.name, "--json"]));
        let shown: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let rows = shown["settings"].as_array().expect("rows");
        let row = rows.iter().find(|row| row["key"] == key).unwrap_or_else(|| panic!("{shown}"));
        let from = match row["file"].as_str() {
            Some(file) => {
                let name = file.rsplit('/').next().unwrap_or_default();
                format!("{}:{}", name.replace(&self.name, "NAME"), row["line"])
            }
            None => row["from"].as_str().expect("a word").to_string(),
        };
        (row["value"].clone(), from)
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within 60 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_session_is_mounted_by_its_name() {
    let Some(mut s) = Sessions::new("a_session_is_mounted_by_its_name") else { return };
    s.write_defaults("[defaults]\ncache = \"on\"\ncache_size = \"64M\"\nwriteback_age = 77\n");
    s.write("cache_banks = 4\nwrite_policy = \"write-back\"\nwriteback_delay = 9\n");
    // Before it runs, its file says what would be.
    assert_eq!(s.shown("cache_banks"), (json!(4), "NAME.toml:3".into()));
    assert_eq!(s.shown("writeback_age"), (json!(77.0), "config.toml:4".into()));
    assert_eq!(s.shown("stripes"), (json!(4), "default".into()));

    let mounted = run(&mut s.command(&["mount", &s.name, "--json", "-o", "writeback_delay=8"]));
    s.rig.is_mounted();
    let mounted: Value = serde_json::from_slice(&mounted.stdout).expect("JSON");
    assert_eq!(mounted["session"], json!(s.name));
    assert_eq!(mounted["mountpoint"], json!(s.rig.mountpoint));
    assert_eq!(s.shown("mountpoint"), (json!(s.rig.mountpoint), "NAME.toml:2".into()));
    assert_eq!(s.shown("cache_size"), (json!(64 << 20), "config.toml:3".into()));
    assert_eq!(s.shown("writeback_delay"), (json!(8.0), "option".into()));
    assert_eq!(s.shown("at_end"), (json!("write-back"), "default".into()));
    run(&mut s.command(&["set", &s.name, "at_end=flush", "writeback_age=5"]));
    assert_eq!(s.shown("at_end"), (json!("flush"), "set".into()));
    assert_eq!(s.shown("writeback_age"), (json!(5.0), "set".into()));
    let text = run(&mut s.command(&["config", "show", &s.name]));
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.lines().any(|line| line.starts_with("at_end") && line.ends_with(" set")),
        "{text}"
    );
    assert!(text.contains(&format!("{}.toml:4", s.name)), "{text}");

    // All files are read again; what was set is forgotten, what -o says stays.
    s.write_defaults("[defaults]\nwriteback_age = 66\ncache_size = \"128M\"\ncache = true\n");
    s.write("cache_banks = 8\nwrite_policy = \"read-only\"\nwriteback_delay = 9\n");
    // SAFETY: no memory is touched.
    assert_eq!(unsafe { libc::kill(s.rig.pid(), libc::SIGHUP) }, 0);
    eventually("read again", || s.shown("writeback_age") == (json!(66.0), "config.toml:2".into()));
    assert_eq!(s.shown("write_policy"), (json!("read-only"), "NAME.toml:4".into()));
    assert_eq!(s.shown("writeback_delay"), (json!(8.0), "option".into()));
    assert_eq!(s.shown("at_end"), (json!("write-back"), "default".into()));
    assert_eq!(s.shown("cache_banks").0, json!(4), "for the mount's whole life");
    let log = s.rig.folder.join(format!("state/gridvfs/{}.log", s.name));
    eventually("it is said", || {
        let log = std::fs::read_to_string(&log).expect("a log");
        log.contains("cache_banks, cache_size hold for a mount's whole life")
    });

    let twice = s.refused(&["mount", &s.name]);
    assert!(twice.contains("mounted already"), "{twice}");
    let name = s.name.clone();
    run(&mut s.command(&["umount", &name]));
    assert_eq!(s.shown("cache_banks"), (json!(8), "NAME.toml:3".into()));
}

#[test]
fn what_is_wrong_with_a_file_is_said() {
    let Some(s) = Sessions::new("what_is_wrong_with_a_file_is_said") else { return };
    let says = |text: &str, words: &[&str]| {
        s.write(text);
        for verb in [&["mount", &s.name][..], &["config", "show", &s.name]] {
            let said = s.refused(verb);
            for word in words {
                assert!(said.contains(word), "{word:?} is missing in: {said}");
            }
        }
    };
    let third = format!("{}.toml:3", s.name);
    says("strips = 2", &[&third, "strips", "did you mean stripes?"]);
    says("stripes = \"two\"", &[&third, "not a number"]);
    says("ro = 1", &[&third, "true or false"]);
    says("cache_dir = \"here\"", &[&third, "begins with /"]);
    says("ro = true\nwrite_policy = \"write-back\"", &["does not go with"]);
    s.write("");
    s.write_defaults("[defaults]\nstripes = 0\n");
    let said = s.refused(&["mount", &s.name]);
    assert!(said.contains("config.toml:2") && said.contains("1 to 10"), "{said}");
    s.write_defaults("");

    let file = s.rig.folder.join("alone.toml");
    std::fs::write(&file, "stripes = 2\n").expect("written");
    let alone = file.display().to_string();
    let said = s.refused(&["mount", "--config", &alone]);
    assert!(said.contains("does not say what source is"), "{said}");
    std::fs::write(&file, "source = \"host:/x\"\n").expect("written");
    let said = s.refused(&["mount", "--config", &alone]);
    assert!(said.contains("does not say what mountpoint is"), "{said}");
    let said = s.refused(&["mount", "--config", "/nonexistent/x.toml"]);
    assert!(said.contains("/nonexistent/x.toml"), "{said}");
    let said = s.refused(&["mount", "nobody"]);
    assert!(said.contains("no session has this name") && said.contains("nobody.toml"), "{said}");
    let said = s.refused(&["mount", "host:/x"]);
    assert!(said.contains("where is host:/x to be mounted?"), "{said}");
    let said = s.refused(&["config", "show", "nobody"]);
    assert!(said.contains("no session nobody"), "{said}");
}

#[test]
fn a_file_by_its_path_is_mounted_elsewhere_and_under_another_name() {
    let test = "a_file_by_its_path_is_mounted";
    let Some(mut s) = Sessions::new(test) else { return };
    let file = s.rig.folder.join(format!("{}.toml", s.name));
    let text = format!(
        "source = \"{}\"\nmountpoint = \"{}\"\nro = true\nnoatime = true\n",
        s.rig.export.display(),
        s.rig.mountpoint.display()
    );
    std::fs::write(&file, text).expect("written");
    let path = file.display().to_string();
    run(&mut s.command(&["mount", "--config", &path]));
    s.rig.is_mounted();
    assert_eq!(s.shown("ro"), (json!(true), "NAME.toml:3".into()));
    assert_eq!(s.shown("noatime"), (json!(true), "NAME.toml:4".into()));
    let error = std::fs::write(s.rig.mountpoint.join("f"), b"x").expect_err("read-only");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    let other = s.rig.folder.join("other");
    std::fs::create_dir(&other).expect("folder");
    std::fs::write(
        s.rig.folder.join(format!("config/gridvfs/sessions/{}.toml", s.name)),
        std::fs::read(&file).expect("a file"),
    )
    .expect("written");
    // The name is that of a session which runs, unless another is given.
    let place = other.display().to_string();
    let said = s.refused(&["mount", &s.name, &place]);
    assert!(said.contains("runs already"), "{said}");
    let name = format!("{}-b", s.name);
    run(&mut s.command(&["mount", &s.name, &place, "--session", &name, "-o", "rw"]));
    std::fs::write(other.join("f"), b"x").expect("-o rw wins");
    run(&mut s.command(&["umount", &name]));
    assert!(s.rig.export.join("f").exists());
}
