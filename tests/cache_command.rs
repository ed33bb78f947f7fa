//! The disk cache as a user meets it: options, directories, verbs, signals, and what they say.

mod common;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Rig, Way, gridvfs, is_root, run, skipped};
use serde_json::Value;

/// A cache of a size that tests can do with.
const SMALL: &str = "cache=on,cache_size=64M,cache_banks=4";

fn refused(command: &mut Command) -> String {
    let output = command.output().expect("runs");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{command:?} should fail; {words}");
    assert!(words.contains("rror"), "{command:?}: {words}");
    assert!(!words.contains("panicked"), "{command:?}: {words}");
    words
}

fn says(words: &str, parts: &[&str]) {
    for part in parts {
        assert!(words.contains(part), "{part:?} is missing in: {words}");
    }
}

/// `gridvfs WORDS… --json` on the rig's mount; the mount point stands for `@`.
fn ask(rig: &Rig, words: &[&str]) -> Value {
    let output = run(verb(rig, words).arg("--json"));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

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

fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("{name} is no number in {value}"))
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within 10 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn cache_dir(rig: &Rig) -> PathBuf {
    rig.status()["cache"]["directory"].as_str().expect("a directory").into()
}

/// The rig's caches: those of other tests' sessions are listed, too.
fn caches(rig: &Rig) -> Value {
    let mut listed = ask(rig, &["cache", "list"]);
    let folder = rig.folder.display().to_string();
    let own = |row: &Value| row["directory"].as_str().is_some_and(|path| path.starts_with(&folder));
    listed.as_array_mut().expect("a list").retain(own);
    listed
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: no memory is touched.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// Another file on the server than the mount knows: another time, whatever the clock's steps.
fn change_on_server(path: &Path, data: &[u8]) {
    std::fs::write(path, data).expect("write");
    let later = std::time::SystemTime::now() + Duration::from_secs(100);
    std::fs::File::options().write(true).open(path).and_then(|f| f.set_modified(later)).expect("t");
}

#[test]
fn bad_options_are_explained() {
    let mount = |option: &str| {
        refused(Command::new(gridvfs()).args(["mount", "/usr", "/tmp", "-o", option]))
    };
    for (option, words) in [
        ("cach=on", "did you mean cache?"),
        ("cache=yes", "on or off"),
        ("cache_size=x", "is no size"),
        ("cache_size=1K", "-o cache_size"),
        ("cache_frame=5K", "128K"),
        ("write_policy=none", "write-through"),
        ("consistency=none", "dedicated"),
        ("at_end=none", "preserve"),
        ("writeback_delay=x", "seconds"),
        ("dirty_max=x", "is no size"),
        ("rule=a:b", "cache kind"),
        ("cache_share", "add -o ro"),
        ("ro,write_policy=write-back", "does not go with"),
        ("settings=/nonexistent/s", "/nonexistent/s"),
    ] {
        let said = mount(option);
        assert!(said.contains(words), "{option}: {said}");
    }
}

#[test]
fn bad_cache_directories_are_explained() {
    let test = "bad_cache_directories_are_explained";
    let Some(rig) = Rig::new(test, Way::Local) else { return };
    common::shell(
        &rig.folder,
        "mkdir thesis newer newer/store && touch thesis/x file && \
         printf 'gridvfs block store\\nversion 99\\n' > newer/store/format && \
         printf 'write_policy = \"soon\"\\n' > settings",
    );
    let mount = |options: &str| {
        let options = options.replace('@', &rig.folder.display().to_string());
        refused(rig.mount_command().args(["-o", &format!("{SMALL},{options}")]))
    };
    let remedy = "-o cache_dir=";
    says(&mount("cache_dir=@/file"), &["file", remedy]);
    says(&mount("cache_dir=@/file/x"), &["file/x", remedy]);
    says(&mount("cache_dir=@/thesis"), &["files of others"]);
    says(&mount("cache_dir=@/mnt/x"), &["its own mount"]);
    says(&mount("cache_dir=/proc/x"), &["/proc/x", remedy]);
    says(&mount("settings=@/settings"), &["settings", "write_policy", "soon"]);
    let said = mount("cache_dir=@/newer");
    says(&said, &["format 99", remedy]);
    let kept = common::shell(&rig.folder, "cat newer/store/format; ls -A thesis");
    says(&kept, &["version 99", "x"]);
    if is_root() {
        common::shell(&rig.folder, "mkdir theirs && chown 12345 theirs");
        says(&mount("cache_dir=@/theirs"), &["somebody else", remedy]);
        common::shell(&rig.folder, "mkdir full && mount -t tmpfs -o size=64k none full");
        let said = std::panic::catch_unwind(|| mount("cache_dir=@/full/c"));
        common::shell(&rig.folder, "umount full");
        says(&said.expect("refused"), &["full/c", remedy]);
    } else {
        skipped(test, "needs root for a directory of somebody else's and a full disk");
    }
}

#[test]
fn a_cache_is_warm_after_a_remount() {
    let Some(mut rig) = Rig::mounted("a_cache_is_warm_after_a_remount", Way::Ssh) else { return };
    let data: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    std::fs::write(rig.export.join("file"), &data).expect("write");
    assert!(std::fs::read(rig.mountpoint.join("file")).expect("read") == data);
    rig.umount();
    rig.mount();
    assert!(std::fs::read(rig.mountpoint.join("file")).expect("read") == data);
    let status = ask(&rig, &["cache", "status", "@"]);
    assert_eq!(number(&status, "misses"), 0, "{status}");
    assert!(number(&status, "hits") > 0, "{status}");
    assert_eq!(status["hit_ratio"].as_f64(), Some(1.0));
    assert!(number(&status, "used_bytes") >= 3_000_000);
    assert_eq!(number(&status, "size_bytes"), 8 << 30, "the default");
    let directory = cache_dir(&rig);
    let name = directory.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(name.starts_with("gvhost-") || name.contains("export-"), "{name}");
    let source = std::fs::read_to_string(directory.join("source")).expect("source");
    assert_eq!(source.trim(), rig.source());
    let table = text(&run(&mut verb(&rig, &["cache", "status", "@"])));
    says(&table, &["directory", "8.00 GiB", "hit ratio 100.0 %", "unsent       nothing"]);
    says(&text(&run(&mut verb(&rig, &["status", "@"]))), &["cache\n", "write-through"]);
}

#[test]
fn unsent_data_waits_for_the_next_mount() {
    let test = "unsent_data_waits_for_the_next_mount";
    let lazy = format!("{SMALL},write_policy=write-back,writeback_delay=600,writeback_age=600");
    let Some(mut rig) = Rig::mounted_with(test, Way::Local, &[&lazy]) else { return };
    let file = rig.export.join("file");
    std::fs::write(rig.mountpoint.join("file"), b"late").expect("write");
    assert_eq!(std::fs::read(&file).expect("made at once"), b"");
    let output = run(&mut verb(&rig, &["umount", "--preserve", "@"]));
    says(&text(&output), &["4 B unsent (1 file), kept for the next mount in"]);
    says(&text(&run(&mut verb(&rig, &["cache", "list"]))), &["4 B in 1 file not sent", "export"]);
    let listed = caches(&rig);
    assert_eq!(number(&listed[0], "unsent_bytes"), 4, "{listed}");

    // A mount that only reads sends nothing of it, and shows it.
    let output = run(rig.mount_command().args(["-o", "ro,write_policy=read-only"]));
    says(&text(&output), &["4 B in 1 file of an earlier session", "this mount is read-only"]);
    assert_eq!(std::fs::read(rig.mountpoint.join("file")).expect("read"), b"late");
    std::thread::sleep(Duration::from_millis(300));
    says(&refused(&mut verb(&rig, &["writeback", "@"])), &["read-only", "without ro"]);
    run(&mut verb(&rig, &["set", "@", "writeback_delay=0"]));
    run(&mut verb(&rig, &["umount", "@"]));
    assert_eq!(std::fs::read(&file).expect("there"), b"", "nothing was sent");

    // Nor does one that preserves, unless it is told to.
    let output = run(rig.mount_command().args(["-o", "at_end=preserve", "--json"]));
    let mounted: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(number(&mounted["cache"], "unsent_bytes"), 4);
    assert_eq!(mounted["cache"]["unsent_kept"], true);
    std::thread::sleep(Duration::from_millis(300));
    let output = run(verb(&rig, &["umount", "@"]).arg("--json"));
    let ended: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(number(&ended, "unsent_files"), 1, "{ended}");
    assert_eq!(std::fs::read(&file).expect("there"), b"", "nothing was sent");

    let output = run(&mut rig.mount_command());
    rig.is_mounted();
    says(&text(&output), &["4 B in 1 file of an earlier session not yet sent: being sent now"]);
    eventually("sent", || std::fs::read(&file).expect("there") == b"late");
    eventually("nothing is unsent", || number(&rig.status()["cache"], "unsent_files") == 0);
}

#[test]
fn directories_in_use_are_not_shared_by_chance() {
    let test = "directories_in_use_are_not_shared_by_chance";
    let lazy = format!("{SMALL},write_policy=write-back,writeback_delay=600,writeback_age=600");
    let Some(mut rig) = Rig::mounted_with(test, Way::Local, &[&lazy]) else { return };
    common::shell(&rig.folder, "mkdir mnt2 mnt3");
    let (second, third) = (rig.folder.join("mnt2"), rig.folder.join("mnt3"));
    run(&mut rig.mount_also(&second, &[]));
    let first_dir = cache_dir(&rig);
    let listed = caches(&rig);
    let directories: Vec<&str> =
        listed.as_array().expect("list").iter().filter_map(|r| r["directory"].as_str()).collect();
    let first = first_dir.to_str().expect("text");
    assert!(directories.contains(&format!("{first}-2").as_str()), "{listed}");
    says(&text(&run(&mut verb(&rig, &["cache", "list"]))), &["in use by mnt"]);

    let named = format!("cache_dir={first}");
    let words = refused(&mut rig.mount_also(&third, &[&named]));
    says(&words, &["is in use by mnt", "cache_share", "another -o cache_dir="]);

    // The second dies with unsent data: the next mount takes its cache and sends it.
    std::fs::write(second.join("file"), b"of the second").expect("write");
    let status = run(rig.command(gridvfs()).arg("status").arg(&second).arg("--json"));
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    signal(number(&status, "pid") as i32, libc::SIGKILL);
    eventually("it ends", || !Path::new(&format!("/proc/{}/ns", status["pid"])).exists());
    rig.umount();
    let output = run(&mut rig.mount_command());
    rig.is_mounted();
    says(&text(&output), &["13 B in 1 file of an earlier session", "being sent now"]);
    eventually("sent", || {
        std::fs::read(rig.export.join("file")).is_ok_and(|data| data == b"of the second")
    });
    assert_eq!(cache_dir(&rig), Path::new(&format!("{first}-2")));
    run(Command::new("fusermount3").arg("-u").arg("-z").arg(&second));
}

#[test]
fn read_only_mounts_share_a_cache() {
    let test = "read_only_mounts_share_a_cache";
    let options = format!("{SMALL},ro,cache_share");
    let Some(mut rig) = Rig::new(test, Way::Local) else { return };
    rig.set_options(&[&options]);
    std::fs::write(rig.export.join("file"), vec![7; 1_000_000]).expect("write");
    rig.mount();
    common::shell(&rig.folder, "mkdir mnt2");
    let second = rig.folder.join("mnt2");
    run(&mut rig.mount_also(&second, &["consistency=read-only-shared"]));
    for mount in [&rig.mountpoint, &second] {
        assert!(std::fs::read(mount.join("file")).expect("read") == vec![7; 1_000_000]);
    }
    let listed = caches(&rig);
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(listed[0]["sessions"].as_array().map(Vec::len), Some(2), "{listed}");
    let words = refused(&mut verb(&rig, &["set", "@", "write_policy=write-back"]));
    says(&words, &["read-only"]);
    run(rig.command(gridvfs()).arg("umount").arg(&second));
}

#[test]
fn settings_change_while_it_runs() {
    let Some(rig) = Rig::mounted_with("settings_change_while_it_runs", Way::Local, &[SMALL]) else {
        return;
    };
    let settings = ask(&rig, &["set", "@", "write_policy=read-only", "dirty_max=8M"]);
    assert_eq!(settings["write_policy"], "read-only");
    assert_eq!(number(&settings, "dirty_max"), 8 << 20);
    let error = std::fs::write(rig.mountpoint.join("f"), b"x").expect_err("refused");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    let settings = ask(
        &rig,
        &[
            "set",
            "@",
            "write_policy=write-back",
            "at_end=preserve",
            "consistency=dedicated",
            "writeback_delay=1.5",
            "writeback_age=9",
            "rule=*.iso:read-only",
            "rule=**/*.tmp:none",
        ],
    );
    assert_eq!(settings["rules"].as_array().map(Vec::len), Some(2), "{settings}");
    assert_eq!(settings["writeback_delay"].as_f64(), Some(1.5));
    std::fs::write(rig.mountpoint.join("f"), b"x").expect("write");
    let error = std::fs::write(rig.mountpoint.join("f.iso"), b"x").expect_err("refused");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    // A file that the kernel knows by a listing alone has a path, too.
    std::fs::create_dir(rig.export.join("dir")).expect("folder");
    std::fs::write(rig.export.join("dir/listed.iso"), b"x").expect("write");
    run(&mut verb(&rig, &["set", "@", "rule=**/*.iso:read-only", "consistency=shared"]));
    rig.shell("ls -lR . >/dev/null");
    let error = std::fs::write(rig.mountpoint.join("dir/listed.iso"), b"y").expect_err("refused");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    let settings = ask(&rig, &["set", "@", "rules=", "at_end=write-back"]);
    assert_eq!(settings["rules"].as_array().map(Vec::len), Some(0), "{settings}");
    std::fs::write(rig.mountpoint.join("f.iso"), b"x").expect("write");
    for (change, words) in [
        ("write_polcy=write-back", "did you mean write_policy?"),
        ("cache_size=9G", "gridvfs mount"),
        ("at_end", "KEY=VALUE"),
        ("rule=x", "says nothing"),
        ("consistency=read-only-shared", "write_policy=read-only"),
    ] {
        says(&refused(&mut verb(&rig, &["set", "@", change])), &[words]);
    }
    says(&text(&run(&mut verb(&rig, &["set", "@", "at_end=flush"]))), &["at_end", "flush"]);
}

#[test]
fn what_the_kernel_was_told_is_minded() {
    let test = "what_the_kernel_was_told_is_minded";
    let own = "write_policy=write-back,consistency=dedicated,writeback_delay=600,writeback_age=600";
    let Some(mut rig) = Rig::new(test, Way::Local) else { return };
    rig.set_options(&[SMALL, own]);
    rig.mount();
    std::fs::write(rig.mountpoint.join("f"), vec![1; 300_000]).expect("write");
    let file = std::fs::File::options().write(true).open(rig.mountpoint.join("f")).expect("open");
    file.write_all_at(b"gathered", 0).expect("write");
    // Whatever of it the kernel still has is sent, too.
    run(&mut verb(&rig, &["writeback", "@"]));
    assert!(std::fs::read(rig.export.join("f")).expect("there").starts_with(b"gathered"));
    let words = refused(&mut verb(&rig, &["set", "@", "consistency=shared"]));
    says(&words, &["kernel gathers writes", "kernel_writeback=off"]);
    drop(file);
    rig.umount();
    rig.set_options(&[SMALL, own, "kernel_writeback=off,passthrough=off"]);
    rig.mount();
    let output = run(&mut verb(&rig, &["set", "@", "consistency=shared"]));
    says(&String::from_utf8_lossy(&output.stderr), &["Note: the kernel goes on believing"]);
}

#[test]
fn a_dedicated_mount_keeps_listings_while_they_are_true() {
    let test = "a_dedicated_mount_keeps_listings_while_they_are_true";
    let own = "write_policy=write-back,consistency=dedicated,writeback_delay=600,writeback_age=600";
    let Some(mut rig) = Rig::new(test, Way::Local) else { return };
    for more in ["rw", "default_permissions"] {
        rig.set_options(&[SMALL, own, more]);
        rig.mount();
        keeps_listings(&rig, &format!("dir-{more}"), more != "rw");
        rig.umount();
    }
}

/// `unopened`: the kernel opens directories by itself.
fn keeps_listings(rig: &Rig, name: &str, unopened: bool) {
    let dir = rig.mountpoint.join(name);
    std::fs::create_dir(&dir).expect("mkdir");
    let listed = || {
        let names = std::fs::read_dir(&dir).expect("opendir");
        let mut names: Vec<_> =
            names.map(|entry| entry.expect("readdir").file_name().into_string()).collect();
        names.sort();
        names.into_iter().map(Result::unwrap).collect::<Vec<_>>().join(" ")
    };
    let asked = || {
        let requests = &rig.status()["requests"];
        number(requests, "readdir") + number(requests, "readdirplus")
    };
    for name in ["a", "b", "c"] {
        std::fs::write(dir.join(name), name).expect("write");
    }
    assert_eq!(listed(), "a b c");
    let before = asked();
    let opened = number(&rig.status()["requests"], "opendir");
    (0..5).for_each(|_| assert_eq!(listed(), "a b c"));
    assert_eq!(asked(), before, "the kernel asks again");
    let opened = number(&rig.status()["requests"], "opendir") - opened;
    assert_eq!(opened == 0, unopened, "{opened} OPENDIRs");
    std::fs::write(dir.join("d"), "d").expect("write");
    assert_eq!(listed(), "a b c d");
    std::fs::remove_file(dir.join("a")).expect("unlink");
    assert_eq!(listed(), "b c d");
    std::fs::rename(dir.join("b"), dir.join("z")).expect("rename");
    assert_eq!(listed(), "c d z");
    // What others do is seen as soon as the session is told to look.
    run(&mut verb(rig, &["flush", "@"]));
    std::fs::write(rig.export.join(name).join("theirs"), "x").expect("write");
    run(&mut verb(rig, &["flush", "@"]));
    assert_eq!(listed(), "c d theirs z");
}

#[test]
fn names_are_as_durable_as_their_directory_was_synced() {
    let test = "names_are_as_durable_as_their_directory_was_synced";
    let own = "write_policy=write-back,consistency=dedicated,writeback_delay=600,writeback_age=600";
    let Some(rig) = Rig::mounted_with(test, Way::Local, &[SMALL, own]) else { return };
    // Only where all names are known can be decided here that one is new.
    assert_eq!(std::fs::read_dir(&rig.mountpoint).expect("opendir").count(), 0);
    std::fs::write(rig.mountpoint.join("f"), b"").expect("create");
    assert!(!rig.export.join("f").exists(), "the name waits here");
    let syncs = || number(&rig.status()["cache"], "journal_syncs");
    let before = syncs();
    std::fs::File::open(&rig.mountpoint).expect("open").sync_all().expect("fsync");
    assert!(syncs() > before, "the journal was not synced");
}

#[test]
fn signals_write_back_flush_and_reload() {
    let test = "signals_write_back_flush_and_reload";
    let Some(mut rig) = Rig::new(test, Way::Local) else { return };
    let settings = rig.folder.join("settings.toml");
    let lazy = "write_policy = \"write-back\"\nwriteback_delay = 600\nwriteback_age = 600\n";
    std::fs::write(&settings, lazy).expect("write");
    rig.set_options(&[SMALL, &format!("settings={},at_end=write-back", settings.display())]);
    rig.mount();
    let pid = rig.pid();
    std::fs::write(rig.mountpoint.join("a"), b"one").expect("write");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(std::fs::read(rig.export.join("a")).expect("there"), b"");
    signal(pid, libc::SIGUSR1);
    eventually("written back", || std::fs::read(rig.export.join("a")).expect("there") == b"one");

    std::fs::write(rig.mountpoint.join("b"), vec![1; 100_000]).expect("write");
    signal(pid, libc::SIGUSR2);
    eventually("flushed", || {
        let status = ask(&rig, &["cache", "status", "@"]);
        number(&status, "used_bytes") == 0 && number(&status, "unsent_files") == 0
    });
    assert_eq!(std::fs::read(rig.export.join("b")).expect("there").len(), 100_000);

    let in_force = || rig.status()["cache"]["settings"].clone();
    assert_eq!(in_force()["write_policy"], "write-back");
    std::fs::write(&settings, "write_policy = \"read-only\"\nrules = [\"*.x:none\"]\n").expect("w");
    signal(pid, libc::SIGHUP);
    eventually("read again", || in_force()["write_policy"] == "read-only");
    assert_eq!(in_force()["writeback_delay"].as_f64(), Some(5.0), "what is not named: the default");
    std::fs::write(&settings, "write_policy = \"write-thru\"\n").expect("write");
    signal(pid, libc::SIGHUP);
    let log = format!("{}.log", rig.status()["session"].as_str().expect("a name"));
    let log = rig.folder.join("state/gridvfs").join(log);
    eventually("it says so", || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.contains("write-thru") && log.contains("the settings stay as they were")
    });
    assert_eq!(in_force()["write_policy"], "read-only");
    std::fs::write(&settings, "at_end = \"flush\"\n").expect("write");
    signal(pid, libc::SIGHUP);
    eventually("read again", || in_force()["write_policy"] == "write-through");
    assert_eq!(in_force()["at_end"], "write-back", "the command line wins");
}

