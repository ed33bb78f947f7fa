//! The names of files that were removed while open ("silly rename"), and a log of them on this
//! machine, so that those of a process that was killed are removed by the next mount.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use gridvfs_vfs::{Caller, Error, FileHandle, Status, Vfs};
use parking_lot::Mutex;

use crate::inodes::Hidden;

/// What such names begin with: NFS clients' own habit, which servers' cleaners know.
const PREFIX: &[u8] = b".nfs";
/// Their length: the prefix and two numbers of 16 hexadecimal digits.
const LENGTH: usize = PREFIX.len() + 32;
/// The largest log that is read back, in bytes.
const LOG_BYTES_MAX: u64 = 16 << 20;

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
pub struct SillyLog {
    path: PathBuf,
    file: Mutex<Option<File>>,
}

impl SillyLog {
    /// Uses the log at `path`, one for each source. Nothing is made before it is needed.
    pub fn open(path: &Path) -> Self {
        Self { path: path.into(), file: Mutex::new(None) }
    }

    fn append(&self, sign: char, hidden: &Hidden) {
        let line = format!("{sign} {} {}\n", hex(hidden.dir.as_bytes()), hex(&hidden.name));
        let mut file = self.file.lock();
        if file.is_none() {
            *file = File::options().create(true).append(true).open(&self.path).ok();
        }
        // Without the log a name may be left behind, no more.
        if let Some(file) = file.as_mut()
            && let Err(error) = file.write_all(line.as_bytes())
        {
            log::debug!("{}: {error}", self.path.display());
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

    /// Removes what an earlier process has left, then empties the log.
    pub async fn clean(&self, vfs: &dyn Vfs, caller: &Caller) {
        let left = read_log(&self.path);
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
        let _ = std::fs::remove_file(&self.path);
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

    #[test]
    fn the_log_gives_back_what_is_left() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("silly");
        let log = SillyLog::open(&path);
        let hidden = |number| Hidden {
            dir: FileHandle::new(&[number]).expect("short"),
            name: silly_name(number.into(), 1),
        };
        log.record(&hidden(1));
        log.record(&hidden(2));
        log.erase(&hidden(1));
        std::fs::write(folder.path().join("other"), "+ zz\n+\n+ 1 2\n").expect("write");
        assert_eq!(read_log(&path), HashSet::from([hidden(2)]));
        assert!(read_log(&folder.path().join("other")).is_empty());
        assert!(read_log(&folder.path().join("none")).is_empty());
    }
}
