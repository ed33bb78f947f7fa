//! How results reach the person or program that ran the command.

use std::process::ExitCode;

use gridvfs_cache::disk::Unsent;

/// An error with the next step to take.
#[derive(Debug)]
pub struct Hinted {
    message: String,
    hint: String,
}

impl Hinted {
    /// Makes an error of what is wrong and what to do about it.
    pub fn error(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Self { message: message.into(), hint: hint.into() })
    }

    /// Returns the next step that an error, or what caused it, names.
    pub fn hint_of(error: &anyhow::Error) -> Option<&str> {
        error.chain().find_map(|cause| cause.downcast_ref::<Self>()).map(|hinted| &*hinted.hint)
    }
}

impl std::fmt::Display for Hinted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hinted {}

/// Returns an error as text: `Error: …` and, where there is one, `Hint: …`.
pub fn error_text(error: &anyhow::Error) -> String {
    let hint = Hinted::hint_of(error).map_or(String::new(), |hint| format!("\nHint: {hint}"));
    format!("Error: {error:#}{hint}")
}

/// Prints an error, if there is one, and returns the exit status: 0, 1, or what was asked for.
pub fn exit_code(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("{}", error_text(&error));
        ExitCode::FAILURE
    })
}

/// Returns a number of bytes as people write it: `18.2 MiB`.
pub fn bytes_text(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// Returns a number of things: `1 file`, `2 files`.
pub fn count_text(count: u64, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// Says how much is unsent.
pub fn unsent_text(unsent: &Unsent) -> String {
    let data = format!("{} in {}", bytes_text(unsent.bytes), count_text(unsent.files, "file"));
    match unsent.names {
        0 => data,
        names => format!("{data} and {}", count_text(names, "name change")),
    }
}

/// Prints a value as JSON on a line of its own.
pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}