#[test]
fn writeback_and_flush_are_verbs() {
    let test = "writeback_and_flush_are_verbs";
    let lazy = format!("{SMALL},write_policy=write-back,writeback_delay=600,writeback_age=600");
    let Some(mut rig) = Rig::mounted_with(test, Way::Local, &[&lazy]) else { return };
    std::fs::write(rig.mountpoint.join("a"), vec![1; 1 << 20]).expect("write");
    let output = text(&run(&mut verb(&rig, &["writeback", "@"])));
    says(&output, &[": 1.00 MiB written back"]);
    assert_eq!(std::fs::read(rig.export.join("a")).expect("there").len(), 1 << 20);
    std::fs::write(rig.mountpoint.join("a"), vec![2; 1000]).expect("write");
    assert_eq!(number(&ask(&rig, &["flush", "@"]), "written_back_bytes"), 1000);
    assert_eq!(number(&ask(&rig, &["cache", "status", "@"]), "used_bytes"), 0);
    std::fs::write(rig.mountpoint.join("a"), vec![3; 1 << 20]).expect("write");
    run(&mut verb(&rig, &["umount", "--flush", "@"]));
    assert!(std::fs::read(rig.export.join("a")).expect("there") == vec![3; 1 << 20]);
    rig.mount();
    let status = ask(&rig, &["cache", "status", "@"]);
    assert_eq!(number(&status, "used_bytes"), 0, "{status}");
}

