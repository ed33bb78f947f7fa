//! The server that the tests run against: RFC 1813's rules for READ, WRITE, COMMIT and SETATTR,
//! with a delay and faults that a test asks for. It checks that no two WRITEs that overlap are ever
//! under way together.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use gridvfs_cache::{BufferLayer, BufferOptions};
use gridvfs_vfs::*;
use parking_lot::Mutex;
use tokio::runtime::Handle;

#[derive(Default)]
pub struct Faults {
    /// Calls take this long, plus up to `jitter`.
    pub delay: Duration,
    pub jitter: Duration,
    /// No READ or WRITE takes more than this; 0 for no limit.
    pub short: usize,
    /// Errors that the next WRITEs, COMMITs, READs end with.
    pub writes: VecDeque<Error>,
    pub commits: VecDeque<Error>,
    pub reads: VecDeque<Error>,
    /// How many of the next READs bring nothing and claim the end of the file.
    pub false_ends: u32,
    /// Every call fails: the server cannot be reached.
    pub silent: bool,
    /// Loses unstable data before each COMMIT.
    pub forgetful: bool,
}

#[derive(Default)]
struct Data {
    current: Vec<u8>,
    durable: Vec<u8>,
    changes: u32,
    unstable: bool,
}

#[derive(Default)]
pub struct Seen {
    pub reads: Vec<(u64, u32)>,
    pub writes: Vec<(u64, usize, Stability)>,
    pub commits: usize,
    pub setattrs: usize,
    pub reading: usize,
    pub reading_most: usize,
    under_way: Vec<(FileHandle, u64, u64)>,
    pub overlapped: bool,
}

pub struct Server {
    files: Mutex<HashMap<FileHandle, Data>>,
    verifier: Mutex<u64>,
    pub faults: Mutex<Faults>,
    pub seen: Mutex<Seen>,
    random: Mutex<u64>,
}

pub fn handle(number: u8) -> FileHandle {
    FileHandle::new(&[number]).expect("one byte fits")
}

pub fn caller() -> Caller {
    Caller { uid: 1000, gid: 1000, groups: Vec::new() }
}

/// Data that differs from place to place.
pub fn pattern(offset: u64, length: usize) -> Vec<u8> {
    (offset..offset + length as u64).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

pub async fn layer(server: &Arc<Server>, options: BufferOptions) -> Arc<BufferLayer> {
    let layer = BufferLayer::new(server.clone(), Handle::current(), options).await;
    Arc::new(layer.expect("FSINFO is answered"))
}

/// Polls a future once.
pub fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}

/// Reads a range, asking again for what is missing, up to the end of the file.
pub async fn read_all(vfs: &dyn Vfs, file: &FileHandle, offset: u64, length: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < length {
        let at = offset + all.len() as u64;
        let wanted = (length - all.len()) as u32;
        let read = vfs.read(&caller(), file, at, wanted).await.expect("reads");
        assert!(read.data.len() <= wanted as usize);
        assert!(read.eof || !read.data.is_empty(), "nothing, and not the end");
        all.extend_from_slice(&read.data);
        if read.eof {
            break;
        }
    }
    all
}

