//! Rows of the database. Each has a checksum; one that does not match is taken for not there.

use bytes::Bytes;
use gridvfs_vfs::{FileHandle, FileKind};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::node::{
    FNV_START, Node, Place, fnv, kind, pack_attr, pack_base, unpack_attr, unpack_base,
};
use super::{Child, Known};
use crate::FileKey;

const FLAG_COMPLETE: i64 = 1;
const FLAG_LISTED: i64 = 2;

const STATE_ABSENT: i64 = 0;
const STATE_HERE: i64 = 1;
const STATE_UNKNOWN: i64 = 2;
const STATE_WHOLE: i64 = 3;

/// The name, impossible for a file, of the row which says that all names of a set are there.
const WHOLE: &[u8] = b"";

/// A cookie that we gave to an entry that the server has not listed: this, and its place.
const OURS: u64 = 0x4756_4653_0000_0000;

/// Whether a cookie looks like ours.
pub(super) fn is_ours(cookie: u64) -> bool {
    cookie >> 32 == OURS >> 32
}

/// What is written of a node.
#[derive(Clone)]
pub(super) struct NodeRow {
    pub known: Known,
    pub epoch: u64,
    pub names: u64,
    pub complete: bool,
    pub listed: bool,
    pub verifier: [u8; 8],
    pub target: Option<Bytes>,
    pub place: Option<Place>,
}

impl NodeRow {
    pub fn of(node: &Node) -> Self {
        let extra = node.extra.as_ref();
        Self {
            known: node.known,
            epoch: node.epoch,
            names: node.names,
            complete: node.complete,
            listed: node.listed,
            verifier: node.verifier,
            target: extra.and_then(|extra| extra.target.clone()),
            place: extra.and_then(|extra| extra.place.clone()),
        }
    }

    pub fn into_node(self, token: u64) -> Node {
        let mut node = Node::new(self.epoch, token);
        node.known = self.known;
        node.names = self.names;
        node.complete = self.complete;
        node.listed = self.listed;
        node.verifier = self.verifier;
        if self.place.is_some() || self.target.is_some() {
            let extra = node.extra();
            (extra.place, extra.target) = (self.place, self.target);
        }
        node
    }
}

/// Adds up a row's columns, so that nothing can move from one to the next unseen.
struct Sum(u64);

impl Sum {
    fn number(self, number: u64) -> Self {
        Self(fnv(self.0, &number.to_le_bytes()))
    }
    fn maybe(self, number: Option<i64>) -> Self {
        match number {
            Some(number) => self.number(1).number(number as u64),
            None => self.number(0),
        }
    }
    fn bytes(self, bytes: Option<&[u8]>) -> Self {
        let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
        Self(fnv(self.number(length).0, bytes.unwrap_or_default()))
    }
}

struct NodeColumns<'a> {
    handle: &'a [u8],
    key: u64,
    epoch: u64,
    at: u64,
    attr: Option<&'a [u8]>,
    base: Option<&'a [u8]>,
    names: u64,
    flags: i64,
    verifier: Option<&'a [u8]>,
    target: Option<&'a [u8]>,
    dir: Option<&'a [u8]>,
    name: Option<&'a [u8]>,
}

impl NodeColumns<'_> {
    fn sum(&self) -> u64 {
        let sum = Sum(FNV_START).bytes(Some(self.handle));
        let sum = sum.number(self.key).number(self.epoch).number(self.at);
        let sum = sum.bytes(self.attr).bytes(self.base);
        let sum = sum.number(self.names).number(self.flags as u64).bytes(self.verifier);
        sum.bytes(self.target).bytes(self.dir).bytes(self.name).0
    }
}

pub(super) fn put_node(to: &Connection, handle: &FileHandle, row: &NodeRow) -> SqlResult<()> {
    let attr = row.known.attr.as_ref().map(pack_attr);
    let base = row.known.base.as_ref().map(pack_base);
    let columns = NodeColumns {
        handle: handle.as_bytes(),
        key: row.known.key.0,
        epoch: row.epoch,
        at: row.known.at,
        attr: attr.as_ref().map(|attr| &attr[..]),
        base: base.as_ref().map(|base| &base[..]),
        names: row.names,
        flags: i64::from(row.complete) * FLAG_COMPLETE + i64::from(row.listed) * FLAG_LISTED,
        verifier: row.listed.then_some(&row.verifier),
        target: row.target.as_deref(),
        dir: row.place.as_ref().map(|place| place.dir.as_bytes()),
        name: row.place.as_ref().map(|place| &place.name[..]),
    };
    to.prepare_cached(
        "INSERT OR REPLACE INTO node VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
    )?
    .execute(params![
        columns.handle,
        columns.key as i64,
        columns.epoch as i64,
        columns.at as i64,
        columns.attr,
        columns.base,
        columns.names as i64,
        columns.flags,
        columns.verifier,
        columns.target,
        columns.dir,
        columns.name,
        columns.sum() as i64,
    ])?;
    Ok(())
}

