//! What pending changes make of names and files, and which of them belong together.

use std::collections::{BTreeSet, HashSet};

use gridvfs_vfs::{Attr, FileHandle};

use super::{Key, Queue, fileid_of, is_ours};
use crate::journal::{At, NameChange};

impl Queue {
    /// What pending changes make of a name: `None` if they say nothing, `Some(None)` if it is absent.
    pub fn child(&self, name: &At) -> Option<Option<FileHandle>> {
        if self.ops.is_empty() {
            return None;
        }
        let last = self.by_key.get(&Key::Name(name.clone()))?.last()?;
        Some(self.ops.get(last)?.op.child(name))
    }

    /// The names of a directory of which pending changes say something.
    pub fn children(&self, dir: &FileHandle) -> Vec<(Box<[u8]>, Option<FileHandle>)> {
        if !self.dirs.contains_key(dir) {
            return Vec::new();
        }
        let mut names = HashSet::new();
        for pending in self.ops.values() {
            names.extend(pending.op.keys().into_iter().filter_map(|key| match key {
                Key::Name(at) if at.dir == *dir => Some(at),
                _ => None,
            }));
        }
        let child = |at: At| Some((at.name.clone(), self.child(&at)?));
        let mut all: Vec<_> = names.into_iter().filter_map(child).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// The attributes of a file that the server has not made yet.
    pub fn created(&self, file: &FileHandle) -> Option<Attr> {
        if self.to_server.contains_key(file) || !is_ours(file) {
            return None;
        }
        let mut found = None;
        for number in self.by_key.get(&Key::File(*file))? {
            match &self.ops.get(number)?.op.change {
                NameChange::Create { attr, .. } => found = Some(*attr),
                NameChange::Set { set, .. } => found.iter_mut().for_each(|attr| set.apply(attr)),
                _ => {}
            }
        }
        found
    }

    /// Says whether a file has lost its last name by a pending change.
    pub fn is_gone(&self, file: &FileHandle) -> bool {
        let all = self.by_key.get(&Key::File(*file)).map_or(&[][..], Vec::as_slice);
        all.iter().any(|number| self.ops.get(number).is_some_and(|it| it.op.ends(file)))
    }

    /// Puts what is pending over what the server says of a file, and our number of it.
    pub fn show(&self, file: &FileHandle, attr: &mut Attr) {
        if is_ours(file) {
            attr.fileid = fileid_of(file);
        }
        for number in self.by_key.get(&Key::File(*file)).into_iter().flatten() {
            match self.ops.get(number).map(|pending| &pending.op.change) {
                Some(NameChange::Set { set, .. }) => set.apply(attr),
                Some(NameChange::Remove { last: false, .. } | NameChange::Rename { .. }) => {
                    attr.links = attr.links.saturating_sub(1).max(1);
                }
                _ => {}
            }
        }
    }

    /// The changes that have one of these keys.
    pub fn with_keys(&self, keys: &[Key]) -> Vec<u64> {
        keys.iter().filter_map(|key| self.by_key.get(key)).flatten().copied().collect()
    }

    /// The changes that make a file or set its attributes.
    pub fn of_file(&self, file: &FileHandle) -> Vec<u64> {
        let mut all = self.with_keys(&[Key::File(*file)]);
        all.retain(|number| {
            self.ops.get(number).is_some_and(|pending| {
                matches!(pending.op.change, NameChange::Create { .. } | NameChange::Set { .. })
            })
        });
        all
    }

    /// All changes of a file, of its names, too.
    pub fn all_of(&self, file: &FileHandle) -> Vec<u64> {
        let all = self.ops.iter().filter(|(_, pending)| pending.op.file() == file);
        all.map(|(number, _)| *number).collect()
    }

    /// The changes in a directory.
    pub fn in_dir(&self, dir: &FileHandle) -> Vec<u64> {
        if !self.dirs.contains_key(dir) {
            return Vec::new();
        }
        let inside = self.ops.iter().filter(|(_, pending)| pending.op.dirs().contains(dir));
        inside.map(|(number, _)| *number).collect()
    }

    /// Adds all those that have to be made before these.
    pub fn closure(&self, numbers: Vec<u64>) -> BTreeSet<u64> {
        let mut all = BTreeSet::new();
        let mut rest = numbers;
        while let Some(number) = rest.pop() {
            if !all.insert(number) {
                continue;
            }
            let Some(pending) = self.ops.get(&number) else { continue };
            for key in pending.op.keys() {
                // The one before it brings those before that one.
                let all = self.by_key.get(&key).map_or(&[][..], Vec::as_slice);
                let place = all.partition_point(|other| *other < number);
                rest.extend(place.checked_sub(1).map(|before| all[before]));
            }
        }
        all
    }
}
