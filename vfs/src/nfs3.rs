//! The wire form of NFS version 3 (RFC 1813): arguments and results of every procedure, in both
//! directions, and of the MOUNT protocol (in [`mount`]).
//!
//! WRITE's data and READ's data are slices of the record they came in. To send them without
//! copying, encode [`WriteHead`] or [`read_reply_head`] and put data and padding behind it.

pub mod mount;
mod results;
mod scalars;

pub use results::{
    AccessReply, CommitReply, CreateReply, FsInfoReply, FsStatReply, GetAttrReply, LinkReply,
    LookupReply, PathConfReply, PlainPage, ReadDirPlusReply, ReadDirReply, ReadLinkReply,
    ReadReply, RemoveReply, RenameReply, Reply, SetAttrReply, WriteReply, read_reply_head,
};

use bytes::Bytes;

use crate::xdr::{Decoder, Encoder, Xdr, XdrError, XdrResult, xdr_struct};
use crate::{
    Access, CreateHow, DeviceNumber, FileHandle, NodeKind, SetAttr, Stability, Time, Verifier,
};

/// The program number.
pub const PROGRAM: u32 = 100_003;
/// The version.
pub const VERSION: u32 = 3;
/// The usual port.
pub const PORT: u16 = 2049;

/// The longest name that is decoded, in bytes. Longer than any file system's limit, so that the
/// file system itself can answer [`crate::Status::NAMETOOLONG`].
pub const NAME_BYTES_MAX: usize = 4096;
/// The longest symbolic link target that is decoded, in bytes.
pub const PATH_BYTES_MAX: usize = 16384;
/// The most data in one READ or WRITE that is decoded, in bytes.
pub const DATA_BYTES_MAX: usize = 4 << 20;

macro_rules! procedures {
    ($($name:ident = $number:literal;)*) => {
        $(#[doc = concat!("NFSPROC3_", stringify!($name), ".")] pub const $name: u32 = $number;)*

        /// Returns the name of a procedure.
        pub fn procedure_name(procedure: u32) -> &'static str {
            match procedure { $($number => stringify!($name),)* _ => "UNKNOWN" }
        }
    };
}

procedures! {
    NULL = 0;
    GETATTR = 1;
    SETATTR = 2;
    LOOKUP = 3;
    ACCESS = 4;
    READLINK = 5;
    READ = 6;
    WRITE = 7;
    CREATE = 8;
    MKDIR = 9;
    SYMLINK = 10;
    MKNOD = 11;
    REMOVE = 12;
    RMDIR = 13;
    RENAME = 14;
    LINK = 15;
    READDIR = 16;
    READDIRPLUS = 17;
    FSSTAT = 18;
    FSINFO = 19;
    PATHCONF = 20;
    COMMIT = 21;
}

/// A file name, of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(pub Bytes);

impl From<&[u8]> for Name {
    fn from(bytes: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(bytes))
    }
}

/// The target of a symbolic link, of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(pub Bytes);

/// The arguments of GETATTR, READLINK, FSSTAT, FSINFO and PATHCONF.
pub type HandleArgs = FileHandle;

xdr_struct! {
    /// The arguments of SETATTR.
    SetAttrArgs {
        /// The file.
        file: FileHandle,
        /// What to change.
        changes: SetAttr,
        /// The ctime that the file must still have.
        guard: Option<Time>,
    }
}

xdr_struct! {
    /// diropargs3: the arguments of LOOKUP, REMOVE and RMDIR, and part of others.
    DirOpArgs {
        /// The directory.
        dir: FileHandle,
        /// The name in it.
        name: Name,
    }
}

xdr_struct! {
    /// The arguments of ACCESS.
    AccessArgs {
        /// The file.
        file: FileHandle,
        /// The permissions asked for.
        wanted: Access,
    }
}

xdr_struct! {
    /// The arguments of READ.
    ReadArgs {
        /// The file.
        file: FileHandle,
        /// Where to start, in bytes.
        offset: u64,
        /// How many bytes.
        count: u32,
    }
}

xdr_struct! {
    /// The arguments of WRITE up to and without the data's length and the data.
    WriteHead {
        /// The file.
        file: FileHandle,
        /// Where to start, in bytes.
        offset: u64,
        /// How many bytes.
        count: u32,
        /// How durable before the reply.
        stable: Stability,
    }
}

