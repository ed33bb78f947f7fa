//! Who may write: locks between threads and between processes.
//!
//! Readers take none. A writer holds the lock of its set's stripe: a mutex of the process and, in
//! a shared store, a byte of the tags file as an open file description lock, which the kernel
//! releases when the process dies however it dies.
//!
//! The locks keep writers from spoiling each other's work. That no wrong block is ever served does
//! not rest on them but on the checksums, so a kernel that refuses a lock costs nothing worse than
//! a block that is fetched again.
//!
//! Bytes of the file `lock` say who has the store open: byte 0 is held for as long as it is open
//! (exclusively unless shared), byte 1 while it is being opened.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use parking_lot::{Mutex, MutexGuard};

const STRIPES: u32 = 256;
/// Sets side by side that have one lock, so that a long write takes few.
const STRIPE_SETS: u32 = 16;

pub(super) const USE_BYTE: u64 = 0;
pub(super) const OPEN_BYTE: u64 = 1;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Shared,
    Exclusive,
    Unlock,
}

/// Sets or releases an open file description lock on `length` bytes.
///
/// Returns whether it was had; if `wait`, only when it was.
pub(super) fn lock_bytes(
    file: &File,
    start: u64,
    length: u64,
    kind: Kind,
    wait: bool,
) -> io::Result<bool> {
    // SAFETY: an all-zero `flock` is a valid value of the C struct.
    let mut flock: libc::flock = unsafe { std::mem::zeroed() };
    flock.l_type = match kind {
        Kind::Shared => libc::F_RDLCK,
        Kind::Exclusive => libc::F_WRLCK,
        Kind::Unlock => libc::F_UNLCK,
    } as libc::c_short;
    flock.l_whence = libc::SEEK_SET as libc::c_short;
    flock.l_start = start as libc::off_t;
    flock.l_len = length as libc::off_t;
    let command = if wait { libc::F_OFD_SETLKW } else { libc::F_OFD_SETLK };
    loop {
        // SAFETY: the descriptor is open and `flock` lives over the call.
        if unsafe { libc::fcntl(file.as_raw_fd(), command, &flock) } == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN | libc::EACCES) if !wait => return Ok(false),
            _ => return Err(error),
        }
    }
}

/// The locks of a store's sets.
pub(super) struct Locks {
    stripes: Box<[Mutex<()>]>,
    shared: bool,
}

/// Holds the lock of some sets.
pub(super) struct SetGuard<'a> {
    file: Option<(&'a File, u64, u64)>,
    _stripes: Held<'a>,
}

#[expect(dead_code, reason = "held, not read")]
enum Held<'a> {
    One(MutexGuard<'a, ()>),
    All(Vec<MutexGuard<'a, ()>>),
}

impl Drop for SetGuard<'_> {
    fn drop(&mut self) {
        if let Some((file, start, length)) = self.file {
            let _ = lock_bytes(file, start, length, Kind::Unlock, false);
        }
    }
}

impl Locks {
    pub fn new(shared: bool) -> Self {
        Self { stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(), shared }
    }

    pub fn stripe(set: u32) -> u32 {
        set / STRIPE_SETS % STRIPES
    }

    /// Waits for the lock of a stripe. A thread holds no more than one.
    pub fn lock<'a>(&'a self, tags: &'a File, stripe: u32) -> SetGuard<'a> {
        let mutex = self.stripes[stripe as usize].lock();
        let file = self.lock_file(tags, stripe.into(), 1);
        SetGuard { file, _stripes: Held::One(mutex) }
    }

    /// Waits for the locks of all sets.
    pub fn lock_all<'a>(&'a self, tags: &'a File) -> SetGuard<'a> {
        let mutexes = self.stripes.iter().map(Mutex::lock).collect();
        let file = self.lock_file(tags, 0, STRIPES.into());
        SetGuard { file, _stripes: Held::All(mutexes) }
    }

    fn lock_file<'a>(
        &self,
        tags: &'a File,
        start: u64,
        length: u64,
    ) -> Option<(&'a File, u64, u64)> {
        let had =
            self.shared && lock_bytes(tags, start, length, Kind::Exclusive, true).unwrap_or(false);
        had.then_some((tags, start, length))
    }
}
