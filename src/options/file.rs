//! Session files and files of defaults: TOML, of which each line becomes an [`Item`].

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::item::{Item, Origin};
use super::keys::{self, Key, Kind};
use crate::directories;
use crate::report::{Hinted, bytes_text};

/// The most that a file may have, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingsFile {
    /// What is to be mounted, and where that is said.
    pub source: Option<(String, Origin)>,
    /// Where to, likewise.
    pub mountpoint: Option<(PathBuf, Origin)>,
    /// The rest, in the file's order.
    pub items: Vec<Item>,
}

impl SettingsFile {
    /// Reads a session file: `source`, `mountpoint`, and options as keys.
    pub fn session(path: &Path) -> Result<Self> {
        Self::read(path).and_then(|text| Self::parse_session(path, &text))
    }

    /// Reads a file of defaults for all sessions: options as keys under `[defaults]`.
    pub fn defaults(path: &Path) -> Result<Self> {
        Self::read(path).and_then(|text| Self::parse_defaults(path, &text))
    }

    fn read(path: &Path) -> Result<String> {
        let read = || -> Result<String> {
            let meta = std::fs::metadata(path)?;
            if !meta.is_file() {
                bail!("not a regular file");
            }
            if meta.len() > FILE_BYTES_MAX {
                bail!("{} is more than {FILE_BYTES_MAX} bytes", bytes_text(meta.len()));
            }
            Ok(std::fs::read_to_string(path)?)
        };
        read().with_context(|| format!("settings file {}", path.display()))
    }

    fn parse_session(path: &Path, text: &str) -> Result<Self> {
        let mut file = Self::default();
        let reader = Reader { path, text };
        for (key, value) in reader.lines(reader.parse()?.get_ref()) {
            let at = || reader.origin(key);
            match (key.get_ref().as_ref(), value.get_ref()) {
                ("source", DeValue::String(text)) => file.source = Some((text.to_string(), at())),
                ("mountpoint", DeValue::String(text)) => {
                    let place = absolute(text).with_context(|| reader.at(key))?;
                    file.mountpoint = Some((place, at()));
                }
                (name @ ("source" | "mountpoint"), _) => {
                    bail!("{}: {}", reader.at(key), Kind::Text.expected(name))
                }
                ("settings", _) => {
                    bail!("{}: only the command line names a settings file", reader.at(key))
                }
                ("defaults", DeValue::Table(_)) => {
                    return Err(Hinted::error(
                        format!("{}: defaults are for all sessions", reader.at(key)),
                        "keys of this session stand at the top of its file; [defaults] is in \
                         config.toml",
                    ));
                }
                _ => reader.add(&mut file.items, key, value)?,
            }
        }
        Ok(file)
    }

    fn parse_defaults(path: &Path, text: &str) -> Result<Self> {
        let mut file = Self::default();
        let reader = Reader { path, text };
        for (key, value) in reader.lines(reader.parse()?.get_ref()) {
            let DeValue::Table(defaults) = value.get_ref() else {
                return Err(Hinted::error(
                    format!("{}: not within [defaults]", reader.at(key)),
                    "this file has one table, [defaults], with the keys of sessions",
                ));
            };
            if key.get_ref() != "defaults" {
                return Err(super::unknown(key.get_ref(), ["defaults"], "table"))
                    .with_context(|| reader.at(key));
            }
            for (key, value) in reader.lines(defaults) {
                if ["source", "mountpoint", "settings"].contains(&key.get_ref().as_ref()) {
                    bail!("{}: not for all sessions", reader.at(key));
                }
                reader.add(&mut file.items, key, value)?;
            }
        }
        Ok(file)
    }
}

type Name<'a> = Spanned<std::borrow::Cow<'a, str>>;

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

