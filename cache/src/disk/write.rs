//! Writing: taking data into the journal, and waiting for where it has to be.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gridvfs_vfs::{Caller, Error, FileHandle, Result, Status, Vfs, WccAttr};

use super::attributes::{base_of, base_record};
use super::node::{Node, State};
use super::options::Policy;
use super::{Core, now};
use crate::counters::{add, sub};
use crate::dirty::Freed;
use crate::journal::{Record, WriteHeader, cut_suspects};

/// The most data in one record of the journal.
const RECORD_BYTES_MAX: usize = 1 << 20;
/// How much of the cache is given back to a full disk at once, in bytes.
const GIVE_BACK_BYTES: u64 = 64 << 20;
/// After this many bytes were released, segments of the journal are looked for that may go.
const RECLAIM_BYTES: u64 = 32 << 20;
/// How often the size of a file is asked for that is being sent meanwhile.
const QUESTIONS_MAX: u32 = 64;
/// How long a writer waits before it looks for room again, should nobody tell it.
const ROOM_PAUSE: Duration = Duration::from_millis(250);

/// Why data was not taken.
pub(crate) enum Refused {
    /// The limit on unsent data, or the disk: after some write-back there may be room.
    NoRoom,
    /// The file's size is not known yet.
    Unknown,
    Error(Error),
}

impl Core {
    /// Takes a write on the calling thread, unless it has to wait for something.
    pub fn write_now(
        &self,
        caller: &Caller,
        handle: &FileHandle,
        offset: u64,
        data: &[u8],
    ) -> Option<Result<()>> {
        let node = self.node(handle);
        match self.take(caller, &node, offset, data) {
            Ok(()) => Some(Ok(())),
            Err(Refused::Error(error)) => Some(Err(error)),
            Err(Refused::NoRoom | Refused::Unknown) => None,
        }
    }

