//! `gridvfs proxy`: the server side.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::cli::ProxyCommand;

/// Runs the command.
pub fn run(_command: ProxyCommand) -> Result<ExitCode> {
    bail!("not wired")
}
