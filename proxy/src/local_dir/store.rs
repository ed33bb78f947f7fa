//! The table of locations on disk, so that handles stay valid when the process starts anew.
//!
//! One SQLite database per export, which several processes may share. It is written in batches by
//! a thread of its own through a bounded queue: what does not fit is not written, since a lost
//! entry costs a search of the export and nothing else. For the same reason nothing is ever synced,
//! and a damaged database is begun anew. Without a directory to keep it in, it is a temporary one
//! that SQLite removes.

pub(super) mod old;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, params};

use super::key::Id;
use super::table::Location;

/// How many batches, and how many updates in them, may wait to be written (some 10 MiB).
const QUEUE_BATCHES_MAX: usize = 4096;
const QUEUE_UPDATES_MAX: usize = 65536;
/// The largest database, in pages of 4096 bytes: 1 GiB, some ten million files. A full one is
/// emptied.
const PAGES_MAX: u32 = 262_144;
/// How long another process of the export may hold the database before an update is given up.
const BUSY: Duration = Duration::from_secs(2);
/// How often `idle` runs.
const IDLE: Duration = Duration::from_secs(5);
/// Updates in one transaction.
const TRANSACTION_UPDATES_MAX: usize = 8192;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS location (
        device INTEGER NOT NULL,
        inode INTEGER NOT NULL,
        parent_device INTEGER NOT NULL,
        parent_inode INTEGER NOT NULL,
        name BLOB NOT NULL,
        PRIMARY KEY (device, inode)
    ) WITHOUT ROWID";
/// The layout of the table (PRAGMA user_version).
const SCHEMA_VERSION: i32 = 1;

/// A change of the table.
#[derive(Debug)]
pub(super) enum Update {
    /// The inode is at this location.
    Put { id: Id, parent: Id, name: Box<[u8]> },
    /// The inode is gone.
    Delete { id: Id },
    /// The inode is not at this location any more.
    DeleteLocation { id: Id, parent: Id, name: Box<[u8]> },
}

enum Message {
    Batch(Vec<Update>),
    /// Answered when everything before it is in the database.
    Flush(SyncSender<()>),
}

/// The database, and the thread that writes it.
#[derive(Debug)]
pub(super) struct Store {
    reader: Arc<Mutex<Connection>>,
    writer: Arc<Mutex<Connection>>,
    queue: Option<SyncSender<Message>>,
    waiting: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    /// Opens the database, or a temporary one where it cannot be. `idle` runs on the writing thread
    /// every few seconds.
    pub(super) fn open(
        file: Option<PathBuf>,
        idle: impl FnMut() + Send + 'static,
    ) -> Result<Self, rusqlite::Error> {
        let kept = file.as_deref().and_then(|file| match open_kept(file) {
            Ok(pair) => Some(pair),
            Err(error) => {
                log::warn!("cannot keep file handles in {}: {error}", file.display());
                None
            }
        });
        let (reader, writer) = match kept {
            Some((reader, writer)) => (Arc::new(Mutex::new(reader)), Arc::new(Mutex::new(writer))),
            None => {
                let connection = Connection::open("")?;
                prepare(&connection)?;
                let connection = Arc::new(Mutex::new(connection));
                (connection.clone(), connection)
            }
        };
        let (queue, messages) = sync_channel(QUEUE_BATCHES_MAX);
        let waiting = Arc::new(AtomicUsize::new(0));
        let thread = std::thread::Builder::new()
            .name("handle-table".into())
            .spawn({
                let (writer, waiting) = (writer.clone(), waiting.clone());
                move || run(&messages, &writer, &waiting, idle)
            })
            .map_err(|error| {
                log::warn!("file handles are not kept: no thread: {error}");
            })
            .ok();
        Ok(Self { reader, writer, queue: Some(queue), waiting, thread })
    }

    /// Hands updates to the writing thread; drops them when too many are waiting.
    pub(super) fn queue(&self, updates: Vec<Update>) {
        let count = updates.len();
        if self.waiting.fetch_add(count, Ordering::Relaxed) + count > QUEUE_UPDATES_MAX {
            self.waiting.fetch_sub(count, Ordering::Relaxed);
            return;
        }
        if let Some(queue) = &self.queue
            && queue.try_send(Message::Batch(updates)).is_err()
        {
            self.waiting.fetch_sub(count, Ordering::Relaxed);
        }
    }

    /// Writes updates at once; for the search of the export, which would overrun the queue.
    pub(super) fn write(&self, updates: &[Update]) {
        apply(&self.writer, updates);
    }

    /// Where an inode was last seen.
    pub(super) fn get(&self, id: &Id) -> Option<Location> {
        let reader = self.reader.lock();
        let found = reader
            .prepare_cached(
                "SELECT parent_device, parent_inode, name FROM location
                 WHERE device = ?1 AND inode = ?2",
            )
            .and_then(|mut statement| {
                statement
                    .query_row(params![id.device as i64, id.inode as i64], |row| {
                        Ok(Location {
                            parent: Id {
                                device: row.get::<_, i64>(0)? as u64,
                                inode: row.get::<_, i64>(1)? as u64,
                            },
                            name: row.get::<_, Vec<u8>>(2)?.into_boxed_slice(),
                        })
                    })
                    .optional()
            });
        found.unwrap_or_else(|error| {
            log::debug!("file handle table: {error}");
            None
        })
    }

