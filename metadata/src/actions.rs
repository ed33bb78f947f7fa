//! What metadata files may have done, as far as the mounting user allows it.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdout, Command};

use crate::format::Compression;

/// In what pieces a stream is taken, in bytes.
const PIECE_BYTES: usize = 1 << 20;

/// A file's bytes, from its start to its end.
#[async_trait]
pub trait Stream: Send {
    /// Returns the next bytes; `None` at the end.
    ///
    /// # Errors
    /// A text that says why there are no more.
    async fn next(&mut self) -> Result<Option<Bytes>, String>;
}

/// Streams whole files from the state server where there is no proxy of ours.
#[async_trait]
pub trait Remote: Send + Sync {
    /// Starts to stream a file, compressed on the way. `path`: from the export's root. More bytes
    /// than `size` are an error of the stream's.
    ///
    /// # Errors
    /// A text that says why it cannot.
    async fn stream(
        &self,
        path: &[u8],
        size: u64,
        compression: Compression,
        level: i8,
    ) -> Result<Box<dyn Stream>, String>;
}

/// See the module's description.
#[derive(Default)]
pub struct Actions {
    /// The commands that metadata files may name, each a program and its arguments. They are run on
    /// this machine, as the mounting user, with the file's path in the mount (`GRIDVFS_PATH`) and
    /// its size (`GRIDVFS_SIZE`) in the environment, and write the file's content to their standard
    /// output.
    pub commands: BTreeMap<String, Vec<String>>,
    /// The way to whole files where there is no proxy of ours.
    pub remote: Option<Arc<dyn Remote>>,
    /// The server does not have the call for compressed ranges.
    pub no_fetch: AtomicBool,
}

impl Actions {
    /// Runs an allowed command.
    pub(crate) fn run(
        &self,
        name: &str,
        path: &[u8],
        size: u64,
    ) -> Result<Box<dyn Stream>, String> {
        use std::os::unix::ffi::OsStrExt;
        let Some([program, arguments @ ..]) = self.commands.get(name).map(Vec::as_slice) else {
            return Err(format!("command {name:?} is not one that this session allows"));
        };
        let mut child = Command::new(program)
            .args(arguments)
            .env("GRIDVFS_PATH", std::ffi::OsStr::from_bytes(path))
            .env("GRIDVFS_SIZE", size.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("command {name:?}: {program}: {error}"))?;
        let Some(output) = child.stdout.take() else { return Err("no output".into()) };
        Ok(Box::new(CommandStream { name: name.into(), child, output }))
    }
}

struct CommandStream {
    name: String,
    child: Child,
    output: ChildStdout,
}

#[async_trait]
impl Stream for CommandStream {
    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        let fail = |name: &str, error: &dyn std::fmt::Display| format!("command {name:?}: {error}");
        while piece.len() < PIECE_BYTES {
            match self.output.read_buf(&mut piece).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => return Err(fail(&self.name, &error)),
            }
        }
        if !piece.is_empty() {
            return Ok(Some(piece.freeze()));
        }
        match self.child.wait().await {
            Ok(status) if status.success() => Ok(None),
            Ok(status) => Err(fail(&self.name, &status)),
            Err(error) => Err(fail(&self.name, &error)),
        }
    }
}
