//! Ctrl-C (SIGINT) and SIGTERM while a verb waits for a session: the verb puts back what it has
//! changed, says what goes on, and ends. A second one ends it at once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use nix::sys::signal::{SigSet, Signal};

/// What a shell says of a process that SIGINT has ended.
pub const EXIT_STATUS: u8 = 130;

static ASKED: AtomicBool = AtomicBool::new(false);

/// Notes signals from here on, instead of ending. To be called before any thread is started.
pub fn watch() -> Result<()> {
    static WATCHING: OnceLock<()> = OnceLock::new();
    if WATCHING.set(()).is_err() {
        return Ok(());
    }
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    std::thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            if ASKED.swap(true, Ordering::SeqCst) {
                std::process::exit(128 + signal as i32);
            }
        }
    });
    Ok(())
}

/// Says whether a signal has come.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
