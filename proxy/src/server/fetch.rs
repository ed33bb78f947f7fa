//! FETCH: ranges of a file read, looked through for zeros, and compressed.
//!
//! It is made of reads of the [`Vfs`] that is served, so that whatever checks those make, it makes.
//! It works on much at a time, and other calls of the session must not wait for it: fetches have a
//! queue of their own, outside of the threads that run calls, and at most as many compress as the
//! machine has cores.

use std::sync::Arc;

use bytes::Bytes;
use gridvfs_vfs::ext::{FetchArgs, FetchBuilder, FetchPacker, PackedFetch};
use gridvfs_vfs::rpc::CallHeader;
use gridvfs_vfs::xdr::{Decoder, Xdr};
use gridvfs_vfs::{
    Attr, Caller, Error, FETCH_BYTES_MAX, FileHandle, FileKind, Result, SeekWhence, Status, Vfs,
    check_fetch, ext,
};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

/// The most memory of all fetches that run, in bytes. Each needs twice what it reads: as read, and
/// as packed. Their replies count with those of their channel.
const MEMORY_BYTES_MAX: usize = 32 << 20;
/// The most fetches that run: more than there are cores, so that some read while others compress,
/// and half of the threads that calls on a local directory may block in a session's proxy.
const RUNNING_MAX: usize = 16;
/// What the memory semaphore counts in.
const UNIT_BYTES: usize = 4096;
/// The most that compress at once, on machines with many cores.
const PACKERS_MAX: usize = 8;
/// The most ranges of a fetch that are asked of a server behind this one at once.
const RANGES_AT_ONCE: usize = 16;

/// The limits of a server's fetches, and what they have in common.
pub(super) struct Fetches {
    memory: Arc<Semaphore>,
    packing: Semaphore,
    /// Compressors that rest, at most as many as `packing` lets work.
    packers: Mutex<Vec<FetchPacker>>,
}

/// What is to be fetched, and from where.
struct Source<'a> {
    vfs: &'a Arc<dyn Vfs>,
    caller: &'a Caller,
    file: FileHandle,
    /// Whether the file system is a directory of this machine: its calls block their thread, and it
    /// knows holes for the price of a system call.
    local: bool,
}

impl Fetches {
    pub fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            memory: Arc::new(Semaphore::new(MEMORY_BYTES_MAX / UNIT_BYTES)),
            packing: Semaphore::new(cores.min(PACKERS_MAX)),
            packers: Mutex::default(),
        }
    }

    /// Waits until there is room for a fetch of `bytes`.
    pub async fn turn(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let needed = (2 * bytes).max(MEMORY_BYTES_MAX / RUNNING_MAX).div_ceil(UNIT_BYTES);
        self.memory.clone().acquire_many_owned(needed as u32).await.ok()
    }

    /// Runs a fetch.
    pub async fn run(
        self: &Arc<Self>,
        vfs: &Arc<dyn Vfs>,
        local: bool,
        caller: &Caller,
        arguments: FetchArgs,
    ) -> Result<PackedFetch> {
        let FetchArgs { file, level, ranges } = arguments;
        let total = check_fetch(&ranges, level)?;
        let before = vfs.getattr(caller, &file).await?;
        match before.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Status::ISDIR.into()),
            _ => return Err(Status::INVAL.into()),
        }
        let lengths: Vec<(u64, u32)> = ranges
            .iter()
            .map(|&(offset, length)| {
                let left = before.size.saturating_sub(offset);
                (offset, u32::try_from(left).map_or(length, |left| left.min(length)))
            })
            .collect();
        let source = Source { vfs, caller, file, local };
        let read = source.read(&lengths, total).await;
        let attr = vfs.getattr(caller, &file).await?;
        if !is_same_state(&before, &attr) {
            return Err(Status::JUKEBOX.into());
        }
        self.pack(read?, attr, level, local).await
    }

    /// Compresses on this thread if it may be blocked.
    async fn pack(
        self: &Arc<Self>,
        read: FetchBuilder,
        attr: Attr,
        level: i32,
        may_block: bool,
    ) -> Result<PackedFetch> {
        let _turn = self.packing.acquire().await.map_err(|_| Status::SERVERFAULT)?;
        let fetches = self.clone();
        let work = move || {
            let resting = fetches.packers.lock().pop();
            let mut packer = resting.unwrap_or_default();
            let packed = read.pack(attr, level, &mut packer);
            fetches.packers.lock().push(packer);
            packed
        };
        match may_block {
            true => Ok(work()),
            false => {
                tokio::task::spawn_blocking(work).await.map_err(|_| Status::SERVERFAULT.into())
            }
        }
    }
}

