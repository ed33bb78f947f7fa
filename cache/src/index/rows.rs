//! Rows of the database. Each has a checksum; one that does not match is taken for not there.

use bytes::Bytes;
use gridvfs_vfs::FileHandle;
use rusqlite::{Connection, OptionalExtension, params};

use super::node::{FNV_START, Node, Place, fnv, pack_attr, pack_base, unpack_attr, unpack_base};
use super::{Known, name_rows};
use crate::FileKey;

const FLAG_COMPLETE: i64 = 1;
const FLAG_LISTED: i64 = 2;

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
pub(super) struct Sum(pub u64);

impl Sum {
    pub fn number(self, number: u64) -> Self {
        Self(fnv(self.0, &number.to_le_bytes()))
    }
    pub fn maybe(self, number: Option<i64>) -> Self {
        match number {
            Some(number) => self.number(1).number(number as u64),
            None => self.number(0),
        }
    }
    pub fn bytes(self, bytes: Option<&[u8]>) -> Self {
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
    written: u64,
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
        let sum = sum.bytes(self.attr).bytes(self.base).number(self.written);
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
        written: row.known.written,
        names: row.names,
        flags: i64::from(row.complete) * FLAG_COMPLETE + i64::from(row.listed) * FLAG_LISTED,
        verifier: row.listed.then_some(&row.verifier),
        target: row.target.as_deref(),
        dir: row.place.as_ref().map(|place| place.dir.as_bytes()),
        name: row.place.as_ref().map(|place| &place.name[..]),
    };
    to.prepare_cached(
        "INSERT OR REPLACE INTO node
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
    )?
    .execute(params![
        columns.handle,
        columns.key as i64,
        columns.epoch as i64,
        columns.at as i64,
        columns.attr,
        columns.base,
        columns.written as i64,
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

pub(super) type SqlResult<T> = rusqlite::Result<T>;

/// What was found of a row.
#[derive(Default)]
pub(super) enum Found<T> {
    #[default]
    Nothing,
    Damaged,
    Row(T),
}

impl<T> Found<T> {
    pub fn of(row: Option<Option<T>>) -> Self {
        match row {
            None => Self::Nothing,
            Some(None) => Self::Damaged,
            Some(Some(row)) => Self::Row(row),
        }
    }
}

pub(super) fn node(from: &Connection, handle: &FileHandle) -> SqlResult<Found<NodeRow>> {
    let mut find = from.prepare_cached(
        "SELECT key, epoch, at, attr, base, written, names, flags, verifier, target, dir, name, sum
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
            written: row.get::<_, i64>(5)? as u64,
            names: row.get::<_, i64>(6)? as u64,
            flags: row.get(7)?,
            verifier: blob(8)?,
            target: blob(9)?,
            dir: blob(10)?,
            name: blob(11)?,
        };
        let whole = columns.sum() == row.get::<_, i64>(12)? as u64;
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
            written: columns.written,
            changed_at: 0,
            asked: 0,
            learned: 0,
            told_at: 0,
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

/// Forgets the files whose data we have changed after this period of the store.
pub(super) fn forget_written(to: &Connection, after: u64) -> SqlResult<usize> {
    to.execute("DELETE FROM node WHERE written > ?1", [after as i64])
}

pub(super) fn handle_of_key(from: &Connection, key: FileKey) -> SqlResult<Option<FileHandle>> {
    let mut find = from.prepare_cached("SELECT handle FROM node WHERE key = ?1")?;
    let handle = find.query_row([key.0 as i64], |row| row.get::<_, Vec<u8>>(0)).optional()?;
    Ok(handle.and_then(|bytes| FileHandle::new(&bytes)))
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
    name_rows::check(from)
}
