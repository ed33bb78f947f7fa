//! The database file: opening, setting aside, closing.
//!
//! Sessions of one user may have it open at once. Beside it, a lock file is held shared by each;
//! who gets it alone knows that nobody else has the database open, and so whether all others closed
//! it in order: each is counted in it.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior};

use super::{IndexError, IndexOptions};
use crate::key::random_number;

/// The format that this program writes (`PRAGMA user_version`).
pub(super) const VERSION: i64 = 2;
/// The one before, which it reads: the table `alias` is added to it.
const VERSION_BEFORE: i64 = 1;
/// How long another session's transaction is waited for: theirs are of milliseconds.
const BUSY: Duration = Duration::from_secs(5);
/// Two questions at a time; each connection has its own page cache.
const READERS: usize = 2;
/// A connection's page cache in KiB: the inner pages of some 100,000 rows.
const PAGE_CACHE_KIB: i64 = 1024;
/// The writer's, in a burst: changed pages stay in it until the transaction ends.
const WRITER_CACHE_KIB: i64 = 16 << 10;
/// After how many pages the write-ahead log is taken over into the database: with SQLite's own 1000,
/// each transaction of a large listing would do that.
const LOG_PAGES: i64 = 4096;
const PAGE_BYTES: u64 = 4096;
/// The least that a database may grow to, in pages: a batch of usual changes has room.
const PAGES_MIN: u64 = 256;
/// To what size the write-ahead log is cut when a burst of changes is over.
const LOG_BYTES_MAX: i64 = 4 << 20;
/// How many damaged files are kept for whoever wants to look at them.
const DAMAGED_MAX: u32 = 5;
/// The prepared statements that a connection keeps.
const STATEMENTS_MAX: usize = 32;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS meta(
    id INTEGER PRIMARY KEY CHECK (id = 0),
    open INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    losses INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS node(
    handle BLOB PRIMARY KEY,
    key INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    at INTEGER NOT NULL,
    attr BLOB,
    base BLOB,
    written INTEGER NOT NULL,
    names INTEGER NOT NULL,
    flags INTEGER NOT NULL,
    verifier BLOB,
    target BLOB,
    dir BLOB,
    name BLOB,
    sum INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS node_key ON node(key);
CREATE TABLE IF NOT EXISTS name(
    id INTEGER PRIMARY KEY,
    names INTEGER NOT NULL,
    name BLOB NOT NULL,
    state INTEGER NOT NULL,
    child BLOB,
    place INTEGER,
    cookie INTEGER,
    fileid INTEGER,
    kind INTEGER,
    sum INTEGER NOT NULL,
    UNIQUE (names, name));
CREATE TABLE IF NOT EXISTS alias(
    ours BLOB PRIMARY KEY,
    server BLOB NOT NULL,
    sum INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS name_place ON name(names, place) WHERE place IS NOT NULL;
CREATE INDEX IF NOT EXISTS name_cookie ON name(names, cookie) WHERE cookie IS NOT NULL;
";

pub(super) struct Database {
    path: PathBuf,
    /// None if there is no database.
    readers: Vec<Mutex<Connection>>,
    next_reader: AtomicUsize,
    usable: AtomicBool,
    lock: Option<File>,
    pub closed_cleanly: bool,
    /// What was written in another epoch is believed of keys and bases only.
    pub epoch: AtomicU64,
    pub loads: AtomicU64,
    pub damaged: AtomicU64,
}

impl Database {
    /// Opens the database, makes a new one of a damaged one, or does without. The connection is
    /// for writing.
    pub fn open(
        path: &Path,
        options: &IndexOptions,
    ) -> Result<(Self, Option<Connection>), IndexError> {
        let mut database = Self {
            path: path.to_owned(),
            readers: Vec::new(),
            next_reader: AtomicUsize::new(0),
            usable: AtomicBool::new(false),
            lock: None,
            closed_cleanly: false,
            epoch: AtomicU64::new(random_number()),
            loads: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
        };
        let check = |found: i64| match found {
            0 | VERSION | VERSION_BEFORE => Ok(()),
            _ => Err(IndexError::Version { path: path.to_owned(), found, known: VERSION }),
        };
        // As long as it may be another's, SQLite does not get to see it: it would recover its log.
        check(header_version(path).unwrap_or(0))?;
        for attempt in 0..2 {
            match database.try_open(options) {
                Ok(Opened::Ready(writer)) => return Ok((database, Some(writer))),
                Ok(Opened::Unknown(found)) => {
                    return Err(IndexError::Version {
                        path: path.to_owned(),
                        found,
                        known: VERSION,
                    });
                }
                Err(error) if attempt == 0 && is_damage(&error) => {
                    database.readers.clear();
                    database.lock = None;
                    database.set_aside(&error);
                }
                Err(error) => {
                    log::warn!(
                        "{} cannot be used ({error}): names and attributes are kept in memory \
                         alone and will be asked for again by the next mount",
                        path.display()
                    );
                    break;
                }
            }
        }
        database.readers.clear();
        database.lock = None;
        Ok((database, None))
    }

    fn try_open(&mut self, options: &IndexOptions) -> rusqlite::Result<Opened> {
        // A database that cannot be locked is used, but never believed to be closed in order.
        self.lock = lock_file(&self.path).ok();
        let alone = self.lock.as_ref().is_some_and(|lock| flock(lock, libc::LOCK_EX));
        if let Some(lock) = self.lock.as_ref().filter(|_| !alone) {
            // At most as long as another opens or closes.
            flock_wait(lock, libc::LOCK_SH);
        }
        create_private(&self.path);
        let writer = self.connect()?;
        let version: i64 = writer.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let tables: i64 =
            writer.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        let known = matches!(version, VERSION | VERSION_BEFORE);
        if !known && (version != 0 || tables != 0) {
            return Ok(Opened::Unknown(version));
        }
        writer.pragma_update(None, "journal_mode", "WAL")?;
        writer.pragma_update(None, "journal_size_limit", LOG_BYTES_MAX)?;
        writer.pragma_update(None, "wal_autocheckpoint", LOG_PAGES)?;
        writer.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
        let pages_max = (options.file_bytes_max / PAGE_BYTES).max(PAGES_MIN);
        writer.query_row(&format!("PRAGMA max_page_count = {pages_max}"), [], |_| Ok(()))?;
        let (open, epoch) = begin(&writer, alone)?;
        self.closed_cleanly = alone && open == 0;
        self.epoch = AtomicU64::new(epoch);
        if alone && open != 0 {
            sweep(&writer, epoch)?;
        }
        for _ in 0..READERS {
            let reader = self.connect()?;
            reader.pragma_update(None, "query_only", true)?;
            self.readers.push(Mutex::new(reader));
        }
        if let Some(lock) = self.lock.as_ref().filter(|_| alone) {
            flock_wait(lock, libc::LOCK_SH);
        }
        self.usable = AtomicBool::new(true);
        Ok(Opened::Ready(writer))
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        let connection = Connection::open(&self.path)?;
        connection.busy_timeout(BUSY)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        connection.pragma_update(None, "cache_size", -PAGE_CACHE_KIB)?;
        Ok(connection)
    }

    pub fn is_usable(&self) -> bool {
        self.usable.load(Ordering::Acquire)
    }

    /// Gives the database up for this session.
    pub fn fail(&self, error: &rusqlite::Error) {
        if !self.usable.swap(false, Ordering::AcqRel) {
            return;
        }
        if is_damage(error) {
            self.set_aside(error);
        } else {
            self.give_up(&error.to_string());
        }
    }

    /// Does without the database from now on.
    pub fn give_up(&self, reason: &str) {
        self.usable.store(false, Ordering::Release);
        log::warn!(
            "cannot use {} any more ({reason}): names and attributes are kept in memory alone",
            self.path.display()
        );
    }

    fn set_aside(&self, error: &rusqlite::Error) {
        let named = |suffix: &str, number: Option<u32>| {
            let mut name = self.path.as_os_str().to_owned();
            if let Some(number) = number {
                name.push(format!(".damaged-{number}"));
            }
            name.push(suffix);
            PathBuf::from(name)
        };
        let number = (1..DAMAGED_MAX).find(|number| !named("", Some(*number)).exists());
        let number = number.unwrap_or(DAMAGED_MAX);
        log::warn!(
            "{} is damaged ({error}): kept as {}, and begun anew",
            self.path.display(),
            named("", Some(number)).display()
        );
        for suffix in ["", "-wal", "-shm"] {
            // What is not there need not be moved; what cannot be is found by opening again.
            let _ = std::fs::rename(named(suffix, None), named(suffix, Some(number)));
        }
    }

    /// Asks the database; nothing is known if it cannot be used.
    pub fn read<T: Default>(&self, ask: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> T {
        if !self.is_usable() {
            return T::default();
        }
        self.loads.fetch_add(1, Ordering::Relaxed);
        let reader = self.reader();
        match ask(&reader) {
            Ok(answer) => answer,
            Err(error) => {
                drop(reader);
                // Another session holds it for seconds: not known, this time.
                if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) {
                    self.fail(&error);
                }
                T::default()
            }
        }
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        let free = self.readers.iter().find_map(Mutex::try_lock);
        free.unwrap_or_else(|| {
            let next = self.next_reader.fetch_add(1, Ordering::Relaxed);
            self.readers[next % self.readers.len()].lock()
        })
    }

    /// Says in the database that this session closed it in order, everything being written.
    pub fn close(&self, writer: &Connection) {
        if self.is_usable()
            && let Err(error) = writer.execute("UPDATE meta SET open = open - 1", [])
        {
            log::debug!("{}: {error}", self.path.display());
        }
    }
}

/// Makes the tables and counts, durably, who has the database open: what is written from now on may
/// be lost with the power, and the next one must know. Returns the count as it was found.
fn begin(writer: &Connection, alone: bool) -> rusqlite::Result<(i64, u64)> {
    writer.pragma_update(None, "synchronous", "FULL")?;
    let begun = Transaction::new_unchecked(writer, TransactionBehavior::Immediate)?;
    begun.execute_batch(SCHEMA)?;
    begun.pragma_update(None, "user_version", VERSION)?;
    let meta = begun.query_row("SELECT open, epoch FROM meta", [], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)? as u64))
    });
    let (open, epoch) = meta.optional()?.unwrap_or((0, random_number()));
    let now_open = if alone { 1 } else { open.saturating_add(1) };
    begun.execute(
        "INSERT INTO meta VALUES (0, ?1, ?2, 0) ON CONFLICT (id) DO UPDATE SET open = ?1",
        [now_open, epoch as i64],
    )?;
    begun.commit()?;
    writer.pragma_update(None, "synchronous", "NORMAL")?;
    Ok((open, epoch))
}

