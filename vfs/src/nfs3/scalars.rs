//! XDR of the types that NFSv3 shares between procedures.

use crate::xdr::{Decoder, Encoder, Xdr, XdrError, XdrResult, xdr_fields};
use crate::{
    Access, Attr, CreateHow, DeviceNumber, FileHandle, FileKind, HANDLE_BYTES_MAX, SetAttr,
    SetTime, Stability, Status, Time, Verifier, Wcc, WccAttr,
};

use super::{NAME_BYTES_MAX, Name, PATH_BYTES_MAX, Path};

impl Xdr for Name {
    fn encode(&self, to: &mut Encoder) {
        to.opaque(&self.0);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        from.opaque(NAME_BYTES_MAX).map(Self)
    }
}

impl Xdr for Path {
    fn encode(&self, to: &mut Encoder) {
        to.opaque(&self.0);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        from.opaque(PATH_BYTES_MAX).map(Self)
    }
}

impl Xdr for FileHandle {
    fn encode(&self, to: &mut Encoder) {
        to.opaque(self.as_bytes());
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        let bytes = from.opaque(HANDLE_BYTES_MAX)?;
        let too_long = XdrError::TooLong { length: bytes.len(), max: HANDLE_BYTES_MAX };
        Self::new(&bytes).ok_or(too_long)
    }
}

impl Xdr for Verifier {
    fn encode(&self, to: &mut Encoder) {
        to.opaque_fixed(self);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        from.u64().map(u64::to_be_bytes)
    }
}

impl Xdr for Status {
    fn encode(&self, to: &mut Encoder) {
        to.u32(self.0);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        from.u32().map(Self)
    }
}

impl Xdr for Access {
    fn encode(&self, to: &mut Encoder) {
        to.u32(self.0);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        from.u32().map(Self)
    }
}

impl Xdr for Stability {
    fn encode(&self, to: &mut Encoder) {
        to.u32(*self as u32);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        Ok(match from.u32()? {
            0 => Self::Unstable,
            1 => Self::DataSync,
            2 => Self::FileSync,
            value => {
                return Err(XdrError::Unknown { value, what: "stable_how" });
            }
        })
    }
}

impl Xdr for FileKind {
    fn encode(&self, to: &mut Encoder) {
        to.u32(*self as u32);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        Ok(match from.u32()? {
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::Block,
            4 => Self::Character,
            5 => Self::Symlink,
            6 => Self::Socket,
            7 => Self::Fifo,
            value => {
                return Err(XdrError::Unknown { value, what: "ftype3" });
            }
        })
    }
}

impl Xdr for Time {
    fn encode(&self, to: &mut Encoder) {
        // nfstime3 has unsigned 32-bit seconds: clamp rather than wrap to another century.
        let (seconds, nanoseconds) = match u32::try_from(self.seconds) {
            Ok(seconds) => (seconds, self.nanoseconds),
            Err(_) if self.seconds < 0 => (0, 0),
            Err(_) => (u32::MAX, 999_999_999),
        };
        to.u32(seconds);
        to.u32(nanoseconds);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        let seconds = i64::from(from.u32()?);
        let nanoseconds = from.u32()?;
        // Servers have been seen to send a full second here; a time beyond it is no time at all.
        if nanoseconds >= 1_000_000_000 {
            return Ok(Self { seconds: seconds + 1, nanoseconds: 0 });
        }
        Ok(Self { seconds, nanoseconds })
    }
}

xdr_fields!(DeviceNumber { major, minor });
xdr_fields!(WccAttr { size, mtime, ctime });
xdr_fields!(Wcc { before, after });
xdr_fields!(Attr {
    kind,
    mode,
    links,
    uid,
    gid,
    size,
    used,
    device,
    fsid,
    fileid,
    atime,
    mtime,
    ctime,
});
xdr_fields!(SetAttr { mode, uid, gid, size, atime, mtime });

impl Xdr for SetTime {
    fn encode(&self, to: &mut Encoder) {
        match self {
            Self::Keep => to.u32(0),
            Self::ServerNow => to.u32(1),
            Self::To(time) => {
                to.u32(2);
                time.encode(to);
            }
        }
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        Ok(match from.u32()? {
            0 => Self::Keep,
            1 => Self::ServerNow,
            2 => Self::To(Time::decode(from)?),
            value => {
                return Err(XdrError::Unknown { value, what: "time_how" });
            }
        })
    }
}

impl Xdr for CreateHow {
    fn encode(&self, to: &mut Encoder) {
        match self {
            Self::Unchecked(attr) => {
                to.u32(0);
                attr.encode(to);
            }
            Self::Guarded(attr) => {
                to.u32(1);
                attr.encode(to);
            }
            Self::Exclusive(verifier) => {
                to.u32(2);
                verifier.encode(to);
            }
        }
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        Ok(match from.u32()? {
            0 => Self::Unchecked(SetAttr::decode(from)?),
            1 => Self::Guarded(SetAttr::decode(from)?),
            2 => Self::Exclusive(Verifier::decode(from)?),
            value => {
                return Err(XdrError::Unknown { value, what: "createmode3" });
            }
        })
    }
}
