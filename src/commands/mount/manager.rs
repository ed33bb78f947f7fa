//! What a service manager such as systemd is told of a mount that stays in the foreground
//! (sd_notify(3)): that it is mounted, that it has read its settings again, what is left to be sent
//! while it ends, and that this may take longer for as long as it gets on.
//!
//! A mount in the background tells nothing: who started it has its exit status.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::report::{bytes_text, count_text};

/// How often it is looked how far a write-back is.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So much longer may an end take each time that something was sent, in µs. A link that carries
/// nothing for so long is cut; what is unsent then stays in the cache, for the next mount.
const EXTENSION_US: u32 = 120_000_000;
/// What counts as something, in bytes: more than the greetings of vain attempts to reconnect.
const ADVANCE_BYTES: u64 = 64 << 10;

/// What is not yet on the state server, and what tells whether it is on its way.
#[derive(Clone, Debug)]
pub struct Held {
    /// Bytes that are not durable there.
    pub unsent_bytes: u64,
    /// Changes of names and attributes that it does not know.
    pub unsent_names: u64,
    /// Bytes sent on the link so far, whatever they were.
    pub sent_bytes: u64,
    /// For how many seconds it has not answered.
    pub unreachable_seconds: Option<u64>,
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} not yet on the state server", bytes_text(self.unsent_bytes))?;
        if self.unsent_names > 0 {
            write!(f, " and {}", count_text(self.unsent_names, "name change"))?;
        }
        match self.unreachable_seconds {
            Some(seconds) => write!(f, ", which has not answered for {seconds} s"),
            None => Ok(()),
        }
    }
}

/// What a service manager is told of: a mount, or a standing proxy.
pub trait Service: Send + Sync + 'static {
    /// Says for people what it is.
    fn words(&self) -> String;

    /// Says whether a write-back has been asked for and is not done.
    fn is_writing_back(&self) -> bool;

    /// Returns what is not yet on the state server.
    fn held(&self) -> Held;
}

/// The service manager, if there is one that listens.
pub struct Manager {
    listens: bool,
    ending: AtomicBool,
}

impl Manager {
    /// Looks whether somebody listens. `stays`: the mount is in the foreground.
    pub fn new(stays: bool) -> Self {
        let listens = stays && std::env::var_os("NOTIFY_SOCKET").is_some();
        Self { listens, ending: AtomicBool::new(false) }
    }

    /// Says that the mount works.
    pub fn ready(&self, words: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(words)]);
    }

    /// Says that the settings are being read again. [`Self::ready`] says that this is done.
    pub fn reloading(&self) {
        let Ok(now) = NotifyState::monotonic_usec_now() else { return };
        self.tell(&[NotifyState::Reloading, now]);
    }

    /// Says that the mount has begun to end.
    pub fn stopping(&self) {
        self.ending.store(true, Ordering::Relaxed);
        self.tell(&[NotifyState::Stopping]);
    }

    /// Says how far a write-back is, for as long as it is awaited.
    pub async fn watch(self: Arc<Self>, service: Arc<dyn Service>) {
        if !self.listens {
            return;
        }
        let mut seen: Option<Held> = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let ending = self.ending.load(Ordering::Relaxed);
            if !ending && !service.is_writing_back() {
                if seen.take().is_some() {
                    self.tell(&[NotifyState::Status(&service.words())]);
                }
                continue;
            }
            let held = service.held();
            let what = if ending { "ending; writing back" } else { "writing back" };
            self.tell(&[NotifyState::Status(&format!("{what}: {held}"))]);
            let advanced = seen.as_ref().is_some_and(|seen| held.has_advanced(seen));
            if advanced {
                self.tell(&[NotifyState::ExtendTimeoutUsec(EXTENSION_US)]);
            }
            if advanced || seen.is_none() {
                seen = Some(held);
            }
        }
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if self.listens
            && let Err(error) = sd_notify::notify(states)
        {
            log::debug!("the service manager does not hear: {error}");
        }
    }
}

impl Held {
    fn has_advanced(&self, before: &Self) -> bool {
        self.unsent_names != before.unsent_names
            || self.sent_bytes.abs_diff(before.sent_bytes) >= ADVANCE_BYTES
            || self.unsent_bytes.abs_diff(before.unsent_bytes) >= ADVANCE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_gets_on_takes_longer() {
        let held = |unsent_bytes, unsent_names, sent_bytes| Held {
            unsent_bytes,
            unsent_names,
            sent_bytes,
            unreachable_seconds: None,
        };
        let before = held(10 << 20, 3, 100);
        assert!(!before.has_advanced(&before));
        assert!(!held(10 << 20, 3, 5000).has_advanced(&before), "greetings of a cut link");
        assert!(held(10 << 20, 3, 1 << 20).has_advanced(&before), "a large file under way");
        assert!(held(9 << 20, 3, 100).has_advanced(&before));
        assert!(held(10 << 20, 2, 100).has_advanced(&before));
    }
}
