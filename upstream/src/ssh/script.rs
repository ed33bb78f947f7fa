//! A short script run by the host's `/bin/sh`, with or without data for its standard input: how a
//! host is examined, and how a program gets there. Nothing of ours need be on the host.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::ConnectError;
use crate::rpc::random_u64;

use super::child::SshChild;
use super::{SshHost, remote};

/// The most that a script may say, in bytes.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;
/// How much is sent at once, in bytes.
const PIECE_BYTES: usize = 256 << 10;

/// What a script has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptOutput {
    /// Its exit status; `None` if it was killed.
    pub status: Option<i32>,
    /// Its standard output, without what the login shell's start-up files print before it.
    pub stdout: String,
    /// How many bytes those print: none in a login that is in order.
    pub noise_bytes: usize,
    /// The last lines of its standard error.
    pub stderr: Vec<String>,
}

/// What a script is run with.
pub struct Script<'a> {
    /// One line, without `!` (csh).
    pub text: &'a str,
    /// Its arguments, from `$1` on.
    pub arguments: &'a [&'a str],
    /// Further options of ssh's, `KEY=VALUE`.
    pub options: &'a [&'a str],
    /// How long it may take once it has begun.
    pub time: Duration,
}

impl Script<'_> {
    /// Runs it, trying the ways to log in. `input` is what it reads.
    pub async fn run(
        &self,
        host: &Arc<SshHost>,
        input: Option<&mut (dyn AsyncRead + Send + Unpin)>,
    ) -> Result<ScriptOutput, ConnectError> {
        let child = open(host, true, self.text, self.arguments, self.options).await?;
        let noise_bytes = child.noise_bytes();
        let (mut reader, mut writer, mut process) = child.into_stream();
        let exchange = async {
            let mut stdout = Vec::new();
            let mut reader = (&mut reader).take(OUTPUT_BYTES_MAX);
            let send = async {
                if let Some(input) = input {
                    // What cannot be sent has not been wanted: what the script says tells why.
                    let _ = copy(input, &mut writer).await;
                }
                let _ = writer.shutdown().await;
            };
            // An ssh that ends before it has read all resets the stream: what it said is here.
            let _ = tokio::join!(send, reader.read_to_end(&mut stdout));
            stdout
        };
        let stdout = tokio::time::timeout(self.time, exchange).await;
        let ended = process.failure(Vec::new()).await;
        let stdout = match stdout {
            Ok(stdout) => stdout,
            Err(_) => {
                let seconds = self.time.as_secs();
                let text = format!("{} has not finished within {seconds} s", host.destination());
                return Err(ConnectError::Transient(text));
            }
        };
        Ok(ScriptOutput {
            status: ended.status,
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            noise_bytes,
            stderr: ended.stderr,
        })
    }
}

/// Starts a script and waits until it has begun, trying the ways to log in. `first`: nobody else has
/// logged in yet whose login it could share.
pub(super) async fn open(
    host: &Arc<SshHost>,
    first: bool,
    text: &str,
    arguments: &[&str],
    options: &[&str],
) -> Result<SshChild, ConnectError> {
    let mark = format!("gridvfs-{:016x}", random_u64());
    let remote = [remote::script(text, &mark, arguments)];
    let options: Vec<String> =
        options.iter().flat_map(|option| ["-o".into(), option.to_string()]).collect();
    loop {
        let login = host.login();
        let mut child = SshChild::spawn(host, login, first, &options, &remote)?;
        match child.mark(&mark).await {
            Ok(()) => return Ok(child),
            Err(failure) if failure.is_authentication() && host.next_login(login) => {}
            Err(failure) => return Err(failure.into_connect_error(host, "/bin/sh")),
        }
    }
}

async fn copy(
    input: &mut (dyn AsyncRead + Send + Unpin),
    writer: &mut (impl tokio::io::AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = input.read(&mut piece).await?;
        if count == 0 {
            return Ok(());
        }
        writer.write_all(&piece[..count]).await?;
    }
}
