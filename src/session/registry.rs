//! Which sessions run: one small file each.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::directories;
use crate::report::{Exit, Hinted};

/// The longest session name: with the directory it must fit a socket's address (108 bytes).
const NAME_BYTES_MAX: usize = 40;

/// How long a session may take from its record to its socket.
const STARTING: Duration = Duration::from_secs(10);

/// What is known of a session without asking it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The session's name.
    pub name: String,
    /// The source, as it was given; of a standing proxy, those of its exports.
    pub source: String,
    /// The mount point, absolute; a standing proxy has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mountpoint: Option<PathBuf>,
    /// Where a standing proxy listens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<String>,
    /// The mount process, or the proxy.
    pub pid: u32,
    /// The directory of its disk cache, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
}

impl Record {
    /// Says where its files can be reached: `on /mnt`, or `listening on ADDRESS, …`.
    pub fn place(&self) -> String {
        match &self.mountpoint {
            Some(mountpoint) => format!("on {}", mountpoint.display()),
            None => format!("listening on {}", self.listen.join(", ")),
        }
    }

    /// Returns the mount point, or says that a standing proxy has none.
    pub fn mounted_on(&self) -> Result<&Path> {
        self.mountpoint.as_deref().ok_or_else(|| {
            Exit::Refused.mark(Hinted::error(
                format!("session {} is a standing proxy, not a mount", self.name),
                format!("gridvfs proxy stop {} ends it", self.name),
            ))
        })
    }

    /// Returns the control socket's path.
    pub fn socket(&self) -> Result<PathBuf> {
        Ok(directory()?.join(format!("{}.sock", self.name)))
    }

    /// Says whether its process is there, and has not ended.
    pub fn is_running(&self) -> bool {
        process_runs(self.pid)
    }

    /// Says whether its process is there and listens.
    pub fn is_alive(&self) -> bool {
        self.socket().is_ok_and(|path| std::os::unix::net::UnixStream::connect(path).is_ok())
    }
}

/// A session's entry, removed when dropped.
pub struct Registration {
    record: Record,
    directory: PathBuf,
}

impl Registration {
    /// Takes a name for what `draft` tells of this process. With `wanted`, that very name or an error;
    /// otherwise one like the draft's that is free.
    pub fn new(wanted: Option<&str>, draft: &Record) -> Result<Self> {
        let directory = directory()?;
        let base = wanted.map_or_else(|| cleaned(&draft.name), String::from);
        if !valid_name(&base) {
            bail!("{base:?} is no session name: letters, digits, - _ . up to {NAME_BYTES_MAX}");
        }
        for number in 1.. {
            let name = if number == 1 { base.clone() } else { format!("{base}-{number}") };
            let record = Record { name, pid: std::process::id(), ..draft.clone() };
            let path = directory.join(format!("{}.json", record.name));
            let text = serde_json::to_vec(&record)?;
            // Written whole under another name and then linked: no reader sees half of it, and of
            // two that want the name at once one gets it.
            let whole = directory.join(format!(".{}.draft", record.pid));
            fs::write(&whole, &text).with_context(|| whole.display().to_string())?;
            let linked = fs::hard_link(&whole, &path);
            let _ = fs::remove_file(&whole);
            match linked {
                Ok(()) => return Ok(Self { record, directory }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    let holder = read(&path);
                    if holder.as_ref().is_none_or(|holder| !process_runs(holder.pid)) {
                        log::info!("removing the record of {}, which has died", record.name);
                        remove(&directory, &record.name);
                        // The same name again, now free.
                        return Self::new(wanted, draft);
                    }
                    if wanted.is_some() {
                        return Err(Exit::Refused.mark(Hinted::error(
                            format!("a session named {base} runs already"),
                            "gridvfs sessions lists them; choose another --session NAME",
                        )));
                    }
                }
                Err(error) => return Err(error).with_context(|| path.display().to_string()),
            }
        }
        bail!("no free session name like {base}")
    }

