//! CHANGES: a call that is held until files have changed that the caller was given (docs/decisions/0029).
//!
//! The callee keeps, for each client, what it has given it, and what of that has changed since it was
//! last answered. A client is told by the stamp of its credentials. Answers are numbered; an answer
//! whose number does not come back with the next call is taken for lost, and its changes are told again.

use std::time::Duration;

use bytes::Bytes;

use crate::nfs3::{NAME_BYTES_MAX, Reply};
use crate::xdr::{Decoder, Encoder, Xdr, XdrError, XdrResult, xdr_struct};
use crate::{Attr, Change, FileHandle, Leads};

/// The most changes in an answer: some 150 KiB. More wait for the next call.
pub const CHANGES_MAX: usize = 1024;
/// The longest that a call is held. Within it a client hears that the callee lives; it is long against
/// a round trip, and short against what somebody takes for an outage.
pub const HOLD_MAX: Duration = Duration::from_secs(10);
/// The longest reason why changes are not told, in bytes.
const REASON_BYTES_MAX: usize = 512;

xdr_struct! {
    /// The arguments of CHANGES.
    ChangesArgs {
        /// The root of the export.
        root: FileHandle,
        /// The period of the last answer; 0 to begin one.
        period: u64,
        /// The number of the last answer that has arrived.
        heard: u64,
        /// How long the call may be held, in milliseconds; at most [`HOLD_MAX`].
        hold_ms: u32,
    }
}

xdr_struct! {
    /// An answer to CHANGES.
    Changes {
        /// The period: another one than that of the call, or with `lost`, means that what was given
        /// before may have changed without a word.
        period: u64,
        /// The number of the answer.
        number: u64,
        /// Changes of the period have been lost: there were too many.
        lost: bool,
        /// Why not all changes are told; empty: all are.
        reason: Reason,
        /// What has changed.
        told: Told,
    }
}

/// The results of CHANGES.
pub type ChangesReply = Reply<Changes, ()>;

/// Why changes are not told, for people; empty if they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reason(pub String);

impl Xdr for Reason {
    fn encode(&self, to: &mut Encoder) {
        let bytes = self.0.as_bytes();
        to.opaque(&bytes[..bytes.len().min(REASON_BYTES_MAX)]);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        let bytes = from.opaque(REASON_BYTES_MAX)?;
        Ok(Self(String::from_utf8_lossy(&bytes).replace(char::is_control, "?")))
    }
}

/// Changes, in no order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told(pub Vec<Change>);

impl Xdr for Told {
    fn encode(&self, to: &mut Encoder) {
        to.u32(self.0.len() as u32);
        self.0.iter().for_each(|change| change.encode(to));
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        let length = from.u32()? as usize;
        if length > CHANGES_MAX {
            return Err(XdrError::TooLong { length, max: CHANGES_MAX });
        }
        (0..length).map(|_| Change::decode(from)).collect::<XdrResult<_>>().map(Self)
    }
}

impl Xdr for Change {
    fn encode(&self, to: &mut Encoder) {
        match self {
            Self::File(file, attr) => {
                to.u32(0);
                file.encode(to);
                attr.encode(to);
            }
            Self::Name(dir, name, leads) => {
                to.u32(1);
                dir.encode(to);
                to.opaque(name);
                leads.encode(to);
            }
            Self::Names(dir) => {
                to.u32(2);
                dir.encode(to);
            }
            Self::Uncovered(file) => {
                to.u32(3);
                file.encode(to);
            }
            Self::Attributes(file, attr) => {
                to.u32(4);
                file.encode(to);
                attr.encode(to);
            }
        }
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        Ok(match from.u32()? {
            0 => Self::File(Xdr::decode(from)?, Option::<Attr>::decode(from)?),
            1 => {
                let dir = Xdr::decode(from)?;
                let name: Bytes = from.opaque(NAME_BYTES_MAX)?;
                Self::Name(dir, name, Xdr::decode(from)?)
            }
            2 => Self::Names(Xdr::decode(from)?),
            3 => Self::Uncovered(Xdr::decode(from)?),
            4 => Self::Attributes(Xdr::decode(from)?, Option::<Attr>::decode(from)?),
            value => return Err(XdrError::Unknown { value, what: "change" }),
        })
    }
}

impl Xdr for Leads {
    fn encode(&self, to: &mut Encoder) {
        match self {
            Self::To(file, attr) => {
                to.u32(0);
                file.encode(to);
                attr.encode(to);
            }
            Self::Nowhere => to.u32(1),
            Self::Unknown => to.u32(2),
        }
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        Ok(match from.u32()? {
            0 => Self::To(Xdr::decode(from)?, Xdr::decode(from)?),
            1 => Self::Nowhere,
            2 => Self::Unknown,
            value => return Err(XdrError::Unknown { value, what: "name" }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_come_back_and_have_a_limit() {
        let file = |number: u8| FileHandle::new(&[number]).expect("short");
        let changes = Changes {
            period: 7,
            number: 3,
            lost: true,
            reason: Reason("why".into()),
            told: Told(vec![
                Change::File(file(1), None),
                Change::Name(file(2), Bytes::from_static(b"n"), Leads::To(file(3), None)),
                Change::Name(file(2), Bytes::from_static(b"gone"), Leads::Nowhere),
                Change::Names(file(4)),
                Change::Uncovered(file(5)),
                Change::Attributes(file(6), None),
            ]),
        };
        let decoder = |value: &dyn Fn(&mut Encoder)| {
            let mut encoder = Encoder::new();
            value(&mut encoder);
            Decoder::new(encoder.into_vec().into())
        };
        assert_eq!(Changes::decode(&mut decoder(&|to| changes.encode(to))), Ok(changes));
        let many = Told(vec![Change::Names(file(1)); CHANGES_MAX + 1]);
        let decoded = Told::decode(&mut decoder(&|to| many.encode(to)));
        assert!(matches!(decoded, Err(XdrError::TooLong { .. })));
    }
}
