//! `gridvfs clone`: makes a VM of one's own from a golden one.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use serde_json::json;

use crate::cli::{CloneArgs, MemoryWay};
use crate::clone::{self, Golden, Mac, Outcome, Phase, Watch, Way, Wish};
use crate::report::{Hinted, print_json};

/// How long an interrupted clone may take to stop by itself.
const STOPPING: Duration = Duration::from_secs(1);
/// A name has so many characters at most.
const NAME_CHARACTERS_MAX: usize = 64;

/// Runs the command.
pub fn run(args: CloneArgs) -> Result<ExitCode> {
    let stop = Stop::watch()?;
    let result = attempt(&args, &stop);
    if result.is_err() && stop.is_asked() {
        // Who was asked to stop says so, and ends the process.
        std::thread::sleep(2 * STOPPING);
    }
    result.map(|()| ExitCode::SUCCESS)
}

fn attempt(args: &CloneArgs, stop: &Stop) -> Result<()> {
    let begin = Instant::now();
    let wish = wish(args)?;
    clone::ahead::directory(args.golden.clone());
    let golden = Golden::open(&args.golden, args.config.as_deref())?;
    let building = Building::new(&wish.directory, stop)?;
    let mut show = Show::new(args, stop.clone())?;
    let result = clone::make(&golden, &wish, &building.path, &mut show);
    show.bar.finish_and_clear();
    let outcome = result?;
    building.finish(&wish.directory)?;
    report(args, &wish, &outcome, begin.elapsed())
}

fn wish(args: &CloneArgs) -> Result<Wish> {
    let directory = std::path::absolute(&args.clone)?;
    if directory.to_str().is_none() {
        bail!("{}: a configuration cannot name this directory", directory.display());
    }
    let base = directory.file_name().context("a clone needs a directory of its own")?;
    let name = args.name.clone().unwrap_or_else(|| base.to_string_lossy().into_owned());
    if name.is_empty()
        || name.chars().count() > NAME_CHARACTERS_MAX
        || name.contains(char::is_control)
    {
        bail!("{name:?} is no VM's name: up to {NAME_CHARACTERS_MAX} characters");
    }
    if directory.symlink_metadata().is_ok() {
        return Err(Hinted::error(
            format!("{} exists", directory.display()),
            "a clone's directory is made for it; nothing is ever overwritten",
        ));
    }
    let macs: Result<Vec<Mac>> = args.mac.iter().map(|mac| mac.parse()).collect();
    let settings: Option<Vec<(String, String)>> = args
        .set
        .iter()
        .map(|text| text.split_once('=').map(|(key, value)| (key.into(), value.into())))
        .collect();
    let memory = match args.memory {
        MemoryWay::Auto => Some(Way::Auto),
        MemoryWay::Copy => Some(Way::Copy),
        MemoryWay::Link => Some(Way::Link),
        MemoryWay::Reflink => Some(Way::Reflink),
        MemoryWay::None => None,
    };
    let settings = settings.context("--set takes KEY=VALUE")?;
    Ok(Wish { directory, name, macs: macs?, settings, memory })
}

/// The directory in which a clone is built, beside its place; removed unless it is finished.
struct Building {
    path: PathBuf,
    stop: Stop,
}

impl Building {
    fn new(directory: &Path, stop: &Stop) -> Result<Self> {
        let parent = directory.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(parent)
            .with_context(|| format!("cannot make {}", parent.display()))?;
        let mut template = directory.as_os_str().to_owned();
        template.push(".partial-XXXXXX");
        let path = nix::unistd::mkdtemp(Path::new(&template))
            .with_context(|| format!("cannot make a directory in {}", parent.display()))?;
        stop.remove_when_stuck(&path);
        Ok(Self { path, stop: stop.clone() })
    }

    /// Puts the clone in its place, unless something has come to be there.
    fn finish(self, directory: &Path) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        if self.stop.is_asked() {
            bail!("interrupted");
        }
        // As `mkdir` would have made it.
        let permissions = std::fs::Permissions::from_mode(0o777 & !mask());
        std::fs::set_permissions(&self.path, permissions)?;
        let flags = nix::fcntl::RenameFlags::RENAME_NOREPLACE;
        let here = nix::fcntl::AT_FDCWD;
        nix::fcntl::renameat2(here, &self.path, here, directory, flags).with_context(|| {
            format!("cannot put the clone in its place, {}", directory.display())
        })?;
        self.stop.finished.store(true, Ordering::SeqCst);
        Ok(())
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        // After `finish` there is nothing of that name.
        let _ = std::fs::remove_dir_all(&self.path);
        self.stop.removed();
    }
}

