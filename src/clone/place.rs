//! Puts files of a golden VM into a clone: by reflink, link or copy.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};

use super::Watch;
use crate::report::bytes_text;

/// Where holes are is asked so many bytes apart at most: over a WAN the question takes as long as these
/// take to come.
const WORTH_ASKING: u64 = 4 << 20;
/// So much is read at once, in bytes.
const PIECE: usize = 1 << 20;
/// Zeros are left out by blocks of so many bytes: a page, and a file system's block.
const BLOCK: usize = 4096;

/// How memory gets into a clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A reflink where that is possible, else a hard link, else a symbolic link.
    Auto,
    /// A reflink where that is possible, else a copy.
    Own,
    /// A copy, without zeros.
    Copy,
    /// A link.
    Link,
    /// A reflink, or an error.
    Reflink,
}

/// What was done.
pub enum Done {
    /// It shares its blocks with the golden file until one of them is written.
    Reflinked,
    /// It is the golden file by another name.
    HardLinked,
    /// It leads to the golden file.
    SymbolicLink,
    /// So many bytes were copied, and so many were zeros.
    Copied(u64, u64),
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reflinked => write!(f, "reflinked"),
            Self::HardLinked => write!(f, "linked (hard link)"),
            Self::SymbolicLink => write!(f, "linked (symbolic link)"),
            Self::Copied(data, zeros) => {
                write!(f, "copied, {} and {} of zeros", bytes_text(*data), bytes_text(*zeros))
            }
        }
    }
}

nix::ioctl_write_int!(ficlone, 0x94, 9);

/// Puts memory into the clone. `local` is a whole copy of the golden file on this machine, if there
/// is one.
pub fn memory(
    golden: &Path,
    local: Option<&Path>,
    target: &Path,
    way: Way,
    watch: &mut dyn Watch,
) -> Result<Done> {
    let nearest = local.unwrap_or(golden);
    if way != Way::Copy && way != Way::Link {
        match reflink(nearest, target) {
            Ok(()) => return Ok(Done::Reflinked),
            Err(error) if way == Way::Reflink => {
                return Err(error).context("this file system makes no reflink of it");
            }
            Err(_) => {}
        }
    }
    if way == Way::Auto || way == Way::Link {
        // Across file systems, or to somebody else's file, it may not be made.
        if std::fs::hard_link(nearest, target).is_ok() {
            return Ok(Done::HardLinked);
        }
        // Never to the local copy: what has only that name goes when room is needed.
        std::os::unix::fs::symlink(golden, target)?;
        return Ok(Done::SymbolicLink);
    }
    let (data, zeros) = copy_data(nearest, target, watch)?;
    Ok(Done::Copied(data, zeros))
}

/// Copies a file; returns its size.
pub fn copy(from: &Path, to: &Path, watch: &mut dyn Watch) -> Result<u64> {
    if reflink(from, to).is_ok() {
        return Ok(std::fs::metadata(to)?.size());
    }
    copy_data(from, to, watch).map(|(data, zeros)| data + zeros)
}

/// Writes a new file.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(mode).open(path)?;
    Ok(file.write_all(bytes)?)
}

fn create(path: &Path) -> std::io::Result<File> {
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

fn reflink(from: &Path, to: &Path) -> Result<()> {
    let source = File::open(from)?;
    let target = create(to)?;
    // SAFETY: both are open files, and the call takes no memory of ours.
    let done = unsafe { ficlone(target.as_raw_fd(), source.as_raw_fd() as u64) };
    if let Err(error) = done {
        drop(target);
        std::fs::remove_file(to)?;
        return Err(error.into());
    }
    Ok(())
}

/// Copies what is not zero; returns the bytes that were copied and those that were not.
fn copy_data(from: &Path, to: &Path, watch: &mut dyn Watch) -> Result<(u64, u64)> {
    let source = File::open(from).with_context(|| from.display().to_string())?;
    let size = source.metadata()?.size();
    let target = create(to).with_context(|| to.display().to_string())?;
    target.set_len(size)?;
    let (mut at, mut copied) = (0, 0);
    let mut buffer = vec![0; PIECE];
    while let Some((begin, end)) = next_data(&source, at, size)? {
        at = begin;
        while at < end {
            if watch.stopped() {
                bail!("interrupted");
            }
            let length = PIECE.min((end - at) as usize);
            let count = match source.read_at(&mut buffer[..length], at) {
                Ok(0) => bail!("it became shorter while it was read: {at} of {size} bytes"),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).with_context(|| from.display().to_string()),
            };
            copied += write_blocks(&target, &buffer[..count], at)?;
            at += count as u64;
            watch.bytes(at, size);
        }
    }
    Ok((copied, size - copied))
}

