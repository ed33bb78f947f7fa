//! The system calls that the local directory is made of, one thin function each.
//!
//! Everything works on descriptors and single names. What the C library does not wrap, or wraps
//! for the whole process where one thread is meant, is called by number. Keeps no state but what
//! the kernel turned out to support.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use gridvfs_vfs::{Error, Status};

/// A kernel error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errno(pub i32);

impl Errno {
    /// The calling thread's last error.
    pub(super) fn last() -> Self {
        Self(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }

    /// Whether it says that the machine or the process has run out of something for now.
    pub(super) fn is_shortage(self) -> bool {
        matches!(self.0, libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS)
    }

    /// Whether it says that there is no such name (any more).
    pub(super) fn is_absent(self) -> bool {
        matches!(self.0, libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ESTALE)
    }
}

impl From<Errno> for Error {
    /// As [`Status::from_errno`], and for numbers without a status of their own what kernel NFS
    /// servers answer.
    fn from(errno: Errno) -> Self {
        Self::Status(match errno.0 {
            _ if errno.is_shortage() => Status::JUKEBOX,
            libc::EBUSY => Status::ACCES,
            libc::ELOOP => Status::INVAL,
            number => Status::from_errno(number),
        })
    }
}

pub(super) type SysResult<T> = Result<T, Errno>;

/// Runs a call until it is not interrupted.
fn call(mut run: impl FnMut() -> libc::c_long) -> SysResult<libc::c_long> {
    loop {
        let result = run();
        if result >= 0 {
            return Ok(result);
        }
        match Errno::last() {
            Errno(libc::EINTR) => {}
            errno => return Err(errno),
        }
    }
}

fn own(result: libc::c_long) -> OwnedFd {
    // SAFETY: called only with the descriptor that an opening call has just returned.
    unsafe { OwnedFd::from_raw_fd(result as RawFd) }
}

/// Makes a C string of a name or link target; NUL is refused.
pub(super) fn c_string(bytes: &[u8]) -> Result<CString, Status> {
    CString::new(bytes).map_err(|_| Status::INVAL)
}

/// The path by which the kernel finds an open descriptor again, whatever its name is by now.
pub(super) fn proc_path(fd: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default()
}

const CONFINED: u64 =
    libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS;
/// How often a lookup that lost a race against a rename (EAGAIN) is repeated.
const OPENAT2_ATTEMPTS: usize = 32;

fn openat2(dir: RawFd, name: &CStr, flags: i32, mode: u32) -> SysResult<OwnedFd> {
    // SAFETY: all zeros is a valid `open_how`.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = flags as u64;
    how.mode = u64::from(mode);
    how.resolve = CONFINED;
    // SAFETY: the pointers and the size are those of live values.
    call(|| unsafe {
        libc::syscall(
            libc::SYS_openat2,
            dir,
            name.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    })
    .map(own)
}

/// Whether the kernel (5.6) and the sandbox, if any, have openat2.
fn has_openat2() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| openat2(libc::AT_FDCWD, c".", libc::O_PATH | libc::O_CLOEXEC, 0).is_ok())
}

/// Opens a single name in a directory: never through a symbolic link, never outside. Without
/// openat2 the same follows from O_NOFOLLOW, because there is one component only.
pub(super) fn open_child(
    dir: BorrowedFd<'_>,
    name: &CStr,
    flags: i32,
    mode: u32,
) -> SysResult<OwnedFd> {
    let flags = flags | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    if !has_openat2() {
        // SAFETY: a live descriptor and a NUL-terminated name.
        return call(|| unsafe {
            libc::openat(dir.as_raw_fd(), name.as_ptr(), flags, mode).into()
        })
        .map(own);
    }
    let mut result = Err(Errno(libc::EAGAIN));
    for _ in 0..OPENAT2_ATTEMPTS {
        result = openat2(dir.as_raw_fd(), name, flags, mode);
        if result.as_ref().err() != Some(&Errno(libc::EAGAIN)) {
            break;
        }
    }
    result
}

/// Pins a single name of a directory, whatever it is, without opening it.
pub(super) fn pin_child(dir: BorrowedFd<'_>, name: &CStr) -> SysResult<OwnedFd> {
    open_child(dir, name, libc::O_PATH, 0)
}

