//! The one error type of the [`crate::Vfs`] interface.

use std::fmt;

/// The result of a [`crate::Vfs`] call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An NFSv3 status (nfsstat3) other than NFS3_OK. A number that RFC 1813 does not list is kept as
/// it came.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u32);

macro_rules! statuses {
    ($($name:ident = $number:literal, $errno:ident;)*) => {
        impl Status {
            $(#[doc = concat!("NFS3ERR_", stringify!($name), ".")] pub const $name: Self = Self($number);)*

            /// Returns the errno that an application expects for this status.
            pub fn errno(self) -> i32 {
                match self { $(Self::$name => libc::$errno,)* _ => libc::EIO }
            }

            fn name(self) -> Option<&'static str> {
                match self { $(Self::$name => Some(stringify!($name)),)* _ => None }
            }
        }
    };
}

statuses! {
    PERM = 1, EPERM;
    NOENT = 2, ENOENT;
    IO = 5, EIO;
    NXIO = 6, ENXIO;
    ACCES = 13, EACCES;
    EXIST = 17, EEXIST;
    XDEV = 18, EXDEV;
    NODEV = 19, ENODEV;
    NOTDIR = 20, ENOTDIR;
    ISDIR = 21, EISDIR;
    INVAL = 22, EINVAL;
    FBIG = 27, EFBIG;
    NOSPC = 28, ENOSPC;
    ROFS = 30, EROFS;
    MLINK = 31, EMLINK;
    NAMETOOLONG = 63, ENAMETOOLONG;
    NOTEMPTY = 66, ENOTEMPTY;
    DQUOT = 69, EDQUOT;
    STALE = 70, ESTALE;
    REMOTE = 71, EREMOTE;
    BADHANDLE = 10001, ESTALE;
    NOT_SYNC = 10002, EIO;
    BAD_COOKIE = 10003, EINVAL;
    NOTSUPP = 10004, EOPNOTSUPP;
    TOOSMALL = 10005, EIO;
    SERVERFAULT = 10006, EIO;
    BADTYPE = 10007, EINVAL;
    JUKEBOX = 10008, EAGAIN;
}

impl Status {
    /// Returns the status that says this errno best.
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            libc::EPERM => Self::PERM,
            libc::ENOENT => Self::NOENT,
            libc::ENXIO => Self::NXIO,
            libc::EACCES => Self::ACCES,
            libc::EEXIST => Self::EXIST,
            libc::EXDEV => Self::XDEV,
            libc::ENODEV => Self::NODEV,
            libc::ENOTDIR => Self::NOTDIR,
            libc::EISDIR => Self::ISDIR,
            libc::EINVAL => Self::INVAL,
            libc::EFBIG => Self::FBIG,
            libc::ENOSPC => Self::NOSPC,
            libc::EROFS => Self::ROFS,
            libc::EMLINK => Self::MLINK,
            libc::ENAMETOOLONG => Self::NAMETOOLONG,
            libc::ENOTEMPTY => Self::NOTEMPTY,
            libc::EDQUOT => Self::DQUOT,
            libc::ESTALE => Self::STALE,
            libc::EOPNOTSUPP | libc::ENOSYS => Self::NOTSUPP,
            libc::EAGAIN => Self::JUKEBOX,
            _ => Self::IO,
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "NFS3ERR_{name}"),
            None => write!(f, "nfsstat3 {}", self.0),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why a [`crate::Vfs`] call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file system's own answer.
    #[error("{0}")]
    Status(Status),
    /// No answer within the session's timeout, or the session has ended.
    #[error("state server unreachable: {0}")]
    Unreachable(String),
    /// The server's answer is not NFSv3: truncated, garbled or too long.
    #[error("bad reply from the server: {0}")]
    Protocol(String),
    /// The server refused the credential or the session key (AUTH_ERROR).
    #[error("access denied by the server: {0}")]
    Denied(String),
    /// The call was given up, because the process that asked is gone.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// Returns the errno that an application expects.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Status(status) => status.errno(),
            Self::Unreachable(_) | Self::Protocol(_) => libc::EIO,
            Self::Denied(_) => libc::EACCES,
            Self::Interrupted => libc::EINTR,
        }
    }

    /// Returns the status that an NFS server answers for it.
    pub fn status(&self) -> Status {
        match self {
            Self::Status(status) => *status,
            Self::Unreachable(_) | Self::Interrupted => Status::JUKEBOX,
            Self::Protocol(_) => Status::IO,
            Self::Denied(_) => Status::ACCES,
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Status(error.raw_os_error().map_or(Status::IO, Status::from_errno))
    }
}
