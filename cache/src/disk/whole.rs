//! Whole copies of files that are entirely stored, for the kernel to read by itself (FUSE
//! passthrough).
//!
//! A copy lies beside the store, named by the key of the version that it is of, and is written to
//! the disk before it gets that name; it goes before anything of the file changes. A machine that
//! went down may have lost that removal, so none outlives it. Copies take at most half of the
//! cache's size in addition to it; the one that was opened longest ago makes room.
//!
//! The kernel reads a copy without checking it against checksums: that is the price of its speed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use gridvfs_vfs::FileHandle;
use parking_lot::Mutex;

use super::Core;
use super::node::Node;
use crate::FileKey;

/// In what pieces a file is copied, in bytes.
const PIECE_BYTES: usize = 1 << 20;
/// Smaller files are not worth a descriptor of the kernel's.
const SIZE_MIN: u64 = 1 << 20;

/// The directory of whole copies.
pub(crate) struct Wholes {
    dir: PathBuf,
    max_bytes: u64,
    /// One copy is made at a time.
    making: Mutex<()>,
}

impl Wholes {
    /// Uses `dir`. With `fresh`, what is in it is removed.
    pub fn open(dir: PathBuf, max_bytes: u64, fresh: bool) -> Self {
        if fresh {
            let _ = fs::remove_dir_all(&dir);
        }
        Self { dir, max_bytes, making: Mutex::new(()) }
    }

    fn path(&self, key: FileKey) -> PathBuf {
        self.dir.join(format!("{:016x}", key.0))
    }

    /// Opens the copy of a version, if there is one.
    pub fn get(&self, key: FileKey, size: u64) -> Option<File> {
        let file = File::options().read(true).write(true).open(self.path(key)).ok()?;
        let whole = file.metadata().is_ok_and(|data| data.len() == size);
        if !whole {
            self.remove(key);
            return None;
        }
        let _ = file.set_modified(SystemTime::now());
        File::open(self.path(key)).ok()
    }

    /// Removes the copy of a version.
    pub fn remove(&self, key: FileKey) {
        let _ = fs::remove_file(self.path(key));
    }

    /// Removes all copies.
    pub fn clear(&self) {
        let _ = fs::remove_dir_all(&self.dir);
    }

    /// How many bytes all copies take.
    pub fn bytes(&self) -> u64 {
        self.list().iter().map(|(_, _, bytes)| bytes).sum()
    }

    fn list(&self) -> Vec<(SystemTime, PathBuf, u64)> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let mut found: Vec<_> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let data = entry.metadata().ok()?;
                Some((data.modified().ok()?, entry.path(), data.len()))
            })
            .collect();
        found.sort();
        found
    }

    fn make_room(&self, bytes: u64) -> bool {
        let mut used = self.bytes();
        for (_, path, length) in self.list() {
            if used + bytes <= self.max_bytes {
                break;
            }
            if fs::remove_file(path).is_ok() {
                used -= length;
            }
        }
        used + bytes <= self.max_bytes
    }
}

impl Core {
    /// Returns a whole copy of the file, or has one made for the next time.
    pub fn whole(&self, handle: &FileHandle) -> Option<File> {
        let node = self.known(handle)?;
        let size = node.size().filter(|size| *size >= SIZE_MIN)?;
        if node.is_local() || !self.treatment(&node).keeps() {
            return None;
        }
        let key = node.key();
        if let Some(file) = self.wholes.get(key, size) {
            return Some(file);
        }
        if size <= self.wholes.max_bytes && self.store.first_gap(key, 0, size).is_none() {
            let core = self.this.upgrade()?;
            self.runtime.spawn_blocking(move || {
                if let Err(error) = core.make_whole(&node, key, size) {
                    log::debug!("{}: no whole copy: {error}", core.path_text(&node.handle));
                }
            });
        }
        None
    }

    fn make_whole(&self, node: &Arc<Node>, key: FileKey, size: u64) -> io::Result<()> {
        let _one_at_a_time = self.wholes.making.lock();
        let path = self.wholes.path(key);
        if path.exists() || !self.wholes.make_room(size) {
            return Ok(());
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.wholes.dir)?;
        let before = node.state.lock().changed_at;
        let draft = path.with_extension("draft");
        let made = self.copy_whole(&draft, key, size).and_then(|whole| {
            // A change of the file since then has removed a copy that was not there yet.
            let state = node.state.lock();
            let same = state.changed_at == before && node.key() == key;
            if !whole || !same || !state.dirty.is_empty() || node.size() != Some(size) {
                return Ok(false);
            }
            fs::rename(&draft, &path)?;
            Ok(true)
        });
        if !matches!(made, Ok(true)) {
            let _ = fs::remove_file(&draft);
        }
        made.map(drop)
    }

    fn copy_whole(&self, draft: &Path, key: FileKey, size: u64) -> io::Result<bool> {
        let mut options = File::options();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(draft)?;
        let mut piece = vec![0; PIECE_BYTES];
        let mut at = 0;
        while at < size {
            let part = &mut piece[..PIECE_BYTES.min((size - at) as usize)];
            if self.store.read(key, at, part) < part.len() {
                return Ok(false);
            }
            file.write_all(part)?;
            at += part.len() as u64;
        }
        file.sync_all()?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_opened_longest_ago_makes_room() {
        let folder = tempfile::tempdir().expect("folder");
        let wholes = Wholes::open(folder.path().join("whole"), 100, false);
        fs::create_dir(&wholes.dir).expect("made");
        for (number, age) in [(1, 30), (2, 10), (3, 20)] {
            fs::write(wholes.path(FileKey(number)), [0; 30]).expect("written");
            let file = File::options().write(true).open(wholes.path(FileKey(number)));
            let then = SystemTime::now() - std::time::Duration::from_secs(age);
            file.expect("opened").set_modified(then).expect("set");
        }
        assert!(wholes.get(FileKey(1), 31).is_none(), "not the whole of it");
        assert!(wholes.get(FileKey(3), 30).is_some());
        assert!(wholes.make_room(60));
        assert!(wholes.get(FileKey(2), 30).is_none(), "opened longest ago");
        assert!(wholes.get(FileKey(3), 30).is_some());
        assert!(!wholes.make_room(101));
    }
}
