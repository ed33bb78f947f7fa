//! Read-ahead, single flight, freshness, the end of the file.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use gridvfs_cache::{BufferLayer, BufferOptions};
use gridvfs_vfs::{Access, Error, Stability, Status, Vfs};

use super::server::*;

const MIB: usize = 1 << 20;
const PIECE: usize = 128 * 1024;

async fn with_file(delay_ms: u64, content: Vec<u8>) -> (Arc<Server>, Arc<BufferLayer>) {
    let server = Server::slow(delay_ms);
    server.put(handle(1), content);
    let layer = layer(&server, BufferOptions::default()).await;
    (server, layer)
}

#[tokio::test(start_paused = true)]
async fn a_sequential_reader_keeps_the_link_full_within_the_limit() {
    let size = 64 * MIB;
    let (server, layer) = with_file(32, pattern(0, size)).await;
    let began = tokio::time::Instant::now();
    for at in (0..size).step_by(PIECE) {
        let read = layer.read(&caller(), &handle(1), at as u64, PIECE as u32).await.expect("reads");
        assert!(read.data == pattern(at as u64, PIECE), "at {at}");
        assert_eq!(read.eof, at + PIECE == size);
    }
    // One unit a round trip would be 256 round trips; a full window of 8 MiB is 8.
    let round_trips = began.elapsed().as_millis() / 32;
    assert!(round_trips <= 20, "{round_trips} round trips");
    assert!(server.seen.lock().reading_most >= 16, "{}", server.seen.lock().reading_most);
    let counters = layer.counters();
    let peak = counters.read_peak_bytes.load(Ordering::Relaxed);
    assert!(peak <= BufferOptions::default().read_max_bytes as u64, "{peak}");
    let fetched = counters.fetched_bytes.load(Ordering::Relaxed);
    assert_eq!(fetched, size as u64, "each byte is fetched once");
}

/// Asserts that a read of 4096 bytes at 5,000,000 was asked for first and once, in whole pages, and what
/// lies around it in 32 KiB beside it.
fn asked_for_once(server: &Server) {
    let mut reads = server.seen.lock().reads.clone();
    assert_eq!(reads[0], (4_997_120, 8192), "{reads:?}");
    reads.sort_unstable();
    let parts = [(4_980_736, 16_384), (4_997_120, 8192), (5_005_312, 8192)];
    assert_eq!(reads, parts);
}

