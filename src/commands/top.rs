//! `gridvfs top`: what sessions do while they do it. Rates and percentiles are those of the interval
//! between two looks.

mod interval;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use super::status::{find, parts, place};
use crate::cli::TopArgs;
use crate::paths;
use crate::report::{bytes_text, count_text, print_json};
use crate::session::{self, Client, Record};

pub use interval::{Times, interval};

/// So many files are compared: those with the most bytes since the kernel knows them. The busiest of
/// an interval is among them, unless so many others were busier before.
const FILES_ASKED: u64 = 500;

/// Clears the screen and goes to its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// A session as it was when it was last asked.
struct Look {
    at: Instant,
    status: Value,
}

impl Look {
    /// A standing proxy and each of its exports by themselves; with their names.
    fn parts(self) -> impl Iterator<Item = (String, Self)> {
        parts(self.status).into_iter().map(move |status| {
            let name = status["session"].as_str().unwrap_or_default().to_string();
            (name, Self { at: self.at, status })
        })
    }
}

/// Runs the command, until it is interrupted.
pub fn run(args: TopArgs) -> Result<ExitCode> {
    let interval_wanted = Duration::from_secs_f64(args.interval);
    let named = args.session.as_deref().map(find).transpose()?;
    let records = || match &named {
        Some(record) => Ok(vec![record.clone()]),
        None => session::list(),
    };
    let mut before: Vec<(String, Look)> = Vec::new();
    let mut first = true;
    loop {
        let mut now = Vec::new();
        for record in records()? {
            match look(&record) {
                Ok(look) => now.extend(look.parts()),
                // One that was named is what this is about; of several, others go on.
                Err(error) if named.is_some() => return Err(error),
                Err(error) => log::debug!("{error:#}"),
            }
        }
        // Since the start, where there is nothing to compare with yet.
        let mut sessions: Vec<Value> = now
            .iter()
            .map(|(name, look)| {
                let last = before.iter().find(|(other, _)| other == name).map(|(_, look)| look);
                match last {
                    Some(last) => interval(&last.status, &look.status, look.at - last.at),
                    None => {
                        let up = look.status["uptime_seconds"].as_u64().unwrap_or(0).max(1);
                        interval(&Value::Null, &look.status, Duration::from_secs(up))
                    }
                }
            })
            .collect();
        for files in sessions.iter_mut().filter_map(|session| session["files"].as_array_mut()) {
            files.truncate(args.files);
        }
        if !first {
            show(&args, &sessions)?;
            if args.once {
                return Ok(ExitCode::SUCCESS);
            }
        }
        first = false;
        before = now;
        std::thread::sleep(interval_wanted);
    }
}

fn look(record: &Record) -> Result<Look> {
    let status = Client::connect(record)?.ask_with("status", json!({ "files": FILES_ASKED }))?;
    Ok(Look { at: Instant::now(), status })
}

fn show(args: &TopArgs, sessions: &[Value]) -> Result<()> {
    if args.json {
        print_json(&json!({ "sessions": sessions }))?;
        return Ok(std::io::stdout().flush()?);
    }
    let mut text = String::new();
    if std::io::stdout().is_terminal() && !args.once {
        text += CLEAR;
    }
    if sessions.is_empty() {
        text += "no sessions\n";
    }
    sessions.iter().for_each(|session| text += &session_text(session));
    print!("{text}");
    Ok(std::io::stdout().flush()?)
}

/// A session's part of the screen.
fn session_text(session: &Value) -> String {
    let text = |name: &str| session[name].as_str().unwrap_or_default();
    let mut lines = vec![format!("{}  {} {}", text("name"), text("source"), place(session))];
    let rate = |value: &Value| value.as_f64().unwrap_or(0.0);
    let bytes = |value: &Value| format!("{}/s", bytes_text(rate(value) as u64));
    let (cache, link) = (&session["cache"], &session["link"]);
    if cache.is_object() {
        let hits = match cache["hit_ratio"].as_f64() {
            Some(ratio) => format!("{:5.1} % hits", ratio * 100.0),
            None => "no reads".into(),
        };
        lines.push(format!(
            "  cache     {:>8.1} hits/s  {:>8.1} misses/s  {hits}  unsent {} in {}",
            rate(&cache["hits_per_second"]),
            rate(&cache["misses_per_second"]),
            bytes_text(cache["unsent_bytes"].as_u64().unwrap_or(0)),
            count_text(cache["unsent_files"].as_u64().unwrap_or(0), "file"),
        ));
    }
    if link.is_object() {
        let state = match link["unreachable_seconds"].as_u64() {
            Some(seconds) => format!("no answer for {seconds} s"),
            None => format!("{} of {} stripes", link["stripes_alive"], link["stripes"]),
        };
        lines.push(format!(
            "  link      down {:>12}  up {:>12}  {:>8.1} calls/s  {state}",
            bytes(&link["received_bytes_per_second"]),
            bytes(&link["sent_bytes_per_second"]),
            rate(&link["calls_per_second"]),
        ));
    }
    for (title, times) in [("requests", &session["requests"]), ("calls", &session["calls"])] {
        for (kind, time) in times.as_object().into_iter().flatten() {
            if time["count"].as_u64().unwrap_or(0) > 0 {
                lines.push(times_line(title, kind, time));
            }
        }
    }
    for client in session["clients"].as_array().into_iter().flatten() {
        lines.push(format!(
            "  client    down {:>12}  up {:>12}  {:>8.1} calls/s  {}, {}",
            bytes(&client["sent_bytes_per_second"]),
            bytes(&client["received_bytes_per_second"]),
            rate(&client["calls_per_second"]),
            client["name"].as_str().unwrap_or_default(),
            count_text(client["channels"].as_u64().unwrap_or(0), "channel"),
        ));
    }
    let files = session["files"].as_array().map_or(&[][..], Vec::as_slice);
    for file in files {
        lines.push(format!(
            "  file      read {:>12}  write {:>12}  {}",
            bytes(&file["read_bytes_per_second"]),
            bytes(&file["written_bytes_per_second"]),
            paths::text(&file["path"]),
        ));
    }
    lines.join("\n") + "\n"
}

fn times_line(title: &str, kind: &str, time: &Value) -> String {
    let rate = time["per_second"].as_f64().unwrap_or(0.0);
    let ms = |name: &str| match time[name].as_f64() {
        Some(ms) if ms < 10.0 => format!("{ms:.3} ms"),
        Some(ms) => format!("{ms:.0} ms"),
        None => "over 1 min".into(),
    };
    let (p50, p90, p99) = (ms("p50_ms"), ms("p90_ms"), ms("p99_ms"));
    format!("  {title:<9} {rate:>8.1}/s  {kind:<6} p50 {p50:>10}  p90 {p90:>10}  p99 {p99:>10}")
}

/// Prints times since a session began, as `gridvfs status` does.
pub fn print_latency(latency: &Value) {
    println!("latency");
    for title in ["requests", "calls"] {
        for (kind, times) in latency[title].as_object().into_iter().flatten() {
            let times = Times::of(times);
            if times.count() > 0 {
                let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|share| times.percentile_text(share));
                let count = times.count();
                println!("  {title:<9} {kind:<6} {count:>9}  p50 {p50}  p90 {p90}  p99 {p99}");
            }
        }
    }
}
