//! One READ and what came of it, shared by everybody who wants its range.
//!
//! A unit is asked for once (single flight): whoever finds it in the file's map waits for it. The
//! task that fetches it belongs to the runtime, not to a reader, so that a reader that goes away
//! takes nothing from the others. It is charged for its memory until its file lets it go.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use gridvfs_vfs::{Caller, Error, Result};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;

/// What a READ brought.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    /// The data; shorter than the unit only at the end of the file.
    pub data: Bytes,
    /// The file ends with the data.
    pub eof: bool,
    /// When the READ was sent.
    pub asked: Instant,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Unit {
    pub start: u64,
    pub length: usize,
    pub caller: Arc<Caller>,
    /// Asked for ahead of any reader.
    pub prefetched: bool,
    /// The layer's change clock when the READ was sent (at the latest).
    pub asked_at: u64,
    /// Whether any reader has had something of it.
    pub touched: AtomicBool,
    /// Its place in the order of eviction; 0 for none.
    pub stamp: AtomicU64,
    result: OnceLock<Result<Fetched>>,
    done: Notify,
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Unit {
    pub fn new(start: u64, length: usize, caller: Arc<Caller>, prefetched: bool, at: u64) -> Self {
        Self {
            start,
            length,
            caller,
            prefetched,
            asked_at: at,
            touched: AtomicBool::new(!prefetched),
            stamp: AtomicU64::new(0),
            result: OnceLock::new(),
            done: Notify::new(),
            permit: Mutex::new(None),
        }
    }

    pub fn end(&self) -> u64 {
        self.start + self.length as u64
    }

    pub fn result(&self) -> Option<&Result<Fetched>> {
        self.result.get()
    }

    /// Gives the unit the memory it is charged for.
    pub fn charge(&self, permit: OwnedSemaphorePermit) {
        *self.permit.lock() = Some(permit);
    }

    /// Gives the memory back although readers may still hold the data for a moment: they must not
    /// wait for memory that they themselves keep from being free.
    pub fn uncharge(&self) {
        *self.permit.lock() = None;
    }

    /// Ends the fetch and wakes all who wait.
    pub fn finish(&self, result: Result<Fetched>) {
        let kept = result.as_ref().map_or(0, |fetched| fetched.data.len());
        if let Some(permit) = self.permit.lock().as_mut() {
            let spare = permit.num_permits().saturating_sub(kept);
            drop(permit.split(spare));
        }
        let _ = self.result.set(result);
        self.done.notify_waiters();
    }

    /// Waits for the end of the fetch.
    pub async fn wait(&self) -> Result<Fetched> {
        loop {
            let mut done = std::pin::pin!(self.done.notified());
            done.as_mut().enable();
            if let Some(result) = self.result.get() {
                return result.clone();
            }
            done.await;
        }
    }

    /// Notes that a reader has had something of it. Returns true the first time.
    pub fn touch(&self) -> bool {
        !self.touched.swap(true, Ordering::Relaxed)
    }
}

/// Ends a unit's fetch with an error if the task ends before its answer: with the runtime.
pub(crate) struct FinishGuard(pub Arc<Unit>);

impl Drop for FinishGuard {
    fn drop(&mut self) {
        if self.0.result.get().is_none() {
            self.0.finish(Err(Error::Unreachable("the session has ended".into())));
        }
    }
}
