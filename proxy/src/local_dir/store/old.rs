//! Tables that nobody will ask for again: removed, since each export that ever was has left one.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// For how long the table of an export that is gone is kept: a disk may only be away.
const AGE_MAX: Duration = Duration::from_secs(90 * 24 * 3600);

fn beside(table: &Path, suffix: &str) -> PathBuf {
    let mut name = table.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Notes that a table is in use, and for which export.
pub(in crate::local_dir) fn note_use(table: &Path, export: &Path) {
    let noted = File::open(table)
        .and_then(|file| file.set_modified(SystemTime::now()))
        .and_then(|()| fs::write(beside(table, ".export"), export.as_os_str().as_bytes()));
    if let Err(error) = noted {
        log::debug!("{}: {error}", table.display());
    }
}

/// Removes the tables in a directory whose exports are gone and that were not used for long.
pub(in crate::local_dir) fn remove_old(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for table in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = table.file_name().unwrap_or_default().to_string_lossy();
        let Some(numbers) =
            name.strip_prefix("handles-").and_then(|name| name.strip_suffix(".sqlite"))
        else {
            continue;
        };
        let inode = numbers.rsplit_once('-').map(|(_, inode)| u64::from_str_radix(inode, 16));
        let Some(Ok(inode)) = inode else { continue };
        if is_old(&table) && !is_there(&table, inode) {
            log::info!("removing {}: its export is gone", table.display());
            for suffix in ["", "-wal", "-shm", ".export"] {
                // What is not there need not be removed.
                let _ = fs::remove_file(beside(&table, suffix));
            }
        }
    }
}

fn is_old(table: &Path) -> bool {
    let old = |path: PathBuf| {
        let time = fs::metadata(path).and_then(|meta| meta.modified()).ok();
        // A clock that stepped back says nothing about age.
        time.is_none_or(|time| time.elapsed().is_ok_and(|age| age > AGE_MAX))
    };
    old(table.into()) && old(beside(table, "-wal"))
}

/// Says whether the export is where it was. Tables of earlier versions do not tell where.
fn is_there(table: &Path, inode: u64) -> bool {
    let Ok(export) = fs::read(beside(table, ".export")) else { return false };
    let export = Path::new(std::ffi::OsStr::from_bytes(&export));
    fs::metadata(export).is_ok_and(|meta| meta.is_dir() && meta.ino() == inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_tables_of_lost_exports_go() {
        let folder = tempfile::tempdir().expect("folder");
        let export = folder.path().join("export");
        fs::create_dir(&export).expect("mkdir");
        let inode = fs::metadata(&export).expect("stat").ino();
        let make = |name: &str, days: u64, export: Option<&Path>| {
            let table = folder.path().join(name);
            let file = File::create(&table).expect("create");
            if let Some(export) = export {
                note_use(&table, export);
            }
            let age = Duration::from_secs(days * 24 * 3600);
            file.set_modified(SystemTime::now() - age).expect("utimes");
        };
        let there = format!("handles-0000000000000001-{inode:x}.sqlite");
        let replaced = format!("handles-0000000000000001-{:x}.sqlite", inode + 1);
        make(&there, 400, Some(&export));
        make(&replaced, 400, Some(&export));
        make("handles-0000000000000002-7.sqlite", 400, Some(Path::new("/nonexistent")));
        make("handles-0000000000000002-8.sqlite", 80, Some(Path::new("/nonexistent")));
        make("handles-0000000000000002-9.sqlite", 400, None);
        make("handles-0000000000000002-a.sqlite", 1, None);
        make("others-0000000000000002-b.sqlite", 400, None);
        make("handles-0000000000000002-c.sqlite", 400, None);
        make("handles-0000000000000002-c.sqlite-wal", 1, None);
        remove_old(folder.path());
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .expect("list")
            .map(|entry| entry.expect("entry").file_name().into_string().expect("text"))
            .filter(|name| name.ends_with(".sqlite"))
            .collect();
        left.sort();
        let mut wanted = vec![
            there,
            "handles-0000000000000002-8.sqlite".into(),
            "handles-0000000000000002-a.sqlite".into(),
            "handles-0000000000000002-c.sqlite".into(),
            "others-0000000000000002-b.sqlite".into(),
        ];
        wanted.sort();
        assert_eq!(left, wanted);
    }
}
