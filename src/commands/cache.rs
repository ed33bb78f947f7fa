//! `gridvfs cache`: what a session's disk cache holds, and what it is to hold.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use super::status::find;
use crate::cache_dir;
use crate::cli::{CacheCommand, CachePathsArgs, JsonArgs, StatusArgs};
use crate::options::size;
use crate::paths;
use crate::report::{bytes_text, count_text, print_json, unsent_text};
use crate::session::{Client, Record};

/// So many files are shown one by one.
const FILES_SHOWN_MAX: usize = 20;

/// Runs the command.
pub fn run(command: CacheCommand) -> Result<ExitCode> {
    match command {
        CacheCommand::List(args) => list(args),
        CacheCommand::Status(args) => status(args),
        CacheCommand::Verify(args) => verify(args),
        CacheCommand::Warm(args) => warm(args),
        CacheCommand::Pin(args) => pin(args, true),
        CacheCommand::Unpin(args) => pin(args, false),
        CacheCommand::Prune { session, size, json } => prune(&session, &size, json),
    }
}

fn list(args: JsonArgs) -> Result<ExitCode> {
    let caches = cache_dir::list()?;
    if args.json {
        let row = |cache: &cache_dir::Found| {
            json!({
                "directory": cache.path, "source": cache.source, "disk_bytes": cache.disk_bytes,
                "sessions": cache.users,
                "unsent_bytes": cache.unsent.map(|unsent| unsent.bytes),
                "unsent_files": cache.unsent.map(|unsent| unsent.files),
                "unsent_names": cache.unsent.map(|unsent| unsent.names),
            })
        };
        print_json(&caches.iter().map(row).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    if caches.is_empty() {
        println!("no caches");
    }
    for cache in caches {
        let source = cache.source.as_deref().unwrap_or("(source not known)");
        println!("{source}");
        print!("    {}  {}", cache.path.display(), bytes_text(cache.disk_bytes));
        if !cache.users.is_empty() {
            print!("  in use by {}", cache.users.join(", "));
        }
        if let Some(unsent) = cache.unsent.filter(|unsent| !unsent.is_empty()) {
            print!("  {} not sent: mount the source to send it", unsent_text(&unsent));
        }
        println!();
    }
    Ok(ExitCode::SUCCESS)
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or(0)
}

fn list_of<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn status(args: StatusArgs) -> Result<ExitCode> {
    let record = find(&args.session)?;
    let status = Client::connect(&record)?.ask_patiently("cache-status", Value::Null)?;
    if args.json {
        print_json(&status)?;
        return Ok(ExitCode::SUCCESS);
    }
    let count = |name: &str| number(&status, name);
    let bytes = |name: &str| bytes_text(count(name));
    let row = |name: &str, text: String| println!("{name:<12} {text}");
    row("directory", status["directory"].as_str().unwrap_or_default().into());
    let percent = count("used_bytes") as f64 * 100.0 / count("size_bytes").max(1) as f64;
    row("size", bytes("size_bytes"));
    row(
        "used",
        format!("{} ({percent:.1} %), {} on disk", bytes("used_bytes"), bytes("disk_bytes")),
    );
    let ratio = match status["hit_ratio"].as_f64() {
        Some(ratio) => format!("  hit ratio {:.1} %", ratio * 100.0),
        None => String::new(),
    };
    row("reads", format!("{} hits, {} misses{ratio}", count("hits"), count("misses")));
    row("joined", format!("{} reads waited for what another had asked for", count("joined")));
    row(
        "unsent",
        match (count("unsent_files"), count("unsent_names")) {
            (0, 0) => "nothing".into(),
            (files, names) => format!(
                "{} in {}, {}, {} in conflict",
                bytes("unsent_bytes"),
                count_text(files, "file"),
                count_text(names, "name change"),
                count("unsent_conflicts")
            ),
        },
    );
    row("sent", format!("{}, {} dropped before", bytes("sent_bytes"), bytes("dropped_bytes")));
    row("evicted", count_text(count("evicted"), "frame"));
    row("repaired", format!("{} damaged and dropped", count_text(count("repaired"), "block")));
    row("journal", bytes("journal_bytes"));
    row("pinned", count_text(list_of(&status, "pinned").len() as u64, "file"));
    let files = list_of(&status, "unsent");
    for file in files.iter().take(FILES_SHOWN_MAX) {
        let error = match (file["conflict"].as_bool(), file["error"].as_str()) {
            (Some(true), _) => format!("  in conflict: gridvfs conflicts {}", record.name),
            (_, Some(error)) => format!("  {error}"),
            _ => String::new(),
        };
        let bytes = bytes_text(number(file, "unsent_bytes"));
        println!("    {bytes:>12}  {}{error}", paths::text(&file["path"]));
    }
    let more = count("unsent_not_listed") + files.len().saturating_sub(FILES_SHOWN_MAX) as u64;
    if more > 0 {
        println!("    and {more} more");
    }
    Ok(ExitCode::SUCCESS)
}

/// A bar that shows on a terminal; its length is told with the first progress.
fn bar(what: &str, bytes: bool) -> Result<indicatif::ProgressBar> {
    let template = match bytes {
        true => "{prefix} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}",
        false => "{prefix} {wide_bar} {pos}/{len} {eta}",
    };
    let style = indicatif::ProgressStyle::with_template(template)?;
    let bar = indicatif::ProgressBar::new(0).with_style(style);
    bar.set_prefix(what.to_string());
    Ok(bar)
}

fn show(bar: &indicatif::ProgressBar, progress: &Value) {
    if let Some(files) = progress["files"].as_u64() {
        bar.set_prefix(format!("{} found", count_text(files, "file")));
        return;
    }
    if number(progress, "total") == 0 {
        return;
    }
    bar.set_length(number(progress, "total"));
    bar.set_position(number(progress, "done"));
}

fn verify(args: StatusArgs) -> Result<ExitCode> {
    let record = find(&args.session)?;
    let bar = bar("verifying", false)?;
    let mut client = Client::connect(&record)?;
    let reply = client.ask_watching("cache-verify", Value::Null, &mut |told| show(&bar, told));
    bar.finish_and_clear();
    let reply = reply?;
    let bad = number(&reply, "bad_blocks");
    if args.json {
        print_json(&reply)?;
    } else {
        for range in list_of(&reply, "bad") {
            let (from, to) = (number(range, "from"), number(range, "to"));
            println!("{}: bytes {from} to {to} were damaged", paths::text(&range["path"]));
        }
        let blocks = number(&reply, "blocks");
        match bad {
            0 => println!("{}: {}, all good", record.name, count_text(blocks, "block")),
            _ => println!(
                "{}: {bad} of {blocks} blocks were damaged and have been dropped; \
                 they are fetched again when needed",
                record.name
            ),
        }
    }
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn session_paths(record: &Record, paths: &[PathBuf]) -> Result<Vec<Value>> {
    paths.iter().map(|path| paths::in_session(record, path)).collect()
}

fn warm(args: CachePathsArgs) -> Result<ExitCode> {
    let record = find(&args.session)?;
    let paths = session_paths(&record, &args.paths)?;
    let bar = bar("fetching", true)?;
    let mut client = Client::connect(&record)?;
    let reply = client.ask_watching("cache-warm", json!({"paths": paths}), &mut |told| {
        if told["files"].is_null() {
            bar.set_prefix("fetching");
        }
        show(&bar, told);
    });
    bar.finish_and_clear();
    let reply = reply?;
    let (failed, missing) = (number(&reply, "failed"), number(&reply, "missing_bytes"));
    if args.json {
        print_json(&reply)?;
    } else {
        for failure in list_of(&reply, "failures") {
            let error = failure["error"].as_str().unwrap_or_default();
            eprintln!("{}: {error}", paths::text(&failure["path"]));
        }
        let mut words = count_text(number(&reply, "files"), "file");
        words += &format!(", {}", bytes_text(number(&reply, "bytes")));
        match number(&reply, "zero_bytes") {
            0 => {}
            zeros => words += &format!(" and {} of zeros, which take no room", bytes_text(zeros)),
        }
        if failed > 0 {
            words += &format!("; {failed} could not be fetched");
        }
        if missing > 0 {
            words += &format!("; {} did not fit", bytes_text(missing));
        }
        println!("in the cache: {words}");
    }
    Ok(if failed + missing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn pin(args: CachePathsArgs, pinned: bool) -> Result<ExitCode> {
    let record = find(&args.session)?;
    let paths = session_paths(&record, &args.paths)?;
    let arguments = json!({"paths": paths, "pinned": pinned});
    let reply = Client::connect(&record)?.ask_patiently("cache-pin", arguments)?;
    if args.json {
        print_json(&reply)?;
    } else {
        let what = if pinned { "pinned" } else { "no longer pinned" };
        println!(
            "{} {what}; {} pinned in all, until the mount ends",
            count_text(number(&reply, "files"), "file"),
            number(&reply, "pinned_files")
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn prune(session: &str, wanted: &str, as_json: bool) -> Result<ExitCode> {
    let bytes = size(wanted)?;
    let record = find(session)?;
    let reply = Client::connect(&record)?.ask_patiently("cache-prune", json!({"bytes": bytes}))?;
    if as_json {
        print_json(&reply)?;
    } else {
        println!("{} given back", bytes_text(number(&reply, "freed_bytes")));
    }
    Ok(ExitCode::SUCCESS)
}
