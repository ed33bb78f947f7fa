//! A small owner of a journal, as the disk cache is one, with the server in memory. What it does,
//! and in which order, is what the journal's description asks of an owner.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::*;
use crate::dirty::{Dirty, Extent, Piece};

pub const FILES: u8 = 3;
pub const SPACE: usize = 20_000;

/// The values that a byte may have after a power loss.
#[derive(Clone, Copy, Default)]
pub struct Allowed([u64; 4]);

impl Allowed {
    fn only(value: u8) -> Self {
        let mut allowed = Self::default();
        allowed.add(value);
        allowed
    }

    fn add(&mut self, value: u8) {
        self.0[usize::from(value / 64)] |= 1 << (value % 64);
    }

    fn has(&self, value: u8) -> bool {
        self.0[usize::from(value / 64)] & (1 << (value % 64)) != 0
    }
}

/// A file: what programs see, and what there is of it.
pub struct Held {
    pub local: Vec<u8>,
    pub server: Vec<u8>,
    pub allowed: Vec<Allowed>,
    pub dirty: Dirty,
    pub state: FileState,
}

pub struct Owner {
    pub dir: PathBuf,
    pub journal: Option<Journal>,
    pub files: Vec<Held>,
    /// The segment files as they are on disk for certain.
    pub durable: HashMap<PathBuf, Vec<u8>>,
    pub options: JournalOptions,
}

pub fn images(dir: &Path) -> HashMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect()
}

impl Owner {
    pub fn new(dir: &Path) -> Self {
        let options = JournalOptions { segment_bytes: 16 << 10, verify: false };
        let file = || Held {
            local: vec![0; SPACE],
            server: vec![0; SPACE],
            allowed: vec![Allowed::only(0); SPACE],
            dirty: Dirty::new(),
            state: FileState::default(),
        };
        Self {
            dir: dir.to_owned(),
            journal: Some(reopen(dir, options.clone()).0),
            files: (0..FILES).map(|_| file()).collect(),
            durable: HashMap::new(),
            options,
        }
    }

    fn journal(&self) -> &Journal {
        self.journal.as_ref().unwrap()
    }

    fn append(&mut self, file: u8, record: Record) {
        self.journal().append(&record).unwrap();
        self.files[usize::from(file)].state.apply(&record);
    }

    /// A clean file gets something that the server does not have: what was known before is over.
    fn begin(&mut self, file: u8) {
        let held = &self.files[usize::from(file)];
        if held.dirty.is_empty() && !held.state.is_pending() {
            let base = Base { size: 9, mtime: Time::default(), ctime: Time::default(), key: 3 };
            self.append(file, Record::Base { handle: handle(file), base });
            self.append(file, Record::Path { handle: handle(file), path: b"/x".to_vec() });
        }
    }

    pub fn write(&mut self, file: u8, start: usize, length: usize, value: u8) {
        self.begin(file);
        let epoch = self.files[usize::from(file)].dirty.epoch();
        let header = write(file, start as u64, epoch);
        let (seq, place) = self.journal().append_write(&header, &vec![value; length]).unwrap();
        let held = &mut self.files[usize::from(file)];
        let freed = held.dirty.insert(start as u64, length as u32, seq, place);
        self.journal.as_ref().unwrap().release_all(&freed);
        held.local[start..start + length].fill(value);
        held.allowed[start..start + length].iter_mut().for_each(|allowed| allowed.add(value));
    }

    pub fn times(&mut self, file: u8, seconds: i64) {
        self.begin(file);
        let mtime = (seconds > 0).then_some(Time { seconds, nanoseconds: 1 });
        self.append(file, Record::Times { handle: handle(file), atime: None, mtime });
    }

    pub fn fsync(&mut self, file: u8) {
        self.files[usize::from(file)].dirty.barrier();
        self.sync();
    }

    pub fn sync(&mut self) {
        self.journal().sync().unwrap();
        self.synced();
    }

    fn synced(&mut self) {
        self.durable = images(&self.dir);
        for held in &mut self.files {
            for (allowed, value) in held.allowed.iter_mut().zip(&held.local) {
                *allowed = Allowed::only(*value);
            }
        }
    }

