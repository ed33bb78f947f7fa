//! The calls in flight, and which stripe each is with.
//!
//! One lock guards all of it, so that a call is always with exactly one stripe or in the list of
//! those that wait for one. Its size is bounded by the client's slots.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};

use super::rtt::RoundTrips;
use super::{CallClass, CallError, Request};
use crate::{Terms, Timing};

/// What a call without data counts for when the least loaded stripe is chosen.
const CALL_BYTES: usize = 256;
/// How many times a call's reply may be garbled before the call fails.
pub(super) const GARBLED_MAX: u8 = 3;
/// The most calls that are taken for sending at once, and the data with which a batch is full.
const BATCH_CALLS: usize = 64;
const BATCH_BYTES: usize = 256 << 10;

/// When and how a call was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// When it was sent last.
    pub at: Instant,
    /// How many times.
    pub times: u32,
    /// The generation of the channel that it was sent on last.
    pub generation: u64,
    /// Whether it was sent again to where the first sending may have been executed and forgotten.
    pub unsafely: bool,
}

/// What comes for a call.
pub(super) type Arrival = Result<(Bytes, Sent), CallError>;

/// A call in flight.
pub(super) struct Outstanding {
    pub request: Arc<Request>,
    pub answer: oneshot::Sender<Arrival>,
    /// Its share of the client's limits, until the reply is here.
    _permits: [Option<OwnedSemaphorePermit>; 2],
    pub sent: Option<Sent>,
    pub garbled: u8,
    stripe: Option<usize>,
    queued: bool,
    due: Option<Instant>,
}

/// What is to be written to a channel.
pub(super) enum Item {
    Call(u32, Arc<Request>),
    Ping(u32),
}

#[derive(Default)]
struct StripeState {
    alive: bool,
    queue: VecDeque<u32>,
    ping: Option<u32>,
    wake: Arc<Notify>,
    /// Told when the stripe has something outstanding again.
    busy: Arc<Notify>,
    calls: usize,
    bytes: usize,
    busy_since: Option<Instant>,
    /// When the latest of the answered calls was sent: what was sent before has arrived.
    arrived: Option<Instant>,
}

/// What the watch over a channel is to do about calls that have waited for long.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Overdue {
    /// How many were queued to be sent again.
    pub resent: usize,
    /// Whether a ping would show that the server has the others.
    pub ask: bool,
}

pub(super) struct Table {
    calls: HashMap<u32, Outstanding>,
    stripes: Vec<StripeState>,
    waiting: VecDeque<u32>,
    trips: RoundTrips,
    ended: bool,
}

impl Table {
    pub fn new(stripes: usize) -> Self {
        Self {
            calls: HashMap::new(),
            stripes: (0..stripes).map(|_| StripeState::default()).collect(),
            waiting: VecDeque::new(),
            trips: RoundTrips::default(),
            ended: false,
        }
    }

    /// Adds a call; `sent` if it was sent before and its reply was no good.
    pub fn add(
        &mut self,
        xid: u32,
        request: Arc<Request>,
        sent: Option<Sent>,
        garbled: u8,
        permits: [Option<OwnedSemaphorePermit>; 2],
    ) -> oneshot::Receiver<Arrival> {
        let (answer, receiver) = oneshot::channel();
        if !self.ended {
            let call = Outstanding {
                request,
                answer,
                _permits: permits,
                sent,
                garbled,
                stripe: None,
                queued: false,
                due: None,
            };
            self.calls.insert(xid, call);
            self.assign(xid);
        }
        receiver
    }

    /// Gives a call to the stripe with the fewest bytes outstanding.
    fn assign(&mut self, xid: u32) {
        let Some(call) = self.calls.get_mut(&xid) else { return };
        let alive = self.stripes.iter_mut().enumerate().filter(|(_, stripe)| stripe.alive);
        let Some((index, stripe)) = alive.min_by_key(|(_, stripe)| stripe.bytes) else {
            self.waiting.push_back(xid);
            return;
        };
        call.stripe = Some(index);
        call.queued = true;
        call.due = None;
        stripe.queue.push_back(xid);
        if call.request.class != CallClass::Held {
            stripe.calls += 1;
            stripe.bytes += CALL_BYTES + call.request.data_bytes();
            if stripe.calls == 1 {
                stripe.busy_since = Some(Instant::now());
                stripe.busy.notify_one();
            }
        }
        stripe.wake.notify_one();
    }

