//! `gridvfs sessions`, `status`, `writeback` and `flush`: clients of the control socket.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::cli::{JsonArgs, StatusArgs};
use crate::paths;
use crate::report::{Hinted, bytes_text, count_text, print_json};
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
    let mut status = Client::connect(&record)?.ask("status")?;
    if args.json {
        print_json(&status)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} on {}", record.source, record.mountpoint.display());
    let metadata = status.as_object_mut().and_then(|status| status.remove("metadata"));
    print_section("", &status);
    if let Some(metadata) = metadata {
        print_metadata(metadata);
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the counters of metadata, and which share of what was read the zero maps have answered.
fn print_metadata(mut metadata: Value) {
    let Some(fields) = metadata.as_object_mut() else { return };
    let files = fields.remove("files").unwrap_or_default();
    println!("metadata");
    print_section("  ", &metadata);
    let files = files.as_array().map_or(&[][..], Vec::as_slice);
    if files.is_empty() {
        return;
    }
    println!("zero maps");
    println!("  {:<24} {}", "all files", zeros_text(&metadata));
    for file in files {
        println!("  {:<24} {}", paths::text(&file["path"]), zeros_text(file));
    }
}

/// The blocks of the paper, in bytes: it counts reads, which NFS version 2 made of 8 KiB each.
const PAPER_BLOCK_BYTES: u64 = 8 << 10;

fn zeros_text(read: &Value) -> String {
    let bytes = |name: &str| read[name].as_u64().unwrap_or(0);
    let (zeros, all) = (bytes("zero_bytes"), bytes("guided_bytes"));
    let blocks = |bytes: u64| bytes.div_ceil(PAPER_BLOCK_BYTES);
    let percent = zeros as f64 * 100.0 / all.max(1) as f64;
    format!("answered {} of {} blocks of 8 KiB read ({percent:.1} %)", blocks(zeros), blocks(all))
}

/// Prints the fields of an object, and of those within, a line each.
pub fn print_section(indent: &str, section: &Value) {
    let Some(fields) = section.as_object() else { return };
    for (key, value) in fields {
        match value {
            Value::Object(_) => {
                println!("{indent}{key}");
                print_section(&format!("{indent}  "), value);
            }
            Value::Number(number) if key.ends_with("bytes") || key == "dirty_max" => {
                let bytes = number.as_u64().unwrap_or(0);
                println!("{indent}{key:<24} {bytes} ({})", bytes_text(bytes));
            }
            Value::String(text) => println!("{indent}{key:<24} {text}"),
            Value::Bool(_) if key == "ok" => {}
            Value::Array(items) => {
                let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
                println!("{indent}{key:<24} {}", items.join(", "));
            }
            other => println!("{indent}{key:<24} {other}"),
        }
    }
}

/// Writes back and waits.
pub fn write_back(args: StatusArgs) -> Result<ExitCode> {
    let record = find(&args.session)?;
    let before = Pending::of(&Client::connect(&record)?.ask("status")?);
    with_progress(&record, "writeback")?;
    if args.json {
        print_json(&json!({"ok": true, "written_back_bytes": before.bytes}))?;
    } else {
        println!("{}: {} written back", record.name, bytes_text(before.bytes));
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes back, drops what is clean, and waits.
pub fn flush(args: StatusArgs) -> Result<ExitCode> {
    let record = find(&args.session)?;
    let before = Pending::of(&Client::connect(&record)?.ask("status")?);
    with_progress(&record, "flush")?;
    if args.json {
        print_json(&json!({"ok": true, "written_back_bytes": before.bytes}))?;
    } else {
        let bytes = bytes_text(before.bytes);
        println!("{}: {bytes} written back, the cache is empty", record.name);
    }
    Ok(ExitCode::SUCCESS)
}

/// What a session holds that is not durable on the state server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Bytes.
    pub bytes: u64,
    /// Files; 0 if that is not known.
    pub files: u64,
    /// For how many seconds the server has not answered.
    pub unreachable_seconds: Option<u64>,
}

impl Pending {
    /// Reads it from a session's status.
    pub fn of(status: &Value) -> Self {
        let unsent = |name: &str| status["cache"][name].as_u64();
        let held = status["buffer"]["held_bytes"].as_u64().unwrap_or(0);
        Self {
            // What the buffers hold is part of what the cache has not sent.
            bytes: unsent("unsent_bytes").unwrap_or(held),
            files: unsent("unsent_files").unwrap_or(0),
            unreachable_seconds: status["link"]["unreachable_seconds"].as_u64(),
        }
    }
}

impl std::fmt::Display for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} not yet on the state server", bytes_text(self.bytes))?;
        if self.files > 0 {
            write!(f, " ({})", count_text(self.files, "file"))?;
        }
        match self.unreachable_seconds {
            Some(seconds) => write!(f, ", which has not answered for {seconds} s"),
            None => Ok(()),
        }
    }
}

