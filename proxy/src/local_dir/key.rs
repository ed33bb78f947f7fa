//! What a file handle of the local directory says: which file, never where it is.
//!
//! A handle is 25 bytes: a version, a digest of the file system, the inode number, and a digest of
//! what tells this use of the inode number from earlier ones. It is a function of the file alone,
//! so it outlives renames and restarts. The kernel's own handle gives the generation where there is
//! one; else the time of birth does; on a file system with neither (FUSE) a reused inode number
//! cannot be told.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;

use gridvfs_vfs::FileHandle;
use parking_lot::RwLock;

use super::sys::{self, Errno, SysResult};

/// The layout of handles. Another layout gets another number.
const VERSION: u8 = 1;
/// How many mounted file systems are remembered before the memory is begun anew.
const DEVICES_MAX: usize = 4096;

const FUSE_SUPER_MAGIC: u32 = 0x6573_5546;

/// An inode: a file system and the number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id {
    /// The digest of the file system.
    pub device: u64,
    pub inode: u64,
}

/// A file: an inode in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub id: Id,
    pub generation: u64,
}

impl Key {
    pub(super) fn encode(&self) -> FileHandle {
        let mut bytes = [0; 25];
        bytes[0] = VERSION;
        bytes[1..9].copy_from_slice(&self.id.device.to_be_bytes());
        bytes[9..17].copy_from_slice(&self.id.inode.to_be_bytes());
        bytes[17..25].copy_from_slice(&self.generation.to_be_bytes());
        FileHandle::new(&bytes).expect("25 bytes are fewer than 64")
    }

    /// Returns `None` for what this module has not encoded.
    pub(super) fn decode(handle: &FileHandle) -> Option<Self> {
        let bytes: &[u8; 25] = handle.as_bytes().try_into().ok()?;
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(number)
        };
        (bytes[0] == VERSION).then(|| Self {
            id: Id { device: number(1), inode: number(9) },
            generation: number(17),
        })
    }
}

fn digest(parts: &[&[u8]]) -> u64 {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut head = [0; 8];
    head.copy_from_slice(&context.finish().as_ref()[..8]);
    u64::from_be_bytes(head)
}

/// What tells the lives of an inode number apart on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Generation {
    KernelHandle,
    BirthTime,
    None,
}

#[derive(Clone, Copy, Debug)]
struct Device {
    digest: u64,
    generation: Generation,
}

/// The file systems seen so far.
#[derive(Debug)]
pub(super) struct Devices {
    /// `st_dev` of the export's root.
    root: u64,
    known: RwLock<HashMap<u64, Device>>,
}

impl Devices {
    pub(super) fn new(root: u64) -> Self {
        Self { root, known: RwLock::default() }
    }

    /// Names the inode that is pinned and that `stat` describes.
    pub(super) fn id(&self, fd: BorrowedFd<'_>, stat: &libc::stat) -> SysResult<Id> {
        Ok(Id { device: self.device(fd, stat.st_dev)?.digest, inode: stat.st_ino })
    }

    /// Names the file that is pinned and that `stat` describes.
    pub(super) fn key(&self, fd: BorrowedFd<'_>, stat: &libc::stat) -> SysResult<Key> {
        let device = self.device(fd, stat.st_dev)?;
        let generation = match device.generation {
            Generation::KernelHandle => sys::kernel_handle(fd, |kind, bytes| {
                digest(&[b"kernel handle", &kind.to_be_bytes(), bytes])
            })?,
            Generation::BirthTime => match sys::birth_time(fd)? {
                Some((seconds, nanoseconds)) => {
                    digest(&[b"birth time", &seconds.to_be_bytes(), &nanoseconds.to_be_bytes()])
                }
                None => 0,
            },
            Generation::None => 0,
        };
        Ok(Key { id: Id { device: device.digest, inode: stat.st_ino }, generation })
    }

    fn device(&self, fd: BorrowedFd<'_>, number: u64) -> SysResult<Device> {
        if let Some(device) = self.known.read().get(&number) {
            return Ok(*device);
        }
        let device = self.examine(fd, number)?;
        let mut known = self.known.write();
        if known.len() >= DEVICES_MAX {
            known.clear();
        }
        known.insert(number, device);
        Ok(device)
    }

    /// The root's file system goes by its own id where it has one, because device numbers may
    /// change when the machine starts anew. Mounts below carry the device number too, so that two
    /// copies of a file system with one id are told apart.
    fn examine(&self, fd: BorrowedFd<'_>, number: u64) -> SysResult<Device> {
        let statfs = sys::fstatfs(fd)?;
        // SAFETY: `fsid_t` is two C ints whose names the C library hides.
        let fsid = unsafe { std::mem::transmute::<libc::fsid_t, [i32; 2]>(statfs.f_fsid) };
        let [high, low] = fsid.map(i32::to_be_bytes);
        let device = number.to_be_bytes();
        let digest = match (fsid == [0, 0], number == self.root) {
            (false, true) => digest(&[b"file system", &high, &low]),
            _ => digest(&[b"device", &device, &high, &low]),
        };
        let generation = if statfs.f_type as u32 == FUSE_SUPER_MAGIC {
            // Node numbers there are the mount's own and change.
            Generation::None
        } else {
            match sys::kernel_handle(fd, |_, _| ()) {
                Ok(()) => Generation::KernelHandle,
                Err(Errno(libc::ESTALE)) => return Err(Errno(libc::ESTALE)),
                Err(_) if sys::birth_time(fd)?.is_some() => Generation::BirthTime,
                Err(_) => Generation::None,
            }
        };
        Ok(Device { digest, generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_decode_to_what_was_encoded_and_nothing_else_decodes() {
        let key = Key { id: Id { device: 1 << 60, inode: 2 }, generation: u64::MAX };
        let handle = key.encode();
        assert_eq!(Key::decode(&handle), Some(key));
        for length in 0..handle.as_bytes().len() {
            let cut = FileHandle::new(&handle.as_bytes()[..length]).unwrap();
            assert_eq!(Key::decode(&cut), None);
        }
        let mut other = handle.as_bytes().to_vec();
        other[0] = 2;
        assert_eq!(Key::decode(&FileHandle::new(&other).unwrap()), None);
        other[0] = VERSION;
        other.push(0);
        assert_eq!(Key::decode(&FileHandle::new(&other).unwrap()), None);
    }
}
