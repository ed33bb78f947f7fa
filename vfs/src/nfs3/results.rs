//! The results of the NFSv3 procedures.

use crate::xdr::{Decoder, Encoder, Xdr, XdrError, XdrResult, padding, xdr_fields};
use crate::{
    AccessGranted, Attr, Committed, Created, DirEntry, DirPage, Entry, FsInfo, FsStat, Linked,
    PathConf, ReadData, Status, Time, Verifier, Wcc, Written,
};
use bytes::Bytes;

use super::{DATA_BYTES_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX};

/// The results of a procedure: what it found, or its status and what the protocol sends with one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<T, F> {
    /// NFS3_OK.
    Ok(T),
    /// Another status.
    Failed(Status, F),
}

impl<T, F> Reply<T, F> {
    /// Drops what came with a failure.
    pub fn into_result(self) -> Result<T, Status> {
        match self {
            Self::Ok(value) => Ok(value),
            Self::Failed(status, _) => Err(status),
        }
    }
}

impl<T, F: Default> From<crate::Result<T>> for Reply<T, F> {
    fn from(result: crate::Result<T>) -> Self {
        match result {
            Ok(value) => Self::Ok(value),
            Err(error) => Self::Failed(error.status(), F::default()),
        }
    }
}

impl<T: Xdr, F: Xdr> Xdr for Reply<T, F> {
    fn encode(&self, to: &mut Encoder) {
        match self {
            Self::Ok(value) => {
                to.u32(0);
                value.encode(to);
            }
            Self::Failed(status, rest) => {
                status.encode(to);
                rest.encode(to);
            }
        }
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        match from.u32()? {
            0 => T::decode(from).map(Self::Ok),
            // Some servers leave out what should follow a failure; the status is what matters.
            status => {
                let rest = F::decode(from)?;
                Ok(Self::Failed(Status(status), rest))
            }
        }
    }
}

type PostOpAttr = Option<Attr>;

/// The results of GETATTR.
pub type GetAttrReply = Reply<Attr, ()>;
/// The results of SETATTR.
pub type SetAttrReply = Reply<Wcc, Wcc>;
/// The results of LOOKUP.
pub type LookupReply = Reply<Entry, PostOpAttr>;
/// The results of ACCESS.
pub type AccessReply = Reply<AccessGranted, PostOpAttr>;
/// The results of READLINK: the link's attributes and target.
pub type ReadLinkReply = Reply<(PostOpAttr, super::Path), PostOpAttr>;
/// The results of READ.
pub type ReadReply = Reply<ReadData, PostOpAttr>;
/// The results of WRITE.
pub type WriteReply = Reply<Written, Wcc>;
/// The results of CREATE, MKDIR, SYMLINK and MKNOD.
pub type CreateReply = Reply<Created, Wcc>;
/// The results of REMOVE and RMDIR.
pub type RemoveReply = Reply<Wcc, Wcc>;
/// The results of RENAME.
pub type RenameReply = Reply<(Wcc, Wcc), (Wcc, Wcc)>;
/// The results of LINK.
pub type LinkReply = Reply<Linked, (PostOpAttr, Wcc)>;
/// The results of FSSTAT.
pub type FsStatReply = Reply<(PostOpAttr, FsStat), PostOpAttr>;
/// The results of FSINFO.
pub type FsInfoReply = Reply<(PostOpAttr, FsInfo), PostOpAttr>;
/// The results of PATHCONF.
pub type PathConfReply = Reply<(PostOpAttr, PathConf), PostOpAttr>;
/// The results of COMMIT.
pub type CommitReply = Reply<Committed, Wcc>;
/// The results of READDIR.
pub type ReadDirReply = Reply<PlainPage, PostOpAttr>;
/// The results of READDIRPLUS.
pub type ReadDirPlusReply = Reply<DirPage, PostOpAttr>;

impl Xdr for Entry {
    fn encode(&self, to: &mut Encoder) {
        self.handle.encode(to);
        self.attr.encode(to);
        self.dir_attr.encode(to);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        Ok(Self {
            handle: Xdr::decode(from)?,
            attr: Xdr::decode(from)?,
            dir_attr: Xdr::decode(from)?,
        })
    }
}

impl Xdr for AccessGranted {
    fn encode(&self, to: &mut Encoder) {
        self.attr.encode(to);
        self.granted.encode(to);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        Ok(Self { attr: Xdr::decode(from)?, granted: Xdr::decode(from)? })
    }
}

/// Encodes the results of READ up to the data, which (padded with [`padding`]) is to follow.
pub fn read_reply_head(read: &ReadData, to: &mut Encoder) {
    to.u32(0);
    read_head(read, to);
}

fn read_head(read: &ReadData, to: &mut Encoder) {
    read.attr.encode(to);
    to.u32(read.data.len() as u32);
    to.bool(read.eof);
    to.u32(read.data.len() as u32);
}

impl Xdr for ReadData {
    fn encode(&self, to: &mut Encoder) {
        read_head(self, to);
        to.opaque_fixed(&self.data);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        let attr = Xdr::decode(from)?;
        let count = from.u32()? as usize;
        let eof = from.bool()?;
        let data: Bytes = from.opaque_last(DATA_BYTES_MAX)?;
        if data.len() != count {
            return Err(XdrError::TooLong { length: count, max: data.len() });
        }
        debug_assert!(padding(count) < 4);
        Ok(Self { data, eof, attr })
    }
}

