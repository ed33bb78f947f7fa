//! The control socket: JSON lines, one request and one reply each. A request that asks for it also
//! gets lines that say how far its work is, before the reply.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

use super::Record;
use crate::report::Hinted;

/// The version of requests and replies.
pub const VERSION: u32 = 1;
/// The longest request, in bytes.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// The most clients at once; `wait` keeps one for as long as the session lasts.
const CLIENTS_MAX: usize = 64;

#[derive(Serialize, Deserialize)]
struct Request {
    v: u32,
    verb: String,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    arguments: Value,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    progress: bool,
}

/// Is told how far the work is, as an object.
pub type Progress<'a> = &'a (dyn Fn(Value) + Send + Sync);

/// What the socket's verbs act on.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// Does what a verb says and returns an object; `None` if there is no such verb. May be dropped
    /// half way when whoever asked goes away.
    async fn run(
        &self,
        verb: &str,
        arguments: &Value,
        progress: Progress<'_>,
    ) -> Result<Option<Value>>;
}

/// The listening side.
pub struct Server {
    ended: watch::Sender<Option<Value>>,
    clients: Arc<tokio::sync::Semaphore>,
}

impl Server {
    /// Listens on the session's socket. To be called within the runtime.
    pub fn start(record: &Record, control: Arc<dyn Control>) -> Result<Self> {
        let path = record.socket()?;
        let _ = std::fs::remove_file(&path);
        let listener =
            tokio::net::UnixListener::bind(&path).with_context(|| path.display().to_string())?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        let (ended, _) = watch::channel(None);
        let clients = Arc::new(tokio::sync::Semaphore::new(CLIENTS_MAX));
        let (events, places) = (ended.clone(), clients.clone());
        tokio::spawn(async move {
            while let Ok(place) = places.clone().acquire_owned().await {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (control, events) = (control.clone(), events.subscribe());
                tokio::spawn(async move {
                    let _place = place;
                    if let Err(error) = serve(stream, control, events).await {
                        log::debug!("control client: {error}");
                    }
                });
            }
        });
        Ok(Self { ended, clients })
    }

    /// Tells those who wait that the session has ended, and lets the words reach them.
    pub async fn end(self, error: Option<String>, mut last: Value) {
        last["ok"] = json!(error.is_none());
        last["ended"] = json!(true);
        if let Some(error) = error {
            last["error"] = json!(error);
        }
        let _ = self.ended.send(Some(last));
        let all = self.clients.acquire_many(CLIENTS_MAX as u32 - 1);
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), all).await;
    }
}

async fn serve(
    mut stream: tokio::net::UnixStream,
    control: Arc<dyn Control>,
    mut events: watch::Receiver<Option<Value>>,
) -> Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = tokio::io::BufReader::new(reader);
    loop {
        let mut line = String::new();
        if (&mut reader).take(REQUEST_BYTES_MAX).read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let reply = match serde_json::from_str::<Request>(&line) {
            Err(error) => failure(&format!("not a request: {error}")),
            Ok(request) if request.v != VERSION => {
                failure(&format!("version {} is spoken here, not {}", VERSION, request.v))
            }
            Ok(request) if request.verb == "wait" => {
                let ended = events.wait_for(Option::is_some).await;
                let last = ended.map(|value| value.clone());
                last.ok().flatten().unwrap_or_else(|| failure("the session was killed"))
            }
            Ok(request) => {
                let Request { verb, arguments, progress, .. } = request;
                let (sender, mut receiver) = mpsc::channel(4);
                let tell = move |value| {
                    if progress {
                        let _ = sender.try_send(value);
                    }
                };
                let mut work = control.run(&verb, &arguments, &tell);
                let result = loop {
                    tokio::select! {
                        result = &mut work => break result,
                        Some(value) = receiver.recv() => {
                            let line = format!("{}\n", json!({ "progress": value }));
                            writer.write_all(line.as_bytes()).await?;
                        }
                    }
                };
                match result {
                    Ok(Some(mut reply)) => {
                        reply["ok"] = json!(true);
                        reply
                    }
                    Ok(None) => failure(&format!("unknown verb {verb:?}")),
                    Err(error) => {
                        let mut reply = failure(&format!("{error:#}"));
                        if let Some(hint) = Hinted::hint_of(&error) {
                            reply["hint"] = json!(hint);
                        }
                        reply
                    }
                }
            }
        };
        writer.write_all(format!("{reply}\n").as_bytes()).await?;
    }
}

fn failure(error: &str) -> Value {
    json!({"ok": false, "error": error})
}

/// The asking side.
pub struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects to a session.
    pub fn connect(record: &Record) -> Result<Self> {
        Self::connect_to(&record.socket()?).with_context(|| {
            format!("session {} (process {}) does not answer", record.name, record.pid)
        })
    }

    fn connect_to(path: &Path) -> Result<Self> {
        Ok(Self { reader: BufReader::new(UnixStream::connect(path)?) })
    }

    /// From now on an answer that does not come in this time is an error.
    pub fn limit(&mut self, time: std::time::Duration) -> Result<()> {
        Ok(self.reader.get_ref().set_read_timeout(Some(time))?)
    }

    /// Sends a request without waiting for its reply.
    pub fn send(&mut self, verb: &str) -> Result<()> {
        self.send_with(verb, Value::Null, false)
    }

    fn send_with(&mut self, verb: &str, arguments: Value, progress: bool) -> Result<()> {
        let request = Request { v: VERSION, verb: verb.into(), arguments, progress };
        let line = format!("{}\n", serde_json::to_string(&request)?);
        Ok(self.reader.get_mut().write_all(line.as_bytes())?)
    }

    /// Waits for a reply; an `ok` of false is an error.
    pub fn receive(&mut self) -> Result<Value> {
        self.receive_with(&mut |_| {})
    }

    fn receive_with(&mut self, progress: &mut dyn FnMut(&Value)) -> Result<Value> {
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                bail!("the mount process has ended");
            }
            let reply: Value = serde_json::from_str(&line).context("not a reply")?;
            if let Some(value) = reply.get("progress").filter(|_| reply.get("ok").is_none()) {
                progress(value);
                continue;
            }
            if reply["ok"] == json!(true) {
                return Ok(reply);
            }
            let error = reply["error"].as_str().unwrap_or("unknown error");
            match reply["hint"].as_str() {
                Some(hint) => return Err(Hinted::error(error, hint)),
                None => bail!("{error}"),
            }
        }
    }

    /// Asks and waits.
    pub fn ask(&mut self, verb: &str) -> Result<Value> {
        self.send(verb)?;
        self.receive()
    }

    /// Asks with arguments and waits.
    pub fn ask_with(&mut self, verb: &str, arguments: Value) -> Result<Value> {
        self.send_with(verb, arguments, false)?;
        self.receive()
    }

    /// Asks with arguments and waits; is told how far the work is.
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
