//! A TOML table whose values are taken by key, with errors that say where they are.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

use crate::options;
use crate::report::Hinted;

/// A table and where it stands in the file.
pub struct Reader<'a> {
    place: String,
    table: &'a Table,
}

impl<'a> Reader<'a> {
    /// Reads a table; `place` is its heading, without brackets.
    pub fn new(place: impl Into<String>, table: &'a Table) -> Self {
        Self { place: place.into(), table }
    }

    /// Puts the heading in front of words.
    pub fn at(&self, words: &str) -> String {
        match &*self.place {
            "" => words.into(),
            place => format!("[{place}]: {words}"),
        }
    }

    /// Refuses keys that are not known.
    pub fn check_keys(&self, known: &[&[&str]]) -> Result<()> {
        let known = known.concat();
        match self.table.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => {
                let nearest = options::nearest(key, known.iter().copied());
                let hint = nearest.map_or("docs/proxies.md lists the keys".into(), |name| {
                    format!("did you mean {name}?")
                });
                Err(Hinted::error(self.at(&format!("{key}: unknown key")), hint))
            }
        }
    }

    /// Returns all keys and values.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.table.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Returns a table in it.
    pub fn table(&self, key: &str) -> Result<Option<Reader<'a>>> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::Table(table)) => Ok(Some(Reader::new(key, table))),
            Some(_) => bail!("{}", self.at(&format!("{key}: a table [{key}] is expected"))),
        }
    }

    /// Returns the tables `[KEY.NAME]`.
    pub fn tables(&self, key: &str) -> Result<Vec<(&'a str, Reader<'a>)>> {
        let Some(Value::Table(tables)) = self.table.get(key) else {
            return match self.table.get(key) {
                None => Ok(Vec::new()),
                Some(_) => bail!("{key}: tables [{key}.NAME] are expected"),
            };
        };
        let named = |(name, value): (&'a String, &'a Value)| match value {
            Value::Table(table) => Ok((name.as_str(), Reader::new(format!("{key}.{name}"), table))),
            _ => bail!("[{key}]: {name}: tables [{key}.NAME] are expected"),
        };
        tables.iter().map(named).collect()
    }

    fn wrong<T>(&self, key: &str, what: &str) -> Result<T> {
        bail!("{}", self.at(&format!("{key}: {what} is expected")))
    }

    /// Returns a text.
    pub fn text(&self, key: &str) -> Result<Option<String>> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
            Some(_) => self.wrong(key, "a text in quotes"),
        }
    }

    /// Returns a text or a number, as text.
    pub fn word(&self, key: &str) -> Result<Option<String>> {
        match self.table.get(key) {
            Some(Value::Integer(number)) => Ok(Some(number.to_string())),
            Some(Value::Float(number)) => Ok(Some(number.to_string())),
            _ => self.text(key),
        }
    }

    /// Returns a list of texts; one text is a list of one.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(Value::Array(values)) = self.table.get(key) else {
            return Ok(self.text(key)?.map(|text| vec![text]));
        };
        let text = |value: &Value| value.as_str().map(str::to_string);
        match values.iter().map(text).collect() {
            Some(texts) => Ok(Some(texts)),
            None => self.wrong(key, "a list of texts in quotes"),
        }
    }

    /// Returns a number.
    pub fn number(&self, key: &str) -> Result<Option<u64>> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::Integer(number)) if *number >= 0 => Ok(Some(*number as u64)),
            Some(_) => self.wrong(key, "a number"),
        }
    }

    /// Returns true or false.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::Boolean(flag)) => Ok(Some(*flag)),
            Some(_) => self.wrong(key, "true or false"),
        }
    }
}

/// Takes a path: absolute, or from the home directory (`~/…`), since a service starts anywhere.
pub fn path_of(text: &str) -> Result<PathBuf> {
    let path = match text.strip_prefix("~/") {
        Some(rest) => {
            let home = std::env::var_os("HOME").context("HOME is not set")?;
            PathBuf::from(home).join(rest)
        }
        None => PathBuf::from(text),
    };
    match path.is_absolute() {
        true => Ok(path),
        false => bail!("{text}: a path from / or ~/ is expected"),
    }
}
