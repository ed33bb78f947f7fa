//! Actions: what is to be done when a file is first accessed (paper, section 5).

use std::fmt;
use std::str::FromStr;

use super::FormatError;
use super::varint::Reader;

/// Actions that a metadata file has at most.
pub const ACTIONS_MAX: usize = 16;
/// Bytes of the name of a command at most.
pub const COMMAND_NAME_BYTES_MAX: usize = 64;

const FETCH: u8 = 1;
const COMMAND: u8 = 2;

/// How a file is compressed on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None = 0,
    /// RFC 8878; levels -7 to 22.
    Zstd = 1,
    /// RFC 1952; levels 1 to 9.
    Gzip = 2,
}

impl Compression {
    fn level_valid(self, level: i8) -> bool {
        match self {
            Self::None => level == 0,
            Self::Zstd => (-7..=22).contains(&level),
            Self::Gzip => (1..=9).contains(&level),
        }
    }
}

/// One step of what is done at first access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The paper's *compress, remotely copy, uncompress, read locally*: the file is fetched whole.
    Fetch {
        /// How.
        compression: Compression,
        /// How hard; 0 without compression.
        level: i8,
    },
    /// A command of the mounting user's own list is run.
    Command {
        /// Its name there, of letters, digits, `_` and `-`; never a path.
        name: String,
    },
}

impl Action {
    /// Tells whether level or name are ones that an action may have.
    pub fn is_valid(&self) -> bool {
        match self {
            Self::Fetch { compression, level } => compression.level_valid(*level),
            Self::Command { name } => {
                let allowed =
                    |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
                (1..=COMMAND_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed)
            }
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Fetch { compression, level } => {
                out.extend([FETCH, *compression as u8, level.to_le_bytes()[0]]);
            }
            Self::Command { name } => {
                out.extend([COMMAND, name.len() as u8]);
                out.extend(name.as_bytes());
            }
        }
    }

    fn decode(reader: &mut Reader) -> Result<Self, FormatError> {
        let malformed = FormatError::Malformed { what: "an action that is not known" };
        let action = match reader.byte()? {
            FETCH => {
                let compression = match reader.byte()? {
                    0 => Compression::None,
                    1 => Compression::Zstd,
                    2 => Compression::Gzip,
                    _ => return Err(malformed),
                };
                Self::Fetch { compression, level: i8::from_le_bytes(reader.array()?) }
            }
            COMMAND => {
                let length = reader.byte()?;
                let name = reader.take(length.into())?;
                let name = std::str::from_utf8(name).map_err(|_| malformed.clone())?;
                Self::Command { name: name.into() }
            }
            _ => return Err(malformed),
        };
        if action.is_valid() { Ok(action) } else { Err(malformed) }
    }
}

/// Returns actions as bytes: their number, then each. Those that are not valid are left out, and
/// those past [`ACTIONS_MAX`].
pub(super) fn encode(actions: &[Action]) -> Vec<u8> {
    let actions: Vec<_> = actions.iter().filter(|a| a.is_valid()).take(ACTIONS_MAX).collect();
    let mut out = vec![actions.len() as u8];
    for action in actions {
        action.encode(&mut out);
    }
    out
}

/// Reads what [`encode`] wrote.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<Action>, FormatError> {
    let mut reader = Reader::new(bytes, "actions");
    let count = reader.byte()?;
    if count == 0 || usize::from(count) > ACTIONS_MAX {
        return Err(FormatError::TooMany(count.into()));
    }
    let actions = (0..count).map(|_| Action::decode(&mut reader)).collect::<Result<_, _>>()?;
    reader.end()?;
    Ok(actions)
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fetch { compression: Compression::None, .. } => f.write_str("fetch"),
            Self::Fetch { compression: Compression::Zstd, level } => write!(f, "zstd:{level}"),
            Self::Fetch { compression: Compression::Gzip, level } => write!(f, "gzip:{level}"),
            Self::Command { name } => write!(f, "command:{name}"),
        }
    }
}

impl FromStr for Action {
    type Err = FormatError;

    /// Reads `fetch`, `zstd[:LEVEL]`, `gzip[:LEVEL]` or `command:NAME`; without a level it is that
    /// of the program of that name: 3 and 6.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let no_action = || FormatError::Action(text.into());
        let (word, rest) = match text.split_once(':') {
            Some((word, rest)) => (word, Some(rest)),
            None => (text, None),
        };
        let level = |usual: i8| match rest {
            Some(rest) => rest.parse().map_err(|_| no_action()),
            None => Ok(usual),
        };
        let action = match (word, rest) {
            ("fetch", None) => Self::Fetch { compression: Compression::None, level: 0 },
            ("zstd", _) => Self::Fetch { compression: Compression::Zstd, level: level(3)? },
            ("gzip", _) => Self::Fetch { compression: Compression::Gzip, level: level(6)? },
            ("command", Some(name)) => Self::Command { name: name.into() },
            _ => return Err(no_action()),
        };
        if action.is_valid() { Ok(action) } else { Err(no_action()) }
    }
}
