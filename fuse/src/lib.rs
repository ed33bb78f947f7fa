//! The FUSE front end: the kernel's requests to [`gridvfs_vfs::Vfs`] calls.
//!
//! It keeps which inodes the kernel knows, which files are open, and names of files that were
//! removed while open. It keeps no data: the kernel's page cache is above it, other caches below.
//! It prints nothing and never ends the process. Locks (fcntl, OFD, flock) are the kernel's own.

mod callers;
mod core;
mod counters;
mod directory;
mod entries;
mod front;
mod hand;
mod inodes;
mod locality;
mod mount;
mod options;
mod passthrough;
mod pending;
mod replies;
mod session;
mod silly;
mod traffic;

pub use counters::Counters;
pub use mount::{
    MountError, MountOptions, MountState, check_mountpoint, inspect, mount, owner, unmount,
};
pub use options::SessionOptions;
pub use session::{Activity, Session};
pub use traffic::BusyFile;