/// Pins the parent of a directory. The caller checks that it is inside.
pub(super) fn pin_parent(dir: BorrowedFd<'_>) -> SysResult<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: a live descriptor and a NUL-terminated name.
    call(|| unsafe { libc::openat(dir.as_raw_fd(), c"..".as_ptr(), flags).into() }).map(own)
}

/// Opens what a descriptor refers to once more, with other flags.
pub(super) fn reopen(fd: BorrowedFd<'_>, flags: i32) -> SysResult<OwnedFd> {
    let path = proc_path(fd);
    let flags = flags | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
    // SAFETY: a NUL-terminated path.
    call(|| unsafe { libc::open(path.as_ptr(), flags).into() }).map(own)
}

/// Opens a pinned directory for listing.
pub(super) fn open_listing(dir: BorrowedFd<'_>) -> SysResult<OwnedFd> {
    open_child(dir, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)
}

pub(super) fn fstat(fd: BorrowedFd<'_>) -> SysResult<libc::stat> {
    // SAFETY: all zeros is a valid `stat`, which the call fills.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: a live descriptor and a live buffer.
    call(|| unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat).into() })?;
    Ok(stat)
}

pub(super) fn fstatfs(fd: BorrowedFd<'_>) -> SysResult<libc::statfs> {
    // SAFETY: all zeros is a valid `statfs`, which the call fills.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a live descriptor and a live buffer.
    call(|| unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut stat).into() })?;
    Ok(stat)
}

/// The time of birth, in seconds and nanoseconds; `None` where the file system keeps none.
pub(super) fn birth_time(fd: BorrowedFd<'_>) -> SysResult<Option<(i64, u32)>> {
    // SAFETY: all zeros is a valid `statx`, which the call fills.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: a live descriptor, an empty name and a live buffer.
    call(|| unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_BTIME,
            &raw mut stat,
        )
        .into()
    })?;
    Ok((stat.stx_mask & libc::STATX_BTIME != 0)
        .then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec)))
}

/// The longest handle of a kernel file system (MAX_HANDLE_SZ).
const KERNEL_HANDLE_BYTES_MAX: usize = 128;

#[repr(C)]
struct KernelHandle {
    bytes: u32,
    kind: i32,
    data: [u8; KERNEL_HANDLE_BYTES_MAX],
}

/// Gives `visit` the kernel's own handle of a file: its type and bytes.
pub(super) fn kernel_handle<T>(
    fd: BorrowedFd<'_>,
    visit: impl FnOnce(i32, &[u8]) -> T,
) -> SysResult<T> {
    let mut handle = KernelHandle {
        bytes: KERNEL_HANDLE_BYTES_MAX as u32,
        kind: 0,
        data: [0; KERNEL_HANDLE_BYTES_MAX],
    };
    let mut mount = 0i32;
    // SAFETY: a live descriptor, an empty name, and buffers of the sizes that the call expects.
    call(|| unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd.as_raw_fd(),
            c"".as_ptr(),
            &raw mut handle,
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    })?;
    let length = (handle.bytes as usize).min(KERNEL_HANDLE_BYTES_MAX);
    Ok(visit(handle.kind, &handle.data[..length]))
}

/// Where the kernel says that a descriptor is now; for confinement checks only.
pub(super) fn current_path(fd: BorrowedFd<'_>) -> SysResult<Vec<u8>> {
    let link = proc_path(fd);
    read_link_at(libc::AT_FDCWD, &link)
}

/// Reads the symbolic link that is pinned.
pub(super) fn read_link(link: BorrowedFd<'_>) -> SysResult<Vec<u8>> {
    read_link_at(link.as_raw_fd(), c"")
}

fn read_link_at(dir: RawFd, name: &CStr) -> SysResult<Vec<u8>> {
    let mut target = vec![0u8; libc::PATH_MAX as usize];
    // SAFETY: a live descriptor, a NUL-terminated name and a live buffer of the given length.
    let length = call(|| unsafe {
        libc::readlinkat(dir, name.as_ptr(), target.as_mut_ptr().cast(), target.len())
            as libc::c_long
    })?;
    target.truncate(length as usize);
    Ok(target)
}

/// Reads at `offset` into the spare capacity of `buffer`, at most up to `length` bytes in all.
pub(super) fn pread(
    fd: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
    length: usize,
    offset: i64,
) -> SysResult<usize> {
    let spare = buffer.spare_capacity_mut();
    let length = length.min(spare.len());
    // SAFETY: the buffer is live and has room for `length` bytes.
    let read = call(|| unsafe {
        libc::pread64(fd.as_raw_fd(), spare.as_mut_ptr().cast(), length, offset) as libc::c_long
    })? as usize;
    // SAFETY: the kernel has initialised the `read` bytes behind the old length.
    unsafe { buffer.set_len(buffer.len() + read) };
    Ok(read)
}

