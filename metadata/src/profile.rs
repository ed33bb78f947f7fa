//! What a session touches of its files, in the order first touched: the working set of the next
//! one (the paper's knowledge from past behaviours).

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::format::{Touched, WorkingSet};

/// By what pieces it is recorded what was touched, in bytes: what a miss fetches at least.
pub const GRAIN_BYTES: u64 = 32 << 10;
/// The most pieces of a file that are recorded.
const GRAINS_MAX: usize = 1 << 16;
/// The most files of which a profile is kept; the one used longest ago makes room.
const FILES_MAX: usize = 1024;
/// No profile is longer, in bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Records what is touched of one file.
pub struct Recorder {
    size: u64,
    seen: Vec<AtomicU64>,
    order: Mutex<Vec<u32>>,
    count: AtomicUsize,
}

impl Recorder {
    /// For a file of `size` bytes.
    pub fn new(size: u64) -> Self {
        let grains = size.div_ceil(GRAIN_BYTES).min(1 << 32);
        let words = if size < crate::layer::SIZE_MIN { 0 } else { grains.div_ceil(64) };
        Self {
            size,
            seen: (0..words).map(|_| AtomicU64::new(0)).collect(),
            order: Mutex::default(),
            count: AtomicUsize::new(0),
        }
    }

    /// Notes a read.
    pub fn touched(&self, offset: u64, length: u64) {
        let end = offset.saturating_add(length).min(self.size);
        for grain in offset / GRAIN_BYTES..end.div_ceil(GRAIN_BYTES) {
            let Some(word) = self.seen.get((grain / 64) as usize) else { return };
            let bit = 1 << (grain % 64);
            if word.load(Ordering::Relaxed) & bit != 0
                || word.fetch_or(bit, Ordering::Relaxed) & bit != 0
            {
                continue;
            }
            let mut order = self.order.lock();
            if order.len() < GRAINS_MAX {
                order.push(grain as u32);
                self.count.store(order.len(), Ordering::Relaxed);
            }
        }
    }

    /// The size of the file, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Nothing was touched yet.
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Begins anew.
    pub fn clear(&self) {
        let mut order = self.order.lock();
        order.clear();
        self.seen.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        self.count.store(0, Ordering::Relaxed);
    }

    /// Returns what was touched: neighbours that were touched one after the other are one range.
    pub fn working_set(&self) -> WorkingSet {
        let order = self.order.lock();
        let mut ranges: Vec<Touched> = Vec::new();
        for grain in order.iter() {
            let offset = u64::from(*grain) * GRAIN_BYTES;
            let length = GRAIN_BYTES.min(self.size - offset);
            match ranges.last_mut() {
                Some(last) if last.offset + last.length == offset => last.length += length,
                _ => ranges.push(Touched { offset, length, seen: 1 }),
            }
        }
        WorkingSet { runs: 1, ranges }
    }
}

/// A profile as it is kept: JSON, for `gridvfs meta build --from-profile`, too.
#[derive(Serialize, Deserialize)]
struct Kept {
    path: String,
    size: u64,
    runs: u32,
    ranges: Vec<KeptRange>,
}

#[derive(Serialize, Deserialize)]
struct KeptRange {
    offset: u64,
    length: u64,
    seen: u32,
}

/// The profiles of a session's files, in a directory of its cache.
pub struct Profiles {
    dir: PathBuf,
}

