//! Keys that are guessed at: how fast a peer is told that it was wrong.
//!
//! Each wrong key costs its peer a token; tokens come back one a second. Without one the answer
//! waits, on the channel that asked and on no other, and channels that would wait as well are closed.
//! Whoever has a good key needs no token, even if he shares the address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How many wrong keys are answered at once: a person who tries the keys that are at hand.
const BURST: f64 = 16.0;
/// How many wrong keys are answered a second from then on. At 2^128 keys any number would do; it is
/// for the log's sake, and for the processor's.
const RATE: f64 = 1.0;
/// How many channels of a peer wait for such an answer.
const WAITING_MAX: u32 = 4;
/// The most peers that are remembered. More are those of somebody who has many addresses.
const PEERS_MAX: usize = 4096;
/// How often the log says that a peer guesses.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Who may be guessing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// An address; of IPv6 the network, since a machine has as many addresses there as it likes.
    Address(IpAddr),
    /// A user of this machine.
    User(u32),
}

impl Peer {
    /// Makes the peer of an address.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::from(address) >> 64 << 64;
                Self::Address(IpAddr::V6(network.into()))
            }
            address => Self::Address(address),
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::User(uid) => write!(f, "user {uid}"),
        }
    }
}

struct Record {
    tokens: f64,
    at: Instant,
    waiting: u32,
    /// Wrong keys since the log last said so.
    wrong: u64,
    logged: Option<Instant>,
}

/// See the module's description.
#[derive(Default)]
pub struct Guesses {
    peers: Mutex<HashMap<Peer, Record>>,
}

enum Verdict {
    Answer,
    Wait(Duration),
    Close,
}

impl Guesses {
    /// Notes a wrong key. Resolves when it may be answered; `false`: the channel is to be closed.
    pub async fn wrong(&self, peer: Peer) -> bool {
        match self.judge(peer, Instant::now()) {
            Verdict::Answer => true,
            Verdict::Close => false,
            Verdict::Wait(time) => {
                let _waiting = Waiting { guesses: self, peer };
                tokio::time::sleep(time).await;
                true
            }
        }
    }

    fn judge(&self, peer: Peer, now: Instant) -> Verdict {
        let mut peers = self.peers.lock();
        if peers.len() >= PEERS_MAX && !peers.contains_key(&peer) {
            // Those who have all their tokens again are as good as new.
            peers.retain(|_, record| record.waiting > 0 || record.refilled(now) < BURST);
            if peers.len() >= PEERS_MAX {
                return Verdict::Close;
            }
        }
        let record = peers.entry(peer).or_insert_with(|| Record {
            tokens: BURST,
            at: now,
            waiting: 0,
            wrong: 0,
            logged: None,
        });
        record.tokens = record.refilled(now);
        record.at = now;
        record.wrong += 1;
        if record.logged.is_none_or(|at| now.duration_since(at) >= LOG_INTERVAL) {
            let slow = if record.tokens < 1.0 { "; answered one a second" } else { "" };
            log::warn!("{peer}: {} calls without a good key{slow}", record.wrong);
            record.logged = Some(now);
            record.wrong = 0;
        }
        if record.tokens >= 1.0 {
            record.tokens -= 1.0;
            return Verdict::Answer;
        }
        if record.waiting >= WAITING_MAX {
            return Verdict::Close;
        }
        record.waiting += 1;
        record.tokens -= 1.0;
        Verdict::Wait(Duration::from_secs_f64((-record.tokens / RATE).max(0.0)))
    }
}

impl Record {
    fn refilled(&self, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        (self.tokens + since * RATE).min(BURST)
    }
}

struct Waiting<'a> {
    guesses: &'a Guesses,
    peer: Peer,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(record) = self.guesses.peers.lock().get_mut(&self.peer) {
            record.waiting -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guessing_at_speed_gets_one_answer_a_second() {
        let guesses = Guesses::default();
        let peer = Peer::of([10, 0, 0, 1].into());
        let start = Instant::now();
        let mut answers = 0;
        for _ in 0..1000 {
            match guesses.judge(peer, start) {
                Verdict::Answer => answers += 1,
                // Nobody waits for long.
                Verdict::Wait(time) => assert!(time <= Duration::from_secs(5)),
                Verdict::Close => {}
            }
        }
        assert_eq!(answers, BURST as u32);
        let other = Peer::of([10, 0, 0, 2].into());
        assert!(matches!(guesses.judge(other, start), Verdict::Answer), "others are not slowed");
        let record = guesses.peers.lock().get(&peer).expect("known").waiting;
        assert_eq!(record, WAITING_MAX);
        let later = start + Duration::from_secs(100);
        assert!(matches!(guesses.judge(peer, later), Verdict::Answer), "it is forgiven");
    }

    #[test]
    fn the_memory_is_bounded() {
        let guesses = Guesses::default();
        let start = Instant::now();
        for number in 0..2 * PEERS_MAX as u32 {
            let peer = Peer::of(std::net::Ipv4Addr::from(number).into());
            let known = matches!(guesses.judge(peer, start), Verdict::Answer);
            assert_eq!(known, (number as usize) < PEERS_MAX);
        }
        let later = start + Duration::from_secs(60);
        assert!(matches!(guesses.judge(Peer::User(7), later), Verdict::Answer));
        assert_eq!(guesses.peers.lock().len(), 1);
        let near = Peer::of("2001:db8::1".parse().expect("an address"));
        assert_eq!(near, Peer::of("2001:db8::2".parse().expect("an address")));
    }
}
