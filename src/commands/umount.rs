//! `gridvfs umount`: writes back with a progress bar, unmounts, and waits for the end.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use gridvfs_fuse::MountState;
use serde_json::json;

use super::status::{held_bytes, with_progress};
use crate::cli::UmountArgs;
use crate::report::{Hinted, print_json};
use crate::session::{self, Client};

/// Runs the command.
pub fn run(args: UmountArgs) -> Result<ExitCode> {
    let record = session::find(&args.target)?;
    let mountpoint = match &record {
        Some(record) => record.mountpoint.clone(),
        None => {
            let target = std::path::absolute(&args.target)?;
            crate::mountpoint::resolved(&target).unwrap_or(target)
        }
    };
    let client = record.as_ref().and_then(|record| Client::connect(record).ok());
    match (&record, client) {
        (Some(record), Some(mut client)) => {
            let held = held_bytes(&client.ask("status")?);
            if held > 0 && !args.lazy {
                with_progress(record, held).context("write-back failed; still mounted")?;
            }
            client.send("wait")?;
            unmount(&mountpoint, args.lazy)?;
            if !args.lazy {
                client.receive().context("the session ended with an error")?;
            }
        }
        _ => match gridvfs_fuse::inspect(&mountpoint) {
            MountState::Stale { .. } => {
                unmount(&mountpoint, true)?;
                session::forget_dead(&mountpoint)?;
                eprintln!("{}: a dead mount was cleared", mountpoint.display());
            }
            MountState::Mounted { fs_type, .. } if fs_type == "fuse.gridvfs" => {
                unmount(&mountpoint, args.lazy)?;
            }
            MountState::Mounted { fs_type, .. } => {
                bail!("{} is a mount of type {fs_type}, not ours", mountpoint.display())
            }
            // Safe to run twice: what is not mounted is fine, if it is there at all.
            MountState::Free if record.is_some() || mountpoint.is_dir() => {
                session::forget_dead(&mountpoint)?;
                eprintln!("{}: not mounted", mountpoint.display());
            }
            MountState::Free => {
                return Err(Hinted::error(
                    format!("{} is neither a session nor a mount point", args.target),
                    "gridvfs sessions lists those of this user",
                ));
            }
        },
    }
    if args.json {
        print_json(&json!({"ok": true, "mountpoint": mountpoint}))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn unmount(mountpoint: &Path, lazy: bool) -> Result<()> {
    gridvfs_fuse::unmount(mountpoint, lazy).map_err(|error| {
        let text = format!("cannot unmount {}: {error}", mountpoint.display());
        if error.to_string().contains("busy") {
            let hint = format!(
                "end what uses it (fuser -m {}), or detach it with gridvfs umount -z",
                mountpoint.display()
            );
            return Hinted::error(text, hint);
        }
        anyhow::anyhow!(text)
    })
}