    /// Sends some of the oldest epoch; `stop` leaves after the server has it.
    pub fn send(&mut self, file: u8, from: u64, max_bytes: u64, stop: bool) {
        let held = &self.files[usize::from(file)];
        let extents = held.dirty.oldest(from, max_bytes);
        let Some(up_to_seq) = extents.iter().map(|extent| extent.seq).max() else { return };
        self.append(file, Record::Sending { handle: handle(file), up_to_seq });
        self.sync();
        for extent in &extents {
            let data = self.read(extent);
            let start = extent.start as usize;
            self.files[usize::from(file)].server[start..start + data.len()].copy_from_slice(&data);
        }
        if stop {
            return;
        }
        let held = &self.files[usize::from(file)];
        let sent: u64 = extents.iter().map(|extent| u64::from(extent.len)).sum();
        let (start, end) = if sent == held.dirty.bytes() {
            (0, u64::MAX)
        } else {
            (extents[0].start, extents[extents.len() - 1].end())
        };
        let base = Some(Base { size: 10, mtime: Time::default(), ctime: Time::default(), key: 4 });
        self.append(file, Record::Sent { handle: handle(file), up_to_seq, start, end, base });
        let held = &mut self.files[usize::from(file)];
        let freed = held.dirty.clear_sent(up_to_seq, start, end);
        self.journal.as_ref().unwrap().release_all(&freed);
        self.forget_clean(file);
    }

    fn forget_clean(&mut self, file: u8) {
        let held = &mut self.files[usize::from(file)];
        if held.dirty.is_empty() {
            held.dirty = Dirty::new();
            if !held.state.is_pending() {
                held.state = FileState::default();
            }
        }
    }

    pub fn cut(&mut self, file: u8, size: usize, stop: Option<bool>) {
        self.begin(file);
        let record = Record::CutIntent { handle: handle(file), size: size as u64 };
        self.append(file, record);
        let held = &mut self.files[usize::from(file)];
        held.local[size..].fill(0);
        self.sync();
        if stop == Some(false) {
            return;
        }
        self.files[usize::from(file)].server[size..].fill(0);
        if stop.is_none() {
            self.finish_cut(file, size);
        }
    }

    fn finish_cut(&mut self, file: u8, size: usize) {
        let record = Record::Cut { handle: handle(file), size: size as u64, base: None };
        self.append(file, record);
        let held = &mut self.files[usize::from(file)];
        let freed = held.dirty.truncate(size as u64);
        self.journal.as_ref().unwrap().release_all(&freed);
        held.server[size..].fill(0);
        held.local[size..].fill(0);
        self.forget_clean(file);
    }

    pub fn remove(&mut self, file: u8, stop: Option<bool>) {
        self.begin(file);
        self.append(file, Record::RemoveIntent { handle: handle(file) });
        self.files[usize::from(file)].local.fill(0);
        self.sync();
        if stop == Some(false) {
            return;
        }
        self.files[usize::from(file)].server.fill(0);
        if stop.is_none() {
            self.finish_remove(file);
        }
    }

    fn finish_remove(&mut self, file: u8) {
        self.append(file, Record::Removed { handle: handle(file) });
        let held = &mut self.files[usize::from(file)];
        let freed = held.dirty.clear();
        self.journal.as_ref().unwrap().release_all(&freed);
        held.server.fill(0);
        held.local.fill(0);
        self.forget_clean(file);
    }

    /// Empties the oldest segment.
    pub fn carry_forward(&mut self) {
        let Some(oldest) = self.journal().segments().first().copied() else { return };
        for file in 0..FILES {
            let extents = self.files[usize::from(file)].dirty.in_segment(oldest.number, u64::MAX);
            for (epoch, extent) in extents {
                let data = self.read(&extent);
                let header =
                    WriteHeader { carried: Some(extent.seq), ..write(file, extent.start, epoch) };
                let (seq, place) = self.journal().append_write(&header, &data).unwrap();
                assert_eq!(seq, extent.seq);
                let held = &mut self.files[usize::from(file)];
                let freed = held.dirty.moved(epoch, &extent, place);
                self.journal().release_all(&freed);
            }
        }
    }

    /// Reclaims; the last `undone` of the deletions have not happened when the power fails.
    pub fn make_room(&mut self) {
        self.journal.as_ref().unwrap().make_room().unwrap();
    }

    pub fn reclaim(&mut self, undone: usize) {
        let before = images(&self.dir);
        let (journal, files) = (self.journal(), &self.files);
        journal
            .reclaim(&mut |handle| {
                let file = usize::from(handle.as_bytes()[0]);
                if !files[file].dirty.is_empty() || files[file].state.is_pending() {
                    for record in files[file].state.records(handle) {
                        journal.append(&record)?;
                    }
                }
                Ok(())
            })
            .unwrap();
        let after = images(&self.dir);
        let mut deleted: Vec<_> = before.keys().filter(|path| !after.contains_key(*path)).collect();
        if deleted.is_empty() {
            return;
        }
        let journal = self.journal();
        if journal.durable.load(Ordering::Relaxed) + 1 == journal.tail.lock().next_seq {
            self.synced();
        }
        self.durable.retain(|path, _| after.contains_key(path));
        deleted.sort();
        deleted.iter().rev().take(undone).for_each(|path| {
            std::fs::write(path, &before[*path]).unwrap();
            self.durable.insert((*path).clone(), before[*path].clone());
        });
    }

