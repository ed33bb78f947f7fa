//! `gridvfs meta build FILE…`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use gridvfs_metadata::build::{BuildError, BuildOptions, Built, JOBS_MAX, build};
use gridvfs_metadata::format::{Action, block_bytes_valid};
use serde_json::{Value, json};

use super::profile::Profile;
use super::progress::shown;
use super::text::{hashes_text, metadata_value, path_value, share_text};
use crate::cli::MetaBuildArgs;
use crate::options::size;
use crate::report::{Hinted, bytes_text, count_text, error_text, print_json};

/// Builds the metadata of files.
pub fn run(args: &MetaBuildArgs) -> Result<ExitCode> {
    let mut options = options(args)?;
    let profile = args.from_profile.as_deref().map(Profile::read).transpose()?;
    let mut rows = Vec::new();
    let mut failed = false;
    for file in &args.files {
        let set = profile.as_ref().map(|profile| profile.of(file)).transpose();
        let built = set.and_then(|set| {
            options.working_set = set.cloned();
            one(file, &options)
        });
        match built {
            Ok(built) if args.json => rows.push(built_value(file, &built)),
            Ok(built) => println!("{}", built_text(file, &built)),
            Err(error) => {
                failed = true;
                rows.push(json!({"file": path_value(file), "error": format!("{error:#}")}));
                eprintln!("{}", error_text(&error));
            }
        }
    }
    if args.json {
        print_json(&rows)?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn one(file: &Path, options: &BuildOptions) -> Result<Built> {
    shown("reading", file, |progress| build(file, options, progress), || false)?.map_err(hinted)
}

/// Adds what to do about an error.
pub fn hinted(error: BuildError) -> anyhow::Error {
    let hint = match &error {
        BuildError::Changed(_) => "run it again when nothing writes the file",
        BuildError::TooLarge => "--block-size with a larger size",
        BuildError::Format { .. } => "gridvfs meta remove removes what this program cannot read",
        BuildError::Unfit(gridvfs_metadata::format::FormatError::Contradiction(_)) => {
            "the file changed without its mtime: --hash builds the hashes anew"
        }
        _ => return error.into(),
    };
    Hinted::error(error.to_string(), hint)
}

/// Returns what is to be built, but for the working set.
pub fn options(args: &MetaBuildArgs) -> Result<BuildOptions> {
    let any = args.zero || args.hash || !args.actions.is_empty() || args.from_profile.is_some();
    if args.jobs > JOBS_MAX {
        bail!("--jobs {}: {JOBS_MAX} are the most", args.jobs);
    }
    Ok(BuildOptions {
        zero: args.zero || !any,
        hashes: args.hash || !any,
        actions: actions(&args.actions)?,
        working_set: None,
        block_bytes: args.block_size.as_deref().map(block_bytes).transpose()?,
        jobs: args.jobs,
    })
}

fn block_bytes(text: &str) -> Result<u32> {
    let bytes = size(text).context("--block-size")?;
    match u32::try_from(bytes) {
        Ok(bytes) if block_bytes_valid(bytes) => Ok(bytes),
        _ => bail!("--block-size {text}: a power of two from 4K to 1M is wanted"),
    }
}

fn actions(texts: &[String]) -> Result<Option<Vec<Action>>> {
    match texts {
        [] => Ok(None),
        [none] if none == "none" => Ok(Some(Vec::new())),
        texts => {
            let actions = texts.iter().map(|text| text.parse()).collect::<Result<Vec<_>, _>>();
            actions.map(Some).context("--action")
        }
    }
}

/// Returns what was built as JSON.
pub fn built_value(file: &Path, built: &Built) -> Value {
    let mut value = metadata_value(&built.metadata);
    value["file"] = path_value(file);
    value["metadata_file"] = path_value(&built.path);
    value["metadata_bytes"] = built.metadata_bytes.into();
    value["read_bytes"] = built.read_bytes.into();
    value
}

/// Returns what was built in a line.
pub fn built_text(file: &Path, built: &Built) -> String {
    let metadata = &built.metadata;
    let size = metadata.identity.size;
    let mut parts = Vec::new();
    if let Some(zero) = &metadata.zero {
        let zeros = bytes_text(zero.zero_bytes());
        let share = share_text(zero.zero_bytes(), size);
        parts.push(format!("{share} zero ({zeros} of {})", bytes_text(size)));
    }
    if let Some(hashes) = &metadata.hashes {
        parts.push(hashes_text(hashes.listed()));
    }
    if !metadata.actions.is_empty() {
        let actions: Vec<String> = metadata.actions.iter().map(ToString::to_string).collect();
        parts.push(actions.join(" "));
    }
    if let Some(set) = &metadata.working_set {
        let ranges = count_text(set.ranges.len() as u64, "range");
        parts.push(format!("working set of {} in {ranges}", bytes_text(set.bytes())));
    }
    if parts.is_empty() {
        parts.push("nothing known".into());
    }
    let replaced = match &built.replaced {
        Some(error) => format!("; replaced what was there: {error}"),
        None => String::new(),
    };
    let bytes = bytes_text(built.metadata_bytes);
    format!("{}: {}; metadata {bytes}{replaced}", file.display(), parts.join(", "))
}
