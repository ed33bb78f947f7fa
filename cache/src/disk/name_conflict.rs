//! Conflicts of names: a change that was acknowledged and that the server does not make, because
//! others have made one meanwhile, or because it refuses. What hangs on it waits until somebody says
//! what is to become of it; the mount shows ours.

use std::sync::Arc;

use gridvfs_vfs::{Error, FileHandle, FileKind, Result, SetAttr, SetTime, Status};

use super::Core;
use super::conflict::{Conflict, Resolution};
use super::node::ConflictKind;
use super::pending::Pending;
use crate::journal::{At, NAME_BYTES_MAX, NameChange};

impl Core {
    /// The changes that stopped, by file.
    pub fn name_conflicts(&self) -> Vec<Conflict> {
        let found: Vec<_> = {
            let queue = self.names.queue.lock();
            let stopped = |pending: &Pending| Some((*pending.op.file(), pending.conflict?));
            queue.ops.values().filter_map(stopped).collect()
        };
        let conflict = |(handle, kind): (FileHandle, ConflictKind)| {
            let unsent = |node: Arc<super::node::Node>| node.state.lock().dirty.bytes();
            let unsent_bytes = self.known(&handle).map_or(0, unsent);
            let path = self.index.path_of(&handle, &self.root);
            Conflict { handle, path, kind, unsent_bytes }
        };
        found.into_iter().map(conflict).collect()
    }

    /// Says whether a change has stopped that a file's data has to wait for: of the file itself, or of
    /// one that had its name before.
    pub fn waits_for_conflict(&self, file: &FileHandle) -> bool {
        let queue = self.names.queue.lock();
        let all = queue.closure(queue.of_file(file));
        all.iter().any(|number| queue.ops.get(number).is_some_and(|it| it.conflict.is_some()))
    }

    fn stopped(&self, file: &FileHandle) -> Option<(u64, Pending)> {
        let queue = self.names.queue.lock();
        let mut all = queue.ops.iter();
        let found =
            all.find(|(_, pending)| pending.conflict.is_some() && pending.op.file() == file)?;
        Some((*found.0, found.1.clone()))
    }

    /// Resolves what has stopped of a file; `None` if nothing has. Returns the path under which ours
    /// was saved, if it was.
    pub async fn resolve_name(
        self: &Arc<Self>,
        file: &FileHandle,
        how: Resolution,
    ) -> Result<Option<Option<Vec<u8>>>> {
        let Some((number, pending)) = self.stopped(file) else { return Ok(None) };
        let saved = match (how, &pending.op.change) {
            (Resolution::KeepTheirs, _) => {
                self.drop_change(number, &pending)?;
                None
            }
            (Resolution::KeepMine, NameChange::Create { at, attr, .. })
                if pending.conflict == Some(ConflictKind::Exists) =>
            {
                self.take_over(number, file, at, attr).await?;
                None
            }
            (Resolution::SaveMine, NameChange::Create { at, .. }) => {
                Some(self.save_beside(number, file, at)?)
            }
            (Resolution::SaveMine, NameChange::Rename { to, .. }) => {
                Some(self.save_beside(number, file, to)?)
            }
            (Resolution::KeepMine, _) => {
                self.change_pending(number, |pending| pending.forced = true)?;
                None
            }
            (Resolution::SaveMine, _) => return Err(Status::INVAL.into()),
        };
        self.names.progress.notify_waiters();
        self.names.wake.notify_one();
        if let Some(node) = self.known(file) {
            node.state.lock().retry_at = None;
            node.wake.notify_one();
        }
        Ok(Some(saved))
    }

    /// Lets a change go on, changed; the journal has it as it is then.
    fn change_pending(&self, number: u64, change: impl FnOnce(&mut Pending)) -> Result<()> {
        {
            let mut queue = self.names.queue.lock();
            queue.replace(number, |pending| {
                pending.conflict = None;
                pending.failing = None;
                pending.urgent = true;
                change(pending);
            });
        }
        self.copy_names().map_err(|error| {
            log::error!("cannot write to the journal: {error}");
            Error::Status(Status::from_errno(error.raw_os_error().unwrap_or(libc::EIO)))
        })
    }

    /// What the server has stays. A new file of ours is gone with all that was to be done with it.
    fn drop_change(&self, number: u64, pending: &Pending) -> Result<()> {
        let file = *pending.op.file();
        let new = matches!(pending.op.change, NameChange::Create { .. });
        let names: Vec<At> = {
            let mut queue = self.names.queue.lock();
            let dropped = match new {
                true => queue.all_of(&file),
                false => vec![number],
            };
            let mut names = Vec::new();
            for number in dropped {
                self.log_name(crate::journal::NameRecord::Done(number))?;
                names.extend(queue.done(number).into_iter().flat_map(|it| it.op.names()));
            }
            names
        };
        if new {
            self.discard(&file);
            self.index.forget_node(&file);
        } else {
            self.index.update(&file, |known| known.attr = None);
        }
        for At { dir, name } in names {
            self.index.dir_changed(&dir);
            self.index.forget_name(&dir, &name);
        }
        Ok(())
    }

    /// Their file of that name becomes ours.
    async fn take_over(
        &self,
        number: u64,
        file: &FileHandle,
        at: &At,
        attr: &gridvfs_vfs::Attr,
    ) -> Result<()> {
        let client = &self.names.client;
        let entry = client.lookup(&self.own, &at.dir, &at.name).await?;
        let theirs = match entry.attr {
            Some(theirs) => theirs,
            None => client.getattr(&self.own, &entry.handle).await?,
        };
        if theirs.kind != FileKind::Regular {
            return Err(Status::EXIST.into());
        }
        let changes = SetAttr {
            mode: Some(attr.mode),
            size: Some(0),
            atime: SetTime::To(attr.atime),
            mtime: SetTime::To(attr.mtime),
            ..SetAttr::default()
        };
        client.setattr(&self.own, &entry.handle, &changes, None).await?;
        self.note_file(number, file, entry.handle, None)
    }

    /// Ours gets a name beside theirs.
    fn save_beside(&self, number: u64, file: &FileHandle, at: &At) -> Result<Vec<u8>> {
        let stamp = format!(".conflict-{}", super::now().seconds);
        let mut name = at.name.to_vec();
        name.truncate(NAME_BYTES_MAX - stamp.len());
        name.extend_from_slice(stamp.as_bytes());
        let saved = At { dir: at.dir, name: name.into() };
        self.change_pending(number, |pending| match &mut pending.op.change {
            NameChange::Create { at, .. } => *at = saved.clone(),
            NameChange::Rename { to, replaced, .. } => {
                *to = saved.clone();
                *replaced = None;
            }
            _ => {}
        })?;
        self.index.forget_name(&at.dir, &at.name);
        self.index.created(&saved.dir, &saved.name, file);
        Ok(self.index.path_of(file, &self.root).unwrap_or_else(|| saved.name.to_vec()))
    }
}
