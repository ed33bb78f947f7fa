//! The names of files that were removed while open ("silly rename"), and a log of them on this
//! machine, so that those of a process that was killed are removed by the next mount.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use gridvfs_vfs::{Caller, Error, FileHandle, Status, Vfs};
use nix::fcntl::{Flock, FlockArg};
use parking_lot::Mutex;

use crate::inodes::Hidden;

/// What such names begin with: NFS clients' own habit, which servers' cleaners know.
const PREFIX: &[u8] = b".nfs";
/// Their length: the prefix and two numbers of 16 hexadecimal digits.
const LENGTH: usize = PREFIX.len() + 32;
/// The largest log that is read back, in bytes.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// The most logs that a process has of one source.
const LOGS_MAX: u32 = 1000;

/// Makes a name.
pub fn silly_name(number: u64, counter: u64) -> Vec<u8> {
    let mut name = PREFIX.to_vec();
    name.extend_from_slice(format!("{number:016x}{counter:016x}").as_bytes());
    name
}

/// Says whether a name is such a one.
pub fn is_silly(name: &[u8]) -> bool {
    name.len() == LENGTH
        && name.starts_with(PREFIX)
        && name[PREFIX.len()..].iter().all(u8::is_ascii_hexdigit)
}

/// Returns eight random bytes.
pub fn random() -> [u8; 8] {
    // The standard library's hasher is keyed by the system's randomness.
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id()).to_ne_bytes()
}

/// A log of hidden files: a line for each that comes (`+`) and goes (`-`).
///
/// Each process that hides files has a log of its own and holds a lock on it (flock) for as long as
/// it lives. A log that is not locked is of a process that has died.
pub struct SillyLog {
    /// What the names of the logs of one source begin with.
    base: PathBuf,
    own: Mutex<Option<(PathBuf, Flock<File>)>>,
}

impl SillyLog {
    /// Uses logs named after `base`, one for each source. None is made before it is needed.
    pub fn open(base: &Path) -> Self {
        Self { base: base.into(), own: Mutex::new(None) }
    }

