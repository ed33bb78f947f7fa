//! What the disk cache knows of files by their handles: attributes, access rights, names, listings,
//! and under which key a file's frames are.
//!
//! It is kept in memory within limits and written behind to an SQLite database. A hit takes a lock
//! of a shard or two and no system call; a miss asks the database, some 10 microseconds. Nothing
//! waits for the disk but [`Index::flush`], a listing that changes of the last moments belong to,
//! and whoever makes changes faster than they can be written.
//!
//! The database is only a cache, and losing the last second of it makes no wrong data be believed:
//! - A version of a file has its frames under a random key, and a version of a directory its names:
//!   when the server's file has changed, both get new ones. So does a file that is forgotten.
//! - Changes are written in their order, batch by batch: after a crash the database says what was
//!   known at some earlier moment. [`Index::closed_cleanly`] tells whether it is the last one; if
//!   not, attributes and names are worth what the server says of the attributes.
//! - That a name is absent is concluded only where the database holds all names of that version.
//!
//! It never asks the server, decides nothing about validity, and an unusable database is no error.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use gridvfs_vfs::{Caller, FileHandle};
use lru::LruCache;
use parking_lot::Mutex;

use crate::FileKey;
use database::Database;
use listing::Collection;
use node::Node;
use rows::{Found, NodeRow};
use table::{Slot, Table};
use writer::{Change, Queue};

mod aliases;
mod database;
mod listing;
mod name_rows;
mod names;
mod node;
mod options;
mod rows;
mod table;
#[cfg(test)]
mod tests;
mod writer;

pub use listing::{Listed, ListedEntry, ListingToken};
pub(crate) use name_rows::OURS as OUR_COOKIES;
pub use names::Name;
pub use node::Known;
pub(crate) use node::{ATTR_BYTES, pack_attr, unpack_attr};
pub use options::{IndexError, IndexOptions, IndexStats};

/// What a name leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Child {
    Here(FileHandle),
    Absent,
    /// To be asked for: it may or may not be there.
    Unknown,
}

/// See the module's description.
pub struct Index {
    nodes: Table<FileHandle, Node>,
    /// By [`names::name_key`].
    names: Table<Box<[u8]>, Child>,
    collecting: Mutex<LruCache<FileHandle, Collection>>,
    /// The last token given.
    tokens: AtomicU64,
    /// The number of the last change of a name.
    names_changed: AtomicU64,
    queue: Arc<Queue>,
    database: Arc<Database>,
    thread: Option<JoinHandle<()>>,
}

impl Index {
    /// Opens the index kept at `path`, or makes one. A database that is damaged is set aside as
    /// `path.damaged-N`, one that cannot be used is done without.
    ///
    /// # Errors
    /// When the file is of a format that this program does not know. It is not touched.
    pub fn open(path: &Path, options: IndexOptions) -> Result<Self, IndexError> {
        let (database, writer) = Database::open(path, &options)?;
        let database = Arc::new(database);
        let queue = Arc::new(Queue::new(options.write_delay));
        let thread = writer.and_then(|writer| {
            let thread = writer::start(&queue, &database, writer);
            thread.map_err(|error| database.give_up(&error.to_string())).ok()
        });
        Ok(Self {
            nodes: Table::new(options.nodes_max),
            names: Table::new(options.names_max),
            collecting: Mutex::new(LruCache::new(listing::COLLECTIONS_MAX)),
            tokens: AtomicU64::new(0),
            names_changed: AtomicU64::new(0),
            queue,
            database,
            thread,
        })
    }

    /// Whether everything that was ever known is there: all sessions that used the database before
    /// have closed it, and none has it open now. If not, attributes and names are older than they
    /// may seem, even to a session that owns its files.
    pub fn closed_cleanly(&self) -> bool {
        self.database.closed_cleanly
    }

    /// Returns what is known of a file.
    pub fn node(&self, handle: &FileHandle) -> Option<Known> {
        self.with_node(handle, |node| node.known)
    }

    /// Changes what is known of a file; one that was unknown gets a fresh key. `change` is called
    /// under a lock, and must not call the index.
    ///
    /// With the owner, the group, the mode or the ctime, the access rights are forgotten; with the
    /// key, the target.
    pub fn update(&self, handle: &FileHandle, change: impl FnOnce(&mut Known)) -> Known {
        self.change_node(handle, |node| (node.change(change), node.known))
    }

    /// Forgets a file that is gone: its key, too.
    pub fn forget_node(&self, handle: &FileHandle) {
        self.queue.admit();
        let mut shard = self.find_node(handle);
        shard.changing();
        let names = match shard.get(handle).and_then(|slot| slot.value.as_ref()) {
            Some(node) => node.names,
            None => return,
        };
        let change = self.push(|| Change::ForgetNode(*handle));
        shard.put(*handle, Slot { value: None, change }, self.queue.written());
        drop(shard);
        self.drop_names(names);
    }

    /// Finds the file that has its frames under `key`. Waits for what is not yet written.
    pub fn handle_of_key(&self, key: FileKey) -> Option<FileHandle> {
        self.flush();
        self.database.read(|database| rows::handle_of_key(database, key))
    }

    /// Returns which of the `wanted` permissions (`Access` bits) the server has granted `caller`;
    /// `None` if one of them was not asked for.
    pub fn granted(&self, handle: &FileHandle, caller: &Caller, wanted: u32) -> Option<u32> {
        self.with_node(handle, |node| node.granted(caller, wanted)).flatten()
    }

