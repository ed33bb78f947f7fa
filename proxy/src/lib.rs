//! The network's front end: an NFSv3 server over any byte stream, and what it serves.

pub mod identity;
pub mod local_dir;