pub(super) fn pwrite(fd: BorrowedFd<'_>, data: &[u8], offset: i64) -> SysResult<usize> {
    // SAFETY: a live descriptor and a live buffer of the given length.
    call(|| unsafe {
        libc::pwrite64(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), offset) as libc::c_long
    })
    .map(|count| count as usize)
}

/// Makes data durable, and with `all` every attribute too.
pub(super) fn sync(fd: BorrowedFd<'_>, all: bool) -> SysResult<()> {
    // SAFETY: a live descriptor.
    call(|| unsafe {
        if all { libc::fsync(fd.as_raw_fd()) } else { libc::fdatasync(fd.as_raw_fd()) }.into()
    })
    .map(drop)
}

pub(super) fn lseek(fd: BorrowedFd<'_>, offset: i64, whence: i32) -> SysResult<i64> {
    // SAFETY: a live descriptor.
    call(|| unsafe { libc::lseek64(fd.as_raw_fd(), offset, whence) })
}

pub(super) fn fallocate(fd: BorrowedFd<'_>, mode: i32, offset: i64, length: i64) -> SysResult<()> {
    // SAFETY: a live descriptor.
    call(|| unsafe { libc::fallocate64(fd.as_raw_fd(), mode, offset, length).into() }).map(drop)
}

pub(super) fn ftruncate(fd: BorrowedFd<'_>, size: i64) -> SysResult<()> {
    // SAFETY: a live descriptor.
    call(|| unsafe { libc::ftruncate64(fd.as_raw_fd(), size).into() }).map(drop)
}

pub(super) fn chmod(fd: BorrowedFd<'_>, mode: u32) -> SysResult<()> {
    let path = proc_path(fd);
    // SAFETY: a NUL-terminated path.
    call(|| unsafe { libc::chmod(path.as_ptr(), mode).into() }).map(drop)
}

/// Changes owner and group; `u32::MAX` keeps one.
pub(super) fn chown(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> SysResult<()> {
    // SAFETY: a live descriptor and an empty name.
    call(|| unsafe {
        libc::fchownat(fd.as_raw_fd(), c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH).into()
    })
    .map(drop)
}

/// Sets access and modification time.
pub(super) fn set_times(fd: BorrowedFd<'_>, times: &[libc::timespec; 2]) -> SysResult<()> {
    let path = proc_path(fd);
    // SAFETY: a NUL-terminated path and two live times.
    call(|| unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0).into() })
        .map(drop)
}

/// Whether the calling thread's file system identity may do `mode` (R_OK, W_OK, X_OK).
pub(super) fn may(fd: BorrowedFd<'_>, mode: i32) -> SysResult<()> {
    // SAFETY: a live descriptor and an empty name.
    call(|| unsafe {
        libc::syscall(
            libc::SYS_faccessat2,
            fd.as_raw_fd(),
            c"".as_ptr(),
            mode,
            libc::AT_EACCESS | libc::AT_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// As [`may`], for the process's real identity, where the kernel (before 5.8) lacks faccessat2.
pub(super) fn process_may(fd: BorrowedFd<'_>, mode: i32) -> SysResult<()> {
    let path = proc_path(fd);
    // SAFETY: a NUL-terminated path.
    call(|| unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), mode, 0).into() }).map(drop)
}

/// Pins what a descriptor refers to.
pub(super) fn repin(fd: BorrowedFd<'_>) -> SysResult<OwnedFd> {
    let path = proc_path(fd);
    // SAFETY: a NUL-terminated path.
    call(|| unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC).into() }).map(own)
}

/// Pins the directory at a path, as any process opens one.
pub(super) fn pin_root(path: &std::path::Path) -> SysResult<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno(libc::ENOENT))?;
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: a NUL-terminated path.
    call(|| unsafe { libc::open(path.as_ptr(), flags).into() }).map(own)
}

/// The process's file creation mask. Where the kernel does not tell, all bits, which is safe: it
/// makes the caller look and set the mode itself.
pub(super) fn umask() -> u32 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
            u32::from_str_radix(line.trim(), 8).ok()
        })
        .unwrap_or(0o777)
}
