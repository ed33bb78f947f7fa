//! `gridvfs config`: which settings a session has, and where each comes from.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use crate::cli::ConfigCommand;
use crate::options::{self, Layers, Origin, Reading, Shown};
use crate::report::{Exit, bytes_text, print_json};
use crate::session::{self, Client};
use crate::source::Source;

/// Runs the command.
pub fn run(command: ConfigCommand) -> Result<ExitCode> {
    let ConfigCommand::Show { session, json } = command;
    let reply = match session::find(&session)?.filter(session::Record::is_running) {
        Some(record) => Client::connect(&record)?.ask("config")?,
        None => of_file(&file(&session)?).map_err(|error| Exit::Usage.mark(error))?,
    };
    if json {
        print_json(&reply)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = reply["settings"].as_array().map_or(&[][..], Vec::as_slice);
    for row in rows {
        let key = row["key"].as_str().unwrap_or_default();
        println!("{key:<20} {:<28} {}", value_text(key, &row["value"]), origin_text(row));
    }
    Ok(ExitCode::SUCCESS)
}

/// The file of a session that does not run, by its path or its name.
fn file(session: &str) -> Result<PathBuf> {
    if session.contains('/') {
        return Ok(std::path::absolute(session)?);
    }
    match options::session_file(session).filter(|_| session::valid_name(session)) {
        Some(path) => Ok(path),
        None => super::status::find(session).map(|_| PathBuf::new()),
    }
}

/// What a file would have a session be mounted with.
fn of_file(path: &Path) -> Result<Value> {
    let reading = Layers::new(Some(path.into()), [], [])?.read()?;
    let Reading { settings, provenance, source, mountpoint, .. } = reading;
    let local = source.as_ref().and_then(|(text, _)| Source::parse(text).ok());
    let is_local = matches!(local, Some(Source::Local(_)));
    let has_cache = settings.cache.wanted.unwrap_or(!is_local);
    let cache = has_cache.then(|| settings.cache.settings()).transpose()?;
    let shown = Shown {
        settings: &settings,
        cache: cache.as_ref(),
        cache_dir: None,
        provenance: &provenance,
    };
    let nothing = || (Value::Null, Origin::Default);
    let source = source.map_or_else(nothing, |(text, origin)| (json!(text), origin));
    let mountpoint = mountpoint.map_or_else(nothing, |(path, origin)| (json!(path), origin));
    let mut rows = vec![
        options::row("source", source.0, source.1),
        options::row("mountpoint", mountpoint.0, mountpoint.1),
    ];
    rows.extend(shown.rows());
    Ok(json!({"session": null, "file": path, "settings": rows}))
}

fn value_text(key: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Number(number) if ["cache_size", "cache_frame", "dirty_max"].contains(&key) => {
            bytes_text(number.as_u64().unwrap_or(0))
        }
        Value::Array(list) => {
            let list: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
            if list.is_empty() { "-".into() } else { list.join(", ") }
        }
        other => other.to_string(),
    }
}

fn origin_text(row: &Value) -> String {
    match (row["from"].as_str(), row["file"].as_str()) {
        (_, Some(file)) => format!("{file}:{}", row["line"]),
        (Some("option"), _) => "-o".into(),
        (from, _) => from.unwrap_or_default().into(),
    }
}
