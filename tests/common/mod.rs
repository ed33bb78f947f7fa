//! What the end-to-end tests share: real servers, real mounts, and their orderly end.
//!
//! A [`Rig`] is an export, the servers in front of it and a mount of it, in one of the five ways
//! that the command offers. Everything is ended when it is dropped, in reverse order.

#![allow(dead_code)] // Each test binary uses a part of it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

use policies::Case;

pub mod policies;
pub mod proxies;

/// How a mount reaches its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `/path`, in process.
    Local,
    /// `HOST:/path`: ssh and the local directory of the proxy.
    Ssh,
    /// `HOST:/path -o nfs=`: ssh, the proxy's forwarder, NFS-Ganesha.
    Forward,
    /// `HOST:/path -o no_proxy`: ssh -W, NFS-Ganesha.
    NoProxy,
    /// `nfs://`: NFS-Ganesha by plain TCP.
    Nfs,
}

/// All ways.
pub const WAYS: [Way; 5] = [Way::Local, Way::Ssh, Way::Forward, Way::NoProxy, Way::Nfs];

impl Way {
    /// Says whether ssh is in it.
    pub fn needs_ssh(self) -> bool {
        matches!(self, Self::Ssh | Self::Forward | Self::NoProxy)
    }

    /// Says whether NFS-Ganesha is in it.
    pub fn needs_ganesha(self) -> bool {
        matches!(self, Self::Forward | Self::NoProxy | Self::Nfs)
    }
}

/// An export and a mount of it.
pub struct Rig {
    /// How it is reached.
    pub way: Way,
    /// The directory on the server's side.
    pub export: PathBuf,
    /// The mount point.
    pub mountpoint: PathBuf,
    /// Everything else: server folders, logs.
    pub folder: PathBuf,
    options: Vec<String>,
    user: Option<String>,
    mounted: bool,
    hands: Option<Hands>,
    link: Option<Link>,
    _temporary: tempfile::TempDir,
}

/// The command under test.
pub fn gridvfs() -> &'static str {
    env!("CARGO_BIN_EXE_gridvfs")
}

/// The emulator, which is built beside the command.
pub fn wan() -> PathBuf {
    Path::new(gridvfs()).with_file_name("gridvfs-wan")
}

/// An emulated link, ended when it is dropped.
pub struct Link {
    name: String,
    far_netns: String,
    far_address: String,
}

impl Link {
    /// Makes a link of 32 ms and 1 Gbit/s. `None`, and a word about it, where that cannot be.
    pub fn up(test: &str) -> Option<Self> {
        if !is_root() || !Path::new("/dev/net/tun").exists() {
            skipped(test, "needs root and /dev/net/tun (network namespaces)");
            return None;
        }
        if !wan().exists() {
            skipped(test, "needs gridvfs-wan (cargo build --workspace --bins)");
            return None;
        }
        let name = format!("{test:.40}-{}", std::process::id());
        let output = run(Command::new(wan()).args(["up", "--json", "--name", &name]));
        let state: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let text = |value: &serde_json::Value| value.as_str().expect("text").to_string();
        Some(Self {
            name,
            far_netns: text(&state["b"]["netns"]),
            far_address: text(&state["b"]["address"]),
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = Command::new(wan()).args(["down", &self.name]).output();
    }
}

/// Says visibly that a test cannot run here.
pub fn skipped(test: &str, reason: &str) {
    println!("SKIPPED: {test}: {reason}");
}

/// Says whether this process is root.
pub fn is_root() -> bool {
    // SAFETY: no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// Says whether a program is installed.
pub fn installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').any(|directory| Path::new(directory).join(program).exists())
}

/// Returns why a way cannot be taken on this machine.
pub fn impossible(way: Way) -> Option<String> {
    if !installed("fusermount3") || !Path::new("/dev/fuse").exists() {
        return Some("needs FUSE (fusermount3 and /dev/fuse)".into());
    }
    if std::fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        return Some("may not open /dev/fuse".into());
    }
    if way.needs_ssh() && !installed("sshd") {
        return Some("needs sshd".into());
    }
    if way.needs_ganesha() && !is_root() {
        return Some("needs root (NFS-Ganesha)".into());
    }
    if way.needs_ganesha() && !installed("ganesha.nfsd") {
        return Some("needs nfs-ganesha".into());
    }
    None
}

/// Runs a command and returns its output; a failure is a panic with what it printed.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    output
}

