//! What the benchmarks and the tests of trouble need: an emulated wide-area link.
//!
//! [`wan`] is the emulator behind the program `gridvfs-wan`; `bench/README.md` tells how to use it.

pub mod units;
pub mod wan;
