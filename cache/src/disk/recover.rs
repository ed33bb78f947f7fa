//! Unsent data of an earlier process, and what is done now and then: old segments of the journal
//! go, and what the store holds is made durable.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use gridvfs_vfs::{Caller, FileHandle, WccAttr};

use super::Core;
use super::doubt::sample;
use super::names::path_text;
use super::node::{ConflictKind, Node, Times};
use super::options::Policy;
use crate::FileKey;
use crate::counters::add;
use crate::index::Index;
use crate::journal::{Damage, NO_FILE, RecoveredFile, WriteHeader};

/// How often the house is kept, if nothing calls for it sooner.
const PAUSE: Duration = Duration::from_secs(5);
/// After how many pauses the store is made durable.
const STORE_SYNC_PAUSES: u32 = 12;
/// This much more than its live data the journal may hold before live data is moved out of the
/// oldest segment, in bytes.
const SLACK_BYTES: u64 = 256 << 20;
/// How much is moved at once, in bytes.
const MOVE_BYTES: u64 = 8 << 20;

/// Says what the journal has lost.
pub(crate) fn report(index: &Index, root: &FileHandle, damage: &Damage) {
    if let Some((handle, offset, length)) = damage.file
        && length > 0
    {
        let path = path_text(index, root, &handle);
        let end = offset + u64::from(length);
        if damage.synced {
            log::error!("unsent data of {path} at {offset}..{end} is damaged and is not sent");
        } else {
            log::warn!("unsent data of {path} at {offset}..{end} did not reach the disk in time");
        }
    } else if damage.synced {
        let (segment, at, bytes) = (damage.segment, damage.at, damage.bytes);
        log::error!("the journal is damaged: {bytes} bytes at {at} of segment {segment}");
    }
}

impl Core {
    /// Takes over what an earlier process has not sent.
    pub fn recover(self: &Arc<Self>, files: HashMap<FileHandle, RecoveredFile>, restarted: bool) {
        for (handle, file) in files {
            let own_size = file.size();
            let RecoveredFile { dirty, state: said, caller, written, touched, suspects } = file;
            let base = said.base.map(|base| WccAttr {
                size: base.size,
                mtime: base.mtime,
                ctime: base.ctime,
            });
            let key = said.base.map(|base| FileKey(base.key));
            let written_in = self.period();
            let known = self.index.update(&handle, |known| {
                // The frames are of this version if they are found under the key that had it; after
                // a power loss not all of them need be.
                if restarted || key != Some(known.key) {
                    known.renew_key(base);
                }
                known.base = base;
                known.written = written_in;
            });
            // How much of it the server has, only the server knows; in a conflict its version is
            // another than what the mount shows.
            let size = own_size.filter(|_| said.conflict.is_some());
            let node = Arc::new(Node::new(handle, known.key, size, base));
            {
                let mut state = node.state.lock();
                add(&self.dirty_bytes, dirty.bytes());
                state.newest = dirty.newest_seq();
                state.dirty = dirty;
                state.mtime = written.unwrap_or_default();
                state.ctime = state.mtime;
                state.times = Times { atime: said.atime, mtime: said.mtime };
                if touched && said.mtime.is_some() {
                    // Without unsent data, the time of the last write is all that is left to be set.
                    state.times.mtime = written.filter(|_| state.dirty.is_empty());
                }
                state.conflict = said.conflict.map(ConflictKind::from_code);
                state.in_doubt = said.sending_up_to.is_some();
                state.suspects = sample(suspects);
                state.intents_in_doubt = said.cut_intent.is_some() || said.remove_intent;
                state.writer = caller.map(|(uid, gid)| {
                    let groups =
                        if uid == self.own.uid { self.own.groups.clone() } else { Vec::new() };
                    Arc::new(Caller { uid, gid, groups })
                });
                state.inherited = true;
                state.recovered = state.dirty.is_empty() && state.conflict.is_none();
                state.said = said;
                let now = std::time::Instant::now();
                state.waiting_since = Some(now);
                // Its time has come long ago.
                state.flush_wanted = if self.is_held() { 0 } else { state.newest };
                state.commit_wanted = state.flush_wanted;
                state.driven = true;
                node.note_dirty(&state);
            }
            self.nodes.insert(handle, node.clone());
            self.start_driver(&node);
        }
        let bytes = self.dirty_bytes();
        if bytes > 0 {
            log::debug!("{bytes} bytes of unsent data were left by an earlier process");
        }
    }

    /// Makes room for what will be written, if it is to stay here for a while.
    fn make_room(&self) {
        if self.settings.read().policy == Policy::WriteBack
            && let Err(error) = self.journal.make_room()
        {
            log::debug!("no room is made for the journal: {error}");
        }
    }

