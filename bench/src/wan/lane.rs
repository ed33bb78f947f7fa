//! One direction of the link: a bottleneck with a drop-tail queue, then a delay.
//!
//! Nothing is put on timers: each item gets the time at which it is due when it comes in, and the
//! only reader sleeps until the first is due.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::Serialize;

use super::Weather;

/// How often a lane that holds back looks whether it still has to.
const LOOK: Duration = Duration::from_millis(20);

/// What a direction has done. Bytes are those of IP packets, as segments on the wire.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Traffic {
    /// Items delivered (large packets count once).
    pub packets: u64,
    /// Bytes delivered.
    pub bytes: u64,
    /// Items dropped because the queue was full.
    pub dropped_queue: u64,
    /// Items dropped at random.
    pub dropped_loss: u64,
    /// Items dropped because the link was cut.
    pub dropped_cut: u64,
}

/// When the bottleneck has sent all that waits before it. Lanes may share one.
#[derive(Debug)]
pub struct Bottleneck(Mutex<Instant>);

impl Bottleneck {
    /// An idle one.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Instant::now())))
    }
}

struct Waiting<T> {
    due: Instant,
    bytes: u64,
    item: T,
}

struct State<T> {
    waiting: VecDeque<Waiting<T>>,
    held_bytes: u64,
    closed: bool,
    random: u64,
    traffic: Traffic,
}

/// One direction.
pub struct Lane<T> {
    weather: Arc<Weather>,
    bottleneck: Arc<Bottleneck>,
    state: Mutex<State<T>>,
    changed: Condvar,
}

impl<T> Lane<T> {
    /// Makes one. `seed` begins the sequence of random losses; zero is taken as one.
    pub fn new(weather: Arc<Weather>, bottleneck: Arc<Bottleneck>, seed: u64) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            held_bytes: 0,
            closed: false,
            random: seed.max(1),
            traffic: Traffic::default(),
        };
        Self { weather, bottleneck, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Takes a packet of `bytes` on the wire, or drops it.
    pub fn send(&self, item: T, bytes: u64) {
        let conditions = self.weather.now();
        let mut state = self.state.lock();
        if conditions.cut {
            state.traffic.dropped_cut += 1;
            return;
        }
        if conditions.loss > 0.0 && state.random() < conditions.loss {
            state.traffic.dropped_loss += 1;
            return;
        }
        let now = Instant::now();
        let mut free_at = self.bottleneck.0.lock();
        let backlog = free_at.saturating_duration_since(now);
        let queue = conditions.transmission(conditions.queue_max());
        if conditions.rate_bits > 0 && backlog > queue {
            state.traffic.dropped_queue += 1;
            return;
        }
        *free_at = (*free_at).max(now) + conditions.transmission(bytes);
        let due = *free_at + conditions.one_way();
        drop(free_at);
        self.put(&mut state, Waiting { due, bytes, item });
    }

    /// Takes a part of a stream: nothing of it is dropped, and the caller waits while as much is
    /// held as the link and its queue would hold. Returns false if the lane was closed.
    pub fn send_stream(&self, item: T, bytes: u64) -> bool {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return false;
            }
            let conditions = self.weather.now();
            let flight = (conditions.rate_bits as f64 / 8.0 * conditions.rtt_seconds) as u64;
            let room = match conditions.rate_bits {
                0 => 16 << 20,
                _ => conditions.queue_max().saturating_add(flight),
            };
            if !conditions.cut && (state.held_bytes == 0 || state.held_bytes + bytes <= room) {
                break;
            }
            self.changed.wait_for(&mut state, LOOK);
        }
        let conditions = self.weather.now();
        let mut free_at = self.bottleneck.0.lock();
        *free_at = (*free_at).max(Instant::now()) + conditions.transmission(bytes);
        let due = *free_at + conditions.one_way();
        drop(free_at);
        self.put(&mut state, Waiting { due, bytes, item });
        true
    }

    fn put(&self, state: &mut State<T>, mut waiting: Waiting<T>) {
        // A delay that shrinks does not reorder.
        if let Some(last) = state.waiting.back() {
            waiting.due = waiting.due.max(last.due);
        }
        state.held_bytes += waiting.bytes;
        let wake = state.waiting.is_empty();
        state.waiting.push_back(waiting);
        if wake {
            self.changed.notify_all();
        }
    }

    /// Waits for the next item that arrives. `None` when the lane is closed and empty. Packets on a
    /// link that is cut are lost.
    pub fn receive(&self) -> Option<T> {
        self.next(|state| {
            let lost = state.waiting.pop_front()?;
            state.held_bytes -= lost.bytes;
            state.traffic.dropped_cut += 1;
            None
        })
    }

    /// The same for a stream: what is on a link that is cut arrives when it is restored.
    pub fn receive_stream(&self) -> Option<T> {
        self.next(|_| Some(LOOK))
    }

    /// `on_cut` may change the state and returns how long to wait before the next look.
    fn next(&self, on_cut: impl Fn(&mut State<T>) -> Option<Duration>) -> Option<T> {
        let mut state = self.state.lock();
        loop {
            let Some(first) = state.waiting.front() else {
                if state.closed {
                    return None;
                }
                self.changed.wait(&mut state);
                continue;
            };
            let due = first.due;
            if due > Instant::now() {
                self.changed.wait_until(&mut state, due);
                continue;
            }
            if self.weather.now().cut {
                if let Some(pause) = on_cut(&mut state) {
                    self.changed.wait_for(&mut state, pause);
                }
                continue;
            }
            let waiting = state.waiting.pop_front()?;
            state.held_bytes -= waiting.bytes;
            state.traffic.packets += 1;
            state.traffic.bytes += waiting.bytes;
            self.changed.notify_all();
            return Some(waiting.item);
        }
    }

    /// Ends the lane: what is in it still arrives.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    /// Returns what it has done so far.
    pub fn traffic(&self) -> Traffic {
        self.state.lock().traffic
    }
}

