//! Paths of files of a session: from the command line to the session, and back to people and JSON.
//! A name is bytes; none is lost on the way.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::session::Record;

/// Returns a path as typed as one from the session's root. It may lead through the mount point, or
/// be one from the session's root already. Of a standing proxy it begins with the export's name.
pub fn in_session(record: &Record, typed: &Path) -> Result<Value> {
    if record.mountpoint.is_none() {
        let path = normal(typed);
        let path = path.strip_prefix("/").unwrap_or(&path);
        return Ok(to_value(path.as_os_str().as_bytes()));
    }
    let absolute = normal(&std::path::absolute(typed)?);
    let mountpoint = record.mounted_on()?;
    let candidates = [
        absolute.strip_prefix(mountpoint).ok().map(Path::to_path_buf),
        // By another way to the mount point, through a symbolic link.
        resolved(&absolute)
            .and_then(|path| path.strip_prefix(mountpoint).ok().map(Path::to_path_buf)),
    ];
    let path = candidates.into_iter().flatten().next().unwrap_or_else(|| normal(typed));
    let path = path.strip_prefix("/").unwrap_or(&path);
    if path.components().any(|part| part == Component::ParentDir) {
        bail!("{} is not within {}", typed.display(), mountpoint.display());
    }
    Ok(to_value(path.as_os_str().as_bytes()))
}

/// The nearest ancestor that can be resolved is.
fn resolved(path: &Path) -> Option<PathBuf> {
    let parent = path.parent()?;
    let parent = std::fs::canonicalize(parent).ok().or_else(|| resolved(parent))?;
    Some(parent.join(path.file_name()?))
}

/// Takes `.` and, as far as it can, `..` out.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if normal.file_name().is_some() => {
                normal.pop();
            }
            part => normal.push(part),
        }
    }
    normal
}

/// Returns a path for JSON: text, or a list of bytes if it is not UTF-8.
pub fn to_value(path: &[u8]) -> Value {
    match std::str::from_utf8(path) {
        Ok(text) => json!(text),
        Err(_) => json!(path),
    }
}

/// Reads what [`to_value`] has made.
pub fn from_value(value: &Value) -> Result<Vec<u8>> {
    match value {
        Value::String(text) => Ok(text.as_bytes().to_vec()),
        Value::Array(bytes) => bytes
            .iter()
            .map(|byte| byte.as_u64().and_then(|byte| u8::try_from(byte).ok()))
            .collect::<Option<_>>()
            .context("a path is text or a list of bytes"),
        _ => bail!("a path is missing"),
    }
}

/// Returns a path of a reply for people: what is no text, and what would move the cursor, escaped.
pub fn text(value: &Value) -> String {
    let bytes = from_value(value).unwrap_or_default();
    if bytes.is_empty() {
        return ".".into();
    }
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character.is_control() || character == '\\' {
                true => text.extend(character.escape_default()),
                false => text.push(character),
            }
        }
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

/// Returns the names that a path from the root goes through.
pub fn names(path: &[u8]) -> Vec<&[u8]> {
    let path = Path::new(OsStr::from_bytes(path));
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.as_bytes()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_keep_their_bytes() {
        for bytes in [&b"a/b"[..], b"\xff\xfe/x", "ä/ö".as_bytes(), b""] {
            assert_eq!(from_value(&to_value(bytes)).expect("good"), bytes);
        }
        assert_eq!(text(&to_value(b"a\xff\n\\b")), r"a\xff\n\\b");
        assert_eq!(text(&json!("")), ".");
        for value in [json!(1), json!([256]), json!(["a"]), json!(null)] {
            assert!(from_value(&value).is_err(), "{value}");
        }
        assert_eq!(names(b"/a/./b//c"), [b"a", b"b", b"c"]);
    }

    #[test]
    fn paths_lead_into_the_session() {
        let record = Record {
            name: "x".into(),
            source: "h:/".into(),
            mountpoint: Some("/nonexistent/mnt".into()),
            listen: Vec::new(),
            pid: 1,
            cache: None,
        };
        for (typed, path) in [
            ("/nonexistent/mnt/a/b", "a/b"),
            ("/nonexistent/mnt", ""),
            ("/nonexistent/mnt/a/../b", "b"),
            ("a/b", "a/b"),
            ("/a/b", "a/b"),
            ("./a", "a"),
            (".", ""),
        ] {
            assert_eq!(in_session(&record, Path::new(typed)).expect(typed), json!(path), "{typed}");
        }
        assert!(in_session(&record, Path::new("../x")).is_err());
        assert!(in_session(&record, Path::new("a/../../x")).is_err());
    }
}
