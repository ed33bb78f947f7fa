//! Why an `ssh` ended before a channel stood, read from its exit status and standard error.

use crate::ConnectError;

use super::SshHost;
use super::proxy::Lack;

/// How an `ssh` ended.
#[derive(Debug)]
pub(super) struct SshFailure {
    /// The exit status; `None` when it was killed or still runs.
    pub status: Option<i32>,
    /// The last lines of standard error.
    pub stderr: Vec<String>,
    /// The first bytes of standard output, where a greeting was expected.
    pub stdout: String,
}

/// ssh's exit status for failures of its own.
const SSH_FAILED: i32 = 255;
/// The shell's exit status for a command that is not there.
const COMMAND_NOT_FOUND: i32 = 127;

impl SshFailure {
    fn says(&self, phrase: &str) -> bool {
        self.stderr.iter().any(|line| line.contains(phrase))
    }

    /// Returns what was said last.
    pub fn last_words(&self) -> String {
        match (self.stderr.last(), self.status) {
            (Some(line), _) => line.clone(),
            (None, Some(status)) => format!("it ended with status {status} and said nothing"),
            (None, None) => "it was ended".into(),
        }
    }

    /// Says whether asking the user, or another way to log in, could help.
    pub fn is_authentication(&self) -> bool {
        self.status == Some(SSH_FAILED)
            && !self.host_key_changed()
            && (self.says("Permission denied")
                || self.says("Host key verification failed")
                || self.says("Too many authentication failures")
                || self.says("No more authentication methods"))
    }

    /// Says what of ours the host lacks, if that is what it died of.
    pub fn lack(&self) -> Option<Lack> {
        match self.status? {
            SSH_FAILED => None,
            COMMAND_NOT_FOUND => Some(Lack::Program),
            // It did run, and did not understand what it was told.
            _ if self.says("rror: ") || self.says("unrecognized") => Some(Lack::Version),
            _ => None,
        }
    }

    fn host_key_changed(&self) -> bool {
        self.says("HOST IDENTIFICATION HAS CHANGED")
            || self.says("REVOKED HOST KEY")
            || self.says("differs from the key for the IP address")
    }

    /// Turns it into words: what, why, and what to do next.
    pub fn into_connect_error(self, host: &SshHost, what: &str) -> ConnectError {
        let name = host.destination();
        let last = self.stderr.last().map_or("it said nothing", String::as_str);
        if self.host_key_changed() {
            return ConnectError::Fatal(format!(
                "the host key of {name} is not the one in known_hosts: somebody may be in between, \
                 or the host was installed anew (if so: ssh-keygen -R {name})"
            ));
        }
        if self.says("Host key verification failed") {
            return ConnectError::Fatal(format!(
                "the host key of {name} is not known here: log in once with ssh {name} to accept it"
            ));
        }
        if self.is_authentication() {
            return ConnectError::Fatal(format!("{name} refuses the login: {last}"));
        }
        if self.says("Could not resolve hostname") {
            return ConnectError::Fatal(format!("no such host: {name} ({last})"));
        }
        if self.says("administratively prohibited") {
            return ConnectError::Fatal(format!(
                "{name} does not allow forwarding to {what} (AllowTcpForwarding in its sshd_config)"
            ));
        }
        if self.says("open failed: connect failed") || self.says("stdio forwarding failed") {
            return ConnectError::Transient(format!("nothing answers at {what} on {name}: {last}"));
        }
        match self.status {
            Some(SSH_FAILED) => ConnectError::Transient(format!("ssh to {name}: {last}")),
            Some(COMMAND_NOT_FOUND) => ConnectError::Fatal(format!(
                "there is no gridvfs on {name}: install it there, or say where it is with \
                 -o gridvfs_command=PATH, or use -o no_proxy to reach an NFS server on it"
            )),
            Some(status) if !self.stdout.trim().is_empty() => ConnectError::Fatal(format!(
                "no greeting from gridvfs on {name} (status {status}): its shell start-up files \
                 print {:?} where nothing may be printed; {last}",
                self.stdout.chars().take(80).collect::<String>()
            )),
            Some(status) => ConnectError::Fatal(format!(
                "gridvfs on {name} ended with status {status}: {last} (is it another version?)"
            )),
            None => ConnectError::Transient(format!("ssh to {name} was ended: {last}")),
        }
    }
}
