//! The settings of a session's disk cache, what each is by default, and why.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use globset::{GlobBuilder, GlobMatcher};

use super::left::Left;
use crate::store::Geometry;

/// What becomes of a write (paper, 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Writes are refused (EROFS).
    ReadOnly,
    /// `close` returns when the state server has the data, `fsync` when it has it on disk.
    WriteThrough,
    /// `close` returns at once, `fsync` when the data is on this machine's disk; it is sent later.
    WriteBack,
}

/// Who may change the files while the session lasts (paper, 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// This session alone: attributes and names stay valid, over remounts too, until told otherwise.
    Dedicated,
    /// Anybody: a file is revalidated when it is opened, and after a time, as NFS clients do.
    Shared,
    /// Nobody: what was seen since the session began stays valid.
    ReadOnlyShared,
}

impl Consistency {
    /// Says whether what is known is believed without asking.
    pub fn trusts(self) -> bool {
        self != Self::Shared
    }
}

/// What becomes of unsent data at the end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtEnd {
    /// It is written back; the cache is kept.
    WriteBack,
    /// It is written back, then the cache is emptied.
    Flush,
    /// It stays for the next mount.
    Preserve,
}

/// How a file's blocks are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheKind {
    /// Those that were read.
    Block,
    /// All of them: the first read has the rest fetched in the background.
    Whole,
    /// None.
    None,
}

macro_rules! words {
    ($type:ident: $($word:literal => $variant:ident),* $(,)?) => {
        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(format!("{text:?} is none of {}", [$($word),*].join(", "))),
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),* })
            }
        }
    };
}

words!(Policy: "read-only" => ReadOnly, "write-through" => WriteThrough, "write-back" => WriteBack);
words!(Consistency: "dedicated" => Dedicated, "shared" => Shared,
    "read-only-shared" => ReadOnlyShared);
words!(AtEnd: "write-back" => WriteBack, "flush" => Flush, "preserve" => Preserve);
words!(CacheKind: "block" => Block, "whole" => Whole, "none" => None);

/// What holds for the files whose path in the mount matches a pattern.
#[derive(Clone, Debug)]
pub struct Rule {
    text: String,
    pattern: GlobMatcher,
    policy: Option<Policy>,
    kind: Option<CacheKind>,
    ahead: Option<bool>,
}

impl FromStr for Rule {
    type Err = String;

    /// `GLOB:WORD[:WORD…]`, where a word is a write policy, a cache kind, `ahead` or `no-ahead`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(':');
        let glob = words.next().unwrap_or_default();
        if glob.is_empty() {
            return Err(format!("rule {text:?}: the pattern is missing"));
        }
        let pattern = GlobBuilder::new(glob.trim_start_matches('/'))
            .literal_separator(true)
            .build()
            .map_err(|error| format!("rule {text:?}: {error}"))?
            .compile_matcher();
        let mut rule = Self { text: text.into(), pattern, policy: None, kind: None, ahead: None };
        let mut count = 0;
        for word in words {
            count += 1;
            if let Ok(policy) = word.parse() {
                rule.policy = Some(policy);
            } else if let Ok(kind) = word.parse() {
                rule.kind = Some(kind);
            } else if word == "ahead" || word == "no-ahead" {
                rule.ahead = Some(word == "ahead");
            } else {
                return Err(format!(
                    "rule {text:?}: {word:?} is no write policy (read-only, write-through, \
                     write-back), cache kind (block, whole, none), ahead or no-ahead"
                ));
            }
        }
        if count == 0 {
            return Err(format!("rule {text:?} says nothing of its files: GLOB:WORD[:WORD…]"));
        }
        Ok(rule)
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// What holds for one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Treatment {
    /// What becomes of its writes.
    pub policy: Policy,
    /// How its blocks are kept.
    pub kind: CacheKind,
    /// Whether it is read ahead of.
    pub ahead: bool,
}

