//! A host without a `gridvfs` that this one can speak with gets this very one, if that is wanted:
//! copied over the same ssh into the user's cache directory there (`gridvfs/bin/VERSION-HASH`), and
//! used from there from then on.
//!
//! Nothing is run there before its size and SHA-256 are what they should be, and it gets its name only
//! after it has run. Whatever goes wrong, nothing of it is left but empty directories.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use gridvfs_upstream::ssh::{Lack, RemoteExport, Script, ScriptOutput, SshHost, SshProxyConnector};
use gridvfs_upstream::{ClientOptions, NfsClient};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, ReadBuf};

use crate::cache_dir::source_hash;
use crate::options::{Bootstrap, Settings};
use crate::report::{Hinted, bytes_text};
use crate::{daemon, directories};

/// How long the host may take to say what it is.
const CHECK_TIME: Duration = Duration::from_secs(30);
/// How long a copy may take.
const COPY_TIME: Duration = Duration::from_secs(3600);
/// How much of the program is read at once, in bytes.
const PIECE_BYTES: usize = 1 << 20;

/// `$1`: VERSION-HASH. Says what the host is, where caches are, and whether the program is there.
const CHECK: &str = "c=${XDG_CACHE_HOME:-$HOME/.cache}; echo \"system $(uname -s)\"; \
    echo \"machine $(uname -m)\"; echo \"cache $c\"; p=$c/gridvfs/bin/$1/gridvfs; \
    [ -x \"$p\" ] && \"$p\" --version >/dev/null 2>&1 && echo \"there $p\"; exit 0";

/// `$1`: the cache directory, `$2`: VERSION-HASH, `$3`: size, `$4`: SHA-256. Reads the program.
const COPY: &str = "umask 077; d=$1/gridvfs/bin/$2; mkdir -p \"$d\" || exit 21; t=$d/.part.$$; \
    trap 'rm -f \"$t\"' 0; trap 'exit 29' 1 2 15; cat >\"$t\" || exit 22; \
    s=$(wc -c <\"$t\"); [ \"$s\" -eq \"$3\" ] || { echo \"$s\"; exit 23; }; \
    h=$( { sha256sum \"$t\" || shasum -a 256 \"$t\" || openssl dgst -r -sha256 \"$t\"; } \
    2>/dev/null ) || exit 24; [ \"${h%% *}\" = \"$4\" ] || exit 25; chmod 700 \"$t\" || exit 26; \
    o=$(\"$t\" --version 2>&1) || { echo \"$o\"; exit 27; }; \
    mv -f \"$t\" \"$d/gridvfs\" || exit 28; echo \"$d/gridvfs\"";

/// This program, to be copied.
struct Program {
    size_bytes: u64,
    sha256: String,
}

/// Where a copy is on a host: kept here, so that the next mount begins with it.
#[derive(Serialize, Deserialize)]
struct Note {
    sha256: String,
    path: String,
}

/// Connects to the proxy on a host, copying this program there if need be and if it is wanted.
pub async fn connect(
    settings: &Settings,
    host: &Arc<SshHost>,
    export: RemoteExport,
    options: ClientOptions,
) -> Result<Arc<NfsClient>> {
    // Who says where it is there means that one.
    let is_named = export.program.is_some();
    let note = if is_named { None } else { Note::read(settings, host) };
    let mut program = None;
    if let Some(note) = note {
        let own = Program::own().await?;
        if note.sha256 == own.sha256 {
            let copy = RemoteExport { program: Some(quoted(&note.path)), ..export.clone() };
            match attempt(host, copy, options.clone()).await {
                // It has been cleared away there.
                Err((_, Some(_))) => {}
                other => return other.map_err(|(error, _)| error),
            }
        }
        program = Some(own);
    }
    let (error, lack) = match attempt(host, export.clone(), options.clone()).await {
        Err((error, Some(lack))) if !is_named => (error, lack),
        other => return other.map_err(|(error, _)| error),
    };
    let program = match program {
        Some(program) => program,
        None => Program::own().await?,
    };
    if settings.bootstrap == Bootstrap::No {
        return Err(error);
    }
    let found = Found::ask(host, &program).await?;
    let path = match found.there {
        Some(path) => path,
        None => {
            found.check_machine(host)?;
            if settings.bootstrap == Bootstrap::Ask && !agreed(host, lack, &program).await {
                return Err(Hinted::error(
                    format!("{error:#}"),
                    "-o bootstrap=yes copies this gridvfs there, into your cache directory",
                ));
            }
            copy(host, &program, &found.cache).await?
        }
    };
    Note { sha256: program.sha256, path: path.clone() }.write(settings, host);
    let copy = RemoteExport { program: Some(quoted(&path)), ..export };
    attempt(host, copy, options).await.map_err(|(error, _)| error)
}

