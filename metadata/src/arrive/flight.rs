//! Chunks on their way: who needs them waits for the same flight.

use std::sync::{Arc, OnceLock};

use gridvfs_vfs::{Error, Result};
use tokio::sync::Notify;

use super::Arrival;

/// A call, or a few, for some chunks.
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

/// Makes sure that those who wait for a flight hear of its end, whatever that is.
pub(super) struct Landing<'a> {
    arrival: &'a Arrival,
    chunks: &'a [u64],
    flight: Arc<Flight>,
}

impl<'a> Landing<'a> {
    pub fn new(arrival: &'a Arrival, chunks: &'a [u64], flight: Arc<Flight>) -> Self {
        Self { arrival, chunks, flight }
    }

    pub fn done(self, outcome: Result<()>) {
        let _ = self.flight.outcome.set(outcome);
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let _ = self.flight.outcome.set(Err(Error::Interrupted));
        let mut flights = self.arrival.flights.lock();
        for chunk in self.chunks {
            flights.remove(chunk);
        }
        drop(flights);
        self.flight.landed.notify_waiters();
    }
}
