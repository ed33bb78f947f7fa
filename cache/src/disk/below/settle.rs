//! Waiting for pending changes that a call depends on, which are made at once then.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use gridvfs_vfs::{FileHandle, Result};
use parking_lot::Mutex;

use super::super::pending::Key;
use super::NameLayer;
use crate::journal::At;

/// How many files are noted before those are forgotten whose records are on disk.
const MADE_FEW: usize = 256;

/// The record that says of a file that the last change of it is made on the server. A further change
/// must not come there before this is on disk: after a power loss nobody could tell the two apart.
#[derive(Debug, Default)]
pub(in crate::disk) struct Made(Mutex<HashMap<FileHandle, u64>>);

impl Made {
    fn note(&self, file: FileHandle, record: u64, is_durable: impl Fn(u64) -> bool) {
        let mut made = self.0.lock();
        if made.len() >= MADE_FEW {
            made.retain(|_, record| !is_durable(*record));
        }
        made.insert(file, record);
    }

    fn record(&self, file: &FileHandle) -> Option<u64> {
        self.0.lock().get(file).copied()
    }
}

/// Which changes somebody waits for.
enum Wait<'a> {
    /// Those that make a file or set its attributes.
    File(&'a FileHandle),
    Names(&'a [At]),
    Directory(&'a FileHandle),
    All,
    /// All, as long as a write-back of everything is not taken back.
    WithAll,
}

impl NameLayer {
    /// Makes what a file needs to be there and as it is to be, and returns the server's handle.
    pub(in crate::disk) async fn settle_file(&self, file: &FileHandle) -> Result<FileHandle> {
        self.wait(Wait::File(file)).await?;
        self.server(file)
    }

    /// The same before the server is asked for a further change of the file: after a power loss, too,
    /// it is known that those before are made.
    pub(in crate::disk) async fn settle_before_change(
        &self,
        file: &FileHandle,
    ) -> Result<FileHandle> {
        let server = self.settle_file(file).await?;
        if let Some(record) = self.made.record(file)
            && let Some(core) = self.core()
            && !core.journal.is_durable(record)
        {
            core.sync_journal().await?;
        }
        Ok(server)
    }

    /// Notes that the journal says of a file that a change of it is made.
    pub(in crate::disk) fn note_made(&self, file: FileHandle, record: u64) {
        self.last_record.fetch_max(record, Ordering::AcqRel);
        if let Some(core) = self.core() {
            self.made.note(file, record, |record| core.journal.is_durable(record));
        }
    }

    /// Makes what is pending of these names, before the server is asked for a change of them. What was
    /// acknowledged earlier is not to be lost by a power loss when that is not, nor that it is made.
    pub(in crate::disk) async fn settle_names(&self, names: &[At]) -> Result<()> {
        self.wait(Wait::Names(names)).await?;
        match self.core() {
            Some(core) => core.sync_names().await,
            None => Ok(()),
        }
    }

    /// Makes what is pending of these names, and of the files that they lead to.
    pub(in crate::disk) async fn settle_children(&self, names: &[At]) -> Result<()> {
        if let Some(core) = self.core().filter(|_| !self.is_quiet()) {
            for child in names.iter().filter_map(|at| core.known_child(at)) {
                self.wait(Wait::File(&child)).await?;
            }
        }
        self.settle_names(names).await
    }

    /// Makes what is pending in a directory.
    pub(in crate::disk) async fn settle_dir(&self, dir: &FileHandle) -> Result<()> {
        self.wait(Wait::Directory(dir)).await
    }

    /// Makes all that is pending.
    pub(in crate::disk) async fn settle_all(&self) -> Result<()> {
        self.wait(Wait::All).await
    }

    /// The same, until that is taken back ([`Queue::want_all_no_more`]).
    ///
    /// [`Queue::want_all_no_more`]: crate::disk::pending::Queue::want_all_no_more
    pub(in crate::disk) async fn settle_with_all(&self) -> Result<()> {
        self.wait(Wait::WithAll).await
    }

    /// Returns when the changes are made; an error if one of them cannot be made now.
    async fn wait(&self, what: Wait<'_>) -> Result<()> {
        let wanted = {
            let mut queue = self.queue.lock();
            if queue.is_empty() {
                return Ok(());
            }
            let numbers = match &what {
                Wait::File(file) => queue.of_file(file),
                Wait::Names(names) => {
                    let keys: Vec<_> = names.iter().cloned().map(Key::Name).collect();
                    queue.with_keys(&keys)
                }
                Wait::Directory(dir) => queue.in_dir(dir),
                Wait::All | Wait::WithAll => queue.ops.keys().copied().collect(),
            };
            if numbers.is_empty() {
                return Ok(());
            }
            let all = queue.closure(numbers);
            match what {
                Wait::WithAll => queue.want_all(),
                _ => queue.urge(&all),
            }
            let failures = |number| queue.ops.get(number).map_or(0, |pending| pending.failures);
            all.iter().map(|number| (*number, failures(number))).collect::<Vec<_>>()
        };
        self.wake.notify_one();
        loop {
            let mut progress = std::pin::pin!(self.progress.notified());
            progress.as_mut().enable();
            {
                let queue = self.queue.lock();
                // Others go on when one has stopped: who waits for all of them waits for those.
                let patient = matches!(what, Wait::All | Wait::WithAll);
                let (mut left, mut error, mut moving) = (false, None, false);
                for (number, failures) in &wanted {
                    let Some(pending) = queue.ops.get(number) else { continue };
                    left = true;
                    let stopped = match (&pending.conflict, &pending.failing) {
                        (Some(kind), _) => Some(kind.error()),
                        (None, Some(error)) if pending.failures > *failures => Some(error.clone()),
                        _ => None,
                    };
                    moving |= stopped.is_none() && queue.is_ready(*number);
                    error = error.or(stopped);
                }
                match error {
                    _ if !left => return Ok(()),
                    Some(error) if !patient || !moving => return Err(error),
                    _ => {}
                }
            }
            progress.await;
        }
    }
}