/// Connects; an error comes with what the host lacks, if it was that.
async fn attempt(
    host: &Arc<SshHost>,
    export: RemoteExport,
    options: ClientOptions,
) -> Result<Arc<NfsClient>, (anyhow::Error, Option<Lack>)> {
    let connector = Arc::new(SshProxyConnector::new(host.clone(), export));
    let connected = NfsClient::connect(connector.clone(), options).await;
    connected.map_err(|error| (error.into(), connector.lack()))
}

/// Quotes a path for the host's login shell.
fn quoted(path: &str) -> String {
    format!("'{}'", path.replace('\'', r"'\''"))
}

impl Program {
    /// Reads this program, even if it was replaced on disk meanwhile.
    async fn own() -> Result<Self> {
        let read = tokio::task::spawn_blocking(|| -> std::io::Result<Self> {
            let mut file = std::fs::File::open("/proc/self/exe")?;
            let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
            let (mut piece, mut size_bytes) = (vec![0; PIECE_BYTES], 0);
            loop {
                let count = std::io::Read::read(&mut file, &mut piece)?;
                if count == 0 {
                    break;
                }
                digest.update(&piece[..count]);
                size_bytes += count as u64;
            }
            let sum = digest.finish();
            let sha256 = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            Ok(Self { size_bytes, sha256 })
        });
        read.await?.context("cannot read this program")
    }

    /// The name of its directory.
    fn name(&self) -> String {
        format!("{}-{}", env!("CARGO_PKG_VERSION"), &self.sha256[..16])
    }
}

/// What a host has told.
struct Found {
    system: String,
    machine: String,
    cache: String,
    there: Option<String>,
}

impl Found {
    async fn ask(host: &Arc<SshHost>, program: &Program) -> Result<Self> {
        let script =
            Script { text: CHECK, arguments: &[&program.name()], options: &[], time: CHECK_TIME };
        let said = script.run(host, None).await?;
        let word = |name: &str| {
            said.stdout.lines().find_map(|line| line.strip_prefix(name)).map(String::from)
        };
        let Some(cache) = word("cache ").filter(|cache| cache.starts_with('/')) else {
            bail!("{} does not say where its home directory is", host.destination());
        };
        Ok(Self {
            system: word("system ").unwrap_or_default(),
            machine: word("machine ").unwrap_or_default(),
            cache,
            there: word("there "),
        })
    }

    /// Says why this program cannot be one for that machine.
    fn check_machine(&self, host: &SshHost) -> Result<()> {
        let own = std::env::consts::ARCH;
        let theirs = match self.machine.as_str() {
            "amd64" => "x86_64",
            "arm64" => "aarch64",
            "i386" | "i486" | "i586" | "i686" => "x86",
            machine if machine.starts_with("armv") => "arm",
            machine => machine,
        };
        if self.system == "Linux" && theirs == own {
            return Ok(());
        }
        Err(Hinted::error(
            format!(
                "{} is {} on {}, this gridvfs is for Linux on {own}: it cannot be copied there",
                host.destination(),
                self.system,
                self.machine
            ),
            "install one for that machine there",
        ))
    }
}

/// Asks on the terminal. Without one, nobody has agreed.
async fn agreed(host: &SshHost, lack: Lack, program: &Program) -> bool {
    if daemon::is_in_background() {
        return false;
    }
    let has = match lack {
        Lack::Program => "has no gridvfs",
        Lack::Version => "has a gridvfs that this one cannot speak with",
    };
    let question = format!(
        "{} {has}. Copy this one ({}, {}) into ~/.cache/gridvfs/bin there? [y/N] ",
        host.destination(),
        env!("CARGO_PKG_VERSION"),
        bytes_text(program.size_bytes)
    );
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // A thread of its own, that nobody waits for: a mount that is interrupted ends at once.
    std::thread::spawn(move || sender.send(asked(&question).unwrap_or(false)));
    receiver.await.unwrap_or(false)
}

fn asked(question: &str) -> std::io::Result<bool> {
    let mut terminal = std::fs::File::options().read(true).write(true).open("/dev/tty")?;
    if !terminal.is_terminal() {
        return Ok(false);
    }
    terminal.write_all(question.as_bytes())?;
    let mut line = String::new();
    BufReader::new(terminal).read_line(&mut line)?;
    Ok(["y", "yes"].contains(&line.trim().to_lowercase().as_str()))
}

/// Copies this program. Returns where it is.
async fn copy(host: &Arc<SshHost>, program: &Program, cache: &str) -> Result<String> {
    let (name, size) = (program.name(), program.size_bytes.to_string());
    let script = Script {
        text: COPY,
        arguments: &[cache, &name, &size, &program.sha256],
        options: &["Compression=yes"],
        time: COPY_TIME,
    };
    let file = tokio::fs::File::open("/proc/self/exe").await?;
    let style = "{prefix} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
    let bar = indicatif::ProgressBar::new(program.size_bytes)
        .with_style(indicatif::ProgressStyle::with_template(style)?)
        .with_prefix(format!("copying gridvfs to {}", host.destination()));
    let mut input = Watched { file, bar: bar.clone() };
    let said = script.run(host, Some(&mut input)).await;
    bar.finish_and_clear();
    let said = said.context("gridvfs could not be copied")?;
    match said.status {
        Some(0) => {
            let path = said.stdout.trim().to_string();
            eprintln!("gridvfs was copied to {}:{path}", host.destination());
            Ok(path)
        }
        _ => Err(refusal(host.destination(), cache, &said)),
    }
}

