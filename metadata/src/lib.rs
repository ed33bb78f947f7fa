//! Metadata files (paper, section 5): what is known of a file's content beforehand, so that it
//! never crosses the wide-area network, or crosses it whole and compressed.

pub mod format;
