//! Arguments and results of the [`crate::Vfs`] calls.

use bytes::Bytes;

use crate::{Attr, DeviceNumber, FileHandle, SetAttr, Wcc};

/// Who a call is made for: the AUTH_SYS identity (RFC 5531, appendix A).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Supplementary groups; AUTH_SYS carries the first 16.
    pub groups: Vec<u32>,
}

impl Caller {
    /// The most supplementary groups that AUTH_SYS carries.
    pub const GROUPS_MAX: usize = 16;
}

/// Permissions, as ACCESS asks for and grants them (a set of `Access::*` bits).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access(pub u32);

impl Access {
    /// Read data, or list a directory.
    pub const READ: u32 = 0x01;
    /// Find names in a directory.
    pub const LOOKUP: u32 = 0x02;
    /// Change existing data or entries.
    pub const MODIFY: u32 = 0x04;
    /// Append data or add entries.
    pub const EXTEND: u32 = 0x08;
    /// Remove an entry of a directory.
    pub const DELETE: u32 = 0x10;
    /// Execute a file.
    pub const EXECUTE: u32 = 0x20;
}

/// The answer of ACCESS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessGranted {
    /// What of the wanted permissions is granted.
    pub granted: Access,
    /// The file's attributes, if told.
    pub attr: Option<Attr>,
}

/// The answer of LOOKUP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The file found.
    pub handle: FileHandle,
    /// Its attributes, if told.
    pub attr: Option<Attr>,
    /// The directory's attributes, if told.
    pub dir_attr: Option<Attr>,
}

/// The answer of READ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadData {
    /// The bytes read: at most as many as asked for.
    pub data: Bytes,
    /// Whether the data reaches the end of the file.
    pub eof: bool,
    /// The file's attributes, if told.
    pub attr: Option<Attr>,
}

/// How durable a write must be before its answer (stable_how).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Stability {
    /// It may be lost by a crash until COMMIT.
    Unstable = 0,
    /// The data is on disk.
    DataSync = 1,
    /// Data and attributes are on disk.
    FileSync = 2,
}

/// A write, create or cookie verifier: an opaque 8-byte value.
pub type Verifier = [u8; 8];

/// The answer of WRITE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// How many bytes were taken.
    pub count: u32,
    /// How durable they are.
    pub committed: Stability,
    /// Changes when the server has restarted and lost unstable data.
    pub verifier: Verifier,
    /// The file before and after.
    pub wcc: Wcc,
}

/// The answer of COMMIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Differs from that of the writes when the server has lost some of them.
    pub verifier: Verifier,
    /// The file before and after.
    pub wcc: Wcc,
}

/// How to create a file (createhow3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateHow {
    /// Use an existing file, too.
    Unchecked(SetAttr),
    /// Fail if the name exists.
    Guarded(SetAttr),
    /// Fail if the name exists and was not created by this very call: safe to repeat.
    Exclusive(Verifier),
}

/// The answer of CREATE, MKDIR, SYMLINK and MKNOD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// The new file, if told.
    pub handle: Option<FileHandle>,
    /// Its attributes, if told.
    pub attr: Option<Attr>,
    /// The directory before and after.
    pub dir_wcc: Wcc,
}

/// The answer of LINK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linked {
    /// The file's attributes, if told.
    pub attr: Option<Attr>,
    /// The directory before and after.
    pub dir_wcc: Wcc,
}

/// What MKNOD makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A block device node.
    Block(DeviceNumber),
    /// A character device node.
    Character(DeviceNumber),
}

/// An entry of a directory. `.` and `..` are among them where the server lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The file's number.
    pub fileid: u64,
    /// Its name.
    pub name: Bytes,
    /// Where the listing goes on behind this entry.
    pub cookie: u64,
    /// Its attributes, with `plus` and if told.
    pub attr: Option<Attr>,
    /// Its handle, with `plus` and if told.
    pub handle: Option<FileHandle>,
}

/// A part of a directory's listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirPage {
    /// The entries, in the server's order.
    pub entries: Vec<DirEntry>,
    /// Whether the listing ends here.
    pub eof: bool,
    /// To be given with the next cookie.
    pub verifier: Verifier,
    /// The directory's attributes, if told.
    pub dir_attr: Option<Attr>,
}

/// The answer of FSSTAT: bytes and files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsStat {
    /// The file system's size in bytes.
    pub total_bytes: u64,
    /// Free bytes.
    pub free_bytes: u64,
    /// Free bytes that the caller may use.
    pub available_bytes: u64,
    /// The number of file slots.
    pub total_files: u64,
    /// Free file slots.
    pub free_files: u64,
    /// Free file slots that the caller may use.
    pub available_files: u64,
    /// For how many seconds this is expected not to change.
    pub invariant_seconds: u32,
}

/// The answer of FSINFO: sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsInfo {
    /// The largest READ.
    pub read_max: u32,
    /// The READ size to prefer.
    pub read_preferred: u32,
    /// READ sizes should be a multiple of it.
    pub read_multiple: u32,
    /// The largest WRITE.
    pub write_max: u32,
    /// The WRITE size to prefer.
    pub write_preferred: u32,
    /// WRITE sizes should be a multiple of it.
    pub write_multiple: u32,
    /// The READDIR size to prefer.
    pub readdir_preferred: u32,
    /// The largest file.
    pub file_size_max: u64,
    /// The granularity of times, in nanoseconds.
    pub time_delta_ns: u64,
    /// FSF_* bits.
    pub properties: u32,
}

/// The answer of PATHCONF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathConf {
    /// The most hard links of a file.
    pub link_max: u32,
    /// The longest name, in bytes.
    pub name_max: u32,
    /// Too long a name is refused, not cut.
    pub no_trunc: bool,
    /// Only a privileged user may change owners.
    pub chown_restricted: bool,
    /// Names differing in case alone are the same.
    pub case_insensitive: bool,
    /// Names keep their case.
    pub case_preserving: bool,
}

/// What [`crate::Vfs::seek`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SeekWhence {
    /// SEEK_DATA.
    Data = 0,
    /// SEEK_HOLE; the end of the file is a hole.
    Hole = 1,
}

/// What [`crate::Vfs::allocate`] does to its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Allocation {
    /// fallocate mode 0: reserve space, extend the size.
    Reserve = 0,
    /// FALLOC_FL_KEEP_SIZE: reserve space, keep the size.
    ReserveKeepSize = 1,
    /// FALLOC_FL_PUNCH_HOLE with KEEP_SIZE: free space, read zeros.
    PunchHole = 2,
    /// FALLOC_FL_ZERO_RANGE: read zeros, extend the size.
    ZeroRange = 3,
    /// FALLOC_FL_ZERO_RANGE with KEEP_SIZE.
    ZeroRangeKeepSize = 4,
}

/// Says whether a name is `.` or `..`, which every directory has and nobody makes.
pub fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}
