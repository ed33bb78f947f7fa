//! Random programs against plain vectors of bytes, over clean ends and kills.

use std::collections::HashMap;

use gridvfs_cache::disk::{Consistency, Policy};
use gridvfs_vfs::FileHandle;
use proptest::prelude::*;

use super::world::*;

const SIZE: u64 = 300 * 1024;
const FILES: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    Write { file: usize, at: u64, length: usize },
    Read { file: usize, at: u64, length: usize },
    Truncate { file: usize, size: u64 },
    Sync(usize),
    Close(usize),
    Open(usize),
    Remove(usize),
    Rename(usize, usize),
    Size(usize),
    Pause(u64),
    Restart,
    Kill,
}

fn op() -> impl Strategy<Value = Op> {
    let file = 0..FILES;
    let small = (0..SIZE, 1usize..5000);
    let page = (0..SIZE / 4096, 1usize..4).prop_map(|(page, count)| (page * 4096, count * 4096));
    let large = (0..SIZE, 1usize..150_000);
    let range = prop_oneof![4 => small, 4 => page, 1 => large];
    prop_oneof![
        12 => (file.clone(), range.clone())
            .prop_map(|(file, (at, length))| Op::Write { file, at, length }),
        12 => (file.clone(), range)
            .prop_map(|(file, (at, length))| Op::Read { file, at, length }),
        2 => (file.clone(), 0..SIZE).prop_map(|(file, size)| Op::Truncate { file, size }),
        3 => file.clone().prop_map(Op::Sync),
        2 => file.clone().prop_map(Op::Close),
        2 => file.clone().prop_map(Op::Open),
        1 => file.clone().prop_map(Op::Remove),
        1 => (file.clone(), file.clone()).prop_map(|(from, to)| Op::Rename(from, to)),
        2 => file.prop_map(Op::Size),
        2 => (0u64..120).prop_map(Op::Pause),
        1 => Just(Op::Restart),
        1 => Just(Op::Kill),
    ]
}

fn name(file: usize) -> String {
    format!("f{file}")
}

fn run(policy: Policy, consistency: Consistency, ops: Vec<Op>) -> Result<(), TestCaseError> {
    let world = World::new(policy, consistency);
    let mut session = world.open();
    let mut files: HashMap<usize, (FileHandle, Vec<u8>)> = HashMap::new();
    let get = |session: &Session, files: &mut HashMap<usize, (FileHandle, Vec<u8>)>, file| {
        files.entry(file).or_insert_with(|| (session.create(&name(file)), Vec::new())).0
    };
    for (number, op) in ops.into_iter().enumerate() {
        match op {
            Op::Write { file, at, length } => {
                let handle = get(&session, &mut files, file);
                let data = pattern(number as u64 + 1, length);
                session.write(&handle, at, &data).expect("written");
                let model = &mut files.get_mut(&file).expect("there").1;
                let end = at as usize + length;
                if model.len() < end {
                    model.resize(end, 0);
                }
                model[at as usize..end].copy_from_slice(&data);
            }
            Op::Read { file, at, length } => {
                let handle = get(&session, &mut files, file);
                let read = session.read(&handle, at, length).expect("read");
                let model = &files[&file].1;
                let start = model.len().min(at as usize);
                let expected = &model[start..model.len().min(at as usize + length)];
                prop_assert_eq!(read.len(), expected.len(), "length of {} at {}", file, at);
                if let Some(wrong) = (0..read.len()).find(|i| read[*i] != expected[*i]) {
                    prop_assert!(
                        false,
                        "step {}: file {} differs at {}",
                        number,
                        file,
                        at as usize + wrong
                    );
                }
            }
            Op::Truncate { file, size } => {
                let handle = get(&session, &mut files, file);
                session.truncate(&handle, size).expect("cut");
                files.get_mut(&file).expect("there").1.resize(size as usize, 0);
            }
            Op::Sync(file) => {
                let handle = get(&session, &mut files, file);
                session.fsync(&handle).expect("synced");
            }
            Op::Close(file) => {
                let handle = get(&session, &mut files, file);
                session.close_file(&handle).expect("closed");
            }
            Op::Open(file) => {
                let handle = get(&session, &mut files, file);
                session.open_file(&handle).expect("opened");
            }
            Op::Remove(file) => {
                if files.remove(&file).is_some() {
                    session.remove(&name(file)).expect("removed");
                }
            }
            Op::Rename(from, to) => {
                if from != to
                    && let Some(moved) = files.remove(&from)
                {
                    session.rename(&name(from), &name(to)).expect("renamed");
                    files.insert(to, moved);
                }
            }
            Op::Size(file) => {
                let handle = get(&session, &mut files, file);
                prop_assert_eq!(session.size(&handle), files[&file].1.len() as u64);
            }
            Op::Pause(ms) => std::thread::sleep(std::time::Duration::from_millis(ms)),
            Op::Restart => {
                session.close().expect("ended");
                check(&world, &files)?;
                session = world.open();
                find(&session, &mut files);
            }
            Op::Kill => {
                session.kill();
                session = world.open();
                find(&session, &mut files);
                prop_assert!(session.cache.conflicts().is_empty(), "no conflict of our own making");
            }
        }
    }
    session.close().expect("ended");
    check(&world, &files)
}

fn find(session: &Session, files: &mut HashMap<usize, (FileHandle, Vec<u8>)>) {
    for (file, (handle, _)) in files {
        *handle = session.lookup(&name(*file)).expect("still there");
    }
}

/// What the server has after a clean end.
fn check(
    world: &World,
    files: &HashMap<usize, (FileHandle, Vec<u8>)>,
) -> Result<(), TestCaseError> {
    for file in 0..FILES {
        let there = std::fs::read(world.at_server(&name(file))).ok();
        match (files.get(&file), there) {
            (Some((_, model)), Some(there)) => {
                prop_assert_eq!(there.len(), model.len(), "size of {} at the server", file);
                let wrong = (0..model.len()).find(|i| there[*i] != model[*i]);
                prop_assert_eq!(wrong, None, "{} differs at the server", file);
            }
            (None, None) => {}
            (model, there) => {
                prop_assert!(
                    false,
                    "{}: {} here, {} there",
                    file,
                    model.is_some(),
                    there.is_some()
                );
            }
        }
    }
    Ok(())
}

macro_rules! models {
    ($($name:ident: $policy:ident, $consistency:ident;)*) => {
        proptest! {
            #![proptest_config(ProptestConfig {
                cases: std::env::var("GRIDVFS_TEST_CASES").ok().and_then(|n| n.parse().ok())
                    .unwrap_or(12),
                max_shrink_iters: 200,
                ..ProptestConfig::default()
            })]
            $(#[test]
            fn $name(ops in prop::collection::vec(op(), 1..60)) {
                run(Policy::$policy, Consistency::$consistency, ops)?;
            })*
        }
    };
}

models! {
    write_back_dedicated: WriteBack, Dedicated;
    write_back_shared: WriteBack, Shared;
    write_through_dedicated: WriteThrough, Dedicated;
    write_through_shared: WriteThrough, Shared;
}
