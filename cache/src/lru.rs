//! Which fetched unit is let go next: first those that were read from, the longest untouched
//! first; then those that were fetched ahead and never read.
//!
//! Holds weak references only: a unit that its file has dropped is merely skipped. Its lock is
//! never held while a file's is taken.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::file::File;
use crate::unit::Unit;

#[derive(Debug)]
struct Entry {
    file: Weak<File>,
    unit: Weak<Unit>,
    bytes: usize,
    asked: Instant,
}

#[derive(Debug, Default)]
struct Order {
    next: u64,
    touched: BTreeMap<u64, Entry>,
    unread: BTreeMap<u64, Entry>,
    touched_bytes: usize,
}

impl Order {
    fn take(&mut self, stamp: u64) -> Option<Entry> {
        if let Some(entry) = self.touched.remove(&stamp) {
            self.touched_bytes -= entry.bytes;
            return Some(entry);
        }
        self.unread.remove(&stamp)
    }

    fn put(&mut self, unit: &Unit, entry: Entry) {
        self.next += 1;
        unit.stamp.store(self.next, Ordering::Relaxed);
        if unit.touched.load(Ordering::Relaxed) {
            self.touched_bytes += entry.bytes;
            self.touched.insert(self.next, entry);
        } else {
            self.unread.insert(self.next, entry);
        }
    }
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Lru {
    order: Mutex<Order>,
}

/// What may be let go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Victims {
    /// Units that were read from.
    Touched,
    /// Those, and unread ones asked for before this.
    AskedBefore(Instant),
    /// Any.
    All,
}

impl Lru {
    /// Enters a unit that has its data, or moves it to the end of the order.
    pub fn note(&self, file: &Arc<File>, unit: &Arc<Unit>) {
        let Some(Ok(fetched)) = unit.result() else { return };
        let entry = Entry {
            file: Arc::downgrade(file),
            unit: Arc::downgrade(unit),
            bytes: fetched.data.len(),
            asked: fetched.asked,
        };
        let mut order = self.order.lock();
        let _ = order.take(unit.stamp.load(Ordering::Relaxed));
        order.put(unit, entry);
    }

    /// Takes a unit out of the order.
    pub fn forget(&self, unit: &Unit) {
        let _ = self.order.lock().take(unit.stamp.load(Ordering::Relaxed));
    }

    /// The bytes of units that were read from.
    pub fn touched_bytes(&self) -> usize {
        self.order.lock().touched_bytes
    }

    /// Takes the next victim. The caller drops it from its file.
    pub fn pop(&self, victims: Victims) -> Option<(Arc<File>, Arc<Unit>, usize)> {
        loop {
            let mut order = self.order.lock();
            let oldest = order.unread.first_key_value();
            let unread = oldest.filter(|(_, entry)| match victims {
                Victims::Touched => false,
                Victims::AskedBefore(when) => entry.asked < when,
                Victims::All => true,
            });
            let stamp = order.touched.keys().next().or(unread.map(|(stamp, _)| stamp)).copied()?;
            let entry = order.take(stamp)?;
            drop(order);
            if let (Some(file), Some(unit)) = (entry.file.upgrade(), entry.unit.upgrade()) {
                return Some((file, unit, entry.bytes));
            }
        }
    }
}
