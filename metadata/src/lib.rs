//! Metadata files (paper, section 5): what is known of a file's content beforehand, so that it
//! never crosses the wide-area network, or crosses it whole and compressed.

pub mod actions;
mod arrive;
pub mod content;
mod counters;
pub mod format;
pub mod layer;
pub mod profile;

pub use counters::Counters;
pub use layer::{MetaLayer, MetaOptions};