    /// Takes a call off its stripe, or off those that wait for one.
    fn unassign(&mut self, xid: u32, call: &mut Outstanding) {
        let Some(index) = call.stripe.take() else {
            self.waiting.retain(|waiting| *waiting != xid);
            return;
        };
        let stripe = &mut self.stripes[index];
        if std::mem::take(&mut call.queued) {
            stripe.queue.retain(|queued| *queued != xid);
        }
        if call.request.class == CallClass::Held {
            return;
        }
        stripe.calls -= 1;
        stripe.bytes -= CALL_BYTES + call.request.data_bytes();
        if stripe.calls == 0 {
            stripe.busy_since = None;
        }
    }

    fn remove(&mut self, xid: u32) -> Option<Outstanding> {
        let mut call = self.calls.remove(&xid)?;
        self.unassign(xid, &mut call);
        Some(call)
    }

    /// Forgets a call that nobody waits for any more. Returns whether there was one.
    pub fn abandon(&mut self, xid: u32) -> bool {
        self.remove(xid).is_some()
    }

    /// Hands a reply record that came on a channel of `index` to its call. Returns whether there
    /// was one.
    pub fn answer(&mut self, index: usize, xid: u32, record: Bytes) -> bool {
        let Some(call) = self.remove(xid) else { return false };
        // A reply to what was never sent is an invention; the record goes to the caller all the
        // same, who has to decode it anyway.
        let now = Instant::now();
        let sent = call.sent.unwrap_or(Sent { at: now, times: 1, generation: 0, unsafely: false });
        if sent.times == 1 && call.request.class != CallClass::Held {
            self.trips.add(call.request.class, now - sent.at);
            self.note_arrival(index, sent.at);
        }
        // The permits go with the call: the next one may come.
        let _ = call.answer.send(Ok((record, sent)));
        true
    }

    fn note_arrival(&mut self, index: usize, sent_at: Instant) {
        let arrived = &mut self.stripes[index].arrived;
        *arrived = (*arrived).max(Some(sent_at));
    }

    /// Notes that the ping of a channel that was sent at `sent_at` was answered.
    pub fn ping_answered(&mut self, index: usize, sent_at: Instant) {
        self.note_arrival(index, sent_at);
        self.trips.add(CallClass::Small, sent_at.elapsed());
    }

    /// Has a ping sent on a stripe.
    pub fn queue_ping(&mut self, index: usize, xid: u32) {
        self.stripes[index].ping = Some(xid);
        self.stripes[index].wake.notify_one();
    }

    /// Begins a stripe's new channel. Calls that wait for one are queued.
    pub fn stripe_up(&mut self, index: usize) -> (Arc<Notify>, Arc<Notify>) {
        let stripe = &mut self.stripes[index];
        stripe.alive = true;
        stripe.arrived = None;
        let notify = (stripe.wake.clone(), stripe.busy.clone());
        for xid in std::mem::take(&mut self.waiting) {
            self.assign(xid);
        }
        notify
    }

    /// Ends a stripe's channel: its calls move to others. If the server broke the protocol, that
    /// counts against the call `culprit`, or all that were sent here when it is not known.
    pub fn stripe_down(&mut self, index: usize, violation: Option<(String, Option<u32>)>) {
        let stripe = &mut self.stripes[index];
        stripe.alive = false;
        stripe.ping = None;
        stripe.queue.clear();
        let here = |call: &Outstanding| call.stripe == Some(index);
        let mut moving: Vec<u32> =
            self.calls.iter().filter(|(_, call)| here(call)).map(|(xid, _)| *xid).collect();
        // By age, not by chance: the oldest has waited longest. The counter may wrap around.
        let newest = moving.iter().copied().fold(None, |newest: Option<u32>, xid| match newest {
            Some(newest) if newest.wrapping_sub(xid) < u32::MAX / 2 => Some(newest),
            _ => Some(xid),
        });
        moving.sort_unstable_by_key(|xid| {
            std::cmp::Reverse(newest.unwrap_or_default().wrapping_sub(*xid))
        });
        let violation = violation
            .map(|(text, culprit)| (text, culprit.filter(|xid| self.calls.contains_key(xid))));
        for xid in moving {
            let Some(mut call) = self.calls.remove(&xid) else { continue };
            self.unassign(xid, &mut call);
            if let Some((text, culprit)) = &violation {
                let guilty = call.sent.is_some() && culprit.is_none_or(|culprit| culprit == xid);
                call.garbled += u8::from(guilty);
                if call.garbled >= GARBLED_MAX {
                    let _ = call.answer.send(Err(CallError::Protocol(text.clone())));
                    continue;
                }
            }
            self.calls.insert(xid, call);
            self.assign(xid);
        }
    }

