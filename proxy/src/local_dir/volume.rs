//! FSSTAT, FSINFO and PATHCONF.

use std::os::fd::{AsFd, AsRawFd};

use gridvfs_vfs::{FileHandle, FsInfo, FsStat, PathConf, Result};

use super::LocalDir;
use super::data::TRANSFER_MAX;
use super::sys;

/// Hard links, symbolic links, one PATHCONF for all files, settable times (FSF3_*).
const PROPERTIES: u32 = 0x01 | 0x02 | 0x08 | 0x10;
/// A READDIR page of this size lists some 400 files with attributes.
const READDIR_BYTES: u32 = 64 << 10;
/// Links of a file where the file system does not say (_POSIX_LINK_MAX is 8).
const LINKS_MAX: u32 = 32_000;

impl LocalDir {
    pub(super) fn do_fsstat(&self, file: &FileHandle) -> Result<FsStat> {
        let node = self.resolve(file)?;
        let stat = sys::fstatfs(node.path.as_fd())?;
        let unit = if stat.f_frsize > 0 { stat.f_frsize } else { stat.f_bsize } as u64;
        Ok(FsStat {
            total_bytes: stat.f_blocks.saturating_mul(unit),
            free_bytes: stat.f_bfree.saturating_mul(unit),
            available_bytes: stat.f_bavail.saturating_mul(unit),
            total_files: stat.f_files,
            free_files: stat.f_ffree,
            available_files: stat.f_ffree,
            invariant_seconds: 0,
        })
    }

    pub(super) fn do_fsinfo(&self, file: &FileHandle) -> Result<FsInfo> {
        self.resolve(file)?;
        Ok(FsInfo {
            read_max: TRANSFER_MAX,
            read_preferred: TRANSFER_MAX,
            read_multiple: 4096,
            write_max: TRANSFER_MAX,
            write_preferred: TRANSFER_MAX,
            write_multiple: 4096,
            readdir_preferred: READDIR_BYTES,
            file_size_max: i64::MAX as u64,
            time_delta_ns: 1,
            properties: PROPERTIES,
        })
    }

    pub(super) fn do_pathconf(&self, file: &FileHandle) -> Result<PathConf> {
        let node = self.resolve(file)?;
        let stat = sys::fstatfs(node.path.as_fd())?;
        // SAFETY: a live descriptor.
        let links = unsafe { libc::fpathconf(node.path.as_fd().as_raw_fd(), libc::_PC_LINK_MAX) };
        Ok(PathConf {
            link_max: u32::try_from(links).ok().filter(|links| *links > 0).unwrap_or(LINKS_MAX),
            name_max: u32::try_from(stat.f_namelen).unwrap_or(255),
            no_trunc: true,
            chown_restricted: true,
            case_insensitive: false,
            case_preserving: true,
        })
    }
}
