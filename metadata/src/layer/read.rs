//! Reading through what is known.

use std::sync::Arc;

use bytes::BytesMut;
use gridvfs_vfs::{Caller, FileHandle, ReadData, Result, SeekWhence, Status};

use super::subject::{Known, Subject};
use super::{Core, Guide, SIZE_MIN};

/// The largest answer; whoever asks for more asks again.
const READ_MAX: u64 = 2 << 20;
/// How often a read that arrived is found gone again before it is left to the layer below.
pub(super) const ATTEMPTS_MAX: u32 = 4;

impl Core {
    /// Says whether a file is known to be too small to have anything known of it.
    pub(super) fn is_small(&self, file: &FileHandle) -> bool {
        let version = self.disk.as_ref().and_then(|disk| disk.version(file));
        version.is_some_and(|version| version.size < SIZE_MIN)
    }

    /// What is at hand, on the calling thread.
    pub fn read_now(
        self: &Arc<Self>,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        out: &mut [u8],
    ) -> Option<Result<usize>> {
        let Some(subject) = self.subjects.get(file) else {
            if self.is_small(file) {
                return self.below.read_now(caller, file, offset, out);
            }
            // What is here is here, whatever else may be found out about the file.
            let had = self.below.read_now(caller, file, offset, out)?;
            self.look_later(caller, file);
            return Some(had);
        };
        let length = out.len() as u64;
        let answer = match &*subject.peek() {
            Known::Guide(guide) if guide.is_current(self) => {
                guide.read_now(&*self.below, caller, offset, out)
            }
            Known::Guide(_) => None,
            Known::Unknown | Known::Nothing => self.below.read_now(caller, file, offset, out),
        };
        if answer.is_some() {
            subject.recorder.touched(offset, length);
        }
        answer
    }

    /// Finds out in the background what is known of a file.
    pub fn look_later(self: &Arc<Self>, caller: &Caller, file: &FileHandle) {
        let (core, caller, file) = (self.clone(), caller.clone(), *file);
        self.runtime.spawn(async move {
            if let Err(error) = core.know(&caller, &file).await {
                log::debug!("{}: not looked at: {error}", core.path_text(&file));
            }
        });
    }

    pub async fn read(
        self: &Arc<Self>,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<ReadData> {
        if self.is_small(file) {
            return self.below.read(caller, file, offset, count).await;
        }
        for _ in 0..ATTEMPTS_MAX {
            let (subject, known) = self.know(caller, file).await?;
            subject.recorder.touched(offset, u64::from(count));
            let Known::Guide(guide) = known else { break };
            if !guide.is_current(self) {
                // Changed by others, or about to be found so: what is known is found out anew.
                subject.forget(&guide);
                continue;
            }
            if offset >= guide.size {
                break;
            }
            return self.read_guided(caller, &subject, &guide, offset, count).await;
        }
        self.below.read(caller, file, offset, count).await
    }

    async fn read_guided(
        &self,
        caller: &Caller,
        subject: &Subject,
        guide: &Arc<Guide>,
        offset: u64,
        count: u32,
    ) -> Result<ReadData> {
        let end = guide.size.min(offset + u64::from(count).min(READ_MAX));
        let mut out = BytesMut::zeroed((end - offset) as usize);
        for _ in 0..ATTEMPTS_MAX {
            if let Some(answer) = guide.read_now(&*self.below, caller, offset, &mut out) {
                answer?;
                return Ok(ReadData { data: out.freeze(), eof: end == guide.size, attr: None });
            }
            match guide.bring(caller, offset, end).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    log::debug!("{}: did not arrive: {error}", self.path_text(&guide.file));
                    // What is known may be of another version than what would be read now.
                    let attr = self.below.getattr(caller, &guide.file).await?;
                    if !guide.is_of(&attr) {
                        subject.give_up();
                        return self.below.read(caller, &guide.file, offset, count).await;
                    }
                    break;
                }
            }
        }
        if guide.is_refuted() {
            subject.give_up();
            return self.below.read(caller, &guide.file, offset, count).await;
        }
        self.read_pieces(caller, guide, offset, out).await
    }

    /// Reads what is not zero from below, a piece after the other.
    async fn read_pieces(
        &self,
        caller: &Caller,
        guide: &Arc<Guide>,
        offset: u64,
        mut out: BytesMut,
    ) -> Result<ReadData> {
        let end = offset + out.len() as u64;
        let (mut at, mut zeros) = (offset, 0);
        while at < end {
            let (is_data, until) = guide.run_at(at).unwrap_or((true, end));
            let until = until.min(end);
            if !is_data {
                out[(at - offset) as usize..(until - offset) as usize].fill(0);
                zeros += until - at;
                at = until;
                continue;
            }
            let read = self.below.read(caller, &guide.file, at, (until - at) as u32).await?;
            let there = read.data.len().min((until - at) as usize);
            let from = (at - offset) as usize;
            out[from..from + there].copy_from_slice(&read.data[..there]);
            at += there as u64;
            if there == 0 || (read.eof && at < until) {
                // Shorter than it was: what was read so far is true, the rest is asked for again.
                out.truncate((at - offset) as usize);
                return Ok(ReadData { data: out.freeze(), eof: read.eof, attr: None });
            }
        }
        guide.count(zeros, end - offset);
        Ok(ReadData { data: out.freeze(), eof: end == guide.size, attr: None })
    }

    /// The file is about to be changed through this layer.
    pub fn written(&self, file: &FileHandle) {
        if let Some(subject) = self.subjects.get(file) {
            subject.written();
        }
    }

    /// Nobody refers to the file for now. What was learned of large files is kept.
    pub fn forget(&self, file: &FileHandle) {
        self.subjects.remove_if(file, |_, subject| {
            Arc::strong_count(subject) == 1 && !subject.is_used() && !subject.has_metadata()
        });
    }

    /// The front end has seen other attributes than before: without a disk cache, that is how
    /// others' changes are found.
    pub fn outdated(&self, file: &FileHandle) {
        let Some(subject) = self.subject(file) else { return };
        if let Known::Guide(guide) = subject.known()
            && (self.disk.is_none() || !guide.is_current(self))
        {
            subject.forget(&guide);
        }
    }

    pub async fn seek(
        self: &Arc<Self>,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        whence: SeekWhence,
    ) -> Result<u64> {
        let known = match self.is_small(file) {
            true => Known::Nothing,
            false => self.know(caller, file).await.map_or(Known::Nothing, |(_, known)| known),
        };
        let Known::Guide(guide) = known else {
            return self.below.seek(caller, file, offset, whence).await;
        };
        if !guide.is_current(self) || guide.zero().is_none() {
            return self.below.seek(caller, file, offset, whence).await;
        }
        if offset >= guide.size {
            return Err(Status::NXIO.into());
        }
        let mut at = offset;
        while let Some((is_data, end)) = guide.run_at(at).filter(|_| at < guide.size) {
            match (whence, is_data) {
                (SeekWhence::Data, true) | (SeekWhence::Hole, false) => return Ok(at),
                _ => at = end,
            }
        }
        match whence {
            SeekWhence::Data => Err(Status::NXIO.into()),
            // The end of the file is a hole, too.
            SeekWhence::Hole => Ok(guide.size),
        }
    }
}
