//! Changes of a file other than by writing, in order with what was written.

use std::future::Future;
use std::sync::Arc;

use gridvfs_vfs::{Allocation, Caller, Error, FileHandle, Result, SetAttr, Time, Wcc};

use super::shared::Shared;
use super::write::Report;
use crate::file::File;

/// Keeps the file's WRITEs back while it lives.
struct Hold<'a> {
    shared: &'a Shared,
    file: &'a File,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.shared.with(self.file, |state| {
            state.writing.held_from = u64::MAX;
            state.writing.draining = false;
        });
        self.file.wake.notify_one();
    }
}

impl Shared {
    /// Runs `change` when everything written below `cut` is on the server and no WRITE is on its
    /// way; none is sent until it has ended. One change at a time.
    async fn exclusively<T>(
        &self,
        file: &File,
        cut: u64,
        change: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let _turn = file.turn.lock().await;
        let hold = Hold { shared: self, file };
        let silences = self.with(file, |state| {
            state.writing.extents.split(cut);
            state.writing.held_from = cut;
            state.writing.draining = true;
            state.writing.silences
        });
        file.wake.notify_one();
        self.until(file, silences, |state| {
            let drained = !state.writing.extents.is_draining(cut);
            if drained {
                state.writing.held_from = 0;
            }
            drained
        })
        .await?;
        let result = change.await;
        drop(hold);
        result
    }

    /// SETATTR. Data behind a new, smaller size is never sent. The change runs in a task of its
    /// own: a caller that goes away cannot leave it half done.
    pub async fn setattr(
        self: &Arc<Self>,
        caller: &Caller,
        handle: &FileHandle,
        changes: &SetAttr,
        guard: Option<Time>,
    ) -> Result<Wcc> {
        let file = match changes.size {
            Some(_) => Some(self.file(handle)),
            None => self.known(handle),
        };
        let Some(file) = file else {
            return self.inner.setattr(caller, handle, changes, guard).await;
        };
        let (shared, caller, changes) = (self.clone(), caller.clone(), *changes);
        in_task(self, async move {
            let cut = changes.size.unwrap_or(u64::MAX);
            let change = async {
                let asked = shared.ask();
                let mut result = shared.inner.setattr(&caller, &file.handle, &changes, guard).await;
                let dropped = shared.with(&file, |state| {
                    let clock = shared.tick();
                    let dropped = match (&result, changes.size) {
                        (Ok(_), Some(size)) => state.resized(Some(size), clock),
                        (Ok(_), None) => Vec::new(),
                        (Err(_), _) => state.drop_units(),
                    };
                    if let Ok(Wcc { after: Some(attr), .. }) = &mut result {
                        state.take_own_attr(attr, asked.clock, asked.at);
                    }
                    state.reading.changed_at = clock;
                    dropped
                });
                shared.dispose(dropped);
                result
            };
            shared.exclusively(&file, cut, change).await
        })
        .await
    }

    /// Allocates, zeroes or frees a range.
    pub async fn allocate(
        self: &Arc<Self>,
        caller: &Caller,
        handle: &FileHandle,
        offset: u64,
        length: u64,
        how: Allocation,
    ) -> Result<Wcc> {
        let file = self.file(handle);
        let (shared, caller) = (self.clone(), caller.clone());
        in_task(self, async move {
            let end = offset.saturating_add(length);
            let zeroes = !matches!(how, Allocation::Reserve | Allocation::ReserveKeepSize);
            if zeroes {
                // What the server might lose and be given again must not undo the change.
                shared.commit(&file, Report::Leave).await?;
            }
            let change = async {
                let asked = shared.ask();
                let mut result =
                    shared.inner.allocate(&caller, &file.handle, offset, length, how).await;
                let dropped = shared.with(&file, |state| {
                    let clock = shared.tick();
                    if result.is_ok() && zeroes {
                        state.writing.extents.drop_unstable(offset, end);
                    }
                    if let Ok(Wcc { after: Some(attr), .. }) = &mut result {
                        state.take_own_attr(attr, asked.clock, asked.at);
                    }
                    if result.is_ok() && matches!(how, Allocation::Reserve | Allocation::ZeroRange)
                    {
                        state.wrote(end, clock);
                    }
                    state.resized(None, clock)
                });
                shared.dispose(dropped);
                result
            };
            shared.exclusively(&file, u64::MAX, change).await
        })
        .await
    }
}

async fn in_task<T: Send + 'static>(
    shared: &Shared,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let ended = shared.runtime.spawn(work).await;
    ended.unwrap_or_else(|error| Err(Error::Unreachable(error.to_string())))
}
