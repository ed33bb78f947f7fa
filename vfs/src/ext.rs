//! Our extension program: what NFSv3 lacks and VM monitors ask for.
//!
//! It travels beside NFSv3 on the channels between our own proxies, with the same credential. A
//! server that does not have it answers PROG_UNAVAIL, and the client does without.

mod changes;
mod fetch;
mod hops;

pub use changes::{CHANGES_MAX, Changes, ChangesArgs, ChangesReply, HOLD_MAX, Reason, Told};
pub use fetch::{FetchArgs, FetchBuilder, FetchLie, FetchPacker, FetchReply, PackedFetch};
pub use hops::{HOP_ID_BYTES, HOPS_MAX, Hop, Hops};

use crate::nfs3::Reply;
use crate::xdr::{Decoder, Encoder, Xdr, XdrError, XdrResult, xdr_struct};
use crate::{Allocation, FileHandle, SeekWhence, Wcc};

/// The program number, in the range that RFC 5531 leaves to users.
pub const PROGRAM: u32 = 0x2047_5646;
/// The version.
pub const VERSION: u32 = 1;

/// Does nothing.
pub const NULL: u32 = 0;
/// [`crate::Vfs::seek`]: [`SeekArgs`] to [`SeekReply`].
pub const SEEK: u32 = 1;
/// [`crate::Vfs::allocate`]: [`AllocateArgs`] to [`AllocateReply`].
pub const ALLOCATE: u32 = 2;
/// [`crate::Vfs::rename`] with `no_replace`: [`crate::nfs3::RenameArgs`] to
/// [`crate::nfs3::RenameReply`].
pub const RENAME_NOREPLACE: u32 = 3;
/// The client says that it will not come back: the session may end with its last channel. No
/// arguments; the result is a status alone.
pub const END: u32 = 4;
/// [`crate::Vfs::fetch`]: [`FetchArgs`] to [`FetchReply`].
pub const FETCH: u32 = 5;
/// Which proxies are on the way from the callee to the files: no arguments, to
/// [`crate::nfs3::Reply`] of [`Hops`].
pub const HOPS: u32 = 6;
/// What has changed: [`ChangesArgs`] to [`ChangesReply`]. It is answered when there is something to
/// tell, or after a while.
pub const CHANGES: u32 = 7;

xdr_struct! {
    /// The arguments of SEEK.
    SeekArgs {
        /// The file.
        file: FileHandle,
        /// Where to start, in bytes.
        offset: u64,
        /// What to look for.
        whence: SeekWhence,
    }
}

xdr_struct! {
    /// The arguments of ALLOCATE.
    AllocateArgs {
        /// The file.
        file: FileHandle,
        /// The start of the range, in bytes.
        offset: u64,
        /// Its length, in bytes.
        length: u64,
        /// What to do to it.
        how: Allocation,
    }
}

/// The results of SEEK: the offset found.
pub type SeekReply = Reply<u64, ()>;
/// The results of ALLOCATE.
pub type AllocateReply = Reply<Wcc, Wcc>;

impl Xdr for SeekWhence {
    fn encode(&self, to: &mut Encoder) {
        to.u32(*self as u32);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        match from.u32()? {
            0 => Ok(Self::Data),
            1 => Ok(Self::Hole),
            value => Err(XdrError::Unknown { value, what: "seek whence" }),
        }
    }
}

impl Xdr for Allocation {
    fn encode(&self, to: &mut Encoder) {
        to.u32(*self as u32);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        Ok(match from.u32()? {
            0 => Self::Reserve,
            1 => Self::ReserveKeepSize,
            2 => Self::PunchHole,
            3 => Self::ZeroRange,
            4 => Self::ZeroRangeKeepSize,
            value => {
                return Err(XdrError::Unknown { value, what: "allocation" });
            }
        })
    }
}
