//! Sending: the driver of a file with unsent data.
//!
//! A driver looks at its file, does one thing, and looks again; when there is nothing to do it
//! sleeps until the next deadline or until it is woken. It hands on the data of the oldest epoch (what
//! was written before the first fsync that is not yet on the server) in the order of offsets,
//! adjacent pieces together; the buffer layer sends it over all stripes. When a COMMIT covers it, the
//! data leaves the journal and its blocks enter the store. Data of the next epoch is only handed on
//! when all of the one before is committed: what an fsync has ordered stays in order on the server.
//!
//! Round trips of a file in write-through: one for `close`; in write-back, in the background, one to
//! see whether others have changed it, one for all its data, one for COMMIT, one for its times.
//!
//! Handing on and committing overlap: while a COMMIT is under way, more data is handed on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use gridvfs_vfs::{Attr, Caller, Error, FileHandle, Result, Stability, Status, Vfs, WccAttr};

use super::node::{ConflictKind, Node, State};
use super::pending::is_ours;
use super::{Core, attributes};
use crate::FileKey;
use crate::counters::add;
use crate::crash;
use crate::dirty::Extent;
use crate::journal::{ReadError, Record};

/// Write-through: this much is handed on at once, the buffer layer's full WRITE.
pub(crate) const FULL_BYTES: u64 = 1 << 20;
/// Write-through: how long less waits for its neighbours, unless somebody waits for it.
const GATHER_DELAY: Duration = Duration::from_millis(100);
/// How much data is read from the journal at once, in bytes.
const GROUP_BYTES: usize = 1 << 20;
const PAGE_BYTES: usize = 4096;
/// How much that the server has not committed starts a COMMIT, in bytes: seldom enough not to stall
/// its disk, often enough to keep the journal small.
const COMMIT_BYTES: u64 = 32 << 20;
/// Write-through: how long after the last write what the server has is committed.
const COMMIT_DELAY: Duration = Duration::from_secs(2);
/// The pauses between attempts: doubled from the first to the second.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(15);

enum Step {
    Hand,
    Flush(u64),
    Commit(u64),
    Settle,
    Wait(Option<Instant>),
    Done,
}

/// What our WRITEs have left of a file.
struct Left {
    base: Option<WccAttr>,
    attr: Option<Attr>,
    /// Where the clock stood when it was asked for.
    asked: u64,
}

/// A group of pieces read from the journal: offset and data.
pub(crate) type Group = Vec<(u64, Bytes)>;

impl Core {
    /// Starts the file's driver. Whoever calls has set `driven`.
    pub fn start_driver(&self, node: &Arc<Node>) {
        let Some(core) = self.this.upgrade() else { return };
        let node = node.clone();
        self.runtime.spawn(async move { core.drive(node).await });
    }

    /// Has all files sent now.
    pub fn hurry(&self) {
        if !self.hurry.swap(true, Ordering::AcqRel) {
            self.wake_drivers();
        }
    }

    pub fn wake_drivers(&self) {
        self.nodes.iter().filter(|node| node.is_local()).for_each(|node| node.wake.notify_one());
    }

    async fn drive(self: Arc<Self>, node: Arc<Node>) {
        loop {
            let lazy = self.treatment(&node).is_lazy();
            let step = self.step(&node, &mut node.state.lock(), lazy);
            match step {
                Step::Hand => self.hand(&node, lazy).await,
                Step::Flush(target) => {
                    let (core, node) = (self.clone(), node.clone());
                    tokio::spawn(async move { core.flush_below(&node, target).await });
                }
                Step::Commit(target) => {
                    let (core, node) = (self.clone(), node.clone());
                    tokio::spawn(async move { core.commit_below(node, target).await });
                }
                Step::Settle => self.settle(&node).await,
                Step::Wait(None) => node.wake.notified().await,
                Step::Wait(Some(until)) => {
                    let _ = tokio::time::timeout_at(until.into(), node.wake.notified()).await;
                }
                Step::Done => break,
            }
        }
        node.progress.notify_waiters();
        if self.dirty_bytes() == 0 && !self.closing.load(Ordering::Acquire) {
            self.hurry.store(false, Ordering::Release);
        }
    }

