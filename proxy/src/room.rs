//! The limits of a standing proxy that all its channels share: calls under way, and their memory.
//! A call beyond them waits until others are done.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What the byte semaphore counts in.
pub(crate) const BYTES_UNIT: usize = 4096;
/// How often the log says that calls wait.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// See the module's description.
pub struct Room {
    calls: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    calls_max: usize,
    bytes_max: usize,
    logged: Mutex<Option<Instant>>,
}

/// A call's share of the room, given back when its reply is written.
pub(crate) type Share = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Room {
    /// Makes room for so many calls, and so many bytes of calls and their expected replies.
    pub fn new(calls_max: usize, bytes_max: usize) -> Self {
        let bytes_max = bytes_max.div_ceil(BYTES_UNIT).clamp(1, u32::MAX as usize) * BYTES_UNIT;
        Self {
            calls: Arc::new(Semaphore::new(calls_max.max(1))),
            bytes: Arc::new(Semaphore::new(bytes_max / BYTES_UNIT)),
            calls_max,
            bytes_max,
            logged: Mutex::default(),
        }
    }

    /// Waits until there is room for a call of `bytes`. One that is larger than all of it has all of
    /// it for itself.
    pub(crate) async fn enter(&self, bytes: usize) -> Option<Share> {
        let units = bytes.min(self.bytes_max).div_ceil(BYTES_UNIT) as u32;
        let now = (
            self.calls.clone().try_acquire_owned(),
            self.bytes.clone().try_acquire_many_owned(units),
        );
        let (call, bytes) = match now {
            (Ok(call), Ok(bytes)) => return Some((call, bytes)),
            (call, bytes) => (call.ok(), bytes.ok()),
        };
        self.log();
        // In this order everywhere: nobody waits for the first while having the second.
        drop(bytes);
        let call = match call {
            Some(call) => call,
            None => self.calls.clone().acquire_owned().await.ok()?,
        };
        Some((call, self.bytes.clone().acquire_many_owned(units).await.ok()?))
    }

    fn log(&self) {
        let mut logged = self.logged.lock();
        if logged.is_none_or(|at| at.elapsed() > LOG_INTERVAL) {
            *logged = Some(Instant::now());
            log::warn!(
                "calls wait: {} of {} are under way, {} of {} MiB in use (calls_max, memory_max)",
                self.calls_max - self.calls.available_permits(),
                self.calls_max,
                (self.bytes_max - self.bytes.available_permits() * BYTES_UNIT) >> 20,
                self.bytes_max >> 20,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_beyond_the_limits_waits() {
        let room = Arc::new(Room::new(2, 3 * BYTES_UNIT));
        let first = room.enter(BYTES_UNIT + 1).await.expect("room");
        let waits = |bytes| {
            let room = room.clone();
            async move {
                let entered = room.enter(bytes);
                tokio::time::timeout(Duration::from_millis(50), entered).await.is_err()
            }
        };
        assert!(waits(2 * BYTES_UNIT).await, "memory");
        let second = room.enter(1).await.expect("room");
        assert!(waits(0).await, "calls");
        drop((first, second));
        // More than there is: alone.
        let all = room.enter(100 * BYTES_UNIT).await.expect("room");
        assert!(waits(1).await);
        drop(all);
        assert!(room.enter(1).await.is_some());
    }
}
