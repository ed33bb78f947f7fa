//! Running experiments: which repetition is next, for how long, and what is kept of it.
//!
//! Repetitions are interleaved: all parts once, then all of them a second time, so that what drifts
//! with the hours hits all alike. One run at a time on a machine, since two would measure each
//! other.

use std::collections::HashMap;
use std::fs::File;
use std::io::IsTerminal;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

use super::experiment::{self, Experiment, Part};
use super::results::{self, Missing, Results, SAMPLES_BYTES_MAX};

/// How long a script may take to clear away what it has mounted and started.
const CLEARING: Duration = Duration::from_secs(120);
/// How long a script may take, besides ten times its estimate: some make a guest first, once.
const SETTING_UP: Duration = Duration::from_secs(1800);
/// A part that fails so often is not tried again in the same run.
const FAILURES_MAX: u32 = 2;

/// What is run, and where to.
pub struct Settings {
    /// The folder of the scripts.
    pub experiments: PathBuf,
    /// EXPERIMENT or EXPERIMENT/PART; none for all.
    pub chosen: Vec<String>,
    /// The results.
    pub results: PathBuf,
    /// In place of what the parts say.
    pub repeats: Option<u32>,
    /// Longer experiments.
    pub full: bool,
    /// No repetition is begun that would probably end later than this.
    pub time: Option<Duration>,
    /// What another run may not hold.
    pub lock: String,
    /// How the same is run again, for whoever interrupts it.
    pub again: String,
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every part has its samples, or was skipped.
    Complete,
    /// Some have failed.
    Failed,
    /// The time is over; the rest can be run later.
    Unfinished,
    /// Somebody wanted it to end.
    Interrupted,
}

/// Held while a run is under way; ends with the process.
struct Lock(#[expect(dead_code, reason = "held open")] UnixListener);

impl Lock {
    /// An abstract socket: there are no files to be left behind, and it tells who holds it.
    fn take(name: &str) -> Result<Self> {
        let address = SocketAddr::from_abstract_name(name)?;
        match UnixListener::bind_addr(&address) {
            Ok(listener) => Ok(Self(listener)),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                let holder = UnixStream::connect_addr(&address).ok().and_then(|stream| {
                    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
                    Some(getsockopt(&stream, PeerCredentials).ok()?.pid())
                });
                let who = holder.map_or_else(|| "a process".into(), |pid| format!("process {pid}"));
                bail!(
                    "another run is under way on this machine ({who}); two would measure each other"
                )
            }
            Err(error) => Err(error).context("cannot see whether another run is under way"),
        }
    }
}

/// Parts by their scripts, in the order in which they are run.
pub fn choose(
    experiments: &Path,
    chosen: &[String],
    full: bool,
) -> Result<Vec<(Experiment, Part)>> {
    let mut all = Vec::new();
    for experiment in experiment::find(experiments)? {
        if chosen.is_empty() || chosen.iter().any(|c| c.split('/').next() == Some(&experiment.name))
        {
            all.extend(experiment.parts(full)?.into_iter().map(|part| (experiment.clone(), part)));
        }
    }
    let takes = |choice: &String, part: &Part| *choice == part.experiment || *choice == part.name();
    for choice in chosen {
        ensure!(
            all.iter().any(|(_, part)| takes(choice, part)),
            "there is no {choice} (`gridvfs-bench list` lists what there is)"
        );
    }
    all.retain(|(_, part)| chosen.is_empty() || chosen.iter().any(|choice| takes(choice, part)));
    ensure!(!all.is_empty(), "no experiments in {}", experiments.display());
    Ok(all)
}

/// The time that repetitions take: as measured, or as scripts say until there is a measurement.
#[derive(Default)]
struct Times(HashMap<String, (f64, u32)>);

impl Times {
    fn add(&mut self, part: &Part, seconds: f64) {
        let entry = self.0.entry(part.name()).or_default();
        *entry = (entry.0 + seconds, entry.1 + 1);
    }

    fn of(&self, part: &Part) -> f64 {
        self.0.get(&part.name()).map_or(part.seconds as f64, |(sum, n)| sum / f64::from(*n))
    }
}

/// Bars at a terminal, plain lines elsewhere.
struct Progress {
    bar: ProgressBar,
    plain: bool,
}