    fn step(&self, node: &Node, state: &mut State, lazy: bool) -> Step {
        let now = Instant::now();
        if let Some(until) = state.retry_at.filter(|until| *until > now) {
            return Step::Wait(Some(until));
        }
        if state.dirty.is_empty() {
            if state.committing || state.flushing {
                return Step::Wait(None);
            }
            let open = !state.settled || state.recovered || state.times != Default::default();
            if open && state.conflict.is_none() {
                return Step::Settle;
            }
            state.handed = state.newest;
            state.committed = state.newest;
            state.handed_bytes = 0;
            state.waiting_since = None;
            state.waiting_bytes = 0;
            state.checked = false;
            state.failing = None;
            state.failures = 0;
            state.retry_at = None;
            state.driven = false;
            node.note_dirty(state);
            return Step::Done;
        }
        if state.conflict.is_some() {
            return Step::Wait(None);
        }
        let epoch_end = state.dirty.oldest_newest_seq();
        let waiting = epoch_end > state.handed;
        let more_epochs = state.dirty.epochs() > 1;
        let hurry = self.hurry.load(Ordering::Acquire);
        let commit_wanted = state.commit_wanted.max(state.all_wanted);
        let wanted = state.flush_wanted.max(commit_wanted);
        let held = self.is_held() && !hurry;
        let awaited = state.flush_wanted > state.answered.max(state.committed)
            || commit_wanted > state.committed;
        if held && !awaited {
            return Step::Wait(None);
        }
        let since = state.waiting_since.unwrap_or(now);
        let due_at = if lazy {
            let settings = self.settings.read();
            (state.last_write + settings.writeback_delay).min(since + settings.writeback_age_max)
        } else {
            since + GATHER_DELAY
        };
        let full = !lazy && state.waiting_bytes >= FULL_BYTES;
        let due = !held && (full || now >= due_at);
        // While more is handed on: what the server has is copied to the store meanwhile, not at the end
        // of a large file.
        if !lazy && !state.committing && state.handed_bytes >= COMMIT_BYTES {
            return commit(state);
        }
        if waiting && (hurry || due || wanted > state.handed) {
            return Step::Hand;
        }
        let uncommitted = state.handed > state.committed;
        if !state.flushing && state.flush_wanted > state.answered && state.handed > state.answered {
            state.flushing = true;
            return Step::Flush(state.handed);
        }
        let commit_at = state.last_handed + COMMIT_DELAY;
        if uncommitted
            && !state.committing
            && (commit_wanted > state.committed
                || state.handed_bytes >= COMMIT_BYTES
                || (!waiting && (lazy || hurry || more_epochs || now >= commit_at)))
        {
            return commit(state);
        }
        let times = [
            (waiting && !held).then_some(due_at),
            (uncommitted && !state.committing && !waiting).then_some(commit_at),
        ];
        Step::Wait(times.into_iter().flatten().min())
    }

    /// Hands on data of the oldest epoch that was not handed on yet.
    async fn hand(&self, node: &Arc<Node>, lazy: bool) {
        let cancels = *self.cancelled.borrow();
        // Before a slot is taken: what the file has to wait for may be data of another.
        if let Err(error) = self.names.settle_file(&node.handle).await {
            // What stopped is told there, and is no conflict of the data.
            let stopped = self.waits_for_conflict(&node.handle);
            if stopped || !is_gone(&error) {
                let error = if stopped { Status::EXIST.into() } else { error };
                self.failed(node, &error, lazy);
                return;
            }
            // What is gone is looked at below.
        }
        let Ok(_slot) = self.sending.clone().acquire_owned().await else { return };
        let _turn = node.turn.lock().await;
        if node.state.lock().failures > 0 {
            // What the server still has to say of the attempt before is no answer to this one.
            let _ = self.buffer.flush(&self.own, &node.handle).await;
        }
        if let Err(error) = self.hand_batch(node, lazy, cancels).await {
            self.failed(node, &error, lazy);
        }
        node.progress.notify_waiters();
    }

    /// Says whether a write-back was cancelled since there were so many cancels, and nobody else waits
    /// for the file. Its driver then looks again what is to be done.
    fn is_cancelled(&self, node: &Node, cancels: u64) -> bool {
        let state = node.state.lock();
        let wanted = state.flush_wanted.max(state.commit_wanted).max(state.all_wanted);
        *self.cancelled.borrow() != cancels && wanted <= state.handed
    }

