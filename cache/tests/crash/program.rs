//! Random programs, one number each: what a process does with a few files, what the files are like
//! afterwards, and the process itself, which tells a log of each step before and after it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use gridvfs_cache::disk::{AtEnd, Consistency, Policy, Settings};
use gridvfs_cache::store::Geometry;
use gridvfs_vfs::{Allocation, CreateHow, SetAttr, SetTime, Time, Vfs};

use super::world::{Session, World, pattern, settings};

pub const FILES: u64 = 3;
const SIZE: u64 = 300 * 1024;
/// A cache that holds half of a world's files: eight frames.
const SMALL: Geometry =
    Geometry { size_bytes: 512 << 10, banks: 2, ways: 4, frame_bytes: 64 << 10 };
/// A process that nobody has killed by then ends in order.
pub const STEPS: u64 = 50;

/// Numbers that look random, the same for the same seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Splitmix64.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Write {
        file: u64,
        at: u64,
        length: usize,
    },
    Truncate {
        file: u64,
        size: u64,
    },
    /// As open(2) with O_TRUNC.
    Empty(u64),
    Punch {
        file: u64,
        at: u64,
        length: u64,
    },
    Touch(u64),
    Sync(u64),
    Close(u64),
    Open(u64),
    Remove(u64),
    Rename(u64, u64),
    Read {
        file: u64,
        at: u64,
        length: usize,
    },
    Pause(u64),
    WriteBack,
    Restart,
}

/// What there is under which name.
pub type Files = BTreeMap<u64, Vec<u8>>;

pub fn name(file: u64) -> String {
    format!("f{file}")
}

fn step(seed: u64, number: u64) -> Step {
    let mut dice = Dice::new(seed.wrapping_mul(0x1000_0000_01b3) ^ number);
    let file = dice.below(FILES);
    let (at, length) = match dice.below(9) {
        0..4 => (dice.below(SIZE), 1 + dice.below(5000)),
        4..8 => (dice.below(SIZE / 4096) * 4096, (1 + dice.below(3)) * 4096),
        _ => (dice.below(SIZE), 1 + dice.below(150_000)),
    };
    match dice.below(64) {
        0..24 => Step::Write { file, at, length: length as usize },
        24..28 => Step::Truncate { file, size: dice.below(SIZE) },
        28..30 => Step::Empty(file),
        30 => Step::Punch { file, at, length },
        31..33 => Step::Touch(file),
        33..39 => Step::Sync(file),
        39..42 => Step::Close(file),
        42..44 => Step::Open(file),
        44..46 => Step::Remove(file),
        46..49 => Step::Rename(file, (file + 1 + dice.below(FILES - 1)) % FILES),
        49..55 => Step::Read { file, at, length: length as usize },
        55..60 => Step::Pause(dice.below(90)),
        60..62 => Step::WriteBack,
        _ => Step::Restart,
    }
}

/// Says what some steps are.
pub fn describe(seed: u64, numbers: std::ops::Range<u64>) -> String {
    let lines = numbers.map(|number| format!("{number}: {:?}", step(seed, number)));
    let settings = settings_of(seed);
    format!(
        "{}, {}, at the end {}, after {:?}\n{}",
        settings.policy,
        settings.consistency,
        settings.at_end,
        settings.writeback_delay,
        lines.collect::<Vec<_>>().join("\n")
    )
}

/// Returns what the files are like after a step.
pub fn apply(seed: u64, number: u64, files: &mut Files) {
    match step(seed, number) {
        Step::Write { file, .. } | Step::Empty(file) if !files.contains_key(&file) => {
            files.insert(file, Vec::new());
        }
        Step::Write { file, at, length } => {
            let data = files.entry(file).or_default();
            let end = at as usize + length;
            if data.len() < end {
                data.resize(end, 0);
            }
            data[at as usize..end].copy_from_slice(&pattern(number + 1, length));
        }
        Step::Truncate { file, size } => {
            if let Some(data) = files.get_mut(&file) {
                data.resize(size as usize, 0);
            }
        }
        Step::Empty(file) => {
            files.insert(file, Vec::new());
        }
        Step::Punch { file, at, length } => {
            if let Some(data) = files.get_mut(&file) {
                let end = data.len().min((at + length) as usize);
                if (at as usize) < end {
                    data[at as usize..end].fill(0);
                }
            }
        }
        Step::Remove(file) => {
            files.remove(&file);
        }
        Step::Rename(from, to) => {
            if let Some(data) = files.remove(&from) {
                files.insert(to, data);
            }
        }
        _ => {}
    }
}

