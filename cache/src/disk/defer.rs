//! Which changes of names are acknowledged here and made on the server later: those that this session
//! alone can decide, because it owns its files and knows the name, the file and the caller's rights.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use gridvfs_vfs::{
    Access, Attr, Caller, CreateHow, Created, DeviceNumber, FileHandle, FileKind, Result, SetAttr,
    SetTime, Status, Time, Wcc, WccAttr,
};

use super::attributes::{rights, same_data};
use super::node::Times;
use super::options::{Consistency, Policy};
use super::pending::{Queue, fileid_of, is_ours, new_handle};
use super::{Core, now};
use crate::counters::add;
use crate::crash;
use crate::index::Name;
use crate::journal::{At, NAME_BYTES_MAX, NameChange, NameOp, NameRecord, Record, Set};
use crate::key::random_number;

/// How many changes are pending at most; whoever makes more waits until some are made. A record is
/// about 400 bytes here and in the journal.
pub(crate) const PENDING_MAX: usize = 8192;
/// How many files are known by handles of ours at most, about 300 bytes each: beyond that the server
/// is asked for each new file.
const BOUND_MAX: usize = 200_000;
/// What a caller needs of a directory.
const CHANGING: u32 = Access::LOOKUP | Access::MODIFY | Access::EXTEND | Access::DELETE;
/// Bits that servers take away as they see fit.
const SET_ID: u32 = 0o6000;
const STICKY: u32 = 0o1000;
/// The mode of a new file where none is given.
const MODE: u32 = 0o644;

impl Core {
    /// Says whether changes of names are deferred at all.
    pub fn defers(&self) -> bool {
        let settings = self.settings.read();
        settings.policy == Policy::WriteBack
            && settings.consistency == Consistency::Dedicated
            && !self.shared
            && self.names.exact.load(Ordering::Acquire)
    }

    /// What is known of a name, pending changes included.
    fn look(&self, at: &At) -> Name {
        match self.names.queue.lock().child(at) {
            Some(Some(file)) => Name::Here(file),
            Some(None) => Name::Absent,
            None => self.index.lookup(&at.dir, &at.name),
        }
    }

    /// The file that a name leads to, as far as is known.
    pub fn known_child(&self, at: &At) -> Option<FileHandle> {
        match self.look(at) {
            Name::Here(file) => Some(file),
            Name::Absent | Name::Unknown => None,
        }
    }

    /// What the server says of a file, or will say when what is pending is made.
    fn attr_below(&self, file: &FileHandle) -> Option<Attr> {
        let created = self.names.queue.lock().created(file);
        created.or_else(|| self.index.node(file)?.attr)
    }

    /// The attributes of a directory in which the caller may make and remove names beyond doubt. Of
    /// others than its owner, and of root, whom servers may take for somebody else, the server is asked
    /// once.
    async fn changeable(&self, caller: &Caller, dir: &FileHandle) -> Option<Attr> {
        let attr = self.index.node(dir)?.attr.filter(|attr| attr.kind == FileKind::Directory)?;
        if caller.uid != 0 && rights(&attr, caller, CHANGING).is_some() {
            return Some(attr);
        }
        if attr.mode & STICKY != 0 && attr.uid != caller.uid {
            return None;
        }
        let granted = match self.index.granted(dir, caller, CHANGING) {
            Some(granted) => granted,
            None => {
                let answer = self.names.client.access(caller, dir, Access(CHANGING)).await.ok()?;
                self.index.set_granted(dir, caller, CHANGING, answer.granted.0);
                answer.granted.0
            }
        };
        (granted & CHANGING == CHANGING).then_some(attr)
    }

