//! Sessions that hear of each other's changes (docs/decisions/0029).
//!
//! The kernel's own time-outs are an hour in these tests: what is seen was told.

mod common;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::proxies::Proxy;
use common::{Rig, Way, gridvfs, run, shell};
use serde_json::Value;

/// How long anything may take before a test calls it never.
const LIMIT: Duration = Duration::from_secs(30);
/// Nothing is looked at again by itself.
const LONG: &str =
    "coherence=yes,attr_timeout=3600,entry_timeout=3600,cache_size=64M,cache_banks=4";

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a session sees what there is.
fn wait_to_see(what: &str, mount: &Mount<'_>, is: &str) {
    let begun = Instant::now();
    loop {
        let seen = mount.seen();
        if seen == is {
            return;
        }
        assert!(begun.elapsed() < LIMIT, "{what}: it sees\n{seen}\nand there is\n{is}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A mount, ended with the test.
struct Mount<'a> {
    rig: &'a Rig,
    point: PathBuf,
}

impl<'a> Mount<'a> {
    fn run(rig: &'a Rig, name: &str, command: impl FnOnce(&Path) -> Command) -> Self {
        let point = rig.folder.join(name);
        std::fs::create_dir_all(&point).expect("mount point");
        run(&mut command(&point));
        Self { rig, point }
    }

    /// Of the rig's own source.
    fn new(rig: &'a Rig, name: &str, options: &str) -> Self {
        Self::run(rig, name, |point| rig.mount_also(point, &[LONG, options]))
    }

    /// Of a standing proxy.
    fn of(rig: &'a Rig, name: &str, source: &str) -> Self {
        Self::run(rig, name, |point| {
            let mut command = rig.command(gridvfs());
            command.arg("mount").arg(source).arg(point).args(["-o", LONG]);
            command
        })
    }

    fn status(&self) -> Value {
        let mut command = self.rig.command(gridvfs());
        let output = run(command.arg("status").arg(&self.point).arg("--json"));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn count(&self, section: &str, name: &str) -> u64 {
        self.status()[section][name].as_u64().unwrap_or_else(|| panic!("{section}.{name}"))
    }

    fn calls(&self) -> u64 {
        self.count("link", "calls")
    }

    fn is_on(&self) -> bool {
        self.status()["coherence"]["on"] == true
    }

    /// Waits until changes are told.
    fn heard(self) -> Self {
        wait_for("coherence", || self.is_on());
        self
    }

    fn at(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    fn reads(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.at(name)).ok()
    }

    /// All that a program can see: names, modes, sizes, links, contents.
    fn seen(&self) -> String {
        look(&self.point)
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}: {}", self.point.display(), self.status()["coherence"]);
        }
        let mut command = self.rig.command("timeout");
        let _ = command.args(["20", gridvfs(), "umount"]).arg(&self.point).output();
        let _ = Command::new("fusermount3").args(["-u", "-z", "-q"]).arg(&self.point).output();
    }
}

fn look(at: &Path) -> String {
    let mut lines = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(at.join(&folder)) else { continue };
        for entry in entries.flatten() {
            let (path, place) = (entry.path(), folder.join(entry.file_name()));
            let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
            let times = (meta.mtime(), meta.mtime_nsec(), meta.ctime_nsec());
            let mut line = format!("{place:?} {:o} {} {times:?}", meta.mode(), meta.nlink());
            if meta.is_dir() {
                folders.push(place);
            } else if meta.is_symlink() {
                line += &format!(" {:?}", std::fs::read_link(&path).ok());
            } else {
                let data = std::fs::read(&path).unwrap_or_default();
                let end = &data[data.len().saturating_sub(30)..];
                let sum = data.iter().fold(0u32, |sum, byte| sum.rotate_left(3) ^ u32::from(*byte));
                line += &format!(" {} {sum:x} {:?}", meta.len(), String::from_utf8_lossy(end));
            }
            lines.push(line);
        }
    }
    lines.sort();
    lines.join("\n")
}

