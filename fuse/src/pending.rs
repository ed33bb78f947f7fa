//! Requests that wait for the server, and whether anybody still waits for them.
//!
//! A process cannot die while user space holds its request, and `fuser` does not hand on
//! FUSE_INTERRUPT. So requests that have waited for a while have their process looked up: where a
//! SIGKILL is pending (the kernel turns every fatal signal into one), the call is given up.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// How often processes are looked up.
const INTERVAL: Duration = Duration::from_millis(500);
/// For how long a request waits before its process is looked up.
const AGE_MIN: Duration = Duration::from_secs(1);
/// SIGKILL in the signal masks of /proc/PID/status.
const SIGKILL_BIT: u64 = 1 << (libc::SIGKILL - 1);

struct Waiting {
    thread: u32,
    since: Instant,
    cancel: Arc<Notify>,
}

/// The requests that wait.
#[derive(Default)]
pub struct Pending {
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, Waiting>>,
}

/// A request's entry, removed when dropped.
pub struct Entry {
    pending: Arc<Pending>,
    number: u64,
    cancel: Arc<Notify>,
}

impl Entry {
    /// Resolves when the request is to be given up.
    pub async fn cancelled(&self) {
        self.cancel.notified().await;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.pending.waiting.lock().remove(&self.number);
    }
}

impl Pending {
    /// Adds a request of a thread (0: of nobody in particular).
    pub fn add(self: &Arc<Self>, thread: u32) -> Entry {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let cancel = Arc::new(Notify::new());
        let waiting = Waiting { thread, since: Instant::now(), cancel: cancel.clone() };
        self.waiting.lock().insert(number, waiting);
        Entry { pending: self.clone(), number, cancel }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Looks after the requests until dropped by the runtime.
    pub async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            self.give_up_for(is_being_killed);
        }
    }

    fn give_up_for(&self, is_dying: impl Fn(u32) -> bool) {
        let old: Vec<(u32, Arc<Notify>)> = {
            let waiting = self.waiting.lock();
            let old = waiting.values().filter(|one| one.since.elapsed() >= AGE_MIN);
            old.map(|one| (one.thread, one.cancel.clone())).collect()
        };
        for (thread, cancel) in old {
            if thread != 0 && is_dying(thread) {
                cancel.notify_one();
            }
        }
    }
}

/// Says whether a thread has a fatal signal pending. One that is gone has nobody waiting.
fn is_being_killed(thread: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{thread}/status")) {
        Ok(status) => killed_by(&status),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn killed_by(status: &str) -> bool {
    status.lines().any(|line| {
        let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask & SIGKILL_BIT != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_sigkill_is_seen() {
        assert!(killed_by("Name:\tcat\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n"));
        assert!(killed_by("SigPnd:\t0\nShdPnd:\t0000000000000100\n"));
        assert!(!killed_by("SigPnd:\t0000000000004000\nShdPnd:\t0000000000000002\n"));
        assert!(!is_being_killed(std::process::id()));
    }

    #[test]
    fn entries_go_with_their_requests() {
        let pending = Arc::new(Pending::default());
        let entry = pending.add(7);
        assert_eq!(pending.len(), 1);
        drop(entry);
        assert_eq!(pending.len(), 0);
    }
}