/// Says whether nobody changed a file between two looks at it.
fn is_same_state(before: &Attr, after: &Attr) -> bool {
    let state = |attr: &Attr| (attr.fileid, attr.kind, attr.size, attr.mtime, attr.ctime);
    state(before) == state(after)
}

/// Returns how much a call will read if it is a fetch that will be run.
pub(super) fn size(header: &CallHeader, arguments: &Bytes) -> Option<usize> {
    if (header.program, header.procedure) != (ext::PROGRAM, ext::FETCH) {
        return None;
    }
    let arguments = FetchArgs::decode(&mut Decoder::new(arguments.clone())).ok()?;
    check_fetch(&arguments.ranges, arguments.level).ok()
}

/// Pieces of a range: where each starts in it, in order.
type Pieces = Vec<(usize, Bytes)>;

impl Source<'_> {
    async fn read(&self, ranges: &[(u64, u32)], capacity: usize) -> Result<FetchBuilder> {
        let mut read = FetchBuilder::with_capacity(capacity.min(FETCH_BYTES_MAX));
        if self.local {
            for &(offset, length) in ranges {
                read.push(length, &self.data_of(offset, length).await?);
            }
            return Ok(read);
        }
        let mut under_way = JoinSet::new();
        let mut arrived: Vec<Option<Pieces>> = vec![None; ranges.len()];
        let mut next = 0;
        for at in 0..ranges.len() {
            while arrived[at].is_none() {
                while next < ranges.len() && under_way.len() < RANGES_AT_ONCE {
                    let (number, (offset, length)) = (next, ranges[next]);
                    let (vfs, caller, file) = (self.vfs.clone(), self.caller.clone(), self.file);
                    under_way.spawn(async move {
                        let source = Source { vfs: &vfs, caller: &caller, file, local: false };
                        (number, source.all_of(offset, length).await)
                    });
                    next += 1;
                }
                let Some(Ok((number, pieces))) = under_way.join_next().await else {
                    return Err(Status::SERVERFAULT.into());
                };
                arrived[number] = Some(pieces?);
            }
            let pieces = arrived[at].take().unwrap_or_default();
            read.push(ranges[at].1, &pieces);
        }
        Ok(read)
    }

    /// Reads a range of a local file but for its holes.
    async fn data_of(&self, offset: u64, length: u32) -> Result<Pieces> {
        let end = offset + u64::from(length);
        let (mut at, mut pieces) = (offset, Pieces::new());
        while at < end {
            let data = match self.vfs.seek(self.caller, &self.file, at, SeekWhence::Data).await {
                Ok(data) if data >= end => break,
                Ok(data) => data.max(at),
                Err(Error::Status(Status::NXIO)) => break,
                // Some file systems know no holes.
                Err(_) => return self.all_of(offset, length).await,
            };
            let hole = self.vfs.seek(self.caller, &self.file, data, SeekWhence::Hole).await?;
            let stop = hole.clamp(data + 1, end);
            for (start, piece) in self.all_of(data, (stop - data) as u32).await? {
                pieces.push(((data - offset) as usize + start, piece));
            }
            at = stop;
        }
        Ok(pieces)
    }

    /// Reads a range, by as many reads as it takes. One that ends early is left to the caller, who
    /// sees that the file has changed.
    async fn all_of(&self, offset: u64, length: u32) -> Result<Pieces> {
        let mut pieces = Pieces::new();
        let mut done = 0;
        while done < length {
            let (at, left) = (offset + u64::from(done), length - done);
            let mut read = self.vfs.read(self.caller, &self.file, at, left).await?;
            read.data.truncate(left as usize);
            if read.data.is_empty() {
                return Err(Status::JUKEBOX.into());
            }
            let start = done as usize;
            done += read.data.len() as u32;
            pieces.push((start, read.data));
        }
        Ok(pieces)
    }
}
