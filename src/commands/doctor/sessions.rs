//! What settings files say, and what killed sessions have left.

use std::path::Path;

use super::Check;
use crate::directories;
use crate::options::Layers;
use crate::report::{Hinted, count_text};
use crate::session;

/// Looks at all settings files and all sessions of this user.
pub fn checks() -> Vec<Check> {
    let mut checks = Vec::new();
    let mut files = 0;
    for directory in directories::config() {
        let Ok(entries) = std::fs::read_dir(directory.join("sessions")) else { continue };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        for path in paths.filter(|path| path.extension().is_some_and(|end| end == "toml")) {
            files += 1;
            checks.extend(file(&path));
        }
    }
    if checks.is_empty() {
        checks.push(match Layers::new(None, [], []).and_then(|layers| layers.read()) {
            Ok(_) => Check::ok("settings", format!("{} read", count_text(files, "session file"))),
            Err(error) => broken(&error),
        });
    }
    match session::list() {
        Ok(records) => {
            let (alive, dead): (Vec<_>, Vec<_>) =
                records.iter().partition(|record| record.is_running());
            checks.extend(dead.iter().map(|record| {
                Check::warn(
                    "sessions",
                    format!("{} was killed, and is still mounted or noted", record.name),
                    format!("gridvfs umount {} clears it", record.name),
                )
            }));
            let running = count_text(alive.len() as u64, "session");
            checks.push(Check::ok("sessions", format!("{running} running")));
        }
        Err(error) => checks.push(Check::warn("sessions", format!("{error:#}"), "see above")),
    }
    checks
}

fn file(path: &Path) -> Option<Check> {
    let read = Layers::new(Some(path.into()), [], []).and_then(|layers| layers.read());
    read.err().map(|error| broken(&error))
}

fn broken(error: &anyhow::Error) -> Check {
    let mend = Hinted::hint_of(error).unwrap_or("docs/settings.md says what a file may say");
    Check::fail("settings", format!("{error:#}"), mend)
}
