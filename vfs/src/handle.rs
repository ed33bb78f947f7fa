//! Opaque file handles (RFC 1813, nfs_fh3).

use std::fmt;
use std::hash::{Hash, Hasher};

/// The longest handle that NFSv3 allows, in bytes (NFS3_FHSIZE).
pub const HANDLE_BYTES_MAX: usize = 64;

/// An opaque file handle of at most [`HANDLE_BYTES_MAX`] bytes, kept inline.
#[derive(Clone, Copy)]
pub struct FileHandle {
    length: u8,
    bytes: [u8; HANDLE_BYTES_MAX],
}

impl FileHandle {
    /// The handle without any bytes, which no file has.
    pub const EMPTY: Self = Self { length: 0, bytes: [0; HANDLE_BYTES_MAX] };

    /// Makes a handle of these bytes; `None` when there are more than NFSv3 allows.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut inline = [0; HANDLE_BYTES_MAX];
        inline.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self { length: bytes.len() as u8, bytes: inline })
    }

    /// Returns the handle's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl PartialEq for FileHandle {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for FileHandle {}

impl Hash for FileHandle {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for FileHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("fh:")?;
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
