//! `gridvfs meta verify`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use gridvfs_metadata::build::BuildError;
use gridvfs_metadata::format::FormatError;
use gridvfs_metadata::verify::{Claim, Verdict, verify};
use serde_json::{Value, json};

use super::build::hinted;
use super::progress::shown;
use super::text::{hashes_text, path_value};
use crate::cli::MetaVerifyArgs;
use crate::report::{Hinted, count_text, error_text, print_json};

/// What is said of a file, in the order in which one outweighs the other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Finding {
    True,
    Wrong,
    NotChecked,
}

/// Runs the command.
pub fn run(args: &MetaVerifyArgs) -> Result<ExitCode> {
    let mut rows = Vec::new();
    let mut worst = Finding::True;
    for file in &args.files {
        let checked =
            shown("checking", file, |progress| verify(file, args.jobs, progress), || false)?;
        let (finding, value) = match checked {
            Ok(Some(verdict)) => said(args, file, &verdict),
            Ok(None) => {
                let hint = format!("gridvfs meta build {}", file.display());
                let error = Hinted::error(format!("{} has no metadata", file.display()), hint);
                refused(file, Finding::NotChecked, &error)
            }
            Err(error) => {
                let version = |error: &FormatError| matches!(error, FormatError::Version(_));
                let finding = match &error {
                    BuildError::Format { error, .. } if !version(error) => Finding::Wrong,
                    _ => Finding::NotChecked,
                };
                refused(file, finding, &hinted(error))
            }
        };
        worst = worst.max(finding);
        rows.push(value);
    }
    if args.json {
        print_json(&rows)?;
    }
    Ok(ExitCode::from(worst as u8))
}

fn refused(file: &Path, finding: Finding, error: &anyhow::Error) -> (Finding, Value) {
    eprintln!("{}", error_text(error));
    let holds = (finding == Finding::Wrong).then_some(false);
    (finding, json!({"file": path_value(file), "holds": holds, "error": format!("{error:#}")}))
}

fn said(args: &MetaVerifyArgs, file: &Path, verdict: &Verdict) -> (Finding, Value) {
    let first = verdict.first_wrong.map(|range| {
        let claim = match range.claim {
            Claim::Zero => "zero",
            Claim::Hash => "hash",
        };
        json!({"offset": range.offset, "length_bytes": range.length, "claim": claim})
    });
    let value = json!({
        "file": path_value(file), "holds": verdict.holds(), "current": verdict.current,
        "wrong_zero_blocks": verdict.wrong_zeros, "wrong_hash_blocks": verdict.wrong_hashes,
        "first_wrong": first,
    });
    match (args.json, verdict.holds()) {
        (true, _) => {}
        (false, true) => println!("{}: all true{}", file.display(), what(verdict)),
        (false, false) => println!("{}: {}", file.display(), wrong_text(verdict)),
    }
    (if verdict.holds() { Finding::True } else { Finding::Wrong }, value)
}

fn what(verdict: &Verdict) -> String {
    let zero =
        verdict.metadata.zero.as_ref().map(|zero| count_text(zero.zero_blocks(), "zero block"));
    let hashes = verdict.metadata.hashes.as_ref().map(|hashes| hashes_text(hashes.listed()));
    let parts: Vec<String> = zero.into_iter().chain(hashes).collect();
    if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) }
}

fn wrong_text(verdict: &Verdict) -> String {
    let Some(first) = verdict.first_wrong else {
        return "the metadata is of another version of the file".into();
    };
    let claim = match first.claim {
        Claim::Zero => "is said to be zero, and is not",
        Claim::Hash => "has another hash",
    };
    let blocks = count_text(verdict.wrong_zeros + verdict.wrong_hashes, "block");
    format!("WRONG: {} bytes from {} on: {claim}; {blocks} in all", first.length, first.offset)
}
