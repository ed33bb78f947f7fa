use std::path::Path;

use super::*;
use crate::report::error_text;

fn parse(options: &[&str]) -> Result<CacheOptions> {
    let layers = super::super::Layers::new(None, options.iter().copied(), [])?;
    layers.read().map(|reading| reading.settings.cache)
}

#[test]
fn sizes_are_read() {
    for (text, bytes) in [
        ("4096", 4096),
        ("8G", 8 << 30),
        ("1.5M", 3 << 19),
        ("64k", 64 << 10),
        ("2TiB", 2 << 40),
        ("16MB", 16 << 20),
    ] {
        assert_eq!(size(text).expect(text), bytes, "{text}");
    }
    for text in ["", "G", "-1", "1.5", "8X", "NaNG", "99999999999T", "1e300T"] {
        assert!(size(text).is_err(), "{text}");
    }
}

#[test]
fn options_become_settings() {
    let cache = parse(&[
        "cache=on,cache_dir=/x/y,cache_size=1G,cache_banks=4,cache_ways=8,cache_frame=32K",
        "write_policy=write-back,consistency=dedicated,at_end=preserve,writeback_delay=0.5",
        r"writeback_age=7,rule=*.iso:read-only,rule=vm/{a\,b}/**:whole",
    ])
    .expect("good");
    assert_eq!(cache.dir.as_deref(), Some(Path::new("/x/y")));
    let geometry = Geometry { size_bytes: 1 << 30, banks: 4, ways: 8, frame_bytes: 32 << 10 };
    assert_eq!(cache.geometry, geometry);
    let settings = cache.settings().expect("good");
    assert_eq!(settings.policy, Policy::WriteBack);
    assert_eq!(settings.writeback_delay, Duration::from_millis(500));
    assert_eq!(settings.dirty_max_bytes, 512 << 20, "half of the cache");
    assert_eq!(settings.rules.len(), 2);
    assert_eq!(settings.rules[1].to_string(), "vm/{a,b}/**:whole");
    let life = |options: &[&str]| {
        let settings = parse(options).expect("good").settings().expect("good");
        CacheOptions::life(Some(&settings), Duration::from_secs(1))
    };
    assert_eq!(life(&[]), Duration::from_secs(1));
    assert_eq!(life(&["consistency=dedicated"]), TRUSTED_LIFE);
    assert_eq!(life(&["consistency=read-only-shared"]), TRUSTED_LIFE);
}

#[test]
fn read_only_is_read_only() {
    for options in [&["ro"][..], &["consistency=read-only-shared"], &["ro,cache_share"]] {
        let settings = parse(options).expect("good").settings().expect("good");
        assert_eq!(settings.policy, Policy::ReadOnly);
    }
}

#[test]
fn bad_options_are_named() {
    for (options, words) in [
        ("cache=maybe", "on or off"),
        ("cach_size=1G", "did you mean cache_size?"),
        ("cache_size=big", "is no size"),
        ("cache_size=1K", "cache_size"),
        ("cache_banks=0", "1 to 4096"),
        ("cache_ways=65", "1 to 64"),
        ("cache_frame=48K", "128K"),
        ("write_policy=never", "write-through"),
        ("write_polcy=read-only", "did you mean write_policy?"),
        ("consistency=maybe", "dedicated"),
        ("at_end=explode", "preserve"),
        ("writeback_delay=soon", "seconds"),
        ("dirty_max=1", "less than"),
        ("rule=*.x", "says nothing"),
        ("rules=x", "rule=GLOB"),
        ("passthrough=on", "auto or off"),
        ("cache_share", "-o ro"),
        ("ro,write_policy=write-back", "does not go with -o ro"),
        ("settings=", "a value is missing"),
    ] {
        let error = parse(&[options]).expect_err(options);
        let text = error_text(&error);
        assert!(text.contains(words), "{options}: {text}");
    }
}

#[test]
fn a_settings_file_is_read() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("settings.toml");
    let text = "# mine\nwrite_policy = \"write-back\"\nwriteback_delay = 2\nwriteback_age = 2.5\n\
                dirty_max = \"64M\"\nrules = [\"*.iso:read-only\", \"a/**:none\"]\n";
    std::fs::write(&path, text).expect("write");
    let option = format!("settings={},writeback_delay=9", path.display());
    let cache = parse(&[&option]).expect("good");
    let settings = cache.settings().expect("good");
    assert_eq!(settings.policy, Policy::WriteBack);
    assert_eq!(settings.writeback_delay, Duration::from_secs(9), "the command line wins");
    assert_eq!(settings.dirty_max_bytes, 64 << 20);
    assert_eq!(settings.rules.len(), 2);
    for (text, words) in [
        ("a = 1", "unknown key"),
        ("write_policy = \"x\"", "write_policy"),
        ("\n\nwrite_policy = ", "settings.toml:3"),
        ("dirty_max = true", "dirty_max"),
        ("rite_policy = \"read-only\"", "did you mean write_policy?"),
    ] {
        std::fs::write(&path, text).expect("write");
        let text = error_text(&parse(&[&option]).expect_err(text));
        assert!(text.contains(words) && text.contains("settings.toml"), "{text}");
    }
}

#[test]
fn changes_are_read() {
    let mut settings = Settings::default();
    let changes = Changes::parse(["write_policy=write-back", "rule=*.a:none", "rule=*.b:whole"]);
    changes.expect("good").apply(&mut settings);
    assert_eq!(settings.policy, Policy::WriteBack);
    assert_eq!(settings.rules.len(), 2);
    Changes::parse(["rules=", "rule=*.c:none"]).expect("good").apply(&mut settings);
    assert_eq!(settings.rules.len(), 1);
    Changes::parse(["at_end=preserve"]).expect("good").apply(&mut settings);
    assert_eq!(settings.rules.len(), 1, "what is not named stays");
    for (word, words) in [
        ("x", "KEY=VALUE"),
        ("atend=flush", "did you mean at_end?"),
        ("cache_size=1G", "whole life"),
        ("write_policy=", "none of"),
    ] {
        let text = error_text(&Changes::parse([word]).expect_err(word));
        assert!(text.contains(words), "{text}");
    }
}
