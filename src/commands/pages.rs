//! `gridvfs pages`: man pages and shell completions from the definition of the command line, for
//! packages and `make install`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap_complete::Shell;

/// Writes `man/*.1` and `completions/*` into a directory.
pub fn run(command: clap::Command, directory: &Path) -> Result<ExitCode> {
    let mut command = without_help(command);
    let (man, completions) = (directory.join("man"), directory.join("completions"));
    for folder in [&man, &completions] {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "gridvfs", &completions)?;
    }
    clap_mangen::generate_to(command, &man).with_context(|| man.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// A page for `gridvfs help mount` beside that for `gridvfs mount` tells nothing new.
fn without_help(command: clap::Command) -> clap::Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help)
}