/// Changes of every kind, one after the other; what each says of itself.
const CHANGES: [(&str, &str); 14] = [
    ("write", "printf changed >file"),
    ("append", "printf more >>file"),
    ("in place", "printf X | dd of=file bs=1 seek=2 conv=notrunc status=none"),
    ("truncate", "truncate -s 3 file"),
    ("grow", "truncate -s 70000 file"),
    ("chmod", "chmod 600 file"),
    ("times", "touch -d 2001-02-03T04:05:06.789 file"),
    ("create", "printf new >dir/fresh"),
    ("mkdir", "mkdir -p dir/below/deeper; printf deep >dir/below/deeper/f"),
    ("link and symlink", "ln file dir/second; ln -s file dir/symbolic"),
    ("write by the other name", "printf through-the-link >dir/second"),
    ("rename", "mv dir/fresh dir/renamed; mv dir/below moved"),
    ("replace", "printf other >dir/new; mv dir/new dir/renamed"),
    ("remove", "rm dir/second dir/symbolic; rm -r moved"),
];

#[test]
fn a_session_sees_what_others_do_without_asking() {
    let test = "a_session_sees_what_others_do_without_asking";
    let Some(rig) = Rig::new(test, Way::Ssh) else { return };
    shell(&rig.export, "printf first >file; mkdir dir; printf a >dir/old");
    let one = Mount::new(&rig, "one", "write_policy=write-through").heard();
    let two = Mount::new(&rig, "two", "write_policy=write-through").heard();
    let open = File::open(one.at("file")).expect("opens");
    for by in [&two.point, &rig.export] {
        for (what, script) in CHANGES {
            let _ = (one.seen(), std::fs::symlink_metadata(one.at("dir/renamed")));
            shell(by, script);
            let is = look(&rig.export);
            wait_to_see(&format!("{what} by {}", by.display()), &one, &is);
            // By a descriptor that was open all the time.
            let size = open.metadata().expect("attributes").size();
            let mut data = vec![0; size as usize];
            open.read_exact_at(&mut data, 0).expect("reads");
            assert!(data == std::fs::read(rig.export.join("file")).expect("there"), "{what}");
        }
        shell(&rig.export, "printf first >file; chmod 644 file");
    }
    wait_for("the end", || one.reads("file").as_deref() == Some("first"));
    assert!(one.count("cache", "notices") > 20);
}

#[test]
fn what_is_known_is_not_asked_for() {
    let test = "what_is_known_is_not_asked_for";
    let Some(rig) = Rig::new(test, Way::Ssh) else { return };
    shell(
        &rig.export,
        "for d in a b c; do mkdir $d; for n in 1 2 3 4 5; do echo $n >$d/$n; done; done",
    );
    // The kernel asks us again and again.
    let asks = "attr_timeout=0,entry_timeout=0";
    let one = Mount::new(&rig, "one", asks).heard();
    let off = Mount::new(&rig, "off", &format!("{asks},coherence=no"));
    let walk = |mount: &Mount| {
        let before = mount.calls();
        // find(1) would ask for the file system's free space, too.
        shell(&mount.point, "ls -lR .; cat */*; ls absent || true");
        mount.calls() - before
    };
    for mount in [&one, &off] {
        walk(mount);
        walk(mount);
    }
    assert_eq!(walk(&one), 0, "calls of a walk that is known");
    assert!(walk(&off) > 15, "without coherence each open asks");
    assert_eq!(off.status()["coherence"]["reason"], "coherence=no");
    // Our own changes come back, and cost nothing.
    shell(&one.point, "echo x >a/own; mkdir own; mv a/own own/there; chmod 600 own/there; rm b/5");
    walk(&one);
    shell(&rig.export, "echo theirs >b/theirs");
    wait_for("theirs", || one.at("b/theirs").exists());
    // What was written is committed first, within two seconds.
    wait_for("no calls after changes of our own", || walk(&one) == 0);
    let end = Instant::now();
    drop((one, off));
    assert!(end.elapsed() < LIMIT, "a held call does not hold up the end");
}

