//! Random changes of names, links, attributes and data while earlier ones are being sent, against a
//! tree in memory: as programs see it, and as the server has it at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use gridvfs_cache::disk::{Consistency, Policy};
use gridvfs_vfs::*;
use proptest::prelude::*;

use super::world::*;

const DIRS: usize = 2;
const NAMES: usize = 4;

/// A directory and a name in it.
type Place = (usize, usize);

#[derive(Clone, Debug)]
enum Op {
    Create(Place),
    Write { place: Place, at: u64, length: usize },
    Read(Place),
    Truncate { place: Place, size: u64 },
    SetMode { place: Place, mode: u32 },
    Touch { place: Place, seconds: u32 },
    Link { from: Place, to: Place },
    Remove(Place),
    Rename { from: Place, to: Place },
    Look(Place),
    List(usize),
    Sync(Place),
    WriteBack,
    Delay(u64),
    Pause(u64),
    Restart,
    Kill,
}

fn place() -> impl Strategy<Value = Place> {
    (0..DIRS, 0..NAMES)
}

fn op(kills: bool) -> impl Strategy<Value = Op> {
    let size = prop_oneof![3 => 0..9000u64, 1 => 0..1_500_000u64];
    prop_oneof![
        8 => place().prop_map(Op::Create),
        8 => (place(), size.clone(), 1usize..9000)
            .prop_map(|(place, at, length)| Op::Write { place, at, length }),
        4 => place().prop_map(Op::Read),
        2 => (place(), size).prop_map(|(place, size)| Op::Truncate { place, size }),
        2 => (place(), prop_oneof![Just(0o600), Just(0o640), Just(0o444)])
            .prop_map(|(place, mode)| Op::SetMode { place, mode }),
        2 => (place(), 1..1_000_000u32)
            .prop_map(|(place, seconds)| Op::Touch { place, seconds }),
        5 => (place(), place()).prop_map(|(from, to)| Op::Link { from, to }),
        5 => place().prop_map(Op::Remove),
        5 => (place(), place()).prop_map(|(from, to)| Op::Rename { from, to }),
        6 => place().prop_map(Op::Look),
        1 => (0..DIRS).prop_map(Op::List),
        1 => place().prop_map(Op::Sync),
        4 => Just(Op::WriteBack),
        2 => (0..4u64).prop_map(Op::Delay),
        4 => (0..12u64).prop_map(Op::Pause),
        1 => Just(Op::Restart),
        1 => Just(if kills { Op::Kill } else { Op::Restart }),
    ]
}

/// A file as it should be.
struct File {
    handle: FileHandle,
    data: Vec<u8>,
    mode: u32,
    /// If it was set since the file was last written.
    mtime: Option<Time>,
}

#[derive(Default)]
struct Model {
    files: BTreeMap<usize, File>,
    names: BTreeMap<Place, usize>,
}

impl Model {
    fn file(&mut self, place: Place) -> Option<&mut File> {
        self.files.get_mut(self.names.get(&place)?)
    }

    fn links(&self, number: usize) -> usize {
        self.names.values().filter(|other| **other == number).count()
    }

    fn take(&mut self, place: Place) -> Option<usize> {
        let number = self.names.remove(&place)?;
        if self.links(number) == 0 {
            self.files.remove(&number);
        }
        Some(number)
    }
}

fn name((_, name): Place) -> String {
    format!("n{name}")
}

fn path(place: Place) -> String {
    match place.0 {
        0 => name(place),
        dir => format!("d{dir}/{}", name(place)),
    }
}

/// A session that has seen all directories.
struct Tree {
    session: Session,
    dirs: Vec<FileHandle>,
}

impl Tree {
    fn open(world: &World, delay_ms: u64) -> Self {
        let session = world.open();
        let mut dirs = vec![session.cache.root()];
        for dir in 1..DIRS {
            dirs.push(session.lookup(&format!("d{dir}")).expect("there"));
        }
        let tree = Self { session, dirs };
        let caller = tree.session.caller();
        for dir in 0..DIRS {
            tree.attr(&tree.dirs[dir]);
            tree.list(dir);
            // Root's rights are asked for once.
            let absent = tree.session.cache.remove(&caller, &tree.dirs[dir], b"absent");
            assert_eq!(tree.session.wait(absent), Err(Status::NOENT.into()));
        }
        tree.session.far.delay_ms.store(delay_ms, SeqCst);
        tree
    }

