//! Channels over the system's `ssh`, run as child processes, so that host keys, aliases, agents,
//! ProxyJump and second factors are exactly as the user has them.
//!
//! [`SshProxyConnector`] runs `gridvfs proxy` on the host and attaches every stripe to the same
//! session there. [`SshForwardConnector`] reaches an NFS server by `ssh -W`, with nothing of ours
//! on the host. OpenSSH grants a channel at most 2 MiB of window, that is 62 MB/s at 32 ms, so a
//! session uses several processes, each with a TCP connection of its own.
//!
//! Nothing is read from the environment and nothing is printed: what `ssh` says goes to the
//! caller's [`SshSettings::on_message`].

mod child;
mod failure;
mod proxy;
pub mod rate;
mod remote;
mod script;
mod stream;

pub use proxy::{Lack, RemoteExport, SshProxyConnector};
pub use script::{Script, ScriptOutput};
pub use stream::{Coding, RemoteStream, StreamError};

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::{Channel, ConnectError, Connector, Terms};
use child::SshChild;

/// The most lines of ssh that are shown while it logs in.
const SAID_MAX: usize = 1000;

/// How long a shared login may take to end.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// What is done with a line that `ssh` or the host's shell writes to standard error.
pub type MessageSink = Arc<dyn Fn(&str) + Send + Sync>;

/// How to run `ssh`.
#[derive(Clone)]
pub struct SshSettings {
    /// The command and its first arguments, such as `ssh -F FILE`.
    pub command: Vec<String>,
    /// `[USER@]HOST`, given to ssh as it is.
    pub destination: String,
    /// A directory of the user's own (mode 0700), for the control socket that shares one
    /// authentication among the stripes where the user has to type something.
    pub private_dir: PathBuf,
    /// Whether there is a terminal or an askpass program for ssh to ask the user.
    pub may_prompt: bool,
    /// Receives each line of standard error.
    pub on_message: MessageSink,
}

/// How the next `ssh` logs in. Each step of the ladder asks more of the user's patience.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Login {
    /// Without asking, on a TCP connection of its own for each stripe.
    Own = 0,
    /// Without asking, over a master connection that the user's configuration may name.
    UserMaster = 1,
    /// The first ssh asks and becomes master; the other stripes are channels of it. Each channel
    /// has its own window, so the rate is kept, but one TCP connection carries all.
    OwnMaster = 2,
}

/// What several connectors to one host share: settings, and the way to log in that works.
pub struct SshHost {
    settings: SshSettings,
    login: AtomicU8,
    /// Prompts are possible until the command has gone to the background.
    prompting: AtomicBool,
    /// What has been said until then: each way to log in may say the same.
    said: Mutex<Option<HashSet<String>>>,
}

impl SshHost {
    /// Makes the host's record. Nothing is run yet.
    pub fn new(settings: SshSettings) -> Arc<Self> {
        let prompting = AtomicBool::new(settings.may_prompt);
        let said = Mutex::new(Some(HashSet::new()));
        Arc::new(Self { settings, login: AtomicU8::new(Login::Own as u8), prompting, said })
    }

    /// From now on no ssh may ask the user anything: the terminal is given back.
    pub fn stop_prompting(&self) {
        self.prompting.store(false, Ordering::Relaxed);
        *self.said.lock() = None;
    }

    /// Returns the host's name as the user wrote it.
    pub fn destination(&self) -> &str {
        &self.settings.destination
    }

    fn login(&self) -> Login {
        match self.login.load(Ordering::Relaxed) {
            0 => Login::Own,
            1 => Login::UserMaster,
            _ => Login::OwnMaster,
        }
    }

    /// Says whether the command is a program of the user's that runs ssh, such as sshpass: it may
    /// have answers of its own, so it is never told to ask for none.
    fn is_wrapped(&self) -> bool {
        let program = self.settings.command.first().map(std::path::Path::new);
        program.and_then(std::path::Path::file_name).is_some_and(|name| name != "ssh")
    }

    /// Says whether an ssh that logs in this way may ask the user on the terminal.
    fn asks(&self, login: Login, first: bool) -> bool {
        login == Login::OwnMaster && first && self.prompting.load(Ordering::Relaxed)
    }

