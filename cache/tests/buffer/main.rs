//! Tests of the buffer layer over a server in memory that can be slow, short, silent, full, and
//! can lose what it has not committed.

mod model;
mod reading;
mod server;
mod writing;
