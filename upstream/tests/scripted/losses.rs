//! Replies, channels and servers that get lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use gridvfs_vfs::rpc::Refusal;
use gridvfs_vfs::{
    CreateHow, Error, FileKind, NodeKind, SetAttr, SetTime, Stability, Status, Time, Vfs, nfs3,
};

use super::model::{ROOT, handle};
use super::server::{Act, Server, caller, quick};

fn changes(procedure: u32) -> bool {
    use nfs3::*;
    [SETATTR, CREATE, MKDIR, SYMLINK, MKNOD, REMOVE, RMDIR, RENAME, LINK].contains(&procedure)
}

/// Makes one call of each kind that changes something; each must succeed.
async fn change_everything(server: &Arc<Server>) {
    let file = server.model.lock().add_file("file", Vec::new());
    let client = server.client(quick(2)).await;
    let (me, root) = (caller(), handle(ROOT));
    let mode = SetAttr { mode: Some(0o640), ..SetAttr::default() };
    let ctime = client.getattr(&me, &file).await.expect("attr").ctime;
    client.setattr(&me, &file, &mode, Some(ctime)).await.expect("setattr");
    client.create(&me, &root, b"guarded", &CreateHow::Guarded(mode)).await.expect("guarded");
    client
        .create(&me, &root, b"exclusive", &CreateHow::Exclusive([9; 8]))
        .await
        .expect("exclusive");
    client.create(&me, &root, b"unchecked", &CreateHow::Unchecked(mode)).await.expect("unchecked");
    let made = client.mkdir(&me, &root, b"dir", &mode).await.expect("mkdir");
    assert_eq!(made.attr.expect("told").kind, FileKind::Directory);
    client.symlink(&me, &root, b"symlink", b"to/there", &mode).await.expect("symlink");
    client.mknod(&me, &root, b"fifo", NodeKind::Fifo, &mode).await.expect("mknod");
    client.link(&me, &file, &root, b"link").await.expect("link");
    client.rename(&me, &root, b"link", &root, b"renamed", false).await.expect("rename");
    client.remove(&me, &root, b"renamed").await.expect("remove");
    client.rmdir(&me, &root, b"dir").await.expect("rmdir");
    let names: Vec<_> =
        server.model.lock().node(&root).expect("root").names.keys().cloned().collect();
    let expected = ["exclusive", "fifo", "file", "guarded", "symlink", "unchecked"];
    assert_eq!(names, expected.map(|name| name.as_bytes().to_vec()));
}

#[tokio::test]
async fn nothing_is_executed_twice_by_a_server_that_remembers() {
    // The first reply to every change is lost with its channel.
    let server = Server::remembering(|call| match call.repeats {
        0 if changes(call.procedure) => Act::Close,
        _ => Act::Answer,
    });
    change_everything(&server).await;
    // FSINFO, two GETATTR, eleven changes.
    assert_eq!(server.executed.load(Ordering::SeqCst), 14);
}

#[tokio::test]
async fn a_server_that_forgets_is_understood() {
    let server = Server::new(|call| match call.repeats {
        0 if changes(call.procedure) => Act::Close,
        _ => Act::Answer,
    });
    change_everything(&server).await;
}

#[tokio::test]
async fn errors_of_calls_that_were_sent_once_are_believed() {
    let server = Server::new(|_| Act::Answer);
    let client = server.client(quick(2)).await;
    let (me, root, attr) = (caller(), handle(ROOT), SetAttr::default());
    client.mkdir(&me, &root, b"d", &attr).await.expect("made");
    let again = client.mkdir(&me, &root, b"d", &attr).await;
    assert_eq!(again, Err(Error::Status(Status::EXIST)));
    let gone = client.remove(&me, &root, b"x").await;
    assert_eq!(gone, Err(Error::Status(Status::NOENT)));
}

