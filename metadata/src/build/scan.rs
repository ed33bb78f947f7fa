//! Reads a file in order with several threads, holes not at all.
//!
//! A thread takes the next span of at most 4 MiB and reads it in pieces that stay in its core's
//! cache from the kernel's copy to the hash. Each has the file open for itself, so that the kernel
//! sees it reading in order and reads ahead of it. (Telling the kernel of each span by
//! posix_fadvise instead took an eighth of the speed where the file was cached.)

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{Whence, lseek64};
use parking_lot::Mutex;

/// Threads at most.
pub const JOBS_MAX: usize = 64;

/// Bytes that a thread takes at a time: enough that taking costs nothing, and little enough that
/// all threads end at the same time. A multiple of any block.
const SPAN_BYTES: u64 = 4 << 20;

/// Bytes of one read unless a block is larger: what fits into the second-level cache of a core, so
/// that the data is still there when it is hashed. What cat and cp take, too.
const PIECE_BYTES: usize = 128 << 10;

/// What the memory that is read into begins at a multiple of. The kernel's copy took three times as
/// long into memory 16 bytes behind such a place, which is where large allocations begin.
const PIECE_ALIGNMENT: usize = 4096;

/// How far reading has come, for whoever watches, and a way to end it.
#[derive(Debug, Default)]
pub struct Progress {
    done_bytes: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// Returns how many bytes of the file are dealt with, holes included.
    pub fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
    }

    /// Has reading end soon, with an error.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Why reading ended early.
#[derive(Debug)]
pub(crate) enum ScanError {
    Io(io::Error),
    /// The file is shorter than it was.
    Cut,
    /// [`Progress::stop`] was called.
    Stopped,
    /// More was found than can be kept.
    TooMany,
}

/// What is done with the blocks of a file. Each block is given once, by one of several threads,
/// each of which gets its blocks in ascending order.
pub(crate) trait Visit: Sync {
    /// What a thread finds.
    type Found: Default + Send;
    /// Blocks that are zero because they lie in a hole.
    fn hole(&self, found: &mut Self::Found, first: u64, blocks: u64);
    /// Blocks from `first` on; the last of the file may be shorter.
    fn data(&self, found: &mut Self::Found, first: u64, bytes: &[u8]) -> Result<(), ScanError>;
}

/// Tells whether bytes are all zero: compared by the C library, which is fast in every build.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|part| *part == ZEROS[..part.len()])
}

/// Reads `size` bytes with `jobs` threads (0: one for each core). Returns what each found.
pub(crate) fn scan<V: Visit>(
    file: &File,
    size: u64,
    block_bytes: u32,
    jobs: usize,
    progress: &Progress,
    visit: &V,
) -> Result<Vec<V::Found>, ScanError> {
    let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let spans = usize::try_from(size.div_ceil(SPAN_BYTES)).unwrap_or(usize::MAX);
    let jobs = if jobs == 0 { cores() } else { jobs }.clamp(1, JOBS_MAX).min(spans.max(1));
    let source = Source {
        file,
        size,
        block_bytes: block_bytes.into(),
        at: Mutex::new(At { next: 0, data_end: 0 }),
    };
    let failed = AtomicBool::new(false);
    let work = || {
        let result = source.work(progress, &failed, visit);
        if result.is_err() {
            failed.store(true, Ordering::Relaxed);
        }
        result
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..jobs).map(|_| scope.spawn(work)).collect();
        let mut all = vec![work()];
        let died = || Err(ScanError::Io(io::Error::other("a reading thread ended")));
        all.extend(threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| died())));
        all.into_iter().filter_map(Result::transpose).collect()
    })
}

/// A stretch of the file, in bytes; it begins with a block and ends with one, or with the file.
enum Span {
    Hole { begin: u64, end: u64 },
    Data { begin: u64, end: u64 },
}

/// The file, and what of it has not been taken.
struct Source<'a> {
    file: &'a File,
    size: u64,
    block_bytes: u64,
    at: Mutex<At>,
}

struct At {
    /// The next byte that is taken.
    next: u64,
    /// It is known that there is no hole before this.
    data_end: u64,
}