    /// Returns the entry.
    pub fn record(&self) -> &Record {
        &self.record
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        remove(&self.directory, &self.record.name);
    }
}

fn directory() -> Result<PathBuf> {
    let directory = directories::runtime()?.join("sessions");
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    Ok(directory)
}

fn remove(directory: &Path, name: &str) {
    for ending in ["sock", "json"] {
        let _ = fs::remove_file(directory.join(format!("{name}.{ending}")));
    }
}

fn read(path: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Says whether a process runs: one that has ended, but that nobody has waited for, does not.
fn process_runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it may hold anything.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !"ZX".contains(state))
}

/// Says whether a session may have this name.
pub fn valid_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn cleaned(name: &str) -> String {
    let good = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    let name: String = name.chars().filter(|character| good(*character)).collect();
    let name: String = name.trim_start_matches('.').chars().take(NAME_BYTES_MAX - 4).collect();
    if name.is_empty() { "session".into() } else { name }
}

/// Returns all sessions of this user, by name. Those that were killed are among them.
pub fn list() -> Result<Vec<Record>> {
    let mut records: Vec<Record> = fs::read_dir(directory()?)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .filter_map(|path| read(&path))
        .collect();
    records.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(records)
}

/// Removes the records of sessions at a mount point whose processes have died.
pub fn forget_dead(mountpoint: &Path) -> Result<()> {
    let there = |record: &&Record| record.mountpoint.as_deref() == Some(mountpoint);
    list()?.iter().filter(there).try_for_each(|record| forget_if_dead(record).map(drop))
}

/// Removes a session's record if its process has died. Returns whether it has.
pub fn forget_if_dead(record: &Record) -> Result<bool> {
    let directory = directory()?;
    let path = directory.join(format!("{}.json", record.name));
    let age = fs::metadata(path).and_then(|meta| meta.modified()).map(|time| time.elapsed());
    let is_starting = age.is_ok_and(|age| age.is_ok_and(|age| age < STARTING));
    // The number may be another process's by now; that one does not listen here.
    let is_dead = !process_runs(record.pid) || (!is_starting && !record.is_alive());
    if is_dead {
        remove(&directory, &record.name);
    }
    Ok(is_dead)
}

/// Finds a session by its name or mount point. A name wins over a mount point of this name in the
/// working directory, unless that is another session's: then neither is meant for sure.
pub fn find(target: &str) -> Result<Option<Record>> {
    let absolute = std::path::absolute(target)?;
    let resolved = crate::mountpoint::resolved(&absolute).ok();
    let records = list()?;
    let is_there = |record: &&Record| {
        record.mountpoint.as_ref().is_some_and(|mountpoint| {
            *mountpoint == absolute || Some(mountpoint) == resolved.as_ref()
        })
    };
    // Of several on one mount point, the one that is alive is on top.
    let there = || records.iter().filter(is_there);
    let at = there().find(|record| record.is_running()).or_else(|| there().next());
    let named = records.iter().find(|record| record.name == target);
    match (named, at) {
        (Some(named), Some(at)) if named.name != at.name => Err(Exit::Usage.mark(Hinted::error(
            format!("{target} is a session, and ./{target} is where {} is mounted", at.name),
            match &named.mountpoint {
                Some(mountpoint) => format!("give {} or ./{target}", mountpoint.display()),
                None => format!("give ./{target}, or be in another directory"),
            },
        ))),
        (named, at) => Ok(named.or(at).cloned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_fit() {
        assert_eq!(cleaned("my vm/ä"), "myvm");
        assert_eq!(cleaned("..."), "session");
        assert!(valid_name(&cleaned(&"x".repeat(300))));
        for name in ["", ".x", "a/b", "a b", &"x".repeat(41)] {
            assert!(!valid_name(name), "{name}");
        }
    }
}