    async fn hand_batch(&self, node: &Arc<Node>, lazy: bool, cancels: u64) -> Result<()> {
        let check = {
            let state = node.state.lock();
            let doubt = state.in_doubt || state.intents_in_doubt || state.inherited;
            (lazy || doubt) && !state.checked && state.handed <= state.committed
        };
        if check && !self.check_base(node).await? {
            return Ok(());
        }
        if self.is_cancelled(node, cancels) {
            return Ok(());
        }
        let (writer, extents, target) = {
            let mut state = node.state.lock();
            if state.dirty.is_empty() || state.conflict.is_some() {
                return Ok(());
            }
            state.checked = true;
            state.inherited = false;
            state.waiting_since = None;
            state.waiting_bytes = 0;
            let target = state.dirty.oldest_newest_seq();
            let handed = state.handed;
            let mut extents = state.dirty.oldest(0, u64::MAX);
            extents.retain(|extent| extent.seq > handed);
            let record = Record::Sending { handle: node.handle, up_to_seq: target };
            self.log(&mut state, record)?;
            state.handing = true;
            state.suspect(&extents);
            (state.writer.clone(), extents, target)
        };
        let writer = writer.unwrap_or_else(|| Arc::new(self.own.clone()));
        if lazy || is_ours(&node.handle) {
            // After a power loss, too, the next process is to know who changed the file.
            self.sync_journal().await?;
        }
        crash::point(crash::Point::BEFORE_WRITE);
        let mut rest = &extents[..];
        while !rest.is_empty() {
            let (group, taken) = group_of(rest);
            rest = &rest[taken..];
            if self.is_cancelled(node, cancels) {
                return Err(Error::Interrupted);
            }
            for (offset, data) in self.read_group(node, group).await? {
                self.hand_piece(node, &writer, offset, data).await?;
            }
        }
        crash::point(crash::Point::AFTER_WRITE);
        let mut state = node.state.lock();
        state.handing = false;
        state.handed = state.handed.max(target);
        state.last_handed = Instant::now();
        Ok(())
    }

    async fn hand_piece(
        &self,
        node: &Node,
        writer: &Caller,
        offset: u64,
        data: Bytes,
    ) -> Result<()> {
        let length = data.len() as u64;
        self.write_below(writer, &node.handle, offset, data).await?;
        add(&self.counters.sent_bytes, length);
        let mut state = node.state.lock();
        state.changed_at = self.tick();
        state.handed_bytes += length;
        Ok(())
    }

    /// Hands all of `data` to the layer below.
    pub async fn write_below(
        &self,
        caller: &Caller,
        file: &FileHandle,
        mut offset: u64,
        mut data: Bytes,
    ) -> Result<()> {
        while !data.is_empty() {
            let write = self.buffer.write(caller, file, offset, data.clone(), Stability::Unstable);
            let count = (write.await?.count as usize).min(data.len());
            if count == 0 {
                return Err(Error::Protocol("no data was taken".into()));
            }
            offset += count as u64;
            data = data.slice(count..);
        }
        Ok(())
    }

    /// Reads pieces from the journal, adjacent ones into one. What was overwritten or cut meanwhile
    /// is left out.
    pub async fn read_group(&self, node: &Arc<Node>, extents: Vec<Extent>) -> Result<Group> {
        let Some(core) = self.this.upgrade() else { return Err(Error::Interrupted) };
        let node = node.clone();
        let read = self.runtime.spawn_blocking(move || core.read_pieces(&node, &extents));
        read.await.unwrap_or(Err(Error::Interrupted))
    }