#[tokio::test]
async fn an_object_of_somebody_else_is_no_success() {
    // Not executed the first time; then somebody else's object is in the way.
    let server = Server::new(|call| match call.repeats {
        0 if changes(call.procedure) => Act::Ignore,
        _ => Act::Answer,
    });
    let other = server.model.lock().add_file("other", vec![1]);
    let client = server.client(quick(1)).await;
    let (me, root, attr) = (caller(), handle(ROOT), SetAttr::default());
    let guarded = CreateHow::Guarded(attr);
    for error in [
        client.mkdir(&me, &root, b"other", &attr).await.err(),
        client.symlink(&me, &root, b"other", b"x", &attr).await.err(),
        client.create(&me, &root, b"other", &guarded).await.err(),
        client.mknod(&me, &root, b"other", NodeKind::Fifo, &attr).await.err(),
        client.link(&me, &root, &root, b"other").await.err(),
    ] {
        assert_eq!(error, Some(Error::Status(Status::EXIST)));
    }
    let missing = client.rename(&me, &root, b"missing", &root, b"missing2", false).await;
    assert_eq!(missing, Err(Error::Status(Status::NOENT)));
    assert_eq!(client.getattr(&me, &other).await.expect("still there").size, 1);
}

#[tokio::test]
async fn a_file_with_a_mark_is_told_from_one_that_looks_the_same() {
    let mark = |nanoseconds| SetTime::To(Time { seconds: 1_000_000, nanoseconds });
    let how = |nanoseconds| {
        let attr = SetAttr { mode: Some(0o600), atime: mark(nanoseconds), ..SetAttr::default() };
        CreateHow::Guarded(attr)
    };
    // The second call's first sending is lost; meanwhile somebody has made the same file.
    let server = Server::new(|call| match call.repeats {
        0 if call.procedure == nfs3::CREATE => Act::Close,
        _ => Act::Answer,
    });
    let client = server.client(quick(1)).await;
    let (me, root) = (caller(), handle(ROOT));
    client.create(&me, &root, b"lock", &how(17)).await.expect("our own, though it was there");
    let other = client.create(&me, &root, b"lock", &how(18)).await;
    assert_eq!(other, Err(Error::Status(Status::EXIST)));
}

#[tokio::test]
async fn calls_in_flight_survive_cut_after_cut() {
    let server = Server::new(|_| Act::Late(Duration::from_millis(20)));
    let file = server.model.lock().add_file("f", Vec::new());
    let client = server.client(quick(4)).await;
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..100u64 {
        let client = client.clone();
        tasks.spawn(async move {
            let data = Bytes::from(vec![at as u8 + 1; 5001]);
            let written =
                client.write(&caller(), &file, at * 5001, data, Stability::Unstable).await;
            assert_eq!(written.expect("written").count, 5001);
        });
    }
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(15)).await;
        server.cut.notify_waiters();
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
    let mut model = server.model.lock();
    let data = &model.node(&file).expect("there").data;
    let expected: Vec<u8> = (0..100u8).flat_map(|at| vec![at + 1; 5001]).collect();
    assert!(*data == expected);
}

#[tokio::test]
async fn a_server_that_is_down_for_a_while_is_waited_for() {
    let server = Server::new(|_| Act::Answer);
    let client = server.client(quick(2)).await;
    server.down.store(true, Ordering::SeqCst);
    server.cut.notify_waiters();
    let asking = {
        let client = client.clone();
        tokio::spawn(async move { client.getattr(&caller(), &handle(ROOT)).await })
    };
    while client.counters().unreachable_for().is_none() || client.counters().last_error().is_none()
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(client.counters().to_map()["stripes_alive"], 0);
    assert!(!asking.is_finished());
    server.down.store(false, Ordering::SeqCst);
    asking.await.expect("no panic").expect("answered");
    assert!(client.counters().unreachable_for().is_none());
    assert!(client.counters().to_map().get("unreachable_seconds").is_none());
}

