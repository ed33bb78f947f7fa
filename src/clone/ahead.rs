//! Has a mount fetch what a clone is about to need, all at once: one after the other its files would
//! cost some round trips each. Nobody waits for it here, and what fails is asked for again by whoever
//! needs it.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use parking_lot::Mutex;

/// Files of a golden directory that are fetched before anybody knows what they are: configurations.
const SMALL_BYTES_MAX: u64 = 64 << 10;
/// Files that are read as a whole when a VM starts: kernels, the state of devices. Of a larger one the
/// start is fetched, by which the mount begins with what metadata says of it.
const WHOLE_BYTES_MAX: u64 = 64 << 20;
const START_BYTES: usize = 4096;
/// The most files at once.
const FILES_MAX: usize = 64;

/// Fetches what small files there are in the golden directory.
pub fn directory(directory: PathBuf) {
    std::thread::spawn(move || {
        let Ok(entries) = std::fs::read_dir(directory) else { return };
        for entry in entries.flatten().take(FILES_MAX) {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_file() && meta.len() <= SMALL_BYTES_MAX {
                file(entry.path());
            }
        }
    });
}

/// Files that the clone, or who starts it, reads: each is fetched as soon as it is known.
#[derive(Default)]
pub(super) struct Ahead(Mutex<BTreeSet<PathBuf>>);

impl Ahead {
    /// Fetches a file, once.
    pub fn file(&self, path: &Path) {
        let mut begun = self.0.lock();
        if begun.len() < FILES_MAX && begun.insert(path.into()) {
            file(path.into());
        }
    }
}

fn file(path: PathBuf) {
    std::thread::spawn(move || fetch(&path));
}

fn fetch(path: &Path) -> Option<()> {
    // Nothing else has a start that can be read without a consequence.
    let size = path.metadata().ok().filter(|meta| meta.is_file())?.len();
    let file = File::open(path).ok()?;
    if size > WHOLE_BYTES_MAX {
        return file.read_at(&mut [0; START_BYTES], 0).map(drop).ok();
    }
    // The kernel reads it in the background.
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_WILLNEED).ok()
}
