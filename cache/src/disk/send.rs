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
use gridvfs_vfs::{
    Attr, Caller, Error, FileHandle, Result, SetAttr, SetTime, Stability, Status, Vfs, Wcc, WccAttr,
};

use super::node::{ConflictKind, Node, State, Times};
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
/// The most that is handed on before the file is looked at again, in bytes.
const BATCH_BYTES: usize = 8 << 20;
/// How much data is read from the journal at once, in bytes.
const GROUP_BYTES: usize = 1 << 20;
/// How much that the server has not committed starts a COMMIT, in bytes: seldom enough not to stall
/// its disk, often enough to keep the journal small.
const COMMIT_BYTES: u64 = 32 << 20;
/// Write-through: how long after the last write what the server has is committed.
const COMMIT_DELAY: Duration = Duration::from_secs(2);
/// How many pieces are looked for on the server when it may have some of them, and how many of
/// them at once: enough for one of those that were on their way first to be among them, whatever
/// the order in which they arrived.
const SUSPECTS_MAX: usize = 256;
const SUSPECTS_AT_ONCE: usize = 32;
/// So much of a piece's beginning and end is looked for, in bytes.
const PROBE_BYTES: u32 = 4096;
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

/// A group of pieces read from the journal: offset and data.
type Group = Vec<(u64, Bytes)>;

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
        let wanted = state.flush_wanted.max(state.commit_wanted);
        let held = self.is_held() && !hurry;
        let awaited = state.flush_wanted > state.answered.max(state.committed)
            || state.commit_wanted > state.committed;
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
            && (state.commit_wanted > state.committed
                || state.handed_bytes >= COMMIT_BYTES
                || (!waiting && (lazy || hurry || more_epochs || now >= commit_at)))
        {
            state.committing = true;
            state.handed_bytes = 0;
            return Step::Commit(state.handed);
        }
        let times = [
            (waiting && !held).then_some(due_at),
            (uncommitted && !state.committing && !waiting).then_some(commit_at),
        ];
        Step::Wait(times.into_iter().flatten().min())
    }

    /// Hands on data of the oldest epoch that was not handed on yet.
    async fn hand(&self, node: &Arc<Node>, lazy: bool) {
        let Ok(_slot) = self.sending.clone().acquire_owned().await else { return };
        let _turn = node.turn.lock().await;
        if let Err(error) = self.hand_batch(node, lazy).await {
            self.failed(node, &error, lazy);
        }
        node.progress.notify_waiters();
    }

    async fn hand_batch(&self, node: &Arc<Node>, lazy: bool) -> Result<()> {
        let check = {
            let state = node.state.lock();
            let doubt = state.in_doubt || state.intents_in_doubt || state.inherited;
            (lazy || doubt) && !state.checked && state.handed <= state.committed
        };
        if check && !self.check_base(node).await? {
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
            (state.writer.clone(), extents, target)
        };
        let writer = writer.unwrap_or_else(|| Arc::new(self.own.clone()));
        {
            let mut state = node.state.lock();
            let record = Record::Sending { handle: node.handle, up_to_seq: target };
            self.log(&mut state, record)?;
            state.handing = true;
            let more = sample(extents.clone());
            state.suspects.extend(more);
            if state.suspects.len() > 4 * SUSPECTS_MAX {
                state.suspects = sample(std::mem::take(&mut state.suspects));
            }
        }
        if lazy {
            // After a power loss, too, the next process is to know who changed the file.
            self.sync_journal().await?;
        }
        crash::point(crash::Point::BEFORE_WRITE);
        let mut rest = &extents[..];
        let mut batch = 0;
        while !rest.is_empty() {
            let (group, taken) = group_of(rest);
            rest = &rest[taken..];
            for (offset, data) in self.read_group(node, group).await? {
                batch += data.len();
                self.hand_piece(node, &writer, offset, data).await?;
            }
            if batch >= BATCH_BYTES {
                batch = 0;
                // Whoever waits for a COMMIT of what was handed on before need not wait for this.
                node.progress.notify_waiters();
            }
        }
        crash::point(crash::Point::AFTER_WRITE);
        let mut state = node.state.lock();
        state.handing = false;
        state.handed = state.handed.max(target);
        state.last_handed = Instant::now();
        state.failures = 0;
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
    async fn read_group(&self, node: &Arc<Node>, extents: Vec<Extent>) -> Result<Group> {
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
            Ok((base, attr)) => {
                let (core, file) = (self.clone(), node.clone());
                let work = move || core.complete_send(&file, target, base, attr, lazy);
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
    async fn commit_and_ask(
        &self,
        node: &Node,
        lazy: bool,
    ) -> Result<(Option<WccAttr>, Option<Attr>)> {
        self.buffer.commit(&self.own, &node.handle, 0, 0).await?;
        crash::point(crash::Point::AFTER_COMMIT);
        if !lazy {
            // Nobody is to wait for it: what the WRITEs left, as their answers said.
            return Ok((self.buffer.signature(&node.handle), None));
        }
        let attr = self.buffer.getattr(&self.own, &node.handle).await?;
        Ok((Some(WccAttr::from(&attr)), Some(attr)))
    }

    /// The server has everything up to `target` on its disk: the blocks enter the store, the data
    /// leaves the journal.
    fn complete_send(
        &self,
        node: &Node,
        target: u64,
        base: Option<WccAttr>,
        attr: Option<Attr>,
        lazy: bool,
    ) -> Result<()> {
        let keeps = self.treatment(node).keeps();
        let (extents, key, conflict) = {
            let mut state = node.state.lock();
            let mut extents = state.dirty.oldest(0, u64::MAX);
            extents.retain(|extent| extent.seq <= target);
            if !state.fetches.is_empty() {
                // What is asked for from now on has the data.
                extents.iter().for_each(|extent| state.outdate(extent.start, extent.end()));
            }
            (extents, node.key(), state.conflict.is_some())
        };
        if keeps && !conflict {
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
            known.attr = attr;
            if attr.is_some() {
                known.base = base;
            }
        });
        let freed = state.dirty.clear_sent(target, 0, u64::MAX);
        self.count_freed(&freed);
        state.committed = state.committed.max(target);
        state.answered = state.answered.max(target);
        state.changed_at = self.tick();
        state.checked = false;
        match base {
            Some(base) if lazy => {
                state.base = Some(base);
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
        state.in_doubt = false;
        state.suspects.retain(|extent| extent.seq > target);
        node.note_dirty(&state);
        drop(state);
        self.release(freed);
        // What was read ahead of before the WRITEs may be older than they are.
        self.buffer.invalidate(&node.handle);
        Ok(())
    }

    fn store_sent(&self, node: &Node, key: FileKey, extents: Vec<Extent>) {
        let mut rest = &extents[..];
        while !rest.is_empty() {
            let (group, taken) = group_of(rest);
            rest = &rest[taken..];
            let Ok(pieces) = self.read_pieces(node, &group) else { return };
            for (offset, data) in pieces {
                let end = offset + data.len() as u64;
                let eof = node.size() == Some(end);
                if self.store.patch(key, offset, &data, eof).is_err() {
                    // Blocks that were there before are older now.
                    self.store.cut(key, offset, end);
                }
            }
        }
    }

    /// All data is on the server: asks what its attributes are now, after setting the times that
    /// programs have been told.
    async fn settle(&self, node: &Arc<Node>) {
        let lazy = self.treatment(node).is_lazy();
        let _turn = node.turn.lock().await;
        let recovered = node.state.lock().recovered;
        if recovered {
            if let Err(error) = self.take_stock(node).await {
                self.failed(node, &error, true);
            }
            return;
        }
        let (times, writer) = {
            let mut state = node.state.lock();
            if !state.dirty.is_empty() {
                return;
            }
            let Times { atime, mtime } = state.times;
            if (atime, mtime) != (state.said.atime, state.said.mtime) {
                // The next process is to know who has set them.
                let times = Record::Times { handle: node.handle, atime, mtime };
                self.note(&mut state, times);
            }
            (state.times, state.writer.clone())
        };
        let caller = writer.unwrap_or_else(|| Arc::new(self.own.clone()));
        crash::point(crash::Point::BEFORE_SETTLE);
        let asked = self.ask();
        let set = |time: Option<_>| time.map_or(SetTime::Keep, SetTime::To);
        let attr = if times == Default::default() {
            self.buffer.getattr(&caller, &node.handle).await
        } else {
            let changes =
                SetAttr { atime: set(times.atime), mtime: set(times.mtime), ..SetAttr::default() };
            match self.buffer.setattr(&caller, &node.handle, &changes, None).await {
                Ok(Wcc { after: Some(attr), .. }) => Ok(attr),
                Ok(_) => self.buffer.getattr(&caller, &node.handle).await,
                // Whoever may write need not be allowed to set times.
                Err(error) if matches!(error.status(), Status::PERM | Status::ACCES) => {
                    self.buffer.getattr(&caller, &node.handle).await
                }
                Err(error) => Err(error),
            }
        };
        match attr {
            Ok(attr) => {
                self.settled(node, attr, asked, times, lazy);
                crash::point(crash::Point::AFTER_SETTLE);
            }
            Err(error) if is_gone(&error) => {
                let mut state = node.state.lock();
                state.settled = true;
                self.times_set(node, &mut state);
                self.index.update(&node.handle, |known| known.attr = None);
            }
            Err(error) => self.failed(node, &error, true),
        }
    }

    /// Looks whether a file without unsent data is as an earlier process left it, whose times are
    /// still to be set. If it is not, they are not to be set to what it is now.
    async fn take_stock(&self, node: &Arc<Node>) -> Result<()> {
        let asked = self.ask();
        let attr = match self.buffer.getattr(&self.own, &node.handle).await {
            Ok(attr) => attr,
            Err(error) if is_gone(&error) => {
                self.discard(&node.handle);
                self.nothing_left(node, &mut node.state.lock());
                self.index.update(&node.handle, |known| known.attr = None);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let signature = WccAttr::from(&attr);
        let mut state = node.state.lock();
        if !state.recovered || !state.dirty.is_empty() {
            // Somebody else has found out, or will before data is sent.
            state.recovered = false;
            return Ok(());
        }
        if state.changed_at > asked {
            self.nothing_left(node, &mut state);
            return Ok(());
        }
        if state.base.is_some_and(|base| attributes::same_data(&base, &signature))
            || state.is_timed(&signature)
        {
            state.base = Some(signature);
            state.recovered = false;
            return self.no_intents(node, &mut state);
        }
        self.renew(node, &mut state, Some(signature));
        self.nothing_left(node, &mut state);
        node.set_size(Some(attr.size));
        self.index.update(&node.handle, |known| known.attr = None);
        Ok(())
    }

    /// There is nothing to be done any more of what an earlier process has left.
    pub fn nothing_left(&self, node: &Node, state: &mut State) {
        state.recovered = false;
        state.settled = true;
        self.times_set(node, state);
        if let Err(error) = self.no_intents(node, state) {
            log::warn!("{error}");
        }
    }

    /// What an earlier process intended has not come about, or is dealt with.
    fn no_intents(&self, node: &Node, state: &mut State) -> Result<()> {
        if !std::mem::replace(&mut state.intents_in_doubt, false) {
            return Ok(());
        }
        self.log(state, Record::Abandoned { handle: node.handle })
    }

    /// No times are to be set any more.
    fn times_set(&self, node: &Node, state: &mut State) {
        state.times = Times::default();
        if state.said.atime.is_some() || state.said.mtime.is_some() {
            self.note(state, Record::Times { handle: node.handle, atime: None, mtime: None });
        }
    }

    fn settled(&self, node: &Node, mut attr: Attr, asked: u64, times: Times, lazy: bool) {
        let mut state = node.state.lock();
        if state.changed_at > asked {
            return;
        }
        if times != Times::default() {
            // Answers from before the times were set tell of an earlier version.
            state.changed_at = self.tick();
        }
        // Data that was written meanwhile is over this very version.
        state.base = Some(WccAttr::from(&attr));
        state.settled = true;
        if !state.dirty.is_empty() {
            let base = WccAttr::from(&attr);
            self.note(&mut state, attributes::base_record(node, &base));
            return;
        }
        if state.times == times {
            self.times_set(node, &mut state);
        }
        node.set_size(Some(attr.size));
        if lazy && self.settings.read().consistency.trusts() {
            // What programs have seen stays as they have seen it.
            attr.ctime = state.mtime;
        }
        let (base, written) = (state.base, self.period());
        self.index.update(&node.handle, |known| {
            known.base = base;
            known.written = written;
            known.attr = Some(attr);
            known.at = super::now_ms();
        });
    }

    /// Compares the file on the server with what its unsent data was written over. Returns whether
    /// it may be sent.
    pub async fn check_base(&self, node: &Arc<Node>) -> Result<bool> {
        let asked = self.ask();
        let attr = match self.buffer.getattr(&self.own, &node.handle).await {
            Ok(attr) => attr,
            Err(error) if is_gone(&error) => {
                if node.state.lock().said.remove_intent {
                    // By an earlier process of ours, which was killed before it could say so.
                    self.discard(&node.handle);
                    return Ok(false);
                }
                let mut state = node.state.lock();
                self.find_conflict(node, &mut state, ConflictKind::Removed);
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let signature = WccAttr::from(&attr);
        let in_doubt = {
            let mut state = node.state.lock();
            if state.changed_at > asked {
                return Ok(true);
            }
            let known = state.settled && state.changing == 0;
            let base = state.base.filter(|_| known);
            let same = base.is_some_and(|base| attributes::same_data(&base, &signature));
            if !same && self.was_cut(node, &mut state, &signature)? {
                return Ok(true);
            }
            if same || base.is_none() {
                state.settled = true;
                // What was sent without an answer may still be on its way.
                state.in_doubt = state.failing.is_some() && state.said.sending_up_to.is_some();
                self.no_intents(node, &mut state)?;
                return self.rebase(node, &mut state, signature);
            }
            if state.is_timed(&signature) {
                return self.rebase(node, &mut state, signature);
            }
            state.in_doubt
        };
        // WRITEs that nobody has heard of again may have changed it: then the server has some of
        // the very data that was sent.
        if in_doubt && self.has_arrived(node).await? {
            let mut state = node.state.lock();
            state.base = Some(signature);
            state.in_doubt = state.failing.is_some();
            return Ok(true);
        }
        let mut state = node.state.lock();
        if !state.dirty.is_empty() {
            self.find_conflict(node, &mut state, ConflictKind::Changed);
        }
        Ok(false)
    }

    /// Notes what the unsent data is now over. Returns that it may be sent.
    fn rebase(&self, node: &Node, state: &mut State, signature: WccAttr) -> Result<bool> {
        state.base = Some(signature);
        let said = state.said.base;
        let known = said.is_some_and(|it| it.size == signature.size && it.mtime == signature.mtime);
        // The record ends what was said of data being sent: not while there is a doubt about that.
        if !known && !state.in_doubt {
            self.log(state, attributes::base_record(node, &signature))?;
        }
        Ok(true)
    }

    /// Says whether a process that was killed has cut the file to the size that it has now; then
    /// our data is cut, too.
    pub fn was_cut(&self, node: &Node, state: &mut State, signature: &WccAttr) -> Result<bool> {
        if !state.intents_in_doubt || state.said.cut_intent != Some(signature.size) {
            return Ok(false);
        }
        self.cut(node, state, signature.size, Some(signature))?;
        state.base = Some(*signature);
        state.settled = true;
        state.in_doubt = false;
        self.log(state, attributes::base_record(node, signature))?;
        Ok(true)
    }

    /// Says whether any piece of what was sent without an answer is on the server. What has been
    /// written over since counts, too, as long as the journal has it; where it has it no more,
    /// nothing tells, and nothing speaks against it.
    async fn has_arrived(&self, node: &Arc<Node>) -> Result<bool> {
        let suspects = {
            let state = node.state.lock();
            let Some(sending) = state.said.sending_up_to else { return Ok(false) };
            let mut suspects = state.suspects.clone();
            suspects.retain(|extent| extent.seq <= sending);
            sample(suspects)
        };
        if suspects.is_empty() {
            return Ok(true);
        }
        for some in suspects.chunks(SUSPECTS_AT_ONCE) {
            let mut found = tokio::task::JoinSet::new();
            for extent in some {
                let Some(core) = self.this.upgrade() else { return Err(Error::Interrupted) };
                let (node, extent) = (node.clone(), *extent);
                found.spawn(async move { core.is_there(&node, &extent).await });
            }
            while let Some(there) = found.join_next().await {
                if there.unwrap_or(Err(Error::Interrupted))? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Says whether the server has the beginning or the end of a piece, or nothing tells.
    async fn is_there(&self, node: &Arc<Node>, extent: &Extent) -> Result<bool> {
        let length = extent.len.min(PROBE_BYTES);
        let last = Extent {
            start: extent.end() - u64::from(length),
            skip: extent.skip + extent.len - length,
            len: length,
            ..*extent
        };
        let first = Extent { len: length, ..*extent };
        for probe in [first, last] {
            let group = self.read_group(node, vec![probe]).await?;
            let Some((offset, data)) = group.into_iter().next() else { return Ok(true) };
            let read = self.client.read(&self.own, &node.handle, offset, length).await?;
            if read.data == data[..] {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The server has refused data, or does not answer.
    fn failed(&self, node: &Arc<Node>, error: &Error, lazy: bool) {
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
        if silence {
            state.silences += 1;
        }
        if gone && lazy {
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
            let pause = RETRY_MIN.saturating_mul(1 << state.failures.min(10)).min(RETRY_MAX);
            state.failures += 1;
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
        let (target, silences) = {
            let mut state = node.state.lock();
            let target = state.newest;
            let wanted = if durable { &mut state.commit_wanted } else { &mut state.flush_wanted };
            *wanted = target.max(*wanted);
            (target, state.silences)
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
                    Some(error @ Error::Status(_)) => return Err(error.clone()),
                    _ => {}
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

/// Takes a part of many pieces: half of it those that are sent first, the rest from all over.
pub(crate) fn sample(mut extents: Vec<Extent>) -> Vec<Extent> {
    const FIRST: usize = SUSPECTS_MAX / 2;
    if extents.len() <= SUSPECTS_MAX {
        return extents;
    }
    extents.sort_by_key(|extent| extent.start);
    let rest = extents.split_off(FIRST);
    let step = rest.len().div_ceil(SUSPECTS_MAX - FIRST);
    extents.extend(rest.into_iter().step_by(step));
    extents
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

/// Says whether an error tells that the file is not there any more.
pub(crate) fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Status(Status::STALE | Status::NOENT | Status::BADHANDLE))
}
