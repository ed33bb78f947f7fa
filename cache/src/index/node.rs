//! What is known of one file, and its form in the database.

use bytes::Bytes;
use gridvfs_vfs::{Attr, Caller, DeviceNumber, FileHandle, FileKind, Time, Verifier, WccAttr};

use crate::FileKey;

/// How many callers' access rights are kept of a file; the oldest goes first. A session has one
/// user as a rule.
const RIGHTS_MAX: usize = 4;

/// What is known of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its attributes, if known.
    pub attr: Option<Attr>,
    /// When the server said so, in milliseconds since 1970; 0: long ago.
    pub at: u64,
    /// Under which its frames are.
    pub key: FileKey,
    /// The server's version of the data that the frames under `key` are of; `None`: no frames.
    pub base: Option<WccAttr>,
    /// In which period of the store (from one time that it was made durable to the next) we last
    /// changed the file's data; 0: never.
    pub written: u64,
    /// The owner's clock at its last own change of the attributes, in memory only: an answer to a
    /// question from before it is older than what is known. 0: long ago.
    pub changed_at: u64,
    /// The owner's clock when the attributes were asked for, and when they were learnt, in memory only.
    /// 0: long ago.
    pub asked: u64,
    /// See `asked`.
    pub learned: u64,
    /// The owner's clock when others' change of the file was told last, in memory only: what an answer
    /// to a question from before says is older. 0: never.
    pub told_at: u64,
}

impl Known {
    /// Nothing, under a key of its own.
    pub(super) fn new() -> Self {
        Self {
            attr: None,
            at: 0,
            key: FileKey::random(),
            base: None,
            written: 0,
            changed_at: 0,
            asked: 0,
            learned: 0,
            told_at: 0,
        }
    }

    /// Says whether we have changed attributes of the file ourselves since the clock stood at `asked`:
    /// an answer to a question from then is older than that.
    pub fn overtaken(&self, asked: u64) -> bool {
        self.changed_at > asked
    }

    /// Gives it a new key: the frames that it has can no longer be reached.
    pub fn renew_key(&mut self, base: Option<WccAttr>) {
        self.key = FileKey::random();
        self.base = base;
    }
}

/// What ACCESS answered to one caller.
struct Right {
    uid: u32,
    gid: u32,
    groups: u64,
    asked: u32,
    granted: u32,
}

/// Where a file was last known to be.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub dir: FileHandle,
    pub name: Box<[u8]>,
}

/// What few files have, or what is asked for rarely.
#[derive(Default)]
pub(super) struct Extra {
    rights: Vec<Right>,
    pub place: Option<Place>,
    pub target: Option<Bytes>,
}

pub(super) struct Node {
    pub known: Known,
    /// In which epoch this is known; see [`Node::enter`].
    pub epoch: u64,
    /// Under which a directory's names are; 0: none are known. Like a [`FileKey`] it belongs to
    /// one version of the directory.
    pub names: u64,
    /// Whether every name is known.
    pub complete: bool,
    /// Whether the order of the names is known, too.
    pub listed: bool,
    pub verifier: Verifier,
    /// Changes with each of our changes to the directory, and when it is loaded.
    pub token: u64,
    pub extra: Option<Box<Extra>>,
}

impl Node {
    pub fn new(epoch: u64, token: u64) -> Self {
        Self {
            known: Known::new(),
            epoch,
            names: 0,
            complete: false,
            listed: false,
            verifier: Verifier::default(),
            token,
            extra: None,
        }
    }

    pub fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// Changes what is known; tells whether it did. What hangs on the old state goes with it.
    pub fn change(&mut self, change: impl FnOnce(&mut Known)) -> bool {
        let before = self.known;
        change(&mut self.known);
        let rights = |known: &Known| known.attr.map(|a| (a.mode, a.uid, a.gid, a.ctime));
        if let Some(extra) = &mut self.extra {
            if rights(&before) != rights(&self.known) {
                extra.rights.clear();
            }
            if before.key != self.known.key {
                extra.target = None;
            }
        }
        before != self.known
    }