    fn read_pieces(&self, node: &Node, extents: &[Extent]) -> Result<Group> {
        let mut pieces: Group = Vec::new();
        let mut current: Option<(u64, BytesMut)> = None;
        for extent in extents {
            let mut data = BytesMut::zeroed(extent.len as usize);
            match self.journal.read(&extent.place, u64::from(extent.skip), &mut data) {
                Ok(()) => {}
                Err(ReadError::Gone(_)) => continue,
                Err(error) => {
                    add(&self.counters.damaged, 1);
                    let (start, end) = (extent.start, extent.end());
                    let path = self.path_text(&node.handle);
                    return Err(Error::Protocol(format!(
                        "{path}: unsent data is damaged at {start}..{end}: {error}"
                    )));
                }
            }
            match &mut current {
                Some((start, all))
                    if *start + all.len() as u64 == extent.start
                        && all.len() + data.len() <= GROUP_BYTES =>
                {
                    all.extend_from_slice(&data);
                }
                _ => {
                    pieces.extend(current.take().map(|(start, all)| (start, all.freeze())));
                    current = Some((extent.start, data));
                }
            }
        }
        pieces.extend(current.map(|(start, all)| (start, all.freeze())));
        Ok(pieces)
    }

    async fn flush_below(&self, node: &Arc<Node>, target: u64) {
        let result = self.buffer.flush(&self.own, &node.handle).await;
        {
            let mut state = node.state.lock();
            state.flushing = false;
            if result.is_ok() {
                state.answered = state.answered.max(target);
            }
        }
        if let Err(error) = result {
            self.failed(node, &error, self.treatment(node).is_lazy());
        }
        node.progress.notify_waiters();
        node.wake.notify_one();
    }

    async fn commit_below(self: Arc<Self>, node: Arc<Node>, target: u64) {
        crash::point(crash::Point::BEFORE_COMMIT);
        let lazy = self.treatment(&node).is_lazy();
        let result = match self.commit_and_ask(&node, lazy).await {
            Ok(left) => {
                let (core, file) = (self.clone(), node.clone());
                let work = move || core.complete_send(&file, target, left, lazy);
                self.runtime.spawn_blocking(work).await.unwrap_or(Err(Error::Interrupted))
            }
            Err(error) => Err(error),
        };
        node.state.lock().committing = false;
        if let Err(error) = result {
            self.failed(&node, &error, lazy);
        }
        node.progress.notify_waiters();
        node.wake.notify_one();
    }

    /// COMMIT. In write-back the attributes that our WRITEs left are asked for before the data
    /// leaves the journal, so that the next process can tell them from others' changes.
    async fn commit_and_ask(&self, node: &Node, lazy: bool) -> Result<Left> {
        self.buffer.commit(&self.own, &node.handle, 0, 0).await?;
        crash::point(crash::Point::AFTER_COMMIT);
        if !lazy {
            // Nobody is to wait for it: what the WRITEs left, as their answers said.
            let base = self.buffer.signature(&node.handle);
            return Ok(Left { base, attr: None, asked: self.ask() });
        }
        let asked = self.ask();
        let attr = self.buffer.getattr(&self.own, &node.handle).await?;
        Ok(Left { base: Some(WccAttr::from(&attr)), attr: Some(attr), asked })
    }

