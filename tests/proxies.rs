//! Standing proxies: in series, with caches, killed and full, and their keys and limits.

mod common;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::proxies::{Proxy, new_key};
use common::{Rig, Way, gridvfs, run, shell, skipped};

/// How long anything may take before a test calls it hung.
const LIMIT: Duration = Duration::from_secs(50);

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What `gridvfs proxy serve` says when it does not start.
fn refusal(folder: &Path, toml: &str) -> String {
    std::fs::create_dir_all(folder).expect("folder");
    let text = toml.replace('@', &folder.display().to_string());
    std::fs::write(folder.join("proxy.toml"), text).expect("its file");
    let output = Proxy::command(folder).output().expect("runs");
    assert!(!output.status.success(), "it should not start");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A mount of a source, ended with the test.
struct Mount<'a> {
    rig: &'a Rig,
    point: PathBuf,
}

impl<'a> Mount<'a> {
    fn new(rig: &'a Rig, name: &str, source: &str, words: &[&str]) -> Self {
        let point = rig.folder.join(name);
        std::fs::create_dir_all(&point).expect("mount point");
        run(rig.command(gridvfs()).arg("mount").arg(source).arg(&point).args(words));
        Self { rig, point }
    }

    fn end(self) {
        run(self.rig.command(gridvfs()).arg("umount").arg(&self.point));
        std::mem::forget(self);
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let mut command = self.rig.command("timeout");
        let _ = command.args(["20", gridvfs(), "umount"]).arg(&self.point).output();
        let _ = Command::new("fusermount3").args(["-u", "-z", "-q"]).arg(&self.point).output();
    }
}

fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..length.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(length).collect()
}

/// Three proxies, each with another way to its upstream and another write policy.
struct Chain {
    near: Proxy,
    middle: Proxy,
    far: Proxy,
}

const SMALL_CACHE: &str = "cache_size = \"64M\"\ncache_banks = 4\n";

impl Chain {
    fn start(rig: &Rig, middle_policy: &str) -> Self {
        let far = rig.folder.join("far");
        let export = rig.export.display();
        std::fs::create_dir(&far).expect("folder");
        new_key(&far, "middle");
        let far = Proxy::start(
            &far,
            &format!(
                "listen = [\"127.0.0.1:0\"]\nkey_file = \"@/keys\"\n\
                 [export.vms]\nsource = \"{export}\"\n"
            ),
        );
        let key = far.folder.join("middle.key");
        let middle = Proxy::start(
            &rig.folder.join("middle"),
            &format!(
                "listen_keyless = [\"unix:@/socket\"]\n[export.all]\n\
                 source = \"gridvfs://{}/vms\"\nkey_file = \"{}\"\n{SMALL_CACHE}{middle_policy}",
                far.address(0),
                key.display()
            ),
        );
        let near = Proxy::start(
            &rig.folder.join("near"),
            &format!(
                "listen_keyless = [\"127.0.0.1:0\"]\n[export.lan]\n\
                 source = \"gridvfs+unix:{}/socket:/all\"\n{SMALL_CACHE}",
                middle.folder.display()
            ),
        );
        Self { near, middle, far }
    }

    fn source(&self) -> String {
        format!("gridvfs://{}/lan", self.near.address(0))
    }

    fn url(&self, path: &str) -> String {
        let port = self.near.address(0).rsplit(':').next().expect("a port");
        format!("nfs://127.0.0.1/lan/{path}?nfsport={port}&mountport={port}")
    }
}