    /// Notes what of the `asked` permissions the server has granted on a file that is known. It is
    /// kept in memory alone.
    pub fn set_granted(&self, handle: &FileHandle, caller: &Caller, asked: u32, granted: u32) {
        self.with_node(handle, |node| node.set_granted(caller, asked, granted));
    }

    /// Returns the target of a symbolic link.
    pub fn target(&self, handle: &FileHandle) -> Option<Bytes> {
        self.with_node(handle, |node| node.extra.as_ref()?.target.clone()).flatten()
    }

    /// Notes the target of a symbolic link.
    pub fn set_target(&self, handle: &FileHandle, target: Bytes) {
        self.change_node(handle, |node| {
            let changed = node.extra().target.as_ref() != Some(&target);
            node.extra().target = Some(target);
            (changed, ())
        });
    }

    /// Forgets all names and attributes, for sessions to come, too. Keys and bases stay. It waits
    /// until that is written.
    pub fn forget_all(&self) {
        let epoch = crate::key::random_number();
        self.drop_collections();
        self.database.epoch.store(epoch, Ordering::SeqCst);
        self.push(|| Change::Epoch(epoch));
        // What is listed from now on is not removed by it.
        self.flush();
    }

    /// Forgets the files whose data we have changed after a period of the store ([`Known::written`]),
    /// keys and all: after a power loss their frames may be older than their bases say. To be called
    /// before anything is asked.
    pub fn distrust_written(&self, after: u64) {
        self.push(|| Change::ForgetWritten(after));
        self.flush();
    }

    /// Notes that a directory is new and empty: any name is absent until one is made. Its listing is
    /// still asked for.
    pub fn set_empty(&self, dir: &FileHandle) {
        let token = self.token(dir);
        self.set_listing_part(dir, 0, &[], true, Default::default(), token);
        self.change_node(dir, |node| (std::mem::take(&mut node.listed), ()));
    }

    /// Returns counters.
    pub fn stats(&self) -> IndexStats {
        let (changes, pending) = self.queue.counts();
        IndexStats {
            nodes: self.nodes.len(),
            names: self.names.len(),
            loads: self.database.loads.load(Ordering::Relaxed),
            changes,
            pending,
            damaged: self.database.damaged.load(Ordering::Relaxed),
            persistent: self.database.is_usable(),
        }
    }

    /// Reads the whole database and tells whether it is sound: seconds for millions of files. Rows
    /// are checked whenever they are read; this finds, too, what can no longer be found.
    pub fn check(&self) -> bool {
        self.flush();
        self.database.read(rows::check)
    }

    /// Waits until everything is written.
    pub fn flush(&self) {
        if self.thread.is_some() {
            self.queue.flush();
        }
    }

    fn new_token(&self) -> u64 {
        self.tokens.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn epoch(&self) -> u64 {
        self.database.epoch.load(Ordering::SeqCst)
    }

    /// Queues a change and returns its number; 0, written already, if there is no database.
    fn push(&self, change: impl FnOnce() -> Change) -> u64 {
        if self.thread.is_some() && self.database.is_usable() {
            self.queue.push(change())
        } else {
            0
        }
    }

    fn find_node(&self, handle: &FileHandle) -> table::Guard<'_, FileHandle, Node> {
        let load = || match self.database.read(|database| rows::node(database, handle)) {
            Found::Row(row) => Some(row.into_node(self.new_token())),
            Found::Damaged => {
                self.database.damaged.fetch_add(1, Ordering::Relaxed);
                None
            }
            Found::Nothing => None,
        };
        let mut shard = self.nodes.find(handle, |handle| *handle, || self.queue.written(), load);
        if let Some(Slot { value: Some(node), .. }) = shard.get(handle) {
            node.enter(self.epoch(), || self.new_token());
        }
        shard
    }

    /// Looks at a node, or changes what is in memory alone.
    fn with_node<T>(&self, handle: &FileHandle, look: impl FnOnce(&mut Node) -> T) -> Option<T> {
        let mut shard = self.find_node(handle);
        shard.get(handle).and_then(|slot| slot.value.as_mut()).map(look)
    }

    /// Changes a node, a new one if it is unknown. `change` tells whether there is something to
    /// write, and the result.
    fn change_node<T>(
        &self,
        handle: &FileHandle,
        change: impl FnOnce(&mut Node) -> (bool, T),
    ) -> T {
        self.queue.admit();
        let mut shard = self.find_node(handle);
        shard.changing();
        if let Some(slot) = shard.get(handle)
            && let Some(node) = &mut slot.value
        {
            let (changed, result) = change(node);
            if changed {
                slot.change = self.push_node(handle, node);
            }
            return result;
        }
        let mut node = Node::new(self.epoch(), self.new_token());
        let (_, result) = change(&mut node);
        let change = self.push_node(handle, &node);
        shard.put(*handle, Slot { value: Some(node), change }, self.queue.written());
        result
    }

    fn push_node(&self, handle: &FileHandle, node: &Node) -> u64 {
        self.push(|| Change::Node(*handle, Box::new(NodeRow::of(node))))
    }

    /// Has the names of a version of a directory removed from the database; memory lets them go as
    /// it does with what is not used.
    fn drop_names(&self, names: u64) {
        if names != 0 {
            self.push(|| Change::DropNames(names));
        }
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.drop_collections();
        self.queue.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::warn!("the thread that writes the index has panicked");
        }
    }
}