#[tokio::test(start_paused = true)]
async fn concurrent_misses_share_one_read() {
    let (server, layer) = with_file(32, pattern(0, 8 * MIB)).await;
    let reads: Vec<_> = (0..10)
        .map(|_| {
            let layer = layer.clone();
            tokio::spawn(async move { read_all(&*layer, &handle(1), 5_000_000, 4096).await })
        })
        .collect();
    for read in reads {
        assert!(read.await.expect("reads") == pattern(5_000_000, 4096));
    }
    asked_for_once(&server);
    assert_eq!(layer.counters().joined.load(Ordering::Relaxed), 9);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_goes_away_takes_nothing_from_others() {
    let (server, layer) = with_file(32, pattern(0, 8 * MIB)).await;
    let who = caller();
    let file = handle(1);
    let mut first = Box::pin(layer.read(&who, &file, 5_000_000, 4096));
    assert!(poll_once(first.as_mut()).is_none());
    let second = tokio::spawn({
        let layer = layer.clone();
        async move { read_all(&*layer, &handle(1), 5_000_000, 4096).await }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    drop(first);
    assert!(second.await.expect("reads") == pattern(5_000_000, 4096));
    asked_for_once(&server);
}

#[tokio::test(start_paused = true)]
async fn a_hit_is_answered_on_the_first_poll() {
    let (_, layer) = with_file(32, pattern(0, 8 * MIB)).await;
    let _ = layer.read(&caller(), &handle(1), 4 << 20, 4096).await;
    // Nobody has waited for what lies around it.
    tokio::time::sleep(Duration::from_millis(33)).await;
    let answer = poll_once(layer.read(&caller(), &handle(1), (4 << 20) + 8192, 4096));
    let answer = answer.expect("at once").expect("reads");
    assert!(answer.data == pattern((4 << 20) + 8192, 4096));
    let written = Bytes::from_static(b"new");
    let taken = poll_once(layer.write(&caller(), &handle(1), 0, written, Stability::Unstable));
    assert_eq!(taken.expect("at once").expect("writes").count, 3);
    let own = poll_once(layer.read(&caller(), &handle(1), 0, 3)).expect("at once").expect("reads");
    assert_eq!(&own.data[..], b"new");
}

#[tokio::test(start_paused = true)]
async fn random_reads_fetch_little() {
    let (server, layer) = with_file(32, pattern(0, 32 * MIB)).await;
    for index in 0..100u64 {
        let at = (index * 7919 + 13) % 8000 * 4096;
        let _ = layer.read(&caller(), &handle(1), at, 4096).await.expect("reads");
    }
    let fetched: u64 = server.seen.lock().reads.iter().map(|read| u64::from(read.1)).sum();
    assert!(fetched <= 100 * 64 * 1024, "{fetched}");
}

#[tokio::test(start_paused = true)]
async fn a_change_by_others_is_seen_by_attributes_invalidation_and_age() {
    let (server, layer) = with_file(1, vec![1; 100_000]).await;
    let (who, file) = (caller(), handle(1));
    let first = async || read_all(&*layer, &file, 50_000, 1).await[0];
    assert_eq!(first().await, 1);
    server.put(file, vec![2; 100_000]);
    assert_eq!(first().await, 1, "cached");
    let _ = layer.access(&who, &file, Access(Access::READ)).await.expect("access");
    assert_eq!(first().await, 2, "the signature changed");
    server.put(file, vec![3; 100_000]);
    layer.invalidate(&file);
    assert_eq!(first().await, 3, "invalidated");
    server.put(file, vec![4; 100_000]);
    tokio::time::sleep(Duration::from_millis(3100)).await;
    assert_eq!(first().await, 4, "expired");
    server.put(file, vec![5; 200_000]);
    let _ = read_all(&*layer, &file, 150_000, 1).await;
    assert_eq!(first().await, 5, "another read showed the change");
}

#[tokio::test(start_paused = true)]
async fn files_cut_and_extended_by_others_end_where_they_end() {
    let (server, layer) = with_file(1, pattern(0, 100_000)).await;
    let (who, file) = (caller(), handle(1));
    assert_eq!(read_all(&*layer, &file, 0, 200_000).await.len(), 100_000);
    server.put(file, pattern(0, 150_000));
    assert_eq!(layer.getattr(&who, &file).await.expect("getattr").size, 150_000);
    assert!(read_all(&*layer, &file, 0, 200_000).await == pattern(0, 150_000));
    server.put(file, pattern(0, 70_000));
    assert_eq!(layer.getattr(&who, &file).await.expect("getattr").size, 70_000);
    assert!(read_all(&*layer, &file, 0, 200_000).await == pattern(0, 70_000));
}

#[tokio::test(start_paused = true)]
async fn short_answers_and_false_ends_are_asked_again() {
    let (server, layer) = with_file(1, pattern(0, MIB)).await;
    {
        let mut faults = server.faults.lock();
        faults.short = 10_000;
        faults.false_ends = 3;
    }
    assert!(read_all(&*layer, &handle(1), 0, 2 * MIB).await == pattern(0, MIB));
    assert!(layer.counters().short_reads.load(Ordering::Relaxed) > 3);
}

#[tokio::test(start_paused = true)]
async fn an_error_is_the_readers_own_and_is_not_kept() {
    let (server, layer) = with_file(1, pattern(0, MIB)).await;
    server.faults.lock().reads.push_back(Status::IO.into());
    let failed = layer.read(&caller(), &handle(1), 500_000, 4096).await;
    assert_eq!(failed.map(|_| ()), Err(Status::IO.into()));
    assert!(read_all(&*layer, &handle(1), 500_000, 4096).await == pattern(500_000, 4096));
}

#[tokio::test(start_paused = true)]
async fn more_readers_than_memory_all_get_their_data() {
    let server = Server::slow(10);
    server.put(handle(1), pattern(0, 64 * MIB));
    let options = BufferOptions { read_max_bytes: 2 * MIB, ..BufferOptions::default() };
    let layer = layer(&server, options).await;
    let reads: Vec<_> = (0..48u64)
        .map(|index| {
            let layer = layer.clone();
            tokio::spawn(async move {
                let at = (index * 29 % 63) * MIB as u64 + 777;
                assert!(read_all(&*layer, &handle(1), at, MIB).await == pattern(at, MIB));
            })
        })
        .collect();
    for read in reads {
        read.await.expect("reads");
    }
    assert!(layer.counters().read_peak_bytes.load(Ordering::Relaxed) <= 2 * MIB as u64);
}

#[tokio::test(start_paused = true)]
async fn a_file_being_extended_reads_zeros_in_its_hole() {
    let (server, layer) = with_file(1, vec![9; 1000]).await;
    let (who, file) = (caller(), handle(1));
    let tail = Bytes::from_static(b"tail");
    layer.write(&who, &file, 500_000, tail, Stability::Unstable).await.expect("writes");
    let all = read_all(&*layer, &file, 0, MIB).await;
    assert_eq!(all.len(), 500_004);
    assert!(all[..1000].iter().all(|byte| *byte == 9));
    assert!(all[1000..500_000].iter().all(|byte| *byte == 0));
    layer.commit(&who, &file, 0, 0).await.expect("commits");
    assert!(read_all(&*layer, &file, 0, MIB).await == all);
    assert!(server.content(&file) == all);
}

#[tokio::test(start_paused = true)]
async fn a_file_with_written_data_is_not_fetched() {
    let (_server, layer) = with_file(32, pattern(0, 10_000)).await;
    let (caller, file, asked) = (caller(), handle(1), [(4096, 8192)]);
    let fetch = || layer.fetch(&caller, &file, &asked, 1);
    let busy = || Some(Error::Status(Status::JUKEBOX));
    let data = |at: usize| pattern(0, 10_000)[at..].to_vec();
    assert_eq!(fetch().await.expect("fetched").ranges[0].data, data(4096));

    let write = || {
        let data = Bytes::from_static(b"new");
        layer.write(&caller, &file, 5000, data, Stability::Unstable)
    };
    write().await.expect("writes");
    assert_eq!(fetch().await.err(), busy(), "unsent");
    layer.flush(&caller, &file).await.expect("flushes");
    assert_eq!(fetch().await.err(), busy(), "sent, and could be lost");
    layer.commit(&caller, &file, 0, 0).await.expect("commits");
    let fetched = fetch().await.expect("fetched");
    assert_eq!(&fetched.ranges[0].data[5000 - 4096..][..3], b"new");
    assert_eq!(fetched.attr.mtime, layer.getattr(&caller, &file).await.expect("attr").mtime);

    let (fetched, written) = tokio::join!(fetch(), write());
    written.expect("writes");
    assert_eq!(fetched.err(), busy(), "written meanwhile");
}
