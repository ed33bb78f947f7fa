//! What the journal says of names that the state server does not know yet, and its bytes
//! (docs/on-disk-format.md, "Names").

use gridvfs_vfs::{Attr, FileHandle, Time};

use crate::index::{ATTR_BYTES, pack_attr, unpack_attr};

/// The longest name in a record, in bytes (NAME_MAX).
pub const NAME_BYTES_MAX: usize = 255;
/// How many numbers one [`NameRecord::Started`] has at most.
pub const STARTED_MAX: usize = 256;

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct At {
    /// The directory.
    pub dir: FileHandle,
    /// The name; at most [`NAME_BYTES_MAX`] bytes.
    pub name: Box<[u8]>,
}

/// Attributes that are to be set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// The permission bits.
    pub mode: Option<u32>,
    /// The size in bytes.
    pub size: Option<u64>,
    /// The time of access.
    pub atime: Option<Time>,
    /// The time of change.
    pub mtime: Option<Time>,
}

/// A change that has been acknowledged and is still to be made on the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameChange {
    /// A new file. Its time of access tells it from others' files of that name.
    Create {
        /// Where.
        at: At,
        /// The handle that we have given it.
        file: FileHandle,
        /// What it is to be like.
        attr: Attr,
    },
    /// A name goes.
    Remove {
        /// Which.
        at: At,
        /// What it leads to.
        file: FileHandle,
        /// It is the file's last name.
        last: bool,
    },
    /// A file gets another name.
    Rename {
        /// The old one.
        from: At,
        /// The new one.
        to: At,
        /// The file.
        file: FileHandle,
        /// What the new name leads to before, and whether that is the file's last name.
        replaced: Option<(FileHandle, bool)>,
    },
    /// A file gets other attributes.
    Set {
        /// The file.
        file: FileHandle,
        /// Which ones.
        set: Set,
        /// Size and time of change of the file that they are meant for, where they matter.
        before: Option<(u64, Time)>,
    },
}

/// A change and who makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameOp {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The change.
    pub change: NameChange,
}

/// A record about names. A change is known by the sequence number of its [`NameRecord::Op`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameRecord {
    /// A change was acknowledged.
    Op(Box<NameOp>),
    /// The server may have been asked for these from now on.
    Started(Vec<u64>),
    /// The server has made the change, or it is not to be made any more.
    Done(u64),
    /// A copy of all that is pending begins.
    Begin,
    /// A change that is pending: its number, and whether the server may have been asked for it.
    Copy(u64, bool, Box<NameOp>),
    /// A file whose handle is ours, and the server's.
    CopyBound(FileHandle, FileHandle),
    /// The copy ends: it had so many records, and takes the place of all that was before it.
    End(u64),
}

const OP: u16 = 1;
const STARTED: u16 = 2;
const DONE: u16 = 3;
const BEGIN: u16 = 4;
const COPY: u16 = 5;
const COPY_BOUND: u16 = 6;
const END: u16 = 7;
/// In the flags of a copy: the server may have been asked.
const ASKED: u16 = 0x100;

/// A record's flags, number, user, group and body.
pub(super) struct Parts {
    pub flags: u16,
    pub number: u64,
    pub uid: u32,
    pub gid: u32,
    pub body: Vec<u8>,
}

pub(super) fn encode(record: &NameRecord) -> Parts {
    let mut parts = Parts { flags: 0, number: 0, uid: 0, gid: 0, body: Vec::new() };
    match record {
        NameRecord::Op(op) => {
            parts.flags = OP;
            put_op(&mut parts, op);
        }
        NameRecord::Started(numbers) => {
            parts.flags = STARTED;
            numbers.iter().for_each(|number| parts.body.extend(number.to_le_bytes()));
        }
        NameRecord::Done(number) => (parts.flags, parts.number) = (DONE, *number),
        NameRecord::Begin => parts.flags = BEGIN,
        NameRecord::Copy(number, asked, op) => {
            parts.flags = COPY | if *asked { ASKED } else { 0 };
            parts.number = *number;
            put_op(&mut parts, op);
        }
        NameRecord::CopyBound(ours, server) => {
            parts.flags = COPY_BOUND;
            put_bytes(&mut parts.body, ours.as_bytes());
            put_bytes(&mut parts.body, server.as_bytes());
        }
        NameRecord::End(count) => (parts.flags, parts.number) = (END, *count),
    }
    parts
}