    fn attr(&self, file: &FileHandle) -> Attr {
        let caller = self.session.caller();
        self.session.wait(self.session.cache.getattr(&caller, file)).expect("attributes")
    }

    fn list(&self, dir: usize) -> BTreeSet<String> {
        let caller = self.session.caller();
        let (mut names, mut cookie) = (BTreeSet::new(), 0);
        loop {
            let call =
                self.session.cache.readdir(&caller, &self.dirs[dir], cookie, [0; 8], 4096, true);
            let page = self.session.wait(call).expect("listed");
            for entry in &page.entries {
                cookie = entry.cookie;
                let name = String::from_utf8(entry.name.to_vec()).expect("text");
                if name.starts_with('n') {
                    assert!(names.insert(name.clone()), "{name} is listed twice");
                }
            }
            if page.eof {
                return names;
            }
        }
    }

    fn create(&self, place: Place) -> Result<FileHandle> {
        let how = CreateHow::Guarded(SetAttr { mode: Some(0o640), ..SetAttr::default() });
        let caller = self.session.caller();
        let name = name(place);
        let call = self.session.cache.create(&caller, &self.dirs[place.0], name.as_bytes(), &how);
        self.session.wait(call).map(|made| made.handle.expect("handle"))
    }

    fn lookup(&self, place: Place) -> Result<FileHandle> {
        let caller = self.session.caller();
        let name = name(place);
        let call = self.session.cache.lookup(&caller, &self.dirs[place.0], name.as_bytes());
        self.session.wait(call).map(|entry| entry.handle)
    }

    fn link(&self, file: &FileHandle, to: Place) -> Result<()> {
        let caller = self.session.caller();
        let name = name(to);
        let call = self.session.cache.link(&caller, file, &self.dirs[to.0], name.as_bytes());
        self.session.wait(call).map(drop)
    }

    fn remove(&self, place: Place) -> Result<()> {
        let caller = self.session.caller();
        let name = name(place);
        let call = self.session.cache.remove(&caller, &self.dirs[place.0], name.as_bytes());
        self.session.wait(call).map(drop)
    }

    fn rename(&self, from: Place, to: Place) -> Result<()> {
        let caller = self.session.caller();
        let (old, new) = (name(from), name(to));
        let (from, to) = (&self.dirs[from.0], &self.dirs[to.0]);
        let cache = &self.session.cache;
        let call = cache.rename(&caller, from, old.as_bytes(), to, new.as_bytes(), false);
        self.session.wait(call).map(drop)
    }

    fn set(&self, file: &FileHandle, changes: SetAttr) -> Result<()> {
        let caller = self.session.caller();
        self.session.wait(self.session.cache.setattr(&caller, file, &changes, None)).map(drop)
    }

    /// Has everything sent, beside what comes next.
    fn write_back(&self) {
        let cache = self.session.cache.clone();
        self.session.wait(async move {
            tokio::spawn(async move { drop(cache.write_back().await) });
        });
    }
}