#[test]
fn two_clients_of_a_proxy_before_an_nfs_server() {
    let test = "two_clients_of_a_proxy_before_an_nfs_server";
    let Some(rig) = Rig::new(test, Way::Nfs) else { return };
    shell(&rig.export, "printf first >file; mkdir dir; printf a >dir/old");
    let proxy = |name: &str, more: &str| {
        let folder = rig.folder.join(name);
        let toml = format!(
            "listen_keyless = [\"unix:@/socket\"]\n[export.all]\nsource = \"{}\"\n\
             mountport = {}\ncoherence = \"yes\"\ncache_size = \"64M\"\ncache_banks = 4\n{more}",
            rig.source(),
            rig.port("ganesha/mount_port")
        );
        let source = format!("gridvfs+unix:{}/socket:/all", folder.display());
        (Proxy::start(&folder, &toml), source)
    };
    // All changes pass the proxy: its operator says so.
    let (mut near, source) = proxy("near", "exclusive = true\n");
    let (one, two) = (Mount::of(&rig, "one", &source), Mount::of(&rig, "two", &source));
    let (one, two) = (one.heard(), two.heard());
    for (what, script) in CHANGES {
        one.seen();
        shell(&two.point, script);
        let is = two.seen();
        wait_to_see(what, &one, &is);
    }
    let before = one.calls();
    shell(&one.point, "ls -lR .; cat file dir/*");
    assert_eq!(one.calls(), before);
    drop((one, two));
    near.stop();
    // Others may change the files: what the proxy's clients do is told at once, and nothing believed.
    let (mut near, source) = proxy("shared", "");
    let (one, two) = (Mount::of(&rig, "one", &source), Mount::of(&rig, "two", &source));
    wait_for("a reason", || {
        one.status()["coherence"]["reason"].as_str().is_some_and(|why| why.contains("tell"))
    });
    one.seen();
    shell(&two.point, "printf told >file; mv dir/renamed dir/again");
    wait_for("a change by the other", || {
        one.reads("file").as_deref() == Some("told") && !one.at("dir/renamed").exists()
    });
    assert!(!one.is_on());
    drop((one, two));
    near.stop();
}

#[test]
fn a_chain_of_proxies_passes_on_what_it_hears() {
    let test = "a_chain_of_proxies_passes_on_what_it_hears";
    let Some(rig) = Rig::new(test, Way::Local) else { return };
    shell(&rig.export, "printf first >file; mkdir dir; printf a >dir/old");
    let far = rig.folder.join("far");
    let toml = format!(
        "listen_keyless = [\"unix:@/socket\"]\n[export.vms]\nsource = \"{}\"\n",
        rig.export.display()
    );
    let mut far = Proxy::start(&far, &toml);
    let link = |proxy: &Proxy, export: &str| {
        format!("gridvfs+unix:{}/socket:/{export}", proxy.folder.display())
    };
    let toml = format!(
        "listen_keyless = [\"unix:@/socket\"]\n[export.lan]\nsource = \"{}\"\n\
         coherence = \"yes\"\ncache_size = \"64M\"\ncache_banks = 4\n",
        link(&far, "vms")
    );
    let mut near = Proxy::start(&rig.folder.join("near"), &toml);
    let one = Mount::of(&rig, "one", &link(&near, "lan")).heard();
    let two = Mount::of(&rig, "two", &link(&near, "lan")).heard();
    let direct = Mount::of(&rig, "direct", &link(&far, "vms")).heard();
    for start in 0..3 {
        for ((what, script), at) in CHANGES.into_iter().zip(start..) {
            let by = [&two.point, &direct.point, &rig.export][at % 3];
            one.seen();
            shell(by, script);
            let is = look(&rig.export);
            wait_to_see(&format!("{what} by {}", by.display()), &one, &is);
        }
        shell(&rig.export, "rm -r dir/renamed");
    }
    wait_for("no calls", || {
        let before = one.calls();
        shell(&one.point, "ls -lR .; cat file dir/*");
        one.calls() == before
    });
    // Uncommitted data would be sent again, over what others write meanwhile, as to any NFS server that
    // has started anew: it is committed two seconds after the last write.
    std::thread::sleep(Duration::from_secs(3));
    // A proxy that is gone tells nothing; when it is there again, everything is asked for anew.
    far.kill();
    wait_for("the end of trust", || !one.is_on());
    shell(&rig.export, "printf meanwhile >file; rm dir/old; mkdir dir/later");
    far.start_again();
    let is = look(&rig.export);
    wait_for("trust again", || one.is_on());
    wait_to_see("what happened meanwhile", &one, &is);
    drop((one, two, direct));
    near.stop();
    far.stop();
}

