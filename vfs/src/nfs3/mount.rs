//! The MOUNT protocol, version 3 (RFC 1813, appendix I): from a path to its root handle.

use bytes::Bytes;

use crate::xdr::{Decoder, Encoder, Xdr, XdrError, XdrResult};
use crate::{FileHandle, Status};

/// The program number.
pub const PROGRAM: u32 = 100_005;
/// The version.
pub const VERSION: u32 = 3;

/// Does nothing.
pub const NULL: u32 = 0;
/// Returns the root handle of a [`DirPath`]: [`MountReply`].
pub const MNT: u32 = 1;
/// Returns the list of mounts.
pub const DUMP: u32 = 2;
/// Forgets a mount of a [`DirPath`].
pub const UMNT: u32 = 3;
/// Forgets all mounts of the caller.
pub const UMNTALL: u32 = 4;
/// Returns the list of [`Export`]s.
pub const EXPORT: u32 = 5;

/// The longest path in bytes (MNTPATHLEN).
pub const PATH_BYTES_MAX: usize = 1024;
/// The most authentication flavours that are decoded.
const FLAVORS_MAX: usize = 64;

/// The path of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirPath(pub Bytes);

impl Xdr for DirPath {
    fn encode(&self, to: &mut Encoder) {
        to.opaque(&self.0);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        from.opaque(PATH_BYTES_MAX).map(Self)
    }
}

/// The results of MNT. The numbers of mountstat3 are those of nfsstat3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountReply {
    /// MNT3_OK.
    Ok {
        /// The handle of the export's root.
        root: FileHandle,
        /// The authentication flavours that the server takes.
        flavors: Vec<u32>,
    },
    /// Another status.
    Failed(Status),
}

impl Xdr for MountReply {
    fn encode(&self, to: &mut Encoder) {
        match self {
            Self::Ok { root, flavors } => {
                to.u32(0);
                root.encode(to);
                to.u32(flavors.len() as u32);
                flavors.iter().for_each(|flavor| to.u32(*flavor));
            }
            Self::Failed(status) => status.encode(to),
        }
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        match from.u32()? {
            0 => {
                let root = FileHandle::decode(from)?;
                let length = from.u32()? as usize;
                if length > FLAVORS_MAX {
                    return Err(XdrError::TooLong { length, max: FLAVORS_MAX });
                }
                let flavors = (0..length).map(|_| from.u32()).collect::<XdrResult<_>>()?;
                Ok(Self::Ok { root, flavors })
            }
            status => Ok(Self::Failed(Status(status))),
        }
    }
}

/// An entry of EXPORT's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The path.
    pub path: Bytes,
}

/// The results of EXPORT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportList(pub Vec<Export>);

impl Xdr for ExportList {
    fn encode(&self, to: &mut Encoder) {
        for export in &self.0 {
            to.bool(true);
            to.opaque(&export.path);
            to.bool(false); // No groups: the session key decides, not the host.
        }
        to.bool(false);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        let mut exports = Vec::new();
        while from.bool()? {
            let path = from.opaque(PATH_BYTES_MAX)?;
            while from.bool()? {
                from.opaque(PATH_BYTES_MAX)?;
            }
            exports.push(Export { path });
        }
        Ok(Self(exports))
    }
}
