//! The metadata layer over a real disk cache and a directory.

mod arriving;
mod names;
mod pieces;
mod reading;
mod warming;
mod world;