/// Settings that may change while the session runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// For files that no rule names.
    pub policy: Policy,
    /// Who may change the files.
    pub consistency: Consistency,
    /// What becomes of unsent data at the end.
    pub at_end: AtEnd,
    /// The first that matches a file's path counts.
    pub rules: Vec<Rule>,
    /// Write-back: a file that was not written for this long is sent. Long enough for what is
    /// deleted or overwritten soon never to travel, short enough for an idle link to be used.
    pub writeback_delay: Duration,
    /// Write-back: data older than this is sent though its file is still being written.
    pub writeback_age_max: Duration,
    /// The most unsent data; writers wait beyond it. Sending begins in earnest at half of it.
    pub dirty_max_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: Policy::WriteThrough,
            consistency: Consistency::Shared,
            at_end: AtEnd::WriteBack,
            rules: Vec::new(),
            writeback_delay: Duration::from_secs(5),
            writeback_age_max: Duration::from_secs(30),
            dirty_max_bytes: 4 << 30,
        }
    }
}

impl Settings {
    /// Returns what holds for a file at a path (from the mount's root, no leading slash).
    pub fn treatment(&self, path: Option<&[u8]>) -> Treatment {
        use std::os::unix::ffi::OsStrExt;
        let path = path.map(|path| std::path::Path::new(std::ffi::OsStr::from_bytes(path)));
        let rule = path.and_then(|path| self.rules.iter().find(|r| r.pattern.is_match(path)));
        let policy = match (self.policy, rule.and_then(|rule| rule.policy)) {
            // A session that only reads has no files that are written.
            (Policy::ReadOnly, _) | (_, None) => self.policy,
            (_, Some(policy)) => policy,
        };
        Treatment {
            policy,
            kind: rule.and_then(|rule| rule.kind).unwrap_or(CacheKind::Block),
            ahead: rule.and_then(|rule| rule.ahead).unwrap_or(true),
        }
    }
}

/// Settings that hold for the session's whole life.
#[derive(Debug)]
pub struct DiskOptions {
    /// The directory of this cache, which exists and belongs to this session (or, with `shared`,
    /// to the sessions that share it).
    pub dir: PathBuf,
    /// The block store's size and shape.
    pub geometry: Geometry,
    /// Other sessions use the same cache: it is read-only for all of them.
    pub shared: bool,
    /// What the directory's journal holds, if somebody has read it already; `None`: it is read.
    pub left: Option<Left>,
    /// The size up to which a file is fetched whole. The price of a round trip at 32 ms and 1 Gbit/s
    /// is 3.8 MB of transfer, so that 64 KiB more or less do not matter.
    pub small_max_bytes: u64,
    /// What may change.
    pub settings: Settings,
    /// Changes of names may be acknowledged here, where the settings let them. Files that are made
    /// then have handles of ours, which a cache that is deleted forgets: not for the clients of a
    /// standing proxy, who keep them.
    pub defer_names: bool,
    /// A session whose files others may change is to hear of changes, and to believe what it knows.
    pub coherence: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_matches_counts() {
        let rule = |text: &str| text.parse::<Rule>().expect("good");
        let settings = Settings {
            rules: vec![rule("*.iso:read-only"), rule("vm/**:write-back:whole:no-ahead")],
            ..Settings::default()
        };
        let of = |path: &str| settings.treatment(Some(path.as_bytes()));
        assert_eq!(of("a.iso").policy, Policy::ReadOnly);
        assert_eq!(of("x/a.iso").policy, Policy::WriteThrough, "* stays within a directory");
        assert_eq!(
            of("vm/1/a.iso"),
            Treatment { policy: Policy::WriteBack, kind: CacheKind::Whole, ahead: false }
        );
        assert_eq!(settings.treatment(None).policy, Policy::WriteThrough);
        let closed = Settings { policy: Policy::ReadOnly, ..settings };
        assert_eq!(closed.treatment(Some(b"vm/1")).policy, Policy::ReadOnly);
    }

    #[test]
    fn bad_rules_are_named() {
        for (text, words) in
            [("", "missing"), ("*.x", "says nothing"), ("*.x:soon", "soon"), ("[:block", "rule")]
        {
            let error = text.parse::<Rule>().expect_err(text);
            assert!(error.contains(words), "{error}");
        }
    }
}