#[test]
fn three_in_series_read_and_write() {
    let test = "three_in_series_read_and_write";
    let Some(rig) = Rig::new(test, Way::Local) else { return };
    let (large, second) = (pattern(1, 5_000_001), pattern(2, 1_500_000));
    std::fs::write(rig.export.join("large"), &large).expect("write");
    let mut chain = Chain::start(&rig, "");
    let mount = Mount::new(&rig, "one", &chain.source(), &["-o", "cache_size=64M,cache_banks=4"]);
    let at = |name: &str| mount.point.join(name);
    assert!(std::fs::read(at("large")).expect("reads") == large);
    // What close has returned for is on the state server: write-through all the way.
    std::fs::write(at("second"), &second).expect("writes");
    assert!(std::fs::read(rig.export.join("second")).expect("there") == second);
    shell(
        &mount.point,
        "mkdir -p d/e; printf abc >d/e/f; ln -s f d/e/l; ln d/e/f d/g; mv d/g d/h; rm d/e/f; \
         chmod 640 d/h; touch -d 2001-02-03T04:05:06.789 d/h; truncate -s 1G hole; ls -la d/e",
    );
    assert_eq!(std::fs::read(rig.export.join("d/h")).expect("there"), b"abc");
    let stat = "stat -c '%a %Y %s %h' d/h; readlink d/e/l; stat -c %s hole";
    assert_eq!(shell(&rig.export, stat), shell(&mount.point, stat));
    // In place, as a VM monitor writes.
    let file = std::fs::File::options().write(true).open(at("large")).expect("opens");
    file.write_all_at(&second[..300_000], 1_000_003).expect("writes");
    file.sync_all().expect("syncs");
    let mut changed = large.clone();
    changed[1_000_003..1_300_003].copy_from_slice(&second[..300_000]);
    assert!(std::fs::read(rig.export.join("large")).expect("there") == changed);
    drop(file);
    // A foreign client over loopback, without a key.
    if common::installed("nfs-cat") {
        let data = run(Command::new("nfs-cat").arg(chain.url("large"))).stdout;
        assert!(data == changed);
        let up = rig.folder.join("up");
        std::fs::write(&up, &second).expect("writes");
        run(Command::new("nfs-cp").arg(&up).arg(chain.url("d/up")));
        assert!(std::fs::read(rig.export.join("d/up")).expect("there") == second);
        assert!(std::fs::read(at("d/up")).expect("reads") == second, "others see it");
    } else {
        skipped(test, "the part with a foreign client needs libnfs-utils");
    }
    // What others do at the far end is seen at this end.
    std::fs::write(rig.export.join("theirs"), b"first").expect("writes");
    assert_eq!(std::fs::read(at("theirs")).expect("reads"), b"first");
    std::fs::write(rig.export.join("theirs"), b"then another").expect("writes");
    wait_for("a change at the far end", || {
        std::fs::read(at("theirs")).is_ok_and(|data| data == b"then another")
    });
    mount.end();
    // Where a loop is made of them, the one that would close it does not start.
    let text = std::fs::read_to_string(chain.far.folder.join("proxy.toml")).expect("its file");
    let source = format!("source = \"{}\"", rig.export.display());
    chain.far.stop();
    let looped =
        text.replace(&source, &format!("source = \"{}\"\ncache = \"off\"", chain.source()));
    let words = refusal(&chain.far.folder, &looped);
    assert!(words.contains("loop: proxy@") && words.matches("→").count() == 3, "{words}");
    chain.near.stop();
    chain.middle.stop();
}

#[test]
fn a_middle_proxy_that_is_killed_loses_nothing() {
    let test = "a_middle_proxy_that_is_killed_loses_nothing";
    let Some(rig) = Rig::new(test, Way::Local) else { return };
    let lazy = "write_policy = \"write-back\"\nwriteback_delay = 600\nwriteback_age = 600\n";
    let mut chain = Chain::start(&rig, lazy);
    let mount = Mount::new(&rig, "one", &chain.source(), &["-o", "cache=off"]);
    let data = pattern(3, 6_000_000);
    std::fs::write(rig.export.join("disk"), &data).expect("writes");
    let fresh = pattern(4, 2_000_000);
    std::fs::write(rig.folder.join("fresh"), &fresh).expect("writes");
    // By programs of their own: what this process has open would be closed in each new process, and
    // that waits for the server which it is to start.
    let disk = mount.point.join("disk").display().to_string();
    let write = |skip: usize, at: usize, sync: &str| {
        shell(
            &rig.folder,
            &format!(
                "dd if=fresh of={disk} bs=1000000 count=1 iflag=skip_bytes skip={skip} \
                 oflag=seek_bytes seek={at} conv=notrunc{sync} status=none"
            ),
        )
    };
    write(0, 500_000, ",fsync");
    assert!(std::fs::read(rig.export.join("disk")).expect("there") == data, "not sent yet");
    write(1_000_000, 3_000_001, "");
    chain.middle.kill();
    // The client waits, and goes on when the proxy is there again.
    let reader = Command::new("sha256sum").arg(&disk).stdout(std::process::Stdio::piped()).spawn();
    let reader = reader.expect("starts");
    chain.middle.start_again();
    let mut now = data.clone();
    now[500_000..1_500_000].copy_from_slice(&fresh[..1_000_000]);
    now[3_000_001..4_000_001].copy_from_slice(&fresh[1_000_000..]);
    std::fs::write(rig.folder.join("now"), &now).expect("writes");
    let read = reader.wait_with_output().expect("reads").stdout;
    let wanted = shell(&rig.folder, "sha256sum now");
    assert_eq!(read.get(..64), wanted.as_bytes().get(..64));
    assert!(chain.middle.log().contains("not yet sent"), "{}", chain.middle.log());
    // SIGUSR1 writes back; so does the end.
    chain.middle.signal(libc::SIGUSR1);
    wait_for("write-back", || std::fs::read(rig.export.join("disk")).expect("there") == now);
    std::fs::write(mount.point.join("last"), b"last").expect("writes");
    mount.end();
    chain.near.stop();
    chain.middle.stop();
    assert_eq!(std::fs::read(rig.export.join("last")).expect("there"), b"last");
}

