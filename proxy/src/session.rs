//! A session on the state server: a daemon that owns it, and the commands that bring it channels.
//!
//! `gridvfs proxy stdio`, run over ssh, starts the daemon and hands it its own standard input and
//! output; `gridvfs proxy attach` hands over a further channel. Both then only wait: no process
//! copies bytes between sshd and the daemon, and the session outlives any of them. The daemon makes
//! the session key, which is in no argument list, environment or file, and ends when it has had no
//! channel for the linger time.

mod daemon;
mod handover;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gridvfs_upstream::greeting::Greeting;
use serde::{Deserialize, Serialize};

use crate::backend::ExportConfig;

pub use daemon::run_daemon;

/// What a session's daemon is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionConfig {
    /// What it serves.
    pub export: ExportConfig,
    /// For how many seconds it outlives its last channel.
    pub linger_seconds: u32,
    /// The private directory (mode 0700) of its socket.
    pub runtime_dir: PathBuf,
}

/// The daemon's first word: whether the session stands.
#[derive(Serialize, Deserialize)]
struct Started {
    greeting: Option<Greeting>,
}

/// The longest line between the processes, in bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;

fn socket_path(runtime_dir: &Path, session: &str) -> PathBuf {
    runtime_dir.join(format!("proxy-{session}.sock"))
}

fn is_socket_name(name: &str) -> bool {
    name.starts_with("proxy-") && name.ends_with(".sock")
}

/// Starts a session's daemon with `program`, the command itself, and hands over standard input and
/// output as its first channel. Returns when that channel has ended, or the greeting's refusal has
/// been written.
pub fn run_stdio(config: &SessionConfig, program: &Path, log: &Path) -> std::io::Result<bool> {
    let (ours, theirs) = UnixStream::pair()?;
    let log = std::fs::File::options().create(true).append(true).open(log);
    let mut command = Command::new(program);
    command.args(["proxy", "daemon"]).current_dir("/");
    command.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    command.stdout(Stdio::null()).stderr(log.map_or(Stdio::null(), Stdio::from));
    // SAFETY: setsid is async-signal-safe, and nothing else is done between fork and exec.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(std::io::Error::from));
    }
    let mut child = command.spawn()?;
    drop(command);
    // The daemon outlives us; should it end before, it is reaped.
    std::thread::spawn(move || child.wait());
    let mut line = serde_json::to_vec(config)?;
    line.push(b'\n');
    (&ours).write_all(&line)?;
    let mut answer = String::new();
    let mut reader = BufReader::new(std::io::Read::take(&ours, LINE_BYTES_MAX));
    reader.read_line(&mut answer)?;
    let refusal = match serde_json::from_str::<Started>(&answer) {
        Ok(Started { greeting: None }) => None,
        Ok(Started { greeting: Some(refusal) }) => Some(refusal),
        Err(_) => {
            let message = "the proxy's daemon ended while it started (see its log)";
            Some(Greeting::refusal("internal", message.into()))
        }
    };
    if let Some(refusal) = refusal {
        std::io::stdout().write_all(refusal.to_line().as_bytes())?;
        return Ok(false);
    }
    handover::hand_over_and_wait(&ours)?;
    Ok(true)
}

/// Hands over standard input and output as a further channel of a session. Returns when the channel
/// has ended, or the greeting's refusal has been written.
pub fn run_attach(runtime_dir: &Path, session: &str) -> std::io::Result<bool> {
    let plain = !session.is_empty() && session.bytes().all(|byte| byte.is_ascii_hexdigit());
    let socket = plain.then(|| UnixStream::connect(socket_path(runtime_dir, session)));
    let Some(Ok(socket)) = socket else {
        let refusal = Greeting::refusal("no-such-session", format!("no session {session} here"));
        std::io::stdout().write_all(refusal.to_line().as_bytes())?;
        return Ok(false);
    };
    handover::hand_over_and_wait(&socket)?;
    Ok(true)
}