    /// Waits until everything queued so far is in the database.
    pub(super) fn flush(&self) {
        let (answer, done) = sync_channel(1);
        if let (Some(queue), Some(_)) = (&self.queue, &self.thread)
            && queue.send(Message::Flush(answer)).is_ok()
        {
            // An error means that the thread is gone, and with it what could be waited for.
            let _ = done.recv();
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::warn!("the thread that keeps file handles has panicked");
        }
    }
}

/// Opens the database twice, once for each direction: with a write-ahead log readers do not wait.
fn open_kept(file: &Path) -> Result<(Connection, Connection), rusqlite::Error> {
    let open = || -> Result<_, rusqlite::Error> {
        let writer = Connection::open(file)?;
        writer.busy_timeout(BUSY)?;
        writer.pragma_update(None, "journal_mode", "WAL")?;
        prepare(&writer)?;
        let reader = Connection::open(file)?;
        reader.busy_timeout(BUSY)?;
        reader.query_row(
            "SELECT count(*) FROM (SELECT 1 FROM location LIMIT 1)",
            [],
            |_| Ok(()),
        )?;
        Ok((reader, writer))
    };
    open().or_else(|error| {
        let damaged = matches!(
            error.sqlite_error_code(),
            Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt)
        );
        if !damaged {
            return Err(error);
        }
        log::warn!("beginning {} anew: {error}", file.display());
        for suffix in ["", "-wal", "-shm"] {
            let mut name = file.as_os_str().to_owned();
            name.push(suffix);
            // What is not there need not be removed; what cannot be is reported by `open`.
            let _ = std::fs::remove_file(PathBuf::from(name));
        }
        open()
    })
}

fn prepare(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.pragma_update(None, "max_page_count", PAGES_MAX)?;
    let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version != SCHEMA_VERSION {
        connection.execute_batch("DROP TABLE IF EXISTS location")?;
        connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    }
    connection.execute_batch(SCHEMA)
}

fn run(
    messages: &Receiver<Message>,
    writer: &Mutex<Connection>,
    waiting: &AtomicUsize,
    mut idle: impl FnMut(),
) {
    let mut last_idle = std::time::Instant::now();
    loop {
        let mut updates = Vec::new();
        let mut flushes = Vec::new();
        let mut take = |message| match message {
            Message::Batch(batch) => {
                waiting.fetch_sub(batch.len(), Ordering::Relaxed);
                updates.extend(batch);
                updates.len() < TRANSACTION_UPDATES_MAX
            }
            Message::Flush(answer) => {
                flushes.push(answer);
                false
            }
        };
        match messages.recv_timeout(IDLE) {
            Ok(message) => {
                let mut more = take(message);
                while more {
                    more = messages.try_recv().is_ok_and(&mut take);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        apply(writer, &updates);
        for answer in flushes {
            // Whoever asked may have gone.
            let _ = answer.try_send(());
        }
        if last_idle.elapsed() >= IDLE {
            idle();
            last_idle = std::time::Instant::now();
        }
    }
}

fn apply(writer: &Mutex<Connection>, updates: &[Update]) {
    for part in updates.chunks(TRANSACTION_UPDATES_MAX) {
        let connection = writer.lock();
        match transaction(&connection, part) {
            Ok(()) => {}
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) => {
                log::info!("file handle table is full: emptying it");
                if let Err(error) = connection.execute_batch("DELETE FROM location") {
                    log::debug!("file handle table: {error}");
                }
            }
            Err(error) => log::debug!("file handle table: {error}"),
        }
    }
}

fn transaction(connection: &Connection, updates: &[Update]) -> Result<(), rusqlite::Error> {
    let transaction = connection.unchecked_transaction()?;
    for update in updates {
        match update {
            Update::Put { id, parent, name } => transaction
                .prepare_cached(
                    "INSERT INTO location VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT (device, inode) DO UPDATE SET
                     parent_device = ?3, parent_inode = ?4, name = ?5",
                )?
                .execute(params![
                    id.device as i64,
                    id.inode as i64,
                    parent.device as i64,
                    parent.inode as i64,
                    &name[..]
                ])?,
            Update::Delete { id } => transaction
                .prepare_cached("DELETE FROM location WHERE device = ?1 AND inode = ?2")?
                .execute(params![id.device as i64, id.inode as i64])?,
            Update::DeleteLocation { id, parent, name } => transaction
                .prepare_cached(
                    "DELETE FROM location WHERE device = ?1 AND inode = ?2
                     AND parent_device = ?3 AND parent_inode = ?4 AND name = ?5",
                )?
                .execute(params![
                    id.device as i64,
                    id.inode as i64,
                    parent.device as i64,
                    parent.inode as i64,
                    &name[..]
                ])?,
        };
    }
    transaction.commit()
}
