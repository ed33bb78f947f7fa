use std::path::Path;

use super::*;
use crate::report::error_text;

fn parse(options: &[&str]) -> Result<Settings> {
    let layers = Layers { defaults: Vec::new(), ..Layers::new(None, options.iter().copied(), [])? };
    layers.read().map(|reading| reading.settings)
}

/// Reads a file of defaults, a session file and options.
fn layered(folder: &Path, defaults: &str, session: &str, options: &[&str]) -> Result<Reading> {
    std::fs::write(folder.join("config.toml"), defaults).expect("written");
    std::fs::write(folder.join("vm.toml"), session).expect("written");
    let session = Some(folder.join("vm.toml"));
    let layers = Layers::new(session, options.iter().copied(), [])?;
    Layers { defaults: vec![folder.join("config.toml"), folder.join("none.toml")], ..layers }.read()
}

#[test]
fn options_are_read_as_typed() {
    let settings = parse(&[
        "stripes=2,ro,timeout=1.5",
        r"ssh_command=ssh -F '/a b'\,c,cred=1000:100,nosuid,Port=22,x-systemd.automount,_netdev",
    ])
    .expect("good");
    assert_eq!(settings.stripes, 2);
    assert!(settings.read_only);
    assert_eq!(settings.timeout, Some(Duration::from_millis(1500)));
    let words = settings.ssh_words().expect("good");
    assert_eq!(words, ["ssh", "-F", "/a b,c", "-o", "Port=22"]);
    assert_eq!(settings.credential, Some((1000, 100)));
    assert_eq!(settings.kernel, ["nosuid"]);
    assert_eq!(parse(&["timeout=0"]).expect("good").timeout, None);
}

#[test]
fn bad_options_are_named() {
    for (option, words) in [
        ("strips=4", "did you mean stripes?"),
        ("stripes=0", "1 to 10"),
        ("stripes", "a value is missing"),
        ("timeout=soon", "not a number"),
        ("timeout=-1", "not a number"),
        ("cred=me", "as numbers"),
        ("ssh_command='", "quotes"),
        ("ssh_option=Port", "KEY=VALUE"),
        ("zzzzzzzzzz", "--help"),
    ] {
        let error = parse(&[option]).expect_err(option);
        let text = error_text(&error);
        assert!(text.contains(words), "{option}: {text}");
        assert!(text.contains(option.split('=').next().unwrap_or_default()), "{text}");
    }
}

#[test]
fn each_layer_wins_over_those_below() {
    let folder = tempfile::tempdir().expect("folder");
    let defaults = "[defaults]\nstripes = 2\ncache_size = \"1G\"\nwrite_policy = \"write-back\"\n\
                    rules = [\"*.iso:read-only\"]\nnoatime = true\n[defaults.ssh]\nPort = 1\n\
                    SendEnv = [\"A\", \"B\"]\n";
    let session = "source = \"host:/vms\"\nmountpoint = \"/mnt/vm\"\nstripes = 3\ntimeout = 2.5\n\
                   cache = true\nnoatime = false\n";
    let reading = layered(folder.path(), defaults, session, &["rule=a:none,rule=b:none"]);
    let reading = reading.expect("good");
    let settings = &reading.settings;
    assert_eq!(reading.source.expect("given").0, "host:/vms");
    assert_eq!(reading.mountpoint.expect("given").0, Path::new("/mnt/vm"));
    assert_eq!((settings.stripes, settings.cache.geometry.size_bytes), (3, 1 << 30));
    assert_eq!(settings.cache.wanted, Some(true));
    assert!(settings.kernel.is_empty());
    assert_eq!(settings.ssh_options, ["Port=1", "SendEnv=A", "SendEnv=B"]);
    let cache = settings.cache.settings().expect("good");
    let rules: Vec<String> = cache.rules.iter().map(ToString::to_string).collect();
    assert_eq!(rules, ["a:none", "b:none"]);

    let shown =
        Shown { settings, cache: Some(&cache), cache_dir: None, provenance: &reading.provenance };
    let rows = shown.rows();
    for (key, value, from, place) in [
        ("stripes", serde_json::json!(3), "file", "vm.toml:3"),
        ("timeout", serde_json::json!(2.5), "file", "vm.toml:4"),
        ("cache_size", serde_json::json!(1u64 << 30), "file", "config.toml:3"),
        ("write_policy", serde_json::json!("write-back"), "file", "config.toml:4"),
        ("rules", serde_json::json!(["a:none", "b:none"]), "option", ""),
        ("at_end", serde_json::json!("write-back"), "default", ""),
    ] {
        let row = rows.iter().find(|row| row["key"] == key).expect(key);
        assert_eq!((&row["value"], row["from"].as_str()), (&value, Some(from)), "{row}");
        if let Some((file, line)) = place.split_once(':') {
            assert!(row["file"].as_str().is_some_and(|path| path.ends_with(file)), "{row}");
            assert_eq!(row["line"].to_string(), line, "{row}");
        }
    }

    let options = ["rules=,Port=7,stripes=4,ssh_command=x y"];
    let reading = layered(folder.path(), defaults, session, &options).expect("good");
    assert!(reading.settings.cache.settings().expect("good").rules.is_empty());
    let words = reading.settings.ssh_words().expect("good");
    assert_eq!(words, ["x", "y", "-o", "SendEnv=A", "-o", "SendEnv=B", "-o", "Port=7"]);
    assert_eq!(differences(settings, &reading.settings), ["ssh_command", "ssh_option", "stripes"]);
}

