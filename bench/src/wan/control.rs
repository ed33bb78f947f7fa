//! How a link that is up is asked and told: one line of JSON each way, over a unix socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Change, folder};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A link or relay.
pub trait Controlled: Send + Sync {
    /// All there is to tell.
    fn status(&self) -> Value;
    /// Changes the conditions.
    fn change(&self, change: &Change) -> Result<()>;
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Request {
    Status,
    Change(Change),
    Down,
}

fn path(name: &str) -> Result<PathBuf> {
    let fit = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with('.') || name.len() > 64 || !name.chars().all(fit) {
        bail!("{name:?} is no name for a link: letters, digits, - _ . and at most 64 of them");
    }
    Ok(folder().join(format!("{name}.sock")))
}

/// Answers requests until told to go down.
pub fn serve(name: &str, listener: UnixListener, controlled: Arc<dyn Controlled>) -> Result<()> {
    let _gone = Gone(path(name)?);
    for stream in listener.incoming() {
        let stream = stream?;
        let _ = stream.set_read_timeout(Some(PATIENCE));
        let mut line = String::new();
        if BufReader::new(&stream).read_line(&mut line).is_err() {
            continue;
        }
        let request = serde_json::from_str(&line);
        let down = matches!(request, Ok(Request::Down));
        let answer = match request {
            Err(error) => json!({"error": error.to_string()}),
            Ok(Request::Status | Request::Down) => named(name, controlled.status()),
            Ok(Request::Change(change)) => match controlled.change(&change) {
                Ok(()) => named(name, controlled.status()),
                Err(error) => json!({"error": format!("{error:#}")}),
            },
        };
        let _ = writeln!(&stream, "{answer}");
        if down {
            break;
        }
    }
    Ok(())
}

fn named(name: &str, mut status: Value) -> Value {
    status["name"] = name.into();
    status
}

/// Removes the socket at the end.
struct Gone(PathBuf);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Makes the socket. A name that answers is taken.
pub fn listen(name: &str) -> Result<UnixListener> {
    let path = path(name)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    if UnixStream::connect(&path).is_ok() {
        bail!("there is a link of the name {name} already (gridvfs-wan down {name} ends it)");
    }
    // What is there was left by a process that was killed.
    let _ = std::fs::remove_file(&path);
    UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))
}

fn ask(name: &str, request: &Request) -> Result<Value> {
    let path = path(name)?;
    let stream = UnixStream::connect(&path)
        .with_context(|| format!("no link of the name {name} is up ({})", path.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    writeln!(&stream, "{}", serde_json::to_string(request)?)?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let answer: Value = serde_json::from_str(&line).context("the link's answer is no JSON")?;
    match answer["error"].as_str() {
        Some(error) => bail!("{error}"),
        None => Ok(answer),
    }
}

/// Asks a link for its state.
pub fn status(name: &str) -> Result<Value> {
    ask(name, &Request::Status)
}

/// Changes a link's conditions.
pub fn change(name: &str, change: Change) -> Result<Value> {
    ask(name, &Request::Change(change))
}

/// Ends a link, and waits until it has ended.
pub fn down(name: &str) -> Result<Value> {
    let answer = ask(name, &Request::Down)?;
    let path = path(name)?;
    for _ in 0..500 {
        if !path.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(answer)
}

/// Returns the states of all links that answer.
pub fn list() -> Vec<Value> {
    let entries = std::fs::read_dir(folder()).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".sock")?.to_string()))
        .collect();
    names.sort();
    names.iter().filter_map(|name| status(name).ok()).collect()
}
