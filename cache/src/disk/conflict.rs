//! Conflicts: a file that others changed on the server under unsent data. Nothing of it is sent
//! until somebody says which version is to stay; until then the mount shows ours.

use std::str::FromStr;
use std::sync::Arc;

use bytes::BytesMut;
use gridvfs_vfs::{CreateHow, Error, FileHandle, Result, SetAttr, Status, Vfs, WccAttr};

use super::node::{ConflictKind, Node, State};
use super::{Core, DiskCache, attributes};
use crate::counters::add;
use crate::journal::Record;

/// In what pieces a version is copied, in bytes.
const COPY_BYTES: u64 = 1 << 20;
/// How many names beside the file are tried.
const NAMES_MAX: u32 = 1000;

/// A file whose write-back has stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The file.
    pub handle: FileHandle,
    /// Its path in the mount, as last known, as the bytes that it is.
    pub path: Option<Vec<u8>>,
    /// What happened on the server.
    pub kind: ConflictKind,
    /// How much of ours is unsent.
    pub unsent_bytes: u64,
}

/// What is to become of a conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Our changes go over the server's version; a removed file is made again.
    KeepMine,
    /// Our changes are dropped.
    KeepTheirs,
    /// Our version is saved under another name in the same directory; the server's stays.
    SaveMine,
}

impl FromStr for Resolution {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "keep-mine" => Ok(Self::KeepMine),
            "keep-theirs" => Ok(Self::KeepTheirs),
            "save-mine" => Ok(Self::SaveMine),
            _ => Err(format!("{text:?} is none of keep-mine, keep-theirs, save-mine")),
        }
    }
}

impl ConflictKind {
    /// What those are told who wait for the file's write-back.
    pub fn error(self) -> Error {
        Status::STALE.into()
    }
}

impl std::fmt::Display for ConflictKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Changed => "changed on the server",
            Self::Removed => "removed on the server",
            Self::Exists => "replaced on the server",
            Self::Refused => "refused by the server",
        })
    }
}

impl Core {
    /// Stops the write-back of a file. To be called with the node's lock held.
    pub fn find_conflict(&self, node: &Node, state: &mut State, kind: ConflictKind) {
        if state.conflict.is_some() || state.dirty.is_empty() {
            return;
        }
        state.conflict = Some(kind);
        if node.size().is_none() {
            // The mount shows ours.
            node.set_size(Some(state.own_size()));
        }
        add(&self.counters.conflicts, 1);
        self.note(state, Record::Conflict { handle: node.handle, kind: kind.code() });
        log::error!(
            "conflict: {} was {kind} under {} bytes of unsent data; its write-back has stopped, \
             both versions are kept (gridvfs conflicts lists and resolves it)",
            self.path_text(&node.handle),
            state.dirty.bytes(),
        );
        node.progress.notify_waiters();
    }

    fn unsent_of(&self, node: &Node) -> Option<(ConflictKind, u64)> {
        let state = node.state.lock();
        state.conflict.map(|kind| (kind, state.dirty.bytes()))
    }

    fn drop_mine(&self, node: &Node) -> Result<()> {
        let mut state = node.state.lock();
        self.log(&mut state, Record::Removed { handle: node.handle })?;
        let freed = state.dirty.clear();
        self.drop_unsent(node, &state, freed);
        state.conflict = None;
        state.failing = None;
        state.times = Default::default();
        state.settled = true;
        self.renew(node, &mut state, None);
        node.set_size(None);
        self.index.update(&node.handle, |known| known.attr = None);
        Ok(())
    }

    async fn resolve(&self, node: &Arc<Node>, how: Resolution) -> Result<Option<Vec<u8>>> {
        let Some((kind, _)) = self.unsent_of(node) else { return Err(Status::NOENT.into()) };
        let mut saved = None;
        match (how, kind) {
            (Resolution::KeepMine, ConflictKind::Changed | ConflictKind::Refused) => {
                let attr = self.buffer.getattr(&self.own, &node.handle).await?;
                let base = WccAttr::from(&attr);
                let mut state = node.state.lock();
                self.log(&mut state, Record::Resolved { handle: node.handle })?;
                state.base = Some(base);
                state.settled = true;
                state.conflict = None;
                state.retry_at = None;
                // Clean blocks of ours that theirs differ from are not part of our changes.
                self.renew(node, &mut state, Some(base));
                self.log(&mut state, attributes::base_record(node, &base))?;
                state.flush_wanted = state.newest;
                state.commit_wanted = state.newest;
            }
            (Resolution::KeepMine, ConflictKind::Removed | ConflictKind::Exists) => {
                saved = Some(self.save_mine(node, kind, false).await?);
                self.drop_mine(node)?;
            }
            (Resolution::SaveMine, _) => {
                saved = Some(self.save_mine(node, kind, true).await?);
                self.drop_mine(node)?;
            }
            (Resolution::KeepTheirs, _) => self.drop_mine(node)?,
        }
        node.wake.notify_one();
        node.progress.notify_waiters();
        Ok(saved)
    }

