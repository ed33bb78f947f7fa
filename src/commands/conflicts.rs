//! `gridvfs conflicts`: files that others changed on the server under unsent data.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use super::status::find;
use crate::cli::{ConflictsArgs, Resolution};
use crate::paths;
use crate::report::{bytes_text, print_json};
use crate::session::Client;

/// Runs the command.
pub fn run(args: ConflictsArgs) -> Result<ExitCode> {
    let record = find(&args.session)?;
    let mut client = Client::connect(&record)?;
    let (Some(path), Some(how)) = (&args.path, args.how) else {
        let reply = client.ask("conflicts")?;
        if args.json {
            print_json(&reply["conflicts"])?;
            return Ok(ExitCode::SUCCESS);
        }
        let conflicts = reply["conflicts"].as_array().map(Vec::as_slice).unwrap_or_default();
        if conflicts.is_empty() {
            println!("{}: no conflicts", record.name);
        }
        for conflict in conflicts {
            println!("{}", line(conflict));
        }
        if !conflicts.is_empty() {
            let name = &record.name;
            println!("resolve: gridvfs conflicts {name} PATH keep-mine|keep-theirs|save-mine");
        }
        return Ok(ExitCode::SUCCESS);
    };
    let path = paths::in_session(&record, path)?;
    let word = match how {
        Resolution::KeepMine => "keep-mine",
        Resolution::KeepTheirs => "keep-theirs",
        Resolution::SaveMine => "save-mine",
    };
    let reply = client.ask_patiently("resolve", json!({"path": path, "how": word}))?;
    if args.json {
        print_json(&reply)?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = paths::text(&path);
    match (how, &reply["saved"]) {
        (Resolution::KeepTheirs, _) => println!("{text}: the server's version is kept"),
        (_, Value::Null) => println!("{text}: what was written here goes to the server"),
        (_, saved) => {
            println!("{text}: what was written here is saved as {}", paths::text(saved));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn line(conflict: &Value) -> String {
    let bytes = bytes_text(conflict["unsent_bytes"].as_u64().unwrap_or(0));
    let kind = conflict["kind"].as_str().unwrap_or_default();
    format!("{}: {kind}; {bytes} unsent", paths::text(&conflict["path"]))
}
