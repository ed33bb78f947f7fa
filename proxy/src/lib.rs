//! The network's front end: an NFSv3 server over any byte stream, and what it serves.
//!
//! [`server`] checks the session key and turns calls into [`gridvfs_vfs::Vfs`] calls;
//! [`local_dir`] is a directory of this machine; [`confine`] and the NFS client of `upstream`
//! together forward to another NFS server; [`identity`] maps who acts and who is shown.
//! [`changes`] tells clients what has changed of what they were given.
//! [`session`] is the daemon that `gridvfs mount` starts over ssh, [`serve`] a standing proxy;
//! [`gate`] says who is let in by either, and what each is shown.
//!
//! The crate reads no environment, and prints nothing but the greeting on a channel.

pub mod backend;
pub mod changes;
pub mod confine;
mod fdstream;
pub mod gate;
pub mod hops;
pub mod identity;
pub mod key;
pub mod key_file;
pub mod local_dir;
pub mod rights;
pub mod room;
pub mod serve;
pub mod server;
pub mod session;