    /// Copies our version to a new file in the same directory: what is unsent, what the cache has
    /// of the version that it was written over, and for the rest what the server has now. Returns
    /// the new file's path.
    async fn save_mine(
        &self,
        node: &Arc<Node>,
        kind: ConflictKind,
        beside: bool,
    ) -> Result<Vec<u8>> {
        let place = self.index.name_of(&node.handle);
        let (dir, name) = place.unwrap_or_else(|| (self.root, b"unnamed".as_slice().into()));
        if !beside {
            // What is known of the name is what it was.
            self.index.forget_name(&dir, &name);
        }
        let stamp = super::now().seconds;
        let mode = self.index.node(&node.handle).and_then(|known| known.attr).map(|attr| attr.mode);
        let attr = SetAttr { mode: mode.or(Some(0o600)), ..SetAttr::default() };
        let mut number = 0;
        let (target, path) = loop {
            let mut name = name.to_vec();
            if beside {
                name.extend_from_slice(format!(".conflict-{stamp}").as_bytes());
                if number > 0 {
                    name.extend_from_slice(format!("-{number}").as_bytes());
                }
            }
            let made = self.buffer.create(&self.own, &dir, &name, &CreateHow::Guarded(attr)).await;
            match made {
                Ok(made) => {
                    let handle = match made.handle {
                        Some(handle) => handle,
                        None => self.buffer.lookup(&self.own, &dir, &name).await?.handle,
                    };
                    self.index.set_name(&dir, &name, Some(handle));
                    self.index.dir_changed(&dir);
                    self.index.update(&dir, |known| known.attr = None);
                    break (handle, self.path_below(&dir, &name));
                }
                Err(Error::Status(Status::EXIST)) if beside && number < NAMES_MAX => number += 1,
                Err(error) => return Err(error),
            }
        };
        let size = node.size().unwrap_or_else(|| node.state.lock().own_size());
        let mut at = 0;
        while at < size {
            let length = COPY_BYTES.min(size - at) as usize;
            let mut data = BytesMut::zeroed(length);
            self.fill_mine(node, kind, at, &mut data).await?;
            self.write_below(&self.own, &target, at, data.freeze()).await?;
            at += length as u64;
        }
        self.buffer.commit(&self.own, &target, 0, 0).await?;
        Ok(path)
    }

    /// The path of a name in a directory; the name alone if nobody knows where the directory is.
    fn path_below(&self, dir: &FileHandle, name: &[u8]) -> Vec<u8> {
        let mut path = self.index.path_of(dir, &self.root).unwrap_or_default();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }
}

impl DiskCache {
    /// Returns the files whose write-back has stopped.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let core = &self.core;
        let conflict = |node: Arc<Node>| {
            let (kind, unsent_bytes) = core.unsent_of(&node)?;
            let path = self.path_of(&node.handle);
            Some(Conflict { handle: node.handle, path, kind, unsent_bytes })
        };
        let mut all: Vec<_> = core.all_nodes().into_iter().filter_map(conflict).collect();
        all.extend(core.name_conflicts());
        all.sort_by(|a, b| a.path.cmp(&b.path));
        all
    }

    /// Resolves the conflict of a file. Returns the path under which a version was saved, if one
    /// was. [`Status::NOENT`] if the file is in no conflict.
    pub async fn resolve(&self, file: &FileHandle, how: Resolution) -> Result<Option<Vec<u8>>> {
        if let Some(saved) = self.core.resolve_name(file, how).await? {
            return Ok(saved);
        }
        let node = self.core.known(file).ok_or(Error::Status(Status::NOENT))?;
        self.core.resolve(&node, how).await
    }
}
