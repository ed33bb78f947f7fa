//! The verbs of the command line, one module each.

pub mod cache;
pub mod clone;
pub mod config;
pub mod conflicts;
pub mod doctor;
pub mod meta;
pub mod mount;
pub mod pages;
pub mod profile;
pub mod proxy;
pub mod set;
pub mod status;
pub mod top;
pub mod umount;
pub mod writeback;
