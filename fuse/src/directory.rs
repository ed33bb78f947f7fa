//! Open directories: large pages from the server, small ones to the kernel.
//!
//! The server's cookies are the kernel's offsets, so that a listing goes on from any entry that it
//! has given, whatever has changed meanwhile. While one page is handed out the next is on its way.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use gridvfs_vfs::{Caller, DirEntry, DirPage, FileHandle, Result, Status, Verifier, Vfs};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// How much of a listing is asked for at once, in bytes: about 1,500 entries with attributes, two
/// milliseconds of a 1 Gbit/s link.
const PAGE_BYTES: u32 = 256 << 10;

/// The number of a directory that is read without having been opened.
const UNOPENED: u64 = 0;
/// The most of those whose pages are kept between two reads: listings that go on at once.
const UNOPENED_MAX: usize = 32;

/// The directories that programs read.
#[derive(Default)]
pub struct Directories {
    open: Mutex<HashMap<u64, Arc<Directory>>>,
    /// Those that the kernel does not open, by inode and caller, the last one read at the end.
    unopened: Mutex<VecDeque<(u64, Arc<Directory>)>>,
}

impl Directories {
    /// Notes an open directory.
    pub fn insert(&self, number: u64, directory: Directory) {
        self.open.lock().insert(number, Arc::new(directory));
    }

    /// Forgets one.
    pub fn remove(&self, number: u64) {
        self.open.lock().remove(&number);
    }

    /// Returns an open directory, or what `make` makes of one that was not opened.
    pub fn get(
        &self,
        number: u64,
        inode: u64,
        caller: &Caller,
        make: impl FnOnce() -> Result<Directory>,
    ) -> Result<Arc<Directory>> {
        if number != UNOPENED {
            return self.open.lock().get(&number).cloned().ok_or(Status::STALE.into());
        }
        let mut unopened = self.unopened.lock();
        let same =
            |(of, directory): &(u64, Arc<Directory>)| *of == inode && directory.caller == *caller;
        let found = unopened.iter().position(same).and_then(|at| unopened.remove(at));
        let entry = match found {
            Some(entry) => entry,
            None => (inode, Arc::new(make()?)),
        };
        let directory = entry.1.clone();
        unopened.push_back(entry);
        if unopened.len() > UNOPENED_MAX {
            unopened.pop_front();
        }
        Ok(directory)
    }

    /// Forgets what was read of a directory that the kernel has forgotten.
    pub fn forget(&self, inode: u64) {
        self.unopened.lock().retain(|(of, _)| *of != inode);
    }
}

/// An open directory.
pub struct Directory {
    vfs: Arc<dyn Vfs>,
    runtime: Handle,
    handle: FileHandle,
    caller: Caller,
    listing: tokio::sync::Mutex<Listing>,
}

#[derive(Default)]
struct Listing {
    /// The page at hand, and the cookie that it was asked for with.
    page: Option<(u64, DirPage)>,
    /// The page behind it, and the cookie that it was asked for with.
    next: Option<(u64, Prefetch)>,
}

/// A page on its way, given up when dropped.
struct Prefetch(JoinHandle<Result<DirPage>>);

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Directory {
    /// Makes an open directory. Nothing is asked yet.
    pub fn new(vfs: Arc<dyn Vfs>, runtime: Handle, handle: FileHandle, caller: Caller) -> Self {
        Self { vfs, runtime, handle, caller, listing: tokio::sync::Mutex::default() }
    }

    /// Returns entries behind `cookie` (0: from the start, as the directory is now): at least one
    /// unless the listing ends there.
    pub async fn entries(&self, cookie: u64, count: usize) -> Result<Vec<DirEntry>> {
        let mut listing = self.listing.lock().await;
        if cookie == 0 {
            *listing = Listing::default();
        }
        loop {
            if let Some((start, page)) = &listing.page {
                let from = match page.entries.iter().position(|entry| entry.cookie == cookie) {
                    Some(at) => Some(at + 1),
                    None => (*start == cookie).then_some(0),
                };
                if let Some(from) = from {
                    let entries: Vec<_> =
                        page.entries[from..].iter().take(count).cloned().collect();
                    if !entries.is_empty() || page.eof {
                        self.prefetch(&mut listing);
                        return Ok(entries);
                    }
                }
            }
            let page = self.fetch(&mut listing, cookie).await?;
            if page.entries.is_empty() && !page.eof {
                return Err(Status::TOOSMALL.into());
            }
            listing.page = Some((cookie, page));
        }
    }

    /// Has the page behind the one at hand fetched.
    fn prefetch(&self, listing: &mut Listing) {
        let Some((_, page)) = &listing.page else { return };
        let Some(last) = page.entries.last().filter(|_| !page.eof) else { return };
        let (cookie, verifier) = (last.cookie, page.verifier);
        if listing.next.as_ref().is_some_and(|(asked, _)| *asked == cookie) {
            return;
        }
        let (vfs, caller, handle) = (self.vfs.clone(), self.caller.clone(), self.handle);
        let fetching =
            self.runtime.spawn(async move { ask(&*vfs, &caller, &handle, cookie, verifier).await });
        listing.next = Some((cookie, Prefetch(fetching)));
    }

    async fn fetch(&self, listing: &mut Listing, cookie: u64) -> Result<DirPage> {
        if let Some((asked, mut prefetch)) = listing.next.take()
            && asked == cookie
            && let Ok(Ok(page)) = (&mut prefetch.0).await
        {
            return Ok(page);
        }
        let verifier = match (&listing.page, cookie) {
            (Some((_, page)), 1..) => page.verifier,
            _ => Verifier::default(),
        };
        let (vfs, caller, handle) = (&self.vfs, &self.caller, &self.handle);
        match ask(&**vfs, caller, handle, cookie, verifier).await {
            Err(error) if error.status() == Status::BAD_COOKIE => self.search(cookie).await,
            result => result,
        }
    }

    /// The server does not take its own cookie any more: lists from the start and goes on behind
    /// the entry that had it. If that is gone, nobody knows where to go on: an error, since a listing
    /// that merely ended would be taken for the whole.
    async fn search(&self, wanted: u64) -> Result<DirPage> {
        let (mut cookie, mut verifier) = (0, Verifier::default());
        loop {
            let (vfs, caller, handle) = (&self.vfs, &self.caller, &self.handle);
            let mut page = ask(&**vfs, caller, handle, cookie, verifier).await?;
            if let Some(at) = page.entries.iter().position(|entry| entry.cookie == wanted) {
                page.entries.drain(..=at);
                if !page.entries.is_empty() || page.eof {
                    return Ok(page);
                }
                cookie = wanted;
            } else {
                match page.entries.last() {
                    Some(last) if !page.eof => cookie = last.cookie,
                    _ => return Err(Status::IO.into()),
                }
            }
            verifier = page.verifier;
        }
    }
}

/// Asks for a page with attributes. A server may answer STALE for the whole page because an entry of
/// it was removed while its attributes were looked up (NFS-Ganesha does): the directory itself being
/// there, it is asked again, the last time for names alone.
async fn ask(
    vfs: &dyn Vfs,
    caller: &Caller,
    handle: &FileHandle,
    cookie: u64,
    verifier: Verifier,
) -> Result<DirPage> {
    for plus in [true, true, false] {
        match vfs.readdir(caller, handle, cookie, verifier, PAGE_BYTES, plus).await {
            Err(error) if error.status() == Status::STALE => {
                vfs.getattr(caller, handle).await?;
            }
            result => return result,
        }
    }
    Err(Status::STALE.into())
}
