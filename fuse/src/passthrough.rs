//! FUSE passthrough: the kernel reads a local file in our stead.
//!
//! The kernel has an inode either in its page cache or in passthrough, never both: an open that
//! asks for the other fails with EIO there. So the way of an inode is chosen by its first open, and
//! what comes later follows it:
//!
//! | open while | in the page cache | in passthrough |
//! | --- | --- | --- |
//! | to read, whole file at hand | page cache | passthrough |
//! | any other | page cache | *served*: counted as passthrough, but each read and write comes to us |
//!
//! Only files that nobody may write are put into passthrough. If one is written all the same (its
//! mode was changed meanwhile, or root does it), the local file is brought along, so that those
//! who have it open see it. What cannot be brought along is a shared mapping that such a writer
//! makes: the kernel maps the local file.
//!
//! It never opens files for the kernel by itself, and keeps none longer than its opens.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::BackingId;
use parking_lot::Mutex;

/// What an open could do with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Passthrough would do.
    pub passthrough: bool,
    /// The page cache would not do.
    pub direct: bool,
}

/// The local file, if it is there and the kernel takes it.
pub struct Local<Id> {
    /// The kernel's number for it.
    pub id: Arc<Id>,
    /// The file.
    pub file: File,
}

struct Backing<Id> {
    local: Local<Id>,
    /// The same file for writing, once it was needed.
    writable: Option<File>,
    /// It is not what the server has any more: new opens are served.
    outdated: bool,
}

struct State<Id> {
    cached: u32,
    direct: u32,
    backed: u32,
    backing: Option<Backing<Id>>,
}

/// The way of one inode.
pub struct Ways<Id = BackingId> {
    state: Mutex<State<Id>>,
    /// Whether there is a backing: most inodes never have one, and writes ask.
    backed: AtomicBool,
}

impl<Id> Default for Ways<Id> {
    fn default() -> Self {
        let state = State { cached: 0, direct: 0, backed: 0, backing: None };
        Self { state: Mutex::new(state), backed: AtomicBool::new(false) }
    }
}

/// A way as it is counted, by which the close is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// [`Way::Cached`].
    Cached,
    /// [`Way::Direct`]. The kernel does not count it; we do, since it may write.
    Direct,
    /// [`Way::Passthrough`] and [`Way::Served`].
    Backed,
}

/// How the kernel is told to treat an open.
#[derive(Debug, PartialEq, Eq)]
pub enum Way<Id> {
    /// By the page cache.
    Cached,
    /// Each read and write comes to us.
    Direct,
    /// By the local file.
    Passthrough(Arc<Id>),
    /// The inode is in passthrough, but reads and writes of this open come to us.
    Served(Arc<Id>),
}

impl<Id> Way<Id> {
    /// Returns what the close is to give back.
    pub fn counted(&self) -> Counted {
        match self {
            Self::Cached => Counted::Cached,
            Self::Direct => Counted::Direct,
            Self::Passthrough(_) | Self::Served(_) => Counted::Backed,
        }
    }
}

impl<Id> Ways<Id> {
    /// Chooses the way of an open and counts it. `make` is asked for the local file if that would
    /// do and nothing is in the way.
    pub fn open(&self, wish: Wish, make: impl FnOnce() -> Option<Local<Id>>) -> Way<Id> {
        let mut state = self.state.lock();
        let free = state.cached == 0 && state.direct == 0;
        if state.backing.is_none() && wish.passthrough && free {
            state.backing = make().map(|local| Backing { local, writable: None, outdated: false });
            self.backed.store(state.backing.is_some(), Ordering::Release);
        }
        if let Some(backing) = &state.backing {
            let id = backing.local.id.clone();
            let passes = wish.passthrough && !backing.outdated;
            state.backed += 1;
            return if passes { Way::Passthrough(id) } else { Way::Served(id) };
        }
        if wish.direct {
            state.direct += 1;
            return Way::Direct;
        }
        state.cached += 1;
        Way::Cached
    }

    /// Counts a close. The kernel has left the open's way before it tells.
    pub fn close(&self, counted: Counted) {
        let mut state = self.state.lock();
        match counted {
            Counted::Cached => state.cached = state.cached.saturating_sub(1),
            Counted::Direct => state.direct = state.direct.saturating_sub(1),
            Counted::Backed => {
                state.backed = state.backed.saturating_sub(1);
                if state.backed == 0 {
                    state.backing = None;
                    self.backed.store(false, Ordering::Release);
                }
            }
        }
    }

