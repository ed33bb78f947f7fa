//! One `ssh` process: a socket pair as its standard input and output, its standard error read line
//! by line.

use std::any::Any;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::process::{Child, Command};

use gridvfs_vfs::nfs3;
use gridvfs_vfs::rpc::{CallHeader, OpaqueAuth, record_mark};
use gridvfs_vfs::xdr::{Encoder, Xdr};

use crate::ConnectError;
use crate::greeting::{GREETING_MAGIC, Greeting};

use super::failure::SshFailure;
use super::{Login, SshHost};

/// How many lines of standard error are kept to tell why a connection failed.
const STDERR_LINES_KEPT: usize = 20;
/// How much a host's shell start-up may print before the greeting, in bytes.
const NOISE_BYTES_MAX: usize = 64 << 10;
/// How long a login that asks nobody may take, greeting included. Beyond it the host counts as
/// unreachable: TCP's own limit is over two minutes.
const BATCH_LOGIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a login may take where the user types.
const PROMPT_LOGIN_TIMEOUT: Duration = Duration::from_secs(600);
/// How long an ssh whose channel has ended may take to say why.
const EXIT_GRACE: Duration = Duration::from_secs(3);

type BoxedReader = Box<dyn AsyncRead + Send + Unpin>;
type BoxedWriter = Box<dyn AsyncWrite + Send + Unpin>;

/// A running `ssh`, killed when dropped.
pub(super) struct SshChild {
    process: SshProcess,
    stream: UnixStream,
    /// Bytes that were read behind the greeting.
    early: Vec<u8>,
    /// How many were read in front of it.
    noise_bytes: usize,
    login_timeout: Duration,
}

/// The process of an `ssh` and what it says, without its channel. Killed when dropped.
pub(super) struct SshProcess {
    child: Child,
    stderr: Arc<Mutex<VecDeque<String>>>,
    stderr_reader: tokio::task::JoinHandle<()>,
}

impl SshChild {
    /// Starts `ssh OPTIONS DESTINATION REMOTE`.
    pub fn spawn(
        host: &Arc<SshHost>,
        login: Login,
        first: bool,
        options: &[String],
        remote: &[String],
    ) -> Result<Self, ConnectError> {
        let settings = &host.settings;
        let fault = |error: std::io::Error| ConnectError::Transient(format!("ssh: {error}"));
        let (near, far) = std::os::unix::net::UnixStream::pair().map_err(fault)?;
        near.set_nonblocking(true).map_err(fault)?;
        let far = OwnedFd::from(far);
        let Some((program, first_arguments)) = settings.command.split_first() else {
            return Err(ConnectError::Fatal("the ssh command is empty".into()));
        };
        let mut command = Command::new(program);
        command.args(first_arguments);
        command.args(host.login_arguments(login, first));
        // What a user's configuration may add to logins and would get in the way of a channel.
        command.args(["-T", "-o", "ClearAllForwardings=yes", "-o", "PermitLocalCommand=no"]);
        command.args(["-o", "RemoteCommand=none", "-o", "ForwardX11=no"]);
        command.args(options).arg("--").arg(&settings.destination).args(remote);
        command.stdin(Stdio::from(far.try_clone().map_err(fault)?));
        command.stdout(Stdio::from(far));
        command.stderr(Stdio::piped()).kill_on_drop(true);
        let asks = host.asks(login, first);
        // SAFETY: both calls may be made between fork and exec.
        unsafe {
            command.pre_exec(move || {
                if asks {
                    // The terminal is needed for the question. That it is closed later is no
                    // reason to end: ssh keeps this signal ignored.
                    libc::signal(libc::SIGHUP, libc::SIG_IGN);
                } else {
                    // Neither asks on a terminal nor gets its signals.
                    libc::setsid();
                }
                Ok(())
            });
        }
        let mut child = command.spawn().map_err(|error| {
            ConnectError::Fatal(format!("cannot run {program}: {error} (is it installed?)"))
        })?;
        drop(command); // It holds the far end of the socket pair: EOF must be seen.
        let stderr = Arc::new(Mutex::new(VecDeque::new()));
        let reader = child.stderr.take();
        let (sink, kept) = (settings.on_message.clone(), stderr.clone());
        let host_of_lines = host.clone();
        let stderr_reader = tokio::spawn(async move {
            let Some(reader) = reader else { return };
            let mut reader = BufReader::new(reader);
            let mut line = Vec::new();
            while let Ok(1..) = (&mut reader).take(4096).read_until(b'\n', &mut line).await {
                let text = String::from_utf8_lossy(&line).trim_end().to_string();
                line.clear();
                if text.is_empty() {
                    continue;
                }
                if host_of_lines.is_news(login, &text) {
                    sink(&text);
                }
                let mut kept = kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                kept.push_back(text);
                if kept.len() > STDERR_LINES_KEPT {
                    kept.pop_front();
                }
            }
        });
        let login_timeout = if asks { PROMPT_LOGIN_TIMEOUT } else { BATCH_LOGIN_TIMEOUT };
        let stream = UnixStream::from_std(near).map_err(fault)?;
        let process = SshProcess { child, stderr, stderr_reader };
        Ok(Self { process, stream, early: Vec::new(), noise_bytes: 0, login_timeout })
    }

