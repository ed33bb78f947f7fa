//! File attributes (RFC 1813, fattr3, sattr3 and weak cache consistency data).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The type of a file (ftype3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum FileKind {
    /// A regular file.
    Regular = 1,
    /// A directory.
    Directory = 2,
    /// A block device node.
    Block = 3,
    /// A character device node.
    Character = 4,
    /// A symbolic link.
    Symlink = 5,
    /// A socket.
    Socket = 6,
    /// A named pipe.
    Fifo = 7,
}

/// A device number (specdata3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceNumber {
    /// The major number.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
}

/// A time stamp with nanoseconds. NFSv3 carries unsigned 32-bit seconds (1970 to 2106); other
/// values are clamped on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds since 1970-01-01 00:00:00 UTC.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanoseconds: u32,
}

impl Time {
    /// Converts to the standard library's type.
    pub fn to_system_time(self) -> SystemTime {
        let nanoseconds = Duration::from_nanos(u64::from(self.nanoseconds));
        let whole = Duration::from_secs(self.seconds.unsigned_abs());
        let base = if self.seconds >= 0 {
            UNIX_EPOCH.checked_add(whole)
        } else {
            UNIX_EPOCH.checked_sub(whole)
        };
        base.and_then(|base| base.checked_add(nanoseconds)).unwrap_or(UNIX_EPOCH)
    }

    /// Converts from the standard library's type.
    pub fn from_system_time(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => {
                Self { seconds: after.as_secs() as i64, nanoseconds: after.subsec_nanos() }
            }
            Err(before) => {
                let before = before.duration();
                match before.subsec_nanos() {
                    0 => Self { seconds: -(before.as_secs() as i64), nanoseconds: 0 },
                    nanos => Self {
                        seconds: -(before.as_secs() as i64) - 1,
                        nanoseconds: 1_000_000_000 - nanos,
                    },
                }
            }
        }
    }
}

/// The attributes of a file (fattr3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The type of the file.
    pub kind: FileKind,
    /// Permission bits and set-id, sticky bits (the low 12 bits).
    pub mode: u32,
    /// The number of hard links.
    pub links: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The size in bytes.
    pub size: u64,
    /// The space in use on disk, in bytes.
    pub used: u64,
    /// The device number of a device node.
    pub device: DeviceNumber,
    /// The file system's id.
    pub fsid: u64,
    /// The file's number within its file system.
    pub fileid: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of data.
    pub mtime: Time,
    /// Last change of data or attributes.
    pub ctime: Time,
}

/// How to set a time (set_atime, set_mtime).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetTime {
    /// Leave it.
    #[default]
    Keep,
    /// Set it to the server's clock.
    ServerNow,
    /// Set it to this time.
    To(Time),
}

/// A change of attributes (sattr3). `None` and [`SetTime::Keep`] leave a field as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// New permission bits.
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New size in bytes: truncates or extends.
    pub size: Option<u64>,
    /// New time of last access.
    pub atime: SetTime,
    /// New time of last change.
    pub mtime: SetTime,
}

/// What a reply says of a file before its operation (wcc_attr).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WccAttr {
    /// The size in bytes.
    pub size: u64,
    /// Last change of data.
    pub mtime: Time,
    /// Last change of data or attributes.
    pub ctime: Time,
}

/// Weak cache consistency data (wcc_data): the file before and after an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wcc {
    /// Before, if the server told.
    pub before: Option<WccAttr>,
    /// After, if the server told.
    pub after: Option<Attr>,
}

impl From<&Attr> for WccAttr {
    fn from(attr: &Attr) -> Self {
        Self { size: attr.size, mtime: attr.mtime, ctime: attr.ctime }
    }
}
