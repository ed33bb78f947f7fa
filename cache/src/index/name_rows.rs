//! Rows of names: what each leads to, and its place in the listing.

use bytes::Bytes;
use gridvfs_vfs::{FileHandle, FileKind};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::Child;
use super::node::{FNV_START, kind};
use super::rows::{Found, SqlResult, Sum};

const STATE_ABSENT: i64 = 0;
const STATE_HERE: i64 = 1;
const STATE_UNKNOWN: i64 = 2;
const STATE_WHOLE: i64 = 3;

/// The name, impossible for a file, of the row which says that all names of a set are there.
const WHOLE: &[u8] = b"";

/// A cookie that we gave to an entry that the server has not listed: this, and its place.
pub(crate) const OURS: u64 = 0x4756_4653_0000_0000;

/// Whether a cookie looks like ours.
pub(super) fn is_ours(cookie: u64) -> bool {
    cookie >> 32 == OURS >> 32
}

/// A name, with its place in the listing if it has one.
pub(super) struct NameRow {
    pub name: Bytes,
    pub child: Child,
    pub place: Option<i64>,
    pub cookie: Option<i64>,
    pub fileid: Option<i64>,
    pub kind: Option<i64>,
}

impl NameRow {
    fn columns(&self) -> (i64, Option<&[u8]>) {
        match &self.child {
            Child::Absent => (STATE_ABSENT, None),
            Child::Here(handle) => (STATE_HERE, Some(handle.as_bytes())),
            Child::Unknown => (STATE_UNKNOWN, None),
        }
    }

    pub fn kind(&self) -> Option<FileKind> {
        self.kind.and_then(|number| kind(number as u32))
    }