impl Progress {
    fn new(total: usize) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let bar = if plain { ProgressBar::hidden() } else { ProgressBar::new(total as u64) };
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} {wide_msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar, plain }
    }

    fn begins(&self, what: &str, left: f64) {
        self.bar.set_message(format!("{what}; {} left", minutes(left)));
    }

    fn line(&self, text: &str) {
        if self.plain { eprintln!("{text}") } else { self.bar.println(text) }
    }
}

fn minutes(seconds: f64) -> String {
    if seconds < 90.0 {
        format!("about {seconds:.0} s")
    } else {
        format!("about {:.0} min", seconds / 60.0)
    }
}

/// What is still to be run.
struct Task {
    script: PathBuf,
    part: Part,
    repetition: u32,
}

/// Runs what was chosen and is not there yet.
pub async fn run(settings: &Settings) -> Result<Ended> {
    let chosen = choose(&settings.experiments, &settings.chosen, settings.full)?;
    let _lock = Lock::take(&settings.lock)?;
    let results = Results::create(&settings.results)?;
    let mut parts = Vec::new();
    for (experiment, mut part) in chosen {
        part.repeats = settings.repeats.unwrap_or(part.repeats);
        parts.push((experiment, part));
    }
    let mut tasks = Vec::new();
    for repetition in 1..=parts.iter().map(|(_, part)| part.repeats).max().unwrap_or(0) {
        for (experiment, part) in parts.iter().filter(|(_, part)| repetition <= part.repeats) {
            if !results.is_done(part, repetition) {
                let (script, part) = (experiment.script.clone(), part.clone());
                tasks.push(Task { script, part, repetition });
            }
        }
    }
    let mut meta = results.meta()?;
    meta.add_parts(&parts.iter().map(|(_, part)| part.clone()).collect::<Vec<_>>());
    if !tasks.is_empty() {
        meta.runs.push(super::machine::facts(settings.full));
    }
    results.store_meta(&meta)?;
    Runner { settings, results, progress: Progress::new(tasks.len()), begun: Instant::now() }
        .all(tasks)
        .await
}

struct Runner<'a> {
    settings: &'a Settings,
    results: Results,
    progress: Progress,
    begun: Instant,
}

enum Outcome {
    Done(String),
    Missing(Missing),
    Interrupted,
}

