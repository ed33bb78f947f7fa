//! ONC RPC version 2 messages (RFC 5531) and AUTH_SYS.
//!
//! A record on a byte stream is one or more fragments, each behind a four-byte mark: the top bit
//! says that it is the record's last, the other 31 are its length in bytes.

use bytes::Bytes;

use crate::Caller;
use crate::xdr::{Decoder, Encoder, Xdr, XdrError, XdrResult, xdr_struct};

/// The bit of a record mark that says "last fragment".
pub const LAST_FRAGMENT: u32 = 1 << 31;

/// The longest credential or verifier body in bytes (RFC 5531, 8.2).
pub const AUTH_BYTES_MAX: usize = 400;

/// The longest AUTH_SYS machine name in bytes.
pub const MACHINE_NAME_BYTES_MAX: usize = 255;

/// The flavour of AUTH_NONE.
pub const AUTH_NONE: u32 = 0;

/// The flavour of AUTH_SYS.
pub const AUTH_SYS: u32 = 1;

const CALL: u32 = 0;
const REPLY: u32 = 1;
const RPC_VERSION: u32 = 2;
const MSG_ACCEPTED: u32 = 0;
const MSG_DENIED: u32 = 1;

/// Returns the mark of a record's only fragment of `length` bytes.
pub fn record_mark(length: usize) -> [u8; 4] {
    (LAST_FRAGMENT | length as u32).to_be_bytes()
}

/// An opaque_auth: a flavour and its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpaqueAuth {
    /// The flavour, such as [`AUTH_SYS`].
    pub flavor: u32,
    /// The flavour's own data.
    pub body: Bytes,
}

impl OpaqueAuth {
    /// Returns AUTH_NONE.
    pub fn none() -> Self {
        Self { flavor: AUTH_NONE, body: Bytes::new() }
    }

    /// Returns the AUTH_SYS credential in it; `None` for another flavour or a damaged body.
    pub fn auth_sys(&self) -> Option<AuthSys> {
        if self.flavor != AUTH_SYS {
            return None;
        }
        AuthSys::decode(&mut Decoder::new(self.body.clone())).ok()
    }
}

impl Xdr for OpaqueAuth {
    fn encode(&self, to: &mut Encoder) {
        to.u32(self.flavor);
        to.opaque(&self.body);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        Ok(Self { flavor: from.u32()?, body: from.opaque(AUTH_BYTES_MAX)? })
    }
}

/// An AUTH_SYS credential (RFC 5531, appendix A).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthSys {
    /// An arbitrary number.
    pub stamp: u32,
    /// The caller's machine. Between our proxies it carries the session key in hexadecimal, since
    /// NFS servers ignore it (the paper's section 3.2).
    pub machine_name: Bytes,
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// At most [`Caller::GROUPS_MAX`] supplementary groups.
    pub groups: Vec<u32>,
}

impl AuthSys {
    /// Makes the credential of `caller`, with the groups that fit.
    pub fn of(caller: &Caller, machine_name: Bytes, stamp: u32) -> Self {
        let groups = caller.groups.iter().copied().take(Caller::GROUPS_MAX).collect();
        Self { stamp, machine_name, uid: caller.uid, gid: caller.gid, groups }
    }

    /// Returns whom the credential speaks for.
    pub fn caller(&self) -> Caller {
        Caller { uid: self.uid, gid: self.gid, groups: self.groups.clone() }
    }

    /// Wraps it as the credential of a call.
    pub fn to_opaque(&self) -> OpaqueAuth {
        let mut body = Encoder::new();
        self.encode(&mut body);
        OpaqueAuth { flavor: AUTH_SYS, body: body.into_vec().into() }
    }
}

impl Xdr for AuthSys {
    fn encode(&self, to: &mut Encoder) {
        to.u32(self.stamp);
        to.opaque(&self.machine_name);
        to.u32(self.uid);
        to.u32(self.gid);
        to.u32(self.groups.len() as u32);
        self.groups.iter().for_each(|group| to.u32(*group));
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        let stamp = from.u32()?;
        let machine_name = from.opaque(MACHINE_NAME_BYTES_MAX)?;
        let (uid, gid) = (from.u32()?, from.u32()?);
        let length = from.u32()? as usize;
        if length > Caller::GROUPS_MAX {
            return Err(XdrError::TooLong { length, max: Caller::GROUPS_MAX });
        }
        let groups = (0..length).map(|_| from.u32()).collect::<XdrResult<_>>()?;
        Ok(Self { stamp, machine_name, uid, gid, groups })
    }
}

/// The header of a call. The procedure's arguments follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallHeader {
    /// Matches the reply to the call.
    pub xid: u32,
    /// The RPC version: 2, or the call is to be denied.
    pub rpc_version: u32,
    /// The program.
    pub program: u32,
    /// The program's version.
    pub version: u32,
    /// The procedure.
    pub procedure: u32,
    /// Who calls.
    pub credential: OpaqueAuth,
    /// The credential's verifier.
    pub verifier: OpaqueAuth,
}

impl CallHeader {
    /// Makes the header of a call.
    pub fn new(
        xid: u32,
        program: u32,
        version: u32,
        procedure: u32,
        credential: OpaqueAuth,
    ) -> Self {
        let verifier = OpaqueAuth::none();
        Self { xid, rpc_version: RPC_VERSION, program, version, procedure, credential, verifier }
    }

    /// Says whether the RPC version is the one that RFC 5531 defines.
    pub fn is_rpc_version_2(&self) -> bool {
        self.rpc_version == RPC_VERSION
    }
}