    /// Says whether a file of that name is written back later.
    fn is_lazy_at(&self, at: &At) -> bool {
        let settings = self.settings();
        if settings.rules.is_empty() {
            return true;
        }
        let Some(mut path) = self.index.path_of(&at.dir, &self.root) else { return false };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&at.name);
        settings.treatment(Some(&path)).is_lazy()
    }

    /// Waits until there is room for another change. Returns false if none will come about soon.
    async fn room_for_name(&self) -> bool {
        loop {
            let mut progress = std::pin::pin!(self.names.progress.notified());
            progress.as_mut().enable();
            {
                let queue = self.names.queue.lock();
                if queue.ops.len() < PENDING_MAX {
                    return true;
                }
                let stuck = |pending: &super::pending::Pending| {
                    pending.conflict.is_some() || pending.failing.is_some()
                };
                if self.is_held() || queue.ops.values().any(stuck) {
                    return false;
                }
            }
            self.names.wake.notify_one();
            progress.await;
        }
    }

    /// Acknowledges a change: it is in the journal.
    fn post(&self, queue: &mut Queue, caller: &Caller, change: NameChange) -> Result<()> {
        let op = NameOp { uid: caller.uid, gid: caller.gid, change };
        crash::point(crash::Point::BEFORE_NAME);
        // The index, which knows the server's handle, may be lost.
        for file in [Some(*op.file()), op.replaced()].into_iter().flatten() {
            if let Some(server) = queue.server(&file).filter(|_| is_ours(&file)) {
                self.append_or_make_room(&Record::Bound { handle: file, server, made_by: 0 })?;
            }
        }
        let number = self.log_name(NameRecord::Op(Box::new(op.clone())))?;
        crash::point(crash::Point::AFTER_NAME);
        queue.add(number, op, Some(Arc::new(caller.clone())), Instant::now());
        add(&self.counters.deferred_names, 1);
        Ok(())
    }

    /// Writes a record about names. To be called with the queue locked: memory and log agree on the
    /// order.
    pub fn log_name(&self, record: NameRecord) -> Result<u64> {
        let number = self.append_or_make_room(&Record::Name(record))?;
        self.names.last_record.fetch_max(number, Ordering::AcqRel);
        Ok(number)
    }

    fn append_or_make_room(&self, record: &Record) -> Result<u64> {
        let logged = self.journal.append(record).or_else(|_| {
            self.make_room_for_record();
            self.journal.append(record)
        });
        logged.map_err(|error| {
            log::error!("cannot write to the journal: {error}");
            Status::from_errno(error.raw_os_error().unwrap_or(libc::EIO)).into()
        })
    }

    /// CREATE, if it can be decided here.
    pub async fn defer_create(
        &self,
        caller: &Caller,
        at: &At,
        how: &CreateHow,
    ) -> Result<Option<Created>> {
        let (CreateHow::Unchecked(wanted) | CreateHow::Guarded(wanted)) = how else {
            return Ok(None);
        };
        if !self.defers() || !is_usual(at) || !self.is_lazy_at(at) {
            return Ok(None);
        }
        let plain = wanted.size.unwrap_or(0) == 0
            && wanted.uid.is_none()
            && wanted.gid.is_none()
            && wanted.mode.unwrap_or(0) & SET_ID == 0;
        // Whose the file will be is certain where the directory is the caller's.
        let dir = self.changeable(caller, &at.dir).await.filter(|dir| dir.uid == caller.uid);
        let (Some(dir), true) = (dir, plain) else { return Ok(None) };
        match (self.look(at), how) {
            (Name::Absent, _) => {}
            (Name::Here(_), CreateHow::Guarded(_)) => return Err(Status::EXIST.into()),
            _ => return Ok(None),
        }
        let Some(attr) = new_attr(caller, &dir, wanted) else { return Ok(None) };
        if !self.room_for_name().await {
            return Ok(None);
        }
        let mut queue = self.names.queue.lock();
        if queue.bound_count() + queue.ops.len() >= BOUND_MAX
            || queue.child(at).is_some_and(|child| child.is_some())
        {
            return Ok(None);
        }
        let file = new_handle();
        let attr = Attr { fileid: fileid_of(&file), ..attr };
        self.post(&mut queue, caller, NameChange::Create { at: at.clone(), file, attr })?;
        drop(queue);
        self.names.wake.notify_one();
        let dir_wcc = changed(dir, caller);
        Ok(Some(Created { handle: Some(file), attr: Some(attr), dir_wcc }))
    }

    /// REMOVE, if it can be decided here.
    pub async fn defer_remove(&self, caller: &Caller, at: &At) -> Result<Option<Wcc>> {
        if !self.defers() || !is_usual(at) {
            return Ok(None);
        }
        let Some(dir) = self.changeable(caller, &at.dir).await else { return Ok(None) };
        let file = match self.look(at) {
            Name::Here(file) => file,
            Name::Absent => return Err(Status::NOENT.into()),
            Name::Unknown => return Ok(None),
        };
        let Some(attr) = self.attr_below(&file).filter(is_file) else { return Ok(None) };
        if !self.room_for_name().await {
            return Ok(None);
        }
        let mut queue = self.names.queue.lock();
        if queue.child(at).is_some_and(|child| child != Some(file)) {
            return Ok(None);
        }
        let change = NameChange::Remove { at: at.clone(), file, last: attr.links <= 1 };
        self.post(&mut queue, caller, change)?;
        drop(queue);
        self.names.wake.notify_one();
        Ok(Some(changed(dir, caller)))
    }

    /// RENAME, if it can be decided here.
    pub async fn defer_rename(
        &self,
        caller: &Caller,
        from: &At,
        to: &At,
        no_replace: bool,
    ) -> Result<Option<(Wcc, Wcc)>> {
        if !self.defers() || !is_usual(from) || !is_usual(to) || from == to {
            return Ok(None);
        }
        let from_dir = self.changeable(caller, &from.dir).await;
        let to_dir = self.changeable(caller, &to.dir).await;
        let (Some(from_dir), Some(to_dir)) = (from_dir, to_dir) else { return Ok(None) };
        let file = match self.look(from) {
            Name::Here(file) => file,
            Name::Absent => return Err(Status::NOENT.into()),
            Name::Unknown => return Ok(None),
        };
        if !self.attr_below(&file).is_some_and(|attr| is_file(&attr)) {
            return Ok(None);
        }
        let replaced = match self.look(to) {
            Name::Unknown => return Ok(None),
            Name::Absent => None,
            Name::Here(other) => match self.attr_below(&other).filter(is_file) {
                Some(_) if no_replace => return Err(Status::EXIST.into()),
                Some(attr) if other != file => Some((other, attr.links <= 1)),
                _ => return Ok(None),
            },
        };
        if !self.room_for_name().await {
            return Ok(None);
        }
        let mut queue = self.names.queue.lock();
        let same = |child: Option<Option<FileHandle>>, known| child.is_none_or(|it| it == known);
        if !same(queue.child(from), Some(file))
            || !same(queue.child(to), replaced.map(|(file, _)| file))
        {
            return Ok(None);
        }
        let (from, to) = (from.clone(), to.clone());
        self.post(&mut queue, caller, NameChange::Rename { from, to, file, replaced })?;
        drop(queue);
        self.names.wake.notify_one();
        Ok(Some((changed(from_dir, caller), changed(to_dir, caller))))
    }

    /// SETATTR of a file, if it can be decided here.
    pub fn defer_set(
        &self,
        caller: &Caller,
        file: &FileHandle,
        changes: &SetAttr,
    ) -> Result<Option<Wcc>> {
        if !self.defers() {
            return Ok(None);
        }
        let Some(mut attr) = self.attr_below(file).filter(|attr| attr.kind == FileKind::Regular)
        else {
            return Ok(None);
        };
        // Whether root owns what seems to be root's, only the server knows of files of its own.
        let owner = attr.uid == caller.uid && (caller.uid != 0 || is_ours(file));
        let own = owner && changes.uid.is_none() && changes.gid.is_none();
        let bits = (attr.mode | changes.mode.unwrap_or(0)) & SET_ID;
        let fits = changes.size.is_none_or(|size| size <= self.file_size_max);
        let Some(set) = set_of(changes).filter(|_| own && bits == 0 && fits) else {
            return Ok(None);
        };
        let node = self.known(file);
        // Held until the change is noted: no data is sent in between.
        let state = node.as_ref().map(|node| node.state.lock());
        let mut queue = self.names.queue.lock();
        if queue.is_gone(file) {
            return Ok(None);
        }
        let versions = set.size.is_some() || set.mtime.is_some();
        let before = if queue.created(file).is_some() || !versions {
            None
        } else {
            if let Some(state) = &state {
                let sent = state.handed <= state.committed
                    && !state.handing
                    && !state.committing
                    && state.settled
                    && !state.in_doubt
                    && state.conflict.is_none()
                    && state.times == Times::default()
                    // Whoever cuts a file has its turn.
                    && (set.size.is_some() || state.dirty.is_empty());
                let same = state.base.is_none_or(|base| same_data(&base, &WccAttr::from(&attr)));
                if !sent || !same {
                    return Ok(None);
                }
            }
            Some((attr.size, attr.mtime))
        };
        if queue.ops.len() >= PENDING_MAX {
            return Ok(None);
        }
        self.post(&mut queue, caller, NameChange::Set { file: *file, set, before })?;
        drop(queue);
        drop(state);
        self.names.wake.notify_one();
        set.apply(&mut attr);
        attr.ctime = now();
        Ok(Some(Wcc { before: None, after: Some(attr) }))
    }

    /// A file is gone for good: its handle of ours is not needed any more.
    pub fn forget_bound(&self, file: &FileHandle) {
        if self.names.queue.lock().unbind(file) {
            self.index.set_alias(file, None);
        }
    }

    /// What a file's own part of the journal says of the server's handle, if there are two.
    pub fn bound_record(&self, handle: &FileHandle) -> Option<Record> {
        if !is_ours(handle) {
            return None;
        }
        let handle = *handle;
        let server = self.names.queue.lock().server(&handle)?;
        Some(Record::Bound { handle, server, made_by: 0 })
    }
}

