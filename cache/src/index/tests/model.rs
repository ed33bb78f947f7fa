//! Random changes, ours and the server's, with room for hardly anything in memory: the index never
//! says what is not so, and what it was told and not told to forget it knows.

use std::collections::{BTreeMap, HashMap};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::FileKey;

const DIRS: u64 = 3;
const FILES: u64 = 12;
const NAMES: u8 = 8;

#[derive(Clone, Debug)]
enum Step {
    Update {
        file: u64,
        size: u64,
    },
    RenewKey {
        file: u64,
    },
    ForgetNode {
        file: u64,
    },
    Lookup {
        dir: u64,
        name: u8,
    },
    Create {
        dir: u64,
        name: u8,
        file: u64,
    },
    Remove {
        dir: u64,
        name: u8,
    },
    Rename {
        from: u64,
        name: u8,
        to: u64,
        new: u8,
    },
    /// Lists the directory, page by page; in between, one of ours may happen.
    List {
        dir: u64,
        page: usize,
        created: Option<(u8, u64)>,
    },
    /// Somebody else changes the directory on the server, and we notice.
    Foreign {
        dir: u64,
        name: u8,
        file: Option<u64>,
    },
    ForgetName {
        dir: u64,
        name: u8,
    },
    Relist {
        dir: u64,
        page: usize,
    },
    ForgetAll,
    Flush,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (dir, file, name) = (0..DIRS, DIRS..DIRS + FILES, 0..NAMES);
    let place = (dir.clone(), name.clone());
    let step = prop_oneof![
        8 => (file.clone(), 0..4u64).prop_map(|(file, size)| Step::Update { file, size }),
        2 => file.clone().prop_map(|file| Step::RenewKey { file }),
        1 => (0..DIRS + FILES).prop_map(|file| Step::ForgetNode { file }),
        8 => place.clone().prop_map(|(dir, name)| Step::Lookup { dir, name }),
        6 => (place.clone(), file.clone())
            .prop_map(|((dir, name), file)| Step::Create { dir, name, file }),
        4 => place.clone().prop_map(|(dir, name)| Step::Remove { dir, name }),
        4 => (place.clone(), place.clone())
            .prop_map(|((from, name), (to, new))| Step::Rename { from, name, to, new }),
        6 => (dir.clone(), 1..5usize, proptest::option::weighted(0.2, (name, file.clone())))
            .prop_map(|(dir, page, created)| Step::List { dir, page, created }),
        2 => (place.clone(), proptest::option::of(file))
            .prop_map(|((dir, name), file)| Step::Foreign { dir, name, file }),
        1 => place.prop_map(|(dir, name)| Step::ForgetName { dir, name }),
        6 => (dir, 1..5usize).prop_map(|(dir, page)| Step::Relist { dir, page }),
        1 => Just(Step::ForgetAll),
        2 => Just(Step::Flush),
        2 => Just(Step::Reopen),
    ];
    vec(step, 1..120)
}

/// A directory on the server, and what the index has to know of it.
#[derive(Default)]
struct Dir {
    names: BTreeMap<u8, u64>,
    /// All names are known, but for those below.
    complete: bool,
    listed: bool,
    known: HashMap<u8, bool>,
}

impl Dir {
    fn forget(&mut self) {
        (self.complete, self.listed) = (false, false);
        self.known.clear();
    }
}

struct World {
    dirs: Vec<Dir>,
    nodes: HashMap<u64, Known>,
    seen: Vec<FileKey>,
}

fn text(name: u8) -> Vec<u8> {
    // Some of them long: the longer.
    vec![b'a' + name; if name == 0 { 40 } else { 1 + usize::from(name) }]
}

