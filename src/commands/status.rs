//! `gridvfs sessions`, `status` and `writeback`: clients of the control socket.

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::cli::{JsonArgs, StatusArgs};
use crate::report::{Hinted, bytes_text, print_json};
use crate::session::{self, Client, Record};

/// Lists this user's sessions.
pub fn list(args: JsonArgs) -> Result<ExitCode> {
    let records = session::list()?;
    let rows: Vec<(Record, bool)> =
        records.into_iter().map(|record| (record.clone(), record.is_alive())).collect();
    if args.json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|(record, alive)| {
                json!({
                    "name": record.name, "source": record.source, "pid": record.pid,
                    "mountpoint": record.mountpoint, "alive": alive,
                })
            })
            .collect();
        print_json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    if rows.is_empty() {
        println!("no sessions");
    }
    for (record, alive) in rows {
        let state = if alive { "" } else { "  (dead: gridvfs umount clears it)" };
        let mountpoint = record.mountpoint.display();
        println!("{:<16} {} on {mountpoint}{state}", record.name, record.source);
    }
    Ok(ExitCode::SUCCESS)
}

/// Finds a session by name or mount point, or says what to do.
pub fn find(target: &str) -> Result<Record> {
    match session::find(target)? {
        Some(record) => Ok(record),
        None => Err(Hinted::error(
            format!("no session {target}"),
            "gridvfs sessions lists those of this user",
        )),
    }
}

/// Shows a session's state and counters.
pub fn show(args: StatusArgs) -> Result<ExitCode> {
    let record = find(&args.session)?;
    let status = Client::connect(&record)?.ask("status")?;
    if args.json {
        print_json(&status)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} on {}", record.source, record.mountpoint.display());
    print_section("", &status);
    Ok(ExitCode::SUCCESS)
}

fn print_section(indent: &str, section: &Value) {
    let Some(fields) = section.as_object() else { return };
    for (key, value) in fields {
        match value {
            Value::Object(_) => {
                println!("{indent}{key}");
                print_section(&format!("{indent}  "), value);
            }
            Value::Number(number) if key.ends_with("bytes") => {
                let bytes = number.as_u64().unwrap_or(0);
                println!("{indent}{key:<24} {bytes} ({})", bytes_text(bytes));
            }
            Value::String(text) => println!("{indent}{key:<24} {text}"),
            Value::Bool(_) if key == "ok" => {}
            other => println!("{indent}{key:<24} {other}"),
        }
    }
}

/// Writes back and waits.
pub fn write_back(args: StatusArgs) -> Result<ExitCode> {
    let record = find(&args.session)?;
    let before = held_bytes(&Client::connect(&record)?.ask("status")?);
    with_progress(&record, before)?;
    if args.json {
        print_json(&json!({"ok": true, "written_back_bytes": before}))?;
    } else {
        println!("{}: {} written back", record.name, bytes_text(before));
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns how much a session holds that is not durable on the state server.
pub fn held_bytes(status: &Value) -> u64 {
    status["buffer"]["held_bytes"].as_u64().unwrap_or(0)
}

/// Has a session write back; a progress bar shows on a terminal while it does.
pub fn with_progress(record: &Record, held_at_start: u64) -> Result<()> {
    let mut client = Client::connect(record)?;
    client.send("writeback")?;
    let mut watcher = Client::connect(record)?;
    let done = std::thread::spawn(move || client.receive());
    let style = indicatif::ProgressStyle::with_template(
        "{prefix} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}",
    )?;
    let bar = indicatif::ProgressBar::new(held_at_start).with_style(style);
    bar.set_prefix(format!("writing back {}", record.name));
    while !done.is_finished() {
        std::thread::sleep(std::time::Duration::from_millis(50));
        let Ok(status) = watcher.ask("status") else { break };
        let held = held_bytes(&status);
        bar.set_length(held_at_start.max(held));
        bar.set_position(held_at_start.saturating_sub(held));
        if let Some(since) =
            status["link"]["unreachable_seconds"].as_u64().filter(|since| *since > 2)
        {
            bar.set_prefix(format!("writing back {} (unreachable for {since} s)", record.name));
        }
    }
    bar.finish_and_clear();
    match done.join() {
        Ok(result) => result.map(drop),
        Err(_) => bail!("the request ended early"),
    }
}
