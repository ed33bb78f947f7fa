//! `gridvfs sessions` and `status`: clients of the control socket.

mod prometheus;

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use crate::cli::{JsonArgs, StatusShowArgs};
use crate::paths;
use crate::report::{Exit, Hinted, bytes_text, count_text, print_json};
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
                    "mountpoint": record.mountpoint, "listen": record.listen, "alive": alive,
                    "socket": record.socket().ok(), "cache": record.cache,
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
        println!("{:<16} {} {}{state}", record.name, record.source, record.place());
    }
    Ok(ExitCode::SUCCESS)
}

/// Finds a session by name or mount point, or says what to do.
pub fn find(target: &str) -> Result<Record> {
    match session::find(target)? {
        Some(record) => Ok(record),
        None => Err(Exit::NoSession.mark(Hinted::error(
            format!("no session {target}"),
            "gridvfs sessions lists those of this user",
        ))),
    }
}

/// Takes a standing proxy's state apart: itself with its clients, and each export with its layers, as
/// a session of the name `NAME/EXPORT`. A mount is one part.
pub fn parts(mut status: Value) -> Vec<Value> {
    let Some(Value::Object(exports)) = status.as_object_mut().and_then(|s| s.remove("exports"))
    else {
        return vec![status];
    };
    let (name, place) = (status["session"].as_str().unwrap_or_default(), &status["listen"]);
    let export = |(export, mut part): (String, Value)| {
        part["session"] = json!(format!("{name}/{export}"));
        part["listen"] = place.clone();
        for shared in ["pid", "version", "uptime_seconds"] {
            part[shared] = status[shared].clone();
        }
        part
    };
    let mut parts: Vec<Value> = exports.into_iter().map(export).collect();
    parts.insert(0, status);
    parts
}

/// Says where a session's files can be reached, as its state tells it.
pub fn place(status: &Value) -> String {
    match (status["mountpoint"].as_str(), status["listen"].as_array()) {
        (None, Some(addresses)) => {
            let addresses: Vec<&str> = addresses.iter().filter_map(Value::as_str).collect();
            format!("listening on {}", addresses.join(", "))
        }
        (mountpoint, _) => format!("on {}", mountpoint.unwrap_or_default()),
    }
}

/// Shows the state and counters of a session, or of all.
pub fn show(args: StatusShowArgs) -> Result<ExitCode> {
    let asked = |record: &Record| Client::connect(record)?.ask("status");
    let mut answers = Vec::new();
    match &args.session {
        Some(session) => answers.push(asked(&find(session)?)?),
        None => {
            for record in session::list()? {
                match asked(&record) {
                    Ok(answer) => answers.push(answer),
                    Err(error) => eprintln!("Warning: {error:#}"),
                }
            }
        }
    }
    if args.prometheus {
        let parts: Vec<Value> = answers.into_iter().flat_map(parts).collect();
        print!("{}", prometheus::text(&parts));
        return Ok(ExitCode::SUCCESS);
    }
    match (args.json, &args.session) {
        (true, Some(_)) => print_json(&answers[0])?,
        (true, None) => print_json(&answers)?,
        (false, _) if answers.is_empty() => println!("no sessions"),
        (false, _) => answers.into_iter().for_each(print_status),
    }
    Ok(ExitCode::SUCCESS)
}

fn print_status(status: Value) {
    parts(status).into_iter().for_each(print_part);
}

fn print_part(mut status: Value) {
    println!("{} {}", status["source"].as_str().unwrap_or_default(), place(&status));
    let Some(fields) = status.as_object_mut() else { return };
    let (metadata, latency) = (fields.remove("metadata"), fields.remove("latency"));
    let clients = fields.remove("clients");
    print_section("", &status);
    if let Some(Value::Array(clients)) = clients {
        println!("clients");
        clients.iter().for_each(|client| println!("  {}", client_text(client)));
    }
    if let Some(latency) = latency {
        super::top::print_latency(&latency);
    }
    if let Some(metadata) = metadata {
        print_metadata(metadata);
    }
}

fn client_text(client: &Value) -> String {
    let number = |name: &str| client[name].as_u64().unwrap_or(0);
    format!(
        "{:<16} {}  {} calls  sent us {}  got {}",
        client["name"].as_str().unwrap_or_default(),
        count_text(number("channels"), "channel"),
        number("calls"),
        bytes_text(number("received_bytes")),
        bytes_text(number("sent_bytes")),
    )
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
