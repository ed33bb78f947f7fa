//! Which parts are read for, and which are kept.

use super::{BuildError, BuildOptions};
use crate::format::{Identity, Metadata, block_bytes_for, blocks_of};

/// What is to be done.
pub struct Plan {
    /// A zero map is made of what is read.
    pub zero: bool,
    /// Hashes are.
    pub hashes: bool,
    /// The bytes of a block of either.
    pub block_bytes: u32,
    /// Of the metadata that there is: it is of this version of the file.
    same: bool,
}

impl Plan {
    pub fn new(
        identity: Identity,
        earlier: Option<&Metadata>,
        options: &BuildOptions,
    ) -> Result<Self, BuildError> {
        let same = earlier.is_some_and(|earlier| earlier.identity == identity);
        let had_zero = earlier.is_some_and(|earlier| earlier.zero.is_some());
        let had_hashes = earlier.is_some_and(|earlier| earlier.hashes.is_some());
        let block_bytes = options
            .block_bytes
            .or_else(|| earlier.filter(|_| had_zero || had_hashes).and_then(|e| chosen(e, same)))
            .unwrap_or_else(|| block_bytes_for(identity.size));
        let useless = !same || earlier.is_some_and(|earlier| earlier.block_bytes != block_bytes);
        let hashes = options.hashes || (had_hashes && useless);
        // When the file is read anyway, its zeros cost nothing more.
        let zero = options.zero || (had_zero && (useless || hashes));
        if zero || hashes {
            blocks_of(block_bytes, identity.size).map_err(BuildError::Unfit)?;
        }
        Ok(Self { zero, hashes, block_bytes, same })
    }

    /// Tells whether the file is to be read.
    pub fn reads(&self) -> bool {
        self.zero || self.hashes
    }

    /// Returns what stays of the metadata that there is.
    pub fn kept(&self, identity: Identity, earlier: Option<Metadata>) -> Metadata {
        let mut kept = Metadata::new(identity, self.block_bytes);
        let Some(earlier) = earlier else { return kept };
        kept.actions = earlier.actions;
        kept.working_set = earlier.working_set.map(|set| set.tidied(identity.size));
        if self.same && earlier.block_bytes == self.block_bytes {
            kept.zero = earlier.zero;
            kept.hashes = earlier.hashes;
        }
        kept
    }
}

/// Returns the size of blocks that goes on to be used: that of the same version of the file, or one
/// that somebody chose for an earlier one.
fn chosen(earlier: &Metadata, same: bool) -> Option<u32> {
    let usual = earlier.block_bytes == block_bytes_for(earlier.identity.size);
    (same || !usual).then_some(earlier.block_bytes)
}