/// When it is first said, without a terminal, what is waited for, and how often after that.
const SAY_FIRST: Duration = Duration::from_secs(3);
const SAY_EVERY: Duration = Duration::from_secs(30);

/// Shows how much is not yet sent while something is waited for.
pub struct Watch {
    record: Record,
    client: Client,
    bar: indicatif::ProgressBar,
    most_bytes: u64,
    say_at: Instant,
}

impl Watch {
    /// Begins; `what` says what is being done.
    pub fn new(record: &Record, what: &str) -> Result<Self> {
        let style = indicatif::ProgressStyle::with_template(
            "{prefix} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} {msg}",
        )?;
        let bar = indicatif::ProgressBar::new(0).with_style(style);
        bar.set_prefix(format!("{what} {}", record.name));
        Ok(Self {
            record: record.clone(),
            client: Client::connect(record)?,
            bar,
            most_bytes: 0,
            say_at: Instant::now() + SAY_FIRST,
        })
    }

    /// Looks and shows, until `done`.
    pub fn until(&mut self, done: &dyn Fn() -> bool) {
        while !done() {
            std::thread::sleep(Duration::from_millis(20));
            let Ok(status) = self.client.ask("status") else { break };
            let pending = Pending::of(&status);
            self.most_bytes = self.most_bytes.max(pending.bytes);
            if self.most_bytes > 0 {
                self.bar.set_length(self.most_bytes);
                self.bar.set_position(self.most_bytes - pending.bytes);
            }
            if let Some(since) = pending.unreachable_seconds.filter(|since| *since > 2) {
                self.bar.set_message(format!("(no answer for {since} s)"));
            } else {
                self.bar.set_message("");
            }
            if Instant::now() >= self.say_at && pending.bytes > 0 {
                self.say_at = Instant::now() + SAY_EVERY;
                let hint = match status["cache"] {
                    Value::Object(_) => format!(
                        "; gridvfs umount --preserve {} leaves it for the next mount",
                        self.record.name
                    ),
                    _ => String::new(),
                };
                let words = format!("{}: waiting: {pending}{hint}", self.record.name);
                match self.bar.is_hidden() {
                    true => eprintln!("{words}"),
                    false if pending.unreachable_seconds.is_some() => self.bar.println(words),
                    false => {}
                }
            }
            std::thread::sleep(Duration::from_millis(30));
        }
        self.bar.finish_and_clear();
    }
}

/// Has a session write back (or flush); a progress bar shows on a terminal while it does.
pub fn with_progress(record: &Record, verb: &str) -> Result<()> {
    let mut client = Client::connect(record)?;
    client.send(verb)?;
    let done = std::thread::spawn(move || client.receive());
    Watch::new(record, "writing back")?.until(&|| done.is_finished());
    match done.join() {
        Ok(result) => result.map(drop),
        Err(_) => bail!("the request ended early"),
    }
}
