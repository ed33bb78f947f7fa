//! `gridvfs meta`: metadata files, made on the state server or through a mount.

mod build;
mod profile;
mod progress;
mod show;
mod text;
mod verify;
mod watch;

use std::process::ExitCode;

use anyhow::Result;
use gridvfs_metadata::build::Place;
use serde_json::json;

use crate::cli::{MetaCommand, MetaRemoveArgs};
use crate::paths;
use crate::report::{error_text, print_json};

/// Runs the command.
pub fn run(command: MetaCommand) -> Result<ExitCode> {
    match command {
        MetaCommand::Build(args) => match &args.watch {
            Some(directory) => watch::run(directory, &args),
            None => build::run(&args),
        },
        MetaCommand::Show(args) => show::run(&args),
        MetaCommand::Verify(args) => verify::run(&args),
        MetaCommand::Remove(args) => remove(&args),
    }
}

fn remove(args: &MetaRemoveArgs) -> Result<ExitCode> {
    let mut rows = Vec::new();
    let mut failed = false;
    for file in &args.files {
        let removed = Place::of_either(file).and_then(|place| place.remove());
        let mut row = json!({"file": paths::to_value(file.as_os_str().as_encoded_bytes())});
        match removed {
            Ok(removed) => {
                row["removed"] = removed.into();
                if !args.json {
                    let what = if removed { "metadata removed" } else { "there was no metadata" };
                    println!("{}: {what}", file.display());
                }
            }
            Err(error) => {
                failed = true;
                row["error"] = error.to_string().into();
                eprintln!("{}", error_text(&error.into()));
            }
        }
        rows.push(row);
    }
    if args.json {
        print_json(&rows)?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