fn run(policy: Policy, consistency: Consistency, ops: Vec<Op>) -> Result<(), TestCaseError> {
    let mut world = World::new(policy, consistency);
    world.settings.writeback_delay = Duration::from_millis(5);
    for dir in 1..DIRS {
        std::fs::create_dir(world.at_server(&format!("d{dir}"))).expect("made");
    }
    let mut tree = Tree::open(&world, 0);
    let mut model = Model::default();
    let mut delay_ms = 0;
    for (number, op) in ops.into_iter().enumerate() {
        match op {
            Op::Create(place) => {
                let created = tree.create(place);
                if model.names.contains_key(&place) {
                    prop_assert_eq!(created, Err(Status::EXIST.into()), "step {}", number);
                    continue;
                }
                let handle = created.expect("created");
                let file = File { handle, data: Vec::new(), mode: 0o640, mtime: None };
                model.files.insert(number, file);
                model.names.insert(place, number);
            }
            Op::Write { place, at, length } => {
                let Some(file) = model.file(place) else { continue };
                let data = pattern(number as u64 + 1, length);
                tree.session.write(&file.handle, at, &data).expect("written");
                let end = at as usize + length;
                if file.data.len() < end {
                    file.data.resize(end, 0);
                }
                file.data[at as usize..end].copy_from_slice(&data);
                file.mtime = None;
            }
            Op::Read(place) => {
                let Some(file) = model.file(place) else { continue };
                let read = tree.session.read(&file.handle, 0, 2_000_000).expect("read");
                prop_assert!(read == file.data, "step {}: {} differs", number, path(place));
            }
            Op::Truncate { place, size } => {
                let Some(file) = model.file(place) else { continue };
                tree.session.truncate(&file.handle, size).expect("cut");
                file.data.resize(size as usize, 0);
                file.mtime = None;
            }
            Op::SetMode { place, mode } => {
                let Some(file) = model.file(place) else { continue };
                let changes = SetAttr { mode: Some(mode), ..SetAttr::default() };
                tree.set(&file.handle, changes).expect("set");
                file.mode = mode;
            }
            Op::Touch { place, seconds } => {
                let Some(file) = model.file(place) else { continue };
                let time = Time { seconds: seconds.into(), nanoseconds: 5 };
                let changes = SetAttr { mtime: SetTime::To(time), ..SetAttr::default() };
                tree.set(&file.handle, changes).expect("set");
                file.mtime = Some(time);
            }
            Op::Link { from, to } => {
                let Some(file) = model.file(from) else { continue };
                let linked = tree.link(&file.handle, to);
                if model.names.contains_key(&to) {
                    prop_assert_eq!(linked, Err(Status::EXIST.into()), "step {}", number);
                    continue;
                }
                linked.expect("linked");
                model.names.insert(to, model.names[&from]);
            }
            Op::Remove(place) => {
                let removed = tree.remove(place);
                match model.take(place) {
                    Some(_) => removed.expect("removed"),
                    None => {
                        prop_assert_eq!(removed, Err(Status::NOENT.into()), "step {}", number);
                    }
                }
            }
            Op::Rename { from, to } => {
                let renamed = tree.rename(from, to);
                let Some(moved) = model.names.get(&from).copied() else {
                    prop_assert_eq!(renamed, Err(Status::NOENT.into()), "step {}", number);
                    continue;
                };
                renamed.expect("renamed");
                if model.names.get(&to) != Some(&moved) {
                    model.take(to);
                    model.names.remove(&from);
                    model.names.insert(to, moved);
                }
            }
            Op::Look(place) => look(&tree, &mut model, place, number)?,
            Op::List(dir) => {
                let expected = names_in(&model, dir);
                prop_assert_eq!(tree.list(dir), expected, "step {}", number);
            }
            Op::Sync(place) => {
                if let Some(file) = model.file(place) {
                    tree.session.fsync(&file.handle).expect("synced");
                }
            }
            Op::WriteBack => tree.write_back(),
            Op::Delay(ms) => {
                delay_ms = ms;
                tree.session.far.delay_ms.store(ms, SeqCst);
            }
            Op::Pause(ms) => std::thread::sleep(Duration::from_millis(ms)),
            Op::Restart => {
                tree.session.close().expect("ended");
                check(&world, &model)?;
                tree = reopen(&world, &mut model, delay_ms);
            }
            Op::Kill => {
                tree.session.kill();
                tree = reopen(&world, &mut model, delay_ms);
                let conflicts = tree.session.cache.conflicts();
                prop_assert!(conflicts.is_empty(), "of our own making: {:?}", conflicts);
            }
        }
    }
    let places: Vec<Place> = model.names.keys().copied().collect();
    for place in places {
        look(&tree, &mut model, place, usize::MAX)?;
    }
    tree.session.close().expect("ended");
    check(&world, &model)
}

