//! Changes on their way to the database: a queue, and the thread that writes it in batches.
//!
//! Changes are written in the order in which they were queued, a batch being one transaction: what
//! a crash leaves is what was known at some moment, never a mixture of two.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gridvfs_vfs::FileHandle;
use parking_lot::{Condvar, Mutex};
use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use super::Child;
use super::aliases;
use super::database::Database;
use super::name_rows::{self, NameRow};
use super::rows::{self, NodeRow};

/// This many changes are not kept waiting for more: about 5 ms of work.
const BATCH_MIN: usize = 1000;
/// A transaction, when changes come faster than they are written: a page of a large listing is one,
/// so that a page of the database that many rows belong to is written once, not for each thousand of
/// them. About 200 ms, for which another session's changes wait at most.
const BATCH_MAX: usize = 16 << 10;
/// Changes that wait; above, whoever makes one waits for the thread. About 400 bytes each: 6.5 MiB. A
/// listing makes three of a file, so the files of them that are not written are less than half of
/// [`super::IndexOptions::nodes_max`], and drive out nothing that is in use.
const WAITING_MAX: usize = 16 << 10;
/// Names removed in a transaction beside what it is for.
const GARBAGE_MAX: usize = 1000;
/// How long at most: a stalled disk slows the mount down, it does not stop it.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// How often a batch is tried again: other sessions keep the database busy, or it is full.
const TRIES_MAX: usize = 3;

pub(super) enum Change {
    Node(FileHandle, Box<NodeRow>),
    ForgetNode(FileHandle),
    Name {
        names: u64,
        name: Bytes,
        child: Child,
        listed: bool,
    },
    Listed {
        names: u64,
        row: Box<NameRow>,
    },
    Whole {
        names: u64,
        losses: u64,
    },
    DropNames(u64),
    Epoch(u64),
    /// By which handle the server knows a file of ours; `None`: it is gone.
    Alias(FileHandle, Option<FileHandle>),
    ForgetAliases,
    /// Files that we changed after this period are forgotten.
    ForgetWritten(u64),
}

#[derive(Default)]
struct Waiting {
    changes: VecDeque<Change>,
    since: Option<Instant>,
    /// How many were ever queued: the last one's number.
    queued: u64,
    hurry: bool,
    stop: bool,
}

/// See the module's description.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    work: Condvar,
    done: Condvar,
    written: AtomicU64,
    delay: Duration,
}

impl Queue {
    pub fn new(delay: Duration) -> Self {
        Self {
            waiting: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            written: AtomicU64::new(0),
            delay,
        }
    }

    /// Waits, within limits, until there is room. To be called before any lock is taken.
    pub fn admit(&self) {
        let mut waiting = self.waiting.lock();
        if waiting.changes.len() >= WAITING_MAX {
            waiting.hurry = true;
            self.work.notify_one();
            let full = |waiting: &mut Waiting| waiting.changes.len() >= WAITING_MAX;
            self.done.wait_while_for(&mut waiting, full, WAIT_MAX);
        }
    }

    /// Queues a change. Returns its number.
    pub fn push(&self, change: Change) -> u64 {
        let mut waiting = self.waiting.lock();
        waiting.changes.push_back(change);
        waiting.queued += 1;
        let count = waiting.changes.len();
        if waiting.since.is_none() {
            waiting.since = Some(Instant::now());
        }
        if count == 1 || count == BATCH_MIN {
            self.work.notify_one();
        }
        waiting.queued
    }

    /// Has what waits written soon.
    pub fn hurry(&self) {
        self.waiting.lock().hurry = true;
        self.work.notify_one();
    }

    /// Waits until what is queued now is written, or given up.
    pub fn flush(&self) {
        let mut waiting = self.waiting.lock();
        let queued = waiting.queued;
        while self.written() < queued {
            waiting.hurry = true;
            self.work.notify_one();
            self.done.wait(&mut waiting);
        }
    }

    pub fn stop(&self) {
        self.waiting.lock().stop = true;
        self.work.notify_one();
    }

    /// The number up to which changes are written.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// How many changes were queued, and how many of them are not written.
    pub fn counts(&self) -> (u64, u64) {
        let queued = self.waiting.lock().queued;
        (queued, queued.saturating_sub(self.written()))
    }

    /// Waits for a batch. Returns it and the number of its last change; none at the end.
    fn take(&self, idle: bool) -> Option<(Vec<Change>, u64)> {
        let mut waiting = self.waiting.lock();
        loop {
            let count = waiting.changes.len();
            let due = waiting.since.map(|since| since + self.delay);
            let now = waiting.hurry || waiting.stop || count >= BATCH_MIN;
            if count > 0 && (now || due.is_some_and(|due| due <= Instant::now())) {
                break;
            }
            if waiting.stop && count == 0 {
                return None;
            }
            waiting.hurry = false;
            match due {
                Some(due) => drop(self.work.wait_until(&mut waiting, due)),
                // There is something else to do.
                None if !idle => break,
                None => self.work.wait(&mut waiting),
            }
        }
        let count = waiting.changes.len().min(BATCH_MAX);
        let batch: Vec<_> = waiting.changes.drain(..count).collect();
        if waiting.changes.is_empty() {
            (waiting.hurry, waiting.since) = (false, None);
        }
        Some((batch, self.written() + count as u64))
    }

    fn wrote(&self, number: u64) {
        let waiting = self.waiting.lock();
        self.written.store(number, Ordering::Release);
        drop(waiting);
        self.done.notify_all();
    }
}

