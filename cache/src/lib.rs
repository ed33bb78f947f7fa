//! What stands between a front end and a far state server, and hides its distance.
//!
//! [`BufferLayer`] is the in-memory layer: read-ahead, and write-behind with the durability rules
//! of NFS version 3 (UNSTABLE writes, COMMIT, write verifiers; RFC 1813, 4.8). It keeps at most
//! [`BufferOptions::memory_max`] bytes, writes nothing to disk, and never changes what the inner
//! file system would answer to a program that is alone with its files.

mod blocks;
mod budget;
mod buffer;
mod counters;
pub mod crash;
mod dirty;
pub mod disk;
mod extents;
mod file;
mod files;
pub mod index;
mod journal;
mod key;
mod lru;
mod options;
pub mod store;
mod stream;
mod unit;

pub use buffer::{BufferLayer, FileInfo};
pub use counters::Counters;
pub use disk::DiskCache;
pub use key::FileKey;
pub use options::BufferOptions;
