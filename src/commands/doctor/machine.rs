//! What this machine has.

use std::fs;
use std::io::ErrorKind;
use std::net::ToSocketAddrs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use serde_json::json;

use super::Check;
use crate::directories;
use crate::options::Settings;
use crate::report::bytes_text;
use crate::source::Source;

/// Fewer open files than this are soon used up: each file in use takes one, and each cache some.
const OPEN_FILES_WANTED: u64 = 4096;
/// Less room than this is soon used up by a cache.
const ROOM_WANTED_BYTES: u64 = 1 << 30;
/// How long a server may take to answer a connection.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Looks at what every mount needs.
pub fn checks(settings: &Settings) -> Vec<Check> {
    let version = format!("gridvfs {} ({})", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let mut checks = vec![Check::ok("version", version), device(), fusermount()];
    checks.push(allow_other(settings.allow_other));
    checks.push(ssh(settings));
    checks.push(open_files());
    checks.extend(places());
    checks
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn device() -> Check {
    let name = "/dev/fuse";
    match fs::File::options().read(true).write(true).open(name) {
        Ok(_) => Check::ok("fuse", "/dev/fuse can be opened"),
        Err(error) if error.kind() == ErrorKind::NotFound => Check::fail(
            "fuse",
            "there is no /dev/fuse",
            "load it: sudo modprobe fuse (in a container: start it with --device /dev/fuse)",
        ),
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            let mode = fs::metadata(name).map_or(0, |meta| meta.permissions().mode() & 0o777);
            Check::fail(
                "fuse",
                format!("/dev/fuse (mode {mode:o}) may not be opened by this user"),
                "sudo chmod 666 /dev/fuse; for good: package fuse3's udev rule",
            )
        }
        Err(error) => Check::fail(
            "fuse",
            format!("/dev/fuse: {error}"),
            "is this a container? it needs --device /dev/fuse, and the host the module fuse",
        ),
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// What a program says of itself, on whichever stream.
fn version_of(program: &Path, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).trim().to_string();
    text.lines().next().map(String::from)
}

fn fusermount() -> Check {
    let Some(path) = in_path("fusermount3") else {
        return Check::fail(
            "fusermount3",
            "there is no fusermount3 in PATH",
            "install the package fuse3",
        );
    };
    let Some(version) = version_of(&path, "--version") else {
        let found = format!("{} cannot be run", path.display());
        return Check::fail("fusermount3", found, "install the package fuse3 anew");
    };
    let is_setuid = fs::metadata(&path).is_ok_and(|meta| meta.permissions().mode() & 0o4000 != 0);
    if !is_setuid && !is_root() {
        return Check::fail(
            "fusermount3",
            format!("{} is not setuid root: ordinary users cannot mount", path.display()),
            format!("sudo chmod u+s {}", path.display()),
        );
    }
    Check::ok("fusermount3", version)
}

fn allow_other(wanted: bool) -> Check {
    let name = "user_allow_other";
    let text = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    let given = text.lines().any(|line| line.trim() == name);
    let mend = "add a line user_allow_other to /etc/fuse.conf";
    match (given || is_root(), wanted) {
        (true, _) => Check::ok(name, "-o allow_other is possible"),
        (false, true) => Check::fail(name, "/etc/fuse.conf does not allow -o allow_other", mend),
        (false, false) => Check::ok(name, format!("not set: for -o allow_other, {mend}")),
    }
}

fn ssh(settings: &Settings) -> Check {
    let program = settings.ssh_command.first().map_or("ssh", String::as_str);
    let path = match program.contains('/') {
        true => Some(PathBuf::from(program)).filter(|path| path.is_file()),
        false => in_path(program),
    };
    match path.map(|path| version_of(&path, "-V")) {
        None => Check::fail("ssh", format!("there is no {program}"), "install openssh-client"),
        Some(None) => Check::warn("ssh", format!("{program} says no version"), "is it ssh?"),
        Some(Some(version)) => Check::ok("ssh", version),
    }
}

fn open_files() -> Check {
    let name = "open files";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) => {
            let found = format!("up to {hard} (a shell begins with {soft}; a mount raises it)");
            let figures = json!({"soft": soft, "hard": hard});
            match hard < OPEN_FILES_WANTED {
                true => Check::warn(
                    name,
                    found,
                    "raise it: a line `* hard nofile 65536` in /etc/security/limits.conf, or \
                     LimitNOFILE= of the unit",
                ),
                false => Check::ok(name, found),
            }
            .with(figures)
        }
        Err(error) => Check::warn(name, format!("the limit is unknown: {error}"), "ulimit -Hn"),
    }
}

