//! What an event loop's thread keeps at hand, so that a read from a cache costs nothing else: the
//! buffer of its answer, and the files that it was asked for last.
//!
//! Numbers of opens are never given twice, so an entry may outlive its open: the kernel does not
//! ask for it any more, and another takes its place.

use std::cell::RefCell;
use std::sync::Arc;

use crate::core::OpenFile;

/// How many open files a thread remembers.
const FILES: usize = 16;
/// The longest read that is answered from the buffer, in bytes. The kernel's limit is 256 pages
/// unless an administrator has raised it.
pub const BUFFER_BYTES_MAX: usize = 1 << 20;

/// Where an allocator puts large pieces they begin 16 bytes behind a page, and the kernel copies to
/// such a place at a fifth of the speed.
const ALIGNMENT: usize = 4096;

struct Hand {
    buffer: Vec<u8>,
    files: [Option<(u64, Arc<OpenFile>)>; FILES],
}

thread_local! {
    static HAND: RefCell<Hand> =
        const { RefCell::new(Hand { buffer: Vec::new(), files: [const { None }; FILES] }) };
}

/// Calls `act` with an open file, which `find` looks up if it is not at hand, and with the first
/// `bytes` of the thread's buffer. `None` if there is no such file. Only event loops call this: a
/// thread serves one session in its life.
pub fn with<T>(
    open: u64,
    bytes: usize,
    find: impl FnOnce() -> Option<Arc<OpenFile>>,
    act: impl FnOnce(&OpenFile, &mut [u8]) -> T,
) -> Option<T> {
    HAND.with_borrow_mut(|Hand { buffer, files }| {
        let place = &mut files[open as usize % FILES];
        if place.as_ref().is_none_or(|(number, _)| *number != open) {
            *place = Some((open, find()?));
        }
        let (_, file) = place.as_ref()?;
        let bytes = bytes.min(BUFFER_BYTES_MAX);
        if buffer.len() < bytes + ALIGNMENT {
            buffer.resize(bytes + ALIGNMENT, 0);
        }
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        Some(act(file, &mut buffer[start..start + bytes]))
    })
}
