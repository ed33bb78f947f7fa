//! Runs something that reads a file, and shows how far it is.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use gridvfs_metadata::build::Progress;

use crate::report::bytes_text;

/// How often a bar moves.
const TICK: Duration = Duration::from_millis(50);
/// How often it is said, without a terminal, how far it is.
const SAY_EVERY: Duration = Duration::from_secs(30);

/// Runs `work` in a thread. `tick` is asked every 50 ms whether to stop.
pub fn shown<T: Send>(
    what: &str,
    path: &Path,
    work: impl FnOnce(&Progress) -> T + Send,
    mut tick: impl FnMut() -> bool,
) -> Result<T> {
    let progress = Progress::default();
    let bar = bar(what, path)?;
    let (send, receive) = sync_channel(1);
    let result = std::thread::scope(|scope| {
        let progress = &progress;
        scope.spawn(move || send.send(work(progress)));
        let mut say_at = Instant::now() + SAY_EVERY;
        loop {
            match receive.recv_timeout(TICK) {
                Ok(result) => break Some(result),
                Err(RecvTimeoutError::Disconnected) => break None,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if tick() {
                progress.stop();
            }
            bar.set_position(progress.done_bytes());
            if bar.is_hidden() && Instant::now() >= say_at {
                say_at += SAY_EVERY;
                let total = bytes_text(bar.length().unwrap_or(0));
                let done = bytes_text(progress.done_bytes());
                eprintln!("{}: {what}: {done} of {total}", path.display());
            }
        }
    });
    bar.finish_and_clear();
    match result {
        Some(result) => Ok(result),
        None => bail!("{}: {what} ended early", path.display()),
    }
}

/// Its length is that of the file; it is hidden where there is no terminal.
fn bar(what: &str, path: &Path) -> Result<indicatif::ProgressBar> {
    let size = std::fs::metadata(path).map_or(0, |stat| stat.len());
    let style = indicatif::ProgressStyle::with_template(
        "{prefix} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}",
    )?;
    let bar = indicatif::ProgressBar::new(size).with_style(style);
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    bar.set_prefix(format!("{what} {name}"));
    Ok(bar)
}