/// Runs a shell script in a directory; a failure is a panic with what it printed.
pub fn shell(directory: &Path, script: &str) -> String {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]).current_dir(directory);
    command.stdin(Stdio::null());
    String::from_utf8_lossy(&run(&mut command).stdout).into_owned()
}

fn support(script: &str) -> Command {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(script);
    let mut command = Command::new(path);
    command.stdin(Stdio::null());
    command
}

/// A process that runs scripts for a test which has files open on the mount.
///
/// Starting a program closes the copies of one's files in the new process. Closing writes back, so
/// while the server is gone it waits: who has such files open cannot start the server again.
struct Hands(Mutex<(Child, BufReader<ChildStdout>)>);

impl Hands {
    fn new() -> Self {
        let script = "while IFS= read -r line; do \
                      if (eval \"$line\") </dev/null >&2; then echo ok; else echo failed; fi; done";
        let mut child = Command::new("bash")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        Self(Mutex::new((child, output)))
    }

    fn run(&self, script: &str) {
        let (child, output) = &mut *self.0.lock().expect("no panic before");
        writeln!(child.stdin.as_mut().expect("its input"), "{script}").expect("it lives");
        let mut line = String::new();
        output.read_line(&mut line).expect("it answers");
        assert_eq!(line, "ok\n", "{script}");
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        let (child, _) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(child.stdin.take());
        let _ = child.wait();
    }
}

impl Rig {
    /// Makes an export with its servers, and mounts it. `None`, and a word about it, where that
    /// cannot be.
    pub fn mounted(test: &str, way: Way) -> Option<Self> {
        Self::mounted_with(test, way, &[])
    }

    /// The same with `-o` options.
    pub fn mounted_with(test: &str, way: Way, options: &[&str]) -> Option<Self> {
        let mut rig = Self::new(test, way)?;
        rig.options = options.iter().map(|option| option.to_string()).collect();
        rig.mount();
        Some(rig)
    }

    /// The same with the disk cache of a case.
    pub fn mounted_under(test: &str, case: Case) -> Option<Self> {
        let mut rig = Self::new(test, case.way)?;
        rig.options = case.options();
        rig.mount();
        Some(rig)
    }

    /// The same for an ordinary user, made for the tests.
    pub fn mounted_as_user(test: &str, case: Case) -> Option<Self> {
        if !is_root() {
            // This very process is an ordinary user's.
            return Self::mounted_under(test, case);
        }
        let way = case.way;
        let user = "gridvfs-test";
        if !Command::new("id").arg(user).output().is_ok_and(|output| output.status.success()) {
            let mut command = Command::new("useradd");
            command.args(["--system", "--create-home", "--shell", "/bin/bash", user]);
            if !command.output().is_ok_and(|output| output.status.success()) {
                skipped(test, "cannot make a user for it");
                return None;
            }
        }
        // What fuse3's udev rule does where udev runs.
        let _ = Command::new("chmod").args(["666", "/dev/fuse"]).status();
        let mut rig = Self::prepare(test, way, Some(user.into()), None)?;
        rig.options = case.options();
        rig.mount();
        Some(rig)
    }

    /// The same with the servers at the far end of an emulated link.
    pub fn mounted_over(
        test: &str,
        way: Way,
        link: Option<Link>,
        options: &[&str],
    ) -> Option<Self> {
        let mut rig = Self::prepare(test, way, None, Some(link?))?;
        rig.set_options(options);
        rig.mount();
        Some(rig)
    }

    /// Makes an export with its servers, without a mount.
    pub fn new(test: &str, way: Way) -> Option<Self> {
        Self::prepare(test, way, None, None)
    }

