//! The client against a server that follows a script: lies, losses, cuts and load.

#[path = "scripted/fetch.rs"]
mod fetch;
#[path = "scripted/lies.rs"]
mod lies;
#[path = "scripted/load.rs"]
mod load;
#[path = "scripted/losses.rs"]
mod losses;
#[path = "scripted/model.rs"]
mod model;
#[path = "scripted/procedures.rs"]
mod procedures;
#[path = "scripted/server.rs"]
mod server;
