//! `gridvfs mount`: connects, mounts, goes to the background and serves until unmounted.

mod connect;
mod control;
mod files;
mod remote;
mod serve;
mod signals;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use gridvfs_fuse::MountState;

use crate::cli::MountArgs;
use crate::daemon::{self, Role, Starter};
use crate::options::Settings;
use crate::report::{Hinted, error_text};
use crate::source::Source;

/// Everything that a mount needs to know, checked.
struct Plan {
    args: MountArgs,
    source: Source,
    mountpoint: PathBuf,
    settings: Settings,
}

impl Plan {
    /// Says whether the mount has a disk cache.
    fn has_cache(&self) -> bool {
        let local = matches!(self.source, Source::Local(_));
        self.settings.cache.wanted.unwrap_or(!local)
    }
}

/// Runs the command.
pub fn run(args: MountArgs) -> Result<ExitCode> {
    let plan = plan(args)?;
    clear_stale(&plan.mountpoint)?;
    // Before anybody is asked for a password.
    gridvfs_fuse::check_mountpoint(&plan.mountpoint, plan.settings.nonempty)?;
    let mut starter = if plan.args.foreground || plan.args.debug {
        Starter::foreground()
    } else {
        match daemon::start()? {
            Role::Parent(code) => return Ok(code),
            Role::Child(starter) => starter,
        }
    };
    match serve::run(&plan, &mut starter) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            starter.failed(&error_text(&error));
            Ok(ExitCode::FAILURE)
        }
    }
}

fn plan(args: MountArgs) -> Result<Plan> {
    let mut settings = Settings::parse(args.options.iter().map(String::as_str))?;
    let ssh_words =
        [("-p", args.port.map(|port| port.to_string())), ("-F", args.ssh_config.clone())];
    for (flag, value) in ssh_words {
        settings.extend_ssh(value.into_iter().flat_map(|value| [flag.to_string(), value]));
    }
    let source = Source::parse(&args.source)?;
    if settings.no_proxy && !matches!(source, Source::Ssh { .. }) {
        bail!("-o no_proxy goes with HOST:/path");
    }
    if let Some(name) = args.session.as_deref().filter(|name| !crate::session::valid_name(name)) {
        bail!("{name:?} is no session name: letters, digits, - _ . up to 40");
    }
    let mountpoint = crate::mountpoint::resolved(&args.mountpoint)
        .with_context(|| format!("mount point {}", args.mountpoint.display()))?;
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
    Ok(Plan { args, source, mountpoint, settings })
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