    /// Waits for the proxy's greeting. Noise in front of it is passed over.
    pub async fn greeting(&mut self) -> Result<Greeting, SshFailure> {
        self.first_words(find_greeting).await
    }

    /// Waits for a line of its own that the command begins with. Noise in front of it is passed
    /// over.
    pub async fn mark(&mut self, line: &str) -> Result<(), SshFailure> {
        self.first_words(|received| find_mark(received, line.as_bytes())).await
    }

    /// Waits until `find` finds what it looks for in what has come; the rest is kept.
    async fn first_words<T>(
        &mut self,
        find: impl Fn(&[u8]) -> Option<(T, Vec<u8>)>,
    ) -> Result<T, SshFailure> {
        let mut received = Vec::new();
        let limit = tokio::time::sleep(self.login_timeout);
        tokio::pin!(limit);
        loop {
            if let Some((found, rest)) = find(&received) {
                let line = received[..received.len() - rest.len()].strip_suffix(b"\n");
                let line_start = line.and_then(|line| line.iter().rposition(|b| *b == b'\n'));
                self.noise_bytes = line_start.map_or(0, |at| at + 1);
                self.early = rest;
                return Ok(found);
            }
            if received.len() > NOISE_BYTES_MAX {
                return Err(self.process.failure(received).await);
            }
            let read = tokio::select! {
                read = self.stream.read_buf(&mut received) => read,
                () = &mut limit => {
                    let _ = self.process.child.start_kill();
                    let mut failure = self.process.failure(received).await;
                    failure.stderr.push("no answer in time".into());
                    return Err(failure);
                }
            };
            if !matches!(read, Ok(1..)) {
                return Err(self.process.failure(received).await);
            }
        }
    }

