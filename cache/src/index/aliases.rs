//! Aliases: the server's handles of files that were made here and are known by handles of ours.

use gridvfs_vfs::FileHandle;
use rusqlite::{Connection, params};

use super::Index;
use super::node::FNV_START;
use super::rows::Sum;
use super::writer::Change;

fn sum(ours: &[u8], server: &[u8]) -> i64 {
    Sum(FNV_START).bytes(Some(ours)).bytes(Some(server)).0 as i64
}

pub(super) fn put(to: &Connection, ours: &FileHandle, server: &FileHandle) -> rusqlite::Result<()> {
    let (ours, server) = (ours.as_bytes(), server.as_bytes());
    let insert = "INSERT OR REPLACE INTO alias VALUES (?1, ?2, ?3)";
    to.prepare_cached(insert)?.execute(params![ours, server, sum(ours, server)]).map(drop)
}

pub(super) fn remove(to: &Connection, ours: &FileHandle) -> rusqlite::Result<()> {
    let delete = "DELETE FROM alias WHERE ours = ?1";
    to.prepare_cached(delete)?.execute([ours.as_bytes()]).map(drop)
}

fn all(from: &Connection) -> rusqlite::Result<Vec<(FileHandle, FileHandle)>> {
    let mut select = from.prepare("SELECT ours, server, sum FROM alias")?;
    let mut rows = select.query([])?;
    let mut aliases = Vec::new();
    while let Some(row) = rows.next()? {
        let (ours, server): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?);
        let right = row.get::<_, i64>(2)? == sum(&ours, &server);
        let handles = FileHandle::new(&ours).zip(FileHandle::new(&server));
        aliases.extend(handles.filter(|_| right));
    }
    Ok(aliases)
}

impl Index {
    /// Notes by which handle the server knows a file that is known here by one of ours; `None`: the
    /// file is gone.
    pub fn set_alias(&self, ours: &FileHandle, server: Option<&FileHandle>) {
        self.push(|| Change::Alias(*ours, server.copied()));
    }

    /// Returns all files that are known by handles of ours: those, and the server's.
    pub fn aliases(&self) -> Vec<(FileHandle, FileHandle)> {
        self.flush();
        self.database.read(all)
    }

    /// Forgets them: they are of another server.
    pub fn forget_aliases(&self) {
        self.push(|| Change::ForgetAliases);
    }
}