#[test]
fn conflicts_are_listed_and_resolved() {
    let test = "conflicts_are_listed_and_resolved";
    let lazy = format!("{SMALL},write_policy=write-back,writeback_delay=600,writeback_age=600");
    let Some(rig) = Rig::mounted_with(test, Way::Local, &[&lazy]) else { return };
    says(&text(&run(&mut verb(&rig, &["conflicts", "@"]))), &["no conflicts"]);
    let odd = OsStr::from_bytes(b"odd\xff");
    let names = [OsStr::new("mine"), OsStr::new("theirs"), OsStr::new("both"), odd];
    for name in names {
        std::fs::write(rig.mountpoint.join(name), b"at first").expect("write");
    }
    run(&mut verb(&rig, &["writeback", "@"]));
    for name in names {
        let file = std::fs::File::options().write(true).open(rig.mountpoint.join(name));
        file.expect("open").write_all_at(b"ours....", 0).expect("write");
        change_on_server(&rig.export.join(name), b"theirs..");
    }
    let words = refused(&mut verb(&rig, &["writeback", "@"]));
    says(&words, &["4 files were changed on the server, too", "gridvfs conflicts mnt"]);
    let listed = ask(&rig, &["conflicts", "@"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(4), "{listed}");
    assert!(listed.to_string().contains("[111,100,100,255]"), "bytes are kept: {listed}");
    let output = text(&run(&mut verb(&rig, &["conflicts", "@"])));
    says(&output, &["both: changed on the server; 8 B unsent", r"odd\xff: changed", "keep-mine"]);
    says(&refused(&mut verb(&rig, &["umount", "@"])), &["still mounted", "conflict"]);
    says(&refused(&mut verb(&rig, &["conflicts", "@", "nothing", "keep-mine"])), &["no conflict"]);
    says(&refused(&mut verb(&rig, &["conflicts", "@", "mine"])), &["required"]);
    says(&refused(&mut verb(&rig, &["conflicts", "@", "mine", "keep"])), &["keep-theirs"]);
    says(
        &text(&run(&mut verb(&rig, &["cache", "status", "@"]))),
        &["4 in conflict", "mine  in conflict: gridvfs conflicts mnt"],
    );

    run(&mut verb(&rig, &["conflicts", "@", "mine", "keep-mine"]));
    let there = rig.mountpoint.join("theirs");
    run(verb(&rig, &["conflicts", "@"]).arg(there).arg("keep-theirs"));
    let saved = ask(&rig, &["conflicts", "@", "both", "save-mine"]);
    let saved = saved["saved"].as_str().expect("a name").to_string();
    run(verb(&rig, &["conflicts", "@"]).arg(odd).arg("keep-mine"));
    run(&mut verb(&rig, &["writeback", "@"]));
    let server = |name: &OsStr| std::fs::read(rig.export.join(name)).expect("there");
    assert_eq!(server(OsStr::new("mine")), b"ours....");
    assert_eq!(server(OsStr::new("theirs")), b"theirs..");
    assert_eq!(server(OsStr::new("both")), b"theirs..");
    assert_eq!(server(OsStr::new(&saved)), b"ours....");
    assert_eq!(server(odd), b"ours....");
    assert_eq!(std::fs::read(rig.mountpoint.join("theirs")).expect("read"), b"theirs..");
    says(&text(&run(&mut verb(&rig, &["conflicts", "@"]))), &["no conflicts"]);
}

#[test]
fn damage_is_found_and_named() {
    let Some(mut rig) = Rig::new("damage_is_found_and_named", Way::Local) else { return };
    rig.set_options(&[SMALL]);
    std::fs::create_dir(rig.export.join("dir")).expect("folder");
    let data: Vec<u8> = (0..1_000_000u32).map(|n| (n >> 3) as u8 | 1).collect();
    std::fs::write(rig.export.join("dir/file"), &data).expect("write");
    rig.mount();
    run(&mut verb(&rig, &["cache", "warm", "@", "dir"]));
    says(&text(&run(&mut verb(&rig, &["cache", "verify", "@"]))), &["245 blocks, all good"]);
    let directory = cache_dir(&rig).join("store/banks");
    let mut flipped = 0;
    for bank in std::fs::read_dir(&directory).expect("banks") {
        let bank = std::fs::File::options().read(true).write(true).open(bank.expect("one").path());
        let bank = bank.expect("opens");
        let length = bank.metadata().expect("meta").len();
        let mut block = [0; 4096];
        let mut at = 0;
        while at < length && flipped < 3 {
            let count = bank.read_at(&mut block, at).expect("read");
            if block[..count].iter().any(|byte| *byte != 0) {
                bank.write_all_at(&[block[9] ^ 4], at + 9).expect("write");
                flipped += 1;
            }
            at += 4096;
        }
    }
    assert_eq!(flipped, 3);
    let output = verb(&rig, &["cache", "verify", "@", "--json"]).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(number(&report, "bad_blocks"), 3, "{report}");
    assert_eq!(report["bad"][0]["path"], "dir/file", "{report}");
    let bad: u64 = report["bad"]
        .as_array()
        .expect("list")
        .iter()
        .map(|range| number(range, "to") - number(range, "from"))
        .sum();
    assert_eq!(bad, 3 * 4096);
    assert_eq!(number(&ask(&rig, &["cache", "status", "@"]), "repaired"), 3);
    assert!(std::fs::read(rig.mountpoint.join("dir/file")).expect("read") == data);
    says(&text(&run(&mut verb(&rig, &["cache", "verify", "@"]))), &["all good"]);
}

#[test]
fn files_are_warmed_pinned_and_pruned() {
    let test = "files_are_warmed_pinned_and_pruned";
    let Some(rig) = Rig::mounted_with(test, Way::Local, &[SMALL]) else { return };
    common::shell(
        &rig.export,
        "mkdir -p a/b && head -c 2000000 /dev/urandom > a/big && echo x > a/b/small && \
         echo y > $'a/\\xff' && head -c 3000000 /dev/urandom > other && ln -s big a/link",
    );
    let warmed = ask(&rig, &["cache", "warm", "@", "a"]);
    assert_eq!(number(&warmed, "files"), 3, "{warmed}");
    assert_eq!(number(&warmed, "bytes"), 2_000_004);
    let before = ask(&rig, &["cache", "status", "@"]);
    assert!(number(&before, "used_bytes") >= 2_000_004, "{before}");
    // Through the mount point, from within it, and as bytes.
    let through = rig.mountpoint.join("other");
    says(
        &text(&run(verb(&rig, &["cache", "warm", "@"]).arg(&through))),
        &["in the cache: 1 file, 2.86 MiB"],
    );
    let mut within = verb(&rig, &["cache", "warm", "@", "small"]);
    run(within.current_dir(rig.mountpoint.join("a/b")));
    run(verb(&rig, &["cache", "warm", "@"]).arg(OsStr::from_bytes(b"a/\xff")));
    assert!(
        std::fs::read(&through).expect("read") == std::fs::read(rig.export.join("other")).unwrap()
    );
    let after = ask(&rig, &["cache", "status", "@"]);
    assert_eq!(number(&after, "misses"), number(&before, "misses"), "{after}");
    says(&refused(&mut verb(&rig, &["cache", "warm", "@", "a/none"])), &["a/none", "o such file"]);
    says(&refused(&mut verb(&rig, &["cache", "warm", "@", "../x"])), &["../x is not within"]);
    says(&refused(&mut verb(&rig, &["cache", "warm", "@"])), &["PATH"]);

    assert_eq!(number(&ask(&rig, &["cache", "pin", "@", "a/big", "a/b"]), "pinned_files"), 2);
    says(&text(&run(&mut verb(&rig, &["cache", "status", "@"]))), &["pinned       2 files"]);
    let freed = number(&ask(&rig, &["cache", "prune", "@", "64M"]), "freed_bytes");
    assert!(freed >= 3_000_000, "{freed}");
    let left = number(&ask(&rig, &["cache", "status", "@"]), "used_bytes");
    assert!((2_000_000..2_100_000).contains(&left), "what is pinned stays: {left}");
    assert_eq!(number(&ask(&rig, &["cache", "unpin", "@", "a"]), "pinned_files"), 0);
    run(&mut verb(&rig, &["cache", "prune", "@", "64M"]));
    assert_eq!(number(&ask(&rig, &["cache", "status", "@"]), "used_bytes"), 0);
    says(&refused(&mut verb(&rig, &["cache", "prune", "@", "much"])), &["is no size"]);
}

#[test]
fn what_does_not_fit_into_the_cache_is_not_said_to_be_there() {
    let test = "what_does_not_fit_into_the_cache_is_not_said_to_be_there";
    let Some(rig) = Rig::mounted_with(test, Way::Local, &[SMALL]) else { return };
    common::shell(&rig.export, "head -c 90000000 /dev/urandom > big");
    let output = verb(&rig, &["cache", "warm", "@", "big", "--json"]).output().expect("runs");
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(!output.status.success(), "{told}");
    let used = number(&ask(&rig, &["cache", "status", "@"]), "used_bytes");
    let held = number(&told, "bytes");
    assert!(held > 30 << 20 && held <= used, "{held} of {used}");
    assert_eq!(held + number(&told, "missing_bytes"), 90_000_000, "{told}");
    let words = verb(&rig, &["cache", "warm", "@", "big"]).output().expect("runs");
    says(&text(&words), &["in the cache: 1 file, ", "did not fit"]);
}

#[test]
fn a_session_without_a_cache_says_so() {
    let test = "a_session_without_a_cache_says_so";
    let Some(rig) = Rig::mounted(test, Way::Local) else { return };
    for words in [
        &["flush", "@"][..],
        &["set", "@", "at_end=flush"],
        &["conflicts", "@"],
        &["cache", "status", "@"],
        &["cache", "verify", "@"],
        &["cache", "warm", "@", "x"],
        &["cache", "prune", "@", "1M"],
        &["umount", "--preserve", "@"],
    ] {
        says(&refused(&mut verb(&rig, words)), &["session mnt", "has no disk cache", "Hint"]);
    }
    run(&mut verb(&rig, &["writeback", "@"]));
    let status = rig.status();
    assert!(status["cache"].is_null(), "a local directory has none unless asked: {status}");
    assert_eq!(caches(&rig).as_array().map(Vec::len), Some(0));
}

#[test]
fn umount_without_the_server_says_what_is_pending() {
    let test = "umount_without_the_server_says_what_is_pending";
    let options = "cache_size=64M,cache_banks=4,write_policy=write-back,writeback_delay=600";
    let Some(mut rig) = Rig::mounted_with(test, Way::Ssh, &[options]) else { return };
    std::fs::write(rig.mountpoint.join("file"), vec![5; 500_000]).expect("write");
    let data = std::fs::read(rig.export.join("file")).expect("made at once");
    assert!(data.is_empty(), "it is not sent yet");
    rig.sshd("stop");
    for pid in rig.ssh_pids(rig.pid()) {
        signal(pid, libc::SIGKILL);
    }
    let mut umount = verb(&rig, &["umount", "@"]);
    let mut waiting = umount.stderr(std::process::Stdio::piped()).spawn().expect("umount");
    let mut line = String::new();
    let stderr = waiting.stderr.take().expect("stderr");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stderr), &mut line).expect("a line");
    let _ = waiting.kill();
    let _ = waiting.wait();
    says(&line, &["waiting: 488.28 KiB not yet on the state server (1 file)"]);
    says(&line, &["has not answered for", "umount --preserve"]);
    // It is still mounted, and its data is there.
    let output = text(&run(&mut verb(&rig, &["umount", "--preserve", "@"])));
    says(&output, &["488.28 KiB unsent (1 file), kept"]);
    rig.sshd("start");
    rig.mount();
    eventually("sent", || {
        std::fs::read(rig.export.join("file")).expect("there") == vec![5; 500_000]
    });
}

#[test]
fn crash_points_can_be_armed() {
    if !cfg!(debug_assertions) {
        return skipped("crash_points_can_be_armed", "needs a debug build");
    }
    let mut command = Command::new(gridvfs());
    let output = command.arg("sessions").env("GRIDVFS_CRASH_AT", "NOWHERE").output();
    says(&String::from_utf8_lossy(&output.expect("runs").stderr), &["NOWHERE", "no crash point"]);
    let Some(mut rig) = Rig::new("crash_points_can_be_armed", Way::Local) else { return };
    rig.set_options(&[SMALL]);
    run(rig.mount_command().env("GRIDVFS_CRASH_AT", "JOURNAL_AFTER_WRITE:1"));
    let pid = rig.pid();
    let _ = std::fs::write(rig.mountpoint.join("f"), b"x");
    eventually("it dies", || !Path::new(&format!("/proc/{pid}/ns")).exists());
    run(Command::new("fusermount3").arg("-u").arg("-z").arg(&rig.mountpoint));
}
