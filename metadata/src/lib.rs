//! Metadata files (paper, section 5): what is known of a file's content beforehand, so that it
//! never crosses the wide-area network, or crosses it whole and compressed.
//!
//! [`format`] is the metadata file itself, [`build`] makes one from the file that it speaks of, and
//! [`verify`] compares the two.

pub mod build;
pub mod format;
pub mod verify;
