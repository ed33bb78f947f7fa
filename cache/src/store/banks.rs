//! The bank files: where the data is.
//!
//! Sparse files, made when a frame of theirs is first written, and then kept open: a hit is one
//! system call. What is in them is never trusted: the tags say what is valid, and the checksums
//! whether it is right.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};

use super::geometry::{BLOCK_BYTES, Layout};
use super::tags::no_copy_on_write;

/// See the module's description.
pub(super) struct Banks {
    dir: PathBuf,
    files: Box<[OnceLock<File>]>,
    /// Written since the last sync.
    dirty: Box<[AtomicBool]>,
    bank_bytes: u64,
}

impl Banks {
    pub fn open(dir: PathBuf, layout: &Layout) -> io::Result<Self> {
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        Ok(Self {
            dir,
            files: (0..layout.banks).map(|_| OnceLock::new()).collect(),
            dirty: (0..layout.banks).map(|_| AtomicBool::new(false)).collect(),
            bank_bytes: layout.bank_bytes(),
        })
    }

    pub fn path(&self, bank: u32) -> PathBuf {
        self.dir.join(format!("{bank:04}"))
    }

    /// Returns a bank's file; makes one if there is none and `make`.
    #[inline]
    pub fn file(&self, bank: u32, make: bool) -> io::Result<&File> {
        match self.files[bank as usize].get() {
            Some(file) => Ok(file),
            None => self.open_file(bank, make),
        }
    }

    #[cold]
    fn open_file(&self, bank: u32, make: bool) -> io::Result<&File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(make).mode(0o600);
        options.custom_flags(libc::O_NOFOLLOW);
        let file = match options.open(self.path(bank)) {
            // Half a cache was deleted under us.
            Err(error) if make && error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&self.dir)?;
                options.open(self.path(bank))?
            }
            other => other?,
        };
        let length = file.metadata()?.len();
        if length == 0 {
            no_copy_on_write(&file);
        }
        if length < self.bank_bytes {
            file.set_len(self.bank_bytes)?;
        }
        Ok(self.files[bank as usize].get_or_init(|| file))
    }

    /// Writes blocks; the last one is filled up with zeros.
    pub fn write(&self, bank: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let file = self.file(bank, true)?;
        self.dirty[bank as usize].store(true, Release);
        let whole = data.len() / BLOCK_BYTES * BLOCK_BYTES;
        file.write_all_at(&data[..whole], offset)?;
        if whole < data.len() {
            let mut last = [0; BLOCK_BYTES];
            last[..data.len() - whole].copy_from_slice(&data[whole..]);
            file.write_all_at(&last, offset + whole as u64)?;
        }
        Ok(())
    }

    /// Gives the disk space of a range back; returns how much that was.
    pub fn punch(&self, bank: u32, offset: u64, length: u64) -> u64 {
        let Ok(file) = self.file(bank, false) else { return 0 };
        let before = disk_bytes(file);
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: plain call on an open descriptor.
        unsafe {
            libc::fallocate(file.as_raw_fd(), mode, offset as libc::off_t, length as libc::off_t)
        };
        before.saturating_sub(disk_bytes(file))
    }

    /// Returns what a bank takes on the disk.
    pub fn disk_bytes(&self, bank: u32) -> u64 {
        match self.files[bank as usize].get() {
            Some(file) => disk_bytes(file),
            None => fs::metadata(self.path(bank)).map_or(0, |meta| meta.blocks() * 512),
        }
    }

    pub fn count(&self) -> u32 {
        self.files.len() as u32
    }

    pub fn bank_bytes(&self) -> u64 {
        self.bank_bytes
    }

    /// Writes what changed to the disk.
    pub fn sync(&self) -> io::Result<()> {
        for (bank, dirty) in self.dirty.iter().enumerate() {
            if dirty.swap(false, Acquire)
                && let Some(file) = self.files[bank].get()
                && let Err(error) = file.sync_data()
            {
                dirty.store(true, Release);
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Removes all bank files.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn disk_bytes(file: &File) -> u64 {
    file.metadata().map_or(0, |meta| meta.blocks() * 512)
}
