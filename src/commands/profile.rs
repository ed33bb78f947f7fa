//! `gridvfs profile`: records what a session touches of its files, for their metadata.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use super::status::find;
use crate::cli::{ProfileArgs, ProfileVerb};
use crate::paths;
use crate::report::{bytes_text, count_text, print_json};
use crate::session::Client;

/// Runs the command. Exits with 1 if a file's working set could not be kept.
pub fn run(args: ProfileArgs) -> Result<ExitCode> {
    let (what, args) = match args.verb {
        ProfileVerb::Start(args) => ("start", args),
        ProfileVerb::Stop(args) => ("stop", args),
        ProfileVerb::Show(args) => ("show", args),
    };
    let record = find(&args.session)?;
    let reply = Client::connect(&record)?.ask_with("profile", json!({"what": what}))?;
    let files = reply["files"].as_array().map_or(&[][..], Vec::as_slice);
    let failed = files.iter().filter(|file| !file["error"].is_null()).count();
    if args.json {
        print_json(&reply)?;
    } else {
        print(what, &record.name, files);
    }
    Ok(if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(what: &str, session: &str, files: &[Value]) {
    match (what, files.is_empty()) {
        ("start", _) => println!("recording; gridvfs profile stop {session} ends it"),
        (_, true) => println!("nothing was touched of any file of 256 KiB or more"),
        _ => {}
    }
    for file in files {
        let path = paths::text(&file["path"]);
        let bytes = bytes_text(file["bytes"].as_u64().unwrap_or(0));
        let ranges = count_text(file["ranges"].as_u64().unwrap_or(0), "range");
        match file["error"].as_str() {
            Some(error) => println!("{path}: {bytes} in {ranges}: not kept: {error}"),
            None => println!("{path}: {bytes} in {ranges}"),
        }
    }
}