    fn prepare(test: &str, way: Way, user: Option<String>, link: Option<Link>) -> Option<Self> {
        if let Some(reason) = impossible(way) {
            skipped(&format!("{test} ({way:?})"), &reason);
            return None;
        }
        let temporary = tempfile::Builder::new().prefix("gridvfs-").tempdir().expect("folder");
        let folder = temporary.path().canonicalize().expect("folder");
        shell(&folder, "chmod 755 . && mkdir export mnt state");
        let (export, mountpoint) = (folder.join("export"), folder.join("mnt"));
        if let Some(user) = &user {
            shell(&folder, &format!("chown {user} export mnt state"));
        }
        let rig = Self {
            way,
            export,
            mountpoint,
            folder,
            options: Vec::new(),
            user,
            mounted: false,
            hands: None,
            link,
            _temporary: temporary,
        };
        if way.needs_ganesha() {
            rig.ganesha("start");
        }
        if way.needs_ssh() {
            rig.sshd("start");
        }
        Some(rig)
    }

    /// Starts, stops or kills NFS-Ganesha.
    pub fn ganesha(&self, verb: &str) {
        let mut words =
            vec![format!("ganesha.sh {verb} '{}'", self.folder.join("ganesha").display())];
        if verb == "start" {
            words.push(format!("'{}'", self.export.display()));
        }
        self.support(&words.join(" "));
    }

    /// Starts or stops sshd.
    pub fn sshd(&self, verb: &str) {
        let mut words = vec![format!("sshd.sh {verb} '{}'", self.folder.join("sshd").display())];
        if verb == "start" {
            if let Ok(port) = std::fs::read_to_string(self.folder.join("sshd/port")) {
                words.push(format!("--port {}", port.trim()));
            }
            if let Some(user) = &self.user {
                words.push(format!("--user {user}"));
            }
            if let Some(link) = &self.link {
                words.push(format!("--netns {} --listen {}", link.far_netns, link.far_address));
            }
        }
        self.support(&words.join(" "));
    }

    fn support(&self, command: &str) {
        let script = format!("'{}'/tests/support/{command}", env!("CARGO_MANIFEST_DIR"));
        match &self.hands {
            Some(hands) => hands.run(&script),
            None => drop(shell(&self.folder, &script)),
        }
    }

    /// From now on servers are started and stopped by a process without files on the mount.
    pub fn let_others_start_servers(&mut self) {
        self.hands = Some(Hands::new());
    }

