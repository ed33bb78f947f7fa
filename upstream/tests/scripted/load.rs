//! Many calls at once, and callers that go away.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use gridvfs_vfs::{Stability, Vfs, nfs3};

use super::model::{ROOT, handle};
use super::server::{Act, Server, caller, quick};

#[tokio::test]
async fn many_calls_are_in_flight_on_each_stripe() {
    for (stripes, calls) in [(1, 64), (1, 128), (2, 256), (4, 512)] {
        let server = Server::new(move |call| match call.procedure {
            nfs3::READ => Act::Gather(calls as usize),
            _ => Act::Answer,
        });
        let data: Vec<u8> = (0..1 << 20).map(|at: u32| (at >> 8) as u8 ^ at as u8).collect();
        let file = server.model.lock().add_file("f", data.clone());
        let mut options = quick(stripes);
        options.timing.resend = Duration::from_secs(60);
        options.timing.resend_max = Duration::from_secs(60);
        let client = server.client(options).await;
        let mut tasks = tokio::task::JoinSet::new();
        for at in 0..calls {
            let client = client.clone();
            tasks.spawn(async move {
                let offset = at * 1024;
                (offset, client.read(&caller(), &file, offset, 1024).await.expect("read").data)
            });
        }
        while let Some(done) = tasks.join_next().await {
            let (offset, read) = done.expect("no panic");
            assert!(read[..] == data[offset as usize..offset as usize + 1024]);
        }
        assert_eq!(server.held_max.load(Ordering::SeqCst) as u64, calls);
        assert_eq!(client.counters().retransmits.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test]
async fn calls_beyond_the_limit_wait_their_turn() {
    let server = Server::new(|call| match call.procedure {
        nfs3::LOOKUP => Act::Late(Duration::from_millis(5)),
        _ => Act::Answer,
    });
    server.model.lock().add_file("f", Vec::new());
    let mut options = quick(2);
    options.calls_per_stripe = 4;
    let client = server.client(options).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let client = client.clone();
        tasks.spawn(async move { client.lookup(&caller(), &handle(ROOT), b"f").await });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic").expect("found");
    }
    let most = server.held_max.load(Ordering::SeqCst);
    assert!(most <= 8, "{most} at once");
}

#[tokio::test]
async fn a_request_larger_than_all_limits_goes_through() {
    let server = Server::new(|_| Act::Answer);
    let file = server.model.lock().add_file("f", Vec::new());
    server.model.lock().read_max = 4096;
    server.model.lock().write_max = 4096;
    let mut options = quick(2);
    options.calls_per_stripe = 4;
    options.data_bytes_max = 2048;
    let client = server.client(options).await;
    let data: Vec<u8> = (0..300_001u32).map(|at| (at % 251) as u8).collect();
    let written =
        client.write(&caller(), &file, 0, Bytes::from(data.clone()), Stability::FileSync).await;
    let written = written.expect("written");
    assert_eq!((written.count, written.committed), (300_001, Stability::FileSync));
    let read = client.read(&caller(), &file, 0, 400_000).await.expect("read");
    assert!(read.data == data && read.eof);
}

#[tokio::test]
async fn callers_that_go_away_leave_nothing_behind() {
    let server = Server::new(|call| match call.procedure {
        nfs3::READ => Act::Late(Duration::from_millis(50)),
        _ => Act::Answer,
    });
    let file = server.model.lock().add_file("f", vec![1; 4096]);
    let mut options = quick(1);
    options.calls_per_stripe = 8;
    options.data_bytes_max = 64 << 10;
    let client = server.client(options).await;
    let mut tasks = Vec::new();
    for _ in 0..100 {
        let client = client.clone();
        tasks.push(tokio::spawn(async move { client.read(&caller(), &file, 0, 4096).await }));
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    for (number, task) in tasks.iter().enumerate() {
        if number % 10 != 0 {
            task.abort();
        }
    }
    for (number, task) in tasks.into_iter().enumerate() {
        match task.await {
            Ok(read) => assert_eq!(read.expect("read").data.len(), 4096),
            Err(error) => assert!(error.is_cancelled() && number % 10 != 0),
        }
    }
    // Had a slot or a byte been lost, these would wait for ever.
    for _ in 0..20 {
        client.read(&caller(), &file, 0, 4096).await.expect("read");
    }
    let counters = client.counters();
    assert!(counters.abandoned.load(Ordering::Relaxed) > 0);
    assert!(counters.late_replies.load(Ordering::Relaxed) > 0);
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn calls_of_a_dropped_client_end() {
    let server = Server::new(|call| match call.procedure {
        nfs3::FSINFO | nfs3::GETATTR => Act::Answer,
        _ => Act::Ignore,
    });
    let rpc = gridvfs_upstream::RpcClient::connect(
        std::sync::Arc::new(super::server::Scripted(server)),
        quick(1),
    );
    let rpc = rpc.await.expect("connects");
    let request = gridvfs_upstream::Request {
        program: nfs3::PROGRAM,
        version: nfs3::VERSION,
        procedure: nfs3::NULL,
        caller: caller(),
        arguments: Bytes::new(),
        payload: None,
        reply_bytes: 0,
        class: gridvfs_upstream::CallClass::Small,
    };
    let pending = rpc.send(request).await.expect("sent");
    drop(rpc);
    let ended = pending.reply::<()>().await;
    assert!(matches!(ended, Err(gridvfs_upstream::CallError::Unreachable(_))), "{ended:?}");
}