    /// Notes that somebody else has changed the file on the server. Who has it open keeps what was
    /// there at the opening; new opens see the change.
    pub fn outdate(&self) {
        if self.backed.load(Ordering::Acquire)
            && let Some(backing) = &mut self.state.lock().backing
        {
            backing.outdated = true;
        }
    }

    /// Does to the local file what was done to the file.
    fn bring_along(&self, change: impl FnOnce(&File) -> std::io::Result<()>) {
        if !self.backed.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.state.lock();
        let Some(Backing { local, writable, .. }) = &mut state.backing else { return };
        let result = match writable {
            Some(file) => Ok(file),
            None => {
                let path = format!("/proc/self/fd/{}", local.file.as_raw_fd());
                File::options().write(true).open(path).map(|file| writable.insert(file))
            }
        };
        if let Err(error) = result.and_then(|file| change(file)) {
            log::debug!("a file open in passthrough cannot be brought along: {error}");
        }
    }

    /// Brings a write along.
    pub fn written(&self, offset: u64, data: &[u8]) {
        self.bring_along(|file| file.write_all_at(data, offset));
    }

    /// Says whether writes must be brought along.
    pub fn is_backed(&self) -> bool {
        self.backed.load(Ordering::Acquire)
    }

    /// Brings a change of size along.
    pub fn resized(&self, size: u64) {
        self.bring_along(|file| file.set_len(size));
    }

    /// Brings fallocate(2) along.
    pub fn allocated(&self, mode: i32, offset: u64, length: u64) {
        self.bring_along(|file| {
            // SAFETY: a plain system call on a descriptor that is open.
            match unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, length as i64) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}

/// Says whether this process may ask the kernel for passthrough: CAP_SYS_ADMIN.
pub fn is_permitted() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.is_some_and(|bits| bits & (1 << CAP_SYS_ADMIN) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASS: Wish = Wish { passthrough: true, direct: false };
    const WRITE: Wish = Wish { passthrough: false, direct: false };
    const DIRECT: Wish = Wish { passthrough: false, direct: true };

    fn local(content: &[u8]) -> Option<Local<u32>> {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("whole");
        std::fs::write(&path, content).expect("write");
        Some(Local { id: Arc::new(7), file: File::open(path).expect("open") })
    }

    #[test]
    fn the_first_open_decides_and_the_others_follow() {
        let ways = Ways::<u32>::default();
        let first = ways.open(PASS, || local(b""));
        assert_eq!(first, Way::Passthrough(Arc::new(7)));
        assert_eq!(ways.open(PASS, || panic!("once")), Way::Passthrough(Arc::new(7)));
        for wish in [WRITE, DIRECT] {
            let served = ways.open(wish, || panic!("not asked for"));
            assert_eq!(served, Way::Served(Arc::new(7)));
            ways.close(served.counted());
        }
        ways.close(Counted::Backed);
        ways.close(Counted::Backed);
        assert!(!ways.is_backed());
        assert_eq!(ways.open(WRITE, || panic!("not asked for")), Way::Cached);
        assert_eq!(ways.open(PASS, || panic!("in the way")), Way::Cached);
        assert_eq!(ways.open(DIRECT, || panic!("not asked for")), Way::Direct);
        ways.close(Counted::Cached);
        ways.close(Counted::Cached);
        assert_eq!(ways.open(PASS, || panic!("in the way")), Way::Cached);
        ways.close(Counted::Cached);
        ways.close(Counted::Direct);
        assert_eq!(ways.open(PASS, || None), Way::Cached, "not at hand, or not granted");
        ways.close(Counted::Cached);
        assert_eq!(ways.open(PASS, || local(b"")), Way::Passthrough(Arc::new(7)));
        ways.outdate();
        assert_eq!(ways.open(PASS, || None), Way::Served(Arc::new(7)));
    }

    #[test]
    fn changes_are_brought_along() {
        let ways = Ways::<u32>::default();
        ways.written(0, b"nobody has it open");
        let mut kept = None;
        ways.open(PASS, || {
            let local = local(b"one two three")?;
            kept = local.file.try_clone().ok();
            Some(local)
        });
        ways.written(4, b"TWO");
        ways.resized(9);
        ways.allocated(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, 3);
        let mut content = vec![0; 20];
        let count = kept.expect("open").read_at(&mut content, 0).expect("read");
        assert_eq!(&content[..count], b"\0\0\0 TWO t");
    }
}
