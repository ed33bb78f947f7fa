//! The verbs of the command line, one module each.

pub mod mount;
pub mod proxy;
pub mod status;
pub mod umount;