#[test]
fn a_full_disk_under_a_middle_proxy_is_a_smaller_cache() {
    let test = "a_full_disk_under_a_middle_proxy_is_a_smaller_cache";
    if !common::is_root() {
        return skipped(test, "needs root (a file system of its own)");
    }
    let Some(rig) = Rig::new(test, Way::Local) else { return };
    let small = rig.folder.join("middle/cache");
    std::fs::create_dir_all(&small).expect("folder");
    let _tmpfs = Tmpfs::mount(&small, "24m");
    let policy = "write_policy = \"write-back\"\nwriteback_delay = 1\n";
    let mut chain = Chain::start(&rig, policy);
    let data = pattern(5, 40 << 20);
    std::fs::write(rig.export.join("large"), &data).expect("writes");
    let mount = Mount::new(&rig, "one", &chain.source(), &["-o", "cache=off"]);
    assert!(std::fs::read(mount.point.join("large")).expect("reads") == data);
    // More than the disk holds: writers wait for what is sent, and go on.
    std::fs::write(mount.point.join("copy"), &data).expect("writes");
    assert!(std::fs::read(mount.point.join("copy")).expect("reads") == data);
    mount.end();
    chain.near.stop();
    chain.middle.stop();
    assert!(std::fs::read(rig.export.join("copy")).expect("there") == data);
}

struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path, size: &str) -> Self {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        run(command.arg(at));
        Self(at.into())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn each_block_is_asked_for_once_whoever_wants_it() {
    let test = "each_block_is_asked_for_once_whoever_wants_it";
    if !common::installed("nfs-cat") {
        return skipped(test, "needs libnfs-utils");
    }
    let Some(rig) = Rig::new(test, Way::Local) else { return };
    let data = pattern(6, 24 << 20);
    std::fs::write(rig.export.join("golden"), &data).expect("writes");
    // The nearer proxy counts the bytes that come from the farther one.
    let far = Proxy::start(
        &rig.folder.join("far"),
        &format!(
            "listen_keyless = [\"127.0.0.1:0\"]\n[export.vms]\nsource = \"{}\"\n",
            rig.export.display()
        ),
    );
    let mut near = Proxy::start(
        &rig.folder.join("near"),
        &format!(
            "listen_keyless = [\"127.0.0.1:0\"]\n[export.lan]\nread_only = true\n\
             source = \"gridvfs://{}/vms\"\n{SMALL_CACHE}",
            far.address(0)
        ),
    );
    let port = near.address(0).rsplit(':').next().expect("a port").to_string();
    let url = format!("nfs://127.0.0.1/lan/golden?nfsport={port}&mountport={port}");
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let url = url.clone();
            std::thread::spawn(move || run(Command::new("nfs-cat").arg(url)).stdout)
        })
        .collect();
    for reader in readers {
        assert!(reader.join().expect("no panic") == data);
    }
    near.stop();
    let log = near.log();
    let line = log.lines().find(|line| line.contains(" ends: ")).expect("it has ended");
    let mib: u64 = line
        .split_whitespace()
        .rev()
        .nth(2)
        .and_then(|word| word.parse().ok())
        .expect("MiB received");
    assert!((24..=25).contains(&mib), "{mib} MiB of 24 came from upstream, for eight readers");
}

