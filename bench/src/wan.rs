//! An emulated wide-area link.
//!
//! Two forms: [`link`] joins two network namespaces by two TUN devices, so that real TCP runs over
//! the delay (needs root); [`relay`] passes TCP connections on with a delay (needs nothing). Both
//! put everything through a [`lane`] a direction, and both are told by [`control`] to change.

pub mod control;
pub mod lane;
pub mod link;
pub mod relay;
mod tun;

use std::path::PathBuf;
use std::time::Duration;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

/// What the link is like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Round trip, in seconds; half of it each way.
    pub rtt_seconds: f64,
    /// Capacity of each direction, in bits a second. Zero: no limit.
    pub rate_bits: u64,
    /// The share of packets that are lost at random, each way.
    pub loss: f64,
    /// Bytes that wait before the bottleneck; more are dropped. Zero: as much as the link carries
    /// in a round trip, at least 1 MiB.
    pub queue_bytes: u64,
    /// Nothing passes.
    pub cut: bool,
}

impl Conditions {
    /// The time that everything takes one way.
    pub fn one_way(&self) -> Duration {
        Duration::from_secs_f64(self.rtt_seconds / 2.0)
    }

    /// The time that the bottleneck needs for some bytes.
    pub fn transmission(&self, bytes: u64) -> Duration {
        match self.rate_bits {
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64(bytes as f64 * 8.0 / rate as f64),
        }
    }

    /// The bytes that may wait before the bottleneck.
    pub fn queue_max(&self) -> u64 {
        match (self.queue_bytes, self.rate_bits) {
            (_, 0) => u64::MAX,
            (0, rate) => ((rate as f64 / 8.0 * self.rtt_seconds) as u64).max(1 << 20),
            (bytes, _) => bytes,
        }
    }
}

/// What changes while the link is up.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Change {
    /// See [`Conditions`]; `None` leaves it.
    pub rtt_seconds: Option<f64>,
    /// Likewise.
    pub rate_bits: Option<u64>,
    /// Likewise.
    pub loss: Option<f64>,
    /// Likewise.
    pub queue_bytes: Option<u64>,
    /// Likewise.
    pub cut: Option<bool>,
}

/// The conditions, which everybody reads and a command changes.
#[derive(Debug)]
pub struct Weather(RwLock<Conditions>);

impl Weather {
    /// Begins with some conditions.
    pub fn new(conditions: Conditions) -> Self {
        Self(RwLock::new(conditions))
    }

    /// Returns what the link is like now.
    pub fn now(&self) -> Conditions {
        self.0.read().clone()
    }

    /// Changes it.
    pub fn change(&self, change: &Change) {
        let mut conditions = self.0.write();
        let old = conditions.clone();
        *conditions = Conditions {
            rtt_seconds: change.rtt_seconds.unwrap_or(old.rtt_seconds),
            rate_bits: change.rate_bits.unwrap_or(old.rate_bits),
            loss: change.loss.unwrap_or(old.loss),
            queue_bytes: change.queue_bytes.unwrap_or(old.queue_bytes),
            cut: change.cut.unwrap_or(old.cut),
        };
    }
}

/// The folder of control sockets: of the machine for root, else of the user.
pub fn folder() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return "/run/gridvfs-wan".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) => PathBuf::from(folder).join("gridvfs-wan"),
        None => std::env::temp_dir().join(format!("gridvfs-wan-{}", nix::unistd::geteuid())),
    }
}
