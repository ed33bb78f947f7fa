//! Which files of a watched directory get metadata, and of what.

use std::path::Path;

use anyhow::{Context, Result};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use gridvfs_metadata::build::{BuildError, BuildOptions, Place};
use gridvfs_metadata::format::FormatError;

use super::tree::Seen;
use crate::cli::MetaBuildArgs;
use crate::commands::meta::build;

/// Without a pattern, files of so many bytes get metadata: below that, a file takes one or two
/// round trips as it is.
const SIZE_MIN: u64 = 1 << 20;

/// What was asked for on the command line.
pub struct Wanted {
    patterns: Option<GlobSet>,
    options: BuildOptions,
    /// No part was named: files that have metadata keep the parts that they have.
    usual: bool,
}

impl Wanted {
    pub fn new(args: &MetaBuildArgs) -> Result<Self> {
        let mut patterns = GlobSetBuilder::new();
        for pattern in &args.patterns {
            // A pattern without a slash is one of names, in any directory.
            let whole = match pattern.contains('/') {
                true => pattern.trim_start_matches('/').to_string(),
                false => format!("**/{pattern}"),
            };
            let glob = GlobBuilder::new(&whole).literal_separator(true).build();
            patterns.add(glob.with_context(|| format!("--pattern {pattern}"))?);
        }
        let patterns = patterns.build().context("--pattern")?;
        Ok(Self {
            patterns: (!args.patterns.is_empty()).then_some(patterns),
            options: build::options(args)?,
            usual: !args.zero && !args.hash && args.actions.is_empty(),
        })
    }

    /// Tells whether a file may be one to build metadata of; neither name nor content is looked at.
    pub fn may_want(&self, seen: &Seen) -> bool {
        seen.has_metadata() || self.patterns.is_some() || seen.size() >= SIZE_MIN
    }

    fn matches(&self, root: &Path, path: &Path, seen: &Seen) -> bool {
        match &self.patterns {
            Some(patterns) => patterns.is_match(path.strip_prefix(root).unwrap_or(path)),
            None => seen.size() >= SIZE_MIN,
        }
    }

    /// Returns what is to be built of a file; `None`: nothing.
    pub fn options(
        &self,
        root: &Path,
        path: &Path,
        seen: &Seen,
    ) -> Result<Option<BuildOptions>, BuildError> {
        let place = Place::of(path)?;
        let earlier = match place.read() {
            Ok(earlier) => earlier,
            Err(BuildError::Format { error, .. }) if !matches!(error, FormatError::Version(_)) => {
                None
            }
            Err(error) => return Err(error),
        };
        let Some(earlier) = earlier else {
            let wanted = seen.has_metadata() || self.matches(root, path, seen);
            return Ok(wanted.then(|| self.options.clone()));
        };
        let mut options = self.options.clone();
        if self.usual {
            (options.zero, options.hashes) = (false, false);
        }
        let lacks = (options.zero && earlier.zero.is_none())
            || (options.hashes && earlier.hashes.is_none())
            || options.actions.as_ref().is_some_and(|actions| *actions != earlier.actions)
            || options.block_bytes.is_some_and(|bytes| bytes != earlier.block_bytes);
        let current = place.identity()? == Some(earlier.identity);
        Ok((lacks || !current).then_some(options))
    }
}