/// Returns what the files are like after many.
pub fn after(seed: u64, steps: &[u64]) -> Files {
    let mut files = Files::new();
    steps.iter().for_each(|number| apply(seed, *number, &mut files));
    files
}

/// The settings of a seed's sessions.
pub fn settings_of(seed: u64) -> Settings {
    let mut dice = Dice::new(!seed);
    let policy = [Policy::WriteBack, Policy::WriteBack, Policy::WriteThrough];
    let consistency = [Consistency::Dedicated, Consistency::Dedicated, Consistency::Shared];
    let policy = policy[dice.below(3) as usize];
    let consistency = consistency[dice.below(3) as usize];
    let delay = [5, 40, 40, 3_600_000][dice.below(4) as usize];
    let at_end = if dice.below(5) == 0 { AtEnd::Preserve } else { AtEnd::WriteBack };
    let writeback_delay = Duration::from_millis(delay);
    Settings { at_end, writeback_delay, ..settings(policy, consistency) }
}

/// The world of a seed, in a folder that somebody else has made. In some the cache is too small for
/// the files, so that frames are evicted all the time.
pub fn world_of(folder: &Path, seed: u64) -> World {
    let mut world = World::at(folder, settings_of(seed));
    if Dice::new(seed.wrapping_mul(7)).below(3) == 0 {
        world.geometry = SMALL;
    }
    world
}

/// Reads all files through the cache.
pub fn read_all(session: &Session) -> Files {
    let mut files = Files::new();
    for file in 0..FILES {
        let Ok(handle) = session.lookup(&name(file)) else { continue };
        let size = session.size(&handle);
        let data = session.read(&handle, 0, size as usize + 100).expect("read");
        assert_eq!(data.len() as u64, size, "{}: size and data", name(file));
        files.insert(file, data);
    }
    files
}

/// Reads all files of the server.
pub fn read_server(export: &Path) -> Files {
    let read = |file| Some((file, std::fs::read(export.join(name(file))).ok()?));
    (0..FILES).filter_map(read).collect()
}

/// Says how two states differ.
pub fn difference(found: &Files, wanted: &Files) -> Option<String> {
    for file in 0..FILES {
        let name = name(file);
        match (found.get(&file), wanted.get(&file)) {
            (None, None) => {}
            (Some(_), None) => return Some(format!("{name} is there")),
            (None, Some(_)) => return Some(format!("{name} is not there")),
            (Some(found), Some(wanted)) => {
                if let Some(at) = found.iter().zip(wanted).position(|(a, b)| a != b) {
                    return Some(format!("{name} differs at {at} (of {})", wanted.len()));
                }
                if found.len() != wanted.len() {
                    return Some(format!("{name} has {} of {}", found.len(), wanted.len()));
                }
            }
        }
    }
    None
}

/// Finds the one of several states that the files are in.
pub fn choose(found: &Files, candidates: &[Files]) -> usize {
    let differences: Vec<_> = candidates.iter().map(|it| difference(found, it)).collect();
    differences
        .iter()
        .position(Option::is_none)
        .unwrap_or_else(|| panic!("the files are in no state that they may be in: {differences:?}"))
}

/// What a process is to do: a seed, and which steps were done before it. A second history differs
/// by a step that was under way when the process before was killed.
pub struct Orders {
    pub seed: u64,
    pub histories: Vec<Vec<u64>>,
    pub first_step: u64,
}