fn reopen(world: &World, model: &mut Model, delay_ms: u64) -> Tree {
    let tree = Tree::open(world, delay_ms);
    for (place, number) in &model.names {
        let handle = tree.lookup(*place).expect("still there");
        model.files.get_mut(number).expect("there").handle = handle;
    }
    tree
}

fn names_in(model: &Model, dir: usize) -> BTreeSet<String> {
    model.names.keys().filter(|place| place.0 == dir).map(|place| name(*place)).collect()
}

/// What stat(2) says of a name.
fn look(tree: &Tree, model: &mut Model, place: Place, step: usize) -> Result<(), TestCaseError> {
    let found = tree.lookup(place);
    let Some(number) = model.names.get(&place).copied() else {
        prop_assert_eq!(found, Err(Status::NOENT.into()), "step {}", step);
        return Ok(());
    };
    let file = &model.files[&number];
    prop_assert_eq!(found, Ok(file.handle), "step {}: {}", step, path(place));
    let attr = tree.attr(&file.handle);
    let seen = (attr.size, attr.mode & 0o7777, attr.links as usize);
    let expected = (file.data.len() as u64, file.mode, model.links(number));
    prop_assert_eq!(seen, expected, "step {}: {}", step, path(place));
    if let Some(mtime) = file.mtime {
        prop_assert_eq!(attr.mtime, mtime, "step {}: {}", step, path(place));
    }
    Ok(())
}

/// What the server has after a clean end.
fn check(world: &World, model: &Model) -> Result<(), TestCaseError> {
    for dir in 0..DIRS {
        let folder = world.at_server(&if dir == 0 { String::new() } else { format!("d{dir}") });
        let names = std::fs::read_dir(folder).expect("listed").map(|entry| entry.expect("entry"));
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let names: BTreeSet<String> = names.filter(|name| name.starts_with('n')).collect();
        prop_assert_eq!(names, names_in(model, dir), "names at the server, in {}", dir);
    }
    let mut inodes = BTreeMap::new();
    for (place, number) in &model.names {
        let (file, at) = (&model.files[number], world.at_server(&path(*place)));
        let there = std::fs::metadata(&at).expect("there");
        let seen = (there.len(), there.mode() & 0o7777, there.nlink() as usize);
        let expected = (file.data.len() as u64, file.mode, model.links(*number));
        prop_assert_eq!(seen, expected, "{} at the server", path(*place));
        let inode = *inodes.entry(*number).or_insert(there.ino());
        prop_assert_eq!(inode, there.ino(), "{} is of another file", path(*place));
        let same = std::fs::read(&at).expect("read") == file.data;
        prop_assert!(same, "{} differs at the server", path(*place));
        if let Some(mtime) = file.mtime {
            let seen = (there.mtime(), there.mtime_nsec());
            let expected = (mtime.seconds, i64::from(mtime.nanoseconds));
            prop_assert_eq!(seen, expected, "{} at the server", path(*place));
        }
    }
    Ok(())
}

macro_rules! trees {
    ($($(#[$attribute:meta])* $name:ident: $policy:ident, $consistency:ident, $kills:expr;)*) => {
        proptest! {
            #![proptest_config(ProptestConfig {
                cases: std::env::var("GRIDVFS_TEST_CASES").ok().and_then(|n| n.parse().ok())
                    .unwrap_or(10),
                max_shrink_iters: 200,
                ..ProptestConfig::default()
            })]
            $($(#[$attribute])*
            #[test]
            fn $name(ops in prop::collection::vec(op($kills), 1..80)) {
                run(Policy::$policy, Consistency::$consistency, ops)?;
            })*
        }
    };
}

trees! {
    write_back_dedicated: WriteBack, Dedicated, false;
    write_back_shared: WriteBack, Shared, false;
    write_through_dedicated: WriteThrough, Dedicated, false;
    write_through_shared: WriteThrough, Shared, false;
    #[ignore = "now and then a change of its own is taken for a conflict after a kill"]
    write_back_dedicated_killed: WriteBack, Dedicated, true;
}
