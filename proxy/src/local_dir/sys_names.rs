//! The system calls that change or list the names in a directory.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::sys::{Errno, SysResult, proc_path};

fn done(result: libc::c_long) -> SysResult<()> {
    if result < 0 { Err(Errno::last()) } else { Ok(()) }
}

pub(super) fn mkdir(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> SysResult<()> {
    // SAFETY: a live descriptor and a NUL-terminated name, as in all calls of this file.
    done(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode).into() })
}

pub(super) fn symlink(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> SysResult<()> {
    // SAFETY: see `mkdir`.
    done(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()).into() })
}

pub(super) fn mknod(
    dir: BorrowedFd<'_>,
    name: &CStr,
    mode: u32,
    device: libc::dev_t,
) -> SysResult<()> {
    // SAFETY: see `mkdir`.
    done(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, device).into() })
}

pub(super) fn unlink(dir: BorrowedFd<'_>, name: &CStr, directory: bool) -> SysResult<()> {
    let flags = if directory { libc::AT_REMOVEDIR } else { 0 };
    // SAFETY: see `mkdir`.
    done(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), flags).into() })
}

/// Renames. With `no_replace`, and a file system or kernel that has no such call, EINVAL or ENOSYS.
pub(super) fn rename(
    from: (BorrowedFd<'_>, &CStr),
    to: (BorrowedFd<'_>, &CStr),
    no_replace: bool,
) -> SysResult<()> {
    if !no_replace {
        // SAFETY: see `mkdir`.
        return done(unsafe {
            libc::renameat(from.0.as_raw_fd(), from.1.as_ptr(), to.0.as_raw_fd(), to.1.as_ptr())
                .into()
        });
    }
    // SAFETY: see `mkdir`.
    done(unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            from.0.as_raw_fd(),
            from.1.as_ptr(),
            to.0.as_raw_fd(),
            to.1.as_ptr(),
            libc::RENAME_NOREPLACE,
        )
    })
}

/// Gives a pinned file another name. By way of /proc, because AT_EMPTY_PATH asks for
/// CAP_DAC_READ_SEARCH; a pinned symbolic link is linked itself, not followed.
pub(super) fn link(file: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &CStr) -> SysResult<()> {
    let path = proc_path(file);
    // SAFETY: see `mkdir`.
    done(unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            path.as_ptr(),
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
        .into()
    })
}

/// An entry as the kernel lists it.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawEntry<'a> {
    pub inode: u64,
    /// Where the listing goes on behind this entry.
    pub cookie: u64,
    /// DT_*.
    pub kind: u8,
    pub name: &'a [u8],
}

/// Reads the next entries of an open directory into `buffer`; 0 bytes at the end.
pub(super) fn getdents(dir: BorrowedFd<'_>, buffer: &mut [u8]) -> SysResult<usize> {
    // SAFETY: a live descriptor and a live buffer of the given length.
    let result = unsafe {
        libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
    };
    done(result).map(|()| result as usize)
}

/// Takes the entry at the head of what getdents returned, and says how long it is.
pub(super) fn first_entry(bytes: &[u8]) -> Option<(RawEntry<'_>, usize)> {
    let inode = u64::from_ne_bytes(bytes.get(0..8)?.try_into().ok()?);
    let cookie = u64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?);
    let length = usize::from(u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?));
    let kind = *bytes.get(18)?;
    let name = bytes.get(19..length)?;
    let name = &name[..name.iter().position(|byte| *byte == 0)?];
    Some((RawEntry { inode, cookie, kind, name }, length))
}

/// Lists a whole directory through `visit`, which ends it by returning `false`.
pub(super) fn for_each_entry(
    dir: BorrowedFd<'_>,
    mut visit: impl FnMut(RawEntry<'_>) -> bool,
) -> SysResult<()> {
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        let length = getdents(dir, &mut buffer)?;
        let mut rest = &buffer[..length];
        if rest.is_empty() {
            return Ok(());
        }
        while let Some((entry, size)) = first_entry(rest) {
            if entry.name != b"." && entry.name != b".." && !visit(entry) {
                return Ok(());
            }
            rest = &rest[size..];
        }
    }
}