    /// Waits until something behind a `-W` channel answers an RPC call.
    pub async fn probe_rpc(&mut self) -> Result<(), SshFailure> {
        let mut call = Encoder::new();
        let xid = u32::from_be_bytes(*b"gvfs");
        CallHeader::new(xid, nfs3::PROGRAM, nfs3::VERSION, nfs3::NULL, OpaqueAuth::none())
            .encode(&mut call);
        let call = call.into_vec();
        let exchange = async {
            self.stream.write_all(&record_mark(call.len())).await?;
            self.stream.write_all(&call).await?;
            // Whatever program listens there (MOUNT, portmapper), it answers in one short record.
            let mut mark = [0; 4];
            self.stream.read_exact(&mut mark).await?;
            let length = u32::from_be_bytes(mark) & !gridvfs_vfs::rpc::LAST_FRAGMENT;
            let mut reply = vec![0; (length as usize).min(1024)];
            self.stream.read_exact(&mut reply).await
        };
        match tokio::time::timeout(self.login_timeout, exchange).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(self.process.failure(Vec::new()).await),
        }
    }

    /// Waits for the end of an ssh whose greeting was a refusal.
    pub async fn finish(mut self) {
        let _ = tokio::time::timeout(EXIT_GRACE, self.process.child.wait()).await;
    }

    /// Returns the channel and what keeps it alive.
    pub fn into_parts(self) -> (BoxedReader, BoxedWriter, Box<dyn Any + Send>) {
        let (reader, writer) = self.stream.into_split();
        (with_early(self.early, reader), Box::new(writer), Box::new(self.process.child))
    }

    /// How many bytes the host's shell start-up has printed before the first words.
    pub fn noise_bytes(&self) -> usize {
        self.noise_bytes
    }

    /// Returns both directions, and the process, whose end tells how it went.
    pub fn into_stream(self) -> (BoxedReader, OwnedWriteHalf, SshProcess) {
        let (reader, writer) = self.stream.into_split();
        (with_early(self.early, reader), writer, self.process)
    }

    /// Returns what a command says that is told nothing, and its process.
    pub fn into_output(self) -> (BoxedReader, SshProcess) {
        (with_early(self.early, self.stream), self.process)
    }
}

fn with_early(early: Vec<u8>, reader: impl AsyncRead + Send + Unpin + 'static) -> BoxedReader {
    match early.is_empty() {
        true => Box::new(reader),
        false => Box::new(std::io::Cursor::new(early).chain(reader)),
    }
}

impl SshProcess {
    /// Collects why it ended. An ssh that goes on is killed.
    pub async fn failure(&mut self, received: Vec<u8>) -> SshFailure {
        let status = match tokio::time::timeout(EXIT_GRACE, self.child.wait()).await {
            Ok(Ok(status)) => status.code(),
            _ => {
                let _ = self.child.start_kill();
                None
            }
        };
        // A process that ssh left behind may hold standard error open: do not wait for ever.
        let _ = tokio::time::timeout(EXIT_GRACE, &mut self.stderr_reader).await;
        let stderr = self.stderr.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        SshFailure {
            status,
            stderr: stderr.iter().cloned().collect(),
            stdout: String::from_utf8_lossy(&received).into_owned(),
        }
    }
}

/// Finds a line in what the host has sent so far, and what follows it.
fn find_mark(received: &[u8], line: &[u8]) -> Option<((), Vec<u8>)> {
    let ends =
        received.windows(line.len() + 1).position(|part| part.strip_suffix(b"\n") == Some(line));
    ends.map(|start| ((), received[start + line.len() + 1..].to_vec()))
}

/// Finds the greeting in what the host has sent so far, and what follows it.
fn find_greeting(received: &[u8]) -> Option<(Greeting, Vec<u8>)> {
    let magic = GREETING_MAGIC.as_bytes();
    let starts = received.windows(magic.len()).enumerate().filter(|(_, part)| *part == magic);
    for (start, _) in starts {
        let Some(length) = received[start..].iter().position(|byte| *byte == b'\n') else {
            continue;
        };
        let end = start + length + 1;
        let line = String::from_utf8_lossy(&received[start..end]);
        if let Some(greeting) = Greeting::from_line(&line) {
            return Some((greeting, received[end..].to_vec()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_found_behind_noise() {
        let line = Greeting::refusal("no-such-path", "no".into()).to_line();
        let received = format!("Welcome!\nGRIDVFS1 not it\n{line}rest");
        let (greeting, rest) = find_greeting(received.as_bytes()).expect("found");
        assert_eq!(greeting.error.as_deref(), Some("no-such-path"));
        assert_eq!(rest, b"rest");
        assert!(find_greeting(line.trim_end().as_bytes()).is_none(), "not before its end");
    }
}