impl Server {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            files: Mutex::default(),
            verifier: Mutex::new(1),
            faults: Mutex::default(),
            seen: Mutex::default(),
            random: Mutex::new(88172645463325252),
        })
    }

    pub fn slow(delay_ms: u64) -> Arc<Self> {
        let server = Self::new();
        server.faults.lock().delay = Duration::from_millis(delay_ms);
        server
    }

    /// Makes or replaces a file, as another client would.
    pub fn put(&self, file: FileHandle, content: Vec<u8>) {
        let mut files = self.files.lock();
        let data = files.entry(file).or_default();
        data.changes += 1;
        data.durable = content.clone();
        data.current = content;
    }

    /// Removes a file, as another client would.
    pub fn remove(&self, file: &FileHandle) {
        self.files.lock().remove(file);
    }

    pub fn content(&self, file: &FileHandle) -> Vec<u8> {
        self.files.lock().get(file).map(|data| data.current.clone()).unwrap_or_default()
    }

    pub fn durable(&self, file: &FileHandle) -> Vec<u8> {
        self.files.lock().get(file).map(|data| data.durable.clone()).unwrap_or_default()
    }

    /// Restarts: unstable data is lost.
    pub fn crash(&self) {
        // The files' lock orders data and verifier.
        let mut files = self.files.lock();
        *self.verifier.lock() += 1;
        for data in files.values_mut().filter(|data| data.unstable) {
            data.current = data.durable.clone();
            data.changes += 1;
            data.unstable = false;
        }
    }

    pub fn attr(&self, file: &FileHandle) -> Result<Attr> {
        let files = self.files.lock();
        let data = files.get(file).ok_or(Status::STALE)?;
        let time = Time { seconds: 1000 + i64::from(data.changes), nanoseconds: 0 };
        Ok(Attr {
            kind: FileKind::Regular,
            mode: 0o644,
            links: 1,
            uid: 0,
            gid: 0,
            size: data.current.len() as u64,
            used: 0,
            device: DeviceNumber::default(),
            fsid: 1,
            fileid: u64::from(file.as_bytes()[0]),
            atime: time,
            mtime: time,
            ctime: time,
        })
    }

    fn verifier(&self) -> Verifier {
        self.verifier.lock().to_be_bytes()
    }

    async fn pause(&self) -> Result<()> {
        let (delay, jitter) = {
            let faults = self.faults.lock();
            (faults.delay, faults.jitter)
        };
        let part = {
            let mut random = self.random.lock();
            *random ^= *random << 13;
            *random ^= *random >> 7;
            *random ^= *random << 17;
            (*random % 1000) as u32
        };
        let pause = delay + jitter * part / 1000;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        if self.faults.lock().silent {
            return Err(Error::Unreachable("no answer".into()));
        }
        Ok(())
    }

    fn change(&self, file: &FileHandle, work: impl FnOnce(&mut Data)) -> Result<()> {
        let mut files = self.files.lock();
        let data = files.get_mut(file).ok_or(Status::STALE)?;
        data.changes += 1;
        work(data);
        Ok(())
    }

    async fn do_read(&self, file: &FileHandle, offset: u64, count: u32) -> Result<ReadData> {
        self.pause().await?;
        let short = {
            let mut faults = self.faults.lock();
            if let Some(error) = faults.reads.pop_front() {
                return Err(error);
            }
            if faults.false_ends > 0 {
                faults.false_ends -= 1;
                let attr = Some(self.attr(file)?);
                return Ok(ReadData { data: Bytes::new(), eof: true, attr });
            }
            faults.short
        };
        let attr = self.attr(file)?;
        let files = self.files.lock();
        let current = &files.get(file).ok_or(Status::STALE)?.current;
        let start = (offset as usize).min(current.len());
        let mut end = start.saturating_add(count as usize).min(current.len());
        if short > 0 {
            end = end.min(start + short);
        }
        let data = Bytes::copy_from_slice(&current[start..end]);
        Ok(ReadData { data, eof: end == current.len(), attr: Some(attr) })
    }

    async fn do_write(
        &self,
        file: &FileHandle,
        offset: u64,
        data: &[u8],
        stable: Stability,
    ) -> Result<Written> {
        self.pause().await?;
        let short = {
            let mut faults = self.faults.lock();
            if let Some(error) = faults.writes.pop_front() {
                return Err(error);
            }
            if faults.short == 0 { data.len() } else { faults.short.min(data.len()) }
        };
        let put = |content: &mut Vec<u8>| {
            let (start, end) = (offset as usize, offset as usize + short);
            if content.len() < end {
                content.resize(end, 0);
            }
            content[start..end].copy_from_slice(&data[..short]);
        };
        let mut verifier = Verifier::default();
        self.change(file, |file| {
            verifier = self.verifier();
            put(&mut file.current);
            if stable == Stability::Unstable {
                file.unstable = true;
            } else {
                file.durable = file.current.clone();
                file.unstable = false;
            }
        })?;
        let wcc = Wcc { before: None, after: Some(self.attr(file)?) };
        Ok(Written { count: short as u32, committed: stable, verifier, wcc })
    }
}