    /// The server has everything up to `target` on its disk: the blocks enter the store, the data
    /// leaves the journal.
    fn complete_send(
        &self,
        node: &Node,
        target: u64,
        Left { base, attr, asked }: Left,
        lazy: bool,
    ) -> Result<()> {
        let keeps = self.treatment(node).keeps();
        let (extents, key, stores) = {
            let mut state = node.state.lock();
            let mut extents = state.dirty.oldest(0, u64::MAX);
            extents.retain(|extent| extent.seq <= target);
            if !state.fetches.is_empty() {
                // What is asked for from now on has the data.
                extents.iter().for_each(|extent| state.outdate(extent.start, extent.end()));
            }
            let overtaken = state.overtaken_up_to > state.committed;
            (extents, node.key(), keeps && state.conflict.is_none() && !overtaken)
        };
        if stores {
            self.store_sent(node, key, extents);
            // Before anybody notes the version that the file has now: until the store is durable, a
            // power loss may bring back what was stored before.
            self.note_written(node);
        }
        crash::point(crash::Point::AFTER_STORE);
        let mut state = node.state.lock();
        if node.key() != key {
            // Others' changes were seen meanwhile: what was stored is found no more.
            self.store.cut(key, 0, node.size().unwrap_or(u64::MAX));
        }
        let sent = Record::Sent {
            handle: node.handle,
            up_to_seq: target,
            start: 0,
            end: u64::MAX,
            // In write-through it is a guess: answers to WRITEs come in any order.
            base: base.filter(|_| lazy).map(|base| attributes::base_of(node, &base)),
        };
        self.log(&mut state, sent)?;
        crash::point(crash::Point::AFTER_SENT);
        // What is known of the file is not told by the journal any more.
        self.index.update(&node.handle, |known| {
            // Its names may be others since.
            known.attr = attr.filter(|_| !known.overtaken(asked));
            if attr.is_some() {
                known.base = base;
            }
        });
        let freed = state.dirty.clear_sent(target, 0, u64::MAX);
        self.count_freed(&freed);
        let overtaken = state.overtaken_up_to > state.committed;
        state.committed = state.committed.max(target);
        state.answered = state.answered.max(target);
        state.changed_at = self.tick();
        state.checked = false;
        match base {
            Some(base) if lazy => {
                state.base = Some(base);
                state.own_base_at = Some(Instant::now());
                // The time that programs were told is set last.
                let written = state.mtime;
                state.times.mtime.get_or_insert(written);
            }
            _ => {
                state.base = base.or(state.base);
                state.settled = false;
            }
        }
        state.failing = None;
        state.failures = 0;
        state.in_doubt = false;
        state.suspects.retain(|extent| extent.seq > target);
        node.note_dirty(&state);
        if overtaken {
            self.sent_over_others(node, &mut state, lazy);
        }
        drop(state);
        self.release(freed);
        // What was read ahead of before the WRITEs may be older than they are.
        self.buffer.invalidate(&node.handle);
        Ok(())
    }

    /// Copies data from the journal to the store, by way of one buffer that begins at a page: the
    /// kernel copies from elsewhere at a fraction of the speed.
    fn store_sent(&self, node: &Node, key: FileKey, extents: Vec<Extent>) {
        let mut room = vec![0; GROUP_BYTES + PAGE_BYTES];
        let skip = room.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        let buffer = &mut room[skip..skip + GROUP_BYTES];
        let store = |start: u64, data: &[u8]| {
            let end = start + data.len() as u64;
            let eof = node.size() == Some(end);
            if !data.is_empty() && self.store.patch(key, start, data, eof).is_err() {
                // Blocks that were there before are older now.
                self.store.cut(key, start, end);
            }
        };
        let (mut start, mut filled) = (0, 0);
        for extent in extents {
            let length = extent.len as usize;
            if extent.start != start + filled as u64 || filled + length > buffer.len() {
                store(start, &buffer[..filled]);
                (start, filled) = (extent.start, 0);
            }
            let Some(part) = buffer.get_mut(filled..filled + length) else {
                self.store.cut(key, extent.start, extent.end());
                continue;
            };
            match self.journal.read(&extent.place, u64::from(extent.skip), part) {
                Ok(()) => filled += length,
                Err(ReadError::Gone(_)) => {}
                Err(error) => {
                    add(&self.counters.damaged, 1);
                    log::warn!(
                        "{}: what was sent is not kept: {error}",
                        self.path_text(&node.handle)
                    );
                    self.store.cut(key, extent.start, extent.end());
                }
            }
        }
        store(start, &buffer[..filled]);
    }

    /// The server has refused data, or does not answer.
    pub fn failed(&self, node: &Arc<Node>, error: &Error, lazy: bool) {
        let silence = matches!(error, Error::Unreachable(_) | Error::Interrupted);
        let gone = matches!(error.status(), Status::STALE | Status::BADHANDLE);
        let mut state = node.state.lock();
        // What was handed on is handed on again.
        state.handing = false;
        state.handed = state.committed;
        state.checked = false;
        state.handed_bytes = 0;
        // Some of what was sent may have arrived.
        state.in_doubt |= lazy && state.said.sending_up_to.is_some();
        state.waiting_since.get_or_insert_with(Instant::now);
        // A server that refuses data is asked less and less often: each time all of it travels.
        let pause = RETRY_MIN.saturating_mul(1 << state.failures.min(10)).min(RETRY_MAX);
        match silence {
            true => state.silences += 1,
            false => state.failures += 1,
        }
        if gone && lazy && !state.said.remove_intent {
            self.find_conflict(node, &mut state, ConflictKind::Removed);
        } else if !lazy && !silence && error.status() != Status::JUKEBOX {
            self.refused(node, &mut state, error);
        } else {
            if state.failing.as_ref().map(Error::to_string) != Some(error.to_string()) {
                log::warn!(
                    "cannot write back {}: {error}; {} bytes of unsent data are kept and tried again",
                    self.path_text(&node.handle),
                    state.dirty.bytes(),
                );
            }
            state.failing = Some(error.clone());
            state.retry_at = Some(Instant::now() + pause);
        }
        drop(state);
        node.progress.notify_waiters();
        node.wake.notify_one();
    }