impl World {
    /// What the index must answer: what is so, or that it does not know, where it was not told.
    fn check_name(&self, index: &Index, dir: u64, name: u8) {
        let of = &self.dirs[dir as usize];
        let answer = index.lookup(&handle(dir), &text(name));
        let truth = of.names.get(&name).map_or(Name::Absent, |file| Name::Here(handle(*file)));
        let known = of.known.get(&name).copied().unwrap_or(of.complete);
        assert_eq!(answer, if known { truth } else { Name::Unknown }, "{name} in {dir}");
    }

    fn check_listing(&self, index: &Index, dir: u64, page: usize) {
        let of = &self.dirs[dir as usize];
        let listed = list(index, &handle(dir), page);
        if !of.listed {
            assert_eq!(listed, None);
            return;
        }
        let listed = listed.expect("known");
        let mut listed: Vec<_> =
            listed.into_iter().map(|(name, file)| (name.to_vec(), file)).collect();
        listed.sort_by(|one, other| one.0.cmp(&other.0));
        let truth = of.names.iter().map(|(name, file)| (text(*name), Some(handle(*file))));
        assert_eq!(listed, truth.collect::<Vec<_>>(), "listing of {dir}");
    }

    fn set(&mut self, dir: u64, name: u8, file: Option<u64>) {
        let of = &mut self.dirs[dir as usize];
        of.names.remove(&name);
        if let Some(file) = file {
            of.names.insert(name, file);
        }
        of.known.insert(name, true);
    }

    fn create(&mut self, index: &Index, dir: u64, name: u8, file: u64) {
        self.set(dir, name, Some(file));
        index.created(&handle(dir), &text(name), &handle(file));
    }

    fn rename(&mut self, index: &Index, (from, name): (u64, u8), (to, new): (u64, u8)) {
        let Some(file) = self.dirs[from as usize].names.get(&name).copied() else { return };
        let target = self.dirs[to as usize].names.get(&new).copied();
        let knows = |dir: u64, name: u8| {
            let of = &self.dirs[dir as usize];
            of.known.get(&name).copied().unwrap_or(of.complete)
        };
        let (knew, knew_target) = (knows(from, name), knows(to, new));
        if (from, name) == (to, new) || target == Some(file) {
            if knew && knew_target {
                index.renamed(&handle(from), &text(name), &handle(to), &text(new));
            }
            return;
        }
        self.set(from, name, None);
        self.set(to, new, Some(file));
        if !knew {
            let of = &mut self.dirs[to as usize];
            of.listed = false;
            of.known.insert(new, false);
        }
        index.renamed(&handle(from), &text(name), &handle(to), &text(new));
    }

    fn list(&mut self, index: &Index, dir: u64, page: usize, created: Option<(u8, u64)>) {
        let at = handle(dir);
        let token = index.token(&at);
        let mut entries: Vec<_> = self.dirs[dir as usize]
            .names
            .iter()
            .map(|(name, file)| DirEntry {
                fileid: *file,
                name: text(*name).into(),
                cookie: 10 + u64::from(*name) * 3,
                attr: Some(attr(*file)),
                handle: Some(handle(*file)),
            })
            .collect();
        // The server's order is its own.
        entries.reverse();
        let pages: Vec<_> = entries.chunks(page).collect();
        let (mut cookie, mut whole) = (0, false);
        for (number, part) in pages.iter().enumerate() {
            let eof = number + 1 == pages.len();
            if eof && let Some((name, file)) = created {
                self.create(index, dir, name, file);
            }
            whole = index.set_listing_part(&at, cookie, part, eof, VERIFIER, token);
            assert!(!whole || eof && created.is_none());
            cookie = part.last().expect("chunks are not empty").cookie;
        }
        if pages.is_empty() {
            whole = index.set_listing_part(&at, 0, &[], true, VERIFIER, token);
        }
        // It need not be: the directory may have been let go meanwhile, and its token with it.
        if whole {
            let of = &mut self.dirs[dir as usize];
            of.known.clear();
            (of.complete, of.listed) = (true, true);
            // Until then, only that which is there.
            index.flush();
        }
    }