#[async_trait]
impl Vfs for Server {
    fn root(&self) -> FileHandle {
        handle(0)
    }

    async fn fetch(
        &self,
        _: &Caller,
        file: &FileHandle,
        ranges: &[(u64, u32)],
        level: i32,
    ) -> Result<Fetched> {
        self.pause().await?;
        let (attr, content) = (self.attr(file)?, self.content(file));
        let mut built = ext::FetchBuilder::default();
        for &(offset, length) in ranges {
            let left = content.len().saturating_sub(offset as usize).min(length as usize);
            let part = &content[content.len().min(offset as usize)..][..left];
            built.push(left as u32, &[(0, Bytes::copy_from_slice(part))]);
        }
        let packed = built.pack(attr, level, &mut ext::FetchPacker::default());
        Ok(packed.unpack(ranges).expect("the truth"))
    }

    async fn getattr(&self, _: &Caller, file: &FileHandle) -> Result<Attr> {
        self.pause().await?;
        self.attr(file)
    }

    async fn setattr(
        &self,
        _: &Caller,
        file: &FileHandle,
        changes: &SetAttr,
        _: Option<Time>,
    ) -> Result<Wcc> {
        self.seen.lock().setattrs += 1;
        self.pause().await?;
        self.change(file, |data| {
            if let Some(size) = changes.size {
                data.current.resize(size as usize, 0);
                data.durable.resize(size as usize, 0);
            }
        })?;
        Ok(Wcc { before: None, after: Some(self.attr(file)?) })
    }

    async fn lookup(&self, _: &Caller, _: &FileHandle, name: &[u8]) -> Result<Entry> {
        self.pause().await?;
        let file = FileHandle::new(name).ok_or(Status::NAMETOOLONG)?;
        Ok(Entry { handle: file, attr: Some(self.attr(&file)?), dir_attr: None })
    }

    async fn access(&self, _: &Caller, file: &FileHandle, wanted: Access) -> Result<AccessGranted> {
        self.pause().await?;
        Ok(AccessGranted { granted: wanted, attr: Some(self.attr(file)?) })
    }

    async fn readlink(&self, _: &Caller, _: &FileHandle) -> Result<Bytes> {
        Err(Status::NOTSUPP.into())
    }

    async fn read(&self, _: &Caller, file: &FileHandle, at: u64, count: u32) -> Result<ReadData> {
        {
            let mut seen = self.seen.lock();
            seen.reads.push((at, count));
            seen.reading += 1;
            seen.reading_most = seen.reading_most.max(seen.reading);
        }
        let result = self.do_read(file, at, count).await;
        self.seen.lock().reading -= 1;
        result
    }

    async fn write(
        &self,
        _: &Caller,
        file: &FileHandle,
        offset: u64,
        data: Bytes,
        stable: Stability,
    ) -> Result<Written> {
        let range = (*file, offset, offset + data.len() as u64);
        {
            let mut seen = self.seen.lock();
            seen.writes.push((offset, data.len(), stable));
            let overlaps = |other: &(FileHandle, u64, u64)| {
                other.0 == range.0 && other.1 < range.2 && range.1 < other.2
            };
            if seen.under_way.iter().any(overlaps) {
                seen.overlapped = true;
            }
            seen.under_way.push(range);
        }
        let result = self.do_write(file, offset, &data, stable).await;
        let mut seen = self.seen.lock();
        if let Some(index) = seen.under_way.iter().position(|other| *other == range) {
            seen.under_way.swap_remove(index);
        }
        result
    }

    async fn create(&self, _: &Caller, _: &FileHandle, _: &[u8], _: &CreateHow) -> Result<Created> {
        Err(Status::NOTSUPP.into())
    }

