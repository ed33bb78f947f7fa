//! Metadata files (paper, section 5): what is known of a file's content beforehand, so that it
//! never crosses the wide-area network, or crosses it whole and compressed.
//!
//! [`format`] is the metadata file itself, [`build`] makes one from the file that it speaks of, and
//! [`verify`] compares the two. [`layer`] is what a mount does with it.

pub mod actions;
mod arrive;
pub mod build;
pub mod content;
mod counters;
pub mod format;
pub mod layer;
pub mod profile;
pub mod verify;

pub use counters::Counters;
pub use layer::{MetaLayer, MetaOptions};