fn mask() -> u32 {
    let none = nix::sys::stat::Mode::empty();
    let mask = nix::sys::stat::umask(none);
    nix::sys::stat::umask(mask);
    mask.bits()
}

/// Ends the work at SIGINT, SIGTERM and SIGHUP, and leaves nothing half made: the work sees it and
/// stops; if it is stuck (a mount whose link is down), the directory is removed all the same.
#[derive(Clone)]
struct Stop {
    asked: Arc<AtomicBool>,
    /// The clone is in its place: it is too late to stop.
    finished: Arc<AtomicBool>,
    directory: Arc<std::sync::Mutex<Option<PathBuf>>>,
}

impl Stop {
    fn watch() -> Result<Self> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block()?;
        let stop =
            Self { asked: Arc::default(), finished: Arc::default(), directory: Arc::default() };
        let own = stop.clone();
        std::thread::spawn(move || {
            if let Ok(signal) = signals.wait() {
                own.asked.store(true, Ordering::SeqCst);
                own.end(signal);
            }
        });
        Ok(stop)
    }

    fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    fn directory(&self) -> std::sync::MutexGuard<'_, Option<PathBuf>> {
        self.directory.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn remove_when_stuck(&self, path: &Path) {
        *self.directory() = Some(path.into());
    }

    fn removed(&self) {
        *self.directory() = None;
    }

    fn end(&self, signal: Signal) {
        let end = Instant::now() + STOPPING;
        while Instant::now() < end && self.directory().is_some() {
            std::thread::sleep(Duration::from_millis(10));
        }
        if self.finished.load(Ordering::SeqCst) {
            return;
        }
        if let Some(path) = self.directory().take() {
            let _ = std::fs::remove_dir_all(path);
        }
        eprintln!("Error: interrupted; nothing of the clone is left");
        std::process::exit(128 + signal as i32);
    }
}

/// Shows the phases, and how far a copy is.
struct Show {
    json: bool,
    bar: indicatif::ProgressBar,
    stop: Stop,
}

impl Show {
    fn new(args: &CloneArgs, stop: Stop) -> Result<Self> {
        let template = "memory {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
        let style = indicatif::ProgressStyle::with_template(template)?;
        // It shows on a terminal only.
        let bar = match args.json {
            true => indicatif::ProgressBar::hidden(),
            false => indicatif::ProgressBar::new(0).with_style(style),
        };
        Ok(Self { json: args.json, bar, stop })
    }
}

impl Watch for Show {
    fn phase(&mut self, phase: &Phase) {
        let line =
            format!("{:<14} {:>7.3} s  {}", phase.name, phase.took.as_secs_f64(), phase.what);
        if !self.json {
            self.bar.suspend(|| println!("{line}"));
        }
    }

    fn bytes(&mut self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    fn stopped(&self) -> bool {
        self.stop.is_asked()
    }
}

fn report(args: &CloneArgs, wish: &Wish, outcome: &Outcome, took: Duration) -> Result<()> {
    let command: Result<Vec<_>, _> =
        outcome.command.iter().map(|word| shlex::try_quote(word)).collect();
    let command = command.context("a NUL byte in the command")?.join(" ");
    if args.json {
        let phase = |phase: &Phase| json!({"name": phase.name, "what": phase.what, "seconds": phase.took.as_secs_f64()});
        return print_json(&json!({
            "clone": wish.directory.to_string_lossy(),
            "name": wish.name,
            "layout": outcome.layout,
            "phases": outcome.phases.iter().map(phase).collect::<Vec<_>>(),
            "seconds": took.as_secs_f64(),
            "command": outcome.command,
            "notes": outcome.notes,
        }));
    }
    for note in &outcome.notes {
        eprintln!("Note: {note}");
    }
    println!("{} in {:.3} s; it starts by:", wish.directory.display(), took.as_secs_f64());
    println!("    {command}");
    Ok(())
}
