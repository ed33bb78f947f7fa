//! `gridvfs set`: changes a session's settings while it runs.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::status::{find, print_section};
use crate::cli::SetArgs;
use crate::options::Changes;
use crate::report::print_json;
use crate::session::Client;

/// Runs the command.
pub fn run(args: SetArgs) -> Result<ExitCode> {
    // What is wrong with the words is said before anybody is asked.
    Changes::parse(args.changes.iter().map(String::as_str))?;
    let record = find(&args.session)?;
    let reply = Client::connect(&record)?.ask_with("set", json!({"changes": args.changes}))?;
    if args.json {
        print_json(&reply["settings"])?;
    } else {
        print_section("", &reply["settings"]);
    }
    if let Some(note) = reply["note"].as_str() {
        eprintln!("Note: {note}");
    }
    Ok(ExitCode::SUCCESS)
}