    /// Reads a port number that a server's script has left.
    pub fn port(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.folder.join(name)).expect(name);
        text.trim().to_string()
    }

    /// The SOURCE argument.
    pub fn source(&self) -> String {
        let export = self.export.display();
        match self.way {
            Way::Local => export.to_string(),
            Way::Ssh | Way::Forward | Way::NoProxy => format!("gvhost:{export}"),
            Way::Nfs => format!("nfs://127.0.0.1:{}{export}", self.port("ganesha/port")),
        }
    }

    /// A command that runs as the rig's user, with state, cache and configuration directories of the
    /// rig's own.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.bare_command(program);
        command.env("XDG_STATE_HOME", self.folder.join("state"));
        command.env("XDG_CACHE_HOME", self.folder.join("state/cache"));
        command.env("XDG_CONFIG_HOME", self.folder.join("config"));
        command
    }

    fn bare_command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = match &self.user {
            Some(user) => {
                let mut command = Command::new("runuser");
                command.args(["-u", user, "--"]).arg(program);
                command.env_remove("XDG_RUNTIME_DIR");
                command
            }
            None => Command::new(program),
        };
        command.stdin(Stdio::null());
        command
    }

    /// The `gridvfs mount` command, not yet run.
    pub fn mount_command(&self) -> Command {
        let mut command = match &self.link {
            Some(link) => {
                let mut command = self.command(wan());
                command.args(["exec", &link.name, "a", "--", gridvfs()]);
                command
            }
            None => self.command(gridvfs()),
        };
        command.arg("mount").arg(self.source()).arg(&self.mountpoint);
        for option in &self.options {
            command.args(["-o", option]);
        }
        if self.way.needs_ssh() {
            let config = self.folder.join("sshd/ssh_config");
            let state = self.folder.join("state");
            let program = format!("env XDG_STATE_HOME={} {}", state.display(), gridvfs());
            command.arg("-F").arg(config).args(["-o", &format!("gridvfs_command={program}")]);
        }
        match self.way {
            Way::Forward => {
                let port = self.port("ganesha/port");
                command.args(["-o", &format!("nfs=127.0.0.1:{port}")]);
            }
            Way::NoProxy => {
                let port = self.port("ganesha/port");
                command.args(["-o", &format!("no_proxy,nfs=127.0.0.1:{port}")]);
            }
            _ => {}
        }
        if self.way.needs_ganesha() {
            let port = self.port("ganesha/mount_port");
            command.args(["-o", &format!("mountport={port}")]);
        }
        command
    }

    /// Mounts.
    pub fn mount(&mut self) {
        run(&mut self.mount_command());
        self.mounted = true;
    }

    /// Notes that a test has mounted by itself.
    pub fn is_mounted(&mut self) {
        self.mounted = true;
    }

    /// Mounts the same once more, elsewhere.
    pub fn mount_also(&self, mountpoint: &Path, options: &[&str]) -> Command {
        let command = self.mount_command();
        let first = self.mountpoint.as_os_str();
        let arguments = command.get_args().map(|word| match word == first {
            true => mountpoint.as_os_str().to_owned(),
            false => word.to_owned(),
        });
        let mut also = self.command(gridvfs());
        also.args(arguments);
        for option in options {
            also.args(["-o", option]);
        }
        also
    }

    /// Replaces the options of the mounts to come.
    pub fn set_options(&mut self, options: &[&str]) {
        self.options = options.iter().map(|option| option.to_string()).collect();
    }

    /// Unmounts, which writes back.
    pub fn umount(&mut self) {
        self.mounted = false;
        run(self.command(gridvfs()).arg("umount").arg(&self.mountpoint));
    }

    /// Has everything that was written sent.
    pub fn write_back(&self) {
        run(self.command(gridvfs()).arg("writeback").arg(&self.mountpoint));
    }

    /// Cuts or restores the link.
    pub fn link(&self, verb: &str) {
        let link = self.link.as_ref().expect("a link");
        run(Command::new(wan()).args([verb, &link.name]));
    }

    /// The state that `gridvfs status --json` prints.
    pub fn status(&self) -> serde_json::Value {
        let mut command = self.command(gridvfs());
        let output = run(command.arg("status").arg(&self.mountpoint).arg("--json"));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The mount process.
    pub fn pid(&self) -> i32 {
        self.status()["pid"].as_i64().expect("a pid") as i32
    }

    /// The ssh processes of the mount.
    pub fn ssh_pids(&self, mount: i32) -> Vec<i32> {
        let children = format!("/proc/{mount}/task");
        let Ok(tasks) = std::fs::read_dir(children) else { return Vec::new() };
        tasks
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok())
            .flat_map(|list| list.split_whitespace().map(str::to_string).collect::<Vec<_>>())
            .filter_map(|pid| pid.parse().ok())
            .collect()
    }

    /// Runs a shell script in the mount as the rig's user.
    pub fn shell(&self, script: &str) -> String {
        // The user's own shell goes there: nobody else may enter.
        let script = format!("cd {}; {script}", self.mountpoint.display());
        let mut command = self.command("bash");
        command.args(["-euo", "pipefail", "-c", &script]).current_dir("/");
        String::from_utf8_lossy(&run(&mut command).stdout).into_owned()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What the servers and the mount have to say about it.
            let log = "tail -n 40 */*.log state/gridvfs/*.log 2>/dev/null || true";
            let _ = Command::new("bash").args(["-c", log]).current_dir(&self.folder).status();
        }
        if self.mounted {
            let mut command = self.command("timeout");
            command.args(["60", gridvfs(), "umount"]).arg(&self.mountpoint);
            let _ = command.output();
        }
        let _ = Command::new("fusermount3").args(["-u", "-z", "-q"]).arg(&self.mountpoint).output();
        if self.way.needs_ssh() {
            let _ = support("sshd.sh").arg("stop").arg(self.folder.join("sshd")).output();
        }
        if self.way.needs_ganesha() {
            let _ = support("ganesha.sh").arg("kill").arg(self.folder.join("ganesha")).output();
        }
    }
}
