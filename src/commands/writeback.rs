//! `gridvfs writeback` and `flush`, and what shows how far a write-back is.

use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::status::find;
use crate::cli::{StatusArgs, WriteBackArgs};
use crate::interrupts;
use crate::report::{Exit, Hinted, bytes_text, count_text, print_json};
use crate::session::{Client, Record};

/// Writes back and waits.
pub fn write_back(args: WriteBackArgs) -> Result<ExitCode> {
    run(args, "writeback", "written back")
}

/// Writes back, drops what is clean, and waits.
pub fn flush(args: WriteBackArgs) -> Result<ExitCode> {
    run(args, "flush", "written back, the cache is empty")
}

/// Takes back a write-back that is under way.
pub fn cancel(args: StatusArgs) -> Result<ExitCode> {
    let record = find(&args.session)?;
    let reply = Client::connect(&record)?.ask("cancel")?;
    if args.json {
        print_json(&reply)?;
        return Ok(ExitCode::SUCCESS);
    }
    match reply["cancelled"].as_bool() {
        Some(true) => println!(
            "{}: the write-back is cancelled, {} not sent",
            record.name,
            bytes_text(reply["unsent_bytes"].as_u64().unwrap_or(0))
        ),
        _ => println!("{}: nothing is being written back", record.name),
    }
    Ok(ExitCode::SUCCESS)
}

fn run(args: WriteBackArgs, verb: &str, done: &str) -> Result<ExitCode> {
    let record = find(&args.session)?;
    let deadline = Deadline::after(args.timeout);
    let mut client = Client::connect(&record)?;
    let status = client.ask_within(deadline.left().unwrap_or(Duration::MAX), "status", json!({}));
    let before = Pending::of(&status?);
    with_progress(&record, verb, deadline)?;
    if args.json {
        print_json(&json!({
            "ok": true, "session": record.name, "written_back_bytes": before.bytes,
        }))?;
    } else {
        println!("{}: {} {done}", record.name, bytes_text(before.bytes));
    }
    Ok(ExitCode::SUCCESS)
}

/// Until when somebody is willing to wait; by default for ever.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// Begins to count.
    pub fn after(seconds: Option<f64>) -> Self {
        let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Self(time.and_then(|time| Instant::now().checked_add(time)))
    }

    /// Returns the time that is left.
    pub fn left(self) -> Option<Duration> {
        self.0.map(|end| end.saturating_duration_since(Instant::now()))
    }

    /// Says whether it is over.
    pub fn is_over(self) -> bool {
        self.left().is_some_and(|left| left.is_zero())
    }
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
        if let Some(exports) = status["exports"].as_object() {
            let none = Self { bytes: 0, files: 0, unreachable_seconds: None };
            return exports.values().map(Self::of).fold(none, |sum, one| Self {
                bytes: sum.bytes + one.bytes,
                files: sum.files + one.files,
                unreachable_seconds: sum.unreachable_seconds.max(one.unreachable_seconds),
            });
        }
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

/// How long it may take to learn what is left when time is over.
const LAST_LOOK_MAX: Duration = Duration::from_secs(2);

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

    /// Looks and shows, until `done`, or until SIGINT or SIGTERM comes.
    pub fn until(&mut self, done: &dyn Fn() -> bool) {
        while !done() && !interrupts::asked() {
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

/// Waits for a thread. Returns false if SIGINT or SIGTERM comes first.
pub fn ended_or_interrupted<T>(thread: &JoinHandle<T>) -> bool {
    while !thread.is_finished() {
        if interrupts::asked() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Has a session write back (or flush); a progress bar shows on a terminal while it does.
pub fn with_progress(record: &Record, verb: &str, deadline: Deadline) -> Result<()> {
    interrupts::watch()?;
    let mut client = Client::connect(record)?;
    client.send(verb)?;
    client.limit(deadline.left())?;
    let done = std::thread::spawn(move || client.receive());
    Watch::new(record, "writing back")?.until(&|| done.is_finished());
    if !ended_or_interrupted(&done) {
        let status = Client::connect(record)?.ask_within(LAST_LOOK_MAX, "status", json!({}))?;
        return Err(Exit::Interrupted.mark(Hinted::error(
            format!("{}: interrupted: {}", record.name, Pending::of(&status)),
            format!("the session goes on sending; gridvfs cancel {} takes that back", record.name),
        )));
    }
    let Ok(result) = done.join() else { bail!("the request ended early") };
    match result {
        Err(_) if deadline.is_over() => {
            let status = Client::connect(record)?.ask_within(LAST_LOOK_MAX, "status", json!({}))?;
            let pending = Pending::of(&status);
            Err(Exit::TimedOut.mark(Hinted::error(
                format!("{}: time is over: {pending}", record.name),
                "the session goes on sending; nothing is lost",
            )))
        }
        result => result.map(drop),
    }
}
