//! Where files were last seen: inode to parent inode and name.
//!
//! Only hints: whoever uses one opens what it names and looks whether that is the file. The newest
//! are in memory, all of them in a SQLite database ([`super::store`]), which outlives the process.

use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::Mutex;

use super::key::Id;
use super::store::{Store, Update};

/// How many inodes are known in memory: some 13 MiB with names of common length.
const SHARDS: usize = 16;
const SHARD_ENTRIES_MAX: usize = 4096;
/// How many names of one inode are known at a time.
const LINKS_MAX: usize = 8;

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub parent: Id,
    pub name: Box<[u8]>,
}

/// The table, newest location first.
#[derive(Debug)]
pub(super) struct Table {
    shards: Vec<Mutex<LruCache<Id, Vec<Location>>>>,
    store: Store,
}

impl Table {
    pub(super) fn new(store: Store) -> Self {
        let most = NonZeroUsize::new(SHARD_ENTRIES_MAX).expect("not zero");
        let shards = (0..SHARDS).map(|_| Mutex::new(LruCache::new(most))).collect();
        Self { shards, store }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    fn shard(&self, id: &Id) -> &Mutex<LruCache<Id, Vec<Location>>> {
        let mixed = (id.inode ^ id.device).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.shards[(mixed >> 60) as usize % SHARDS]
    }

    /// Remembers where an inode was seen, and says what has to go to the database, if anything.
    fn note_in_memory(&self, id: Id, parent: Id, name: &[u8]) -> Option<Update> {
        let mut shard = self.shard(&id).lock();
        let locations = shard.get_or_insert_mut(id, Vec::new);
        let same = |location: &Location| location.parent == parent && *location.name == *name;
        match locations.iter().position(same) {
            Some(0) => return None,
            Some(at) => {
                locations[..=at].rotate_right(1);
                return None;
            }
            None => locations.insert(0, Location { parent, name: name.into() }),
        }
        locations.truncate(LINKS_MAX);
        Some(Update::Put { id, parent, name: name.into() })
    }

    /// Remembers where an inode was seen.
    pub(super) fn note(&self, id: Id, parent: Id, name: &[u8]) {
        if let Some(update) = self.note_in_memory(id, parent, name) {
            self.store.queue(vec![update]);
        }
    }

    /// Remembers many at once.
    pub(super) fn note_all<'a>(&self, seen: impl Iterator<Item = (Id, Id, &'a [u8])>) {
        let updates: Vec<_> =
            seen.filter_map(|(id, parent, name)| self.note_in_memory(id, parent, name)).collect();
        if !updates.is_empty() {
            self.store.queue(updates);
        }
    }

    /// Where an inode may be: from memory, else from the database.
    pub(super) fn locations(&self, id: &Id) -> Vec<Location> {
        if let Some(locations) = self.shard(id).lock().get(id)
            && !locations.is_empty()
        {
            return locations.clone();
        }
        self.store.get(id).into_iter().collect()
    }

    /// Forgets one name of an inode.
    pub(super) fn drop_location(&self, id: &Id, parent: &Id, name: &[u8]) {
        let mut shard = self.shard(id).lock();
        let rest = shard.get_mut(id).map(|locations| {
            locations.retain(|location| location.parent != *parent || *location.name != *name);
            locations.first().cloned()
        });
        if let Some(None) = rest {
            shard.pop(id);
        }
        drop(shard);
        self.store.queue(vec![match rest.flatten() {
            Some(Location { parent, name }) => Update::Put { id: *id, parent, name },
            None => Update::DeleteLocation { id: *id, parent: *parent, name: name.into() },
        }]);
    }

    /// Forgets an inode that is gone.
    pub(super) fn remove(&self, id: &Id) {
        self.shard(id).lock().pop(id);
        self.store.queue(vec![Update::Delete { id: *id }]);
    }
}
