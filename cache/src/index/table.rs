//! What is known in memory, in shards, the longest unused let go first.
//!
//! An entry whose change is not yet written stays. So what is not in memory is in the database as
//! it was last changed: a miss reads it there, without the lock, and takes what it read only if no
//! entry of the shard was changed meanwhile.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash, RandomState};

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};

/// A power of two; with two dozen threads a lock is rarely found taken.
const SHARDS: usize = 16;
/// After this many reads that were overtaken by changes the lock is kept over the read.
const TRIES_MAX: usize = 4;
/// How many entries are looked at for one that may go.
const EVICTION_TRIES_MAX: usize = 8;

pub(super) struct Slot<V> {
    /// `None`: there is no such entry, and the database may not know that yet.
    pub value: Option<V>,
    /// The number of the last change in the write queue.
    pub change: u64,
}

pub(super) struct Shard<K: Hash + Eq, V> {
    slots: LruCache<K, Slot<V>>,
    changes: u64,
    slots_max: usize,
}

impl<K: Hash + Eq, V> Shard<K, V> {
    pub fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut Slot<V>>
    where
        K: Borrow<Q>,
    {
        self.slots.get_mut(key)
    }

    /// Says that a slot is changed under this lock. Every change of the shard needs it.
    pub fn changing(&mut self) {
        self.changes += 1;
    }

    /// Enters a slot; old ones go, of those whose changes up to `written` alone are written.
    pub fn put(&mut self, key: K, slot: Slot<V>, written: u64) {
        self.slots.put(key, slot);
        // Never so many that the new one would be looked at.
        for _ in 0..EVICTION_TRIES_MAX.min(self.slots.len() - 1) {
            if self.slots.len() <= self.slots_max {
                return;
            }
            let Some((key, slot)) = self.slots.pop_lru() else { return };
            if slot.change > written {
                self.slots.put(key, slot);
            }
        }
    }
}

/// A locked shard.
pub(super) type Guard<'a, K, V> = MutexGuard<'a, Shard<K, V>>;

pub(super) struct Table<K: Hash + Eq, V> {
    shards: Box<[Mutex<Shard<K, V>>]>,
    hasher: RandomState,
}

impl<K: Hash + Eq, V> Table<K, V> {
    pub fn new(slots_max: usize) -> Self {
        let shard = || {
            let slots_max = (slots_max / SHARDS).max(1);
            Mutex::new(Shard { slots: LruCache::unbounded(), changes: 0, slots_max })
        };
        Self { shards: (0..SHARDS).map(|_| shard()).collect(), hasher: RandomState::new() }
    }

    /// Locks the shard of `key`.
    pub fn lock<Q: Hash + ?Sized>(&self, key: &Q) -> Guard<'_, K, V>
    where
        K: Borrow<Q>,
    {
        self.shards[self.shard_of(key)].lock()
    }

    fn shard_of<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        self.hasher.hash_one(key) as usize % SHARDS
    }

    /// Locks the shard of `key` when it has a slot for it: as it is in memory, or as `load` finds
    /// it. There is none if `load` finds nothing.
    pub fn find<Q: Hash + Eq + ?Sized>(
        &self,
        key: &Q,
        own: impl Fn(&Q) -> K,
        written: impl Fn() -> u64,
        load: impl Fn() -> Option<V>,
    ) -> Guard<'_, K, V>
    where
        K: Borrow<Q>,
    {
        let mut shard = self.lock(key);
        for attempt in 0.. {
            if shard.slots.contains(key) {
                break;
            }
            let changes = shard.changes;
            let value = if attempt < TRIES_MAX {
                drop(shard);
                let value = load();
                shard = self.lock(key);
                if shard.changes != changes || shard.slots.contains(key) {
                    continue;
                }
                value
            } else {
                load()
            };
            if let Some(value) = value {
                shard.put(own(key), Slot { value: Some(value), change: 0 }, written());
            }
            break;
        }
        shard
    }

    /// Enters what `load` finds of those keys that are not in memory, in their order, or that it
    /// finds nothing. What was changed meanwhile is left for [`Table::find`] to ask for.
    pub fn find_all(
        &self,
        keys: impl Iterator<Item = K>,
        written: impl Fn() -> u64,
        load: impl FnOnce(&[K]) -> Vec<Option<V>>,
    ) {
        let changes: Vec<u64> = self.shards.iter().map(|shard| shard.lock().changes).collect();
        let missing: Vec<K> = keys.filter(|key| !self.lock(key).slots.contains(key)).collect();
        if missing.is_empty() {
            return;
        }
        let found = load(&missing);
        for (key, value) in missing.into_iter().zip(found) {
            let number = self.shard_of(&key);
            let mut shard = self.shards[number].lock();
            if shard.changes == changes[number] && !shard.slots.contains(&key) {
                shard.put(key, Slot { value, change: 0 }, written());
            }
        }
    }

    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().slots.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_was_read_before_a_change_is_not_taken_for_what_is() {
        let table = Table::<u64, u64>::new(1);
        let loads = Cell::new(0);
        // While the first read is on its way, the entry is changed, written and let go.
        let load = || {
            loads.set(loads.get() + 1);
            if loads.get() == 1 {
                let mut shard = table.lock(&7);
                shard.changing();
                shard.put(7, Slot { value: Some(2), change: 1 }, 0);
                (100..110).for_each(|other| {
                    shard.put(other, Slot { value: Some(0), change: 0 }, 1);
                });
                assert!(shard.get(&7).is_none());
                return Some(1);
            }
            Some(2)
        };
        let value = table.find(&7, |key| *key, || 1, load).get(&7).and_then(|slot| slot.value);
        assert_eq!((value, loads.get()), (Some(2), 2));
    }

    #[test]
    fn what_was_changed_while_all_were_read_is_not_overwritten() {
        let table = Table::<u64, u64>::new(1000);
        table.lock(&1).put(1, Slot { value: Some(10), change: 1 }, 0);
        let load = |missing: &[u64]| {
            assert_eq!(missing, [2, 3, 4]);
            // Let go again by the time that the reader is back.
            let mut shard = table.lock(&3);
            shard.changing();
            missing.iter().map(|key| (*key != 2).then_some(*key)).collect()
        };
        table.find_all([1, 2, 3, 4].into_iter(), || 0, load);
        let known = |key: u64| table.lock(&key).get(&key).map(|slot| slot.value);
        assert_eq!(known(1), Some(Some(10)));
        assert_eq!(known(3), None, "it is read again when it is asked for");
        if table.shard_of(&2u64) != table.shard_of(&3u64) {
            assert_eq!(known(2), Some(None), "there is none, and nobody need look again");
        }
        if table.shard_of(&4u64) != table.shard_of(&3u64) {
            assert_eq!(known(4), Some(Some(4)));
        }
    }

    #[test]
    fn what_is_not_written_stays_and_the_new_one_too() {
        let table = Table::<u64, u64>::new(1);
        for key in 0..100 {
            let mut shard = table.lock(&key);
            shard.put(key, Slot { value: Some(key), change: key + 1 }, 0);
            assert!(shard.get(&key).is_some());
        }
        assert_eq!(table.len(), 100);
        for key in 200..400 {
            let shard = table.find(&key, |key| *key, || 100, || Some(key));
            drop(shard);
            assert!(table.lock(&key).get(&key).is_some());
        }
        assert!(table.len() <= SHARDS);
    }
}
