//! The asking side of the control socket: JSON lines, one request and one reply each. A request that
//! asks for it also gets lines that say how far its work is, before the reply.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Record;
use crate::report::{Exit, Hinted, error_of_json};

/// The version of requests and replies.
pub const VERSION: u32 = 1;
/// A session that is alive answers a question about what it knows within this time.
const QUICK: Duration = Duration::from_secs(20);

/// A request.
#[derive(Serialize, Deserialize)]
pub(super) struct Request {
    pub v: u32,
    pub verb: String,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub arguments: Value,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub progress: bool,
}

/// The asking side.
pub struct Client {
    reader: BufReader<UnixStream>,
    session: String,
}

impl Client {
    /// Connects to a session.
    pub fn connect(record: &Record) -> Result<Self> {
        let stream = UnixStream::connect(record.socket()?).map_err(|error| {
            let (name, pid) = (&record.name, record.pid);
            let hint = match record.is_running() {
                true => format!(
                    "if its socket was removed, it makes it anew within seconds; kill {pid} unmounts \
                     and writes back"
                ),
                false => format!("its process has died; gridvfs umount {name} clears what is left"),
            };
            let words = format!("session {name} (process {pid}) does not answer: {error}");
            Exit::Silent.mark(Hinted::error(words, hint))
        })?;
        Ok(Self { reader: BufReader::new(stream), session: record.name.clone() })
    }

    /// From now on an answer that does not come in this time is an error; `None` waits for ever.
    pub fn limit(&mut self, time: Option<Duration>) -> Result<()> {
        // Zero would mean for ever.
        let time = time.map(|time| time.max(Duration::from_millis(1)));
        Ok(self.reader.get_ref().set_read_timeout(time)?)
    }

    /// Sends a request without waiting for its reply.
    pub fn send(&mut self, verb: &str) -> Result<()> {
        self.send_with(verb, Value::Null, false)
    }

    fn send_with(&mut self, verb: &str, arguments: Value, progress: bool) -> Result<()> {
        let request = Request { v: VERSION, verb: verb.into(), arguments, progress };
        let line = format!("{}\n", serde_json::to_string(&request)?);
        let sent = self.reader.get_mut().write_all(line.as_bytes());
        sent.map_err(|error| self.gone(&error.to_string()))
    }

    /// Waits for a reply; an `ok` of false is an error.
    pub fn receive(&mut self) -> Result<Value> {
        self.receive_with(&mut |_| {})
    }

    fn receive_with(&mut self, progress: &mut dyn FnMut(&Value)) -> Result<Value> {
        loop {
            let mut line = String::new();
            match self.reader.read_line(&mut line) {
                Ok(0) => return Err(self.gone("the mount process has ended")),
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    return Err(Exit::TimedOut.mark(Hinted::error(
                        format!("session {} has not answered in time", self.session),
                        "it may be stopped, or its machine very busy; try again",
                    )));
                }
                Err(error) => return Err(self.gone(&error.to_string())),
            }
            let reply: Value = serde_json::from_str(&line).context("not a reply")?;
            if let Some(value) = reply.get("progress").filter(|_| reply.get("ok").is_none()) {
                progress(value);
                continue;
            }
            if reply["ok"] == json!(true) {
                return Ok(reply);
            }
            return Err(error_of_json(&reply));
        }
    }

    fn gone(&self, why: &str) -> anyhow::Error {
        Exit::Silent.mark(anyhow::anyhow!("session {}: {why}", self.session))
    }

    /// Asks what the session knows without asking anybody else, and waits.
    pub fn ask(&mut self, verb: &str) -> Result<Value> {
        self.ask_with(verb, Value::Null)
    }

    /// The same with arguments.
    pub fn ask_with(&mut self, verb: &str, arguments: Value) -> Result<Value> {
        self.ask_within(QUICK, verb, arguments)
    }

    /// The same, with another limit of time.
    pub fn ask_within(&mut self, time: Duration, verb: &str, arguments: Value) -> Result<Value> {
        self.send_with(verb, arguments, false)?;
        self.limit(Some(time.min(QUICK)))?;
        let reply = self.receive();
        self.limit(None)?;
        reply
    }

    /// Asks for what may take as long as the state server does, and waits.
    pub fn ask_patiently(&mut self, verb: &str, arguments: Value) -> Result<Value> {
        self.send_with(verb, arguments, false)?;
        self.receive()
    }

    /// The same; is told how far the work is.
    pub fn ask_watching(
        &mut self,
        verb: &str,
        arguments: Value,
        progress: &mut dyn FnMut(&Value),
    ) -> Result<Value> {
        self.send_with(verb, arguments, true)?;
        self.receive_with(progress)
    }
}
