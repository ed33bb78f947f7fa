//! `gridvfs meta show`.

use std::process::ExitCode;

use anyhow::Result;
use gridvfs_metadata::build::Place;

use super::build::hinted;
use super::text::{metadata_value, path_value, rows};
use crate::cli::MetaShowArgs;
use crate::report::{Hinted, bytes_text, print_json};

/// Runs the command.
pub fn run(args: &MetaShowArgs) -> Result<ExitCode> {
    let place = Place::of_either(&args.file)?;
    let Some(metadata) = place.read().map_err(hinted)? else {
        return Err(Hinted::error(
            format!("{} has no metadata", place.subject().display()),
            format!("gridvfs meta build {}", args.file.display()),
        ));
    };
    let now = place.identity()?;
    let current = now == Some(metadata.identity);
    if args.json {
        let mut value = metadata_value(&metadata);
        value["file"] = path_value(place.subject());
        value["metadata_file"] = path_value(place.metadata());
        value["metadata_bytes"] = place.metadata_bytes().into();
        value["file_exists"] = now.is_some().into();
        value["current"] = current.into();
        print_json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |name: &str, text: &str| println!("{name:<12} {text}");
    row("file", &place.subject().display().to_string());
    row("metadata", &bytes_text(place.metadata_bytes()));
    let state = match now {
        Some(_) if current => "yes",
        Some(_) => "no: the file has changed since, zero map and hashes are not used",
        None => "no: the file does not exist",
    };
    row("current", state);
    for (name, text) in rows(&metadata) {
        row(name, &text);
    }
    Ok(ExitCode::SUCCESS)
}
