//! From where settings come, lowest first: defaults, `config.toml`, the session's file, the file of
//! `-o settings=`, the command line. All are read again at SIGHUP.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::file::SettingsFile;
use super::item::{Item, Origin, split_at_commas};
use super::{Provenance, Settings};
use crate::directories;
use crate::report::Hinted;

/// What a mount's settings are made of.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// Files of defaults, lowest first. One that is not there says nothing.
    pub(super) defaults: Vec<PathBuf>,
    /// The session's file.
    pub(super) session: Option<PathBuf>,
    /// The file of `-o settings=`.
    pub(super) extra: Option<PathBuf>,
    pub(super) command_line: Vec<Item>,
}

/// What they say.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The settings, checked.
    pub settings: Settings,
    /// Where each comes from.
    pub provenance: Provenance,
    /// What the session's file says is to be mounted.
    pub source: Option<(String, Origin)>,
    /// Where to.
    pub mountpoint: Option<(PathBuf, Origin)>,
    /// Whether there is any file among them.
    pub has_files: bool,
}

impl Layers {
    /// Takes the places of the files, and `-o` options as typed.
    pub fn new<'a>(
        session: Option<PathBuf>,
        options: impl IntoIterator<Item = &'a str>,
        flags: impl IntoIterator<Item = Item>,
    ) -> Result<Self> {
        let options = options.into_iter().flat_map(split_at_commas);
        let mut command_line: Vec<Item> = options.map(|option| Item::option(&option)).collect();
        command_line.extend(flags);
        let extra = command_line.iter().rev().find(|item| item.key == "settings");
        let extra = extra.and_then(|item| item.value.as_deref()).filter(|path| !path.is_empty());
        Ok(Self {
            // Who has no home directory may have system-wide ones.
            defaults: directories::config().iter().rev().map(|d| d.join("config.toml")).collect(),
            session,
            extra: extra.map(std::path::absolute).transpose()?,
            command_line,
        })
    }

    /// Reads the files, and the settings out of all.
    pub fn read(&self) -> Result<Reading> {
        let mut layers = Vec::new();
        for path in self.defaults.iter().filter(|path| is_there(path)) {
            layers.push(SettingsFile::defaults(path)?.items);
        }
        let mut own = SettingsFile::default();
        for path in self.session.iter().chain(&self.extra) {
            let file = SettingsFile::session(path)?;
            layers.push(file.items);
            own.source = file.source.or(own.source);
            own.mountpoint = file.mountpoint.or(own.mountpoint);
        }
        let has_files = !layers.is_empty();
        layers.push(self.command_line.clone());
        Ok(Reading {
            settings: Settings::of(layers.iter().map(Vec::as_slice))?,
            provenance: Provenance::of(layers.iter().flatten()),
            source: own.source,
            mountpoint: own.mountpoint,
            has_files,
        })
    }
}

/// A file that cannot be looked at is there: reading it says why.
fn is_there(path: &Path) -> bool {
    !std::fs::metadata(path).is_err_and(|error| {
        matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
    })
}

/// Returns the file of a session's name, if there is one.
pub fn session_file(name: &str) -> Option<PathBuf> {
    candidates(name).into_iter().find(|path| is_there(path))
}

/// Returns the mount point that a session's file gives.
pub fn mountpoint_of(file: &Path) -> Result<Option<PathBuf>> {
    Ok(SettingsFile::session(file)?.mountpoint.map(|(path, _)| path))
}

fn candidates(name: &str) -> Vec<PathBuf> {
    let file = format!("sessions/{name}.toml");
    directories::config().iter().map(|directory| directory.join(&file)).collect()
}

/// The same for one that must be there.
pub fn named_session_file(name: &str) -> Result<PathBuf> {
    session_file(name).ok_or_else(|| no_session_file(name))
}

fn no_session_file(name: &str) -> anyhow::Error {
    let places: Vec<String> =
        candidates(name).iter().map(|path| path.display().to_string()).collect();
    Hinted::error(
        format!("{name} is no source, and no session has this name"),
        format!(
            "give HOST:/path, nfs://HOST/export, or a directory that begins with / or ., and a \
             mount point; or write a session file, {}",
            places.join(" or ")
        ),
    )
}
