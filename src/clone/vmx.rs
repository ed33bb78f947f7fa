//! VMware's configuration: lines `key = "value"`, keys in any case, `|22` for a quote in a value.

use anyhow::{Result, bail};

/// A file, line by line, so that what is not changed stays as it was.
#[derive(Debug)]
pub struct Vmx(Vec<Line>);

#[derive(Debug)]
enum Line {
    Entry { key: String, value: String },
    Other(String),
}

impl Vmx {
    /// Reads the text of a file. `name` is for errors.
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        let mut lines = Vec::new();
        for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                lines.push(Line::Other(line.into()));
                continue;
            }
            let Some((key, value)) = trimmed.split_once('=') else {
                bail!("{name}, line {}: not KEY = \"VALUE\": {trimmed}", number + 1);
            };
            let value = value.trim();
            let inner = value.strip_prefix('"').map(|rest| rest.split_once('"'));
            let value = match inner {
                Some(Some((value, _comment))) => decoded(value),
                Some(None) => bail!("{name}, line {}: a quotation is not closed", number + 1),
                None => value.to_string(),
            };
            lines.push(Line::Entry { key: key.trim().into(), value });
        }
        Ok(Self(lines))
    }

    /// Returns all entries in their order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|line| match line {
            Line::Entry { key, value } => Some((&**key, &**value)),
            Line::Other(_) => None,
        })
    }

    /// Returns a value; the last one counts.
    pub fn get(&self, wanted: &str) -> Option<&str> {
        let found = self.entries().filter(|(key, _)| key.eq_ignore_ascii_case(wanted));
        found.last().map(|(_, value)| value)
    }

    /// Sets a value, in place of all of that name.
    pub fn set(&mut self, wanted: &str, new: &str) {
        let mut seen = false;
        self.0.retain_mut(|line| match line {
            Line::Entry { key, value } if key.eq_ignore_ascii_case(wanted) => {
                *value = new.into();
                !std::mem::replace(&mut seen, true)
            }
            _ => true,
        });
        if !seen {
            self.0.push(Line::Entry { key: wanted.into(), value: new.into() });
        }
    }

    /// Takes an entry out.
    pub fn remove(&mut self, wanted: &str) {
        self.0.retain(
            |line| !matches!(line, Line::Entry { key, .. } if key.eq_ignore_ascii_case(wanted)),
        );
    }

    /// Writes the text of a file.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in &self.0 {
            match line {
                Line::Entry { key, value } => {
                    text += &format!("{key} = \"{}\"\n", encoded(value));
                }
                Line::Other(line) => {
                    text += line;
                    text.push('\n');
                }
            }
        }
        text
    }
}

/// Takes `|XX` for the byte XX. What is no such thing stays.
fn decoded(value: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = value.as_bytes();
    while let [first, more @ ..] = rest {
        let hex = more.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, byte) {
            (b'|', Some(byte)) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            _ => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| value.into())
}

fn encoded(value: &str) -> String {
    let mut text = String::new();
    for character in value.chars() {
        match character {
            '"' | '|' | '#' | '\0'..='\x1f' => text += &format!("|{:02X}", character as u32),
            character => text.push(character),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_changed_stays() {
        let text = "#!/usr/bin/vmware\n.encoding = \"UTF-8\"\n\nmemsize = \"320\"\n";
        let mut vmx = Vmx::parse(text, "x").unwrap();
        assert_eq!(vmx.text(), text);
        vmx.set("MemSize", "640");
        vmx.set("new", "1");
        assert_eq!(vmx.text(), text.replace("320", "640") + "new = \"1\"\n");
        vmx.remove("MEMSIZE");
        assert_eq!(vmx.get("memsize"), None);
    }

    #[test]
    fn odd_values_survive() {
        let text = "annotation = \"a |22quoted|22 word|0Aand |7C a bar\"\nb=\"\"\r\nc = bare\nd = \"50|\"\n";
        let mut vmx = Vmx::parse(text, "x").unwrap();
        assert_eq!(vmx.get("annotation"), Some("a \"quoted\" word\nand | a bar"));
        assert_eq!(
            (vmx.get("b"), vmx.get("c"), vmx.get("d")),
            (Some(""), Some("bare"), Some("50|"))
        );
        vmx.set("displayName", "Jörg's \"VM\" #1 = |x|");
        let again = Vmx::parse(&vmx.text(), "x").unwrap();
        assert_eq!(again.get("displayname"), Some("Jörg's \"VM\" #1 = |x|"));
        assert_eq!(again.get("annotation"), vmx.get("annotation"));
    }

    #[test]
    fn repeated_keys_become_one() {
        let mut vmx = Vmx::parse("a = \"1\"\nA = \"2\"\n", "x").unwrap();
        assert_eq!(vmx.get("a"), Some("2"));
        vmx.set("a", "3");
        assert_eq!(vmx.text(), "a = \"3\"\n");
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for text in ["just words", "a = \"1"] {
            let error = Vmx::parse(text, "bad.vmx").unwrap_err().to_string();
            assert!(error.contains("bad.vmx, line 1"), "{error}");
        }
    }
}
