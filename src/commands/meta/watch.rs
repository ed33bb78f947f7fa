//! `gridvfs meta build --watch DIR`: keeps the metadata of a golden directory current.
//!
//! inotify tells of changes that this machine makes, a look at the whole directory at intervals of
//! the others. Either only says which file to look at: whether its metadata is current is always
//! decided from the file's own size and mtime. A file is read when it was left alone for some
//! seconds. Metadata of a file that is gone stays: its working set is of use when the file returns.

mod tree;
mod wanted;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use gridvfs_metadata::build::{BuildError, build};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::build::{built_text, built_value, hinted};
use super::progress::shown;
use crate::cli::MetaBuildArgs;
use crate::report::{count_text, error_text, print_json};
use tree::{Seen, Tree};
use wanted::Wanted;

/// Files that wait to be looked at, at most; those above are found at the next look at all.
const PENDING_MAX: usize = 65_536;

/// Runs until SIGINT or SIGTERM.
pub fn run(directory: &Path, args: &MetaBuildArgs) -> Result<ExitCode> {
    let wanted = Wanted::new(args)?;
    // Before any other thread begins, so that none of them gets the signals.
    let mask = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    mask.thread_block().context("signals")?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let directory = directory.canonicalize().with_context(|| directory.display().to_string())?;
    let mut watcher = Watcher {
        tree: Tree::new(&directory)?,
        wanted,
        settle: Duration::from_secs(args.settle.into()),
        pending: HashMap::new(),
        settled: HashMap::new(),
        json: args.json,
    };
    watcher.look_at_all();
    if !args.json {
        let directories = match watcher.tree.directories() {
            1 => "1 directory".to_string(),
            count => format!("{count} directories"),
        };
        let files = count_text(watcher.pending.len() as u64, "file");
        println!("watching {}: {directories}, {files} to look at", directory.display());
    }
    watcher.until(&signals, Duration::from_secs(args.rescan.into()))?;
    Ok(ExitCode::SUCCESS)
}

struct Watcher {
    tree: Tree,
    wanted: Wanted,
    settle: Duration,
    /// Files to look at, and when.
    pending: HashMap<PathBuf, Instant>,
    /// What files and their metadata files were when nothing (more) was to be done about them.
    settled: HashMap<PathBuf, Seen>,
    json: bool,
}

impl Watcher {
    fn until(&mut self, signals: &SignalFd, rescan: Duration) -> Result<()> {
        let mut look_at = Instant::now() + rescan;
        loop {
            if signals.read_signal()?.is_some() || self.build_due(signals)? {
                return Ok(());
            }
            if Instant::now() >= look_at {
                self.look_at_all();
                look_at = Instant::now() + rescan;
            }
            let next = self.pending.values().copied().min().unwrap_or(look_at).min(look_at);
            // Rounded up, or the last millisecond would be spent in circles.
            let left = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let mut ready =
                [readable(self.tree.events()), readable(std::os::fd::AsFd::as_fd(signals))];
            match poll(&mut ready, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let changes = self.tree.changes()?;
            for path in changes.files {
                self.note(path, self.settle);
            }
            if changes.look_at_all {
                self.look_at_all();
            }
        }
    }

    fn note(&mut self, path: PathBuf, after: Duration) {
        if self.pending.len() < PENDING_MAX || self.pending.contains_key(&path) {
            self.pending.insert(path, Instant::now() + after);
        }
    }

    /// Notes all files that are not as they were when they were last dealt with.
    fn look_at_all(&mut self) {
        let found = self.tree.walk();
        for error in &found.errors {
            eprintln!("{}", error_text(error));
        }
        self.settled.retain(|path, _| found.files.contains_key(path));
        for (path, seen) in found.files {
            let known = self.settled.get(&path) == Some(&seen) || self.pending.contains_key(&path);
            if !known && self.wanted.may_want(&seen) {
                self.note(path, Duration::ZERO);
            }
        }
    }

    /// Builds what is due. Returns whether a signal asked to end.
    fn build_due(&mut self, signals: &SignalFd) -> Result<bool> {
        let now = Instant::now();
        let due = self.pending.iter().filter(|(_, at)| **at <= now).map(|(path, _)| path.clone());
        let mut due: Vec<PathBuf> = due.collect();
        due.sort_unstable();
        for path in due {
            self.pending.remove(&path);
            let Some(seen) = Seen::of(&path) else { continue };
            // A time in the future is no reason to wait for it.
            let age = SystemTime::now().duration_since(seen.mtime()).unwrap_or(Duration::MAX);
            if let Some(left) = self.settle.checked_sub(age).filter(|left| !left.is_zero()) {
                self.note(path, left);
            } else if self.deal_with(&path, seen, signals)? {
                return Ok(true);
            }
            if signals.read_signal()?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Builds the metadata of a file if it needs to be. Returns whether a signal asked to end.
    fn deal_with(&mut self, path: &Path, seen: Seen, signals: &SignalFd) -> Result<bool> {
        let options = match self.wanted.options(self.tree.root(), path, &seen) {
            Ok(Some(options)) => options,
            nothing => {
                if let Err(error) = nothing {
                    eprintln!("{}", error_text(&hinted(error)));
                }
                self.settled.insert(path.into(), seen);
                return Ok(false);
            }
        };
        let mut ended = false;
        let tick = || {
            ended = ended || matches!(signals.read_signal(), Ok(Some(_)));
            ended
        };
        match shown("reading", path, |progress| build(path, &options, progress), tick)? {
            Ok(built) if self.json => print_json(&built_value(path, &built))?,
            Ok(built) => println!("{}", built_text(path, &built)),
            Err(BuildError::Stopped) => return Ok(true),
            // Whoever wrote it has it back in the queue, too.
            Err(BuildError::Changed(_)) => {
                self.note(path.into(), self.settle.max(Duration::from_millis(100)));
                return Ok(ended);
            }
            Err(error) => eprintln!("{}", error_text(&hinted(error))),
        }
        // Not what was seen before: the metadata file is a new one, and the file may be, too.
        match Seen::of(path) {
            Some(now) if now.same_file(&seen) => drop(self.settled.insert(path.into(), now)),
            _ => self.note(path.into(), self.settle),
        }
        Ok(ended)
    }
}