    /// Columns in the order of [`NAME_COLUMNS`].
    fn read(row: &Row, names: u64) -> SqlResult<Option<Self>> {
        let blob = |index| row.get_ref(index)?.as_blob_or_null().map_err(rusqlite::Error::from);
        let state: i64 = row.get(1)?;
        let child = match (state, blob(2)?) {
            (STATE_ABSENT, None) => Child::Absent,
            (STATE_UNKNOWN, None) => Child::Unknown,
            (STATE_HERE, Some(bytes)) => match FileHandle::new(bytes) {
                Some(handle) => Child::Here(handle),
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        let found = Self {
            name: Bytes::copy_from_slice(blob(0)?.unwrap_or_default()),
            child,
            place: row.get(3)?,
            cookie: row.get(4)?,
            fileid: row.get(5)?,
            kind: row.get(6)?,
        };
        Ok((found.sum(names) == row.get::<_, i64>(7)? as u64).then_some(found))
    }

    fn sum(&self, names: u64) -> u64 {
        let (state, child) = self.columns();
        let sum = Sum(FNV_START).number(names).bytes(Some(&self.name));
        let sum = sum.number(state as u64).bytes(child);
        sum.maybe(self.place).maybe(self.cookie).maybe(self.fileid).maybe(self.kind).0
    }

    pub fn put(&self, to: &Connection, names: u64) -> SqlResult<()> {
        let (state, child) = self.columns();
        to.prepare_cached(
            "INSERT INTO name(names, name, state, child, place, cookie, fileid, kind, sum)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT (names, name) DO UPDATE SET state = ?3, child = ?4, place = ?5,
             cookie = ?6, fileid = ?7, kind = ?8, sum = ?9",
        )?
        .execute(params![
            names as i64,
            &self.name[..],
            state,
            child,
            self.place,
            self.cookie,
            self.fileid,
            self.kind,
            self.sum(names) as i64,
        ])?;
        Ok(())
    }
}

const NAME_COLUMNS: &str = "name, state, child, place, cookie, fileid, kind, sum";

pub(super) fn name(from: &Connection, names: u64, name: &[u8]) -> SqlResult<Found<NameRow>> {
    let mut find = from.prepare_cached(&format!(
        "SELECT {NAME_COLUMNS} FROM name WHERE names = ?1 AND name = ?2"
    ))?;
    let row = find.query_row(params![names as i64, name], |row| NameRow::read(row, names));
    Ok(Found::of(row.optional()?))
}

/// Whether all names of the set are in the database. To be asked after a name was not found: who
/// removes a set begins with this.
pub(super) fn is_whole(from: &Connection, names: u64) -> SqlResult<bool> {
    let mut find = from.prepare_cached("SELECT state FROM name WHERE names = ?1 AND name = ?2")?;
    let state = find.query_row(params![names as i64, WHOLE], |row| row.get::<_, i64>(0));
    Ok(state.optional()? == Some(STATE_WHOLE))
}

/// Says that all names of the set are there, unless the database was emptied since `losses`.
pub(super) fn set_whole(to: &Connection, names: u64, losses: u64) -> SqlResult<()> {
    if self::losses(to)? == losses {
        to.prepare_cached(
            "INSERT OR REPLACE INTO name(names, name, state, sum) VALUES (?1, ?2, ?3, 0)",
        )?
        .execute(params![names as i64, WHOLE, STATE_WHOLE])?;
    }
    Ok(())
}

/// How often the database was emptied.
pub(super) fn losses(from: &Connection) -> SqlResult<u64> {
    let mut find = from.prepare_cached("SELECT losses FROM meta")?;
    find.query_row([], |row| row.get::<_, i64>(0)).map(|losses| losses as u64)
}

/// Enters a name. In a listed directory a new one is put behind all others; one that was there
/// before keeps its place.
pub(super) fn set_name(
    to: &Connection,
    names: u64,
    name: &Bytes,
    child: Child,
    listed: bool,
) -> SqlResult<()> {
    let mut row = match self::name(to, names, name)? {
        Found::Row(row) => row,
        _ => NameRow {
            name: name.clone(),
            child: Child::Unknown,
            place: None,
            cookie: None,
            fileid: None,
            kind: None,
        },
    };
    if row.child != child {
        (row.fileid, row.kind) = (None, None);
    }
    if listed && row.place.is_none() && child != Child::Absent {
        let mut last = to
            .prepare_cached("SELECT max(place) FROM name WHERE names = ?1 AND place IS NOT NULL")?;
        let last: Option<i64> = last.query_row([names as i64], |row| row.get(0))?;
        let place = last.unwrap_or(0) + 1;
        (row.place, row.cookie) = (Some(place), Some((OURS | place as u64) as i64));
    }
    row.child = child;
    row.put(to, names)
}

/// The place of the entry that has this cookie.
pub(super) fn place(from: &Connection, names: u64, cookie: u64) -> SqlResult<Option<i64>> {
    let mut find = from.prepare_cached(
        "SELECT place FROM name WHERE names = ?1 AND cookie = ?2 AND cookie IS NOT NULL",
    )?;
    let place = find.query_row([names as i64, cookie as i64], |row| row.get(0));
    Ok(place.optional()?.flatten())
}

/// At most `count` names that are there, in their order, behind a place. `None`: one is damaged.
pub(super) fn page(
    from: &Connection,
    names: u64,
    behind: i64,
    count: usize,
) -> SqlResult<Option<Vec<NameRow>>> {
    let mut find = from.prepare_cached(&format!(
        "SELECT {NAME_COLUMNS} FROM name
         WHERE names = ?1 AND place > ?2 AND place IS NOT NULL AND state <> {STATE_ABSENT}
         ORDER BY place LIMIT ?3"
    ))?;
    let rows = find
        .query_map(params![names as i64, behind, count as i64], |row| NameRow::read(row, names))?;
    rows.collect()
}

/// At most `count` names of a set that lead to something, in whatever order.
pub(super) fn here(from: &Connection, names: u64, count: usize) -> SqlResult<Vec<NameRow>> {
    let mut find = from.prepare_cached(&format!(
        "SELECT {NAME_COLUMNS} FROM name WHERE names = ?1 AND state = {STATE_HERE} LIMIT ?2"
    ))?;
    let rows =
        find.query_map(params![names as i64, count as i64], |row| NameRow::read(row, names))?;
    rows.filter_map(Result::transpose).collect()
}

/// Begins to remove a set: from now on nobody takes a name for absent because it is not there.
pub(super) fn drop_whole(to: &Connection, names: u64) -> SqlResult<()> {
    to.prepare_cached("DELETE FROM name WHERE names = ?1 AND name = ?2")?
        .execute(params![names as i64, WHOLE])?;
    Ok(())
}

/// Removes at most `count` names of a set; tells how many.
pub(super) fn drop_names(to: &Connection, names: u64, count: usize) -> SqlResult<usize> {
    to.prepare_cached(
        "DELETE FROM name WHERE id IN (SELECT id FROM name WHERE names = ?1 LIMIT ?2)",
    )?
    .execute(params![names as i64, count as i64])
}

/// Whether every row agrees with its checksum.
pub(super) fn check(from: &Connection) -> SqlResult<bool> {
    let mut names = from
        .prepare(&format!("SELECT {NAME_COLUMNS}, names FROM name WHERE state <> {STATE_WHOLE}"))?;
    let mut rows = names.query([])?;
    while let Some(row) = rows.next()? {
        if NameRow::read(row, row.get::<_, i64>(8)? as u64)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}