    /// Says whether a line of ssh is worth showing: not that a login was refused when the next one
    /// asks the user, and not the same again.
    fn is_news(&self, login: Login, line: &str) -> bool {
        let goes_on = login != Login::OwnMaster && self.may_ask();
        if goes_on && line.contains("Permission denied") {
            return false;
        }
        let mut said = self.said.lock();
        said.as_mut().is_none_or(|said| said.len() < SAID_MAX && said.insert(line.into()))
    }

    fn may_ask(&self) -> bool {
        self.is_wrapped() || self.prompting.load(Ordering::Relaxed)
    }

    fn control_path(&self) -> PathBuf {
        self.settings.private_dir.join(format!("ssh-{}", std::process::id()))
    }

    /// Goes to the next way to log in; `false` when there is none left.
    fn next_login(&self, failed: Login) -> bool {
        let next = match failed {
            Login::Own => Login::UserMaster,
            Login::UserMaster if self.may_ask() => Login::OwnMaster,
            _ => {
                self.login.store(Login::Own as u8, Ordering::Relaxed);
                return false;
            }
        };
        self.login.store(next as u8, Ordering::Relaxed);
        true
    }

    /// Returns the arguments of `ssh` before the destination.
    fn login_arguments(&self, login: Login, first: bool) -> Vec<String> {
        let control_path = format!("ControlPath={}", self.control_path().display());
        let options: Vec<String> = match login {
            Login::Own => {
                vec!["BatchMode=yes".into(), "ControlMaster=no".into(), "ControlPath=none".into()]
            }
            // One that is there is used; one that we began would outlive the mount.
            Login::UserMaster => vec!["BatchMode=yes".into(), "ControlMaster=no".into()],
            Login::OwnMaster if self.is_wrapped() => {
                vec!["ControlMaster=auto".into(), "ControlPersist=no".into(), control_path]
            }
            Login::OwnMaster if self.asks(login, first) => {
                vec!["ControlMaster=yes".into(), "ControlPersist=no".into(), control_path]
            }
            Login::OwnMaster => {
                vec!["BatchMode=yes".into(), "ControlMaster=no".into(), control_path]
            }
        };
        options.into_iter().flat_map(|option| ["-o".into(), option]).collect()
    }
}

impl Drop for SshHost {
    /// Ends the login that the stripes have shared. It ends by itself with the last of them, unless
    /// its network hangs, or ssh is run by a program that was killed in its stead.
    fn drop(&mut self) {
        let path = self.control_path();
        if !path.exists() {
            return;
        }
        if let Some((program, arguments)) = self.settings.command.split_first() {
            let mut command = std::process::Command::new(program);
            command.args(arguments).args(["-O", "exit", "-o"]);
            command.arg(format!("ControlPath={}", path.display()));
            command.arg("--").arg(&self.settings.destination);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            // It asks a process of this machine; a timeout guards against one that was stopped.
            if let Ok(mut child) = command.spawn() {
                let began = Instant::now();
                while began.elapsed() < FAREWELL_MAX && matches!(child.try_wait(), Ok(None)) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        // A master that was killed leaves its socket.
        let _ = std::fs::remove_file(path);
    }
}

/// Reaches a TCP port as the host sees it, by `ssh -W`.
pub struct SshForwardConnector {
    host: Arc<SshHost>,
    /// `ADDR:PORT`, as the host sees it.
    target: String,
}

impl SshForwardConnector {
    /// Makes a connector to `address`:`port` as the host sees them.
    pub fn new(host: Arc<SshHost>, address: &str, port: u16) -> Self {
        let bracketed = address.contains(':') && !address.starts_with('[');
        let target =
            if bracketed { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
        Self { host, target }
    }
}

#[async_trait]
impl Connector for SshForwardConnector {
    async fn connect(&self, stripe: usize) -> Result<Channel, ConnectError> {
        loop {
            let login = self.host.login();
            let forward = ["-W".to_string(), self.target.clone()];
            let mut child = SshChild::spawn(&self.host, login, stripe == 0, &forward, &[])?;
            // ssh -W says nothing when it is connected: a NULL call tells, or its end.
            match child.probe_rpc().await {
                Ok(()) => {}
                Err(failure) if failure.is_authentication() && self.host.next_login(login) => {
                    continue;
                }
                Err(failure) => return Err(failure.into_connect_error(&self.host, &self.target)),
            }
            let (reader, writer, guard) = child.into_parts();
            let terms = Terms::plain();
            return Ok(Channel { reader, writer, terms, guard });
        }
    }

    fn describe(&self) -> String {
        format!("{} by ssh -W to {}", self.target, self.host.destination())
    }
}
