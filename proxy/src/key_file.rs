//! A file of keys, one for each client session: `NAME = KEY` a line, the key as 32 hexadecimal
//! digits. `#` begins a comment. A file with nothing but a key in it has the one key `default`.
//!
//! It is mode 0600 or it is not read. It is only ever replaced whole, so that whoever reads it sees
//! all of it.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::key::{KeyError, SessionKey, private_text};

/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The most keys: each call of a new channel is compared with all of them.
const KEYS_MAX: usize = 4096;
/// The longest name of a key.
const NAME_BYTES_MAX: usize = 64;
/// The name of the key in a file without names.
const ONLY: &str = "default";

/// A key and whose it is.
#[derive(Clone)]
pub struct NamedKey {
    /// Whose it is.
    pub name: String,
    /// The key.
    pub key: SessionKey,
}

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file, not what it says.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// It cannot be replaced.
    #[error("key file {0}: {1}")]
    Io(String, std::io::Error),
    /// A line is not as it should be.
    #[error("key file {0}, line {1}: {2}")]
    Line(String, usize, String),
    /// There is no such key, or there is one already.
    #[error("key file {0}: {1}")]
    Name(String, String),
}

/// Says whether a key may have this name.
pub fn valid_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(good)
}

/// Reads the keys of a file.
pub fn read(path: &Path) -> Result<Vec<NamedKey>, KeyFileError> {
    parse(path, &private_text(path, FILE_BYTES_MAX)?)
}

fn parse(path: &Path, text: &str) -> Result<Vec<NamedKey>, KeyFileError> {
    let file = path.display().to_string();
    if let Some(key) = SessionKey::from_hex(text.trim()) {
        return Ok(vec![NamedKey { name: ONLY.into(), key }]);
    }
    let mut keys: Vec<NamedKey> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let wrong = |why: String| KeyFileError::Line(file.clone(), number + 1, why);
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let (name, hex) = match line.split_once('=') {
            Some((name, hex)) => (name.trim(), hex.trim().trim_matches('"')),
            None => return Err(wrong("NAME = KEY is expected".into())),
        };
        if !valid_name(name) {
            let most = NAME_BYTES_MAX;
            return Err(wrong(format!(
                "{name:?} is no name for a key: letters, digits, - _ . @, at most {most}"
            )));
        }
        // What is wrong with a key is not told by showing it.
        let Some(key) = SessionKey::from_hex(hex) else {
            return Err(wrong(format!("the key of {name}: 32 hexadecimal digits are expected")));
        };
        if keys.iter().any(|known| known.name == name) {
            return Err(wrong(format!("{name} has a key already")));
        }
        let twin = keys.iter().find(|known| known.key.matches(key.to_hex().as_bytes()));
        if let Some(twin) = twin {
            return Err(wrong(format!("{name} and {} have the same key", twin.name)));
        }
        if keys.len() == KEYS_MAX {
            return Err(wrong(format!("more than {KEYS_MAX} keys")));
        }
        keys.push(NamedKey { name: name.into(), key });
    }
    Ok(keys)
}

/// Adds a new key of this name, and returns it. A file that does not exist is made.
pub fn add(path: &Path, name: &str) -> Result<SessionKey, KeyFileError> {
    let file = || path.display().to_string();
    if !valid_name(name) {
        let why = format!("{name:?} is no name for a key: letters, digits, - _ . @");
        return Err(KeyFileError::Name(file(), why));
    }
    let mut text = match private_text(path, FILE_BYTES_MAX) {
        Ok(text) => text,
        Err(KeyError::Io(_, error)) if error.kind() == std::io::ErrorKind::NotFound => {
            "# One key a line: NAME = KEY. gridvfs proxy key new|list|revoke keeps it.\n".into()
        }
        Err(error) => return Err(error.into()),
    };
    if SessionKey::from_hex(text.trim()).is_some() {
        text = format!("{ONLY} = {}\n", text.trim());
    }
    if parse(path, &text)?.iter().any(|known| known.name == name) {
        let why = format!("{name} has a key already (revoke it first)");
        return Err(KeyFileError::Name(file(), why));
    }
    let key = SessionKey::random()?;
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&format!("{name} = {}\n", key.to_hex()));
    replace(path, &text)?;
    Ok(key)
}

/// Removes a key.
pub fn remove(path: &Path, name: &str) -> Result<(), KeyFileError> {
    let text = private_text(path, FILE_BYTES_MAX)?;
    let keys = parse(path, &text)?;
    if !keys.iter().any(|known| known.name == name) {
        return Err(KeyFileError::Name(path.display().to_string(), format!("no key of {name}")));
    }
    let is_its = |line: &str| {
        let named = line.split('#').next().unwrap_or_default().split_once('=');
        named.is_some_and(|(found, _)| found.trim() == name) || named.is_none() && name == ONLY
    };
    let is_comment = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    let kept = text.lines().filter(|line| is_comment(line) || !is_its(line));
    replace(path, &kept.flat_map(|line| [line, "\n"]).collect::<String>())
}

fn replace(path: &Path, text: &str) -> Result<(), KeyFileError> {
    let fault = |error| KeyFileError::Io(path.display().to_string(), error);
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path));
    let draft = path.with_extension(format!("new-{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut options = std::fs::File::options();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&draft, &path)
    };
    write().map_err(|error| {
        let _ = std::fs::remove_file(&draft);
        fault(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    const HEX: &str = "00112233445566778899aabbccddeeff";

    #[test]
    fn keys_are_added_listed_and_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("keys");
        let names = || -> Vec<String> {
            read(&path).expect("reads").into_iter().map(|key| key.name).collect()
        };
        let alice = add(&path, "alice").expect("adds");
        let bob = add(&path, "bob").expect("adds");
        assert_ne!(alice.to_hex(), bob.to_hex());
        assert_eq!(names(), ["alice", "bob"]);
        assert_eq!(std::fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        assert!(read(&path).expect("reads")[1].key.matches(bob.to_hex().as_bytes()));
        assert!(add(&path, "bob").is_err_and(|error| error.to_string().contains("already")));
        assert!(add(&path, "b b").is_err());
        remove(&path, "alice").expect("removes");
        assert_eq!(names(), ["bob"]);
        assert!(remove(&path, "alice").is_err());
        assert!(std::fs::read_to_string(&path).expect("text").starts_with('#'), "comments stay");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).expect("chmod");
        let error = add(&path, "carol").err().expect("refused").to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_lone_key_is_a_file_of_one() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("keys");
        replace(&path, &format!("{HEX}\n")).expect("writes");
        assert_eq!(read(&path).expect("reads")[0].name, "default");
        add(&path, "alice").expect("adds");
        assert_eq!(read(&path).expect("reads").len(), 2);
    }

    #[test]
    fn bad_lines_are_named_and_no_key_is_shown() {
        let path = Path::new("keys");
        for (text, words) in [
            ("alice", "line 1: NAME = KEY"),
            ("\nalice = 0011", "line 2: the key of alice"),
            (&format!("a/b = {HEX}"), "no name"),
            (&format!("a = {HEX}\na = {}", "1".repeat(32)), "a has a key already"),
            (&format!("a = {HEX}\nb = {HEX}"), "the same key"),
        ] {
            let error = parse(path, text).err().expect(text).to_string();
            assert!(error.contains(words), "{error}");
            assert!(!error.contains("0011"), "{error}");
        }
        assert!(parse(path, "# nobody\n").expect("good").is_empty());
        assert_eq!(parse(path, &format!("a = \"{HEX}\" # x")).expect("good")[0].name, "a");
    }
}