fn places() -> Vec<Check> {
    let mut checks = Vec::new();
    for (name, place, mend) in [
        ("runtime files", directories::runtime(), "set XDG_RUNTIME_DIR to a directory of your own"),
        ("state files", directories::state(), "set XDG_STATE_HOME to a directory of your own"),
        ("cache", directories::cache(), "set XDG_CACHE_HOME, or mount with -o cache_dir="),
    ] {
        checks.push(match place {
            Ok(path) => room(name, &path, mend),
            Err(error) => Check::fail(name, format!("{error:#}"), mend),
        });
    }
    checks
}

fn room(name: &'static str, path: &Path, mend: &str) -> Check {
    // The nearest that is there.
    let there = path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    if let Err(error) = nix::unistd::access(there, nix::unistd::AccessFlags::W_OK) {
        return Check::fail(name, format!("{}: {}", path.display(), error.desc()), mend);
    }
    let Ok(stat) = nix::sys::statvfs::statvfs(there) else {
        return Check::ok(name, path.display().to_string());
    };
    let free = stat.blocks_available() * stat.fragment_size();
    let found = format!("{}: {} free", path.display(), bytes_text(free));
    match name == "cache" && free < ROOM_WANTED_BYTES {
        true => Check::warn(name, found, "gridvfs cache prune, -o cache_size=, or another disk"),
        false => Check::ok(name, found),
    }
    .with(json!({"free_bytes": free}))
}

/// Looks at a source that ssh has nothing to do with.
pub fn source_checks(source: &Source) -> Vec<Check> {
    let name = "source";
    let (address, port) = match source {
        Source::Local(path) => {
            return vec![match fs::read_dir(path) {
                Ok(_) => Check::ok(name, format!("{} can be read", path.display())),
                Err(error) => {
                    let found = format!("{}: {error}", path.display());
                    Check::fail(name, found, "give a directory that this user may read")
                }
            }];
        }
        Source::Unix { socket: path, .. } => {
            return vec![match std::os::unix::net::UnixStream::connect(path) {
                Ok(_) => Check::ok(name, format!("{} answers", path.display())),
                Err(error) => {
                    let found = format!("{}: {error}", path.display());
                    Check::fail(name, found, "is gridvfs proxy serve running there?")
                }
            }];
        }
        Source::Nfs { address, port, .. } => (address, port.unwrap_or(gridvfs_vfs::nfs3::PORT)),
        Source::Tcp { address, port, .. } => (address, *port),
        Source::Ssh { .. } => return Vec::new(),
    };
    let began = Instant::now();
    let connected = (address.as_str(), port).to_socket_addrs().and_then(|mut addresses| {
        let first = addresses.next().ok_or(std::io::Error::from(ErrorKind::NotFound))?;
        std::net::TcpStream::connect_timeout(&first, CONNECT_MAX)
    });
    vec![match connected {
        Ok(_) => {
            let ms = began.elapsed().as_secs_f64() * 1000.0;
            Check::ok(name, format!("{address} port {port} answers within {ms:.1} ms"))
        }
        Err(error) => Check::fail(
            name,
            format!("{address} port {port}: {error}"),
            "is the server running, and does no firewall stand between?",
        ),
    }]
}
