//! `gridvfs umount`: writes back with a progress bar, unmounts, and waits for the end.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use gridvfs_fuse::MountState;
use serde_json::{Value, json};

use super::writeback::{Deadline, Pending, Watch, ended_or_interrupted, with_progress};
use crate::cli::UmountArgs;
use crate::interrupts;
use crate::options;
use crate::report::{Exit, Hinted, bytes_text, count_text, print_json};
use crate::session::{self, Client, Record};

/// How long the end of a mount's process is waited for once its session has ended.
const PROCESS_END_MAX: Duration = Duration::from_secs(3);

/// Runs the command.
pub fn run(args: UmountArgs) -> Result<ExitCode> {
    let record = session::find(&args.target)?;
    if args.dead {
        return clear_dead(&args, record);
    }
    if let Some(record) = record.as_ref().filter(|record| record.mountpoint.is_none())
        && session::forget_if_dead(record)?
    {
        eprintln!("{}: a standing proxy that was killed; its record is removed", record.name);
        if args.json {
            print_json(&json!({"ok": true, "session": record.name}))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mountpoint = match &record {
        Some(record) => record.mounted_on()?.to_path_buf(),
        None => place(&args.target)?,
    };
    let deadline = Deadline::after(args.timeout);
    interrupts::watch()?;
    let client = record.as_ref().and_then(|record| Client::connect(record).ok());
    let mut last = json!({});
    match (&record, client) {
        (Some(record), Some(client)) => last = end(record, client, &args, deadline)?,
        _ => match gridvfs_fuse::inspect(&mountpoint) {
            MountState::Stale { .. } => {
                unmount(&mountpoint, true)?;
                session::forget_dead(&mountpoint)?;
                eprintln!("{}: a dead mount was cleared", mountpoint.display());
            }
            MountState::Mounted { fs_type, .. } if fs_type == "fuse.gridvfs" => {
                // Its socket is gone, or it is another user's.
                unmount(&mountpoint, args.lazy)?;
                wait_for_process(record.as_ref().filter(|_| !args.lazy), deadline)?;
            }
            MountState::Mounted { fs_type, .. } => {
                bail!("{} is a mount of type {fs_type}, not ours", mountpoint.display())
            }
            // Safe to run twice: what is not mounted is fine, if it is there at all.
            MountState::Free if record.is_some() || mountpoint.is_dir() => {
                wait_for_process(record.as_ref(), deadline)?;
                session::forget_dead(&mountpoint)?;
                eprintln!("{}: not mounted", mountpoint.display());
            }
            MountState::Free => {
                return Err(Exit::NoSession.mark(Hinted::error(
                    format!("{} is neither a session nor a mount point", args.target),
                    "gridvfs sessions lists those of this user",
                )));
            }
        },
    }
    if args.json {
        let mut reply = json!({"ok": true, "mountpoint": mountpoint});
        for name in ["unsent_bytes", "unsent_files", "unsent_names", "cache_directory"] {
            if !last[name].is_null() {
                reply[name] = last[name].clone();
            }
        }
        print_json(&reply)?;
    } else if ["unsent_files", "unsent_names"].iter().any(|name| last[*name].as_u64() > Some(0)) {
        let (bytes, files) = (&last["unsent_bytes"], &last["unsent_files"]);
        println!(
            "{} unsent ({}), kept for the next mount in {}",
            bytes_text(bytes.as_u64().unwrap_or(0)),
            count_text(files.as_u64().unwrap_or(0), "file"),
            last["cache_directory"].as_str().unwrap_or_default(),
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Clears the mount of a process that was killed, if the target is one. A session that runs, or that
/// has ended in an orderly way, is left alone.
fn clear_dead(args: &UmountArgs, record: Option<Record>) -> Result<ExitCode> {
    let mountpoint = match record {
        Some(record) => record.mounted_on()?.to_path_buf(),
        None => place(&args.target)?,
    };
    let mut cleared = false;
    if let MountState::Stale { fs_type, .. } = gridvfs_fuse::inspect(&mountpoint)
        && fs_type == "fuse.gridvfs"
    {
        unmount(&mountpoint, true)?;
        session::forget_dead(&mountpoint)?;
        cleared = true;
    }
    if args.json {
        print_json(&json!({"ok": true, "mountpoint": mountpoint, "cleared": cleared}))?;
    } else if cleared {
        println!("{}: a dead mount was cleared", mountpoint.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Where what is named is mounted, or would be: a session that does not run may have a file.
fn place(target: &str) -> Result<PathBuf> {
    let of_file = session::valid_name(target).then(|| options::session_file(target)).flatten();
    let path = match of_file.map(|file| options::mountpoint_of(&file)).transpose()?.flatten() {
        Some(path) => path,
        None => std::path::absolute(target)?,
    };
    Ok(crate::mountpoint::resolved(&path).unwrap_or(path))
}

/// Waits for the end of a process that cannot be asked, as far as there is time.
fn wait_for_process(record: Option<&Record>, deadline: Deadline) -> Result<()> {
    let Some(record) = record else { return Ok(()) };
    while record.is_running() {
        if deadline.is_over() {
            return Err(Exit::TimedOut.mark(still_sending(record)));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn still_sending(record: &Record) -> anyhow::Error {
    Hinted::error(
        format!("{} is unmounted; process {} is still sending", record.name, record.pid),
        format!("gridvfs cancel {} leaves the rest for the next mount", record.name),
    )
}

/// Ends a session that answers. Returns what it said last.
fn end(
    record: &Record,
    mut client: Client,
    args: &UmountArgs,
    deadline: Deadline,
) -> Result<Value> {
    let status = client.ask("status")?;
    let settings = &status["cache"]["settings"];
    let before = settings["at_end"].as_str();
    let wanted = match (args.preserve, args.flush, before) {
        (false, false, _) => None,
        (_, _, None) => {
            return Err(Exit::Refused.mark(Hinted::error(
                format!("session {} has no disk cache", record.name),
                "gridvfs umount without --preserve or --flush writes back",
            )));
        }
        (true, ..) => Some("preserve"),
        _ => Some("flush"),
    };
    if let Some(wanted) = wanted {
        client.ask_with("set", json!({"changes": [format!("at_end={wanted}")]}))?;
    }
    let at_end = wanted.or(before);
    let ended = write_back_and_unmount(record, args, &status, at_end, deadline);
    if let (Some(_), Some(before), Err(_)) = (wanted, before, &ended) {
        // Still mounted: as it was.
        let _ = client.ask_with("set", json!({"changes": [format!("at_end={before}")]}));
    }
    let mut waiter = ended?;
    if args.lazy {
        return Ok(json!({}));
    }
    // What was written meanwhile may still have to go.
    waiter.limit(deadline.left())?;
    let done = std::thread::spawn(move || waiter.receive());
    if let Ok(mut watch) = Watch::new(record, "unmounting") {
        watch.until(&|| done.is_finished());
    }
    if !ended_or_interrupted(&done) {
        return Err(Exit::Interrupted.mark(still_sending(record)));
    }
    let result = done.join();
    // Its cache is free when the process is gone. That takes a moment, and is not worth a long one.
    let patience = Instant::now() + PROCESS_END_MAX;
    while record.is_running() && Instant::now() < patience && !deadline.is_over() {
        std::thread::sleep(Duration::from_millis(5));
    }
    match result {
        Err(_) => bail!("the request ended early"),
        Ok(Err(_)) if deadline.is_over() => Err(Exit::TimedOut.mark(still_sending(record))),
        // Somebody else has unmounted it just before.
        Ok(Err(error)) if Exit::of(&error) == Exit::Silent && !record.is_running() => Ok(json!({})),
        Ok(result) => result.context("the session ended with an error"),
    }
}

/// Returns a client that waits for the session's end.
fn write_back_and_unmount(
    record: &Record,
    args: &UmountArgs,
    status: &Value,
    at_end: Option<&str>,
    deadline: Deadline,
) -> Result<Client> {
    let sends = at_end != Some("preserve")
        && status["cache"]["settings"]["write_policy"] != json!("read-only");
    if Pending::of(status).bytes > 0 && !args.lazy && sends {
        with_progress(record, "writeback", deadline).map_err(|error| match at_end {
            _ if Exit::of(&error) == Exit::Interrupted => error.context("still mounted"),
            Some(_) if Hinted::hint_of(&error).is_none() => Exit::of(&error).mark(Hinted::error(
                format!("write-back failed; still mounted: {error:#}"),
                format!("gridvfs umount --preserve {} leaves it for the next mount", args.target),
            )),
            _ => error.context("write-back failed; still mounted"),
        })?;
    }
    // Before, since after it the session may end at once.
    let mut waiter = Client::connect(record)?;
    waiter.send("wait")?;
    unmount(record.mounted_on()?, args.lazy)?;
    Ok(waiter)
}

fn unmount(mountpoint: &Path, lazy: bool) -> Result<()> {
    gridvfs_fuse::unmount(mountpoint, lazy).or_else(|error| {
        // Somebody else was quicker.
        if gridvfs_fuse::inspect(mountpoint) == MountState::Free {
            return Ok(());
        }
        let text = format!("cannot unmount {}: {error}", mountpoint.display());
        if error.to_string().contains("busy") {
            let hint = format!(
                "end what uses it (fuser -m {}), or detach it with gridvfs umount -z",
                mountpoint.display()
            );
            return Err(Hinted::error(text, hint));
        }
        bail!(text)
    })
}
