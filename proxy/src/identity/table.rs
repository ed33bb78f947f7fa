//! A table of identities (the paper's section 3.2): which user and group of the client's side is
//! which on the files' side.

use std::fmt;
use std::str::FromStr;

use gridvfs_vfs::{Caller, Status};
use serde::{Deserialize, Serialize};

use super::NOBODY;

/// The most ranges of a table.
const RANGES_MAX: usize = 256;

/// A table as it is written down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableConfig {
    /// Ranges of users: `1000-1999:51000` or `1000:51000`; the client's numbers come first.
    pub map_uid: Vec<String>,
    /// Ranges of groups.
    pub map_gid: Vec<String>,
    /// Who the table does not give acts as this user and group; `None`: is refused.
    pub squash_to: Option<(u32, u32)>,
    /// The table may give the files' root.
    pub allow_root: bool,
}

/// Why a table cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Not a range.
    #[error("{0:?} is no range: FIRST[-LAST]:FIRST is expected, as in 1000-1999:51000")]
    Range(String),
    /// Two ranges have an identity in common.
    #[error("{kind} {first} and {second} overlap: both have {id} on the {side} side")]
    Overlap {
        /// `map_uid` or `map_gid`.
        kind: &'static str,
        /// One range.
        first: String,
        /// The other.
        second: String,
        /// What they have in common.
        id: u32,
        /// On which side.
        side: &'static str,
    },
    /// Root would be given.
    #[error(
        "{0} {1} would let clients act as root (0) there; allow_root = true says that it is meant"
    )]
    Root(&'static str, String),
    /// Too much.
    #[error("more than {RANGES_MAX} ranges")]
    TooMany,
}

/// A range of identities and what they are on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    client: u32,
    file: u32,
    /// The last one's distance from the first.
    last: u32,
}

impl FromStr for Range {
    type Err = TableError;

    fn from_str(text: &str) -> Result<Self, TableError> {
        let wrong = || TableError::Range(text.into());
        let number = |text: &str| match text.parse::<u32>() {
            // The last one means "none" to chown(2).
            Ok(number) if number < u32::MAX => Ok(number),
            _ => Err(wrong()),
        };
        let (client, file) = text.split_once(':').ok_or_else(wrong)?;
        let (first, last) = client.split_once('-').unwrap_or((client, client));
        let (first, last) = (number(first)?, number(last)?);
        let last = last.checked_sub(first).ok_or_else(wrong)?;
        let file = number(file)?;
        file.checked_add(last).filter(|end| *end < u32::MAX).ok_or_else(wrong)?;
        Ok(Self { client: first, file, last })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.last {
            0 => write!(f, "{}:{}", self.client, self.file),
            last => write!(f, "{}-{}:{}", self.client, self.client + last, self.file),
        }
    }
}

/// Ranges that do not overlap on either side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ranges(Vec<Range>);

impl Ranges {
    fn new(texts: &[String], kind: &'static str, allow_root: bool) -> Result<Self, TableError> {
        if texts.len() > RANGES_MAX {
            return Err(TableError::TooMany);
        }
        let ranges: Vec<Range> = texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        for (at, first) in ranges.iter().enumerate() {
            if first.file == 0 && !allow_root {
                return Err(TableError::Root(kind, first.to_string()));
            }
            for second in &ranges[at + 1..] {
                let common = |a: u32, b: u32| {
                    let (start, end) = (a.max(b), (a + first.last).min(b + second.last));
                    (start <= end).then_some(start)
                };
                let client = common(first.client, second.client).map(|id| (id, "client's"));
                let file = common(first.file, second.file).map(|id| (id, "files'"));
                if let Some((id, side)) = client.or(file) {
                    let (first, second) = (first.to_string(), second.to_string());
                    return Err(TableError::Overlap { kind, first, second, id, side });
                }
            }
        }
        Ok(Self(ranges))
    }

    fn to_file(&self, id: u32) -> Option<u32> {
        let at = |range: &Range| id.checked_sub(range.client).filter(|at| *at <= range.last);
        self.0.iter().find_map(|range| Some(range.file + at(range)?))
    }

    fn to_client(&self, id: u32) -> Option<u32> {
        let at = |range: &Range| id.checked_sub(range.file).filter(|at| *at <= range.last);
        self.0.iter().find_map(|range| Some(range.client + at(range)?))
    }
}

/// See the module's description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityTable {
    uids: Ranges,
    gids: Ranges,
    squash_to: Option<(u32, u32)>,
}

impl IdentityTable {
    /// Makes a table of what is written down.
    pub fn new(config: &TableConfig) -> Result<Self, TableError> {
        let root = config.allow_root;
        if let Some((uid, gid)) = config.squash_to
            && (uid == 0 || gid == 0)
            && !root
        {
            return Err(TableError::Root("squash_to", format!("{uid}:{gid}")));
        }
        Ok(Self {
            uids: Ranges::new(&config.map_uid, "map_uid", root)?,
            gids: Ranges::new(&config.map_gid, "map_gid", root)?,
            squash_to: config.squash_to,
        })
    }

    /// Says who acts for a caller. Supplementary groups that the table does not give are left out:
    /// they give no rights; as many as AUTH_SYS carries are kept.
    pub fn caller(&self, caller: &Caller) -> Result<Caller, Status> {
        let groups = caller.groups.iter().filter_map(|gid| self.gids.to_file(*gid));
        let groups = groups.take(Caller::GROUPS_MAX).collect();
        match (self.uids.to_file(caller.uid), self.gids.to_file(caller.gid), self.squash_to) {
            (Some(uid), Some(gid), _) => Ok(Caller { uid, gid, groups }),
            (Some(uid), None, Some((_, gid))) => Ok(Caller { uid, gid, groups }),
            (None, _, Some((uid, gid))) => Ok(Caller { uid, gid, groups: Vec::new() }),
            (_, _, None) => Err(Status::ACCES),
        }
    }

