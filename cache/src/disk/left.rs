//! What an earlier process has left in the journal, read once for whoever asks what there is and for
//! the cache that takes it over.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use gridvfs_vfs::FileHandle;

use super::Unsent;
use super::open::OpenError;
use super::pending::Queue;
use crate::journal::{Damage, Journal, JournalOptions, Rebuild, RecoveredFile, Replayed};

/// The journal's directory in that of a cache.
pub(crate) const JOURNAL: &str = "journal";

/// A cache's journal, open and replayed. Nobody else can open it meanwhile.
#[derive(Debug)]
pub struct Left {
    pub(crate) journal: Journal,
    pub(crate) files: HashMap<FileHandle, RecoveredFile>,
    /// Changes of names.
    pub(crate) queue: Queue,
    /// Something before the last of them was lost.
    pub(crate) hole: bool,
    pub(crate) damage: Vec<Damage>,
}

impl Left {
    /// Reads the journal of the cache in `dir`; `None` if there is none. Nothing is changed in it; it
    /// must not be in use. Blocks the calling thread while the disk works.
    ///
    /// # Errors
    /// Those of the journal: a format that is not known, the disk's.
    pub fn read(dir: &Path) -> Result<Option<Self>, OpenError> {
        let journal = dir.join(JOURNAL);
        if !journal.is_dir() {
            return Ok(None);
        }
        Self::replay(&journal).map(Some)
    }

    /// Opens the journal in `dir`, which is made if need be.
    pub(crate) fn replay(dir: &Path) -> Result<Self, OpenError> {
        let mut rebuild = Rebuild::new();
        let mut damage = Vec::new();
        let mut take = |replayed| match replayed {
            Replayed::Record { seq, record, place } => rebuild.push(seq, &record, place),
            Replayed::Damaged(found) => {
                if !found.synced {
                    rebuild.hole();
                }
                damage.push(found);
            }
        };
        let journal = Journal::open(dir, JournalOptions::default(), &mut take)?;
        let (queue, hole) = Queue::replay(rebuild.take_names(), Instant::now());
        let files = rebuild.finish(&journal);
        Ok(Self { journal, files, queue, hole, damage })
    }

    /// Says how much unsent data there is.
    pub fn unsent(&self) -> Unsent {
        Unsent {
            names: self.queue.ops.len() as u64,
            files: self.files.len() as u64,
            bytes: self.files.values().map(|file| file.dirty.bytes()).sum(),
            conflicts: self.files.values().filter(|file| file.state.conflict.is_some()).count()
                as u64,
        }
    }
}