enum Opened {
    Ready(Connection),
    Unknown(i64),
}

/// Drops names that nothing leads to: a session that ended in the middle left them.
fn sweep(writer: &Connection, epoch: u64) -> rusqlite::Result<()> {
    let reached = "DELETE FROM name WHERE names NOT IN
                   (SELECT names FROM node WHERE names <> 0 AND epoch = ?1)";
    writer.execute(reached, [epoch as i64]).map(|_| ())
}

pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::Error::{FromSqlConversionFailure, InvalidColumnType};
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
        // A table of that name which is not ours.
        || code == Some(ErrorCode::Unknown)
        || matches!(error, FromSqlConversionFailure(..) | InvalidColumnType(..))
}

/// The `user_version` in the header of a database (SQLite file format, 1.3), without opening it.
fn header_version(path: &Path) -> Option<i64> {
    let mut header = [0; 100];
    File::open(path).ok()?.read_exact(&mut header).ok()?;
    let version = header[60..64].try_into().ok()?;
    header.starts_with(b"SQLite format 3\0").then(|| i64::from(i32::from_be_bytes(version)))
}

/// Makes the file if there is none, for its owner's eyes: SQLite gives its log the same mode.
fn create_private(path: &Path) {
    // What stands in the way, SQLite says better.
    let _ = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
}

fn lock_file(path: &Path) -> std::io::Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(name)
}

/// Takes a lock if nobody stands in the way.
fn flock(file: &File, how: libc::c_int) -> bool {
    // SAFETY: the descriptor is open as long as `file`; flock(2) touches no memory.
    unsafe { libc::flock(file.as_raw_fd(), how | libc::LOCK_NB) == 0 }
}

fn flock_wait(file: &File, how: libc::c_int) {
    // SAFETY: as above.
    while unsafe { libc::flock(file.as_raw_fd(), how) } != 0
        && std::io::Error::last_os_error().kind() == ErrorKind::Interrupted
    {}
}
