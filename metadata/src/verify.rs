//! Compares a metadata file with the file that it speaks of: its version, every block that is said
//! to be zero, every hash.

use std::path::Path;

use crate::build::{BuildError, Place, Progress, ScanError, Subject, Visit, is_zero, scan};
use crate::format::{Metadata, zero_hash};

/// Runs of wrong blocks that a thread remembers; of more it only knows how many blocks they are.
const RUNS_MAX: usize = 1024;

/// What of the metadata is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A block is said to be zero, and is not.
    Zero,
    /// A block has another hash.
    Hash,
}

/// The first range of which something wrong is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongRange {
    /// Its first byte.
    pub offset: u64,
    /// Bytes: all the blocks that follow and of which the same is wrong.
    pub length: u64,
    /// What is said.
    pub claim: Claim,
}

/// What a comparison showed.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What the metadata file says.
    pub metadata: Metadata,
    /// It speaks of the file as it is now. If not, nothing else was compared.
    pub current: bool,
    /// Blocks that are said to be zero and are not.
    pub wrong_zeros: u64,
    /// Blocks that are not said to be zero and have another hash.
    pub wrong_hashes: u64,
    /// The first that is wrong.
    pub first_wrong: Option<WrongRange>,
}

impl Verdict {
    /// Tells whether all that the metadata says is true.
    pub fn holds(&self) -> bool {
        self.current && self.first_wrong.is_none()
    }
}

/// Compares the metadata file of `path`, or `path` itself if it is one, with the file that it speaks
/// of, which is read with `jobs` threads (0: one for each core). `None`: there is no metadata file.
pub fn verify(
    path: &Path,
    jobs: usize,
    progress: &Progress,
) -> Result<Option<Verdict>, BuildError> {
    let place = Place::of_either(path)?;
    let Some(metadata) = place.read()? else { return Ok(None) };
    let subject = Subject::open(place.subject())?;
    let current = metadata.identity == subject.identity();
    let mut verdict =
        Verdict { metadata, current, wrong_zeros: 0, wrong_hashes: 0, first_wrong: None };
    let says_something = verdict.metadata.zero.is_some() || verdict.metadata.hashes.is_some();
    if !current || !says_something {
        return Ok(Some(verdict));
    }
    let checker = Checker { metadata: &verdict.metadata };
    let (size, block_bytes) = (subject.identity().size, verdict.metadata.block_bytes);
    let found = scan(subject.file(), size, block_bytes, jobs, progress, &checker)
        .map_err(|error| BuildError::scan(error, path))?;
    subject.check_unchanged()?;
    verdict.wrong_zeros = found.iter().map(|wrong| wrong.zeros).sum();
    verdict.wrong_hashes = found.iter().map(|wrong| wrong.hashes).sum();
    verdict.first_wrong = first_of(found, u64::from(block_bytes), size);
    Ok(Some(verdict))
}

fn first_of(found: Vec<Wrong>, block_bytes: u64, size: u64) -> Option<WrongRange> {
    let mut runs: Vec<Run> = found.into_iter().flat_map(|wrong| wrong.runs).collect();
    runs.sort_unstable_by_key(|run| run.first);
    let mut runs = runs.into_iter();
    let mut first = runs.next()?;
    for next in runs.take_while(|next| next.claim == first.claim) {
        if next.first != first.end {
            break;
        }
        first.end = next.end;
    }
    let offset = first.first * block_bytes;
    let length = size.min(first.end * block_bytes) - offset;
    Some(WrongRange { offset, length, claim: first.claim })
}

/// Blocks from `first` to before `end`.
struct Run {
    first: u64,
    end: u64,
    claim: Claim,
}

/// What one thread found.
#[derive(Default)]
struct Wrong {
    runs: Vec<Run>,
    zeros: u64,
    hashes: u64,
}

impl Wrong {
    fn add(&mut self, block: u64, claim: Claim) {
        match claim {
            Claim::Zero => self.zeros += 1,
            Claim::Hash => self.hashes += 1,
        }
        let known = self.runs.len();
        match self.runs.last_mut() {
            Some(run) if run.end == block && run.claim == claim => run.end += 1,
            _ if known < RUNS_MAX => {
                self.runs.push(Run { first: block, end: block + 1, claim });
            }
            _ => {}
        }
    }
}

struct Checker<'a> {
    metadata: &'a Metadata,
}

impl Checker<'_> {
    /// Compares one block; `bytes` if it is not zero.
    fn check(&self, wrong: &mut Wrong, block: u64, length: u32, bytes: Option<&[u8]>) {
        let Metadata { zero, hashes, .. } = self.metadata;
        if zero.as_ref().is_some_and(|zero| zero.is_zero(block)) {
            if bytes.is_some() {
                wrong.add(block, Claim::Zero);
            }
            return;
        }
        let Some(hashes) = hashes else { return };
        let hash = bytes.map_or_else(|| zero_hash(length), |b| *blake3::hash(b).as_bytes());
        if hashes.get(block) != Some(hash) {
            wrong.add(block, Claim::Hash);
        }
    }
}

impl Visit for Checker<'_> {
    type Found = Wrong;

    fn hole(&self, wrong: &mut Wrong, first: u64, blocks: u64) {
        let block_bytes = u64::from(self.metadata.block_bytes);
        for block in first..first + blocks {
            let length = block_bytes.min(self.metadata.identity.size - block * block_bytes);
            self.check(wrong, block, length as u32, None);
        }
    }

    fn data(&self, wrong: &mut Wrong, first: u64, bytes: &[u8]) -> Result<(), ScanError> {
        let blocks = bytes.chunks(self.metadata.block_bytes as usize);
        for (block, bytes) in (first..).zip(blocks) {
            let content = (!is_zero(bytes)).then_some(bytes);
            self.check(wrong, block, bytes.len() as u32, content);
        }
        Ok(())
    }
}