xdr_fields!(Linked { attr, dir_wcc });
xdr_fields!(Created { handle, attr, dir_wcc });

impl Xdr for Written {
    fn encode(&self, to: &mut Encoder) {
        self.wcc.encode(to);
        to.u32(self.count);
        self.committed.encode(to);
        self.verifier.encode(to);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        let wcc = Xdr::decode(from)?;
        Ok(Self {
            wcc,
            count: from.u32()?,
            committed: Xdr::decode(from)?,
            verifier: Xdr::decode(from)?,
        })
    }
}

impl Xdr for Committed {
    fn encode(&self, to: &mut Encoder) {
        self.wcc.encode(to);
        self.verifier.encode(to);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        Ok(Self { wcc: Xdr::decode(from)?, verifier: Xdr::decode(from)? })
    }
}

xdr_fields!(FsStat {
    total_bytes,
    free_bytes,
    available_bytes,
    total_files,
    free_files,
    available_files,
    invariant_seconds,
});

xdr_fields!(PathConf {
    link_max,
    name_max,
    no_trunc,
    chown_restricted,
    case_insensitive,
    case_preserving,
});

impl Xdr for FsInfo {
    fn encode(&self, to: &mut Encoder) {
        for word in [
            self.read_max,
            self.read_preferred,
            self.read_multiple,
            self.write_max,
            self.write_preferred,
            self.write_multiple,
            self.readdir_preferred,
        ] {
            to.u32(word);
        }
        to.u64(self.file_size_max);
        let seconds = (self.time_delta_ns / 1_000_000_000) as i64;
        let nanoseconds = (self.time_delta_ns % 1_000_000_000) as u32;
        Time { seconds, nanoseconds }.encode(to);
        to.u32(self.properties);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        Ok(Self {
            read_max: from.u32()?,
            read_preferred: from.u32()?,
            read_multiple: from.u32()?,
            write_max: from.u32()?,
            write_preferred: from.u32()?,
            write_multiple: from.u32()?,
            readdir_preferred: from.u32()?,
            file_size_max: from.u64()?,
            time_delta_ns: {
                let delta = Time::decode(from)?;
                delta.seconds as u64 * 1_000_000_000 + u64::from(delta.nanoseconds)
            },
            properties: from.u32()?,
        })
    }
}

/// A [`DirPage`] in the form of READDIR: entries without attributes and handles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainPage(pub DirPage);

impl PlainPage {
    /// The bytes that an entry with a name of `name_bytes` takes in the reply.
    pub fn entry_bytes(name_bytes: usize) -> usize {
        4 + 8 + 4 + name_bytes + padding(name_bytes) + 8
    }
}

impl DirPage {
    /// The bytes that READDIRPLUS's reply takes besides its entries: status, attributes,
    /// verifier, end of list, end of directory.
    pub const OVERHEAD_BYTES: usize = 4 + 88 + 8 + 4 + 4;

    /// The bytes that an entry takes in READDIRPLUS's reply.
    pub fn entry_bytes(name_bytes: usize, handle_bytes: Option<usize>, attr: bool) -> usize {
        let handle = handle_bytes.map_or(4, |bytes| 4 + 4 + bytes + padding(bytes));
        PlainPage::entry_bytes(name_bytes) + if attr { 88 } else { 4 } + handle
    }
}

fn encode_page(page: &DirPage, plus: bool, to: &mut Encoder) {
    page.dir_attr.encode(to);
    page.verifier.encode(to);
    for entry in &page.entries {
        to.bool(true);
        to.u64(entry.fileid);
        to.opaque(&entry.name);
        to.u64(entry.cookie);
        if plus {
            entry.attr.encode(to);
            entry.handle.encode(to);
        }
    }
    to.bool(false);
    to.bool(page.eof);
}

fn decode_page(from: &mut Decoder, plus: bool) -> XdrResult<DirPage> {
    let dir_attr = Xdr::decode(from)?;
    let verifier = Verifier::decode(from)?;
    // The record's own length bounds the number of entries.
    let mut entries = Vec::new();
    while from.bool()? {
        entries.push(DirEntry {
            fileid: from.u64()?,
            name: from.opaque(NAME_BYTES_MAX)?,
            cookie: from.u64()?,
            attr: if plus { Xdr::decode(from)? } else { None },
            handle: if plus { Xdr::decode(from)? } else { None },
        });
    }
    Ok(DirPage { entries, eof: from.bool()?, verifier, dir_attr })
}

impl Xdr for PlainPage {
    fn encode(&self, to: &mut Encoder) {
        encode_page(&self.0, false, to);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        decode_page(from, false).map(Self)
    }
}

impl Xdr for DirPage {
    fn encode(&self, to: &mut Encoder) {
        encode_page(self, true, to);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        decode_page(from, true)
    }
}

const _: () = assert!(PATH_BYTES_MAX < DATA_BYTES_MAX);