impl Source<'_> {
    /// Takes spans until none is left. `None`: another thread failed, which says why.
    fn work<V: Visit>(
        &self,
        progress: &Progress,
        failed: &AtomicBool,
        visit: &V,
    ) -> Result<Option<V::Found>, ScanError> {
        let mut found = V::Found::default();
        let own = self.own_file();
        let file = own.as_ref().unwrap_or(self.file);
        let piece_bytes = PIECE_BYTES.max(self.block_bytes as usize);
        let mut room = vec![0; piece_bytes + PIECE_ALIGNMENT];
        let skip = room.as_ptr().align_offset(PIECE_ALIGNMENT).min(PIECE_ALIGNMENT);
        let piece = &mut room[skip..skip + piece_bytes];
        while let Some(span) = self.take() {
            let (mut at, end) = match span {
                Span::Hole { begin, end } => {
                    let blocks = (end - begin).div_ceil(self.block_bytes);
                    visit.hole(&mut found, begin / self.block_bytes, blocks);
                    progress.done_bytes.fetch_add(end - begin, Ordering::Relaxed);
                    (end, end)
                }
                Span::Data { begin, end } => (begin, end),
            };
            while at < end {
                if progress.stop.load(Ordering::Relaxed) {
                    return Err(ScanError::Stopped);
                }
                if failed.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let length = (end - at).min(piece.len() as u64);
                let bytes = &mut piece[..length as usize];
                file.read_exact_at(bytes, at).map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => ScanError::Cut,
                    _ => ScanError::Io(error),
                })?;
                visit.data(&mut found, at / self.block_bytes, bytes)?;
                progress.done_bytes.fetch_add(length, Ordering::Relaxed);
                at += length;
            }
        }
        Ok(Some(found))
    }

    /// Opens the file once more; where that is not possible, threads share it.
    fn own_file(&self) -> Option<File> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let own = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = own.ok()?;
        // Only a hint: a file system that has no use for it reads all the same.
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
        Some(file)
    }

    fn take(&self) -> Option<Span> {
        let mut at = self.at.lock();
        if at.next >= self.size {
            return None;
        }
        let begin = at.next;
        if begin >= at.data_end {
            let data = self.seek(begin, Whence::SeekData, self.size);
            let end = data.min(self.size) / self.block_bytes * self.block_bytes;
            let end = if data >= self.size { self.size } else { end };
            if end > begin {
                at.next = end;
                return Some(Span::Hole { begin, end });
            }
            let hole = self.seek(data, Whence::SeekHole, self.size);
            let end = hole.min(self.size).next_multiple_of(self.block_bytes);
            at.data_end = end.max(begin + self.block_bytes).min(self.size);
        }
        let end = at.data_end.min(begin + SPAN_BYTES);
        at.next = end;
        Some(Span::Data { begin, end })
    }

    /// Looks for data or a hole from `from` on. Where a file system cannot tell, all is data.
    fn seek(&self, from: u64, whence: Whence, size: u64) -> u64 {
        let is_data = matches!(whence, Whence::SeekData);
        let offset = i64::try_from(from).unwrap_or(i64::MAX);
        match lseek64(self.file.as_fd(), offset, whence) {
            Ok(found) => u64::try_from(found).unwrap_or(from).max(from),
            Err(nix::errno::Errno::ENXIO) => size,
            Err(_) if is_data => from,
            Err(_) => size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes each block.
    struct Blocks;

    impl Visit for Blocks {
        type Found = Vec<(u64, bool)>;

        fn hole(&self, found: &mut Self::Found, first: u64, blocks: u64) {
            found.extend((first..first + blocks).map(|block| (block, false)));
        }

        fn data(&self, found: &mut Self::Found, first: u64, bytes: &[u8]) -> Result<(), ScanError> {
            let blocks = bytes.len().div_ceil(4096) as u64;
            found.extend((first..first + blocks).map(|block| (block, true)));
            Ok(())
        }
    }

    fn blocks_of(file: &File, size: u64, jobs: usize) -> Result<Vec<(u64, bool)>, ScanError> {
        let found = scan(file, size, 4096, jobs, &Progress::default(), &Blocks)?;
        assert!(found.iter().all(|blocks| blocks.is_sorted()));
        let mut all = found.concat();
        all.sort_unstable();
        Ok(all)
    }

    #[test]
    fn each_block_is_given_once() {
        let file = tempfile::tempfile().expect("a file");
        let size = 3 * SPAN_BYTES + 4096 * 5 + 1;
        file.set_len(size).expect("sparse");
        for at in [SPAN_BYTES - 1, SPAN_BYTES + 100 * 4096, 2 * SPAN_BYTES + 4095, size - 1] {
            file.write_all_at(b"x", at).expect("written");
        }
        for jobs in [1, 2, 7] {
            let blocks = blocks_of(&file, size, jobs).expect("read");
            assert!(blocks.iter().map(|block| block.0).eq(0..size.div_ceil(4096)));
            assert!(blocks[(SPAN_BYTES / 4096 - 1) as usize].1);
            assert!(!blocks[1].1, "the begin is a hole");
        }
    }

    #[test]
    fn a_file_that_was_cut_short_is_noticed() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&[1; 10_000], 0).expect("written");
        for jobs in [1, 4] {
            assert!(matches!(blocks_of(&file, 10_001, jobs), Err(ScanError::Cut)));
        }
    }
}
