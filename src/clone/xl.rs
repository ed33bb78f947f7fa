//! Xen's configuration: `key = value`, where a value is a number, a string in either quotes, or a
//! list of strings over one line or several. What is not changed stays as it was, comments too.

use std::ops::Range;

use anyhow::{Context, Result, bail};

/// A file and where its entries are.
pub struct Xl {
    text: String,
    entries: Vec<Entry>,
}

struct Entry {
    key: String,
    value: Value,
    span: Range<usize>,
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number, as it is written.
    Number(String),
    /// A string.
    Text(String),
    /// Strings.
    List(Vec<String>),
}

impl Xl {
    /// Reads the text of a file. `name` is for errors.
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        let mut reader = Reader { text, at: 0 };
        let mut entries = Vec::new();
        loop {
            reader.skip(|c| c.is_whitespace() || c == ';');
            if reader.rest().is_empty() {
                return Ok(Self { text: text.into(), entries });
            }
            let entry = reader.entry().with_context(|| {
                format!("{name}, line {}", text[..reader.at].matches('\n').count() + 1)
            })?;
            entries.push(entry);
        }
    }

    /// Returns a value; the last one counts.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().rev().find(|entry| entry.key == key).map(|entry| &entry.value)
    }

    /// Returns a value as a list; a string is a list of one.
    pub fn list(&self, key: &str) -> Vec<String> {
        match self.get(key) {
            Some(Value::List(list)) => list.clone(),
            Some(Value::Text(text)) => vec![text.clone()],
            _ => Vec::new(),
        }
    }

    /// Sets a value, or adds it at the end.
    pub fn set(&mut self, key: &str, value: &Value) -> Result<()> {
        let written = written(value)?;
        match self.entries.iter().rev().find(|entry| entry.key == key) {
            Some(entry) => self.text.replace_range(entry.span.clone(), &written),
            None => {
                if !self.text.is_empty() && !self.text.ends_with('\n') {
                    self.text.push('\n');
                }
                self.text += &format!("{key} = {written}\n");
            }
        }
        *self = Self::parse(&self.text, "the clone's configuration")?;
        Ok(())
    }

    /// Returns the text of a file.
    pub fn text(&self) -> &str {
        &self.text
    }
}

