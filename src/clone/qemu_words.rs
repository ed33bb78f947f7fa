//! A QEMU command line as a file holds it: words as a shell reads them, and options within a word
//! (`file=disk.raw,format=raw`, where a comma in a value is doubled).

use anyhow::{Context, Result};

/// The values of one word, in their order. A value without a key has an empty one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options(Vec<(String, Option<String>)>);

impl Options {
    /// Reads a word. It always has at least one part.
    pub fn parse(word: &str) -> Self {
        let mut parts = vec![String::new()];
        let mut characters = word.chars().peekable();
        while let Some(character) = characters.next() {
            match (character, parts.last_mut()) {
                (',', Some(last)) if characters.next_if_eq(&',').is_some() => last.push(','),
                (',', _) => parts.push(String::new()),
                (character, Some(last)) => last.push(character),
                (_, None) => {}
            }
        }
        let split = |part: String| match part.split_once('=') {
            Some((key, value)) => (key.to_string(), Some(value.to_string())),
            None => (part, None),
        };
        Self(parts.into_iter().map(split).collect())
    }

    /// Returns a value; the last one counts.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(name, _)| name == key)?.1.as_deref()
    }

    /// Returns what comes first, if it has no key: a backend, a driver.
    pub fn first(&self) -> Option<&str> {
        self.0.first().filter(|(_, value)| value.is_none()).map(|(word, _)| &**word)
    }

    /// Sets a value, in place of the one that was there.
    pub fn set(&mut self, key: &str, value: &str) {
        self.0.retain({
            let mut seen = false;
            move |(name, _)| name != key || !std::mem::replace(&mut seen, true)
        });
        match self.0.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = Some(value.into()),
            None => self.0.push((key.into(), Some(value.into()))),
        }
    }

    /// Sets what comes first without a key.
    pub fn set_first(&mut self, word: &str) {
        if let Some(first) = self.0.first_mut() {
            *first = (word.into(), None);
        }
    }

    /// Says whether a switch is on.
    pub fn is_on(&self, key: &str) -> bool {
        self.0.iter().any(|(name, value)| {
            name == key && matches!(value.as_deref(), None | Some("on" | "yes" | "true"))
        })
    }

    /// Writes the word.
    pub fn word(&self) -> String {
        let part = |(key, value): &(String, Option<String>)| {
            let text = match value {
                Some(value) => format!("{key}={value}"),
                None => key.clone(),
            };
            text.replace(',', ",,")
        };
        self.0.iter().map(part).collect::<Vec<_>>().join(",")
    }
}

/// One option of the command line with its value, if it takes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// With one dash, as in `-drive`.
    pub flag: String,
    /// The next word.
    pub value: Option<String>,
}

/// The command line.
#[derive(Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// The first word, if it is no option.
    pub program: String,
    /// The options.
    pub arguments: Vec<Argument>,
}

/// The program if none is named.
const PROGRAM: &str = "qemu-system-x86_64";

