//! Write-behind: gathering, limits, durability, errors, silence.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use gridvfs_cache::{BufferLayer, BufferOptions};
use gridvfs_vfs::{Error, SetAttr, Stability, Status, Vfs};

use super::server::*;

const MIB: usize = 1 << 20;

async fn empty(delay_ms: u64) -> (Arc<Server>, Arc<BufferLayer>) {
    let server = Server::slow(delay_ms);
    server.put(handle(1), Vec::new());
    let layer = layer(&server, BufferOptions::default()).await;
    (server, layer)
}

async fn write(layer: &BufferLayer, at: u64, data: Vec<u8>) -> Result<u32, Error> {
    let data = Bytes::from(data);
    let written = layer.write(&caller(), &handle(1), at, data, Stability::Unstable).await?;
    Ok(written.count)
}

#[tokio::test(start_paused = true)]
async fn small_writes_in_order_leave_as_whole_chunks() {
    let (server, layer) = empty(32).await;
    let size = 16 * MIB;
    let mut at = 0;
    while at < size {
        let length = (1000 + at % 2000).min(size - at);
        write(&layer, at as u64, pattern(at as u64, length)).await.expect("writes");
        at += length;
    }
    layer.flush(&caller(), &handle(1)).await.expect("flushes");
    assert!(server.content(&handle(1)) == pattern(0, size));
    let writes = server.seen.lock().writes.len();
    assert!(writes <= 17, "{writes} WRITEs");
}

#[tokio::test(start_paused = true)]
async fn a_fast_writer_stays_within_the_limit_and_keeps_the_link_full() {
    let (server, layer) = empty(32).await;
    let size = 64 * MIB;
    let began = tokio::time::Instant::now();
    for at in (0..size).step_by(MIB) {
        write(&layer, at as u64, pattern(at as u64, MIB)).await.expect("writes");
    }
    layer.commit(&caller(), &handle(1), 0, 0).await.expect("commits");
    let round_trips = began.elapsed().as_millis() / 32;
    assert!(round_trips <= 40, "{round_trips} round trips for 64 WRITEs and their COMMITs");
    assert!(server.durable(&handle(1)) == pattern(0, size));
    let peak = layer.counters().write_peak_bytes.load(Ordering::Relaxed);
    assert!(peak <= BufferOptions::default().write_max_bytes as u64, "{peak}");
    assert!(layer.counters().stalled.load(Ordering::Relaxed) > 0);
}

#[tokio::test(start_paused = true)]
async fn single_pages_all_arrive_before_flush_returns() {
    let (server, layer) = empty(32).await;
    for page in 0..5000u64 {
        write(&layer, page * 8192, vec![page as u8; 4096]).await.expect("writes");
    }
    layer.flush(&caller(), &handle(1)).await.expect("flushes");
    let content = server.content(&handle(1));
    assert!(
        (0..5000usize).all(|page| content[page * 8192..][..4096].iter().all(|b| *b == page as u8))
    );
}

