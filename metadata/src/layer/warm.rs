//! Files that are to be here before they are read, because somebody says so.

use gridvfs_vfs::{Caller, Error, FileHandle, Result, Status};

use super::MetaLayer;
use super::read::ATTEMPTS_MAX;
use super::subject::Known;

/// How much of a file can be read without the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes that are on this machine's disk.
    pub bytes: u64,
    /// Bytes that the zero map answers: they take no room.
    pub zero_bytes: u64,
}

impl MetaLayer {
    /// Brings what is missing of a file, as its metadata says, if it has any. `progress` is told how
    /// many bytes more are there.
    ///
    /// # Errors
    /// Those of the calls; `INVAL` for what the cache does not keep, `NOTSUPP` without a cache.
    pub async fn warm(
        &self,
        caller: &Caller,
        file: &FileHandle,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let core = &self.core;
        let Some(disk) = &core.disk else { return Err(Status::NOTSUPP.into()) };
        for _ in 0..ATTEMPTS_MAX {
            if core.is_small(file) {
                break;
            }
            let (subject, known) = core.know(caller, file).await?;
            let Known::Guide(guide) = known else { break };
            if !guide.is_current(core) {
                subject.forget(&guide);
                continue;
            }
            match guide.bring_all(caller, progress).await {
                Ok(true) => return Ok(()),
                // Another version, or not to be kept: the cache finds out which.
                Ok(false) | Err(Error::Status(Status::JUKEBOX)) => {}
                Err(error) => return Err(error),
            }
            if !guide.is_of(&core.below.getattr(caller, file).await?) || guide.is_refuted() {
                subject.give_up();
            }
        }
        disk.warm(caller, file, progress).await
    }

    /// Says how much of a file can be read without the server.
    pub fn held(&self, file: &FileHandle, size: u64) -> Held {
        let Some(disk) = &self.core.disk else { return Held::default() };
        let known = self.core.subject(file).map(|subject| subject.known());
        let guide = match &known {
            Some(Known::Guide(guide)) if guide.is_current(&self.core) && !guide.is_refuted() => {
                guide
            }
            _ => return Held { bytes: disk.held_bytes(file, 0, size), zero_bytes: 0 },
        };
        let mut held = Held::default();
        for (is_zero, from, to) in guide.runs() {
            match is_zero {
                true => held.zero_bytes += to - from,
                false => held.bytes += disk.held_bytes(file, from, to),
            }
        }
        held
    }
}
