//! For the layer that knows beforehand what files hold (metadata files): what is held of a version,
//! and how what it brings is stored.

use std::sync::Arc;

use bytes::Bytes;
use gridvfs_vfs::{Attr, FileHandle};

use super::fetch::Registered;
use super::node::Node;
use super::{Core, DiskCache};
use crate::FileKey;
use crate::counters::add;
use crate::store::StoreError;

/// What the cache's blocks of a file are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Their key: another one if the file is found changed.
    pub key: FileKey,
    /// The file's size, in bytes.
    pub size: u64,
}

/// Data that is on its way: what changes the file meanwhile is noticed.
pub struct Expected {
    core: Arc<Core>,
    registered: Registered<Arc<Node>>,
    key: FileKey,
    asked: u64,
}

impl Expected {
    /// Says whether nothing in the range has changed, and the file is still that version.
    pub fn is_current(&self) -> bool {
        let node = &self.registered.node;
        let state = node.state.lock();
        node.key() == self.key
            && state.conflict.is_none()
            && !self.registered.is_overtaken_in(&state)
    }

    /// Stores whole blocks within the range (the last may end with the file). Returns whether they
    /// are there now.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] and the disk's.
    pub fn put(&self, offset: u64, data: &[u8]) -> Result<bool, StoreError> {
        if !self.is_current() {
            return Ok(false);
        }
        self.core.store.put(self.key, offset, data)?;
        add(&self.core.counters.filled_bytes, data.len() as u64);
        Ok(self.still(offset, offset + data.len() as u64))
    }

    /// Says that a range is zero; it then takes no room in the file cache. Without effect on a
    /// version that is not kept as a whole.
    pub fn put_zeros(&self, start: u64, end: u64) {
        if let Some(file) = self.core.store.files.get(self.key)
            && self.is_current()
        {
            file.put_zeros(start, end);
            self.still(start, end);
        }
    }

    fn still(&self, start: u64, end: u64) -> bool {
        let current = self.is_current();
        if !current {
            // What was stored may be older than what was written meanwhile.
            self.core.store.cut(self.key, start, end);
        }
        current
    }

    /// Takes attributes that came with the answer.
    pub fn observe(&self, mut attr: Attr) {
        self.core.observe(&self.registered.node.handle, &mut attr, self.asked);
    }
}

impl DiskCache {
    /// Returns what the cache's blocks of a file are of; `None` if that is not known, or if there
    /// is unsent data, which is of no version yet.
    pub fn version(&self, file: &FileHandle) -> Option<Version> {
        let node = self.core.nodes.get(file)?;
        if node.is_local() {
            return None;
        }
        Some(Version { key: node.value().key(), size: node.size()? })
    }

    /// As [`DiskCache::version`], for a file that may not have been used yet.
    pub fn version_of_new(&self, file: &FileHandle) -> Option<Version> {
        self.core.node(file);
        self.version(file)
    }

    /// Returns the first part of a range that would have to be fetched.
    pub fn gap(&self, key: FileKey, start: u64, end: u64) -> Option<(u64, u64)> {
        self.core.store.first_gap(key, start, end)
    }

    /// Copies what is held of a version, of any file; returns how many leading bytes were.
    pub fn read_version(&self, key: FileKey, offset: u64, out: &mut [u8]) -> usize {
        self.core.store.read(key, offset, out)
    }

    /// Prepares for data of a range that is about to be asked for. `None` if the file is another
    /// version by now, or its blocks are not to be kept.
    pub fn expect(
        &self,
        file: &FileHandle,
        key: FileKey,
        start: u64,
        end: u64,
    ) -> Option<Expected> {
        let node = self.core.known(file)?;
        if node.key() != key || node.is_local() || !self.core.treatment(&node).keeps() {
            return None;
        }
        let asked = self.core.ask();
        let registered = self.core.register(node, start, end);
        Some(Expected { core: self.core.clone(), registered, key, asked })
    }

    /// Returns the directory and the name that a file was last seen under.
    pub fn place_of(&self, file: &FileHandle) -> Option<(FileHandle, Bytes)> {
        let listed = || self.core.places.lock().peek(file).cloned();
        self.core.index.name_of(file).or_else(listed)
    }
}
