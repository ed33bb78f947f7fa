//! A file of the host, read as a whole by a program there: for hosts on which nothing of ours is.
//!
//! The program compresses, and what it says is decompressed as it arrives, on a thread of its own,
//! a piece ahead of who takes it; when nobody does, it is not read, and the host waits. Nothing is
//! taken on trust: neither that the data is what it should be, nor how much of it comes.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::ConnectError;
use crate::rpc::random_u64;

use super::child::{SshChild, SshProcess};
use super::{SshHost, remote};

/// How much is handed out at once, in bytes: every piece but the last is as long.
const PIECE_BYTES: usize = 256 << 10;
/// How many pieces are decompressed ahead.
const PIECES_AHEAD: usize = 4;
/// How much is read from ssh at once, in bytes.
const READ_BYTES: usize = 64 << 10;
/// The largest window of a zstd frame, as a power of two: that of level 19 and below.
const WINDOW_LOG_MAX: u32 = 23;
/// For how long a piece may be waited for. A dead link is noticed by ssh before.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// In what form a file crosses the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// By `zstd` at a level of 1 to 19.
    Zstd(u8),
    /// By `gzip` at a level of 1 to 9.
    Gzip(u8),
    /// As it is, by `cat`.
    Plain,
}

impl Coding {
    /// Returns the name of the program that the host must have.
    pub fn program(self) -> &'static str {
        match self {
            Self::Zstd(_) => "zstd",
            Self::Gzip(_) => "gzip",
            Self::Plain => "cat",
        }
    }

    /// Returns the command, which reads its standard input.
    fn words(self) -> Vec<String> {
        let (program, level) = match self {
            Self::Zstd(level) => ("zstd", level.clamp(1, 19)),
            Self::Gzip(level) => ("gzip", level.clamp(1, 9)),
            Self::Plain => return vec!["cat".into()],
        };
        vec![program.into(), "-q".into(), "-c".into(), format!("-{level}")]
    }

    /// Makes a reader of what the program made. It reads no more than it hands out needs.
    fn reader(self, coded: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
        let coded = io::BufReader::with_capacity(READ_BYTES, coded);
        Ok(match self {
            Self::Zstd(_) => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(coded)?;
                decoder.window_log_max(WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
            Self::Gzip(_) => Box::new(flate2::bufread::MultiGzDecoder::new(coded)),
            Self::Plain => Box::new(coded),
        })
    }
}

/// Why a file did not arrive, or not as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The host does not have the program: another coding may do, or plain reads.
    #[error("there is no {program} on {host}")]
    Missing {
        /// The program.
        program: &'static str,
        /// The host.
        host: String,
    },
    /// No file can have this path.
    #[error("no path of a file: {0}")]
    Path(String),
    /// ssh did not reach the host, or was not let in.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The program did not do its work.
    #[error("reading a file by {program} on {host}: {why}")]
    Failed {
        /// The program.
        program: &'static str,
        /// The host.
        host: String,
        /// What it said last.
        why: String,
    },
    /// It ended, or nothing came for too long, before the file was here.
    #[error("{arrived} of {expected} bytes came from {host}, and then no more: {why}")]
    Cut {
        /// The host.
        host: String,
        /// How many bytes of the file came.
        arrived: u64,
        /// How many it has.
        expected: u64,
        /// What is known of it.
        why: String,
    },
    /// What came is not what the program makes.
    #[error("what came from {host} cannot be decompressed: {why}")]
    Garbled {
        /// The host.
        host: String,
        /// What is wrong with it.
        why: String,
    },
    /// More came than the file has.
    #[error("more than the {expected} bytes of the file came from {host}")]
    TooLong {
        /// The host.
        host: String,
        /// How many bytes the file has.
        expected: u64,
    },
}

/// A file of the host that is on its way. Dropping it ends ssh, and with it the program.
pub struct RemoteStream {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    process: SshProcess,
    coding: Coding,
    host: String,
    expected: u64,
    arrived: u64,
    /// How it ended; it is told again when asked again.
    end: Option<Result<(), StreamError>>,
}

