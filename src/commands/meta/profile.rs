//! Working sets from what `gridvfs profile stop` has recorded, of one file or several.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use gridvfs_metadata::format::WorkingSet;
use serde_json::Value;

use crate::paths;
use crate::report::bytes_text;

/// Bytes of a profile at most: the 65,536 ranges of a file take 5 MiB.
const BYTES_MAX: u64 = 64 << 20;

/// See the module's description.
pub struct Profile {
    place: PathBuf,
    /// Each with its path from the root of the mount; without one it is of any file.
    sets: Vec<(Option<PathBuf>, WorkingSet)>,
}

impl Profile {
    /// Reads it: `{"files": [{"path", "runs", "ranges"}, …]}`, or one such file alone.
    pub fn read(place: &Path) -> Result<Self> {
        let context = || format!("profile {}", place.display());
        let mut text = String::new();
        let opened = std::fs::File::open(place).with_context(context)?;
        opened.take(BYTES_MAX + 1).read_to_string(&mut text).with_context(context)?;
        if text.len() as u64 > BYTES_MAX {
            bail!("{}: more than {} are no profile", context(), bytes_text(BYTES_MAX));
        }
        let value: Value = serde_json::from_str(&text).with_context(context)?;
        let files = match &value["files"] {
            Value::Null => std::slice::from_ref(&value),
            files => files.as_array().with_context(context)?,
        };
        let sets = files.iter().map(|file| {
            let path = match &file["path"] {
                Value::Null => None,
                path => Some(PathBuf::from(OsStr::from_bytes(&paths::from_value(path)?))),
            };
            Ok((path, serde_json::from_value(file.clone())?))
        });
        let sets = sets.collect::<Result<_>>().with_context(context)?;
        Ok(Self { place: place.into(), sets })
    }

    /// Returns the working set of a file: of those whose paths end its own, that of the longest.
    pub fn of(&self, file: &Path) -> Result<&WorkingSet> {
        let whole =
            file.canonicalize().with_context(|| format!("cannot find {}", file.display()))?;
        let length = |path: &Option<PathBuf>| path.as_ref().map_or(0, |path| path.iter().count());
        let fits = |path: &Option<PathBuf>| path.as_ref().is_none_or(|path| whole.ends_with(path));
        let fitting = self.sets.iter().filter(|(path, _)| fits(path));
        match fitting.max_by_key(|(path, _)| length(path)) {
            Some((_, set)) => Ok(set),
            None => {
                let known: Vec<_> =
                    self.sets.iter().filter_map(|(path, _)| path.as_ref()).collect();
                let known: Vec<_> = known.iter().map(|path| path.display().to_string()).collect();
                let (place, known) = (self.place.display(), known.join(", "));
                bail!("profile {place} says nothing of {}, but of: {known}", whole.display())
            }
        }
    }
}