#[test]
fn keys_open_and_are_revoked_while_it_runs() {
    let test = "keys_open_and_are_revoked_while_it_runs";
    let Some(rig) = Rig::new(test, Way::Local) else { return };
    shell(&rig.folder, "mkdir other; echo mine >export/file; echo other >other/file");
    let folder = rig.folder.join("proxy");
    std::fs::create_dir(&folder).expect("folder");
    let (alice, bob) = (new_key(&folder, "alice"), new_key(&folder, "bob"));
    let (export, other) = (rig.export.display(), rig.folder.join("other"));
    let toml = format!(
        "listen = [\"127.0.0.1:0\"]\nkey_file = \"@/keys\"\n\
         [export.vms]\nsource = \"{export}\"\n[export.other]\nsource = \"{}\"\n\
         [key.bob]\nexports = [\"vms\"]\nread_only = true\n",
        other.display()
    );
    let proxy = Proxy::start(&folder, &toml);
    let source = |name: &str| format!("gridvfs://{}/{name}", proxy.address(0));
    let options = "cache=off,timeout=3";
    let with =
        |key: &Path| ["--key-file".into(), key.display().to_string(), "-o".into(), options.into()];
    let mounted = |name: &str, export: &str, key: &Path| {
        let words = with(key);
        Mount::new(&rig, name, &source(export), &words.each_ref().map(String::as_str))
    };
    let refused = |export: &str, key: &Path| {
        let mut command = rig.command(gridvfs());
        command.arg("mount").arg(source(export)).arg(&rig.mountpoint).args(with(key));
        let output = command.output().expect("runs");
        assert!(!output.status.success(), "refused");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let of_alice = mounted("alice", "other", &alice);
    let of_bob = mounted("bob", "vms", &bob);
    assert_eq!(std::fs::read(of_alice.point.join("file")).expect("reads"), b"other\n");
    assert_eq!(std::fs::read(of_bob.point.join("file")).expect("reads"), b"mine\n");
    let error = std::fs::write(of_bob.point.join("new"), b"").expect_err("read-only");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    let words = refused("other", &bob);
    assert!(words.contains("no such export"), "{words}");
    assert!(refused("", &alice).contains("ADDR:PORT/NAME"), "two exports");
    // Revoked: the mount that is there, and one that is to be.
    let keys = folder.join("keys");
    run(Command::new(gridvfs()).args(["proxy", "key", "revoke", "alice", "--file"]).arg(&keys));
    wait_for("the key to be refused", || std::fs::read_dir(&of_alice.point).is_err());
    assert!(refused("other", &alice).contains("asks for a key"));
    assert_eq!(std::fs::read(of_bob.point.join("file")).expect("still reads"), b"mine\n");
    // A file that others may read is not believed; the keys stay.
    let carol = new_key(&folder, "carol");
    drop(of_alice);
    wait_for("the new key", || proxy.log().contains("2 keys: 1 new"));
    mounted("carol", "vms", &carol).end();
    shell(&folder, "chmod 640 keys");
    wait_for("a word about it", || proxy.log().contains("chmod 600"));
    mounted("carol", "vms", &carol).end();
    let again = Proxy::command(&folder).output().expect("runs");
    let words = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && words.contains("chmod 600"), "{words}");
    let list =
        run(Command::new(gridvfs()).args(["proxy", "key", "list", "--json", "--file"]).arg({
            shell(&folder, "chmod 600 keys");
            &keys
        }));
    assert!(String::from_utf8_lossy(&list.stdout).contains(r#"["bob","carol"]"#));
    of_bob.end();
}

#[test]
fn limits_hold_and_say_so() {
    let test = "limits_hold_and_say_so";
    let Some(rig) = Rig::new(test, Way::Local) else { return };
    std::fs::write(rig.export.join("file"), pattern(7, 8 << 20)).expect("writes");
    let proxy = Proxy::start(
        &rig.folder.join("proxy"),
        &format!(
            "listen_keyless = [\"unix:@/s\"]\nclients_max = 1\ncalls_max = 16\nmemory_max = \"8M\"\n\
             [export.vms]\nsource = \"{}\"\n",
            rig.export.display()
        ),
    );
    let source = format!("gridvfs+unix:{}/s", proxy.folder.display());
    let first = Mount::new(&rig, "one", &source, &["-o", "cache=off,stripes=1"]);
    // The calls of one client beyond the limits wait for each other.
    assert!(std::fs::read(first.point.join("file")).expect("reads").len() == 8 << 20);
    // A second client waits until there is a place.
    let second = std::thread::scope(|scope| {
        let second =
            scope.spawn(|| Mount::new(&rig, "two", &source, &["-o", "cache=off,stripes=1"]));
        wait_for("a word about it", || proxy.log().contains("clients_max"));
        first.end();
        second.join().expect("mounts")
    });
    assert!(second.point.join("file").exists());
    second.end();
    // What cannot be started says why.
    let folder = rig.folder.join("bad");
    let export = format!("[export.a]\nsource = \"{}\"\n", rig.export.display());
    for (toml, words) in [
        ("listen_keyless = [\"0.0.0.0:0\"]\n", "not on this machine alone"),
        ("listen_keyless = [\"unix:/proc/x\"]\n", "cannot listen"),
        ("listen = [\"127.0.0.1:0\"]\nkey_file = \"@/none\"\n", "No such file"),
        ("listen_keyless = [\"127.0.0.1:0\"]\nlimit = 1\n", "unknown key"),
    ] {
        let said = refusal(&folder, &format!("{toml}{export}"));
        assert!(said.contains(words), "{toml}: {said}");
    }
}

/// Runs a verb with `--json`, which must end so; returns what it said.
fn verb(words: &[&str], status: i32) -> serde_json::Value {
    let output = Command::new(gridvfs()).args(words).arg("--json").output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{words:?}: {text}{error}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words:?}: {error}: {text}"))
}

#[test]
fn a_standing_proxy_is_a_session() {
    let test = "a_standing_proxy_is_a_session";
    let Some(rig) = Rig::new(test, Way::Local) else { return };
    let name = format!("lan-{}", std::process::id());
    let folder = rig.folder.join("proxy");
    std::fs::create_dir(&folder).expect("folder");
    let key = new_key(&folder, "alice");
    let far = Proxy::start(
        &rig.folder.join("far"),
        &format!(
            "listen_keyless = [\"127.0.0.1:0\"]\n[export.vms]\nsource = \"{}\"\n",
            rig.export.display()
        ),
    );
    let toml = format!(
        "name = \"{name}\"\nlisten = [\"127.0.0.1:0\"]\nkey_file = \"@/keys\"\n\
         [export.vms]\nsource = \"gridvfs://{}/vms\"\n{SMALL_CACHE}write_policy = \"write-back\"\n\
         writeback_delay = 600\nwriteback_age = 600\n[export.plain]\nsource = \"{}\"\n",
        far.address(0),
        rig.export.display()
    );
    let mut proxy = Proxy::start(&folder, &toml);
    let source = format!("gridvfs://{}/vms", proxy.address(0));
    let words = ["--key-file", key.to_str().expect("text"), "-o", "cache=off"];
    let mount = Mount::new(&rig, "one", &source, &words);
    std::fs::write(rig.export.join("read"), pattern(8, 1 << 20)).expect("writes");
    assert!(std::fs::read(mount.point.join("read")).expect("reads").len() == 1 << 20);
    shell(&mount.point, "head -c 300000 /dev/zero >f; sync f");

    let listed = verb(&["sessions"], 0);
    let own = listed.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == *name));
    let own = own.expect("listed");
    assert_eq!((&own["alive"], &own["mountpoint"]), (&true.into(), &serde_json::Value::Null));
    assert_eq!(own["listen"][0], proxy.address(0));
    let status = verb(&["status", &name], 0);
    assert_eq!(status["clients"][0]["name"], "alice");
    assert!(status["clients"][0]["channels"].as_u64() > Some(0), "{status}");
    assert!(status["clients"][0]["sent_bytes"].as_u64() > Some(1 << 20), "{status}");
    assert!(status["clients"][0]["received_bytes"].as_u64() > Some(300_000), "{status}");
    assert_eq!(status["exports"]["vms"]["cache"]["unsent_bytes"], 300_000, "{status}");
    assert!(status["exports"]["vms"]["link"]["stripes"].is_u64());
    assert!(status["exports"]["plain"]["cache"].is_null());
    let show = |words: &[&str]| {
        let output = run(Command::new(gridvfs()).args(words));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let metrics = show(&["status", "--prometheus", &name]);
    for line in [
        format!("gridvfs_client_channels{{session=\"{name}\",client=\"alice\"}} "),
        format!("gridvfs_cache_unsent_bytes{{session=\"{name}/vms\"}} 300000"),
        format!("gridvfs_link_up{{session=\"{name}/vms\"}} 1"),
        format!("gridvfs_request_duration_seconds_count{{session=\"{name}\",kind=\"read\"}} "),
    ] {
        assert!(metrics.lines().any(|other| other.starts_with(&line)), "{line}: {metrics}");
    }
    let top = show(&["top", "--once", "--interval", "0.1", &name]);
    assert!(top.contains("alice, ") && top.contains(&format!("{name}/vms  ")), "{top}");
    let text = show(&["status", &name]);
    assert!(text.contains("alice ") && text.contains("listening on"), "{text}");

    // Its verbs, and what is none.
    assert_eq!(verb(&["writeback", &name], 0)["written_back_bytes"], 300_000);
    assert_eq!(std::fs::read(rig.export.join("f")).expect("there").len(), 300_000);
    verb(&["flush", &name], 0);
    assert_eq!(verb(&["cancel", &name], 0)["cancelled"], false);
    for words in [
        &["set", &name, "write_policy=write-back"][..],
        &["umount", &name],
        &["cache", "status", &name],
    ] {
        assert_eq!(verb(words, 6)["code"], "refused");
    }
    assert_eq!(verb(&["conflicts", &name], 0), serde_json::json!([]));
    let export = rig.export.display();
    let twin = format!(
        "name = \"{name}\"\nlisten_keyless = [\"127.0.0.1:0\"]\n[export.vms]\nsource = \"{export}\"\n"
    );
    let said = refusal(&rig.folder.join("twin"), &twin);
    assert!(said.contains("runs already"), "{said}");

    // SIGHUP: the settings that may change do, an error changes nothing.
    let file = folder.join("proxy.toml");
    let text = std::fs::read_to_string(&file).expect("its file");
    let delay = |status: &serde_json::Value| {
        status["exports"]["vms"]["cache"]["settings"]["writeback_delay"].as_f64()
    };
    std::fs::write(&file, text.replace("delay = 600", "delay = 500") + "read_only = true\n")
        .expect("writes");
    proxy.signal(libc::SIGHUP);
    wait_for("the new delay", || delay(&verb(&["status", &name], 0)) == Some(500.0));
    assert!(proxy.log().contains("at the next start"), "{}", proxy.log());
    std::fs::write(&file, text.replace("delay = 600", "delai = 400")).expect("writes");
    proxy.signal(libc::SIGHUP);
    wait_for("a word about it", || proxy.log().contains("the settings stay as they were"));
    assert_eq!(delay(&verb(&["status", &name], 0)), Some(500.0));
    std::fs::write(&file, &text).expect("writes");

    // Signals during each other, with unsent data and a client that goes on.
    shell(&mount.point, "head -c 400000 /dev/zero >g; sync g");
    for signal in [libc::SIGUSR1, libc::SIGHUP, libc::SIGUSR2, libc::SIGHUP, libc::SIGUSR1] {
        proxy.signal(signal);
    }
    shell(&mount.point, "head -c 500000 /dev/zero >h; sync h");
    mount.end();
    proxy.signal(libc::SIGUSR2);
    verb(&["proxy", "stop", &name], 0);
    assert_eq!(verb(&["status", &name], 3)["code"], "no-session");
    for (file, length) in [("g", 400_000), ("h", 500_000)] {
        assert_eq!(std::fs::read(rig.export.join(file)).expect("there").len(), length);
    }

    // Killed: its record says so until somebody clears it.
    proxy.start_again();
    proxy.kill();
    assert_eq!(verb(&["status", &name], 8)["code"], "silent");
    verb(&["umount", &name], 0);
    assert_eq!(verb(&["status", &name], 3)["code"], "no-session");
}

