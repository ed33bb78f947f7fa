//! Delivery: changes of names that were acknowledged are made on the server, in the background, many
//! at the same time.
//!
//! Before the server is asked for a change, the journal has on disk the change, that it may have been
//! asked for, and that those before it are done. So the next process, whatever has become of this
//! one, knows what may have happened, and looks before it does something twice: a new file is
//! recognised by its times, a name by the file that it leads to, a change of a file by what the file
//! was like before.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use gridvfs_vfs::{
    Attr, Caller, CreateHow, Error, FileHandle, FileKind, Result, SetAttr, SetTime, Status, Time,
    WccAttr,
};

use super::Core;
use super::defer::PENDING_MAX;
use super::node::ConflictKind;
use super::pending::Pending;
use super::send::is_gone;
use crate::counters::add;
use crate::crash;
use crate::journal::{At, NameChange, NameOp, NameRecord, Record, STARTED_MAX, Set};

/// How many changes are under way at most.
const SENDING_MAX: usize = 64;
/// The pauses between attempts: doubled from the first to the second.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// How often the task looks whether its cache is still there.
const PAUSE: Duration = Duration::from_secs(5);

/// Why a change was not made.
enum Failure {
    /// It is tried again.
    Error(Error),
    /// It is not.
    Conflict(ConflictKind),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        use Status as S;
        match &error {
            Error::Status(S::STALE | S::NOENT | S::BADHANDLE) => {
                Self::Conflict(ConflictKind::Removed)
            }
            Error::Status(S::EXIST) => Self::Conflict(ConflictKind::Exists),
            Error::Status(S::JUKEBOX | S::NOSPC | S::DQUOT | S::IO | S::SERVERFAULT) => {
                Self::Error(error)
            }
            Error::Status(_) => Self::Conflict(ConflictKind::Refused),
            _ => Self::Error(error),
        }
    }
}

/// What a change has brought about.
enum Made {
    File(FileHandle, Option<Attr>),
    Change,
}

/// Sends changes while the cache lives.
pub(crate) async fn send_names(core: Weak<Core>) {
    let Some(names) = core.upgrade().map(|core| core.names.clone()) else { return };
    loop {
        let next = match core.upgrade() {
            Some(core) => core.send_ready().await,
            None => return,
        };
        let pause = Instant::now() + PAUSE;
        let until = next.map_or(pause, |next| next.min(pause));
        let _ = tokio::time::timeout_at(until.into(), names.wake.notified()).await;
    }
}

impl Core {
    /// Begins to make what may be made now. Returns when more is due.
    async fn send_ready(self: &Arc<Self>) -> Option<Instant> {
        let (numbers, next) = {
            let mut queue = self.names.queue.lock();
            let hurry = self.hurry.load(Ordering::Acquire) || queue.ops.len() > PENDING_MAX / 2;
            let held = self.is_held();
            let delay = self.settings.read().writeback_delay;
            let leisurely = self.defers();
            let room = SENDING_MAX.saturating_sub(queue.sending).min(STARTED_MAX);
            let now = Instant::now();
            let due = |pending: &Pending| match (hurry, held) {
                (false, true) => None,
                (true, _) => Some(now),
                (false, false) if !leisurely => Some(now),
                (false, false) => Some(pending.at + delay),
            };
            let (numbers, next) = queue.take_ready(room, now, due);
            if numbers.is_empty() {
                return next;
            }
            if self.log_name(NameRecord::Started(numbers.clone())).is_err() {
                queue.not_sending(&numbers);
                return Some(now + RETRY_MAX);
            }
            queue.started(&numbers);
            (numbers, next)
        };
        if self.sync_journal().await.is_err() {
            // Nothing of it may happen without being on disk first.
            self.names.queue.lock().not_sending(&numbers);
            return Some(Instant::now() + RETRY_MAX);
        }
        crash::point(crash::Point::BEFORE_NAME_SENT);
        for number in numbers {
            let core = self.clone();
            self.runtime.spawn(async move { core.deliver(number).await });
        }
        next
    }

