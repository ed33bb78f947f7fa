//! `gridvfs doctor`: what on this machine, on the host and between them would stop a mount or make it
//! slow, and the mend of each.

mod host;
mod machine;
mod sessions;

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use crate::cli::DoctorArgs;
use crate::options::{Item, Layers, named_session_file};
use crate::report::{Exit, print_json};
use crate::session::valid_name;
use crate::source::Source;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, or most of it does.
    Warn,
    /// No mount works like this.
    Fail,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// A check's result.
#[derive(Clone, Debug)]
pub struct Check {
    name: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to do about it.
    mend: Option<String>,
    /// Figures, for programs.
    figures: Value,
}

impl Check {
    /// All is well.
    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), mend: None, figures: Value::Null }
    }

    /// Something could be better.
    pub fn warn(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, mend: Some(mend.into()), ..Self::ok(name, found) }
    }

    /// Something stops mounts.
    pub fn fail(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, ..Self::warn(name, found, mend) }
    }

    /// Adds figures.
    pub fn with(mut self, figures: Value) -> Self {
        self.figures = figures;
        self
    }

    fn to_json(&self) -> Value {
        let mut check =
            json!({"name": self.name, "result": self.verdict.name(), "found": self.found});
        if let Some(mend) = &self.mend {
            check["mend"] = json!(mend);
        }
        if let Value::Object(figures) = &self.figures {
            for (name, value) in figures {
                check[name] = value.clone();
            }
        }
        check
    }
}

/// Shows checks as they are made.
struct Report {
    json: bool,
    checks: Vec<Check>,
}

impl Report {
    fn add(&mut self, checks: impl IntoIterator<Item = Check>) {
        for check in checks {
            if !self.json {
                println!("{:<4}  {:<16} {}", check.verdict.name(), check.name, check.found);
                if let Some(mend) = &check.mend {
                    println!("      {:<16} → {mend}", "");
                }
            }
            self.checks.push(check);
        }
    }

    fn failed(&self) -> bool {
        self.checks.iter().any(|check| check.verdict == Verdict::Fail)
    }
}

/// Runs the command: status 0 if nothing would stop a mount, 1 if something would.
pub fn run(args: DoctorArgs) -> Result<ExitCode> {
    let usage = |error| Exit::Usage.mark(error);
    let (source, settings) = wanted(&args).map_err(usage)?;
    let mut report = Report { json: args.json, checks: Vec::new() };
    report.add(machine::checks(&settings));
    report.add(sessions::checks());
    match &source {
        Some(Source::Ssh { destination, path }) => {
            let host = host::Host::new(&settings, destination, path)?;
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(host.examine(args.quick, &mut |check| report.add([check])));
            drop(host);
            runtime.shutdown_timeout(std::time::Duration::from_secs(1));
        }
        Some(source) => report.add(machine::source_checks(source)),
        None => {}
    }
    if args.json {
        let checks: Vec<Value> = report.checks.iter().map(Check::to_json).collect();
        print_json(&json!({"ok": !report.failed(), "checks": checks}))?;
    }
    Ok(if report.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What is to be examined: a source, or what a session's file says.
fn wanted(args: &DoctorArgs) -> Result<(Option<Source>, crate::options::Settings)> {
    let file = match args.source.as_deref() {
        Some(name) if valid_name(name) => Some(named_session_file(name)?),
        _ => None,
    };
    let port = args.port.map(|port| Item::flag("-p", "Port", port.to_string()));
    let config = args
        .ssh_config
        .as_ref()
        .map(|path| Item::flag("-F", "ssh_config", path.to_string_lossy().into_owned()));
    let options = args.options.iter().map(String::as_str);
    let layers = Layers::new(file.clone(), options, port.into_iter().chain(config))?;
    let reading = layers.read()?;
    let source = match (&file, &args.source) {
        (Some(_), _) => reading.source.map(|(text, _)| text),
        (None, text) => text.clone(),
    };
    let source = source.map(|text| Source::parse(&text)).transpose()?;
    Ok((source, reading.settings))
}
