//! The line that a server-side proxy says before it speaks RPC.
//!
//! `GRIDVFS1 {json}\n`, on a channel that only the user's own login can have opened (ssh): this is
//! how the session key reaches the client (the paper's section 3.2, "a separate private channel").

use gridvfs_vfs::FileHandle;
use serde::{Deserialize, Serialize};

/// What the line begins with. Anything in front of it is noise of the host's shell start-up.
pub const GREETING_MAGIC: &str = "GRIDVFS1 ";

/// The protocol that this program speaks. Programs of other versions get on with each other as
/// long as this is equal.
pub const PROTOCOL: u32 = 1;

/// The feature that stands for the extension program ([`gridvfs_vfs::ext`]).
pub const FEATURE_EXTENSIONS: &str = "ext";
/// The feature of a proxy that answers FETCH, whatever it serves: a plain NFS server behind it is
/// read for that.
pub const FEATURE_FETCH: &str = "fetch";
/// The feature of a proxy that tells changes of its files, whoever makes them (CHANGES).
pub const FEATURE_CHANGES: &str = "changes";

/// A greeting: of a session, or a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Whether the session is there; otherwise only `error` and `message` mean anything.
    pub ok: bool,
    /// The version of the program on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// The protocol that it speaks.
    #[serde(default)]
    pub protocol: u32,
    /// The session's name on the host, by which further stripes attach.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub session: String,
    /// The session key: 32 hexadecimal digits. Only to the channel that began the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The root's file handle in hexadecimal.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub root: String,
    /// What the proxy can do beyond NFSv3.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// The user that the proxy runs as.
    #[serde(default)]
    pub uid: u32,
    /// The group that the proxy runs as.
    #[serde(default)]
    pub gid: u32,
    /// Why there is no session: a code for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why there is no session: a sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Greeting {
    /// Makes a refusal.
    pub fn refusal(error: &str, message: String) -> Self {
        Self {
            ok: false,
            version: env!("CARGO_PKG_VERSION").into(),
            protocol: PROTOCOL,
            session: String::new(),
            key: None,
            root: String::new(),
            features: Vec::new(),
            uid: 0,
            gid: 0,
            error: Some(error.into()),
            message: Some(message),
        }
    }

    /// Returns the line, with its end.
    pub fn to_line(&self) -> String {
        // A struct of strings and numbers always has a JSON form.
        let json = serde_json::to_string(self).unwrap_or_default();
        format!("{GREETING_MAGIC}{json}\n")
    }

    /// Reads a line. `None` if it is no greeting.
    pub fn from_line(line: &str) -> Option<Self> {
        serde_json::from_str(line.trim_end().strip_prefix(GREETING_MAGIC)?).ok()
    }

    /// Returns the root's file handle.
    pub fn root_handle(&self) -> Option<FileHandle> {
        if !self.root.len().is_multiple_of(2) || !self.root.is_ascii() {
            return None;
        }
        let bytes: Option<Vec<u8>> = (0..self.root.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&self.root[at..at + 2], 16).ok())
            .collect();
        FileHandle::new(&bytes?).filter(|handle| !handle.as_bytes().is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_from_its_line() {
        let greeting = Greeting {
            ok: true,
            session: "0123456789abcdef".into(),
            key: Some("00112233445566778899aabbccddeeff".into()),
            root: "01ff".into(),
            features: vec![FEATURE_EXTENSIONS.into()],
            error: None,
            message: None,
            ..Greeting::refusal("", String::new())
        };
        let line = greeting.to_line();
        assert_eq!(Greeting::from_line(&line), Some(greeting.clone()));
        assert_eq!(greeting.root_handle(), FileHandle::new(&[1, 255]));
        assert_eq!(Greeting::from_line("Welcome to Debian"), None);
        for root in ["", "0", "0g", "é"] {
            assert_eq!(Greeting { root: root.into(), ..greeting.clone() }.root_handle(), None);
        }
    }
}
