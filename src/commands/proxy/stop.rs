//! `gridvfs proxy stop`: what SIGTERM does, and waits for the end.

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;

use crate::cli::WriteBackArgs;
use crate::commands::status::find;
use crate::commands::writeback::{Deadline, Watch, ended_or_interrupted};
use crate::interrupts;
use crate::report::{Exit, Hinted, print_json};
use crate::session::Client;

/// Runs the command.
pub fn run(args: WriteBackArgs) -> Result<ExitCode> {
    let record = find(&args.session)?;
    if record.mountpoint.is_some() {
        return Err(Exit::Refused.mark(Hinted::error(
            format!("session {} is a mount, not a standing proxy", record.name),
            format!("gridvfs umount {} ends it", record.name),
        )));
    }
    let deadline = Deadline::after(args.timeout);
    interrupts::watch()?;
    // Before, since after it the proxy may end at once.
    let mut waiter = Client::connect(&record)?;
    waiter.send("wait")?;
    Client::connect(&record)?.ask("stop")?;
    waiter.limit(deadline.left())?;
    let done = std::thread::spawn(move || waiter.receive());
    if let Ok(mut watch) = Watch::new(&record, "stopping") {
        watch.until(&|| done.is_finished());
    }
    let going_on = || {
        Hinted::error(
            format!("{} serves no more; process {} is still sending", record.name, record.pid),
            format!("gridvfs cancel {} leaves the rest for the next start", record.name),
        )
    };
    if !ended_or_interrupted(&done) {
        return Err(Exit::Interrupted.mark(going_on()));
    }
    let Ok(result) = done.join() else { bail!("the request ended early") };
    match result {
        Err(_) if deadline.is_over() => return Err(Exit::TimedOut.mark(going_on())),
        result => result?,
    };
    if args.json {
        print_json(&json!({"ok": true, "session": record.name}))?;
    }
    Ok(ExitCode::SUCCESS)
}
