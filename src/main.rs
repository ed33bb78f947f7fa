//! The `gridvfs` command: arguments, sessions and their control sockets. Everything else is in the
//! library crates.

mod cli;
mod commands;
mod daemon;
mod directories;
mod mountpoint;
mod options;
mod report;
mod session;
mod source;

use std::process::ExitCode;

fn main() -> ExitCode {
    report::exit_code(cli::run(std::env::args_os()))
}
