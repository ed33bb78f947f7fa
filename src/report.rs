//! How results reach the person or program that ran the command.

mod exit;

pub use exit::Exit;

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
        error.chain().find_map(|cause| match cause.downcast_ref::<Self>() {
            Some(hinted) => Some(&*hinted.hint),
            None => Exit::marked(cause).and_then(Self::hint_of),
        })
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

/// Returns an error for programs: `error`, `code` and, where there is one, `hint`.
pub fn error_json(error: &anyhow::Error) -> serde_json::Value {
    let text = format!("{error:#}");
    let mut reply = serde_json::json!({"ok": false, "error": text, "code": Exit::of(error).name()});
    if let Some(hint) = Hinted::hint_of(error) {
        reply["hint"] = hint.into();
    }
    reply
}

/// Makes an error of what [`error_json`] has made of one in another process.
pub fn error_of_json(reply: &serde_json::Value) -> anyhow::Error {
    let text = reply["error"].as_str().unwrap_or("unknown error").to_string();
    let error = match reply["hint"].as_str() {
        Some(hint) => Hinted::error(text, hint),
        None => anyhow::Error::msg(text),
    };
    Exit::from_name(reply["code"].as_str().unwrap_or_default()).mark(error)
}

/// Prints an error, if there is one, and returns the exit status: 0, what was asked for, or what
/// [`Exit`] says of the error. With `json`, a program reads standard output: the error is there, too.
pub fn exit_code(result: anyhow::Result<ExitCode>, json: bool) -> ExitCode {
    result.unwrap_or_else(|error| {
        let exit = Exit::of(&error);
        if json {
            // A pipe whose reader has gone is no reason to say anything else.
            let _ = print_json(&error_json(&error));
        }
        eprintln!("{}", error_text(&error));
        ExitCode::from(exit as u8)
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