    fn read(&self, extent: &Extent) -> Vec<u8> {
        let mut data = vec![0; extent.len as usize];
        self.journal().read(&extent.place, u64::from(extent.skip), &mut data).unwrap();
        data
    }

    /// What programs would see.
    fn view(&self, file: u8) -> Vec<u8> {
        let held = &self.files[usize::from(file)];
        let mut view = held.server.clone();
        held.dirty.overlay(0, SPACE as u64, &mut |piece| {
            if let Piece::Held(extent) = piece {
                let start = extent.start as usize;
                view[start..start + extent.len as usize].copy_from_slice(&self.read(&extent));
            }
        });
        view
    }

    /// What is dirty, without the places.
    fn summary(dirty: &Dirty) -> (usize, u64, Vec<(u64, u32, u64)>) {
        let mut pieces = Vec::new();
        dirty.overlay(0, SPACE as u64, &mut |piece| {
            if let Piece::Held(extent) = piece {
                pieces.push((extent.start, extent.len, extent.seq));
            }
        });
        (dirty.epochs(), dirty.bytes(), pieces)
    }

    pub fn check(&self) {
        let dirty: u64 = self.files.iter().map(|held| held.dirty.bytes()).sum();
        assert_eq!(self.journal().live_bytes(), dirty);
        let segments = self.journal().segments();
        assert_eq!(self.journal().used_bytes(), segments.iter().map(|segment| segment.bytes).sum());
        for segment in segments {
            let image = std::fs::read(segment::path_of(&self.dir, segment.number)).unwrap();
            let behind = image.get(segment.bytes as usize..).expect("records end in the file");
            assert!(behind.iter().all(|byte| *byte == 0));
        }
        for file in 0..FILES {
            if !self.files[usize::from(file)].state.is_pending() {
                assert!(self.view(file) == self.files[usize::from(file)].local, "file {file}");
            }
        }
    }

    /// Opens the journal again: `exactly` as it was, or with whatever a power loss has left.
    pub fn restart(&mut self, exactly: bool) {
        self.journal = None;
        let (journal, mut recovered, damages) = reopen(&self.dir, self.options.clone());
        self.journal = Some(journal);
        assert!(damages.iter().all(|damage| !damage.synced), "{damages:?}");
        for file in 0..FILES {
            let found = recovered.remove(&handle(file)).unwrap_or_default();
            let held = &mut self.files[usize::from(file)];
            if exactly {
                assert_eq!(Self::summary(&found.dirty), Self::summary(&held.dirty));
                let clean = FileState::default();
                let known = !held.dirty.is_empty() || held.state.is_pending();
                assert_eq!(found.state, if known { held.state.clone() } else { clean });
            }
            held.dirty = found.dirty;
            held.state = found.state;
            if let Some(size) = held.state.cut_intent {
                self.finish_cut(file, size as usize);
            }
            if self.files[usize::from(file)].state.remove_intent {
                self.finish_remove(file);
            }
            let view = self.view(file);
            let held = &mut self.files[usize::from(file)];
            for (at, value) in view.iter().enumerate() {
                let right = match exactly {
                    true => held.local[at] == *value,
                    false => held.allowed[at].has(*value),
                };
                assert!(right, "file {file} has {value} at {at}, not {}", held.local[at]);
            }
            if !exactly {
                held.local = view;
            }
        }
        if !exactly {
            self.synced();
        }
        self.check();
    }

    /// What no sync has covered is lost: `keep` decides, for each sector of 512 bytes and (with
    /// `None`) for each file that was made since.
    pub fn power_loss(&mut self, keep: &mut dyn FnMut(Option<usize>) -> bool) {
        self.journal = None;
        for (path, now) in images(&self.dir) {
            if path.extension().is_some_and(|extension| extension == "room") {
                continue;
            }
            let (safe, mut to) = (self.durable.get(&path), path.clone());
            let is_room = now.len() as u64 == self.options.segment_bytes;
            if safe.is_none() && !keep(None) {
                std::fs::remove_file(&path).unwrap();
                if !is_room {
                    continue;
                }
                // It is what it was before it got its name.
                to = self.dir.join("ready.room");
            }
            let mut left = match safe {
                Some(bytes) => bytes.clone(),
                None if is_room => now[..64].to_vec(),
                None => Vec::new(),
            };
            let records = left.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            assert!(now.starts_with(&left[..records]), "{} was changed", path.display());
            if is_room {
                left.resize(now.len(), 0);
            }
            for (sector, bytes) in now.chunks(512).enumerate() {
                let range = sector * 512..sector * 512 + bytes.len();
                if left.get(range.clone()) != Some(bytes) && keep(Some(sector)) {
                    left.resize(left.len().max(range.end), 0);
                    left[range].copy_from_slice(bytes);
                }
            }
            std::fs::write(&to, left).unwrap();
        }
        self.restart(false);
    }
}