impl<T> State<T> {
    /// A number in 0..1 (xorshift64).
    fn random(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Change, Conditions};
    use super::*;

    fn lane(rtt_ms: f64, rate_bits: u64, loss: f64) -> (Arc<Weather>, Lane<u32>) {
        let weather = Arc::new(Weather::new(Conditions {
            rtt_seconds: rtt_ms / 1e3,
            rate_bits,
            loss,
            queue_bytes: 0,
            cut: false,
        }));
        (weather.clone(), Lane::new(weather, Bottleneck::new(), 42))
    }

    #[test]
    fn items_are_held_for_half_a_round_trip_in_order() {
        let (_, lane) = lane(20.0, 0, 0.0);
        let start = Instant::now();
        (0..5).for_each(|item| lane.send(item, 1500));
        for item in 0..5 {
            assert_eq!(lane.receive(), Some(item));
            assert!(start.elapsed() >= Duration::from_millis(10));
        }
        lane.close();
        assert_eq!(lane.receive(), None);
    }

    #[test]
    fn the_bottleneck_paces_and_drops_what_does_not_fit_its_queue() {
        // 80 Mbit/s: a kilobyte in 0.1 ms; the queue holds 1 MiB.
        let (_, lane) = lane(0.0, 80_000_000, 0.0);
        let start = Instant::now();
        (0..1200).for_each(|item| lane.send(item, 1000));
        let received: Vec<u32> = (0..200).filter_map(|_| lane.receive()).collect();
        assert_eq!(received, (0..200).collect::<Vec<_>>());
        assert!(start.elapsed() >= Duration::from_millis(20), "{:?}", start.elapsed());
        let dropped = lane.traffic().dropped_queue;
        assert!((1..200).contains(&dropped), "{dropped} of 1200 dropped, the queue holds 1048");
    }

    #[test]
    fn losses_are_as_frequent_as_asked() {
        let (_, lane) = lane(0.0, 0, 0.1);
        (0..10_000).for_each(|item| lane.send(item, 100));
        let lost = lane.traffic().dropped_loss;
        assert!((800..1200).contains(&lost), "{lost} of 10000");
    }

    #[test]
    fn a_cut_drops_packets_and_holds_streams() {
        let (weather, packets) = lane(0.0, 0, 0.0);
        let cut = |cut| Change { cut: Some(cut), ..Change::default() };
        packets.send(1, 100);
        weather.change(&cut(true));
        packets.send(2, 100);
        packets.close();
        assert_eq!(packets.receive(), None);
        assert_eq!(packets.traffic().dropped_cut, 2);

        let (weather, stream) = lane(0.0, 0, 0.0);
        assert!(stream.send_stream(1, 100));
        weather.change(&cut(true));
        std::thread::scope(|scope| {
            let received = scope.spawn(|| stream.receive_stream());
            std::thread::sleep(Duration::from_millis(60));
            assert!(!received.is_finished());
            weather.change(&cut(false));
            assert_eq!(received.join().expect("joins"), Some(1));
        });
    }
}