type SqlResult<T> = rusqlite::Result<T>;

/// What was found of a row.
#[derive(Default)]
pub(super) enum Found<T> {
    #[default]
    Nothing,
    Damaged,
    Row(T),
}

impl<T> Found<T> {
    fn of(row: Option<Option<T>>) -> Self {
        match row {
            None => Self::Nothing,
            Some(None) => Self::Damaged,
            Some(Some(row)) => Self::Row(row),
        }
    }
}

pub(super) fn node(from: &Connection, handle: &FileHandle) -> SqlResult<Found<NodeRow>> {
    let mut find = from.prepare_cached(
        "SELECT key, epoch, at, attr, base, names, flags, verifier, target, dir, name, sum
         FROM node WHERE handle = ?1",
    )?;
    let row = find.query_row([handle.as_bytes()], |row| {
        let blob = |index| row.get_ref(index)?.as_blob_or_null().map_err(rusqlite::Error::from);
        let columns = NodeColumns {
            handle: handle.as_bytes(),
            key: row.get::<_, i64>(0)? as u64,
            epoch: row.get::<_, i64>(1)? as u64,
            at: row.get::<_, i64>(2)? as u64,
            attr: blob(3)?,
            base: blob(4)?,
            names: row.get::<_, i64>(5)? as u64,
            flags: row.get(6)?,
            verifier: blob(7)?,
            target: blob(8)?,
            dir: blob(9)?,
            name: blob(10)?,
        };
        let whole = columns.sum() == row.get::<_, i64>(11)? as u64;
        Ok(whole.then(|| unpack(&columns)).flatten())
    });
    Ok(Found::of(row.optional()?))
}

fn unpack(columns: &NodeColumns) -> Option<NodeRow> {
    let place = match (columns.dir, columns.name) {
        (Some(dir), Some(name)) => Some(Place { dir: FileHandle::new(dir)?, name: name.into() }),
        _ => None,
    };
    let attr = columns.attr.map(unpack_attr);
    let base = columns.base.map(unpack_base);
    if matches!(attr, Some(None)) || matches!(base, Some(None)) || columns.key == 0 {
        return None;
    }
    Some(NodeRow {
        known: Known {
            attr: attr.flatten(),
            at: columns.at,
            key: FileKey(columns.key),
            base: base.flatten(),
        },
        epoch: columns.epoch,
        names: columns.names,
        complete: columns.flags & FLAG_COMPLETE != 0,
        listed: columns.flags & FLAG_LISTED != 0,
        verifier: columns.verifier.and_then(|bytes| bytes.try_into().ok()).unwrap_or_default(),
        target: columns.target.map(Bytes::copy_from_slice),
        place,
    })
}

pub(super) fn forget_node(to: &Connection, handle: &FileHandle) -> SqlResult<()> {
    to.prepare_cached("DELETE FROM node WHERE handle = ?1")?.execute([handle.as_bytes()])?;
    Ok(())
}

pub(super) fn handle_of_key(from: &Connection, key: FileKey) -> SqlResult<Option<FileHandle>> {
    let mut find = from.prepare_cached("SELECT handle FROM node WHERE key = ?1")?;
    let handle = find.query_row([key.0 as i64], |row| row.get::<_, Vec<u8>>(0)).optional()?;
    Ok(handle.and_then(|bytes| FileHandle::new(&bytes)))
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

/// Whether the tables and their indices agree, and every row with its checksum.
pub(super) fn check(from: &Connection) -> SqlResult<bool> {
    let problems: String = from.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if problems != "ok" {
        return Ok(false);
    }
    let mut nodes = from.prepare("SELECT handle FROM node")?;
    let mut rows = nodes.query([])?;
    while let Some(row) = rows.next()? {
        let handle = FileHandle::new(&row.get::<_, Vec<u8>>(0)?);
        match handle.map(|handle| node(from, &handle)).transpose()? {
            Some(Found::Row(_) | Found::Nothing) => {}
            Some(Found::Damaged) | None => return Ok(false),
        }
    }
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
