//! The listening side of the control socket. No client can keep others, or the session's end,
//! waiting: lines and their number are limited, and whoever does not read what it is sent, or keeps
//! a place without using it, loses it.

use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::Record;
use super::control::{Request, VERSION};
use crate::report::{Exit, error_json};

/// The longest request, in bytes.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// The most clients at once; `wait` keeps one for as long as the session lasts.
const CLIENTS_MAX: usize = 64;
/// How long a client may take to read what it is sent.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// How long those who are connected have for a last question.
const LAST_QUESTIONS_MAX: Duration = Duration::from_millis(100);
/// How long the last words to clients may take.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);
/// How often it is checked that the socket is still there: whoever cleans up temporary directories
/// removes it.
const CHECK_EVERY: Duration = Duration::from_secs(5);

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
    clients: Arc<Mutex<Clients>>,
    listening: AbortHandle,
}

/// Who is connected.
#[derive(Default)]
struct Clients {
    next: u64,
    /// With since when each asks for nothing; `None` while it is being answered.
    connected: HashMap<u64, (Option<Instant>, Option<AbortHandle>)>,
}

impl Clients {
    /// Makes room for one more, at the expense of who has been idle for longest. Returns its number,
    /// or none if all are being answered.
    fn admit(&mut self) -> Option<u64> {
        if self.connected.len() >= CLIENTS_MAX {
            let idle = self.connected.iter().filter_map(|(id, (idle, _))| Some(((*idle)?, *id)));
            let (_, longest) = idle.min()?;
            if let Some((_, Some(task))) = self.connected.remove(&longest) {
                task.abort();
            }
        }
        self.next += 1;
        self.connected.insert(self.next, (Some(Instant::now()), None));
        Some(self.next)
    }

    fn set_idle(&mut self, id: u64, idle: bool) {
        if let Some((since, _)) = self.connected.get_mut(&id) {
            *since = idle.then(Instant::now);
        }
    }
}

/// A client's place, given back when dropped.
struct Place {
    id: u64,
    clients: Arc<Mutex<Clients>>,
}

impl Place {
    fn set_idle(&self, idle: bool) {
        self.clients.lock().set_idle(self.id, idle);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clients.lock().connected.remove(&self.id);
    }
}

impl Server {
    /// Listens on the session's socket. To be called within the runtime.
    pub fn start(record: &Record, control: Arc<dyn Control>) -> Result<Self> {
        let path = record.socket()?;
        let listener = listen(&path)?;
        let (ended, _) = watch::channel(None);
        let clients = Arc::new(Mutex::new(Clients::default()));
        let task = accept(path, listener, control, ended.clone(), clients.clone());
        let listening = tokio::spawn(task).abort_handle();
        Ok(Self { ended, clients, listening })
    }

    /// Tells those who wait that the session has ended, and lets the words reach them.
    pub async fn end(self, error: Option<(String, Exit)>, mut last: Value) {
        self.listening.abort();
        last["ok"] = json!(error.is_none());
        last["ended"] = json!(true);
        if let Some((error, exit)) = error {
            last["error"] = json!(error);
            last["code"] = json!(exit.name());
        }
        let _ = self.ended.send(Some(last));
        let began = Instant::now();
        loop {
            let (any, busy) = {
                let clients = self.clients.lock();
                let busy = clients.connected.values().any(|(idle, _)| idle.is_none());
                (!clients.connected.is_empty(), busy)
            };
            let time = began.elapsed();
            if !any || (!busy && time > LAST_QUESTIONS_MAX) || time > LAST_WORDS_MAX {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn listen(path: &Path) -> Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn accept(
    path: PathBuf,
    mut listener: UnixListener,
    control: Arc<dyn Control>,
    ended: watch::Sender<Option<Value>>,
    clients: Arc<Mutex<Clients>>,
) {
    let number = |path: &Path| std::fs::symlink_metadata(path).map(|meta| meta.ino()).ok();
    let mut own = number(&path);
    let mut check = tokio::time::interval(CHECK_EVERY);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = check.tick() => {
                if number(&path).is_none() && own.is_some() {
                    match listen(&path) {
                        Ok(anew) => {
                            log::warn!("{} was removed; made anew", path.display());
                            (listener, own) = (anew, number(&path));
                        }
                        // The whole directory has gone: said once.
                        Err(error) => {
                            log::error!("the control socket is gone: {error:#}");
                            own = None;
                        }
                    }
                }
                continue;
            }
        };
        let Ok((mut stream, _)) = accepted else {
            // Out of descriptors, for instance.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Some(id) = clients.lock().admit() else {
            let reply =
                failure(&format!("{CLIENTS_MAX} clients are being answered"), Exit::Refused);
            let _ = stream.try_write(format!("{reply}\n").as_bytes());
            continue;
        };
        let (control, events) = (control.clone(), ended.subscribe());
        let place = Place { id, clients: clients.clone() };
        let task = tokio::spawn(async move {
            if let Err(error) = serve(&mut stream, control, events, &place).await {
                log::debug!("control client: {error:#}");
            }
        });
        if let Some((_, handle)) = clients.lock().connected.get_mut(&id) {
            *handle = Some(task.abort_handle());
        }
    }
}

async fn serve(
    stream: &mut UnixStream,
    control: Arc<dyn Control>,
    mut events: watch::Receiver<Option<Value>>,
    place: &Place,
) -> Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = tokio::io::BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let read = (&mut reader).take(REQUEST_BYTES_MAX).read_until(b'\n', &mut line).await?;
        if read == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            let text = format!("a request is one line of at most {REQUEST_BYTES_MAX} bytes");
            return send(&mut writer, &failure(&text, Exit::Usage)).await;
        }
        place.set_idle(false);
        let reply = match serde_json::from_slice::<Request>(&line) {
            Err(error) => failure(&format!("not a request: {error}"), Exit::Usage),
            Ok(request) if request.v != VERSION => {
                let text = format!("version {VERSION} is spoken here, not {}", request.v);
                failure(&text, Exit::Usage)
            }
            Ok(request) if request.verb == "wait" => {
                let ended = events.wait_for(Option::is_some).await;
                let last = ended.map(|value| value.clone());
                let killed = || failure("the session was killed", Exit::Failed);
                last.ok().flatten().unwrap_or_else(killed)
            }
            Ok(request) => answer(&*control, request, &mut writer).await?,
        };
        send(&mut writer, &reply).await?;
        place.set_idle(true);
    }
}

async fn answer(
    control: &dyn Control,
    request: Request,
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<Value> {
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
            Some(value) = receiver.recv() => send(writer, &json!({ "progress": value })).await?,
        }
    };
    Ok(match result {
        Ok(Some(mut reply)) => {
            reply["ok"] = json!(true);
            reply
        }
        Ok(None) => failure(&format!("unknown verb {verb:?}"), Exit::Usage),
        Err(error) => error_json(&error),
    })
}

async fn send(writer: &mut (impl AsyncWrite + Unpin), reply: &Value) -> Result<()> {
    let line = format!("{reply}\n");
    match tokio::time::timeout(WRITE_MAX, writer.write_all(line.as_bytes())).await {
        Ok(written) => Ok(written?),
        Err(_) => bail!("it does not read"),
    }
}

fn failure(error: &str, exit: Exit) -> Value {
    json!({"ok": false, "error": error, "code": exit.name()})
}