/// Does a seed's steps and tells a log. Ends after [`STEPS`], if it lives.
pub fn run(world: &World, orders: &Orders, log: &mut File) {
    let seed = orders.seed;
    let mut tell = |what: &str, number: u64| {
        log.write_all(format!("{what} {number}\n").as_bytes()).expect("told");
    };
    let mut session = world.open();
    let candidates: Vec<_> = orders.histories.iter().map(|steps| after(seed, steps)).collect();
    let mut files = candidates[0].clone();
    // Some begin at once, while what the process before has left is looked at.
    if candidates.len() > 1 || !seed.wrapping_add(orders.first_step).is_multiple_of(3) {
        let chosen = choose(&read_all(&session), &candidates);
        tell("chosen", chosen as u64);
        files = candidates[chosen].clone();
    }
    for number in orders.first_step..orders.first_step + STEPS {
        tell("begin", number);
        if let Step::Restart = step(seed, number) {
            session.close().expect("ended");
            session = world.open();
        } else {
            perform(&session, seed, number, &files);
        }
        tell("done", number);
        apply(seed, number, &mut files);
        let conflicts = session.cache.conflicts();
        assert!(conflicts.is_empty(), "step {number}: a conflict of our own making: {conflicts:?}");
    }
    session.close().expect("ended");
}

fn perform(session: &Session, seed: u64, number: u64, files: &Files) {
    let step = step(seed, number);
    let create = |session: &Session, file, size| {
        let how = CreateHow::Unchecked(SetAttr { mode: Some(0o644), size, ..SetAttr::default() });
        let (root, caller, name) = (session.cache.root(), session.caller(), name(file));
        let made = session.wait(session.cache.create(&caller, &root, name.as_bytes(), &how));
        made.expect("created");
    };
    let find = |session: &Session, file| {
        let there = session.lookup(&name(file)).ok();
        assert_eq!(there.is_some(), files.contains_key(&file), "step {number}: {step:?}");
        there
    };
    match step {
        Step::Write { file, at, length } => match find(session, file) {
            Some(handle) => {
                session.write(&handle, at, &pattern(number + 1, length)).expect("written");
            }
            None => create(session, file, None),
        },
        Step::Empty(file) => create(session, file, Some(0)),
        Step::Pause(ms) => std::thread::sleep(Duration::from_millis(ms)),
        Step::WriteBack => session.wait(session.cache.write_back()).expect("written back"),
        Step::Restart => {}
        Step::Rename(from, to) => {
            if find(session, from).is_some() {
                session.rename(&name(from), &name(to)).expect("renamed");
            }
        }
        Step::Remove(file) => {
            if find(session, file).is_some() {
                session.remove(&name(file)).expect("removed");
            }
        }
        Step::Truncate { file, .. }
        | Step::Punch { file, .. }
        | Step::Touch(file)
        | Step::Sync(file)
        | Step::Close(file)
        | Step::Open(file)
        | Step::Read { file, .. } => {
            let Some(handle) = find(session, file) else { return };
            let caller = session.caller();
            match step {
                Step::Truncate { size, .. } => session.truncate(&handle, size).expect("cut"),
                Step::Punch { at, length, .. } => {
                    let how = Allocation::PunchHole;
                    let call = session.cache.allocate(&caller, &handle, at, length, how);
                    session.wait(call).expect("punched");
                }
                Step::Touch(_) => {
                    let mtime = SetTime::To(Time { seconds: number as i64, nanoseconds: 7 });
                    let changes = SetAttr { mtime, ..SetAttr::default() };
                    session
                        .wait(session.cache.setattr(&caller, &handle, &changes, None))
                        .expect("touched");
                }
                Step::Sync(_) => session.fsync(&handle).expect("synced"),
                Step::Close(_) => session.close_file(&handle).expect("closed"),
                Step::Open(_) => session.open_file(&handle).expect("opened"),
                Step::Read { at, length, .. } => {
                    let read = session.read(&handle, at, length).expect("read");
                    let data = &files[&file];
                    let start = data.len().min(at as usize);
                    let expected = &data[start..data.len().min(at as usize + length)];
                    assert!(read == expected, "step {number}: {step:?} is not what was written");
                }
                _ => {}
            }
        }
    }
}