#[tokio::test(start_paused = true)]
async fn data_leaves_after_the_delay_and_is_committed_when_idle() {
    let (server, layer) = empty(1).await;
    write(&layer, 0, vec![7; 100]).await.expect("writes");
    assert!(server.seen.lock().writes.is_empty());
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(server.content(&handle(1)), vec![7; 100]);
    assert_eq!(layer.dirty_bytes(), 100, "held until committed");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(server.durable(&handle(1)), vec![7; 100]);
    assert_eq!(layer.dirty_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_page_rewritten_all_the_time_still_leaves() {
    let (server, layer) = empty(1).await;
    for round in 0..100u8 {
        write(&layer, 0, vec![round; 4096]).await.expect("writes");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(server.seen.lock().writes.len() >= 5);
    assert!(!server.seen.lock().overlapped);
}

#[tokio::test(start_paused = true)]
async fn a_small_commit_is_one_round_trip() {
    let (server, layer) = empty(32).await;
    write(&layer, 4096, vec![7; 4096]).await.expect("writes");
    let began = tokio::time::Instant::now();
    layer.commit(&caller(), &handle(1), 0, 0).await.expect("commits");
    assert!(began.elapsed() < Duration::from_millis(40));
    assert_eq!(server.seen.lock().writes, [(4096, 4096, Stability::FileSync)]);
    assert_eq!(server.seen.lock().commits, 0);
    assert_eq!(server.durable(&handle(1)).len(), 8192);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_server_gets_everything_again() {
    let (server, layer) = empty(5).await;
    for at in (0..4 * MIB).step_by(MIB) {
        write(&layer, at as u64, pattern(at as u64, MIB)).await.expect("writes");
    }
    layer.flush(&caller(), &handle(1)).await.expect("flushes");
    server.crash();
    assert!(server.content(&handle(1)).is_empty());
    assert!(read_all(&*layer, &handle(1), 0, 8 * MIB).await == pattern(0, 4 * MIB), "held data");
    let size = layer.getattr(&caller(), &handle(1)).await.expect("getattr").size;
    assert_eq!(size, 4 * MIB as u64, "the size never goes back");
    layer.commit(&caller(), &handle(1), 0, 0).await.expect("commits");
    assert!(server.durable(&handle(1)) == pattern(0, 4 * MIB));
    assert!(layer.counters().resent_bytes.load(Ordering::Relaxed) >= 4 * MIB as u64);
}

#[tokio::test(start_paused = true)]
async fn overwritten_data_that_the_server_lost_is_noticed() {
    let (server, layer) = empty(5).await;
    write(&layer, 0, vec![1; 200_000]).await.expect("writes");
    layer.flush(&caller(), &handle(1)).await.expect("flushes");
    server.crash();
    write(&layer, 0, vec![2; 200_000]).await.expect("writes");
    layer.commit(&caller(), &handle(1), 0, 0).await.expect("commits");
    assert!(server.durable(&handle(1)) == vec![2; 200_000]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_always_loses_is_asked_for_durable_writes() {
    let (server, layer) = empty(1).await;
    server.faults.lock().forgetful = true;
    write(&layer, 0, pattern(0, 3 * MIB)).await.expect("writes");
    layer.commit(&caller(), &handle(1), 0, 0).await.expect("commits");
    assert!(server.durable(&handle(1)) == pattern(0, 3 * MIB));
}

#[tokio::test(start_paused = true)]
async fn an_error_is_reported_once_and_its_data_dropped() {
    let (server, layer) = empty(1).await;
    let (who, file) = (caller(), handle(1));
    for error in [Status::NOSPC, Status::DQUOT, Status::IO, Status::FBIG] {
        server.faults.lock().writes.push_back(error.into());
        write(&layer, 0, vec![1; 1000]).await.expect("is taken");
        assert_eq!(layer.flush(&who, &file).await, Err(error.into()));
        assert_eq!(layer.flush(&who, &file).await, Ok(()), "once");
        assert!(layer.commit(&who, &file, 0, 0).await.is_ok(), "once");
        assert_eq!(layer.dirty_bytes(), 0);
        assert_eq!(layer.memory_bytes().1, 0);
    }
    server.faults.lock().writes.push_back(Status::NOSPC.into());
    write(&layer, 0, vec![1; 1000]).await.expect("is taken");
    let size = layer.getattr(&who, &file).await.expect("another's error is not getattr's").size;
    assert_eq!(size, 0);
    assert_eq!(write(&layer, 0, vec![1; 1000]).await, Err(Status::NOSPC.into()), "the next write");
    assert_eq!(write(&layer, 0, vec![1; 1000]).await, Ok(1000), "once");
    server.faults.lock().commits.push_back(Status::IO.into());
    layer.flush(&who, &file).await.expect("flushes");
    assert_eq!(layer.shutdown().await, Err(Status::IO.into()), "the last chance");
    assert_eq!(layer.shutdown().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_loses_nothing() {
    let (server, layer) = empty(1).await;
    let (who, file) = (caller(), handle(1));
    server.faults.lock().silent = true;
    write(&layer, 0, pattern(0, 100_000)).await.expect("is taken");
    let failed = layer.flush(&who, &file).await;
    assert!(matches!(failed, Err(Error::Unreachable(_))), "{failed:?}");
    assert!(layer.shutdown().await.is_err());
    let mut at = 100_000;
    let refused = loop {
        match write(&layer, at, pattern(at, MIB)).await {
            Ok(count) => at += u64::from(count),
            Err(error) => break error,
        }
        assert!(at < 64 * MIB as u64, "takes more than its limit");
    };
    assert!(matches!(refused, Error::Unreachable(_)));
    server.faults.lock().silent = false;
    assert_eq!(layer.shutdown().await, Ok(()));
    assert!(server.durable(&file) == pattern(0, at as usize));
}

#[tokio::test(start_paused = true)]
async fn a_truncation_saves_sending_what_it_cuts() {
    let (server, layer) = empty(1).await;
    let (who, file) = (caller(), handle(1));
    write(&layer, 0, pattern(0, 500_000)).await.expect("writes");
    let cut = SetAttr { size: Some(1000), ..SetAttr::default() };
    layer.setattr(&who, &file, &cut, None).await.expect("truncates");
    assert_eq!(layer.shutdown().await, Ok(()));
    assert!(server.durable(&file) == pattern(0, 1000));
    assert!(server.seen.lock().writes.iter().all(|(at, length, _)| *at as usize + length <= 1000));
}

#[tokio::test(start_paused = true)]
async fn a_refused_truncation_loses_nothing() {
    let (server, layer) = empty(1).await;
    let (who, file) = (caller(), handle(1));
    write(&layer, 0, pattern(0, 500_000)).await.expect("writes");
    let cut = SetAttr { size: Some(1000), ..SetAttr::default() };
    let gone = handle(9);
    assert!(layer.setattr(&who, &gone, &cut, None).await.is_err());
    server.faults.lock().silent = true;
    assert!(layer.setattr(&who, &file, &cut, None).await.is_err());
    server.faults.lock().silent = false;
    assert_eq!(layer.shutdown().await, Ok(()));
    assert!(server.durable(&file) == pattern(0, 500_000));
}

#[tokio::test(start_paused = true)]
async fn discarded_data_is_never_sent() {
    let (server, layer) = empty(1).await;
    write(&layer, 0, vec![1; 100_000]).await.expect("writes");
    layer.discard(&handle(1));
    layer.forget(&handle(1));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(layer.shutdown().await, Ok(()));
    assert!(server.seen.lock().writes.is_empty());
    assert_eq!(layer.memory_bytes().1, 0);
}

#[tokio::test(start_paused = true)]
async fn forgotten_files_are_still_written() {
    let (server, layer) = empty(1).await;
    write(&layer, 0, vec![1; 100_000]).await.expect("writes");
    layer.forget(&handle(1));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(server.durable(&handle(1)), vec![1; 100_000]);
    assert!(layer.files().is_empty());
}

#[tokio::test(start_paused = true)]
async fn writers_wait_in_turn_and_a_writer_that_goes_away_writes_nothing() {
    let (server, layer) = empty(10).await;
    let mut full = 0;
    while let Some(written) = poll_once(write(&layer, full, vec![3; MIB])) {
        full += u64::from(written.expect("writes"));
    }
    // The one that waited is gone; nothing of it was taken.
    let waiters: Vec<_> = (0..8u64)
        .map(|index| {
            let layer = layer.clone();
            tokio::spawn(
                async move { write(&layer, full + index * MIB as u64, vec![4; MIB]).await },
            )
        })
        .collect();
    for waiter in waiters {
        assert_eq!(waiter.await.expect("runs"), Ok(MIB as u32));
    }
    assert_eq!(layer.shutdown().await, Ok(()));
    let content = server.durable(&handle(1));
    assert_eq!(content.len(), full as usize + 8 * MIB);
    assert!(content[..full as usize].iter().all(|byte| *byte == 3));
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_does_not_shrink_the_file() {
    let (_, layer) = empty(20).await;
    let lookup = tokio::spawn({
        let layer = layer.clone();
        async move { layer.lookup(&caller(), &handle(0), &[1]).await }
    });
    tokio::time::sleep(Duration::from_millis(19)).await;
    write(&layer, 0, vec![1; 1000]).await.expect("writes");
    let attr = lookup.await.expect("runs").expect("finds").attr.expect("attributes");
    assert_eq!(attr.size, 1000);
}

/// Threads, a real clock: eight tasks in one file, each with its own part and model, over a server
/// that restarts now and then.
#[test]
fn threads_share_a_file_over_a_server_that_restarts() {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(4).enable_time().build().expect("a runtime");
    runtime.block_on(async {
        const PART: usize = 300_000;
        let server = Server::new();
        server.put(handle(1), Vec::new());
        server.faults.lock().jitter = Duration::from_millis(3);
        let options = BufferOptions {
            read_max_bytes: MIB,
            clean_max_bytes: 256 * 1024,
            write_max_bytes: 600 * 1024,
            chunk_bytes: 64 * 1024,
            unit_bytes: 32 * 1024,
            commit_bytes: 200 * 1024,
            write_delay: Duration::from_millis(2),
            ..BufferOptions::default()
        };
        let layer = layer(&server, options).await;
        let tasks: Vec<_> = (0..8u64)
            .map(|index| {
                let (layer, server) = (layer.clone(), server.clone());
                tokio::spawn(async move {
                    let (base, mut model) = (index * PART as u64, vec![0u8; PART]);
                    write(&layer, base, model.clone()).await.expect("writes");
                    let mut random = index * 2 + 1;
                    for round in 0..300u64 {
                        random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                        let at = (random >> 33) as usize % (PART - 20_000);
                        let length = 1 + (random >> 20) as usize % 20_000;
                        match round % 5 {
                            0..=2 => {
                                model[at..at + length].fill(round as u8);
                                let data = model[at..at + length].to_vec();
                                write(&layer, base + at as u64, data).await.expect("writes");
                            }
                            3 => {
                                let from = base + at as u64;
                                let there = read_all(&*layer, &handle(1), from, length).await;
                                assert!(there == model[at..at + length], "task {index}, {round}");
                            }
                            _ if round % 50 == 49 && index == 0 => server.crash(),
                            _ if round % 20 == 4 => {
                                layer.commit(&caller(), &handle(1), 0, 0).await.expect("commits");
                                let start = base as usize;
                                let durable = server.durable(&handle(1));
                                assert!(durable[start..start + PART] == model);
                            }
                            _ => {}
                        }
                    }
                    model
                })
            })
            .collect();
        let mut whole = Vec::new();
        for task in tasks {
            whole.extend(task.await.expect("runs"));
        }
        assert_eq!(layer.shutdown().await, Ok(()));
        assert!(server.durable(&handle(1)) == whole);
        assert!(!server.seen.lock().overlapped);
        assert_eq!(layer.dirty_bytes(), 0);
    });
}

#[tokio::test(start_paused = true)]
async fn data_written_during_a_truncation_counts_as_written_before_it() {
    let (server, layer) = empty(50).await;
    let (who, file) = (caller(), handle(1));
    let cut = tokio::spawn({
        let layer = layer.clone();
        async move {
            let cut = SetAttr { size: Some(1000), ..SetAttr::default() };
            layer.setattr(&caller(), &handle(1), &cut, None).await
        }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(server.seen.lock().setattrs, 1);
    // A WRITE sent now would arrive after the SETATTR and bring back what that has cut.
    server.faults.lock().delay = Duration::from_millis(100);
    write(&layer, 0, pattern(0, 5000)).await.expect("writes");
    layer.flush(&who, &file).await.expect("flushes");
    cut.await.expect("runs").expect("truncates");
    assert!(server.content(&file) == pattern(0, 1000));
    assert!(read_all(&*layer, &file, 0, 5000).await == pattern(0, 1000));
}

#[tokio::test(start_paused = true)]
async fn data_of_a_removed_file_is_no_error_of_the_write_back() {
    let (server, layer) = empty(1).await;
    server.put(handle(2), Vec::new());
    let data = Bytes::from_static(b"kept");
    layer.write(&caller(), &handle(2), 0, data, Stability::Unstable).await.expect("writes");
    write(&layer, 0, vec![7; 100]).await.expect("writes");
    server.remove(&handle(1));
    layer.shutdown().await.expect("nothing is missing");
    assert_eq!(server.durable(&handle(2)), b"kept");

    // Who still has the file open is told.
    server.put(handle(1), Vec::new());
    write(&layer, 0, vec![7; 100]).await.expect("writes");
    server.remove(&handle(1));
    let told = layer.commit(&caller(), &handle(1), 0, 0).await;
    assert!(matches!(told, Err(Error::Status(Status::STALE))), "{told:?}");
}