impl Xdr for CallHeader {
    fn encode(&self, to: &mut Encoder) {
        for word in [self.xid, CALL, self.rpc_version, self.program, self.version, self.procedure] {
            to.u32(word);
        }
        self.credential.encode(to);
        self.verifier.encode(to);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        let xid = from.u32()?;
        match from.u32()? {
            CALL => {}
            value => {
                return Err(XdrError::Unknown { value, what: "RPC call" });
            }
        }
        Ok(Self {
            xid,
            rpc_version: from.u32()?,
            program: from.u32()?,
            version: from.u32()?,
            procedure: from.u32()?,
            credential: OpaqueAuth::decode(from)?,
            verifier: OpaqueAuth::decode(from)?,
        })
    }
}

/// Why a server did not run an authentic call (accept_stat, reject_stat, auth_stat).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// PROG_UNAVAIL: no such program.
    #[error("program unavailable")]
    ProgramUnavailable,
    /// PROG_MISMATCH: only these versions of the program.
    #[error("program version unavailable ({low} to {high} are)")]
    ProgramMismatch {
        /// The lowest version served.
        low: u32,
        /// The highest version served.
        high: u32,
    },
    /// PROC_UNAVAIL: no such procedure.
    #[error("procedure unavailable")]
    ProcedureUnavailable,
    /// GARBAGE_ARGS: the arguments could not be decoded.
    #[error("arguments not understood")]
    GarbageArguments,
    /// SYSTEM_ERR: memory, for one, ran out.
    #[error("system error on the server")]
    SystemError,
    /// RPC_MISMATCH: not RPC version 2.
    #[error("RPC version mismatch")]
    RpcMismatch,
    /// AUTH_ERROR with its auth_stat.
    #[error("credential refused (auth_stat {0})")]
    AuthError(u32),
}

impl Refusal {
    /// auth_stat AUTH_BADCRED: no or a damaged credential.
    pub const AUTH_BADCRED: u32 = 1;
    /// auth_stat AUTH_REJECTEDCRED: the credential is not, or no longer, good.
    pub const AUTH_REJECTEDCRED: u32 = 2;
    /// auth_stat AUTH_TOOWEAK: AUTH_NONE where more is asked for.
    pub const AUTH_TOOWEAK: u32 = 5;
}

/// The header of a reply. With `Ok`, the procedure's results follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyHeader {
    /// The call's number.
    pub xid: u32,
    /// Whether the procedure was run.
    pub outcome: Result<(), Refusal>,
}

impl Xdr for ReplyHeader {
    fn encode(&self, to: &mut Encoder) {
        to.u32(self.xid);
        to.u32(REPLY);
        match self.outcome {
            Err(Refusal::RpcMismatch) => {
                [MSG_DENIED, 0, RPC_VERSION, RPC_VERSION].iter().for_each(|word| to.u32(*word));
                return;
            }
            Err(Refusal::AuthError(stat)) => {
                [MSG_DENIED, 1, stat].iter().for_each(|word| to.u32(*word));
                return;
            }
            _ => to.u32(MSG_ACCEPTED),
        }
        OpaqueAuth::none().encode(to);
        match self.outcome {
            Ok(()) => to.u32(0),
            Err(Refusal::ProgramUnavailable) => to.u32(1),
            Err(Refusal::ProgramMismatch { low, high }) => {
                [2, low, high].iter().for_each(|word| to.u32(*word));
            }
            Err(Refusal::ProcedureUnavailable) => to.u32(3),
            Err(Refusal::GarbageArguments) => to.u32(4),
            Err(_) => to.u32(5),
        }
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        let xid = from.u32()?;
        match from.u32()? {
            REPLY => {}
            value => {
                return Err(XdrError::Unknown { value, what: "RPC reply" });
            }
        }
        let outcome = match from.u32()? {
            MSG_ACCEPTED => {
                OpaqueAuth::decode(from)?;
                match from.u32()? {
                    0 => Ok(()),
                    1 => Err(Refusal::ProgramUnavailable),
                    2 => Err(Refusal::ProgramMismatch { low: from.u32()?, high: from.u32()? }),
                    3 => Err(Refusal::ProcedureUnavailable),
                    4 => Err(Refusal::GarbageArguments),
                    5 => Err(Refusal::SystemError),
                    value => {
                        return Err(XdrError::Unknown { value, what: "accept_stat" });
                    }
                }
            }
            MSG_DENIED => match from.u32()? {
                0 => {
                    from.u64()?; // The versions that would do.
                    Err(Refusal::RpcMismatch)
                }
                1 => Err(Refusal::AuthError(from.u32()?)),
                value => {
                    return Err(XdrError::Unknown { value, what: "reject_stat" });
                }
            },
            value => {
                return Err(XdrError::Unknown { value, what: "reply_stat" });
            }
        };
        Ok(Self { xid, outcome })
    }
}

/// The portmapper, version 2 (RFC 1833): where a program listens.
pub mod portmap {
    use super::*;

    /// The program number.
    pub const PROGRAM: u32 = 100_000;
    /// The version.
    pub const VERSION: u32 = 2;
    /// The port it listens on.
    pub const PORT: u16 = 111;
    /// Returns the port of a program as a u32, or 0.
    pub const GETPORT: u32 = 3;
    /// The protocol number of TCP in a mapping.
    pub const TCP: u32 = 6;

    xdr_struct! {
        /// The arguments of GETPORT.
        Mapping {
            /// The program asked for.
            program: u32,
            /// Its version.
            version: u32,
            /// [`TCP`] or 17 for UDP.
            protocol: u32,
            /// Ignored.
            port: u32,
        }
    }
}