#[test]
fn conflicts_of_a_proxys_caches_are_settled() {
    let test = "conflicts_of_a_proxys_caches_are_settled";
    let Some(rig) = Rig::new(test, Way::Local) else { return };
    let name = format!("hop-{}", std::process::id());
    let export = rig.export.display();
    let far = Proxy::start(
        &rig.folder.join("far"),
        &format!("listen_keyless = [\"127.0.0.1:0\"]\n[export.vms]\nsource = \"{export}\"\n"),
    );
    let toml = format!(
        "name = \"{name}\"\nlisten_keyless = [\"127.0.0.1:0\"]\n\
         [export.vms]\nsource = \"gridvfs://{}/vms\"\n{SMALL_CACHE}write_policy = \"write-back\"\n\
         writeback_delay = 600\nwriteback_age = 600\n",
        far.address(0)
    );
    let proxy = Proxy::start(&rig.folder.join("proxy"), &toml);
    let source = format!("gridvfs://{}/vms", proxy.address(0));
    let mount = Mount::new(&rig, "one", &source, &["-o", "cache=off"]);
    let names = ["mine", "theirs", "both"];
    for name in names {
        std::fs::write(mount.point.join(name), b"at first").expect("writes");
    }
    shell(&mount.point, "sync mine theirs both");
    verb(&["writeback", &name], 0);
    for name in names {
        let file = std::fs::File::options().write(true).open(mount.point.join(name));
        let file = file.expect("opens");
        file.write_all_at(b"ours....", 0).expect("writes");
        file.sync_all().expect("syncs");
        std::fs::write(rig.export.join(name), b"theirs..").expect("writes");
    }
    assert_eq!(verb(&["writeback", &name], 7)["code"], "conflict");
    let listed = verb(&["conflicts", &name], 0);
    let mut paths: Vec<_> =
        listed.as_array().expect("a list").iter().map(|one| one["path"].as_str()).collect();
    paths.sort();
    assert_eq!(paths, [Some("vms/both"), Some("vms/mine"), Some("vms/theirs")]);
    verb(&["conflicts", &name, "mine", "keep-mine"], 1);
    verb(&["conflicts", &name, "vms/mine", "keep-mine"], 0);
    verb(&["conflicts", &name, "/vms/theirs", "keep-theirs"], 0);
    let saved = verb(&["conflicts", &name, "vms/both", "save-mine"], 0);
    let saved = saved["saved"].as_str().and_then(|saved| saved.strip_prefix("vms/"));
    let saved = saved.expect("a path").to_string();
    verb(&["writeback", &name], 0);
    assert_eq!(verb(&["conflicts", &name], 0), serde_json::json!([]));
    let server = |name: &str| std::fs::read(rig.export.join(name)).expect("there");
    assert_eq!(server("mine"), b"ours....");
    assert_eq!((server("theirs"), server("both")), (b"theirs..".into(), b"theirs..".into()));
    assert_eq!(server(&saved), b"ours....");
    mount.end();
}

#[test]
fn a_loop_that_comes_about_while_it_runs_ends_it() {
    let test = "a_loop_that_comes_about_while_it_runs_ends_it";
    let Some(rig) = Rig::new(test, Way::Local) else { return };
    let start = |name: &str, source: &str| {
        let toml = format!(
            "listen_keyless = [\"unix:@/s\"]\n[export.vms]\nsource = \"{source}\"\ncache = \"off\"\n"
        );
        Proxy::start(&rig.folder.join(name), &toml)
    };
    let folder = rig.folder.display();
    let mut first = start("first", &rig.export.display().to_string());
    shell(&rig.folder, "ln -s first/s way");
    let mut second = start("second", &format!("gridvfs+unix:{folder}/way:/vms"));
    let third = start("third", &format!("gridvfs+unix:{folder}/second/s:/vms"));
    // The way that led to the files leads back now.
    shell(&rig.folder, "ln -sfn third/s way");
    first.kill();
    // It asks again from time to time, and when it is told to.
    wait_for("the end of it", || {
        second.signal(libc::SIGHUP);
        second.has_ended()
    });
    assert!(second.log().contains("the cascade is a loop"), "{}", second.log());
    drop(third);
}
