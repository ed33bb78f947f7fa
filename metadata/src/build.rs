//! The generator: makes the metadata file of a file that this machine can read (paper, section 5:
//! "middleware information", made on the state server beforehand).
//!
//! The file is read once, by several threads, holes not at all. What is zero or hashed is decided
//! from what was read, never taken over from older metadata of another version of the file. A file
//! that changes meanwhile gets no metadata. The metadata file is replaced as a whole or not at all.
//!
//! The file is read, not mapped: a mapping would save a copy, and end the process if the file were
//! cut short under it.

mod collect;
mod error;
mod place;
mod plan;
mod scan;
mod subject;

pub use error::BuildError;
pub use place::Place;
pub use scan::{JOBS_MAX, Progress};

use std::path::{Path, PathBuf};

use crate::format::{
    Action, FormatError, Hashes, METADATA_BYTES_MAX, Metadata, WorkingSet, ZeroMap,
};
use collect::Collector;
use plan::Plan;
pub(crate) use scan::{ScanError, Visit, is_zero, scan};
pub(crate) use subject::Subject;

/// What is to be built.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// The zero map.
    pub zero: bool,
    /// The hashes.
    pub hashes: bool,
    /// Other actions than those that there are; an empty list removes them.
    pub actions: Option<Vec<Action>>,
    /// Another working set than that which there is.
    pub working_set: Option<WorkingSet>,
    /// Bytes of a block; otherwise that of the metadata that there is, or
    /// [`crate::format::block_bytes_for`].
    pub block_bytes: Option<u32>,
    /// How many threads read, at most [`JOBS_MAX`]; 0: one for each core.
    pub jobs: usize,
}

/// What was built.
#[derive(Debug)]
pub struct Built {
    /// All that the metadata file now says.
    pub metadata: Metadata,
    /// The metadata file.
    pub path: PathBuf,
    /// Its size.
    pub metadata_bytes: u64,
    /// How many bytes of the subject were read; holes are not.
    pub read_bytes: u64,
    /// Why an earlier metadata file was of no use and is replaced.
    pub replaced: Option<FormatError>,
}

/// Builds the metadata file of `path`, and writes it.
///
/// Of an earlier metadata file of the same version of the file, the parts that are not built anew
/// stay. Of one of another version, the zero map and the hashes are built anew if there were any;
/// actions stay, and the working set, clipped to the size: where a file is read first is a good
/// guess even when its content has changed, and a wrong guess costs no more than some bytes.
pub fn build(
    path: &Path,
    options: &BuildOptions,
    progress: &Progress,
) -> Result<Built, BuildError> {
    let place = Place::of(path)?;
    let subject = Subject::open(place.subject())?;
    let (earlier, replaced) = match place.read() {
        Ok(earlier) => (earlier, None),
        Err(BuildError::Format { error, path }) => match error {
            FormatError::Version(_) => return Err(BuildError::Format { error, path }),
            error => (None, Some(error)),
        },
        Err(error) => return Err(error),
    };
    let plan = Plan::new(subject.identity(), earlier.as_ref(), options)?;
    let mut metadata = plan.kept(subject.identity(), earlier);
    if let Some(actions) = &options.actions {
        metadata.actions.clone_from(actions);
    }
    if let Some(set) = &options.working_set {
        metadata.working_set = Some(set.tidied(subject.identity().size));
    }
    let mut read_bytes = 0;
    if plan.reads() {
        let collector = Collector::new(plan.block_bytes, plan.hashes);
        let size = subject.identity().size;
        let found =
            scan(subject.file(), size, plan.block_bytes, options.jobs, progress, &collector)
                .map_err(|error| BuildError::scan(error, path))?;
        let (zero, hashes, read) = collector.assemble(size, found)?;
        read_bytes = read;
        take_over(&mut metadata, &plan, zero, hashes);
    }
    subject.check_unchanged()?;
    let bytes = encoded(&metadata)?;
    place.write(&bytes, &subject)?;
    let metadata_bytes = bytes.len() as u64;
    Ok(Built { metadata, path: place.metadata().into(), metadata_bytes, read_bytes, replaced })
}

fn take_over(metadata: &mut Metadata, plan: &Plan, zero: ZeroMap, hashes: Option<Hashes>) {
    if plan.zero {
        metadata.zero = Some(zero);
    }
    if plan.hashes {
        metadata.hashes = hashes;
    }
}

/// Returns the bytes of the metadata file, which have been read back.
fn encoded(metadata: &Metadata) -> Result<Vec<u8>, BuildError> {
    metadata.check().map_err(BuildError::Unfit)?;
    let bytes = metadata.encode();
    if bytes.len() as u64 > METADATA_BYTES_MAX {
        return Err(BuildError::TooLarge);
    }
    match Metadata::decode(&bytes) {
        Ok(_) => Ok(bytes),
        // Of the kept hashes and the zeros just found, one is wrong.
        Err(error) => Err(BuildError::Unfit(error)),
    }
}