    /// Returns the user by which an owner on the files' side is shown.
    pub fn shown_uid(&self, uid: u32) -> u32 {
        self.uids.to_client(uid).unwrap_or(NOBODY)
    }

    /// The same for a group.
    pub fn shown_gid(&self, gid: u32) -> u32 {
        self.gids.to_client(gid).unwrap_or(NOBODY)
    }

    /// Returns the user that a file is to be given to. Nobody is squashed here: a file would have
    /// another owner than was asked for.
    pub fn given_uid(&self, uid: u32) -> Result<u32, Status> {
        self.uids.to_file(uid).ok_or(Status::PERM)
    }

    /// The same for a group.
    pub fn given_gid(&self, gid: u32) -> Result<u32, Status> {
        self.gids.to_file(gid).ok_or(Status::PERM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(uids: &[&str], gids: &[&str]) -> TableConfig {
        let texts = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect();
        TableConfig { map_uid: texts(uids), map_gid: texts(gids), ..TableConfig::default() }
    }

    fn caller(uid: u32, gid: u32, groups: &[u32]) -> Caller {
        Caller { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn who_is_given_acts_and_is_shown() {
        let config = config(&["1000-1999:51000", "7:70"], &["100:500", "200-209:600"]);
        let table = IdentityTable::new(&config).expect("good");
        let acting = table.caller(&caller(1001, 100, &[205, 999, 200])).expect("given");
        assert_eq!(acting, caller(51001, 500, &[605, 600]));
        assert_eq!((table.shown_uid(51999), table.shown_uid(52000)), (1999, NOBODY));
        assert_eq!((table.shown_gid(500), table.shown_gid(100)), (100, NOBODY));
        assert_eq!(table.given_uid(7), Ok(70));
        assert_eq!(table.given_uid(51000), Err(Status::PERM));
        let many: Vec<u32> = std::iter::repeat_n(200, 40).collect();
        assert_eq!(table.caller(&caller(7, 100, &many)).expect("given").groups.len(), 16);
    }

    #[test]
    fn who_is_not_given_is_refused_or_squashed() {
        let mut config = config(&["1000:51000"], &["100:500"]);
        let table = IdentityTable::new(&config).expect("good");
        for (uid, gid) in [(0, 100), (1001, 100), (999, 100), (1000, 0), (51000, 500)] {
            assert_eq!(table.caller(&caller(uid, gid, &[])), Err(Status::ACCES), "{uid}:{gid}");
        }
        config.squash_to = Some((65534, 65533));
        let table = IdentityTable::new(&config).expect("good");
        assert_eq!(table.caller(&caller(0, 0, &[100])), Ok(caller(65534, 65533, &[])));
        assert_eq!(table.caller(&caller(1000, 0, &[100])), Ok(caller(51000, 65533, &[500])));
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (uids, words) in [
            (&["1000"][..], "no range"),
            (&["5-3:9"], "no range"),
            (&["0-4294967295:1"], "no range"),
            (&["1-2:4294967294"], "no range"),
            (&["1000-1999:51000", "1500:7"], "1000-1999:51000 and 1500:7 overlap: both have 1500"),
            (&["1-9:50", "20-29:58"], "both have 58 on the files' side"),
            (&["1000:0"], "act as root"),
        ] {
            let error = IdentityTable::new(&config(uids, &[])).expect_err("bad").to_string();
            assert!(error.contains(words), "{error}");
        }
        let meant = TableConfig { allow_root: true, ..config(&["0:0"], &["0:0"]) };
        assert!(IdentityTable::new(&meant).is_ok());
        let squash = TableConfig { squash_to: Some((0, 1)), ..TableConfig::default() };
        assert!(IdentityTable::new(&squash).is_err());
        let many = vec!["1:1"; RANGES_MAX + 1];
        assert_eq!(IdentityTable::new(&config(&many, &[])), Err(TableError::TooMany));
    }

    proptest! {
        /// Whatever the ranges: whom the table gives comes back as himself, nobody else comes back
        /// as him, and nobody acts who is not in a range.
        #[test]
        fn identities_make_the_round_trip(
            ranges in prop::collection::vec((0u32..5000, 1u32..5000, 0u32..600), 0..12),
            ids in prop::collection::vec(0u32..6000, 1..64),
        ) {
            let mut config = TableConfig::default();
            for (client, file, last) in ranges {
                config.map_uid.push(format!("{client}-{}:{file}", client + last));
                if IdentityTable::new(&config).is_err() {
                    config.map_uid.pop();
                }
            }
            config.map_gid.clone_from(&config.map_uid);
            let table = IdentityTable::new(&config).expect("no overlaps");
            for id in ids {
                match table.caller(&caller(id, id, &[id])) {
                    Ok(acting) => {
                        prop_assert_eq!(table.shown_uid(acting.uid), id);
                        prop_assert_eq!(table.shown_gid(acting.groups[0]), id);
                        prop_assert_eq!(table.given_uid(id), Ok(acting.uid));
                        prop_assert!(acting.uid != 0);
                    }
                    Err(error) => {
                        prop_assert_eq!(error, Status::ACCES);
                        prop_assert_eq!(table.given_gid(id), Err(Status::PERM));
                    }
                }
                // The other way round, with numbers of the files' side.
                let shown = table.shown_uid(id);
                prop_assert!(shown == NOBODY || table.given_uid(shown) == Ok(id));
            }
        }
    }
}