/// Why a copy was not made, from what the script has said.
fn refusal(host: &str, cache: &str, said: &ScriptOutput) -> anyhow::Error {
    let last = said.stderr.last().map_or("it said nothing", String::as_str);
    let (told, place) = (said.stdout.trim(), format!("{cache}/gridvfs/bin"));
    let elsewhere = "install gridvfs there, or where it may be: -o gridvfs_command=PATH";
    match said.status {
        Some(21) => Hinted::error(format!("{host}: cannot make {place}: {last}"), elsewhere),
        Some(22) => Hinted::error(
            format!("{host}: cannot write gridvfs into {place}: {last}"),
            "make room there, or install gridvfs elsewhere: -o gridvfs_command=PATH",
        ),
        Some(23) => anyhow::anyhow!("{host}: the copy was cut off after {told} bytes; try again"),
        Some(24) => Hinted::error(
            format!("{host} has no sha256sum, shasum or openssl to check the copy with"),
            elsewhere,
        ),
        Some(25) => anyhow::anyhow!("{host}: the copy is not what was sent; try again"),
        Some(27) if told.contains("ermission denied") => Hinted::error(
            format!("{host}: nothing may be run from {place} (mounted noexec?): {told}"),
            elsewhere,
        ),
        Some(27) => Hinted::error(
            format!("this gridvfs does not run on {host}: {told}"),
            "its C library is another than this one was built for; build gridvfs there, or \
             statically (--target x86_64-unknown-linux-musl), and install it there",
        ),
        _ => anyhow::anyhow!("{host}: gridvfs could not be copied into {place}: {last}"),
    }
}

/// A file that shows how much of it has been read.
struct Watched {
    file: tokio::fs::File,
    bar: indicatif::ProgressBar,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.file).poll_read(context, buffer);
        self.bar.inc((buffer.filled().len() - before) as u64);
        polled
    }
}

impl Note {
    fn place(settings: &Settings, host: &SshHost) -> Result<PathBuf> {
        // The same name may be another host with another configuration of ssh.
        let words = format!("{:?} {}", settings.ssh_words()?, host.destination());
        let directory = directories::state()?.join("bootstrap");
        Ok(directory.join(format!("{:016x}.json", source_hash(&words))))
    }

    fn read(settings: &Settings, host: &SshHost) -> Option<Self> {
        let text = std::fs::read(Self::place(settings, host).ok()?).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Without it the next mount asks the host again: no more than a login is lost.
    fn write(&self, settings: &Settings, host: &SshHost) {
        let write = || -> Result<()> {
            let place = Self::place(settings, host)?;
            std::fs::create_dir_all(place.parent().context("no directory")?)?;
            Ok(std::fs::write(place, serde_json::to_vec(self)?)?)
        };
        if let Err(error) = write() {
            log::debug!("bootstrap note: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_compared() {
        let found = |system: &str, machine: &str| Found {
            system: system.into(),
            machine: machine.into(),
            cache: "/c".into(),
            there: None,
        };
        let host = SshHost::new(gridvfs_upstream::ssh::SshSettings {
            command: vec!["ssh".into()],
            destination: "far".into(),
            private_dir: "/nonexistent".into(),
            may_prompt: false,
            on_message: Arc::new(|_| {}),
        });
        let own = std::env::consts::ARCH;
        assert!(found("Linux", own).check_machine(&host).is_ok());
        for (system, machine) in
            [("Linux", "s390x"), ("FreeBSD", own), ("Darwin", "arm64"), ("", "")]
        {
            let error = found(system, machine).check_machine(&host).expect_err(machine);
            assert!(error.to_string().contains("cannot be copied"), "{error}");
        }
        assert_eq!(quoted("/a b/it's"), r"'/a b/it'\''s'");
    }

    #[test]
    fn each_end_of_the_script_has_its_words() {
        let said = |status, stdout: &str| ScriptOutput {
            status: Some(status),
            stdout: stdout.into(),
            noise_bytes: 0,
            stderr: vec!["cat: write error: No space left on device".into()],
        };
        for (status, stdout, words) in [
            (21, "", "cannot make /c/gridvfs/bin"),
            (22, "", "No space left"),
            (23, "17", "after 17 bytes"),
            (24, "", "sha256sum"),
            (25, "", "not what was sent"),
            (27, "sh: 1: x: Permission denied", "noexec"),
            (27, "version `GLIBC_2.99' not found", "GLIBC_2.99"),
            (99, "", "could not be copied"),
        ] {
            let text = format!("{:#}", refusal("far", "/c", &said(status, stdout)));
            assert!(text.contains(words), "{status}: {text}");
        }
    }
}