    async fn deliver(self: Arc<Self>, number: u64) {
        let Some(pending) = self.names.queue.lock().ops.get(&number).cloned() else { return };
        let caller = pending.caller.clone().unwrap_or_else(|| {
            let NameOp { uid, gid, .. } = pending.op;
            let groups = if uid == self.own.uid { self.own.groups.clone() } else { Vec::new() };
            Arc::new(Caller { uid, gid, groups })
        });
        let made = self.make(number, &pending, &caller).await;
        crash::point(crash::Point::AFTER_NAME_SENT);
        let noted = match made {
            Ok(made) => self.note_made(number, &pending.op, made).map_err(Failure::Error),
            Err(failure) => Err(failure),
        };
        match noted {
            Ok(()) => {
                crash::point(crash::Point::AFTER_NAME_DONE);
                add(&self.counters.sent_names, 1);
            }
            Err(failure) => self.not_made(number, failure),
        }
        self.names.progress.notify_waiters();
        self.names.wake.notify_one();
    }

    fn server_handle(&self, file: &FileHandle) -> Result<FileHandle> {
        self.names.queue.lock().server(file).ok_or(Error::Status(Status::STALE))
    }

    async fn make(
        self: &Arc<Self>,
        number: u64,
        pending: &Pending,
        caller: &Caller,
    ) -> Result<Made, Failure> {
        match &pending.op.change {
            NameChange::Create { at, attr, .. } => {
                self.make_file(caller, at, attr, pending.doubt).await
            }
            NameChange::Remove { at, file, .. } => {
                self.make_removal(caller, at, file).await?;
                Ok(Made::Change)
            }
            NameChange::Rename { from, to, file, replaced } => {
                let replaced = replaced.map(|(file, _)| file);
                self.send_data_first(number, file).await?;
                self.make_rename(caller, (from, to), file, replaced, pending.forced).await?;
                Ok(Made::Change)
            }
            NameChange::Set { file, set, before } => {
                let before = before.filter(|_| !pending.forced);
                self.make_set(caller, file, set, before, pending.doubt).await?;
                Ok(Made::Change)
            }
        }
    }