/// Says whether a name is one that the journal can hold.
fn is_usual(at: &At) -> bool {
    !at.name.is_empty() && at.name.len() <= NAME_BYTES_MAX && !gridvfs_vfs::is_dots(&at.name)
}

fn is_file(attr: &Attr) -> bool {
    matches!(attr.kind, FileKind::Regular | FileKind::Symlink)
}

/// Says whether NFSv3 carries a time as it is.
fn fits(time: &Time) -> bool {
    u32::try_from(time.seconds).is_ok() && time.nanoseconds < 1_000_000_000
}

/// The changes with the times that they are made at; `None` for times that do not travel.
fn set_of(changes: &SetAttr) -> Option<Set> {
    let time = |set| match set {
        SetTime::Keep => None,
        SetTime::ServerNow => Some(now()),
        SetTime::To(time) => Some(time),
    };
    let mut set = Set {
        mode: changes.mode,
        size: changes.size,
        atime: time(changes.atime),
        mtime: time(changes.mtime),
    };
    if set.size.is_some() {
        // The server is to have the time that programs are told now.
        set.mtime.get_or_insert_with(now);
    }
    [set.atime, set.mtime].iter().flatten().all(fits).then_some(set)
}

/// What a new file is like. Its time of access is one that nobody else's file has.
fn new_attr(caller: &Caller, dir: &Attr, wanted: &SetAttr) -> Option<Attr> {
    let now = now();
    let mark = Time { nanoseconds: (random_number() % 1_000_000_000) as u32, ..now };
    let time = |set, other| if let SetTime::To(time) = set { time } else { other };
    let (atime, mtime) = (time(wanted.atime, mark), time(wanted.mtime, now));
    let gid = if dir.mode & 0o2000 != 0 { dir.gid } else { caller.gid };
    (fits(&atime) && fits(&mtime)).then_some(Attr {
        kind: FileKind::Regular,
        mode: wanted.mode.unwrap_or(MODE) & 0o7777,
        links: 1,
        uid: caller.uid,
        gid,
        size: 0,
        used: 0,
        device: DeviceNumber::default(),
        fsid: dir.fsid,
        fileid: 0,
        atime,
        mtime,
        ctime: now,
    })
}

/// What a directory is like after a change in it. Rights that ACCESS has granted are kept as long as
/// the ctime stays: whoever needs them keeps them.
fn changed(mut dir: Attr, caller: &Caller) -> Wcc {
    dir.mtime = now();
    if dir.uid == caller.uid && caller.uid != 0 {
        dir.ctime = dir.mtime;
    }
    Wcc { before: None, after: Some(dir) }
}