#[test]
fn what_cannot_be_watched_is_asked_for() {
    let test = "what_cannot_be_watched_is_asked_for";
    let Some(rig) = Rig::new(test, Way::Ssh) else { return };
    shell(&rig.export, "for d in $(seq 20); do mkdir $d; echo $d >$d/file; done");
    let program = format!(
        "gridvfs_command=env XDG_STATE_HOME={} GRIDVFS_WATCHES_MAX=5 {}",
        rig.folder.join("state").display(),
        gridvfs()
    );
    // The kernel asks us: of what is not covered nobody tells it.
    let asks = "attr_timeout=0,entry_timeout=0";
    let one = Mount::run(&rig, "one", |point| rig.mount_also(point, &[LONG, asks, &program]));
    let one = one.heard();
    for round in 0..3 {
        one.seen();
        shell(&rig.export, &format!("for d in *; do echo {round} >>$d/file; done; mkdir {round}x"));
        let is = look(&rig.export);
        wait_to_see("files without a watch", &one, &is);
    }
    let before = one.calls();
    shell(&one.point, "ls -lR .");
    assert!(one.calls() > before, "what is not covered is asked for");
    assert!(one.is_on(), "and the rest is not");
}

#[test]
fn after_a_lost_session_everything_is_asked_for_again() {
    let test = "after_a_lost_session_everything_is_asked_for_again";
    let Some(rig) = Rig::new(test, Way::Ssh) else { return };
    shell(&rig.export, "printf first >file; mkdir dir; printf a >dir/old");
    let one = Mount::new(&rig, "one", "stripes=2").heard();
    let open = File::open(one.at("file")).expect("opens");
    one.seen();
    let begun = one.count("cache", "notices_begun");
    // The session's daemon on the state server, of this test's folder alone.
    let daemons = || {
        let folder = rig.export.display().to_string();
        let log = std::fs::read_to_string(rig.folder.join("state/gridvfs/proxy.log"));
        let name = log.expect("a log").lines().rev().find_map(|line| {
            let rest = line.split("session ").nth(1)?;
            rest.contains(&folder).then(|| rest.split(' ').next().unwrap_or_default().to_string())
        });
        name.expect("a session")
    };
    let session = daemons();
    let pid = listener_of(&session).expect("a daemon");
    // SAFETY: the daemon that this test's mount has started.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    shell(&rig.export, "printf meanwhile >file; rm dir/old; mkdir dir/later; chmod 700 dir");
    let is = look(&rig.export);
    wait_to_see("what happened meanwhile", &one, &is);
    wait_for("another period", || one.count("cache", "notices_begun") > begun && one.is_on());
    wait_for("an open file", || {
        let mut data = [0; 9];
        open.read_exact_at(&mut data, 0).is_ok() && &data == b"meanwhile"
    });
    shell(&rig.export, "printf after-that >dir/news");
    wait_for("news", || one.reads("dir/news").as_deref() == Some("after-that"));
}

/// The process that listens on a session's socket.
fn listener_of(session: &str) -> Option<i32> {
    let name = format!("proxy-{session}.sock");
    let sockets = std::fs::read_to_string("/proc/net/unix").ok()?;
    let line = sockets.lines().find(|line| line.ends_with(&name))?;
    let inode = line.split_whitespace().nth(6)?;
    let link = format!("socket:[{inode}]");
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid: i32 = process.file_name().to_str()?.parse().ok()?;
        let fds = std::fs::read_dir(process.path().join("fd")).ok()?;
        let mut links = fds.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
        links.any(|to| to.as_os_str() == &*link).then_some(pid)
    })
}

/// Numbers at random (xorshift64), others with another GRIDVFS_SEED.
struct Random(u64);

