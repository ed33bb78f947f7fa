//! Fetching what is missing, and storing it.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use gridvfs_vfs::{Caller, Error, Result, Status, Vfs};

use super::Core;
use super::node::{Fetch, Node, State};
use super::options::{CacheKind, Treatment};
use crate::FileKey;
use crate::counters::add;
use crate::store::{BLOCK_BYTES, StoreError};

/// The piece in which a whole file is fetched, in bytes.
const WHOLE_STEP_BYTES: u64 = 1 << 20;

/// A fetch that is known to the file's changes while it lives.
pub(super) struct Registered<N: Deref<Target = Node>> {
    pub node: N,
    number: u64,
}

impl<N: Deref<Target = Node>> Drop for Registered<N> {
    fn drop(&mut self) {
        let mut state = self.node.state.lock();
        state.fetches.retain(|fetch| fetch.number != self.number);
    }
}

impl<N: Deref<Target = Node>> Registered<N> {
    /// Says whether what comes may be older than what is in the cache.
    pub fn is_overtaken(&self) -> bool {
        self.is_overtaken_in(&self.node.state.lock())
    }

    /// The same where the node's state is locked already.
    pub fn is_overtaken_in(&self, state: &State) -> bool {
        self.is(state, |fetch| fetch.overtaken)
    }

    fn is_outdated(&self) -> bool {
        self.is(&self.node.state.lock(), |fetch| fetch.outdated)
    }

    fn is(&self, state: &State, what: impl Fn(&Fetch) -> bool) -> bool {
        state.fetches.iter().any(|fetch| fetch.number == self.number && what(fetch))
    }
}

/// What is fetched of a file, from the first byte to the second, and why.
#[derive(Clone, Copy, Debug)]
enum Asked {
    /// It is read.
    Read(u64, u64),
    /// It lies around what is read.
    Around(u64, u64),
}

impl Core {
    pub(super) fn register<N: Deref<Target = Node>>(
        &self,
        node: N,
        start: u64,
        end: u64,
    ) -> Registered<N> {
        let number = self.fetch_number.fetch_add(1, Ordering::Relaxed);
        let fetch = Fetch { number, start, end, overtaken: false, outdated: false };
        node.state.lock().fetches.push(fetch);
        Registered { node, number }
    }

    /// Reads `start..end` from below and stores it. What lies around it is fetched beside it, and
    /// stored when it comes. Returns where the answer begins, the data, and whether it reaches the
    /// server's end of file; `None` if it may lack what was sent meanwhile.
    pub async fn fetch(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        treatment: Treatment,
        start: u64,
        end: u64,
    ) -> Result<Option<(u64, Bytes, bool)>> {
        const BLOCK: u64 = BLOCK_BYTES as u64;
        let (from, to) = treatment.around(start, end);
        if self.buffer.is_asked_for(&node.handle, from, to) {
            return self.fetch_exactly(caller, node, treatment, Asked::Read(from, to)).await;
        }
        let (start, end) = (start / BLOCK * BLOCK, end.div_ceil(BLOCK) * BLOCK);
        let fetched = self.fetch_exactly(caller, node, treatment, Asked::Read(start, end)).await?;
        let to = to.min(node.size().unwrap_or(0));
        if treatment.keeps()
            && let Some(core) = self.this.upgrade()
            && (from < start || end < to)
        {
            let (caller, node) = (caller.clone(), node.clone());
            self.runtime.spawn(async move {
                for (from, to) in [(from, start), (end, to)] {
                    let Some((from, to)) = core.store.first_gap(node.key(), from, to) else {
                        continue;
                    };
                    let asked = Asked::Around(from, to);
                    if let Err(error) = core.fetch_exactly(&caller, &node, treatment, asked).await {
                        log::debug!("{}: {error}", core.path_text(&node.handle));
                    }
                }
            });
        }
        Ok(fetched)
    }

