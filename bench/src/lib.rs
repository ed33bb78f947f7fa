//! What the benchmarks and the tests of trouble need: an emulated wide-area link, and what runs the
//! experiments over it and makes a report of their raw data.
//!
//! [`wan`] is the emulator behind the program `gridvfs-wan`, [`evaluation`] the harness behind
//! `gridvfs-bench`; `bench/README.md` tells how to use them.

pub mod evaluation;
pub mod units;
pub mod wan;