/// The arguments of WRITE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteArgs {
    /// All but the data.
    pub head: WriteHead,
    /// The data: `head.count` bytes.
    pub data: Bytes,
}

impl Xdr for WriteArgs {
    fn encode(&self, to: &mut Encoder) {
        self.head.encode(to);
        to.opaque(&self.data);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        let head = WriteHead::decode(from)?;
        let data = from.opaque_last(DATA_BYTES_MAX)?;
        if data.len() != head.count as usize {
            return Err(XdrError::TooLong { length: head.count as usize, max: data.len() });
        }
        Ok(Self { head, data })
    }
}

xdr_struct! {
    /// The arguments of CREATE.
    CreateArgs {
        /// Directory and name.
        at: DirOpArgs,
        /// How to create.
        how: CreateHow,
    }
}

xdr_struct! {
    /// The arguments of MKDIR.
    MkdirArgs {
        /// Directory and name.
        at: DirOpArgs,
        /// The new directory's attributes.
        attr: SetAttr,
    }
}

xdr_struct! {
    /// The arguments of SYMLINK.
    SymlinkArgs {
        /// Directory and name.
        at: DirOpArgs,
        /// The link's attributes.
        attr: SetAttr,
        /// The link's target.
        target: Path,
    }
}

/// The arguments of MKNOD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MknodArgs {
    /// Directory and name.
    pub at: DirOpArgs,
    /// What to make.
    pub kind: NodeKind,
    /// The node's attributes.
    pub attr: SetAttr,
}

impl Xdr for MknodArgs {
    fn encode(&self, to: &mut Encoder) {
        self.at.encode(to);
        let (kind, device) = match self.kind {
            NodeKind::Block(device) => (3, Some(device)),
            NodeKind::Character(device) => (4, Some(device)),
            NodeKind::Socket => (6, None),
            NodeKind::Fifo => (7, None),
        };
        to.u32(kind);
        self.attr.encode(to);
        if let Some(device) = device {
            device.encode(to);
        }
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        let at = DirOpArgs::decode(from)?;
        let kind = from.u32()?;
        // A regular file, directory or link has no MKNOD body: the server answers BADTYPE.
        let attr = match kind {
            3 | 4 | 6 | 7 => SetAttr::decode(from)?,
            value => {
                return Err(XdrError::Unknown { value, what: "MKNOD type" });
            }
        };
        let kind = match kind {
            3 => NodeKind::Block(DeviceNumber::decode(from)?),
            4 => NodeKind::Character(DeviceNumber::decode(from)?),
            6 => NodeKind::Socket,
            _ => NodeKind::Fifo,
        };
        Ok(Self { at, kind, attr })
    }
}

xdr_struct! {
    /// The arguments of RENAME.
    RenameArgs {
        /// The old directory and name.
        from: DirOpArgs,
        /// The new directory and name.
        to: DirOpArgs,
    }
}

xdr_struct! {
    /// The arguments of LINK.
    LinkArgs {
        /// The file.
        file: FileHandle,
        /// The new directory and name.
        at: DirOpArgs,
    }
}

xdr_struct! {
    /// The arguments of READDIR.
    ReadDirArgs {
        /// The directory.
        dir: FileHandle,
        /// Where to go on; 0 is the start.
        cookie: u64,
        /// As the reply that gave the cookie said.
        verifier: Verifier,
        /// The largest reply, in bytes.
        count: u32,
    }
}

xdr_struct! {
    /// The arguments of READDIRPLUS.
    ReadDirPlusArgs {
        /// The directory.
        dir: FileHandle,
        /// Where to go on; 0 is the start.
        cookie: u64,
        /// As the reply that gave the cookie said.
        verifier: Verifier,
        /// The most bytes of names, numbers and cookies.
        dir_count: u32,
        /// The largest reply, in bytes.
        max_count: u32,
    }
}

xdr_struct! {
    /// The arguments of COMMIT.
    CommitArgs {
        /// The file.
        file: FileHandle,
        /// Where to start, in bytes.
        offset: u64,
        /// How many bytes; 0 means to the end.
        count: u32,
    }
}