fn written(value: &Value) -> Result<String> {
    let string = |text: &str| {
        // There is no way to write both, nor a line's end.
        match (text.contains(['\n', '\r']), text.contains('"'), text.contains('\'')) {
            (false, false, _) => Ok(format!("\"{text}\"")),
            (false, true, false) => Ok(format!("'{text}'")),
            _ => bail!("Xen's configuration cannot hold {text:?}"),
        }
    };
    Ok(match value {
        Value::Number(number) => number.clone(),
        Value::Text(text) => string(text)?,
        Value::List(list) => {
            let strings: Result<Vec<String>> = list.iter().map(|text| string(text)).collect();
            format!("[ {} ]", strings?.join(", "))
        }
    })
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Goes past what a test takes, and past comments.
    fn skip(&mut self, taken: impl Fn(char) -> bool) {
        loop {
            let rest = self.rest();
            let length = match rest.starts_with('#') {
                true => rest.find('\n').unwrap_or(rest.len()),
                false => rest.find(|c| !taken(c)).unwrap_or(rest.len()),
            };
            self.at += length;
            if length == 0 {
                return;
            }
        }
    }

    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let good = |c: char| c.is_ascii_alphanumeric() || "_.-+".contains(c);
        let length = rest.find(|c| !good(c)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    fn entry(&mut self) -> Result<Entry> {
        let key = self.word().to_string();
        self.skip(|c| c == ' ' || c == '\t');
        if key.is_empty() || !self.rest().starts_with('=') {
            bail!("not KEY = VALUE");
        }
        self.at += 1;
        self.skip(|c| c == ' ' || c == '\t');
        let begin = self.at;
        let value = self.value().with_context(|| format!("the value of {key}"))?;
        Ok(Entry { key, value, span: begin..self.at })
    }

    fn value(&mut self) -> Result<Value> {
        match self.rest().chars().next() {
            Some('[') => self.list(),
            Some('"' | '\'') => Ok(Value::Text(self.string()?)),
            _ => match self.word() {
                "" => bail!("neither a number, nor a string, nor a list"),
                number => Ok(Value::Number(number.into())),
            },
        }
    }

    fn list(&mut self) -> Result<Value> {
        self.at += 1;
        let mut list = Vec::new();
        loop {
            self.skip(|c| c.is_whitespace() || c == ',');
            match self.rest().chars().next() {
                Some(']') => {
                    self.at += 1;
                    return Ok(Value::List(list));
                }
                Some('"' | '\'') => list.push(self.string()?),
                Some('[') => bail!("a list within a list"),
                Some(_) => match self.word() {
                    "" => bail!("a list of something else than strings"),
                    word => list.push(word.into()),
                },
                None => bail!("the list is not closed"),
            }
        }
    }

    fn string(&mut self) -> Result<String> {
        let rest = self.rest();
        let quote = rest.chars().next().unwrap_or('"');
        let inner = &rest[1..];
        match inner.find([quote, '\n']) {
            Some(end) if inner[end..].starts_with(quote) => {
                self.at += end + 2;
                Ok(inner[..end].into())
            }
            _ => bail!("a quotation is not closed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CFG: &str = "\
# it's a golden VM
name = \"golden\"; memory = 320
disk = [ 'file:/vms/root.img,xvda,w', # the root
         \"format=raw, vdev=xvdb, access=ro, target=/vms/tools # 1.iso\", ]
vif = ['mac=00:16:3e:01:02:03, bridge=xenbr0']
extra = 'root=/dev/xvda \"ro\"'
";

    #[test]
    fn values_are_read_with_their_quotes_and_comments() {
        let xl = Xl::parse(CFG, "x").unwrap();
        assert_eq!(xl.get("name"), Some(&Value::Text("golden".into())));
        assert_eq!(xl.get("memory"), Some(&Value::Number("320".into())));
        assert_eq!(
            xl.list("disk"),
            [
                "file:/vms/root.img,xvda,w",
                "format=raw, vdev=xvdb, access=ro, target=/vms/tools # 1.iso"
            ]
        );
        assert_eq!(xl.list("extra"), ["root=/dev/xvda \"ro\""]);
        assert!(xl.list("none").is_empty());
    }

    #[test]
    fn what_is_not_changed_stays() {
        let mut xl = Xl::parse(CFG, "x").unwrap();
        assert_eq!(xl.text(), CFG);
        xl.set("name", &Value::Text("o'ne".into())).unwrap();
        xl.set("disk", &Value::List(vec!["a".into(), "b \"c\"".into()])).unwrap();
        xl.set("uuid", &Value::Text("u".into())).unwrap();
        let (head, tail) = (CFG.find("disk").unwrap(), CFG.find("vif").unwrap());
        let wanted = CFG[..head].replace("golden\"", "o'ne\"")
            + "disk = [ \"a\", 'b \"c\"' ]\n"
            + &CFG[tail..]
            + "uuid = \"u\"\n";
        assert_eq!(xl.text(), wanted);
        assert!(xl.set("name", &Value::Text("both \" and '".into())).is_err());
        assert!(xl.set("name", &Value::Text("two\nlines".into())).is_err());
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for text in
            ["name", "= 3", "a = ", "a = 'x", "a = ['x'", "a = [['x']]", "a = \"x\ny\"", "ä = 1"]
        {
            let error = format!("{:#}", Xl::parse(text, "bad.cfg").err().unwrap());
            assert!(error.contains("bad.cfg, line 1"), "{text}: {error}");
        }
    }
}
