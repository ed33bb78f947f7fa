//! One file of the journal.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use nix::sys::uio::{preadv, pwritev};

/// A segment file, open for reading and writing for as long as anybody uses it.
#[derive(Debug)]
pub struct Segment {
    pub number: u32,
    pub path: PathBuf,
    pub file: File,
    /// Up to where there are records. What is behind is zero.
    pub bytes: AtomicU64,
    /// Payload bytes that have not been released.
    pub live: AtomicU64,
}

impl Segment {
    pub fn new(number: u32, path: PathBuf, file: File, bytes: u64) -> Self {
        Self { number, path, file, bytes: AtomicU64::new(bytes), live: AtomicU64::new(0) }
    }
}

/// Returns the name of a segment file in the journal's directory.
pub fn path_of(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:08}.log"))
}

/// Returns the number in a segment file's name.
pub fn number_of(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().ok())?
}

/// Writes all of the slices at `at`: one call, unless the kernel takes less.
pub fn write_all(file: &File, mut slices: &mut [IoSlice<'_>], mut at: u64) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match pwritev(file, slices, at as i64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                IoSlice::advance_slices(&mut slices, count);
                at += count as u64;
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Fills all of the slices from `at`; a file that ends before is an `UnexpectedEof`.
pub fn read_all(file: &File, mut slices: &mut [IoSliceMut<'_>], mut at: u64) -> io::Result<()> {
    IoSliceMut::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match preadv(file, slices, at as i64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                IoSliceMut::advance_slices(&mut slices, count);
                at += count as u64;
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