    async fn mkdir(&self, _: &Caller, _: &FileHandle, _: &[u8], _: &SetAttr) -> Result<Created> {
        Err(Status::NOTSUPP.into())
    }

    async fn symlink(
        &self,
        _: &Caller,
        _: &FileHandle,
        _: &[u8],
        _: &[u8],
        _: &SetAttr,
    ) -> Result<Created> {
        Err(Status::NOTSUPP.into())
    }

    async fn mknod(
        &self,
        _: &Caller,
        _: &FileHandle,
        _: &[u8],
        _: NodeKind,
        _: &SetAttr,
    ) -> Result<Created> {
        Err(Status::NOTSUPP.into())
    }

    async fn remove(&self, _: &Caller, _: &FileHandle, _: &[u8]) -> Result<Wcc> {
        Err(Status::NOTSUPP.into())
    }

    async fn rmdir(&self, _: &Caller, _: &FileHandle, _: &[u8]) -> Result<Wcc> {
        Err(Status::NOTSUPP.into())
    }

    async fn rename(
        &self,
        _: &Caller,
        _: &FileHandle,
        _: &[u8],
        _: &FileHandle,
        _: &[u8],
        _: bool,
    ) -> Result<(Wcc, Wcc)> {
        Err(Status::NOTSUPP.into())
    }

    async fn link(&self, _: &Caller, _: &FileHandle, _: &FileHandle, _: &[u8]) -> Result<Linked> {
        Err(Status::NOTSUPP.into())
    }

    async fn readdir(
        &self,
        _: &Caller,
        _: &FileHandle,
        _: u64,
        _: Verifier,
        _: u32,
        _: bool,
    ) -> Result<DirPage> {
        Err(Status::NOTSUPP.into())
    }

    async fn fsstat(&self, _: &Caller, _: &FileHandle) -> Result<FsStat> {
        Ok(FsStat::default())
    }

    async fn fsinfo(&self, _: &Caller, _: &FileHandle) -> Result<FsInfo> {
        Ok(FsInfo {
            read_max: 1 << 20,
            read_preferred: 1 << 20,
            read_multiple: 1,
            write_max: 1 << 20,
            write_preferred: 1 << 20,
            write_multiple: 1,
            readdir_preferred: 4096,
            file_size_max: 1 << 40,
            time_delta_ns: 1,
            properties: 0,
        })
    }

    async fn pathconf(&self, _: &Caller, _: &FileHandle) -> Result<PathConf> {
        Err(Status::NOTSUPP.into())
    }

    async fn commit(&self, _: &Caller, file: &FileHandle, _: u64, _: u32) -> Result<Committed> {
        self.seen.lock().commits += 1;
        self.pause().await?;
        if self.faults.lock().forgetful {
            self.crash();
        }
        if let Some(error) = self.faults.lock().commits.pop_front() {
            return Err(error);
        }
        let mut files = self.files.lock();
        let data = files.get_mut(file).ok_or(Status::STALE)?;
        data.durable = data.current.clone();
        data.unstable = false;
        Ok(Committed { verifier: self.verifier(), wcc: Wcc::default() })
    }

    async fn allocate(
        &self,
        _: &Caller,
        file: &FileHandle,
        offset: u64,
        length: u64,
        how: Allocation,
    ) -> Result<Wcc> {
        self.pause().await?;
        let end = (offset + length) as usize;
        let zero = |content: &mut Vec<u8>| {
            if matches!(how, Allocation::Reserve | Allocation::ZeroRange) && content.len() < end {
                content.resize(end, 0);
            }
            if !matches!(how, Allocation::Reserve | Allocation::ReserveKeepSize) {
                let to = end.min(content.len());
                content[(offset as usize).min(to)..to].fill(0);
            }
        };
        self.change(file, |data| {
            zero(&mut data.current);
            zero(&mut data.durable);
        })?;
        Ok(Wcc { before: None, after: Some(self.attr(file)?) })
    }
}