impl<'a> Reader<'a> {
    fn parse(&self) -> Result<Spanned<DeTable<'a>>> {
        DeTable::parse(self.text).map_err(|error| {
            let line = error.span().map_or(1, |span| self.line(span.start));
            anyhow::anyhow!("{}:{line}: {}", self.path.display(), error.message())
        })
    }

    fn line(&self, offset: usize) -> usize {
        self.text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
    }

    fn origin<T>(&self, place: &Spanned<T>) -> Origin {
        Origin::File { path: self.path.into(), line: self.line(place.span().start) }
    }

    /// Names a key in an error.
    fn at(&self, key: &Name<'_>) -> String {
        format!("{}: {}", self.origin(key), key.get_ref())
    }

    /// Returns a table's keys and values in the file's order.
    fn lines<'t>(&self, table: &'t DeTable<'a>) -> Vec<(&'t Name<'a>, &'t Spanned<DeValue<'a>>)> {
        let mut lines: Vec<_> = table.iter().collect();
        lines.sort_by_key(|(key, _)| key.span().start);
        lines
    }

    /// Adds what a key says.
    fn add(
        &self,
        items: &mut Vec<Item>,
        key: &Name<'_>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<()> {
        let name = key.get_ref().as_ref();
        let line = self.line(key.span().start);
        let mut add =
            |key: &str, value: Option<String>| items.push(Item::line(self.path, line, key, value));
        match (name, value.get_ref()) {
            ("ssh", DeValue::Table(table)) => {
                for (key, value) in self.lines(table) {
                    self.add_ssh(items, key, value)?;
                }
                return Ok(());
            }
            ("rule", _) => bail!("{}: give rules = [\"GLOB:WORD\", …]", self.at(key)),
            ("rules", DeValue::Array(rules)) => {
                add("rules", Some(String::new()));
                for rule in rules {
                    let text = text(rule).with_context(|| {
                        format!("{}: text is expected: rules = [\"GLOB:WORD\"]", self.at(key))
                    })?;
                    let line = self.line(rule.span().start);
                    items.push(Item::line(self.path, line, "rule", Some(text.into())));
                }
                return Ok(());
            }
            _ => {}
        }
        let Some(Key { kind, .. }) = keys::find(name) else {
            let error = match name.starts_with(|first: char| first.is_ascii_uppercase()) {
                true => Hinted::error("unknown key", "options of ssh's own stand under [ssh]"),
                false => super::unknown(name, file_names(), "key"),
            };
            return Err(error).with_context(|| self.at(key));
        };
        let values = values(name, kind, value.get_ref()).with_context(|| self.at(key))?;
        values.into_iter().for_each(|value| add(name, value));
        Ok(())
    }

    /// Adds an option of ssh's own: text, a number, a flag, or several of one name.
    fn add_ssh(
        &self,
        items: &mut Vec<Item>,
        key: &Name<'_>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<()> {
        let list = match value.get_ref() {
            DeValue::Array(list) => list.iter().collect(),
            _ => vec![value],
        };
        for value in list {
            let text = match value.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Integer(number) => number.as_str().to_string(),
                DeValue::Boolean(flag) => (if *flag { "yes" } else { "no" }).to_string(),
                _ => bail!("{}: text, a number or true or false is expected", self.at(key)),
            };
            let line = self.line(value.span().start);
            let option = format!("{}={text}", key.get_ref());
            items.push(Item::line(self.path, line, "ssh_option", Some(option)));
        }
        Ok(())
    }
}

/// What is asked for in a file by another name than on the command line, or only there.
fn file_names() -> impl Iterator<Item = &'static str> {
    let names = keys::names().filter(|name| !["rule", "settings"].contains(name));
    names.chain(["source", "mountpoint", "ssh"])
}

fn text<'t>(value: &'t Spanned<DeValue<'_>>) -> Option<&'t str> {
    match value.get_ref() {
        DeValue::String(text) => Some(text.as_ref()),
        _ => None,
    }
}

/// Returns a value as `-o` would have it: several of a list, and a flag that is set without one.
fn values(name: &str, kind: Kind, value: &DeValue<'_>) -> Result<Vec<Option<String>>> {
    let wrong = || anyhow::anyhow!("{}", kind.expected(name));
    let one = match (kind, value) {
        (Kind::Flag, DeValue::Boolean(true)) => return Ok(vec![None]),
        (Kind::Flag, DeValue::Boolean(false)) => "no".to_string(),
        (Kind::Switch(yes, no), DeValue::Boolean(flag)) => {
            (if *flag { yes } else { no }).to_string()
        }
        (Kind::Path, DeValue::String(text)) => {
            let path = absolute(text)?;
            path.to_str().context("the home directory's path is not UTF-8")?.to_string()
        }
        (Kind::List, DeValue::Array(list)) => {
            let texts: Option<Vec<_>> = list.iter().map(text).collect();
            let texts = texts.with_context(|| kind.expected(name))?;
            return Ok(texts.into_iter().map(|text| Some(text.to_string())).collect());
        }
        (Kind::Flag | Kind::List, _) => return Err(wrong()),
        // The readers of these values say what is wrong with a text.
        (_, DeValue::String(text)) => text.to_string(),
        (Kind::Number | Kind::Seconds | Kind::Size, DeValue::Integer(number)) => {
            match number.radix() {
                10 => number.as_str().to_string(),
                radix => {
                    i64::from_str_radix(number.as_str(), radix).map_err(|_| wrong())?.to_string()
                }
            }
        }
        (Kind::Seconds, DeValue::Float(number)) => number.as_str().to_string(),
        _ => return Err(wrong()),
    };
    Ok(vec![Some(one)])
}

/// A path in a file means the same wherever the command is run: it is absolute, or from the home.
fn absolute(text: &str) -> Result<PathBuf> {
    let path = match text.strip_prefix("~/") {
        Some(rest) => directories::home().context("there is no home directory for ~/")?.join(rest),
        None => PathBuf::from(text),
    };
    if !path.is_absolute() {
        bail!("{text:?}: in a file, a path begins with / or ~/");
    }
    Ok(path)
}