pub(super) fn decode(
    flags: u16,
    number: u64,
    uid: u32,
    gid: u32,
    body: &[u8],
) -> Option<NameRecord> {
    let mut from = Reader(body);
    Some(match flags & !ASKED {
        OP => NameRecord::Op(Box::new(NameOp { uid, gid, change: from.change()? })),
        STARTED => {
            let numbers = body.chunks_exact(8).map(|bytes| Reader(bytes).number());
            NameRecord::Started(numbers.collect::<Option<_>>()?)
        }
        DONE => NameRecord::Done(number),
        BEGIN => NameRecord::Begin,
        COPY => {
            let op = Box::new(NameOp { uid, gid, change: from.change()? });
            NameRecord::Copy(number, flags & ASKED != 0, op)
        }
        COPY_BOUND => NameRecord::CopyBound(from.handle()?, from.handle()?),
        END => NameRecord::End(number),
        _ => return None,
    })
}

fn put_op(parts: &mut Parts, op: &NameOp) {
    (parts.uid, parts.gid) = (op.uid, op.gid);
    let body = &mut parts.body;
    match &op.change {
        NameChange::Create { at, file, attr } => {
            body.push(1);
            put_at(body, at);
            put_bytes(body, file.as_bytes());
            body.extend(pack_attr(attr));
        }
        NameChange::Remove { at, file, last } => {
            body.push(2);
            put_at(body, at);
            put_bytes(body, file.as_bytes());
            body.push(u8::from(*last));
        }
        NameChange::Rename { from, to, file, replaced } => {
            body.push(3);
            put_at(body, from);
            put_at(body, to);
            put_bytes(body, file.as_bytes());
            match replaced {
                Some((handle, last)) => {
                    body.push(1 + u8::from(*last));
                    put_bytes(body, handle.as_bytes());
                }
                None => body.push(0),
            }
        }
        NameChange::Set { file, set, before } => {
            body.push(4);
            put_bytes(body, file.as_bytes());
            let (size, mtime) =
                before.map_or((None, None), |(size, time)| (Some(size), Some(time)));
            put_maybe(body, set.mode.map(|mode| mode.to_le_bytes()));
            put_maybe(body, set.size.map(u64::to_le_bytes));
            put_maybe(body, set.atime.map(time_bytes));
            put_maybe(body, set.mtime.map(time_bytes));
            put_maybe(body, size.map(u64::to_le_bytes));
            put_maybe(body, mtime.map(time_bytes));
        }
    }
}

fn put_bytes(body: &mut Vec<u8>, bytes: &[u8]) {
    body.push(bytes.len() as u8);
    body.extend_from_slice(bytes);
}

fn put_at(body: &mut Vec<u8>, at: &At) {
    put_bytes(body, at.dir.as_bytes());
    put_bytes(body, &at.name);
}

fn put_maybe<const N: usize>(body: &mut Vec<u8>, bytes: Option<[u8; N]>) {
    body.push(u8::from(bytes.is_some()));
    body.extend(bytes.into_iter().flatten());
}

fn time_bytes(time: Time) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&time.seconds.to_le_bytes());
    bytes[8..].copy_from_slice(&time.nanoseconds.to_le_bytes());
    bytes
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(self.byte()?);
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn handle(&mut self) -> Option<FileHandle> {
        FileHandle::new(self.bytes()?)
    }

    fn at(&mut self) -> Option<At> {
        Some(At { dir: self.handle()?, name: self.bytes()?.into() })
    }

    fn time(bytes: [u8; 12]) -> Option<Time> {
        let mut reader = Reader(&bytes);
        let seconds = reader.number()? as i64;
        Some(Time { seconds, nanoseconds: u32::from_le_bytes(reader.array()?) })
    }

    fn maybe<const N: usize>(&mut self) -> Option<Option<[u8; N]>> {
        if self.byte()? == 0 { Some(None) } else { self.array().map(Some) }
    }

    fn change(&mut self) -> Option<NameChange> {
        Some(match self.byte()? {
            1 => NameChange::Create {
                at: self.at()?,
                file: self.handle()?,
                attr: unpack_attr(&self.array::<ATTR_BYTES>()?)?,
            },
            2 => {
                NameChange::Remove { at: self.at()?, file: self.handle()?, last: self.byte()? != 0 }
            }
            3 => NameChange::Rename {
                from: self.at()?,
                to: self.at()?,
                file: self.handle()?,
                replaced: match self.byte()? {
                    0 => None,
                    known => Some((self.handle()?, known == 2)),
                },
            },
            4 => {
                let file = self.handle()?;
                let set = Set {
                    mode: self.maybe()?.map(u32::from_le_bytes),
                    size: self.maybe()?.map(u64::from_le_bytes),
                    atime: self.maybe()?.and_then(Self::time),
                    mtime: self.maybe()?.and_then(Self::time),
                };
                let size = self.maybe()?.map(u64::from_le_bytes);
                let mtime = self.maybe()?.and_then(Self::time);
                NameChange::Set { file, set, before: size.zip(mtime) }
            }
            _ => return None,
        })
    }
}