    /// Write-through: the program is told, once, and the data is dropped, as it is by NFS clients.
    fn refused(&self, node: &Node, state: &mut State, error: &Error) {
        self.note(state, Record::Removed { handle: node.handle });
        let freed = state.dirty.clear();
        self.drop_unsent(node, state, freed);
        state.error.get_or_insert_with(|| error.clone());
        state.settled = false;
        state.changed_at = self.tick();
        self.renew(node, state, None);
        self.index.update(&node.handle, |known| known.attr = None);
        node.set_size(None);
    }

    /// Has a file's data sent and waits until the server has it; with `durable`, on its disk.
    pub async fn send(&self, node: &Arc<Node>, durable: bool) -> Result<()> {
        let want = |state: &mut State| match durable {
            true => state.commit_wanted = state.commit_wanted.max(state.newest),
            false => state.flush_wanted = state.flush_wanted.max(state.newest),
        };
        self.send_as(node, durable, want).await
    }

    /// The same, for a write-back of everything, which may be taken back.
    pub async fn send_with_all(&self, node: &Arc<Node>) -> Result<()> {
        self.send_as(node, true, |state| state.all_wanted = state.newest).await
    }

    async fn send_as(
        &self,
        node: &Arc<Node>,
        durable: bool,
        want: impl FnOnce(&mut State),
    ) -> Result<()> {
        let (target, silences) = {
            let mut state = node.state.lock();
            want(&mut state);
            (state.newest, state.silences)
        };
        node.wake.notify_one();
        loop {
            let mut progress = std::pin::pin!(node.progress.notified());
            progress.as_mut().enable();
            {
                let mut state = node.state.lock();
                if let Some(error) = state.error.take() {
                    return Err(error);
                }
                let there = if durable { state.committed } else { state.answered };
                if state.dirty.is_empty() || there.max(state.committed) >= target {
                    return Ok(());
                }
                if let Some(kind) = state.conflict {
                    return Err(kind.error());
                }
                match &state.failing {
                    Some(error @ Error::Unreachable(_)) if state.silences > silences => {
                        return Err(error.clone());
                    }
                    None | Some(Error::Unreachable(_) | Error::Interrupted) => {}
                    // The server's, or damage of what is to be sent: waiting mends neither.
                    Some(error) => return Err(error.clone()),
                }
            }
            progress.await;
        }
    }

    /// Waits until nothing of the file is under way, and keeps it so while the guard lives.
    pub async fn hold<'a>(&self, node: &'a Arc<Node>) -> Result<tokio::sync::MutexGuard<'a, ()>> {
        let turn = node.turn.lock().await;
        loop {
            let mut progress = std::pin::pin!(node.progress.notified());
            progress.as_mut().enable();
            if !node.state.lock().committing {
                break;
            }
            progress.await;
        }
        Ok(turn)
    }
}

/// Takes the first extents up to a limit.
fn group_of(extents: &[Extent]) -> (Vec<Extent>, usize) {
    let mut bytes = 0;
    let full = |extent: &Extent| {
        bytes += extent.len as usize;
        bytes > GROUP_BYTES
    };
    let count = extents.iter().position(full).unwrap_or(extents.len()).max(1);
    (extents[..count].to_vec(), count)
}

/// What was handed on is to be committed.
fn commit(state: &mut State) -> Step {
    state.committing = true;
    state.handed_bytes = 0;
    Step::Commit(state.handed)
}

/// Says whether an error tells that the file is not there any more.
pub(crate) fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Status(Status::STALE | Status::NOENT | Status::BADHANDLE))
}