    /// Forgets what is of an epoch before this: all but the key, its base, place and target.
    pub fn enter(&mut self, epoch: u64, token: impl FnOnce() -> u64) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.token = token();
            self.forget_names();
            self.change(|known| (known.attr, known.at) = (None, 0));
        }
    }

    /// Forgets the names. Returns under what they were.
    pub fn forget_names(&mut self) -> u64 {
        self.complete = false;
        self.listed = false;
        std::mem::take(&mut self.names)
    }

    pub fn granted(&self, caller: &Caller, wanted: u32) -> Option<u32> {
        let groups = hash_groups(&caller.groups);
        let right = self.extra.as_ref()?.rights.iter().find(|right| {
            right.uid == caller.uid && right.gid == caller.gid && right.groups == groups
        })?;
        (right.asked & wanted == wanted).then_some(right.granted & wanted)
    }

    pub fn set_granted(&mut self, caller: &Caller, asked: u32, granted: u32) {
        let groups = hash_groups(&caller.groups);
        let (uid, gid) = (caller.uid, caller.gid);
        let rights = &mut self.extra().rights;
        let known = rights.iter().position(|r| r.uid == uid && r.gid == gid && r.groups == groups);
        let mut right = match known {
            Some(at) => rights.remove(at),
            None => Right { uid, gid, groups, asked: 0, granted: 0 },
        };
        right.asked |= asked;
        right.granted = right.granted & !asked | granted & asked;
        if rights.len() >= RIGHTS_MAX {
            rights.remove(0);
        }
        rights.push(right);
    }
}

fn hash_groups(groups: &[u32]) -> u64 {
    groups.iter().fold(FNV_START, |sum, group| fnv(sum, &group.to_le_bytes()))
}

pub(super) const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, 64 bits: finds flipped bits; it is no defence against somebody who writes to the file.
pub(super) fn fnv(sum: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(sum, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The bytes of packed attributes.
pub(crate) const ATTR_BYTES: usize = 92;
/// The bytes of a packed version.
pub(super) const BASE_BYTES: usize = 32;

struct Packer<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Packer<N> {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
    fn number(&mut self, number: u64) {
        self.put(&number.to_le_bytes());
    }
    fn small(&mut self, number: u32) {
        self.put(&number.to_le_bytes());
    }
    fn time(&mut self, time: Time) {
        self.number(time.seconds as u64);
        self.small(time.nanoseconds);
    }
}

struct Unpacker<'a>(&'a [u8]);

impl Unpacker<'_> {
    fn number(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*bytes))
    }
    fn small(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*bytes))
    }
    fn time(&mut self) -> Option<Time> {
        Some(Time { seconds: self.number()? as i64, nanoseconds: self.small()? })
    }
}

pub(crate) fn pack_attr(attr: &Attr) -> [u8; ATTR_BYTES] {
    let mut to = Packer { bytes: [0; ATTR_BYTES], at: 0 };
    to.small(attr.kind as u32 | attr.mode << 8);
    to.small(attr.links);
    to.small(attr.uid);
    to.small(attr.gid);
    to.number(attr.size);
    to.number(attr.used);
    to.small(attr.device.major);
    to.small(attr.device.minor);
    to.number(attr.fsid);
    to.number(attr.fileid);
    to.time(attr.atime);
    to.time(attr.mtime);
    to.time(attr.ctime);
    to.bytes
}

pub(crate) fn unpack_attr(bytes: &[u8]) -> Option<Attr> {
    let mut from = Unpacker(bytes);
    let first = from.small()?;
    Some(Attr {
        kind: kind(first & 0xff)?,
        mode: first >> 8,
        links: from.small()?,
        uid: from.small()?,
        gid: from.small()?,
        size: from.number()?,
        used: from.number()?,
        device: DeviceNumber { major: from.small()?, minor: from.small()? },
        fsid: from.number()?,
        fileid: from.number()?,
        atime: from.time()?,
        mtime: from.time()?,
        ctime: from.time()?,
    })
}

pub(super) fn pack_base(base: &WccAttr) -> [u8; BASE_BYTES] {
    let mut to = Packer { bytes: [0; BASE_BYTES], at: 0 };
    to.number(base.size);
    to.time(base.mtime);
    to.time(base.ctime);
    to.bytes
}

pub(super) fn unpack_base(bytes: &[u8]) -> Option<WccAttr> {
    let mut from = Unpacker(bytes);
    Some(WccAttr { size: from.number()?, mtime: from.time()?, ctime: from.time()? })
}

/// The file type of this number.
pub(super) fn kind(number: u32) -> Option<FileKind> {
    use FileKind::*;
    [Regular, Directory, Block, Character, Symlink, Socket, Fifo]
        .into_iter()
        .find(|kind| *kind as u32 == number)
}
