//! The watch over a channel: is the server still there, and has it lost a call?
//!
//! A slow server is no dead one. A channel is given up only when it was silent for
//! [`Timing::silence`] with calls outstanding, was then asked for a sign of life by a NULL call,
//! and not a single byte has come for as long again. That time is counted in looks, between which
//! the channel is read, and not by the clock: after this machine has slept or was too busy, what
//! came meanwhile is seen first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Shared;

/// How many round trips of silence there must be at least: a link as slow as that exists.
const SILENCE_ROUND_TRIPS: u32 = 8;
/// How often a silence is looked at.
const LOOKS_PER_SILENCE: u32 = 10;

/// The signs of life of a channel.
#[derive(Debug)]
pub(super) struct Pulse {
    began: Instant,
    received_us: AtomicU64,
    accepted_us: AtomicU64,
    /// The ping that is under way and when it was sent.
    ping: Mutex<Option<(u32, Instant)>>,
}

impl Pulse {
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            received_us: AtomicU64::new(0),
            accepted_us: AtomicU64::new(0),
            ping: Mutex::new(None),
        }
    }

    fn now_us(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// Notes that bytes came.
    pub fn received(&self) {
        self.received_us.store(self.now_us(), Ordering::Relaxed);
    }

    /// Notes that bytes could be sent.
    pub fn accepted(&self) {
        self.accepted_us.store(self.now_us(), Ordering::Relaxed);
    }

    /// Notes that a ping was sent.
    pub fn ping_sent(&self, xid: u32) {
        *self.ping.lock() = Some((xid, Instant::now()));
    }

    /// Returns when the ping with this number was sent, once.
    pub fn take_ping(&self, xid: u32) -> Option<Instant> {
        let mut ping = self.ping.lock();
        ping.take_if(|(number, _)| *number == xid).map(|(_, at)| at)
    }

    fn last_received(&self) -> Instant {
        self.began + Duration::from_micros(self.received_us.load(Ordering::Relaxed))
    }

    fn last_accepted(&self) -> Instant {
        self.began + Duration::from_micros(self.accepted_us.load(Ordering::Relaxed))
    }
}

/// Returns the silence after which a channel is asked, when `strikes` before it fell silent.
fn silence(shared: &Shared, strikes: u32) -> Duration {
    let timing = &shared.options.timing;
    let rtt = shared.table.lock().rtt().unwrap_or_default();
    let base = timing.silence.max(rtt * SILENCE_ROUND_TRIPS);
    base.saturating_mul(1 << strikes.min(8)).min(timing.silence_max.max(timing.silence))
}

/// Watches a stripe's channel; returns for how long it has been silent when it counts as dead.
pub(super) async fn watch(
    shared: &Shared,
    index: usize,
    pulse: &Pulse,
    busy: Arc<Notify>,
    strikes: u32,
) -> Duration {
    let timing = &shared.options.timing;
    // When the server was asked for a sign of life, and how long it has been waited for.
    let mut asked: Option<(Instant, Duration)> = None;
    loop {
        let busy_since = shared.table.lock().busy_since(index);
        let silence = silence(shared, strikes);
        let Some(busy_since) = busy_since.or(asked.map(|(at, _)| at)) else {
            let quiet = pulse.last_received().max(pulse.last_accepted()) + timing.idle_ping;
            tokio::select! {
                () = busy.notified() => {}
                () = tokio::time::sleep_until(quiet.into()) => asked = Some(ask(shared, index)),
            }
            continue;
        };
        let tick = (silence / LOOKS_PER_SILENCE).min(Duration::from_secs(1));
        let tick = tick.max(Duration::from_millis(1));
        tokio::time::sleep(tick).await;
        let now = Instant::now();
        let received = pulse.last_received();
        match &mut asked {
            Some((at, _)) if received > *at => asked = None,
            Some((_, waited)) if *waited >= silence => return now - received.max(busy_since),
            Some((_, waited)) => {
                *waited += tick;
                continue;
            }
            None => {}
        }
        let overdue = shared.table.lock().resend_overdue(index);
        let quiet_since = received.max(pulse.last_accepted()).max(busy_since);
        if asked.is_none() && (overdue.ask || now - quiet_since > silence) {
            asked = Some(ask(shared, index));
        }
    }
}

fn ask(shared: &Shared, index: usize) -> (Instant, Duration) {
    let xid = shared.next_xid();
    shared.table.lock().queue_ping(index, xid);
    (Instant::now(), Duration::ZERO)
}