/// Writes the blocks that are not zero; returns how many bytes that were.
fn write_blocks(target: &File, piece: &[u8], at: u64) -> Result<u64> {
    let mut written = 0;
    let mut blocks = piece.chunks(BLOCK).enumerate().peekable();
    while let Some((first, block)) = blocks.next() {
        if is_zero(block) {
            continue;
        }
        let mut length = block.len();
        while let Some((_, block)) = blocks.next_if(|(_, block)| !is_zero(block)) {
            length += block.len();
        }
        let begin = first * BLOCK;
        let bytes = piece.get(begin..begin + length).unwrap_or_default();
        target.write_all_at(bytes, at + begin as u64).context("cannot write the copy")?;
        written += length as u64;
    }
    Ok(written)
}

fn is_zero(block: &[u8]) -> bool {
    let (words, rest) = block.as_chunks::<8>();
    words.iter().all(|word| *word == [0; 8]) && rest.iter().all(|byte| *byte == 0)
}

/// Finds the next range with data from `at` on; where holes are not told, that is all of it.
fn next_data(file: &File, at: u64, size: u64) -> Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    if at + WORTH_ASKING >= size {
        return Ok(Some((at, size)));
    }
    let seek = |at: u64, whence| lseek64(file, at as i64, whence);
    let begin = match seek(at, Whence::SeekData) {
        Ok(begin) => begin as u64,
        Err(Errno::ENXIO) => return Ok(None),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(Some((at, size))),
        Err(error) => return Err(error.into()),
    };
    let end = seek(begin, Whence::SeekHole)? as u64;
    Ok(Some((begin, end.max(begin + WORTH_ASKING).min(size))))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Unwatched(bool);

    impl Watch for Unwatched {
        fn phase(&mut self, _: &super::super::Phase) {}
        fn bytes(&mut self, _: u64, _: u64) {}
        fn stopped(&self) -> bool {
            self.0
        }
    }

    fn memory_file(directory: &Path) -> (std::path::PathBuf, Vec<u8>) {
        let mut bytes = vec![0; 3 * PIECE + 777];
        bytes[5] = 1;
        bytes[BLOCK * 7..BLOCK * 9].fill(2);
        let last = bytes.len() - 1;
        bytes[last] = 3;
        let path = directory.join("memory");
        std::fs::write(&path, &bytes).unwrap();
        (path, bytes)
    }

    #[test]
    fn a_copy_has_the_bytes_and_leaves_zeros_out() {
        let directory = tempfile::tempdir().unwrap();
        let (golden, bytes) = memory_file(directory.path());
        let target = directory.path().join("copy");
        let done = memory(&golden, None, &target, Way::Copy, &mut Unwatched(false)).unwrap();
        let Done::Copied(data, zeros) = done else { panic!("{done}") };
        assert_eq!(data, (3 * BLOCK + 777) as u64);
        assert_eq!(data + zeros, bytes.len() as u64);
        assert_eq!(std::fs::read(&target).unwrap(), bytes);
        assert!(std::fs::metadata(&target).unwrap().blocks() * 512 < (bytes.len() / 2) as u64);
        // There already: nothing is overwritten.
        assert!(memory(&golden, None, &target, Way::Copy, &mut Unwatched(false)).is_err());
    }

    #[test]
    fn an_interrupted_copy_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let (golden, _) = memory_file(directory.path());
        let target = directory.path().join("copy");
        assert!(memory(&golden, None, &target, Way::Copy, &mut Unwatched(true)).is_err());
    }

    #[test]
    fn links_lead_to_the_golden_file_and_never_to_a_local_copy() {
        let directory = tempfile::tempdir().unwrap();
        let (golden, bytes) = memory_file(directory.path());
        let target = directory.path().join("link");
        memory(&golden, None, &target, Way::Link, &mut Unwatched(false)).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), bytes);
        // On another file system a hard link cannot be made.
        let local = Path::new("/proc/self/status");
        let target = directory.path().join("symbolic");
        let done = memory(&golden, Some(local), &target, Way::Link, &mut Unwatched(false)).unwrap();
        assert!(matches!(done, Done::SymbolicLink), "{done}");
        assert_eq!(std::fs::read_link(&target).unwrap(), golden);
    }
}