impl RemoteStream {
    /// Starts to read the regular file at `path` on the host, which has `expected` bytes. Waits
    /// until the program there has opened it.
    pub async fn open(
        host: &Arc<SshHost>,
        path: &[u8],
        coding: Coding,
        expected: u64,
    ) -> Result<Self, StreamError> {
        if path.is_empty() || path.contains(&0) {
            return Err(StreamError::Path(String::from_utf8_lossy(path).into_owned()));
        }
        let mark = format!("gridvfs-data-{:016x}{:016x}", random_u64(), random_u64());
        let command = [remote::reading(path, &mark, &coding.words())];
        // The host may be silent for as long as its disk is; ssh itself sees when it is gone.
        let options = ["ServerAliveInterval=15", "ServerAliveCountMax=4"];
        let options: Vec<String> =
            options.iter().flat_map(|option| ["-o".into(), (*option).into()]).collect();
        loop {
            let login = host.login();
            let mut child = SshChild::spawn(host, login, false, &options, &command)?;
            let failure = match child.mark(&mark).await {
                Ok(()) => return Ok(Self::over(child, host, coding, expected)),
                Err(failure) if failure.is_authentication() && host.next_login(login) => continue,
                Err(failure) => failure,
            };
            let (program, host_name) = (coding.program(), host.destination().to_string());
            return Err(match failure.status {
                Some(remote::NOT_FOUND) => StreamError::Missing { program, host: host_name },
                Some(0..255) => {
                    let why = failure.last_words();
                    StreamError::Failed { program, host: host_name, why }
                }
                _ => failure.into_connect_error(host, "a file").into(),
            });
        }
    }

    fn over(child: SshChild, host: &SshHost, coding: Coding, expected: u64) -> Self {
        let (output, process) = child.into_output();
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || {
            let coded = Blocking { output, runtime, taken: sender.clone() };
            if let Err(error) = hand_out(coding, coded, &sender) {
                let _ = sender.blocking_send(Err(error));
            }
        });
        let host = host.destination().into();
        Self { pieces, process, coding, host, expected, arrived: 0, end: None }
    }

    /// Returns the next piece of the file; `None` behind its last byte, when the program has said
    /// that all went well.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StreamError> {
        if let Some(end) = &self.end {
            return end.clone().map(|()| None);
        }
        let end = match tokio::time::timeout(SILENCE_MAX, self.pieces.recv()).await {
            Ok(Some(Ok(piece))) => {
                self.arrived += piece.len() as u64;
                if self.arrived <= self.expected {
                    return Ok(Some(piece));
                }
                Err(StreamError::TooLong { host: self.host.clone(), expected: self.expected })
            }
            Ok(Some(Err(error))) => Err(self.broken(&error).await),
            Ok(None) => self.ended().await,
            Err(_) => Err(self.cut("it has said nothing for a long time".into())),
        };
        self.end = Some(end.clone());
        // Nobody is to read on, nor the host to send.
        self.pieces.close();
        end.map(|()| None)
    }

    /// Says what is wrong when the data ends.
    async fn ended(&mut self) -> Result<(), StreamError> {
        let end = self.process.failure(Vec::new()).await;
        match end.status {
            Some(0) if self.arrived == self.expected => Ok(()),
            Some(0) => Err(self.cut("the file has become shorter".into())),
            Some(1..255) => Err(StreamError::Failed {
                program: self.coding.program(),
                host: self.host.clone(),
                why: end.last_words(),
            }),
            _ => Err(self.cut(end.last_words())),
        }
    }

    /// Says why the data could not be read or decompressed.
    async fn broken(&mut self, error: &io::Error) -> StreamError {
        // A stream that ends within a frame: the program or ssh may say why.
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return match self.ended().await {
                Err(StreamError::Cut { why, .. }) if !why.is_empty() => self.cut(why),
                Err(why @ StreamError::Failed { .. }) => why,
                _ => self.cut(error.to_string()),
            };
        }
        StreamError::Garbled { host: self.host.clone(), why: error.to_string() }
    }

    fn cut(&self, why: String) -> StreamError {
        let (arrived, expected) = (self.arrived, self.expected);
        StreamError::Cut { host: self.host.clone(), arrived, expected, why }
    }
}

/// Decompresses until the end, or until nobody takes it any more.
fn hand_out(
    coding: Coding,
    coded: Blocking,
    pieces: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let mut reader = coding.reader(coded)?;
    loop {
        let mut piece = BytesMut::zeroed(PIECE_BYTES);
        let mut filled = 0;
        let mut result = Ok(());
        while filled < PIECE_BYTES {
            match reader.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        piece.truncate(filled);
        if filled > 0 && pieces.blocking_send(Ok(piece.freeze())).is_err() {
            return Ok(());
        }
        if result.is_err() || filled < PIECE_BYTES {
            return result;
        }
    }
}

/// What ssh brings, for a thread that may wait; until nobody takes what becomes of it.
struct Blocking {
    output: Box<dyn AsyncRead + Send + Unpin>,
    runtime: Handle,
    taken: mpsc::Sender<io::Result<Bytes>>,
}

impl Read for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.runtime.block_on(async {
            tokio::select! {
                read = self.output.read(buffer) => read,
                () = self.taken.closed() => Err(io::ErrorKind::BrokenPipe.into()),
            }
        })
    }
}
