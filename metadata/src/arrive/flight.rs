//! What is on its way: who needs it waits for the same flight.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use gridvfs_vfs::{Error, Result};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// A call, or a few, for some chunks of a file, or pieces of a list.
#[derive(Default)]
pub(super) struct Flight {
    outcome: OnceLock<Result<()>>,
    landed: Notify,
}

impl Flight {
    /// Waits for it.
    pub async fn wait(&self) -> Result<()> {
        loop {
            let mut landed = std::pin::pin!(self.landed.notified());
            landed.as_mut().enable();
            if let Some(outcome) = self.outcome.get() {
                return outcome.clone();
            }
            landed.await;
        }
    }
}

/// Waits for several; the first error counts.
pub(super) async fn wait(flights: Vec<Arc<Flight>>) -> Result<()> {
    let mut first = Ok(());
    for flight in flights {
        first = first.and(flight.wait().await);
    }
    first
}

/// The flights of a file, by the numbers of what they bring.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<u64, Arc<Flight>>>);

/// A flight that is to depart, and what it is to bring.
type Departure = (Vec<u64>, Arc<Flight>);

impl Flights {
    /// Returns the flights of all `numbers`, and those of them that are new: at most `per_flight`
    /// numbers in each.
    pub fn board(&self, numbers: &[u64], per_flight: usize) -> (Vec<Arc<Flight>>, Vec<Departure>) {
        let mut flights = self.0.lock();
        let mut all = Vec::new();
        let mut new: Vec<Departure> = Vec::new();
        for number in numbers {
            if let Some(flight) = flights.get(number) {
                all.push(flight.clone());
                continue;
            }
            match new.last_mut() {
                Some((group, flight)) if group.len() < per_flight => {
                    group.push(*number);
                    flights.insert(*number, flight.clone());
                }
                _ => {
                    let flight = Arc::new(Flight::default());
                    flights.insert(*number, flight.clone());
                    all.push(flight.clone());
                    new.push((vec![*number], flight));
                }
            }
        }
        (all, new)
    }

    /// Returns how many chunks or pieces are on their way.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }
}

/// Makes sure that those who wait for a flight hear of its end, whatever that is.
pub(super) struct Landing<'a> {
    flights: &'a Flights,
    numbers: &'a [u64],
    flight: Arc<Flight>,
}

impl<'a> Landing<'a> {
    pub fn new(flights: &'a Flights, numbers: &'a [u64], flight: Arc<Flight>) -> Self {
        Self { flights, numbers, flight }
    }

    pub fn done(self, outcome: Result<()>) {
        let _ = self.flight.outcome.set(outcome);
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let _ = self.flight.outcome.set(Err(Error::Interrupted));
        let mut flights = self.flights.0.lock();
        for number in self.numbers {
            flights.remove(number);
        }
        drop(flights);
        self.flight.landed.notify_waiters();
    }
}
