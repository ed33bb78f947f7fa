//! Places for clients, and what is made of those who have not shown a key yet.
//!
//! A channel of somebody unknown takes no place. There may be a few of each peer and not many in
//! all; if more come, the oldest is closed, so that whoever has a key, and shows it at once, gets in
//! however many others only knock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use super::guesses::{Guesses, Peer};
use crate::gate::Guest;
use crate::server::Visit;

/// The most channels of a peer that have not shown a key. A session opens all its channels at once
/// and uses some of them later: these are those of 16 sessions.
const STRANGERS_OF_PEER_MAX: usize = 64;
/// The most such channels in all.
const STRANGERS_MAX: usize = 512;
/// For how long a channel may be silent about who it is: longer than our clients let one idle before
/// they ask for a sign of life.
const STRANGER_TIME: Duration = Duration::from_secs(150);
/// How often the log says that there is no place.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// See the module's description.
pub struct Doors {
    places: Arc<Semaphore>,
    clients_max: usize,
    waiting: AtomicUsize,
    strangers: Mutex<VecDeque<(Peer, Arc<Notify>)>>,
    guesses: Guesses,
    logged: Mutex<Option<Instant>>,
    /// The number of channels that are served.
    pub channels: watch::Sender<usize>,
    /// Set when all is to end.
    pub stopping: watch::Sender<bool>,
}

impl Doors {
    /// Makes places for so many channels at once.
    pub fn new(clients_max: usize) -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(clients_max)),
            clients_max,
            waiting: AtomicUsize::new(0),
            strangers: Mutex::default(),
            guesses: Guesses::default(),
            logged: Mutex::default(),
            channels: watch::Sender::new(0),
            stopping: watch::Sender::new(false),
        })
    }

    /// Takes in a channel.
    pub fn knock(self: &Arc<Self>, peer: Peer) -> Knock {
        let evicted = Arc::new(Notify::new());
        let mut strangers = self.strangers.lock();
        let of_peer = strangers.iter().filter(|(other, _)| *other == peer).count();
        let oldest = if of_peer >= STRANGERS_OF_PEER_MAX {
            strangers.iter().position(|(other, _)| *other == peer)
        } else {
            (strangers.len() >= STRANGERS_MAX).then_some(0)
        };
        if let Some((_, oldest)) = oldest.and_then(|at| strangers.remove(at)) {
            oldest.notify_one();
        }
        strangers.push_back((peer, evicted.clone()));
        drop(strangers);
        self.channels.send_modify(|channels| *channels += 1);
        Knock {
            doors: self.clone(),
            peer,
            evicted,
            deadline: Instant::now() + STRANGER_TIME,
            known: AtomicBool::new(false),
            place: Mutex::default(),
        }
    }

    fn forget(&self, evicted: &Arc<Notify>) {
        self.strangers.lock().retain(|(_, other)| !Arc::ptr_eq(other, evicted));
    }

    async fn place(&self, guest: &Guest, peer: Peer) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Some(place);
        }
        let waits = self.waiting.fetch_add(1, Ordering::Relaxed) < self.clients_max;
        let _waiting = Waiting(&self.waiting);
        {
            let mut logged = self.logged.lock();
            if logged.is_none_or(|at| at.elapsed() > LOG_INTERVAL) {
                *logged = Some(Instant::now());
                let fate = if waits { "waits" } else { "is refused: as many wait already" };
                log::warn!(
                    "all {} places are taken (clients_max): a channel of {} ({peer}) {fate}",
                    self.clients_max,
                    guest.name(),
                );
            }
        }
        match waits {
            true => self.places.clone().acquire_owned().await.ok(),
            false => None,
        }
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A channel at the door, and then inside.
pub struct Knock {
    doors: Arc<Doors>,
    peer: Peer,
    evicted: Arc<Notify>,
    deadline: Instant,
    known: AtomicBool,
    place: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Drop for Knock {
    fn drop(&mut self) {
        self.doors.forget(&self.evicted);
        self.doors.channels.send_modify(|channels| *channels -= 1);
    }
}

#[async_trait]
impl Visit for Knock {
    async fn sent_away(&self) {
        let mut stopping = self.doors.stopping.subscribe();
        let stop = stopping.wait_for(|stop| *stop);
        if self.known.load(Ordering::Relaxed) {
            let _ = stop.await;
            return;
        }
        tokio::select! {
            _ = stop => {}
            () = self.evicted.notified() => log::debug!("{}: a channel made room", self.peer),
            () = tokio::time::sleep_until(self.deadline.into()) => {
                log::info!("{}: a channel that said nothing is closed", self.peer);
            }
        }
    }

    async fn welcome(&self, guest: &Guest) -> bool {
        self.known.store(true, Ordering::Relaxed);
        self.doors.forget(&self.evicted);
        let place = tokio::select! {
            place = self.doors.place(guest, self.peer) => place,
            () = guest.revoked() => None,
        };
        let let_in = place.is_some();
        if let_in {
            log::info!("{} comes from {}", guest.name(), self.peer);
        }
        *self.place.lock() = place;
        let_in
    }

    async fn stranger(&self) -> bool {
        self.doors.guesses.wrong(self.peer).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_who_only_knock_make_room_for_others() {
        let doors = Doors::new(2);
        let peer = Peer::User(1);
        let first = doors.knock(peer);
        let others: Vec<_> = (0..STRANGERS_OF_PEER_MAX).map(|_| doors.knock(peer)).collect();
        first.sent_away().await;
        let soon = Duration::from_millis(30);
        assert!(tokio::time::timeout(soon, others[0].sent_away()).await.is_err());
        let guest = Guest::new("alice", None, Vec::new());
        assert!(others[0].welcome(&guest).await && others[1].welcome(&guest).await);
        assert!(tokio::time::timeout(soon, others[2].welcome(&guest)).await.is_err(), "waits");
        drop(others);
        let last = doors.knock(peer);
        assert!(last.welcome(&guest).await);
        assert_eq!(*doors.channels.borrow(), 2);
        doors.stopping.send_replace(true);
        last.sent_away().await;
    }
}
