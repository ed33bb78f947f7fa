//! Byte budgets: how much memory may be held, first come, first served.
//!
//! A budget never blocks a release and never loses a byte: what is taken beyond the limit (the
//! remains of a split piece) is a debt that the next release pays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The memory of held writes.
#[derive(Debug)]
pub(crate) struct WriteBudget {
    limit: usize,
    free: Semaphore,
    debt: Mutex<usize>,
    pressed: AtomicBool,
    /// Told whenever the server did not answer in its time, for writers that wait for memory.
    pub unreachable: Notify,
}

impl WriteBudget {
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            free: Semaphore::new(limit),
            debt: Mutex::new(0),
            pressed: AtomicBool::new(false),
            unreachable: Notify::new(),
        }
    }

    /// Takes `bytes` if they are free and nobody waits.
    pub fn try_take(&self, bytes: usize) -> bool {
        let bytes = bytes.min(self.limit) as u32;
        self.free.try_acquire_many(bytes).map(|permit| permit.forget()).is_ok()
    }

    /// Waits for `bytes`, in order of arrival.
    pub async fn take(&self, bytes: usize) {
        let bytes = bytes.min(self.limit) as u32;
        // The semaphore is never closed.
        if let Ok(permit) = self.free.acquire_many(bytes).await {
            permit.forget();
        }
    }

    /// Gives back (or, if negative, takes without asking).
    pub fn release(&self, bytes: isize) {
        let mut debt = self.debt.lock();
        if bytes < 0 {
            let wanted = bytes.unsigned_abs();
            *debt += wanted - self.free.forget_permits(wanted);
        } else {
            let given = bytes.unsigned_abs();
            let paid = given.min(*debt);
            *debt -= paid;
            self.free.add_permits(given - paid);
        }
        drop(debt);
        if self.free.available_permits() > self.limit / 2 {
            self.pressed.store(false, Ordering::Relaxed);
        }
    }

    pub fn used(&self) -> usize {
        self.limit - self.free.available_permits().min(self.limit) + *self.debt.lock()
    }

    /// Says whether memory is short: everything is to be sent and committed without delay.
    pub fn is_pressed(&self) -> bool {
        self.pressed.load(Ordering::Relaxed)
    }

    /// Notes that memory is short, if it is. Returns true for the first to notice.
    pub fn press(&self, waiting: bool) -> bool {
        let short = waiting || self.free.available_permits() < self.limit / 4;
        short && !self.pressed.swap(true, Ordering::Relaxed)
    }
}

/// The memory of read units.
#[derive(Debug)]
pub(crate) struct ReadBudget {
    limit: usize,
    free: Arc<Semaphore>,
    /// How many bytes are waited for by reads that cannot go on.
    pub wanted: AtomicUsize,
}

impl ReadBudget {
    pub fn new(limit: usize) -> Self {
        Self { limit, free: Arc::new(Semaphore::new(limit)), wanted: AtomicUsize::new(0) }
    }

    pub fn try_take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.free.clone().try_acquire_many_owned(bytes.min(self.limit) as u32).ok()
    }

    pub async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.free.clone().acquire_many_owned(bytes.min(self.limit) as u32).await.ok()
    }

    pub fn used(&self) -> usize {
        self.limit - self.free.available_permits().min(self.limit)
    }
}

/// Raises `peak` to `value`.
pub(crate) fn note_peak(peak: &AtomicU64, value: usize) {
    peak.fetch_max(value as u64, Ordering::Relaxed);
}
