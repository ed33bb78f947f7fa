//! The disk cache over a local directory that plays the state server.

mod model;
mod policy;
#[allow(dead_code, reason = "the crash tests use all of it")]
mod world;