impl Profiles {
    /// Uses `dir`, which need not be there.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn file(&self, path: &[u8]) -> PathBuf {
        let name = blake3::hash(path).to_hex();
        self.dir.join(format!("{}.json", &name[..32]))
    }

    /// Returns what earlier sessions touched of a file, if it had about the size that it has now.
    pub fn load(&self, path: &[u8], size: u64) -> Option<WorkingSet> {
        let kept = read(&self.file(path))?;
        if kept.path != String::from_utf8_lossy(path) {
            return None;
        }
        let mut last = 0;
        let ranges = kept.ranges.into_iter().filter_map(|range| {
            last = range.offset.checked_add(range.length)?;
            (range.length > 0 && last <= size).then_some(Touched {
                offset: range.offset,
                length: range.length,
                seen: range.seen,
            })
        });
        let set = WorkingSet { runs: kept.runs, ranges: ranges.take(GRAINS_MAX).collect() };
        (!set.ranges.is_empty()).then_some(set)
    }

    /// Keeps what was touched of a file, merged with what was kept before.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&self, path: &[u8], size: u64, newer: &WorkingSet) -> io::Result<PathBuf> {
        let set = match self.load(path, size) {
            Some(mut set) => {
                set.merge(newer);
                set
            }
            None => newer.clone(),
        };
        let kept = Kept {
            path: String::from_utf8_lossy(path).into(),
            size,
            runs: set.runs,
            ranges: set
                .ranges
                .iter()
                .map(|range| KeptRange {
                    offset: range.offset,
                    length: range.length,
                    seen: range.seen,
                })
                .collect(),
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let file = self.file(path);
        let draft = file.with_extension("draft");
        let mut options = fs::File::options();
        let mut to = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        to.write_all(&serde_json::to_vec(&kept)?)?;
        fs::rename(&draft, &file)?;
        self.make_room();
        Ok(file)
    }

    fn make_room(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut found: Vec<_> = entries
            .flatten()
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        found.sort();
        let excess = found.len().saturating_sub(FILES_MAX);
        for (_, path) in &found[..excess] {
            let _ = fs::remove_file(path);
        }
    }
}

fn read(file: &Path) -> Option<Kept> {
    if fs::metadata(file).ok()?.len() > FILE_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_touched_is_kept_in_order() {
        let recorder = Recorder::new(10 << 20);
        assert!(recorder.is_empty());
        recorder.touched(5 << 20, 1);
        recorder.touched((5 << 20) + GRAIN_BYTES, 10);
        recorder.touched(0, 4096);
        recorder.touched(5 << 20, 4096);
        recorder.touched((10 << 20) - 1, 1 << 20);
        recorder.touched(u64::MAX - 1, 100);
        let set = recorder.working_set();
        let found: Vec<_> = set.ranges.iter().map(|range| (range.offset, range.length)).collect();
        let last = (10 << 20) - GRAIN_BYTES;
        assert_eq!(found, [(5 << 20, 2 * GRAIN_BYTES), (0, GRAIN_BYTES), (last, GRAIN_BYTES)]);
        recorder.clear();
        assert!(recorder.is_empty() && recorder.working_set().ranges.is_empty());
    }

    #[test]
    fn profiles_are_merged_and_bad_ones_ignored() {
        let folder = tempfile::tempdir().expect("folder");
        let profiles = Profiles::new(folder.path().join("profiles"));
        assert!(profiles.load(b"vm/disk", 1 << 20).is_none());
        let set = |offset| WorkingSet {
            runs: 1,
            ranges: vec![Touched { offset, length: GRAIN_BYTES, seen: 1 }],
        };
        profiles.save(b"vm/disk", 1 << 20, &set(0)).expect("saved");
        let file = profiles.save(b"vm/disk", 1 << 20, &set(GRAIN_BYTES)).expect("saved");
        let both = profiles.load(b"vm/disk", 1 << 20).expect("kept");
        assert_eq!(both.runs, 2);
        assert_eq!(both.ranges.iter().map(|range| range.length).sum::<u64>(), 2 * GRAIN_BYTES);
        assert!(profiles.load(b"vm/disk", 100).is_none(), "nothing of it is within the file");
        for junk in [
            "",
            "{",
            "[]",
            r#"{"path":"vm/disk","size":1,"runs":1,"ranges":[{"offset":18446744073709551615,"length":2,"seen":1}]}"#,
        ] {
            fs::write(&file, junk).expect("written");
            assert!(profiles.load(b"vm/disk", 1 << 20).is_none(), "{junk}");
        }
    }
}