    /// Says whether a stripe has calls outstanding, and since when without a pause.
    pub fn busy_since(&self, index: usize) -> Option<Instant> {
        self.stripes[index].busy_since
    }

    /// Returns the smoothed round-trip time of small calls.
    pub fn rtt(&self) -> Option<Duration> {
        self.trips.small()
    }

    /// Returns how many stripes have a channel.
    pub fn alive(&self) -> usize {
        self.stripes.iter().filter(|stripe| stripe.alive).count()
    }

    /// Takes what is to be sent next on a stripe's channel. Returns how many calls of it were sent
    /// before.
    pub fn take_batch(
        &mut self,
        index: usize,
        terms: &Terms,
        timing: &Timing,
        batch: &mut Vec<Item>,
    ) -> u64 {
        let stripe = &mut self.stripes[index];
        let now = Instant::now();
        let (mut bytes, mut resent) = (0, 0);
        batch.extend(stripe.ping.take().map(Item::Ping));
        while batch.len() < BATCH_CALLS && bytes < BATCH_BYTES {
            let Some(xid) = stripe.queue.pop_front() else { break };
            let Some(call) = self.calls.get_mut(&xid) else { continue };
            call.queued = false;
            bytes += call.request.payload.as_ref().map_or(0, Bytes::len);
            let held = call.request.class == CallClass::Held;
            let class = if held { CallClass::Small } else { call.request.class };
            let limit = self.trips.limit(class, timing.resend, timing.resend_max);
            let sent = match call.sent {
                None => Sent { at: now, times: 1, generation: terms.generation, unsafely: false },
                Some(before) => {
                    resent += 1;
                    let remembered = terms.replay_cache && terms.generation == before.generation;
                    Sent {
                        at: now,
                        times: before.times.saturating_add(1),
                        generation: terms.generation,
                        unsafely: before.unsafely || !remembered,
                    }
                }
            };
            let doublings = sent.times.min(16) - 1;
            let wait = limit.saturating_mul(1 << doublings);
            call.due = (!held).then(|| now + wait.min(timing.resend_max.max(limit)));
            call.sent = Some(sent);
            batch.push(Item::Call(xid, call.request.clone()));
        }
        resent
    }

    /// Queues again what the server seems to have lost on a stripe: calls that have waited beyond
    /// their limit while later ones were answered. On a slow link with a long queue none were.
    pub fn resend_overdue(&mut self, index: usize) -> Overdue {
        let now = Instant::now();
        let stripe = &mut self.stripes[index];
        let mut overdue = Overdue::default();
        for (xid, call) in &mut self.calls {
            if call.stripe != Some(index) || call.queued || call.due.is_none_or(|due| due > now) {
                continue;
            }
            if call.sent.map(|sent| sent.at) < stripe.arrived {
                call.queued = true;
                stripe.queue.push_back(*xid);
                overdue.resent += 1;
            } else {
                overdue.ask = true;
            }
        }
        if overdue.resent > 0 {
            stripe.wake.notify_one();
        }
        overdue
    }

    /// Fails all calls, and those to come: the client is being dropped.
    pub fn end(&mut self) {
        self.ended = true;
        self.calls.clear();
        self.waiting.clear();
        for stripe in &mut self.stripes {
            stripe.queue.clear();
            (stripe.calls, stripe.bytes) = (0, 0);
        }
    }
}
