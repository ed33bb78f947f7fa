//! The `gridvfs` command: arguments, sessions and their control sockets. Everything else is in the
//! library crates.

mod cache_dir;
mod cli;
mod clone;
mod commands;
mod daemon;
mod directories;
mod interrupts;
mod login;
mod mountpoint;
mod options;
mod paths;
mod proxy_config;
mod report;
mod session;
mod source;

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(debug_assertions)]
    arm_crash_point();
    let json = std::env::args_os().any(|word| word == "--json");
    report::exit_code(cli::run(std::env::args_os()), json)
}

/// Lets a test kill this process at a named place: `GRIDVFS_CRASH_AT=NAME[:N]`, at the N-th passage.
#[cfg(debug_assertions)]
fn arm_crash_point() {
    let Ok(text) = std::env::var("GRIDVFS_CRASH_AT") else { return };
    let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
    let armed = count
        .parse()
        .map_err(|_| "not a number".to_string())
        .and_then(|count| gridvfs_cache::crash::arm(name, count).map_err(|e| e.to_string()));
    if let Err(error) = armed {
        eprintln!("GRIDVFS_CRASH_AT={text}: {error}");
        std::process::exit(2);
    }
}
