//! What a client counts, for `gridvfs status`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gridvfs_vfs::{Durations, Histogram};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::rpc::CallClass;

/// Counters of a session. They only grow, except for those of the present state.
#[derive(Debug, Default)]
pub struct Counters {
    /// Calls made.
    pub calls: AtomicU64,
    /// Bytes sent.
    pub sent_bytes: AtomicU64,
    /// Bytes received.
    pub received_bytes: AtomicU64,
    /// Calls sent again.
    pub retransmits: AtomicU64,
    /// Channels opened anew.
    pub reconnects: AtomicU64,
    /// Replies that nobody waited for any more.
    pub late_replies: AtomicU64,
    /// Replies and records that were not what the protocol says.
    pub garbled: AtomicU64,
    /// Calls that were in flight when their caller gave up.
    pub abandoned: AtomicU64,
    /// Calls that the server was too busy for (JUKEBOX).
    pub busy: AtomicU64,
    /// Errors after a retransmission that turned out to be the first execution's success.
    pub replays_recognised: AtomicU64,
    times: [Histogram; CLASSES.len()],
    state: Mutex<State>,
    /// Whether any channel works.
    reachable: watch::Sender<bool>,
}

/// What times are kept of, as [`CallClass`] numbers them.
const CLASSES: [&str; 4] = ["small", "read", "write", "slow"];

#[derive(Debug, Default)]
struct State {
    stripes: usize,
    stripes_alive: usize,
    unreachable_since: Option<Instant>,
    rtt: Option<Duration>,
    last_error: Option<String>,
}

pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn new(stripes: usize) -> Self {
        let state = State { stripes, ..State::default() };
        Self { state: Mutex::new(state), ..Self::default() }
    }

    /// Notes how long a call took, from when it was made to its results.
    pub(crate) fn took(&self, class: CallClass, time: Duration) {
        self.times[class as usize].record(time);
    }

    /// Returns how long calls took: small ones, READ, WRITE, and those that wait for the server's
    /// disk.
    pub fn times(&self) -> Vec<(&'static str, Durations)> {
        CLASSES.into_iter().zip(self.times.iter().map(Histogram::snapshot)).collect()
    }

    pub(crate) fn set_alive(&self, alive: usize) {
        let mut state = self.state.lock();
        state.stripes_alive = alive;
        self.reachable.send_replace(alive > 0);
        match (alive, state.unreachable_since) {
            (0, None) => state.unreachable_since = Some(Instant::now()),
            (0, Some(_)) => {}
            _ => {
                state.unreachable_since = None;
                state.last_error = None;
            }
        }
    }

    pub(crate) fn set_rtt(&self, rtt: Duration) {
        self.state.lock().rtt = Some(rtt);
    }

    pub(crate) fn set_last_error(&self, error: String) {
        self.state.lock().last_error = Some(error);
    }

    /// Resolves when no channel works.
    pub(crate) async fn cut(&self) {
        let mut told = self.reachable.subscribe();
        // It ends with this, which whoever waits here has.
        let _ = told.wait_for(|reachable| !reachable).await;
    }

    /// Returns the number of channels that work.
    pub fn stripes_alive(&self) -> usize {
        self.state.lock().stripes_alive
    }

    /// Returns for how long no channel has worked; `None` while one does.
    pub fn unreachable_for(&self) -> Option<Duration> {
        self.state.lock().unreachable_since.map(|since| since.elapsed())
    }

    /// Returns why the last channel was lost or could not be opened, while none works.
    pub fn last_error(&self) -> Option<String> {
        self.state.lock().last_error.clone()
    }

    /// Returns the smoothed round-trip time of small calls.
    pub fn rtt(&self) -> Option<Duration> {
        self.state.lock().rtt
    }

    /// Returns all as a JSON object.
    pub fn to_map(&self) -> Map<String, Value> {
        let mut map = Map::new();
        for (name, counter) in [
            ("calls", &self.calls),
            ("sent_bytes", &self.sent_bytes),
            ("received_bytes", &self.received_bytes),
            ("retransmits", &self.retransmits),
            ("reconnects", &self.reconnects),
            ("late_replies", &self.late_replies),
            ("garbled", &self.garbled),
            ("abandoned", &self.abandoned),
            ("busy", &self.busy),
            ("replays_recognised", &self.replays_recognised),
        ] {
            map.insert(name.into(), counter.load(Ordering::Relaxed).into());
        }
        let state = self.state.lock();
        map.insert("stripes".into(), state.stripes.into());
        map.insert("stripes_alive".into(), state.stripes_alive.into());
        if let Some(rtt) = state.rtt {
            map.insert("rtt_ms".into(), json!((rtt.as_secs_f64() * 1e5).round() / 1e2));
        }
        if let Some(since) = state.unreachable_since {
            map.insert("unreachable_seconds".into(), since.elapsed().as_secs().into());
        }
        if let Some(error) = &state.last_error {
            map.insert("last_error".into(), error.as_str().into());
        }
        map
    }
}