    pub async fn write(
        &self,
        caller: &Caller,
        handle: &FileHandle,
        offset: u64,
        data: &[u8],
    ) -> Result<()> {
        let node = self.node(handle);
        let mut waited = false;
        let mut given_back = false;
        let mut empty = false;
        let mut asked = 0;
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            match self.take(caller, &node, offset, data) {
                Ok(()) => return Ok(()),
                Err(Refused::Error(error)) => return Err(error),
                Err(Refused::Unknown) => {
                    self.getattr(caller, handle).await?;
                    asked += 1;
                    if node.size().is_none() && asked > QUESTIONS_MAX {
                        return Err(Status::JUKEBOX.into());
                    }
                }
                Err(Refused::NoRoom) => {
                    if !std::mem::replace(&mut waited, true) {
                        add(&self.counters.stalled, 1);
                    }
                    // Clean blocks go first, then writers wait for write-back, then there is no
                    // more space.
                    if self.dirty_bytes() + data.len() as u64 <= self.settings().dirty_max_bytes
                        && !std::mem::replace(&mut given_back, true)
                        && self.store.give_back(GIVE_BACK_BYTES) > 0
                    {
                        continue;
                    }
                    // With nothing to be sent there is nothing to wait for but the journal's room.
                    if self.dirty_bytes() == 0 {
                        let freed = self.empty_journal().await;
                        if freed == 0 && std::mem::replace(&mut empty, true) {
                            return Err(Status::NOSPC.into());
                        }
                    }
                    self.hurry();
                    self.reclaim.notify_one();
                    let _ = tokio::time::timeout(ROOM_PAUSE, room).await;
                    given_back = false;
                    if let Some(error) = self.stuck() {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Deletes what the journal holds of data that was sent. Returns how many bytes.
    async fn empty_journal(&self) -> u64 {
        let Some(core) = self.this.upgrade() else { return 0 };
        let reclaimed = self.runtime.spawn_blocking(move || core.reclaim(true)).await;
        reclaimed.unwrap_or(Ok(0)).unwrap_or_else(|error| {
            log::warn!("the journal: {error}");
            0
        })
    }

    /// How much data is unsent.
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty_bytes.load(Ordering::Relaxed)
    }

    /// Returns why no room will come about soon: every file with unsent data is refused by the
    /// server, or is in conflict. A server that does not answer is waited for, unless there is a
    /// limit to that.
    fn stuck(&self) -> Option<Error> {
        let mut reason = None;
        let mut any = false;
        for node in self.nodes.iter().filter(|node| node.is_local()) {
            let state = node.state.lock();
            any = true;
            match (&state.failing, state.conflict) {
                (_, Some(_)) => {}
                (Some(error), None) => {
                    reason = Some(error.clone());
                }
                (None, None) => return None,
            }
        }
        any.then(|| match reason {
            Some(Error::Status(Status::DQUOT)) => Status::DQUOT.into(),
            Some(error @ Error::Unreachable(_)) => error,
            _ => Status::NOSPC.into(),
        })
    }

    fn take(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Refused> {
        let refuse = |status: Status| Err(Refused::Error(status.into()));
        let treatment = self.treatment(node);
        if treatment.policy == Policy::ReadOnly {
            return refuse(Status::ROFS);
        }
        match offset.checked_add(data.len() as u64) {
            Some(end) if end <= self.file_size_max => {}
            _ => return refuse(Status::FBIG),
        }
        let limit = self.settings.read().dirty_max_bytes;
        let before = self.dirty_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        let result = if before > 0 && before + data.len() as u64 > limit {
            Err(Refused::NoRoom)
        } else {
            self.append(caller, node, offset, data)
        };
        match &result {
            Ok(()) => {
                if treatment.is_lazy() {
                    // In write-through, most of it is sent and dropped before the disk need write it.
                    self.journal.write_ahead();
                }
                add(&self.counters.writes, 1);
                add(&self.counters.written_bytes, data.len() as u64);
                if before + data.len() as u64 > limit / 2 {
                    self.hurry();
                }
            }
            Err(_) => sub(&self.dirty_bytes, data.len() as u64),
        }
        result
    }

    fn append(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Refused> {
        let mut state = node.state.lock();
        if let Some(error) = state.error.take() {
            return Err(Refused::Error(error));
        }
        let Some(mut size) = node.size() else { return Err(Refused::Unknown) };
        if state.dirty.is_empty() {
            self.begin(node, &mut state).map_err(no_room)?;
        }
        if state.writer.as_deref() != Some(caller) {
            state.writer = Some(Arc::new(caller.clone()));
        }
        let time = now();
        let mut freed = Freed::new();
        let mut done = Ok(());
        let mut at = offset;
        for part in data.chunks(RECORD_BYTES_MAX) {
            let header = WriteHeader {
                handle: node.handle,
                offset: at,
                time,
                uid: caller.uid,
                gid: caller.gid,
                epoch: state.dirty.epoch(),
                carried: None,
            };
            match self.journal.append_write(&header, part) {
                Ok((seq, place)) => {
                    freed.extend(state.dirty.insert(at, part.len() as u32, seq, place));
                    state.newest = seq;
                    at += part.len() as u64;
                }
                Err(error) => {
                    done = Err(no_room(error));
                    break;
                }
            }
        }
        let written = at - offset;
        if written > 0 {
            size = size.max(at);
            node.set_size(Some(size));
            (state.mtime, state.ctime) = (time, time);
            state.clears_ids |= caller.uid != 0;
            state.times.mtime = None;
            state.overtake(offset, at);
            let instant = Instant::now();
            state.last_write = instant;
            state.waiting_since.get_or_insert(instant);
            state.waiting_bytes += written;
        }
        node.note_dirty(&state);
        self.count_freed(&freed);
        let start = !std::mem::replace(&mut state.driven, true);
        // The driver of a write-through file waits for a full WRITE or its time, not for each write.
        let wake = state.waiting_bytes >= super::send::FULL_BYTES
            && state.waiting_bytes - written < super::send::FULL_BYTES;
        // Whoever waits for what was sent before need not wait for this, too.
        let first = written > 0 && state.dirty.bytes() == written;
        drop(state);
        self.release(freed);
        if first {
            node.progress.notify_waiters();
        }
        if start {
            self.start_driver(node);
        } else if wake {
            node.wake.notify_one();
        }
        if done.is_err() && written > 0 {
            // The caller gives back what it has counted for all of it.
            add(&self.dirty_bytes, written);
        }
        done
    }

    /// Notes in the journal what the file is like that is about to have unsent data.
    pub fn begin(&self, node: &Node, state: &mut State) -> std::io::Result<()> {
        self.store.files.changing(node.key());
        self.say_bound(state, &node.handle)?;
        // A change of ours that is under way, or whose outcome is not known, may make another
        // version of the base.
        let known = state.settled && state.changing == 0;
        match state.base.filter(|_| known) {
            Some(base) => self.say(state, &base_record(node, &base))?,
            None if state.said != Default::default() => {
                // What was said of it when it last had unsent data is true no more.
                self.say(state, &Record::Removed { handle: node.handle })?;
            }
            None => {}
        }
        if let Some(path) = self.index.path_of(&node.handle, &self.root) {
            self.say(state, &Record::Path { handle: node.handle, path })?;
        }
        Ok(())
    }

    /// The next process is to know what the server calls a file that is known here by a handle of ours.
    fn say_bound(&self, state: &mut State, handle: &FileHandle) -> std::io::Result<()> {
        if state.said.server.is_none()
            && let Some(bound) = self.bound_record(handle)
        {
            self.journal.append(&bound)?;
            state.said.apply(&bound);
        }
        Ok(())
    }

    fn say(&self, state: &mut State, record: &Record) -> std::io::Result<()> {
        self.say_bound(state, record.handle())?;
        self.journal.append(record)?;
        state.said.apply(record);
        Ok(())
    }

    /// Counts bytes that are no longer unsent.
    pub fn count_freed(&self, freed: &Freed) {
        sub(&self.dirty_bytes, freed_bytes(freed));
    }

    /// Lets the journal have the room of data back.
    pub fn release(&self, freed: Freed) {
        if freed.is_empty() {
            return;
        }
        self.journal.release_all(&freed);
        let bytes = freed_bytes(&freed);
        if self.dead_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes >= RECLAIM_BYTES {
            self.reclaim.notify_one();
        }
        self.room.notify_waiters();
    }

    /// Room for a record is found where there is room for none.
    pub fn make_room_for_record(&self) {
        self.store.give_back(GIVE_BACK_BYTES);
    }

    /// Writes a record about a file.
    pub fn log(&self, state: &mut State, record: Record) -> Result<()> {
        let said = self.say(state, &record).or_else(|_| {
            self.make_room_for_record();
            self.say(state, &record)
        });
        said.map_err(|error| {
            log::error!("cannot write to the journal: {error}");
            Status::from_errno(error.raw_os_error().unwrap_or(libc::EIO)).into()
        })
    }

    /// The same where nobody is there to be told that it failed, and nothing is lost by it.
    pub fn note(&self, state: &mut State, record: Record) {
        if let Err(error) = self.log(state, record) {
            log::warn!("{error}");
        }
    }

    /// Drops data that was taken out of what is unsent, and is not to be sent.
    pub fn drop_unsent(&self, node: &Node, state: &State, freed: Freed) {
        add(&self.counters.dropped_bytes, freed_bytes(&freed));
        self.count_freed(&freed);
        node.note_dirty(state);
        self.release(freed);
    }

    /// Drops unsent data at or behind `size`, and what is stored there. Nothing of the file is to
    /// be under way ([`Core::hold`]). `after`: what the server's file is like now, if known.
    pub fn cut(
        &self,
        node: &Node,
        state: &mut State,
        size: u64,
        after: Option<&WccAttr>,
    ) -> Result<()> {
        self.store.files.changing(node.key());
        let old = node.size().unwrap_or(u64::MAX);
        state.overtake(size.min(old), u64::MAX);
        if !state.dirty.is_empty() || state.said.cut_intent.is_some() {
            let base = after.map(|after| base_of(node, after));
            self.log(state, Record::Cut { handle: node.handle, size, base })?;
            state.intents_in_doubt &= state.said.remove_intent;
            let freed = state.dirty.truncate(size);
            self.drop_unsent(node, state, freed);
            // There may be nothing left for the driver to wait with.
            node.wake.notify_one();
        }
        cut_suspects(&mut state.suspects, size);
        if size < old {
            self.store.cut(node.key(), size, old);
        }
        node.set_size(Some(size));
        Ok(())
    }

    /// The file's last name is gone: unsent data is never sent (paper, 4.1).
    pub fn discard(&self, handle: &FileHandle) {
        if let Some(node) = self.known(handle) {
            let mut state = node.state.lock();
            if !state.dirty.is_empty() {
                self.note(&mut state, Record::Removed { handle: *handle });
                let freed = state.dirty.clear();
                self.drop_unsent(&node, &state, freed);
            }
            state.error = None;
            state.conflict = None;
            state.times = Default::default();
            state.settled = true;
            drop(state);
            node.wake.notify_one();
            node.progress.notify_waiters();
        }
        self.buffer.discard(handle);
    }

    /// close(2): in write-through, waits until the server has the data.
    pub async fn flush(&self, caller: &Caller, handle: &FileHandle) -> Result<()> {
        let Some(node) = self.known(handle) else { return Ok(()) };
        if node.is_local() && !self.treatment(&node).is_lazy() && !self.keeps(&node) {
            self.send(&node, false).await?;
        }
        if let Some(error) = node.state.lock().error.take() {
            return Err(error);
        }
        if node.is_local() { Ok(()) } else { self.buffer.flush(caller, handle).await }
    }

    /// fsync(2): in write-back, makes the journal durable, which is an order for what is written
    /// later; in write-through, waits until the server has the data on its disk.
    pub async fn commit(&self, handle: &FileHandle) -> Result<()> {
        let Some(node) = self.known(handle) else { return self.sync_names().await };
        if !self.treatment(&node).is_lazy() {
            self.sync_names().await?;
            if node.is_local() && self.keeps(&node) {
                return self.sync_journal().await;
            }
            if node.is_local() {
                self.send(&node, true).await?;
            }
            return node.state.lock().error.take().map_or(Ok(()), Err);
        }
        let clean = {
            let mut state = node.state.lock();
            if !state.dirty.is_empty() {
                self.log(&mut state, Record::Barrier { handle: *handle })?;
                state.dirty.barrier();
            }
            state.dirty.is_empty()
        };
        if clean {
            return self.sync_names().await;
        }
        add(&self.counters.local_syncs, 1);
        self.sync_journal().await
    }

    /// Makes the changes of names durable that were acknowledged.
    pub async fn sync_names(&self) -> Result<()> {
        let last = self.names.last_record.load(Ordering::Acquire);
        if self.journal.is_durable(last) { Ok(()) } else { self.sync_journal().await }
    }

    /// Says whether all that is unsent of a file is of an earlier session, and stays: who closes the
    /// file has not written it, and does not wait for it.
    pub fn keeps(&self, node: &Node) -> bool {
        self.is_held() && node.state.lock().newest <= self.found_seq
    }

    /// Makes everything in the journal durable.
    pub async fn sync_journal(&self) -> Result<()> {
        let Some(core) = self.this.upgrade() else { return Err(Error::Interrupted) };
        let synced = self.runtime.spawn_blocking(move || core.journal.sync()).await;
        match synced {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                log::error!("cannot make the journal durable: {error}");
                Err(Status::from_errno(error.raw_os_error().unwrap_or(libc::EIO)).into())
            }
            Err(_) => Err(Error::Interrupted),
        }
    }
}

/// How many bytes of the journal this sets free.
fn freed_bytes(freed: &Freed) -> u64 {
    freed.iter().map(|(_, bytes)| bytes).sum()
}

fn no_room(error: std::io::Error) -> Refused {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => Refused::NoRoom,
        code => {
            log::error!("cannot write to the journal: {error}");
            Refused::Error(Status::from_errno(code.unwrap_or(libc::EIO)).into())
        }
    }
}
