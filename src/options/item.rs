//! A setting as somebody has given it, and where.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Where a value comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave one.
    #[default]
    Default,
    /// A line of a file.
    File {
        /// The file, absolute.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
    },
    /// The command line: `-o`, or the flag that stands for the option.
    Flag(&'static str),
    /// `gridvfs set`, while the session runs.
    Set,
}

impl Origin {
    /// Returns it for JSON: `from`, and `file` and `line` where it is a file.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Default => json!({"from": "default"}),
            Self::File { path, line } => json!({"from": "file", "file": path, "line": line}),
            Self::Flag("argument") => json!({"from": "argument"}),
            Self::Flag(_) => json!({"from": "option"}),
            Self::Set => json!({"from": "set"}),
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Flag(flag) => f.write_str(flag),
            Self::Set => f.write_str("set"),
        }
    }
}

/// A key and a value, as given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The key.
    pub key: String,
    /// The value, as `-o` would have it.
    pub value: Option<String>,
    /// Where it was given.
    pub origin: Origin,
}

impl Item {
    /// Reads an option, `KEY` or `KEY=VALUE`.
    pub fn option(text: &str) -> Self {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (text, None),
        };
        Self { key: key.into(), value: value.map(String::from), origin: Origin::Flag("-o") }
    }

    /// Makes one of a flag of the command line.
    pub fn flag(flag: &'static str, key: &str, value: String) -> Self {
        Self { key: key.into(), value: Some(value), origin: Origin::Flag(flag) }
    }

    /// Makes one of a line of a file.
    pub fn line(path: &Path, line: usize, key: &str, value: Option<String>) -> Self {
        Self { key: key.into(), value, origin: Origin::File { path: path.into(), line } }
    }

    /// Names it in an error: where it is, and what it says.
    pub fn described(&self) -> String {
        let value = self.value.as_ref().map_or(String::new(), |value| format!("={value}"));
        match &self.origin {
            Origin::Flag("-o") => format!("-o {}{value}", self.key),
            Origin::Flag(flag) => format!("{flag} {}", self.value.as_deref().unwrap_or_default()),
            Origin::File { .. } => format!("{}: {}", self.origin, self.key),
            _ => format!("{}{value}", self.key),
        }
    }
}

/// Splits at commas; `\,` is a comma within a value, as libfuse has it.
pub fn split_at_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let last = parts.last_mut().expect("never empty");
        match (character, characters.peek()) {
            ('\\', Some(',')) => last.extend(characters.next()),
            (',', _) => parts.push(String::new()),
            _ => last.push(character),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}
