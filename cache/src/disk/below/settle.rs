//! Waiting for pending changes that a call depends on, which are made at once then.

use gridvfs_vfs::{FileHandle, Result};

use super::super::pending::Key;
use super::NameLayer;
use crate::journal::At;

/// Which changes somebody waits for.
enum Wait<'a> {
    /// Those that make a file or set its attributes.
    File(&'a FileHandle),
    Names(&'a [At]),
    Directory(&'a FileHandle),
    All,
}

impl NameLayer {
    /// Makes what a file needs to be there and as it is to be, and returns the server's handle.
    pub(in crate::disk) async fn settle_file(&self, file: &FileHandle) -> Result<FileHandle> {
        self.wait(Wait::File(file)).await?;
        self.server(file)
    }

    /// Makes what is pending of these names, before the server is asked for a change of them. What was
    /// acknowledged earlier is not to be lost by a power loss when that is not.
    pub(in crate::disk) async fn settle_names(&self, names: &[At]) -> Result<()> {
        if let Some(core) = self.core() {
            core.sync_names().await?;
        }
        self.wait(Wait::Names(names)).await
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
                Wait::All => queue.ops.keys().copied().collect(),
            };
            if numbers.is_empty() {
                return Ok(());
            }
            let all = queue.closure(numbers);
            queue.urge(&all);
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
                let patient = matches!(what, Wait::All);
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
