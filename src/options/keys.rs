//! Every key of a session, in one table: what it may be in a file, and whether it may change while
//! the mount lasts.

/// What a key's value is, in a file. On the command line everything is text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Flag,
    /// One of two words; `true` and `false` stand for them in this order.
    Switch(&'static str, &'static str),
    /// Text.
    Text,
    /// The absolute path of a file or directory; `~/` is the home directory.
    Path,
    /// A whole number.
    Number,
    /// A number of seconds.
    Seconds,
    /// A number of bytes, or text such as `"8G"`.
    Size,
    /// A list of text.
    List,
}

impl Kind {
    /// Says what is expected, with an example.
    pub fn expected(self, key: &str) -> String {
        match self {
            Self::Flag => format!("true or false is expected: {key} = true"),
            Self::Switch(yes, no) => {
                format!("\"{yes}\" or \"{no}\" is expected: {key} = \"{no}\"")
            }
            Self::Text => format!("text is expected: {key} = \"…\""),
            Self::Path => format!("a path is expected: {key} = \"/…\" or \"~/…\""),
            Self::Number => format!("a whole number is expected: {key} = 4"),
            Self::Seconds => format!("a number of seconds is expected: {key} = 1.5"),
            Self::Size => format!("a size is expected: {key} = \"8G\""),
            Self::List => format!("a list of text is expected: {key} = [\"…\", \"…\"]"),
        }
    }
}

/// A key of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name, in files and for `-o`.
    pub name: &'static str,
    /// What its value is.
    pub kind: Kind,
    /// Whether `gridvfs set` and SIGHUP may change it.
    pub changes: bool,
}

const fn fixed(name: &'static str, kind: Kind) -> Key {
    Key { name, kind, changes: false }
}

const fn changing(name: &'static str, kind: Kind) -> Key {
    Key { name, kind, changes: true }
}

const ON_OFF: Kind = Kind::Switch("on", "off");
const AUTO_OFF: Kind = Kind::Switch("auto", "off");

/// All keys but the kernel's flags, in the order in which they are shown.
pub const KEYS: &[Key] = &[
    fixed("ssh_command", Kind::Text),
    fixed("ssh_config", Kind::Path),
    fixed("ssh_option", Kind::List),
    fixed("gridvfs_command", Kind::Text),
    fixed("bootstrap", Kind::Text),
    fixed("stripes", Kind::Number),
    fixed("linger", Kind::Number),
    fixed("timeout", Kind::Seconds),
    fixed("nfs", Kind::Text),
    fixed("no_proxy", Kind::Flag),
    fixed("mountport", Kind::Number),
    fixed("cred", Kind::Text),
    fixed("key_file", Kind::Path),
    fixed("ro", Kind::Flag),
    fixed("rw", Kind::Flag),
    fixed("allow_other", Kind::Flag),
    fixed("default_permissions", Kind::Flag),
    fixed("nonempty", Kind::Flag),
    fixed("attr_timeout", Kind::Seconds),
    fixed("entry_timeout", Kind::Seconds),
    fixed("negative_timeout", Kind::Seconds),
    fixed("cache", ON_OFF),
    fixed("cache_dir", Kind::Path),
    fixed("cache_size", Kind::Size),
    fixed("cache_banks", Kind::Number),
    fixed("cache_ways", Kind::Number),
    fixed("cache_frame", Kind::Size),
    fixed("cache_share", Kind::Flag),
    fixed("passthrough", AUTO_OFF),
    fixed("kernel_writeback", AUTO_OFF),
    fixed("coherence", Kind::Switch("yes", "no")),
    fixed("settings", Kind::Path),
    changing("write_policy", Kind::Text),
    changing("consistency", Kind::Text),
    changing("at_end", Kind::Text),
    changing("writeback_delay", Kind::Seconds),
    changing("writeback_age", Kind::Seconds),
    changing("dirty_max", Kind::Size),
    changing("rule", Kind::Text),
    changing("rules", Kind::List),
    fixed("metadata", ON_OFF),
    fixed("show_metadata", Kind::Flag),
    fixed("profile", ON_OFF),
    fixed("action", Kind::List),
];

/// Options of the kernel's own, which fusermount3 takes.
pub const KERNEL_FLAGS: &[&str] = &[
    "suid", "nosuid", "dev", "nodev", "exec", "noexec", "atime", "noatime", "sync", "async",
    "dirsync",
];

/// What fstab and sshfs users write that asks for nothing here: it is so anyway, or it is for
/// mount(8) and systemd.
const IGNORED: &[&str] = &[
    "reconnect",
    "auto",
    "noauto",
    "user",
    "users",
    "nouser",
    "owner",
    "nofail",
    "_netdev",
    "defaults",
    "relatime",
    "norelatime",
    "strictatime",
    "diratime",
    "nodiratime",
    "lazytime",
    "nolazytime",
    "iversion",
    "noiversion",
    "group",
    "comment",
    "silent",
    "loud",
];

/// Says whether a key asks for nothing here.
pub fn is_ignored(key: &str) -> bool {
    IGNORED.contains(&key) || key.starts_with("x-") || key.starts_with("X-")
}

/// Finds a key.
pub fn find(name: &str) -> Option<Key> {
    let flag = || KERNEL_FLAGS.iter().find(|flag| **flag == name);
    let key = KEYS.iter().find(|key| key.name == name).copied();
    key.or_else(|| flag().map(|flag| fixed(flag, Kind::Flag)))
}

/// The names of all keys.
pub fn names() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|key| key.name).chain(KERNEL_FLAGS.iter().copied())
}

/// The names of those that may change while the mount lasts.
pub fn changing_names() -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter(|key| key.changes).map(|key| key.name)
}

/// Returns the known name that is most like one that is not known, if any is.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.into_iter().map(|known| (strsim::damerau_levenshtein(name, known), known));
    near.min_by_key(|(distance, _)| *distance)
        .filter(|(distance, known)| *distance <= 3.min(known.len() - 1))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_there_once() {
        let mut all: Vec<&str> = names().chain(IGNORED.iter().copied()).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn the_nearest_is_found() {
        assert_eq!(nearest("strips", names()), Some("stripes"));
        assert_eq!(nearest("write_polcy", names()), Some("write_policy"));
        assert_eq!(nearest("zzzzzzzzzz", names()), None);
        assert_eq!(nearest("xy", names()), None, "nothing in common with a short one");
    }
}