#[test]
fn what_is_asked_for_nearer_decides_about_reading_only() {
    let folder = tempfile::tempdir().expect("folder");
    let write_back = "[defaults]\nwrite_policy = \"write-back\"\n";
    for (options, session) in [
        (&["ro"][..], ""),
        (&["consistency=read-only-shared"], ""),
        (&[], "ro = true\n"),
        (&[], "consistency = \"read-only-shared\"\n"),
    ] {
        let reading = layered(folder.path(), write_back, session, options).expect(session);
        let cache = reading.settings.cache.settings().expect("good");
        assert_eq!(cache.policy, gridvfs_cache::disk::Policy::ReadOnly);
        let shown = Shown {
            settings: &reading.settings,
            cache: Some(&cache),
            cache_dir: None,
            provenance: &reading.provenance,
        };
        let rows = shown.rows();
        let row = rows.iter().find(|row| row["key"] == "ro").expect("ro");
        assert!(row["value"] == true && row["from"] != "default", "{row}");
    }
    let both = layered(folder.path(), "", "ro = true\nwrite_policy = \"write-back\"\n", &[]);
    assert!(both.is_err(), "of one layer");
    let reading = layered(folder.path(), "[defaults]\nro = true\n", "", &["rw"]).expect("good");
    assert!(!reading.settings.read_only);
}

#[test]
fn a_wrong_file_is_named_with_its_line() {
    let folder = tempfile::tempdir().expect("folder");
    for (session, line, words) in [
        ("strips = 4", 1, "did you mean stripes?"),
        ("\nmount_point = \"/x\"", 2, "did you mean mountpoint?"),
        ("zzzzzzzzzz = 1", 1, "unknown key"),
        ("stripes = true", 1, "a whole number is expected"),
        ("stripes = \"many\"", 1, "not a number"),
        ("stripes = 99", 1, "1 to 10"),
        ("stripes = 2.5", 1, "a whole number"),
        ("ro = \"yes\"", 1, "true or false"),
        ("cache = 1", 1, "\"on\" or \"off\""),
        ("cache_size = \"big\"", 1, "is no size"),
        ("cache_size = [1]", 1, "a size is expected"),
        ("cache_dir = \"cache\"", 1, "begins with /"),
        ("mountpoint = \"mnt\"", 1, "begins with /"),
        ("source = 1", 1, "text is expected"),
        ("timeout = nan", 1, "seconds"),
        ("timeout = -1", 1, "seconds"),
        ("action = \"x:y\"", 1, "a list of text"),
        ("rule = \"*.x:none\"", 1, "rules = ["),
        ("rules = [\n\"*.x:none\",\n\"*.y\"]", 3, "says nothing"),
        ("rules = [1]", 1, "text is expected"),
        ("rules = \"*.x:none\"", 1, "a list of text"),
        ("Port = 22", 1, "under [ssh]"),
        ("[ssh]\n\nPort = 2.5", 3, "a number"),
        ("[cache]\nsize = 1", 1, "\"on\" or \"off\""),
        ("[defaults]\nstripes = 1", 1, "config.toml"),
        ("settings = \"/x\"", 1, "command line"),
        ("write_policy = \"x\"", 1, "write-through"),
        ("ro = true\nro = true", 2, "duplicate"),
        ("a = ", 1, ""),
        ("stripes = 0x", 1, ""),
    ] {
        let error = layered(folder.path(), "", session, &[]).expect_err(session);
        let text = error_text(&error);
        assert!(text.contains(&format!("vm.toml:{line}")), "{session}: {text}");
        assert!(text.contains(words), "{session}: {text}");
    }
    for (defaults, line, words) in [
        ("stripes = 1", 1, "not within [defaults]"),
        ("[default]\nstripes = 1", 1, "did you mean defaults?"),
        ("[defaults]\nsource = \"h:/\"", 2, "not for all sessions"),
        ("[defaults]\nmountpoint = \"/x\"", 2, "not for all sessions"),
        ("[defaults]\ncach = \"on\"", 2, "did you mean cache?"),
    ] {
        let error = layered(folder.path(), defaults, "", &[]).expect_err(defaults);
        let text = error_text(&error);
        assert!(text.contains(&format!("config.toml:{line}")), "{defaults}: {text}");
        assert!(text.contains(words), "{defaults}: {text}");
    }
    let absent = parse(&["settings=/nonexistent/x.toml"]).expect_err("absent");
    assert!(error_text(&absent).contains("/nonexistent/x.toml"));
}