    async fn fetch_exactly(
        &self,
        caller: &Caller,
        node: &Node,
        treatment: Treatment,
        asked: Asked,
    ) -> Result<Option<(u64, Bytes, bool)>> {
        let (Asked::Read(start, end) | Asked::Around(start, end)) = asked;
        let registered = self.register(node, start, end);
        let key = node.key();
        let (data, eof) = self.read_below(caller, node, treatment, asked).await?;
        if treatment.keeps() && !registered.is_overtaken() {
            self.keep(node, key, start, &data, eof);
            if registered.is_overtaken() {
                // What was stored may be older than what was written meanwhile.
                self.store.cut(key, start, end);
            }
        }
        Ok((!registered.is_outdated()).then_some((start, data, eof)))
    }

    /// Stores what was fetched. A full disk is no error of the reader's.
    pub fn keep(&self, node: &Node, key: FileKey, start: u64, data: &[u8], eof: bool) {
        if node.state.lock().conflict.is_some() {
            return;
        }
        let whole = if eof { data.len() } else { data.len() / BLOCK_BYTES * BLOCK_BYTES };
        match self.store.put(key, start, &data[..whole]) {
            Ok(()) => add(&self.counters.filled_bytes, whole as u64),
            Err(StoreError::NoSpace) => log::debug!("the cache's disk is full: not stored"),
            Err(error) => log::warn!("cannot store: {error}"),
        }
    }

    async fn read_below(
        &self,
        caller: &Caller,
        node: &Node,
        treatment: Treatment,
        asked: Asked,
    ) -> Result<(Bytes, bool)> {
        let (Asked::Read(start, end) | Asked::Around(start, end)) = asked;
        let mut first: Option<Bytes> = None;
        let mut rest = BytesMut::new();
        let mut at = start;
        let mut empty = 0;
        loop {
            let count = (end - at).min(1 << 20) as u32;
            let read = match asked {
                _ if !treatment.ahead => self.client.read(caller, &node.handle, at, count).await?,
                Asked::Read(..) => self.buffer.read(caller, &node.handle, at, count).await?,
                Asked::Around(..) => {
                    self.buffer.read_around(caller, &node.handle, at, count).await?
                }
            };
            at += read.data.len() as u64;
            empty = if read.data.is_empty() { empty + 1 } else { 0 };
            let done = read.eof || at >= end;
            match &first {
                None if done => return Ok((read.data, read.eof)),
                None => first = Some(read.data),
                Some(_) => rest.extend_from_slice(&read.data),
            }
            if done {
                let first = first.unwrap_or_default();
                let mut all = BytesMut::with_capacity(first.len() + rest.len());
                all.extend_from_slice(&first);
                all.extend_from_slice(&rest);
                return Ok((all.freeze(), read.eof));
            }
            if empty > 3 {
                return Err(Error::Protocol("no data in the middle of a file".into()));
            }
        }
    }

    /// Has the rest of a file fetched in the background, if that is how it is kept.
    pub fn complete(self: &Core, caller: &Caller, node: &Arc<Node>, treatment: Treatment) {
        if treatment.kind != CacheKind::Whole || node.fetching_whole.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(core) = self.this.upgrade() else { return };
        let (caller, node) = (caller.clone(), node.clone());
        self.runtime.spawn(async move {
            if let Err(error) = core.fetch_whole(&caller, &node, &|_| {}).await {
                log::debug!("{}: not fetched whole: {error}", core.path_text(&node.handle));
            }
            node.fetching_whole.store(false, Ordering::Release);
        });
    }

    /// Fetches what is missing of a file. Tells how many more bytes are there.
    pub async fn fetch_whole(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let treatment = Treatment { ahead: true, ..self.treatment(node) };
        if !treatment.keeps() {
            return Err(Status::INVAL.into());
        }
        if node.size().is_none() {
            self.getattr(caller, &node.handle).await?;
        }
        let mut at = 0;
        while let Some(size) = node.size().filter(|size| at < *size) {
            let end = (at + WHOLE_STEP_BYTES).min(size);
            if let Some((from, to)) = self.store.first_gap(node.key(), at, end)
                && !node.state.lock().dirty.covers(from, to)
            {
                let asked = Asked::Read(from, to.max(from + 1));
                self.fetch_exactly(caller, node, treatment, asked).await?;
            }
            progress(end - at);
            at = end;
        }
        Ok(())
    }
}
