//! The disk cache over a local directory that plays the state server.

mod model;
mod names;
mod policy;
mod remounted;
mod told;
mod tree;
mod world;