impl CommandLine {
    /// Reads the text of a file. `name` is for errors.
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        let words = shlex::split(&joined(text))
            .with_context(|| format!("{name}: a quotation is not closed"))?;
        let mut words = words.into_iter().peekable();
        let program = words.next_if(|word| !word.starts_with('-'));
        let mut arguments = Vec::new();
        while let Some(word) = words.next() {
            if !word.starts_with('-') || word == "-" {
                anyhow::bail!("{name}: {word:?} belongs to no option");
            }
            // QEMU takes two dashes for one.
            let flag = match word.strip_prefix("--") {
                Some(rest) => format!("-{rest}"),
                None => word,
            };
            let value = words.next_if(|word| !word.starts_with('-') || word == "-");
            arguments.push(Argument { flag, value });
        }
        Ok(Self { program: program.unwrap_or_else(|| PROGRAM.into()), arguments })
    }

    /// Returns the words.
    #[cfg(test)]
    pub fn words(&self) -> Vec<String> {
        let mut words = vec![self.program.clone()];
        for argument in &self.arguments {
            words.push(argument.flag.clone());
            words.extend(argument.value.clone());
        }
        words
    }

    /// Returns the text of a file: an option a line.
    pub fn text(&self, title: &str) -> Result<String> {
        let mut text = format!("# {}\n{}\n", title.replace('\n', " "), quoted(&self.program)?);
        for argument in &self.arguments {
            text += &quoted(&argument.flag)?;
            if let Some(value) = &argument.value {
                text += " ";
                text += &quoted(value)?;
            }
            text += "\n";
        }
        Ok(text)
    }

    /// Sets an option to a value, in place of all of that name.
    pub fn set(&mut self, flag: &str, value: &str) {
        let argument = Argument { flag: flag.into(), value: Some(value.into()) };
        let place = self.arguments.iter().position(|argument| argument.flag == flag);
        self.arguments.retain(|argument| argument.flag != flag);
        let place = place.unwrap_or(self.arguments.len()).min(self.arguments.len());
        self.arguments.insert(place, argument);
    }
}

/// Joins lines that end in a backslash with the next one, as a shell does but in comments.
fn joined(text: &str) -> String {
    let mut joined = String::new();
    for line in text.lines() {
        match line.strip_suffix('\\').filter(|line| !line.trim_start().starts_with('#')) {
            Some(begun) => joined += begun,
            None => {
                joined += line;
                joined.push('\n');
            }
        }
    }
    joined
}

/// Returns a word as a shell reads it.
pub fn quoted(word: &str) -> Result<String> {
    let quoted = shlex::try_quote(word).ok().context("a NUL byte in a command line")?;
    Ok(quoted.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_keep_their_order_and_their_commas() {
        let word = "file=a,,b.raw,format=raw,if=none,readonly";
        let mut options = Options::parse(word);
        assert_eq!(options.get("file"), Some("a,b.raw"));
        assert!(options.is_on("readonly") && !options.is_on("snapshot"));
        assert_eq!(options.word(), word);
        options.set("file", "/x,y/1.qcow2");
        options.set("discard", "unmap");
        assert_eq!(options.word(), "file=/x,,y/1.qcow2,format=raw,if=none,readonly,discard=unmap");
        let mut twice = Options::parse("a=1,b=2,a=3");
        assert_eq!(twice.get("a"), Some("3"));
        twice.set("a", "4");
        assert_eq!(twice.word(), "a=4,b=2");
        assert_eq!(Options::parse("a=,,,,=").get("a"), Some(",,="));
        assert_eq!(Options::parse("").word(), "");
    }

    #[test]
    fn a_command_line_is_read_as_a_shell_reads_it_and_written_back() {
        let text = "# a comment\nqemu-system-x86_64 \\\n  --name \"my vm\"\n-m 320M -nodefaults\n\
                    -append 'console=ttyS0 root=/dev/vda' -serial -\n";
        let line = CommandLine::parse(text, "qemu.args").unwrap();
        let words = line.words();
        assert_eq!(words[1..3], ["-name", "my vm"]);
        assert_eq!(words.last().unwrap(), "-");
        assert!(words.contains(&"console=ttyS0 root=/dev/vda".to_string()));
        let again = CommandLine::parse(&line.text("a title").unwrap(), "again").unwrap();
        assert_eq!(again, line);
        assert_eq!(CommandLine::parse("-m 1G", "x").unwrap().program, PROGRAM);
        for bad in ["qemu 'x", "qemu -m 1 2"] {
            assert!(CommandLine::parse(bad, "x").is_err(), "{bad}");
        }
    }

    #[test]
    fn setting_an_option_replaces_all_of_its_name() {
        let mut line = CommandLine::parse("q -m 1 -smp 2 -m 3", "x").unwrap();
        line.set("-m", "4");
        line.set("-uuid", "u");
        assert_eq!(line.words(), ["q", "-m", "4", "-smp", "2", "-uuid", "u"]);
    }
}
