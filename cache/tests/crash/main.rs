//! Deaths and troubles: what is left when the process is killed, the power goes, the disk is full or
//! lies, or the server goes away in the middle.

mod damage;
mod kills;
mod names;
mod older;
mod power;
mod program;
mod trouble;
#[path = "../disk/world.rs"]
mod world;
