//! `gridvfs profile`: records what a session touches of its files, for their metadata.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::status::find;
use crate::cli::{ProfileArgs, ProfileVerb};
use crate::directories;
use crate::paths;
use crate::report::{bytes_text, count_text, print_json};
use crate::session::Client;

/// Runs the command.
pub fn run(args: ProfileArgs) -> Result<ExitCode> {
    let (what, args) = match args.verb {
        ProfileVerb::Start(args) => ("start", args),
        ProfileVerb::Stop(args) => ("stop", args),
        ProfileVerb::Show(args) => ("show", args),
    };
    let record = find(&args.session)?;
    let mut reply = Client::connect(&record)?.ask_patiently("profile", json!({"what": what}))?;
    let place = match what {
        "stop" => Some(keep(&record.name, &reply["files"])?),
        _ => None,
    };
    if args.json {
        if let Some(place) = &place {
            reply["profile"] = json!(place);
        }
        print_json(&reply)?;
    } else {
        let files = reply["files"].as_array().map_or(&[][..], Vec::as_slice);
        print(what, &record.name, files, place.as_deref());
    }
    Ok(ExitCode::SUCCESS)
}

/// Keeps what was recorded in the state directory, for `gridvfs meta build --from-profile`. Returns
/// where.
fn keep(session: &str, files: &Value) -> Result<PathBuf> {
    let directory = directories::state()?.join("profiles");
    let place = directory.join(format!("{session}.json"));
    let draft = directory.join(format!("{session}.draft"));
    let text = serde_json::to_string_pretty(&json!({"files": files}))? + "\n";
    std::fs::create_dir_all(&directory)
        .and_then(|()| std::fs::write(&draft, text))
        .and_then(|()| std::fs::rename(&draft, &place))
        .with_context(|| place.display().to_string())?;
    Ok(place)
}

fn print(what: &str, session: &str, files: &[Value], place: Option<&Path>) {
    match (what, files.is_empty()) {
        ("start", _) => println!("recording; gridvfs profile stop {session} ends it"),
        (_, true) => println!("nothing was touched of any file of 256 KiB or more"),
        _ => {}
    }
    for file in files {
        let path = paths::text(&file["path"]);
        let bytes = bytes_text(file["bytes"].as_u64().unwrap_or(0));
        let ranges = file["ranges"].as_array().map_or(0, Vec::len) as u64;
        let kept = match (place, file["error"].as_str()) {
            (None, _) => String::new(),
            (Some(_), None) => ": in its metadata".into(),
            (Some(_), Some(error)) => format!(": not in its metadata: {error}"),
        };
        println!("{path}: {bytes} in {}{kept}", count_text(ranges, "range"));
    }
    if let Some(place) = place.filter(|_| !files.is_empty()) {
        println!("recorded in {}", place.display());
        if files.iter().any(|file| !file["error"].is_null()) {
            println!("    gridvfs meta build --from-profile {} FILE…", place.display());
            println!("writes it into the metadata of FILE, where that can be written");
        }
    }
}