impl Runner<'_> {
    async fn all(&self, tasks: Vec<Task>) -> Result<Ended> {
        let mut times = Times::default();
        let mut failures: HashMap<String, u32> = HashMap::new();
        let mut skipped: HashMap<String, bool> = HashMap::new();
        let (mut unfinished, total) = (false, tasks.len());
        let drops =
            |failures: &HashMap<String, u32>, skipped: &HashMap<String, bool>, part: &Part| {
                skipped.contains_key(&part.name())
                    || failures.get(&part.name()).is_some_and(|n| *n >= FAILURES_MAX)
            };
        for (number, task) in tasks.iter().enumerate() {
            let part = &task.part;
            self.progress.bar.set_position(number as u64);
            if drops(&failures, &skipped, part) {
                continue;
            }
            let left: f64 = tasks[number..]
                .iter()
                .filter(|task| !drops(&failures, &skipped, &task.part))
                .map(|task| times.of(&task.part))
                .sum();
            let begin = Instant::now();
            if let Some(time) = self.settings.time
                && (self.begun.elapsed().as_secs_f64() + times.of(part)) > time.as_secs_f64()
            {
                // A shorter one may still fit.
                unfinished = true;
                continue;
            }
            let what = format!("{} {} of {}", part.name(), task.repetition, part.repeats);
            self.progress.begins(&what, left);
            let words = match self.one(task).await? {
                Outcome::Interrupted => {
                    self.progress.bar.finish_and_clear();
                    eprintln!(
                        "interrupted; what was measured is kept. To go on: {}",
                        self.settings.again
                    );
                    return Ok(Ended::Interrupted);
                }
                Outcome::Done(samples) => {
                    self.results.store(part, task.repetition, &samples)?;
                    times.add(part, begin.elapsed().as_secs_f64());
                    format!("{:.1} s", begin.elapsed().as_secs_f64())
                }
                Outcome::Missing(why) => {
                    self.results.store_missing(part, task.repetition, &why)?;
                    match why {
                        Missing::Skipped(why) => {
                            skipped.insert(part.name(), true);
                            format!("skipped: {why}")
                        }
                        Missing::Failed(why) => {
                            *failures.entry(part.name()).or_default() += 1;
                            let log = self.results.log(part, task.repetition);
                            format!("FAILED: {why} (all it said: {})", log.display())
                        }
                    }
                }
            };
            let left = (left - times.of(part)).max(0.0);
            self.progress.line(&format!(
                "{}/{total} {what}: {words}; {} left",
                number + 1,
                minutes(left)
            ));
        }
        self.progress.bar.finish_and_clear();
        Ok(if unfinished {
            eprintln!(
                "the time is over; what was measured is kept. To go on: {}",
                self.settings.again
            );
            Ended::Unfinished
        } else if failures.is_empty() {
            Ended::Complete
        } else {
            Ended::Failed
        })
    }

    /// Runs one repetition.
    async fn one(&self, task: &Task) -> Result<Outcome> {
        if let Some(why) = task.part.missing() {
            return Ok(Outcome::Missing(Missing::Skipped(why)));
        }
        let path = self.results.log(&task.part, task.repetition);
        let log = File::create(&path).with_context(|| path.display().to_string())?;
        let mut child = tokio::process::Command::new(&task.script)
            .args(["run", &task.part.part, "--repetition", &task.repetition.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            // Signals are for the script and all that it waits for.
            .process_group(0)
            .spawn()
            .with_context(|| task.script.display().to_string())?;
        let group = Pid::from_raw(child.id().context("has just been started")?.cast_signed());
        let mut stdout =
            child.stdout.take().context("is piped")?.take(SAMPLES_BYTES_MAX as u64 + 1);
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let limit = SETTING_UP + Duration::from_secs(10 * task.part.seconds);

        let mut samples = Vec::new();
        // A daemon may hold the pipe open for longer than the script lives.
        let mut reading = Box::pin(stdout.read_to_end(&mut samples));
        let mut is_read = false;
        let late = tokio::time::sleep(limit);
        tokio::pin!(late);
        let status = loop {
            tokio::select! {
                read = &mut reading, if !is_read => { read?; is_read = true; }
                status = child.wait() => break Ok(status?),
                () = &mut late => break Err(None),
                _ = interrupt.recv() => break Err(Some("interrupted")),
                _ = terminate.recv() => break Err(Some("asked to end")),
                _ = hangup.recv() => break Err(Some("hung up")),
            }
        };
        let status = match status {
            Ok(status) => status,
            Err(why) => {
                self.progress.line(&format!(
                    "{}: {}; clearing away",
                    task.part.name(),
                    why.unwrap_or("too long")
                ));
                // The script goes on once what it waits for is gone, and then clears away.
                let _ = killpg(group, Signal::SIGTERM);
                let ended = tokio::select! {
                    ended = tokio::time::timeout(CLEARING, child.wait()) => ended.is_ok(),
                    _ = interrupt.recv() => false,
                };
                if !ended {
                    let _ = killpg(group, Signal::SIGKILL);
                    self.progress.line("it did not end: mounts and links of its may be left (findmnt, gridvfs-wan list)");
                }
                let took = format!("it took longer than {} s", limit.as_secs());
                return Ok(match why {
                    Some(_) => Outcome::Interrupted,
                    None => Outcome::Missing(Missing::Failed(took)),
                });
            }
        };
        if !is_read {
            let _ = tokio::time::timeout(Duration::from_secs(1), &mut reading).await;
        }
        drop(reading);
        Ok(judge(&task.part, status, samples, &path))
    }
}

fn judge(part: &Part, status: ExitStatus, samples: Vec<u8>, log: &Path) -> Outcome {
    let last_words = || {
        let words = std::fs::read(log).unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        words
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("it said nothing")
            .trim()
            .to_owned()
    };
    if status.code() == Some(77) {
        return Outcome::Missing(Missing::Skipped(last_words()));
    }
    if !status.success() {
        return Outcome::Missing(Missing::Failed(format!("{status}: {}", last_words())));
    }
    let checked = if samples.len() > SAMPLES_BYTES_MAX {
        Err(format!("it printed more than {SAMPLES_BYTES_MAX} bytes"))
    } else {
        String::from_utf8(samples).map_err(|error| error.to_string()).and_then(|text| {
            results::parse(&part.experiment, &text).map_err(|error| format!("{error:#}"))?;
            Ok(text)
        })
    };
    match checked {
        Ok(text) => Outcome::Done(text),
        Err(why) => Outcome::Missing(Missing::Failed(why)),
    }
}
