//! `gridvfs-ask`: asks a guest's shell on a serial port something, and waits for the answer.
//!
//! The port is a unix socket that QEMU listens on (bench/guest/suspend.sh makes such guests). The
//! socket need not be there yet, and the guest may still be on its way: what is measured with this
//! is the time from a start to the guest's first answer. Bytes that reach a port before the guest's
//! state has been loaded are lost with the port's own state, so blanks go first, and a question
//! that gets no answer is asked again.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;

/// Ask a guest's shell, behind a QEMU serial port, and print what it answers.
#[derive(Parser)]
#[command(name = "gridvfs-ask", version)]
struct Cli {
    /// The port: a unix socket that QEMU listens on, or will.
    socket: PathBuf,
    /// One line for the shell.
    #[arg(default_value = "true")]
    command: String,
    /// Give up after so many seconds.
    #[arg(long, default_value_t = 120)]
    timeout: u64,
    /// Ask but once, so that a command runs once; the guest must be running.
    #[arg(long)]
    once: bool,
}

/// More than a port's own buffer holds while no guest reads it.
const BLANKS: usize = 64;
/// The first wait for an answer; each further one is twice as long, up to a limit that bounds the
/// error of a measured boot.
const PATIENCE: Duration = Duration::from_millis(250);
const PATIENCE_MAX: Duration = Duration::from_secs(1);
/// The most that an answer may have, in bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    let end = Instant::now() + Duration::from_secs(cli.timeout);
    let mut stream = connect(&cli.socket, end)?;
    let (answer, status) = ask(&mut stream, &cli, end)?;
    std::io::stdout().write_all(&answer)?;
    Ok(ExitCode::from(status))
}

fn connect(socket: &Path, end: Instant) -> Result<UnixStream> {
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > end => {
                return Err(error).with_context(|| socket.display().to_string());
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Returns what the command printed, and its exit status.
fn ask(stream: &mut UnixStream, cli: &Cli, end: Instant) -> Result<(Vec<u8>, u8)> {
    // The guest computes what ends the answer, so it is in no echo of the question.
    let token = std::process::id();
    let close = format!("<{token}:");
    let question = format!(
        "{:BLANKS$}\necho \"<$(({token}))\"; {}\necho \"<$(({token})):$?>\"\n",
        "", cli.command
    );
    let open = format!("<{token}\n");
    let mut patience = PATIENCE;
    let mut seen = Vec::new();
    loop {
        stream.write_all(question.as_bytes())?;
        let until = if cli.once { end } else { end.min(Instant::now() + patience) };
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|d| !d.is_zero())
        {
            stream.set_read_timeout(Some(left))?;
            let mut buffer = [0; 4096];
            match stream.read(&mut buffer) {
                Ok(0) => bail!("QEMU has closed the port"),
                Ok(count) => seen.extend_from_slice(&buffer[..count]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            }
            if seen.len() > ANSWER_BYTES_MAX {
                bail!("the answer is longer than {ANSWER_BYTES_MAX} bytes");
            }
            if let Some(found) = between(&seen, open.as_bytes(), close.as_bytes()) {
                return Ok(found);
            }
        }
        if Instant::now() >= end {
            bail!("no answer; the port said {:?}", String::from_utf8_lossy(&seen));
        }
        patience = PATIENCE_MAX.min(patience * 2);
    }
}

/// Finds an answer and the status behind it, once all of it has arrived.
fn between(seen: &[u8], open: &[u8], close: &[u8]) -> Option<(Vec<u8>, u8)> {
    let find = |word: &[u8], from: usize| {
        seen[from..].windows(word.len()).position(|part| part == word).map(|at| from + at)
    };
    let begin = find(open, 0)? + open.len();
    let end = find(close, begin)?;
    let status = &seen[end + close.len()..];
    let length = status.iter().position(|byte| *byte == b'>')?;
    let status = std::str::from_utf8(&status[..length]).ok()?.parse().ok()?;
    Some((seen[begin..end].to_vec(), status))
}

#[cfg(test)]
mod tests {
    use super::between;

    fn found(text: &str) -> Option<(String, u8)> {
        let (answer, status) = between(text.as_bytes(), b"<7\n", b"<7:")?;
        Some((String::from_utf8(answer).unwrap(), status))
    }

    #[test]
    fn an_answer_is_complete_only_with_its_status() {
        assert_eq!(found("sh: noise\n<7\nanswer\n<7:0>\n"), Some(("answer\n".into(), 0)));
        assert_eq!(found("<7\n<7:12>"), Some((String::new(), 12)));
        for partial in ["", "<7\nanswer\n<7:", "<7\nanswer\n<7:1", "answer\n<7:0>", "<7\n<7:x>"] {
            assert_eq!(found(partial), None, "{partial:?}");
        }
    }
}
