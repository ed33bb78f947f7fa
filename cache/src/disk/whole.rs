//! Whole files in the file cache ([`crate::files`]), for the kernel to read by itself (FUSE
//! passthrough) and for clones to link to.
//!
//! The kernel reads such a file without checking it against checksums: that is the price of its
//! speed.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use gridvfs_vfs::FileHandle;

use super::node::Node;
use super::{Core, DiskCache};
use crate::FileKey;
use crate::files::CachedFile;
use crate::store::StoreError;

/// In what pieces a file is copied, in bytes.
const PIECE_BYTES: usize = 1 << 20;
/// Smaller files are not worth a descriptor of the kernel's.
const SIZE_MIN: u64 = 1 << 20;

impl Core {
    /// Returns the complete file of a version that is not being changed.
    fn complete_file(&self, node: &Node) -> Option<Arc<CachedFile>> {
        let file = self.store.files.get(node.key())?;
        let current = node.size() == Some(file.size()) && !node.is_local();
        (current && file.is_complete()).then_some(file)
    }

    /// Returns a whole copy of the file, or has one made for the next time.
    pub fn whole(&self, handle: &FileHandle) -> Option<File> {
        let node = self.known(handle)?;
        let size = node.size().filter(|size| *size >= SIZE_MIN)?;
        if node.is_local() || !self.treatment(&node).keeps() {
            return None;
        }
        if let Some(file) = self.complete_file(&node) {
            return file.lend();
        }
        let key = node.key();
        if self.store.first_gap(key, 0, size).is_none() {
            let core = self.this.upgrade()?;
            self.runtime.spawn_blocking(move || {
                if let Err(error) = core.make_whole(&node, key, size) {
                    log::debug!("{}: no whole copy: {error}", core.path_text(&node.handle));
                }
            });
        }
        None
    }

    /// Moves a version's blocks from the block store to a file.
    fn make_whole(&self, node: &Arc<Node>, key: FileKey, size: u64) -> Result<(), StoreError> {
        let Some(_one_at_a_time) = self.making_whole.try_lock() else { return Ok(()) };
        let registered = self.register(&**node, 0, size);
        let file = self.store.files.begin(key, size, size)?;
        let mut piece = vec![0; PIECE_BYTES];
        let mut at = 0;
        while let Some((start, end)) = file.first_gap(at, size) {
            let part = &mut piece[..PIECE_BYTES.min((end - start) as usize)];
            at = start + part.len() as u64;
            if self.store.read(key, start, part) < part.len() || registered.is_overtaken() {
                return Ok(());
            }
            file.put(start, part).map_err(|error| StoreError::io(file.path(), error))?;
            if registered.is_overtaken() {
                // What was copied may be older than what was written meanwhile.
                file.cut(start, at);
                return Ok(());
            }
        }
        self.completed(node, key, &file)
    }

    /// All of a file has arrived: it is made durable, and its blocks leave the store.
    fn completed(&self, node: &Node, key: FileKey, file: &CachedFile) -> Result<(), StoreError> {
        let fail = |error| StoreError::io(file.path(), error);
        if node.key() == key && file.complete().map_err(fail)? {
            self.store.completed(key, file.size());
        }
        Ok(())
    }
}

impl DiskCache {
    /// Has a file's content kept as a whole from now on: what arrives of it goes into a local file.
    /// `bytes`: what that is expected to take of the disk.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] if there is no room for it; the disk's.
    pub fn keep_whole(
        &self,
        file: &FileHandle,
        key: FileKey,
        bytes: u64,
    ) -> Result<(), StoreError> {
        let node = self.core.node(file);
        match node.size() {
            Some(size) if node.key() == key => {
                self.core.store.files.begin(key, size, bytes)?;
                self.core.store.fit();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Says whether all of a file that is kept as a whole is there; if so, it is made durable.
    /// Blocks the calling thread.
    ///
    /// # Errors
    /// The disk's.
    pub fn complete_whole(&self, file: &FileHandle, key: FileKey) -> Result<bool, StoreError> {
        let Some(cached) = self.core.store.files.get(key) else { return Ok(false) };
        self.core.completed(&self.core.node(file), key, &cached)?;
        Ok(cached.is_complete())
    }

    /// Gives up keeping a version as a whole.
    pub fn drop_whole(&self, key: FileKey) {
        self.core.store.files.remove(key);
    }

    /// Returns where a complete file of the file cache is on this machine. Whoever links to it may
    /// read it for as long as they like; nobody writes it.
    pub fn local_path(&self, file: &FileHandle) -> Option<PathBuf> {
        let cached = self.core.complete_file(&self.core.node(file))?;
        cached.lend().map(|_| cached.path().to_owned())
    }
}