/// Lets nobody wait for a thread that has panicked.
struct Ending<'a>(&'a Queue, &'a Database);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.1.give_up("its thread has panicked");
            self.0.wrote(u64::MAX);
        }
    }
}

/// The thread: writes until told to stop, then closes the database.
pub(super) fn run(queue: &Queue, database: &Database, writer: Connection) {
    let mut writer = Some(writer);
    let _ending = Ending(queue, database);
    let mut garbage = VecDeque::new();
    let mut large = false;
    while let Some((batch, number)) = queue.take(garbage.is_empty() || writer.is_none()) {
        large |= batch.len() > BATCH_MIN;
        if let Some(connection) = writer.as_mut().filter(|_| database.is_usable()) {
            if let Err(error) = write(connection, &batch, &mut garbage) {
                database.fail(&error);
            }
        } else {
            writer = None;
        }
        queue.wrote(number);
        if large && queue.counts().1 == 0 {
            large = false;
            // Pages that such a burst had in memory are not needed for what comes now and then.
            if let Some(connection) = &writer
                && let Err(error) = connection.execute_batch("PRAGMA shrink_memory")
            {
                log::debug!("the index keeps its memory: {error}");
            }
        }
    }
    if let Some(connection) = writer.as_mut() {
        while !garbage.is_empty() && database.is_usable() {
            if let Err(error) = write(connection, &[], &mut garbage) {
                database.fail(&error);
            }
        }
        database.close(connection);
    }
}

/// Writes a batch in one transaction, and removes some of what nothing leads to any more.
fn write(
    connection: &mut Connection,
    batch: &[Change],
    garbage: &mut VecDeque<u64>,
) -> rusqlite::Result<()> {
    let mut batch: Vec<_> = batch.iter().collect();
    let mut result = transaction(connection, &batch, garbage.front());
    for attempt in 0..TRIES_MAX {
        match &result {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {}
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => {
                log::info!("the index is full: emptying it");
                empty(connection)?;
                garbage.clear();
                if attempt > 0 {
                    // The batch alone is too large: as if it had been removed with the rest.
                    batch.retain(|change| matches!(change, Change::Epoch(_)));
                }
            }
            _ => break,
        }
        result = transaction(connection, &batch, garbage.front());
    }
    if result? {
        garbage.pop_front();
    }
    garbage.extend(batch.iter().filter_map(|change| match change {
        Change::DropNames(names) => Some(*names),
        _ => None,
    }));
    Ok(())
}

/// Returns whether nothing is left of the garbage given.
fn transaction(
    connection: &mut Connection,
    batch: &[&Change],
    garbage: Option<&u64>,
) -> rusqlite::Result<bool> {
    let superseded = superseded(batch);
    let to = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for (at, change) in batch.iter().enumerate() {
        if superseded.contains(&at) {
            continue;
        }
        match change {
            Change::Node(handle, row) => rows::put_node(&to, handle, row)?,
            Change::ForgetNode(handle) => rows::forget_node(&to, handle)?,
            Change::Name { names, name, child, listed } => {
                name_rows::set_name(&to, *names, name, *child, *listed)?;
            }
            Change::Listed { names, row } => row.put(&to, *names)?,
            Change::Whole { names, losses } => name_rows::set_whole(&to, *names, *losses)?,
            Change::DropNames(names) => name_rows::drop_whole(&to, *names)?,
            Change::Alias(ours, Some(server)) => aliases::put(&to, ours, server)?,
            Change::Alias(ours, None) => aliases::remove(&to, ours)?,
            Change::ForgetAliases => to.execute_batch("DELETE FROM alias")?,
            Change::ForgetWritten(after) => {
                let gone = rows::forget_written(&to, *after)?;
                if gone > 0 {
                    log::info!("{gone} files are fetched again: the machine went down too early");
                }
            }
            Change::Epoch(epoch) => {
                to.execute_batch("DELETE FROM name")?;
                let begin = "UPDATE meta SET epoch = ?1, losses = losses + 1";
                to.execute(begin, [*epoch as i64])?;
            }
        }
    }
    let emptied = match garbage {
        Some(names) => name_rows::drop_names(&to, *names, GARBAGE_MAX)? < GARBAGE_MAX,
        None => false,
    };
    to.commit()?;
    Ok(emptied)
}

/// The changes of a node that a later one of the batch replaces: only the last is seen outside.
fn superseded(batch: &[&Change]) -> HashSet<usize> {
    let mut last = HashMap::new();
    let mut superseded = HashSet::new();
    for (at, change) in batch.iter().enumerate() {
        if let Change::Node(handle, _) | Change::ForgetNode(handle) = change
            && let Some(earlier) = last.insert(handle, at)
        {
            superseded.insert(earlier);
        }
    }
    superseded
}

/// Removes everything, and says so to the sessions that are listing a directory.
fn empty(connection: &mut Connection) -> rusqlite::Result<()> {
    let to = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    to.execute_batch("DELETE FROM name; DELETE FROM node; UPDATE meta SET losses = losses + 1;")?;
    to.commit()
}

/// Starts the thread.
pub(super) fn start(
    queue: &Arc<Queue>,
    database: &Arc<Database>,
    writer: Connection,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let (queue, database) = (queue.clone(), database.clone());
    std::thread::Builder::new()
        .name("gridvfs-index".to_owned())
        .spawn(move || run(&queue, &database, writer))
}