    fn step(&mut self, index: &Index, step: &Step) {
        match *step {
            Step::Update { file, size } => {
                let known = index.update(&handle(file), |known| {
                    known.attr = Some(Attr { size, ..attr(file) });
                    known.at = size;
                });
                if let Some(before) = self.nodes.insert(file, known) {
                    assert_eq!((before.key, before.base), (known.key, known.base));
                }
            }
            Step::RenewKey { file } => {
                let base = Some(WccAttr::from(&attr(file)));
                let known = index.update(&handle(file), |known| known.renew_key(base));
                assert!(!self.seen.contains(&known.key), "a key came back");
                self.seen.push(known.key);
                self.nodes.insert(file, known);
            }
            Step::ForgetNode { file } => {
                index.forget_node(&handle(file));
                assert_eq!(index.node(&handle(file)), None);
                self.nodes.remove(&file);
                if let Some(of) = self.dirs.get_mut(file as usize) {
                    of.forget();
                }
            }
            Step::Lookup { dir, name } => {
                self.check_name(index, dir, name);
                let token = index.token(&handle(dir));
                let file = self.dirs[dir as usize].names.get(&name).copied();
                assert!(index.note_name(&handle(dir), &text(name), file.map(handle), token));
                self.dirs[dir as usize].known.insert(name, true);
            }
            Step::Create { dir, name, file } => self.create(index, dir, name, file),
            Step::Remove { dir, name } => {
                self.set(dir, name, None);
                index.removed(&handle(dir), &text(name));
            }
            Step::Rename { from, name, to, new } => self.rename(index, (from, name), (to, new)),
            Step::List { dir, page, created } => self.list(index, dir, page, created),
            Step::Foreign { dir, name, file } => {
                self.set(dir, name, file);
                self.dirs[dir as usize].forget();
                index.forget_dir(&handle(dir));
            }
            Step::ForgetName { dir, name } => {
                index.forget_name(&handle(dir), &text(name));
                let of = &mut self.dirs[dir as usize];
                of.known.insert(name, false);
                of.listed = false;
            }
            Step::Relist { dir, page } => self.check_listing(index, dir, page),
            Step::ForgetAll => {
                index.forget_all();
                self.dirs.iter_mut().for_each(Dir::forget);
                for known in self.nodes.values_mut() {
                    (known.attr, known.at) = (None, 0);
                }
            }
            Step::Flush => index.flush(),
            Step::Reopen => {}
        }
    }

    fn check(&self, index: &Index) {
        for (file, known) in &self.nodes {
            assert_eq!(index.node(&handle(*file)), Some(*known), "{file}");
        }
        for dir in 0..DIRS {
            (0..NAMES).for_each(|name| self.check_name(index, dir, name));
            self.check_listing(index, dir, 3);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn the_index_does_as_maps_do(steps in steps()) {
        let dir = tempfile::tempdir().expect("a directory");
        let mut index = open(dir.path(), small());
        let dirs = (0..DIRS).map(|_| Dir::default()).collect();
        let mut world = World { dirs, nodes: HashMap::new(), seen: Vec::new() };
        for step in &steps {
            if matches!(step, Step::Reopen) {
                drop(index);
                index = open(dir.path(), small());
                prop_assert!(index.closed_cleanly());
            }
            world.step(&index, step);
        }
        world.check(&index);
        drop(index);
        // What was replaced is gone from the disk, too.
        let raw = Connection::open(dir.path().join("index.sqlite")).expect("a database");
        let orphans = "SELECT count(*) FROM name WHERE names NOT IN (SELECT names FROM node)";
        let count: i64 = raw.query_row(orphans, [], |row| row.get(0)).expect("a number");
        prop_assert_eq!(count, 0);
        drop(raw);
        let index = open(dir.path(), small());
        world.check(&index);
        prop_assert_eq!(index.stats().damaged, 0);
    }
}