impl Random {
    fn new(stream: u64) -> Self {
        let seed = std::env::var("GRIDVFS_SEED").ok().and_then(|seed| seed.parse().ok());
        let mut random = Self(0x9e37_79b9_7f4a_7c15_u64 ^ seed.unwrap_or(0_u64) ^ (stream << 56));
        (0..9).for_each(|_| _ = random.below(2));
        random
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// A change of some file in `a` or `b`, as a shell does it.
    fn change(&mut self, round: u64) -> String {
        let (d, n) = (["a", "b"][self.below(2) as usize], self.below(4));
        let (e, m) = (["a", "b"][self.below(2) as usize], self.below(4));
        match self.below(8) {
            0 | 1 => format!("echo {round} >{d}/{n}"),
            2 => format!("echo {round} >>{d}/{n}"),
            3 => format!("rm -f {d}/{n}"),
            4 => format!("mv -f {d}/{n} {e}/{m} 2>/dev/null || true"),
            5 => format!("chmod {} {d}/{n} 2>/dev/null || true", 600 + self.below(8) * 10),
            6 => format!("ln -f {d}/{n} {e}/{m} 2>/dev/null || true"),
            _ => format!("truncate -s {} {d}/{n}", self.below(9000)),
        }
    }
}

#[test]
fn two_sessions_at_random_agree() {
    let test = "two_sessions_at_random_agree";
    let Some(rig) = Rig::new(test, Way::Ssh) else { return };
    shell(&rig.export, "mkdir a b; for n in 0 1 2 3; do echo $n >a/$n; done");
    let one = Mount::new(&rig, "one", "").heard();
    let two = Mount::new(&rig, "two", "").heard();
    let mut random = Random::new(0);
    let (mut script, mut writer) = (String::new(), 0);
    for round in 0..60 {
        let change = random.change(round);
        // By either session, or by a program over there, until the others have seen it: who writes
        // to what he has not heard of yet wins, as in all of NFS.
        let at = [&one.point, &two.point, &rig.export][writer];
        script += &format!("{}: {change}\n", at.display());
        shell(at, &change);
        if random.below(3) == 0 {
            let is = look(&rig.export);
            for (name, mount) in [("one", &one), ("two", &two)] {
                wait_to_see(&format!("{script}\nround {round}, {name}"), mount, &is);
            }
            writer = random.below(3) as usize;
        }
    }
}

#[test]
fn writers_that_do_not_wait_agree_in_the_end() {
    let test = "writers_that_do_not_wait_agree_in_the_end";
    let Some(rig) = Rig::new(test, Way::Ssh) else { return };
    shell(&rig.export, "mkdir a b; for n in 0 1 2 3; do echo $n >a/$n; done");
    let one = Mount::new(&rig, "one", "").heard();
    let two = Mount::new(&rig, "two", "").heard();
    for burst in 0..3 {
        std::thread::scope(|scope| {
            for (writer, at) in [&one.point, &two.point, &rig.export].into_iter().enumerate() {
                let mut random = Random::new(1 + burst * 3 + writer as u64);
                scope.spawn(move || {
                    for round in 0..20 {
                        // A file that another has just removed, or whose folder is being renamed over.
                        let change = random.change(round);
                        let mut command = Command::new("sh");
                        let output = command.args(["-c", &change]).current_dir(at).output();
                        output.expect("a shell");
                    }
                });
            }
            // Somebody looks on meanwhile, and keeps what he sees.
            (0..20).for_each(|_| drop((one.seen(), two.seen())));
        });
        for (name, mount) in [("one", &one), ("two", &two)] {
            let begun = Instant::now();
            loop {
                // What was written last may still be on its way.
                let (seen, is) = (mount.seen(), look(&rig.export));
                if seen == is {
                    break;
                }
                let late = begun.elapsed() > LIMIT;
                assert!(!late, "burst {burst}, {name} sees\n{seen}\nand there is\n{is}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

#[test]
fn a_client_that_stalls_does_not_hold_up_others() {
    let test = "a_client_that_stalls_does_not_hold_up_others";
    let Some(rig) = Rig::new(test, Way::Local) else { return };
    shell(&rig.export, "printf first >file");
    let toml = format!(
        "listen_keyless = [\"unix:@/socket\"]\n[export.vms]\nsource = \"{}\"\n",
        rig.export.display()
    );
    let mut proxy = Proxy::start(&rig.folder.join("proxy"), &toml);
    let source = format!("gridvfs+unix:{}/socket:/vms", proxy.folder.display());
    let stalled = Mount::of(&rig, "stalled", &source).heard();
    let one = Mount::of(&rig, "one", &source).heard();
    let (mut files, pid) = (0, stalled.status()["pid"].as_i64().expect("a pid") as i32);
    let mut change = || {
        files += 1;
        shell(&rig.export, &format!("printf {files} >file; touch new{files}"));
        let is = look(&rig.export);
        wait_to_see("a change", &one, &is);
    };
    stalled.seen();
    change();
    let stop = |signal| {
        // SAFETY: the process of this test's mount.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    };
    stop(libc::SIGSTOP);
    (0..20).for_each(|_| change());
    stop(libc::SIGCONT);
    let is = look(&rig.export);
    wait_to_see("the one that had stalled", &stalled, &is);
    drop((one, stalled));
    proxy.stop();
}