    /// GUARDED: a file that others have made meanwhile is not touched, and one that we have made
    /// ourselves, without having heard of it, is recognised.
    async fn make_file(
        &self,
        caller: &Caller,
        at: &At,
        attr: &Attr,
        doubt: bool,
    ) -> Result<Made, Failure> {
        let client = &self.names.client;
        let how = CreateHow::Guarded(SetAttr {
            mode: Some(attr.mode),
            atime: SetTime::To(attr.atime),
            mtime: SetTime::To(attr.mtime),
            ..SetAttr::default()
        });
        let found = match client.create(caller, &at.dir, &at.name, &how).await {
            Ok(created) => match (created.handle, created.attr) {
                (Some(handle), attr) => (handle, attr),
                (None, _) => self.ask_for(caller, at).await?,
            },
            Err(Error::Status(Status::EXIST)) => {
                let (handle, found) = self.ask_for(caller, at).await?;
                let new =
                    |it: &&Attr| it.kind == FileKind::Regular && it.size == 0 && it.links == 1;
                match found.as_ref().filter(new) {
                    Some(it) if (it.atime, it.mtime) == (attr.atime, attr.mtime) => (handle, found),
                    // A server that died in the middle has made it, and not set its times. Should it
                    // be others', nothing is in it.
                    Some(it) if doubt && it.atime == it.mtime => {
                        self.make_set(caller, &handle, &Set::of_new(attr), None, doubt).await?;
                        (handle, None)
                    }
                    _ => return Err(Failure::Conflict(ConflictKind::Exists)),
                }
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Made::File(found.0, found.1))
    }

    /// LOOKUP with attributes.
    async fn ask_for(&self, caller: &Caller, at: &At) -> Result<(FileHandle, Option<Attr>)> {
        let client = &self.names.client;
        let entry = client.lookup(caller, &at.dir, &at.name).await?;
        let attr = match entry.attr {
            Some(attr) => attr,
            None => client.getattr(caller, &entry.handle).await?,
        };
        Ok((entry.handle, Some(attr)))
    }

    /// The file that a name leads to on the server.
    async fn found(&self, caller: &Caller, at: &At) -> Result<Option<FileHandle>> {
        match self.names.client.lookup(caller, &at.dir, &at.name).await {
            Ok(entry) => Ok(Some(entry.handle)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Only the very file that was removed here is: a name that leads to another by now is others'.
    async fn make_removal(
        &self,
        caller: &Caller,
        at: &At,
        file: &FileHandle,
    ) -> Result<(), Failure> {
        let server = self.server_handle(file).ok();
        match self.found(caller, at).await? {
            None => return Ok(()),
            Some(found) if Some(found) == server => {}
            Some(_) => {
                log::warn!(
                    "{}: others have put another file in the place of one that was removed here; \
                     it stays",
                    String::from_utf8_lossy(&at.name)
                );
                self.index.forget_name(&at.dir, &at.name);
                return Ok(());
            }
        }
        match self.names.client.remove(caller, &at.dir, &at.name).await {
            Err(error) if !is_gone(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// What a name leads to is only replaced when what replaces it is there as a whole.
    async fn send_data_first(
        self: &Arc<Self>,
        number: u64,
        file: &FileHandle,
    ) -> Result<(), Failure> {
        let Some(node) = self.known(file).filter(|node| node.is_local()) else { return Ok(()) };
        let replaces = {
            let queue = self.names.queue.lock();
            queue.ops.get(&number).is_some_and(|pending| {
                matches!(&pending.op.change, NameChange::Rename { replaced: Some(_), .. })
            })
        };
        if !replaces {
            return Ok(());
        }
        self.send(&node, true).await.map_err(Failure::Error)
    }

    async fn make_rename(
        &self,
        caller: &Caller,
        (from, to): (&At, &At),
        file: &FileHandle,
        replaced: Option<FileHandle>,
        forced: bool,
    ) -> Result<(), Failure> {
        let server = self.server_handle(file)?;
        let (source, target) = tokio::join!(self.found(caller, from), self.found(caller, to));
        let (source, target) = (source?, target?);
        if target == Some(server) && source != Some(server) {
            return Ok(());
        }
        if source != Some(server) {
            return Err(Failure::Conflict(ConflictKind::Removed));
        }
        let expected = replaced.and_then(|file| self.server_handle(&file).ok());
        if !forced && target.is_some() && target != expected {
            return Err(Failure::Conflict(ConflictKind::Exists));
        }
        let client = &self.names.client;
        client.rename(caller, &from.dir, &from.name, &to.dir, &to.name, false).await?;
        Ok(())
    }

    async fn make_set(
        &self,
        caller: &Caller,
        file: &FileHandle,
        set: &Set,
        before: Option<(u64, Time)>,
        doubt: bool,
    ) -> Result<(), Failure> {
        let server = self.server_handle(file)?;
        let client = &self.names.client;
        if let Some(before) = before {
            let attr = client.getattr(caller, &server).await?;
            let now = (attr.size, attr.mtime);
            let after = (set.size.unwrap_or(before.0), set.mtime.unwrap_or(before.1));
            // A server that died in the middle has cut it, and not set its times.
            let half = doubt && attr.size != before.0 && Some(attr.size) == set.size;
            if now != before && now != after && !half {
                return Err(Failure::Conflict(ConflictKind::Changed));
            }
        }
        let time = |time: Option<Time>| time.map_or(SetTime::Keep, SetTime::To);
        let changes = SetAttr {
            mode: set.mode,
            size: set.size,
            atime: time(set.atime),
            mtime: time(set.mtime),
            ..SetAttr::default()
        };
        client.setattr(caller, &server, &changes, None).await?;
        Ok(())
    }

    /// The server has made a change: the journal says so, and then memory.
    fn note_made(&self, number: u64, op: &NameOp, made: Made) -> Result<()> {
        let mut gone = None;
        if let Made::File(server, attr) = made {
            self.note_file(number, op.file(), server, attr)?;
        } else {
            let mut queue = self.names.queue.lock();
            let record = self.log_name(NameRecord::Done(number))?;
            self.names.note_made(*op.file(), record);
            let bound = |queue: &super::pending::Queue, file: &FileHandle| {
                queue.server(file).is_some_and(|server| server != *file)
            };
            let files = [Some(*op.file()), op.replaced()];
            let before: Vec<_> =
                files.into_iter().flatten().filter(|file| bound(&queue, file)).collect();
            queue.done(number);
            gone = before.into_iter().find(|file| !bound(&queue, file));
            // Answers that were on their way may be of before it, and are not corrected by it any more.
            let clock = self.tick();
            for file in files.into_iter().flatten().filter(|file| !op.ends(file)) {
                self.index.update(&file, |known| known.changed_at = clock);
            }
        }
        if let Some(file) = gone {
            self.index.set_alias(&file, None);
        }
        // What was listed meanwhile is of before.
        op.dirs().iter().for_each(|dir| self.index.dir_changed(dir));
        Ok(())
    }

    pub fn note_file(
        &self,
        number: u64,
        file: &FileHandle,
        server: FileHandle,
        attr: Option<Attr>,
    ) -> Result<()> {
        let node = self.known(file);
        let mut state = node.as_ref().map(|node| node.state.lock());
        let record = Record::Bound { handle: *file, server, made_by: number };
        {
            let mut queue = self.names.queue.lock();
            let wanted = queue.created(file);
            let written = self.journal.append(&record).map_err(|error| {
                log::error!("cannot write to the journal: {error}");
                Error::Status(Status::from_errno(error.raw_os_error().unwrap_or(libc::EIO)))
            })?;
            self.names.note_made(*file, written);
            queue.bind(*file, server);
            queue.done(number);
            let moved = attr.zip(wanted).is_some_and(|(attr, wanted)| attr.mtime != wanted.mtime);
            if moved && queue.of_file(file).is_empty() {
                log::warn!("the server does not keep times as it is told: names are not deferred");
                self.names.exact.store(false, Ordering::Release);
                let base = attr.as_ref().map(WccAttr::from);
                if let Some(state) = &mut state {
                    state.base = base;
                }
                self.index.update(file, |known| known.base = base);
            }
        }
        if let Some(state) = &mut state {
            state.said.apply(&record);
        }
        drop(state);
        self.index.set_alias(file, Some(&server));
        if let Some(attr) = attr {
            // Whose it is the server knows best.
            self.index.update(file, |known| {
                if let Some(known) = &mut known.attr {
                    (known.uid, known.gid, known.fsid) = (attr.uid, attr.gid, attr.fsid);
                }
            });
        }
        Ok(())
    }

    fn not_made(&self, number: u64, failure: Failure) {
        let mut queue = self.names.queue.lock();
        queue.not_sending(&[number]);
        let Some(pending) = queue.ops.get_mut(&number) else { return };
        let file = *pending.op.file();
        match failure {
            Failure::Error(error) => {
                let pause = RETRY_MIN.saturating_mul(1 << pending.failures.min(10)).min(RETRY_MAX);
                let known = pending.failing.as_ref().map(Error::to_string);
                let new = known != Some(error.to_string());
                pending.failures += 1;
                pending.doubt |= !matches!(error, Error::Status(_));
                pending.retry_at = Some(Instant::now() + pause);
                pending.failing = Some(error.clone());
                drop(queue);
                if new {
                    let path = self.path_text(&file);
                    log::warn!("cannot change the name of {path} on the server yet: {error}");
                }
            }
            Failure::Conflict(kind) => {
                pending.conflict = Some(kind);
                drop(queue);
                add(&self.counters.conflicts, 1);
                log::error!(
                    "conflict: {} {kind}: what was done here to its name or attributes is not done \
                     there (gridvfs conflicts lists and resolves it)",
                    self.path_text(&file),
                );
            }
        }
    }

    /// Appends all that is pending to the journal, in the place of all that was said before.
    pub fn copy_names(&self) -> std::io::Result<()> {
        let queue = self.names.queue.lock();
        for record in queue.copy() {
            self.journal.append(&Record::Name(record))?;
        }
        crash::point(crash::Point::AFTER_NAMES_COPIED);
        Ok(())
    }
}