#[tokio::test]
async fn a_server_that_is_down_for_long_is_an_error_with_a_timeout() {
    let server = Server::new(|_| Act::Answer);
    let mut options = quick(2);
    options.timeout = Some(Duration::from_secs(1));
    let client = server.client(options).await;
    server.down.store(true, Ordering::SeqCst);
    server.cut.notify_waiters();
    let error = client.getattr(&caller(), &handle(ROOT)).await.expect_err("down");
    assert!(matches!(&error, Error::Unreachable(text) if text.contains("down")), "{error:?}");
    server.down.store(false, Ordering::SeqCst);
    client.getattr(&caller(), &handle(ROOT)).await.expect("up again");
}

#[tokio::test]
async fn a_slow_server_keeps_its_channel() {
    // A reply takes many times the silence after which a dead channel is given up.
    let server = Server::new(|call| match call.procedure {
        nfs3::COMMIT => Act::Late(Duration::from_millis(1500)),
        _ => Act::Answer,
    });
    let mut options = quick(1);
    options.timing.resend = Duration::from_secs(60);
    let client = server.client(options).await;
    client.commit(&caller(), &handle(ROOT), 0, 0).await.expect("committed");
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    assert_eq!(server.count(nfs3::COMMIT), 1);
    assert!(server.count(nfs3::NULL) >= 1, "it was asked for a sign of life");
}

#[tokio::test]
async fn a_lost_call_is_sent_again_on_the_living_channel() {
    let server = Server::new(|call| match (call.procedure, call.repeats) {
        (nfs3::LOOKUP, 0) => Act::Ignore,
        _ => Act::Answer,
    });
    server.model.lock().add_file("f", Vec::new());
    let client = server.client(quick(1)).await;
    client.lookup(&caller(), &handle(ROOT), b"f").await.expect("found");
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    assert!(client.counters().retransmits.load(Ordering::Relaxed) >= 1);
}

#[tokio::test]
async fn a_dead_channel_is_replaced() {
    let server = Server::new(|call| match call.procedure {
        // From the first LOOKUP on, the first channel is silent.
        nfs3::LOOKUP | nfs3::NULL if call.repeats == 0 => Act::Ignore,
        _ => Act::Answer,
    });
    server.model.lock().add_file("f", Vec::new());
    let client = server.client(quick(1)).await;
    client.lookup(&caller(), &handle(ROOT), b"f").await.expect("found");
    assert_eq!(server.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_new_session_brings_a_new_key() {
    let renewed = Arc::new(AtomicBool::new(false));
    let script = renewed.clone();
    let server = Server::remembering(move |call| {
        let key: &[u8] = if script.load(Ordering::SeqCst) { b"key-2" } else { b"key-1" };
        match call.machine_name == key {
            true => Act::Answer,
            false => Act::Refuse(Refusal::AuthError(Refusal::AUTH_REJECTEDCRED)),
        }
    });
    let client = server.client(quick(2)).await;
    renewed.store(true, Ordering::SeqCst);
    server.generation.store(2, Ordering::SeqCst);
    server.cut.notify_waiters();
    for _ in 0..20 {
        client.getattr(&caller(), &handle(ROOT)).await.expect("with the new key");
    }
}

#[tokio::test]
async fn a_restarted_server_is_seen_by_its_write_verifier() {
    let server = Server::new(|_| Act::Answer);
    let file = server.model.lock().add_file("f", Vec::new());
    server.model.lock().write_max = 1000;
    let client = server.client(quick(1)).await;
    let data = Bytes::from(vec![1; 1500]);
    let before = client.write(&caller(), &file, 0, data.clone(), Stability::Unstable).await;
    let before = before.expect("written");
    assert_eq!((before.count, before.verifier), (1500, [1; 8]));
    server.model.lock().write_verifier = [2; 8];
    let committed = client.commit(&caller(), &file, 0, 0).await.expect("committed");
    assert_ne!(committed.verifier, before.verifier);
}