    /// Makes a log under a name of its own.
    fn make(&self) -> std::io::Result<(PathBuf, Flock<File>)> {
        for number in 0..LOGS_MAX {
            let mut name = self.base.clone().into_os_string();
            name.push(format!(".{}-{number}", std::process::id()));
            let path = PathBuf::from(name);
            let file = match File::options().create_new(true).append(true).open(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                file => file?,
            };
            // Before the lock is there another process may take the log for a dead one's.
            if let Ok(file) = Flock::lock(file, FlockArg::LockExclusiveNonblock)
                && is_at(&file, &path)
            {
                return Ok((path, file));
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    fn append(&self, sign: char, hidden: &Hidden) {
        let line = format!("{sign} {} {}\n", hex(hidden.dir.as_bytes()), hex(&hidden.name));
        let mut own = self.own.lock();
        let result = match own.as_mut() {
            Some((_, file)) => file.write_all(line.as_bytes()),
            None => self.make().and_then(|(path, mut file)| {
                let result = file.write_all(line.as_bytes());
                *own = Some((path, file));
                result
            }),
        };
        // Without the log a name may be left behind, no more.
        if let Err(error) = result {
            log::debug!("{}: {error}", self.base.display());
        }
    }

    /// Notes a file that is about to be hidden.
    pub fn record(&self, hidden: &Hidden) {
        self.append('+', hidden);
    }

    /// Notes that a hidden file is gone.
    pub fn erase(&self, hidden: &Hidden) {
        self.append('-', hidden);
    }

    /// Ends the log, unless files are left for the next mount to remove.
    pub fn finish(&self) {
        if let Some((path, _file)) = self.own.lock().take()
            && read_log(&path).is_empty()
        {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Returns the logs of processes that have died, locked.
    fn orphans(&self) -> Vec<(PathBuf, Flock<File>)> {
        let (Some(folder), Some(base)) = (self.base.parent(), self.base.file_name()) else {
            return Vec::new();
        };
        let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
        entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().as_bytes();
                // Without a number: of a version that had one log for all.
                let rest = name.strip_prefix(base.as_bytes());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"."))
            })
            .filter_map(|path| {
                let file = File::open(&path).ok()?;
                let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?;
                is_at(&file, &path).then_some((path, file))
            })
            .collect()
    }

    /// Removes what processes have left that have died, and their logs.
    pub async fn clean(&self, vfs: &dyn Vfs, caller: &Caller) {
        for (path, _locked) in self.orphans() {
            let left = read_log(&path);
            for hidden in left.iter().filter(|hidden| is_silly(&hidden.name)) {
                match vfs.remove(caller, &hidden.dir, &hidden.name).await {
                    Ok(_) => log::info!("removed a hidden file that a killed mount has left"),
                    Err(Error::Status(Status::NOENT | Status::STALE | Status::BADHANDLE)) => {}
                    Err(error) => {
                        log::warn!("hidden files of a killed mount are left: {error}");
                        return;
                    }
                }
            }
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Says whether a file is the one at a path.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn read_log(path: &Path) -> HashSet<Hidden> {
    let Ok(file) = File::open(path) else { return HashSet::new() };
    let mut left = HashSet::new();
    for line in BufReader::new(std::io::Read::take(file, LOG_BYTES_MAX)).lines() {
        let Ok(line) = line else { break };
        let mut words = line.split(' ');
        let (Some(sign), Some(dir), Some(name)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let dir = unhex(dir).and_then(|bytes| FileHandle::new(&bytes));
        let (Some(dir), Some(name)) = (dir, unhex(name)) else { continue };
        let hidden = Hidden { dir, name };
        match sign {
            "+" => left.insert(hidden),
            _ => left.remove(&hidden),
        };
    }
    left
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_others() {
        assert!(is_silly(&silly_name(u64::MAX, 7)));
        for name in [&b".nfs"[..], b".nfs0", b"x", &[b'.'; 36]] {
            assert!(!is_silly(name));
        }
    }

    fn hidden(number: u8) -> Hidden {
        Hidden {
            dir: FileHandle::new(&[number]).expect("short"),
            name: silly_name(number.into(), 1),
        }
    }

    #[test]
    fn the_log_gives_back_what_is_left() {
        let folder = tempfile::tempdir().expect("folder");
        let log = SillyLog::open(&folder.path().join("silly"));
        log.record(&hidden(1));
        log.record(&hidden(2));
        log.erase(&hidden(1));
        let path = log.own.lock().as_ref().expect("made").0.clone();
        std::fs::write(folder.path().join("other"), "+ zz\n+\n+ 1 2\n").expect("write");
        assert_eq!(read_log(&path), HashSet::from([hidden(2)]));
        assert!(read_log(&folder.path().join("other")).is_empty());
        assert!(read_log(&folder.path().join("none")).is_empty());
        log.finish();
        assert!(path.exists(), "a file is left");
    }

    #[test]
    fn logs_of_the_living_are_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let base = folder.path().join("silly-1");
        std::fs::write(&base, "+ 01 02\n").expect("an old version's");
        std::fs::write(folder.path().join("silly-11"), "").expect("another source's");
        let (living, dead, done) =
            (SillyLog::open(&base), SillyLog::open(&base), SillyLog::open(&base));
        for log in [&living, &dead, &done] {
            log.record(&hidden(1));
        }
        let died = dead.own.lock().take().map(|(path, _)| path);
        done.erase(&hidden(1));
        done.finish();
        let mut orphans: Vec<_> =
            SillyLog::open(&base).orphans().into_iter().map(|(path, _)| path).collect();
        orphans.sort();
        assert_eq!(orphans, [Some(base), died].map(|path| path.expect("a path")));
        assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 4);
    }
}
