//! The options of the metadata layer.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// The most commands that a session allows.
const COMMANDS_MAX: usize = 64;

/// How metadata files are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataOptions {
    /// They are looked for at all.
    pub enabled: bool,
    /// Listings show them.
    pub show: bool,
    /// What a session touches of large files is remembered for the next one.
    pub profile: bool,
    /// The commands that metadata files may name: program and arguments.
    pub commands: BTreeMap<String, Vec<String>>,
}

impl Default for MetadataOptions {
    fn default() -> Self {
        Self { enabled: true, show: false, profile: true, commands: BTreeMap::new() }
    }
}

impl MetadataOptions {
    /// Takes an option in. Returns whether the key is one of these.
    pub fn set(&mut self, key: &str, value: Option<&str>) -> Result<bool> {
        match key {
            "metadata" => self.enabled = on_or_off(value)?,
            "profile" => self.profile = on_or_off(value)?,
            "show_metadata" => self.show = super::flag(value)?,
            "action" => {
                let (name, command) = value
                    .and_then(|value| value.split_once(':'))
                    .context("NAME:COMMAND is expected")?;
                let words = shlex::split(command).context("quotes do not match")?;
                let action = gridvfs_metadata::format::Action::Command { name: name.into() };
                if !action.is_valid() {
                    bail!("{name:?}: a name is of letters, digits, _ and -, at most 64");
                }
                if words.is_empty() {
                    bail!("the command is missing");
                }
                if self.commands.len() == COMMANDS_MAX {
                    bail!("more than {COMMANDS_MAX} commands");
                }
                self.commands.insert(name.into(), words);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn on_or_off(value: Option<&str>) -> Result<bool> {
    match value {
        Some("on" | "auto") => Ok(true),
        Some("off") => Ok(false),
        _ => bail!("on or off is expected"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_named_and_taken_apart() {
        let mut options = MetadataOptions::default();
        assert!(options.set("action", Some("near:curl -sf 'http://near/a b'")).expect("good"));
        assert_eq!(options.commands["near"], ["curl", "-sf", "http://near/a b"]);
        for bad in ["x", "a/b:c", ":c", "x:", "x:'"] {
            assert!(options.set("action", Some(bad)).is_err(), "{bad}");
        }
        assert!(options.set("metadata", Some("off")).expect("good") && !options.enabled);
        assert!(options.set("metadata", Some("maybe")).is_err());
        assert!(!options.set("metadatum", None).expect("not ours"));
    }
}
