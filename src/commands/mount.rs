//! `gridvfs mount`: connects, mounts, goes to the background and serves until unmounted.

mod bootstrap;
pub mod connect;
pub mod control;
mod files;
pub mod manager;
mod remote;
mod serve;
mod signals;

pub use connect::ssh_host;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use gridvfs_fuse::MountState;

use connect::Target;

use crate::cli::MountArgs;
use crate::daemon::{self, Role, Starter};
use crate::options::{self, Item, Layers, Origin, Provenance, Reading, Settings};
use crate::report::{Exit, Hinted};
use crate::source::Source;

/// Everything that a mount needs to know, checked.
struct Plan {
    args: MountArgs,
    /// The session's name, if it is given.
    name: Option<String>,
    source: Source,
    /// The source as it was given.
    source_text: String,
    mountpoint: PathBuf,
    settings: Settings,
    /// What the settings are made of, and where each comes from.
    layers: Layers,
    provenance: Provenance,
    /// Who says what is mounted, and who says where to.
    origins: [Origin; 2],
}

impl Plan {
    /// Says whether the mount has a disk cache.
    fn has_cache(&self) -> bool {
        self.target().has_cache()
    }

    /// What it leads to.
    fn target(&self) -> Target {
        Target {
            text: self.source_text.clone(),
            source: self.source.clone(),
            settings: self.settings.clone(),
            mountpoint: Some(self.mountpoint.clone()),
            defer_names: true,
            hops: None,
        }
    }

    /// What is mounted and where to, as rows of `gridvfs config show`.
    fn places(&self) -> [serde_json::Value; 2] {
        let [from, to] = self.origins.clone();
        [
            options::row("source", self.source_text.as_str().into(), from),
            options::row("mountpoint", serde_json::json!(self.mountpoint), to),
        ]
    }
}

/// Runs the command.
pub fn run(args: MountArgs) -> Result<ExitCode> {
    let plan = plan(args).map_err(|error| Exit::Usage.mark(error))?;
    clear_stale(&plan.mountpoint)?;
    // Before anybody is asked for a password.
    gridvfs_fuse::check_mountpoint(&plan.mountpoint, plan.settings.nonempty)?;
    let mut starter = if plan.args.foreground || plan.args.debug {
        Starter::foreground()
    } else {
        match daemon::start()? {
            Role::Parent => return Ok(ExitCode::SUCCESS),
            Role::Child(starter) => starter,
        }
    };
    match serve::run(&plan, &mut starter) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => starter.failed(error),
    }
}

fn plan(args: MountArgs) -> Result<Plan> {
    let file = session_file_of(&args)?;
    let port = args.port.map(|port| Item::flag("-p", "Port", port.to_string()));
    let flags =
        [("-F", "ssh_config", &args.ssh_config), ("--key-file", "key_file", &args.key_file)];
    let flags = flags.into_iter().filter_map(|(flag, key, path)| {
        let path = path.as_ref()?.to_string_lossy().into_owned();
        Some(Item::flag(flag, key, path))
    });
    let options = args.options.iter().map(String::as_str);
    let layers = Layers::new(file.clone(), options, port.into_iter().chain(flags))?;
    let Reading { settings, provenance, source, mountpoint, .. } = layers.read()?;
    let missing = |what: &str| {
        let file = file.as_deref().unwrap_or(Path::new("settings")).display();
        anyhow::anyhow!("{file} does not say what {what} is: {what} = \"…\"")
    };
    let argument = Origin::Flag("argument");
    let (source_text, from) = match (&args.source, &file) {
        (Some(text), None) => (text.clone(), argument.clone()),
        _ => source.ok_or_else(|| missing("source"))?,
    };
    let (mountpoint, to) = match (&args.mountpoint, &file) {
        (Some(path), _) => (path.clone(), argument),
        (None, Some(_)) => mountpoint.ok_or_else(|| missing("mountpoint"))?,
        (None, None) => {
            return Err(Hinted::error(
                format!("where is {source_text} to be mounted?"),
                "gridvfs mount SOURCE MOUNTPOINT, or NAME of a session file alone",
            ));
        }
    };
    let source = Source::parse(&source_text)?;
    if file.is_some() && source_text.starts_with('.') {
        bail!("source {source_text}: in a file, a path begins with /");
    }
    if settings.no_proxy && !matches!(source, Source::Ssh { .. }) {
        bail!("-o no_proxy goes with HOST:/path");
    }
    if let Some(name) = args.session.as_deref().filter(|name| !crate::session::valid_name(name)) {
        bail!("{name:?} is no session name: letters, digits, - _ . up to 40");
    }
    let of_file = file.as_deref().and_then(Path::file_stem).and_then(|stem| stem.to_str());
    let of_file = of_file.filter(|name| crate::session::valid_name(name)).map(String::from);
    let name = args.session.clone().or(of_file);
    let mountpoint = crate::mountpoint::resolved(&mountpoint)
        .with_context(|| format!("mount point {}", mountpoint.display()))?;
    if let Source::Local(directory) = &source
        && let Ok(directory) = std::fs::canonicalize(directory)
        && mountpoint.starts_with(&directory)
    {
        return Err(Hinted::error(
            format!(
                "mount point {} lies within its own source {}",
                mountpoint.display(),
                directory.display()
            ),
            "the mount would contain itself; choose a mount point elsewhere",
        ));
    }
    let origins = [from, to];
    Ok(Plan { args, name, source, source_text, mountpoint, settings, layers, provenance, origins })
}

/// Returns the session file that the command line names: by its path, or by its name where a source
/// would have a `/` or a `:`.
fn session_file_of(args: &MountArgs) -> Result<Option<PathBuf>> {
    match (&args.config, args.source.as_deref()) {
        (Some(path), _) => Ok(Some(std::path::absolute(path)?)),
        (None, Some(name)) if crate::session::valid_name(name) => {
            options::named_session_file(name).map(Some)
        }
        _ => Ok(None),
    }
}

/// Says so and recovers when the mount point still holds the mount of a process that was killed.
fn clear_stale(mountpoint: &Path) -> Result<()> {
    match gridvfs_fuse::inspect(mountpoint) {
        MountState::Free => Ok(()),
        MountState::Stale { source, fs_type } if fs_type == "fuse.gridvfs" => {
            eprintln!(
                "{}: the mount of {source} here is dead (its process was killed); clearing it",
                mountpoint.display()
            );
            gridvfs_fuse::unmount(mountpoint, true).with_context(|| {
                format!("cannot clear the dead mount on {}", mountpoint.display())
            })?;
            crate::session::forget_dead(mountpoint)
        }
        MountState::Stale { source, fs_type } => Err(Hinted::error(
            format!("{} holds a dead mount of {source} ({fs_type})", mountpoint.display()),
            format!("clear it: fusermount3 -u -z {}", mountpoint.display()),
        )),
        MountState::Mounted { source, fs_type } if fs_type == "fuse.gridvfs" => Err(Hinted::error(
            format!("{} is mounted already: {source}", mountpoint.display()),
            format!("gridvfs umount {} unmounts it", mountpoint.display()),
        )),
        // Any other mount is a directory like another: fusermount3 says whether it may be used.
        MountState::Mounted { .. } => Ok(()),
    }
}
