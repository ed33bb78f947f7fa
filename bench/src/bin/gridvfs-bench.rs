//! `gridvfs-bench`: runs the experiments of `bench/experiments`, and reports them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use gridvfs_bench::evaluation::results::{Results, put};
use gridvfs_bench::evaluation::run::{Ended, Settings, choose, run};
use gridvfs_bench::evaluation::{experiment, report};

/// Run the evaluation's experiments, and report them.
///
/// What was measured is kept, repetition by repetition: a run can be interrupted, and goes on where
/// it was when it is started again with the same results.
#[derive(Parser)]
#[command(name = "gridvfs-bench", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// The folder of the experiments.
    #[arg(long, global = true, hide = true, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/experiments"))]
    experiments: PathBuf,
    /// What two runs may not hold at once.
    #[arg(long, global = true, hide = true, default_value = "gridvfs-bench")]
    lock: String,
}

#[derive(Subcommand)]
enum Verb {
    /// Run experiments, and make the report.
    Run {
        /// EXPERIMENT or EXPERIMENT/PART; all of them if none is named.
        chosen: Vec<String>,
        /// Where to; what is there is not run again. Default: bench/results/DATE-HOST.
        #[arg(long, value_name = "DIR")]
        results: Option<PathBuf>,
        /// How often each part is run, in place of what the parts say.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(experiment::REPEATS_MAX)))]
        repeats: Option<u32>,
        /// Larger experiments, which take hours.
        #[arg(long)]
        full: bool,
        /// Begin nothing that would probably end later than this.
        #[arg(long, value_name = "N")]
        minutes: Option<u64>,
    },
    /// List the experiments' parts, what they need, and how long they take.
    List {
        /// EXPERIMENT or EXPERIMENT/PART.
        chosen: Vec<String>,
        /// Those of --full.
        #[arg(long)]
        full: bool,
    },
    /// Make report.md and the figures again, from the raw data alone.
    Report {
        /// The results.
        results: PathBuf,
    },
    /// Put the report's tables into a document, or check that they are current.
    Fill {
        /// A Markdown file with marks (docs/performance.md).
        document: PathBuf,
        /// The results; default: those that the document names.
        #[arg(long, value_name = "DIR")]
        results: Option<PathBuf>,
        /// Change nothing; fail if the document would be another.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    run_verb(Cli::parse()).unwrap_or_else(|error| {
        eprintln!("Error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run_verb(cli: Cli) -> Result<ExitCode> {
    match cli.verb {
        Verb::Run { chosen, results, repeats, full, minutes } => {
            let results = results.map_or_else(default_results, Ok)?;
            let mut again = format!("gridvfs-bench run --results {}", results.display());
            if let Some(repeats) = repeats {
                again += &format!(" --repeats {repeats}");
            }
            if full {
                again += " --full";
            }
            for choice in &chosen {
                again += &format!(" {choice}");
            }
            let time = minutes.map(|minutes| Duration::from_secs(minutes * 60));
            let (experiments, lock) = (cli.experiments, cli.lock);
            run_and_report(&Settings {
                experiments,
                chosen,
                results,
                repeats,
                full,
                time,
                lock,
                again,
            })
        }
        Verb::List { chosen, full } => list(&cli.experiments, &chosen, full),
        Verb::Report { results } => {
            report::write(&Results::open(&results)?)?;
            println!("{}", results.join("report.md").display());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Fill { document, results, check } => fill(&document, results, check),
    }
}

fn default_results() -> Result<PathBuf> {
    let date = std::process::Command::new("date").args(["-u", "+%F"]).output()?.stdout;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    let host = host.trim().split('.').next().unwrap_or_default();
    let name = format!("results/{}-{host}", String::from_utf8(date)?.trim());
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).join(name))
}

#[tokio::main(flavor = "current_thread")]
async fn run_and_report(settings: &Settings) -> Result<ExitCode> {
    let ended = run(settings).await?;
    if ended == Ended::Interrupted {
        return Ok(ExitCode::from(130));
    }
    report::write(&Results::open(&settings.results)?).context("cannot make the report")?;
    println!("{}", settings.results.join("report.md").display());
    Ok(if ended == Ended::Failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn list(experiments: &Path, chosen: &[String], full: bool) -> Result<ExitCode> {
    let mut total = 0;
    let mut out = std::io::stdout().lock();
    for (_, part) in choose(experiments, chosen, full)? {
        let seconds = part.seconds * u64::from(part.repeats);
        let missing = part.missing();
        if missing.is_none() {
            total += seconds;
        }
        let (name, each) = (part.name(), part.seconds);
        let not = missing.map(|why| format!(" [skipped: {why}]")).unwrap_or_default();
        writeln!(out, "{name:28} {:2} x {each:4} s  {}{not}", part.repeats, part.title)?;
    }
    writeln!(out, "about {} min in all", total.div_ceil(60))?;
    Ok(ExitCode::SUCCESS)
}

fn fill(document: &Path, results: Option<PathBuf>, check: bool) -> Result<ExitCode> {
    let shown = document.display();
    let old = std::fs::read_to_string(document).with_context(|| shown.to_string())?;
    let from = document.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let named = report::source(&old).with_context(|| format!("{shown} names no results"))?;
    let folder = results.or_else(|| (named != report::NO_RESULTS).then(|| from.join(named)));
    let path = match &folder {
        None => report::NO_RESULTS.into(),
        Some(folder) => report::relative(folder, from)
            .with_context(|| format!("{}: no such results", folder.display()))?,
    };
    let text = old.replace(
        &format!("<!-- gridvfs-bench results: {named} -->"),
        &format!("<!-- gridvfs-bench results: {path} -->"),
    );
    let results = folder.as_deref().map(Results::open).transpose()?;
    let new = report::fill(&text, results.as_ref(), &path)?;
    if check {
        ensure!(new == old, "{shown} is not what {path} says: run `gridvfs-bench fill {shown}`");
    } else if new != old {
        put(document, new.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}
