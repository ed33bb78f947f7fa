//! Random programs against a plain vector of bytes.

use std::time::Duration;

use bytes::Bytes;
use gridvfs_cache::BufferOptions;
use gridvfs_vfs::{Allocation, SetAttr, Stability, Status, Vfs};
use proptest::prelude::*;

use super::server::*;

const SIZE: u64 = 600 * 1024;

#[derive(Clone, Debug)]
enum Op {
    Write { at: u64, length: usize, byte: u8, stable: bool },
    Read { at: u64, length: u32 },
    Truncate(u64),
    Punch { at: u64, length: u64 },
    Flush,
    Commit,
    GetAttr,
    Lookup,
    Crash,
    Sleep(u64),
    Jukebox,
    Short(usize),
    Invalidate,
    Forget,
}

fn op() -> impl Strategy<Value = Op> {
    let small = (0..SIZE, 1usize..5000);
    let page = (0..SIZE / 4096, 1usize..4).prop_map(|(page, count)| (page * 4096, count * 4096));
    let large = (0..SIZE, 1usize..200_000);
    let range = prop_oneof![4 => small, 4 => page, 1 => large];
    prop_oneof![
        10 => (range.clone(), any::<u8>(), prop::bool::weighted(0.05)).prop_map(
            |((at, length), byte, stable)| Op::Write { at, length, byte, stable }
        ),
        8 => range.clone().prop_map(|(at, length)| Op::Read { at, length: length as u32 }),
        1 => (0..SIZE).prop_map(Op::Truncate),
        1 => range.prop_map(|(at, length)| Op::Punch { at, length: length as u64 }),
        2 => Just(Op::Flush),
        1 => Just(Op::Commit),
        2 => Just(Op::GetAttr),
        1 => Just(Op::Lookup),
        1 => Just(Op::Crash),
        2 => (1u64..4000).prop_map(Op::Sleep),
        1 => Just(Op::Jukebox),
        1 => prop_oneof![Just(0usize), Just(1000), Just(5000)].prop_map(Op::Short),
        1 => Just(Op::Invalidate),
        1 => Just(Op::Forget),
    ]
}

/// Small limits, so that a short program meets them.
fn small_options() -> BufferOptions {
    BufferOptions {
        read_max_bytes: 256 * 1024,
        clean_max_bytes: 64 * 1024,
        window_max_bytes: 128 * 1024,
        unit_bytes: 32 * 1024,
        around_bytes: 4096,
        write_max_bytes: 300 * 1024,
        write_flight_max_bytes: 128 * 1024,
        write_calls_max: 6,
        chunk_bytes: 64 * 1024,
        commit_bytes: 100 * 1024,
        ..BufferOptions::default()
    }
}

async fn run(ops: Vec<Op>, files: usize) -> Result<(), TestCaseError> {
    let server = Server::slow(5);
    server.faults.lock().jitter = Duration::from_millis(60);
    let options = small_options();
    let layer = layer(&server, options.clone()).await;
    let mut models = vec![Vec::<u8>::new(); files];
    (0..files).for_each(|index| server.put(handle(index as u8 + 1), Vec::new()));
    for (number, op) in ops.into_iter().enumerate() {
        let index = number % files;
        let (file, model) = (handle(index as u8 + 1), &mut models[index]);
        let who = caller();
        match op {
            Op::Write { at, length, byte, stable } => {
                let data: Vec<u8> = (0..length).map(|i| byte.wrapping_add(i as u8)).collect();
                let (start, end) = (at as usize, at as usize + length);
                model.resize(model.len().max(end), 0);
                model[start..end].copy_from_slice(&data);
                let how = if stable { Stability::FileSync } else { Stability::Unstable };
                let written = layer.write(&who, &file, at, Bytes::from(data), how).await;
                prop_assert_eq!(written.map(|written| written.count), Ok(length as u32));
                if stable {
                    prop_assert!(server.durable(&file) == *model, "not durable after {}", number);
                }
            }
            Op::Read { at, length } => {
                let there = read_all(&*layer, &file, at, length as usize).await;
                let start = (at as usize).min(model.len());
                let end = (at as usize + length as usize).min(model.len());
                prop_assert_eq!(there.len(), end - start, "length of read {}", number);
                prop_assert!(there == model[start..end], "content of read {}", number);
            }
            Op::Truncate(size) => {
                model.resize(size as usize, 0);
                let changes = SetAttr { size: Some(size), ..SetAttr::default() };
                let wcc = layer.setattr(&who, &file, &changes, None).await;
                let after = wcc.map(|wcc| wcc.after.map(|attr| attr.size));
                prop_assert_eq!(after, Ok(Some(size)));
            }
            Op::Punch { at, length } => {
                let end = ((at + length) as usize).min(model.len());
                model[(at as usize).min(end)..end].fill(0);
                let punched = layer.allocate(&who, &file, at, length, Allocation::PunchHole).await;
                prop_assert!(punched.is_ok());
            }
            Op::Flush => {
                prop_assert_eq!(layer.flush(&who, &file).await, Ok(()));
            }
            Op::Commit => {
                let mut committed = layer.commit(&who, &file, 0, 0).await;
                while committed == Err(Status::JUKEBOX.into()) {
                    // Passed on for a file that the layer knows nothing of.
                    committed = layer.commit(&who, &file, 0, 0).await;
                }
                prop_assert!(committed.is_ok());
                prop_assert!(server.durable(&file) == *model, "not durable after {}", number);
            }
            Op::GetAttr => {
                let size = layer.getattr(&who, &file).await.map(|attr| attr.size);
                prop_assert_eq!(size, Ok(model.len() as u64));
            }
            Op::Lookup => {
                let entry = layer.lookup(&who, &handle(0), file.as_bytes()).await;
                let size = entry.ok().and_then(|entry| entry.attr).map(|attr| attr.size);
                prop_assert_eq!(size, Some(model.len() as u64));
            }
            Op::Crash => server.crash(),
            Op::Sleep(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Op::Jukebox => {
                let mut faults = server.faults.lock();
                faults.writes.push_back(Status::JUKEBOX.into());
                faults.commits.push_back(Status::JUKEBOX.into());
            }
            Op::Short(length) => server.faults.lock().short = length,
            Op::Invalidate => layer.invalidate(&file),
            Op::Forget => layer.forget(&file),
        }
        let (read, written) = layer.memory_bytes();
        prop_assert!(read <= options.read_max_bytes);
        // A piece that is split is charged for both parts at once.
        prop_assert!(written <= options.write_max_bytes + options.chunk_bytes);
    }
    prop_assert_eq!(layer.shutdown().await, Ok(()));
    for (index, model) in models.iter().enumerate() {
        let file = handle(index as u8 + 1);
        prop_assert!(server.content(&file) == *model, "content of file {}", index);
        prop_assert!(server.durable(&file) == *model, "durable content of file {}", index);
    }
    prop_assert!(!server.seen.lock().overlapped, "overlapping WRITEs under way together");
    tokio::time::sleep(Duration::from_secs(10)).await;
    prop_assert_eq!(layer.memory_bytes().1, 0, "memory of writes is given back");
    prop_assert_eq!(layer.dirty_bytes(), 0);
    Ok(())
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().expect("a runtime")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn one_file_is_what_was_written(ops in prop::collection::vec(op(), 1..120)) {
        runtime().block_on(run(ops, 1))?;
    }

    #[test]
    fn three_files_share_the_limits(ops in prop::collection::vec(op(), 1..150)) {
        runtime().block_on(run(ops, 3))?;
    }
}