    /// Says whether unsent data is to stay here.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire) && self.write_backs.load(Ordering::Acquire) == 0
    }

    /// Deletes segments of the journal that are no longer needed.
    pub fn reclaim(&self, all: bool) -> io::Result<u64> {
        self.dead_bytes.store(0, Ordering::Relaxed);
        let mut carry = |handle: &FileHandle| {
            if *handle == NO_FILE {
                return self.copy_names();
            }
            let Some(node) = self.known(handle) else { return Ok(()) };
            let state = node.state.lock();
            if state.dirty.is_empty() && !state.said.is_pending() {
                return Ok(());
            }
            for record in state.said.records(handle) {
                self.journal.append(&record)?;
            }
            Ok(())
        };
        if all { self.journal.reclaim_all(&mut carry) } else { self.journal.reclaim(&mut carry) }
    }

    /// Moves data out of the oldest segment, if it holds up too many others.
    fn make_slack(&self) -> io::Result<()> {
        let slack = SLACK_BYTES.max(self.journal.live_bytes());
        if self.journal.used_bytes().saturating_sub(self.journal.live_bytes()) < slack {
            return Ok(());
        }
        let Some(oldest) = self.journal.segments().first().copied() else { return Ok(()) };
        if oldest.live == 0 || oldest.active {
            return Ok(());
        }
        for (handle, _) in self.journal.oldest_live_files()? {
            let Some(node) = self.known(&handle) else { continue };
            self.move_forward(&node, oldest.number)?;
        }
        Ok(())
    }

    fn move_forward(&self, node: &Node, segment: u32) -> io::Result<()> {
        loop {
            let extents = node.state.lock().dirty.in_segment(segment, MOVE_BYTES);
            if extents.is_empty() {
                return Ok(());
            }
            for (epoch, extent) in extents {
                let mut data = vec![0; extent.len as usize];
                let mut state = node.state.lock();
                if self.journal.read(&extent.place, u64::from(extent.skip), &mut data).is_err() {
                    // Damaged data stays where it is, and is reported when it is to be sent.
                    return Ok(());
                }
                let caller = state.writer.as_deref().unwrap_or(&self.own);
                let header = WriteHeader {
                    handle: node.handle,
                    offset: extent.start,
                    time: state.mtime,
                    uid: caller.uid,
                    gid: caller.gid,
                    epoch,
                    carried: Some(extent.seq),
                };
                let (_, place) = self.journal.append_write(&header, &data)?;
                let freed = state.dirty.moved(epoch, &extent, place);
                drop(state);
                self.journal.release_all(&freed);
            }
        }
    }

    /// The period of the store that a change of ours falls into.
    pub fn period(&self) -> u64 {
        self.changed_files.store(true, Ordering::Release);
        self.origin.lock().period
    }

    /// Makes the store durable: what was changed before is believed after a power loss from then on.
    pub fn sync_store(&self) {
        if !self.changed_files.swap(false, Ordering::AcqRel) {
            // What was only read is fetched again if it is lost.
            return;
        }
        // Not only what is being changed now belongs to the next period, but also what is under way.
        let before = {
            let mut origin = self.origin.lock();
            origin.period += 1;
            origin.period - 1
        };
        if let Err(error) = self.store.sync() {
            log::warn!("cannot make the cache durable: {error}");
            self.changed_files.store(true, Ordering::Release);
            return;
        }
        self.index.flush();
        let mut origin = self.origin.lock();
        origin.safe = before;
        if let Err(error) = origin.write(&self.origin_path) {
            log::warn!("{error}");
        }
    }
}

/// Keeps the house while the cache lives.
pub(crate) async fn keep_house(core: Weak<Core>) {
    let mut pauses = 0;
    let Some(first) = core.upgrade() else { return };
    // Held alone: who waits here must not keep a cache whose session has ended.
    let reclaim = first.reclaim.clone();
    // For the first writes.
    let _ = tokio::task::spawn_blocking(move || first.make_room()).await;
    loop {
        let _ = tokio::time::timeout(PAUSE, reclaim.notified()).await;
        let Some(core) = core.upgrade() else { return };
        pauses += 1;
        let sync = pauses % STORE_SYNC_PAUSES == 0;
        let work = tokio::task::spawn_blocking(move || {
            if let Err(error) = core.reclaim(false).and_then(|_| core.make_slack()) {
                log::warn!("the journal: {error}");
            }
            core.room.notify_waiters();
            core.make_room();
            if sync {
                core.store.fit();
                core.sync_store();
            }
        });
        let _ = work.await;
    }
}
