//! Answers that are not what the protocol says.

use std::sync::atomic::Ordering;
use std::time::Duration;

use gridvfs_upstream::{ConnectError, NfsClient};
use gridvfs_vfs::rpc::Refusal;
use gridvfs_vfs::{Error, Status, Vfs, nfs3};

use super::model::{ROOT, handle};
use super::server::{Act, Scripted, Server, caller, quick};

/// The bytes of a READ reply before its count: RPC header, status, attributes.
const READ_REPLY_HEAD: usize = 24 + 4 + 88;

/// Lies once about a READ, and expects the truth all the same.
async fn read_is_right_after(lie: Act) {
    let server = Server::new(move |call| match call.procedure {
        nfs3::READ if call.before == 0 => lie.clone(),
        _ => Act::Answer,
    });
    let data: Vec<u8> = (0..50_000u32).map(|at| at as u8).collect();
    let file = server.model.lock().add_file("f", data.clone());
    let client = server.client(quick(2)).await;
    let read = client.read(&caller(), &file, 0, 100_000).await.expect("read");
    assert!(read.data == data && read.eof);
}

#[tokio::test]
async fn truth_in_any_form_is_understood() {
    for act in [Act::Answer, Act::Twice, Act::Fragments(1), Act::Fragments(1000)] {
        read_is_right_after(act).await;
    }
}

#[tokio::test]
async fn replies_fragmented_by_any_size_are_understood() {
    let server = Server::new(|call| match call.procedure {
        nfs3::GETATTR if call.before > 0 => Act::Fragments(call.before as usize),
        _ => Act::Answer,
    });
    let client = server.client(quick(1)).await;
    for _ in 1..130 {
        assert_eq!(client.getattr(&caller(), &handle(ROOT)).await.expect("attr").fileid, ROOT);
    }
    assert_eq!(server.count(nfs3::GETATTR), 130);
}

#[tokio::test]
async fn one_lie_is_forgiven() {
    for lie in [
        Act::Close,
        Act::CloseWithin(2),
        Act::CloseWithin(10),
        Act::CloseWithin(20_000),
        Act::Raw(vec![0xff; 100]),
        Act::Raw(vec![0x80, 0, 0, 0]),
        Act::Raw(vec![0; 64]),
        Act::Raw([&[0x80, 0, 0, 20][..], &[0x11; 20]].concat()),
        Act::Garble(|reply| reply[0] ^= 0x80),
        Act::Garble(|reply| reply[7] = 0),
        Act::Garble(|reply| reply.truncate(8)),
        Act::Garble(|reply| reply.truncate(40)),
        Act::Garble(|reply| reply.truncate(30_000)),
        Act::Garble(|reply| reply[15] = 9),
        Act::Garble(|reply| reply[16..20].fill(0xff)),
        Act::Ignore,
        Act::Lose,
    ] {
        read_is_right_after(lie).await;
    }
}

#[tokio::test]
async fn a_server_that_lies_on_is_found_out() {
    let lies: [(&str, Act); 7] = [
        ("truncated", Act::Garble(|reply| reply.truncate(60))),
        ("result cut", Act::Garble(|reply| reply.truncate(24))),
        ("huge length", Act::Garble(|reply| reply[READ_REPLY_HEAD + 8..].fill(0xff))),
        ("wrong number", Act::Garble(|reply| reply[0] ^= 0x80)),
        ("call as reply", Act::Garble(|reply| reply[7] = 0)),
        ("oversize", Act::Raw(vec![0xff; 8])),
        ("empty record", Act::Raw(vec![0x80, 0, 0, 0])),
    ];
    for (name, lie) in lies {
        let server = Server::new(move |call| match call.procedure {
            nfs3::READ => lie.clone(),
            _ => Act::Answer,
        });
        let file = server.model.lock().add_file("f", vec![1; 100]);
        let client = server.client(quick(2)).await;
        let read = client.read(&caller(), &file, 0, 100).await;
        assert!(matches!(read, Err(Error::Protocol(_))), "{name}: {read:?}");
        assert_eq!(server.count(nfs3::READ), 3, "{name}");
        // The client is none the worse for it.
        assert_eq!(client.getattr(&caller(), &file).await.expect(name).size, 100);
    }
}

#[tokio::test]
async fn more_data_than_asked_for_is_refused() {
    let server = Server::new(|_| Act::Answer);
    let file = server.model.lock().add_file("f", vec![1; 100]);
    let client = server.client(quick(1)).await;
    let script = Server::new(|call| match call.procedure {
        // 100 bytes for 10: the length words say so consistently.
        nfs3::READ => Act::Garble(|reply| {
            reply.truncate(READ_REPLY_HEAD);
            for word in [100u32, 1, 100] {
                reply.extend(word.to_be_bytes());
            }
            reply.extend([5; 100]);
        }),
        _ => Act::Answer,
    });
    assert_eq!(client.read(&caller(), &file, 0, 10).await.expect("read").data.len(), 10);
    let file = script.model.lock().add_file("f", vec![1; 100]);
    let client = script.client(quick(1)).await;
    let read = client.read(&caller(), &file, 0, 10).await;
    assert!(
        matches!(&read, Err(Error::Protocol(text)) if text.contains("brought 100")),
        "{read:?}"
    );
}

#[tokio::test]
async fn an_end_of_file_in_the_middle_is_not_believed() {
    // The data cut short and flagged as the end; the attributes know better.
    let server = Server::new(|call| match call.procedure {
        nfs3::READ if call.before == 0 => Act::Garble(|reply| {
            reply.truncate(READ_REPLY_HEAD);
            for word in [0u32, 1, 0] {
                reply.extend(word.to_be_bytes());
            }
        }),
        _ => Act::Answer,
    });
    let data = vec![7; 30_000];
    let file = server.model.lock().add_file("f", data.clone());
    let client = server.client(quick(1)).await;
    let read = client.read(&caller(), &file, 0, 65536).await.expect("read");
    assert!(read.data == data && read.eof);
    assert_eq!(server.count(nfs3::READ), 2);
}

#[tokio::test]
async fn a_read_that_brings_nothing_for_ever_is_an_error() {
    let server = Server::new(|call| match call.procedure {
        nfs3::READ => Act::Garble(|reply| {
            reply.truncate(READ_REPLY_HEAD);
            for word in [0u32, 0, 0] {
                reply.extend(word.to_be_bytes());
            }
        }),
        _ => Act::Answer,
    });
    let file = server.model.lock().add_file("f", vec![7; 30_000]);
    let client = server.client(quick(1)).await;
    let read = client.read(&caller(), &file, 0, 65536).await;
    assert!(matches!(read, Err(Error::Protocol(_))), "{read:?}");
}

#[tokio::test]
async fn names_that_lead_elsewhere_are_left_out() {
    let server = Server::new(|_| Act::Answer);
    for name in ["../etc/passwd", "good", "", "a\0b"] {
        server.model.lock().add_file(name, Vec::new());
    }
    let client = server.client(quick(1)).await;
    for plus in [false, true] {
        let page = client.readdir(&caller(), &handle(ROOT), 0, [0; 8], 4096, plus).await;
        let names: Vec<_> = page.expect("page").entries.into_iter().map(|e| e.name).collect();
        assert_eq!(names, ["good"]);
    }
}

#[tokio::test]
async fn refusals_are_told_apart() {
    for (refusal, check) in [
        (Refusal::AuthError(Refusal::AUTH_REJECTEDCRED), Error::Denied(String::new())),
        (Refusal::ProcedureUnavailable, Error::Status(Status::NOTSUPP)),
        (Refusal::ProgramUnavailable, Error::Status(Status::NOTSUPP)),
        (Refusal::ProgramMismatch { low: 4, high: 4 }, Error::Status(Status::NOTSUPP)),
        (Refusal::SystemError, Error::Status(Status::SERVERFAULT)),
        (Refusal::GarbageArguments, Error::Protocol(String::new())),
        (Refusal::RpcMismatch, Error::Denied(String::new())),
    ] {
        let server = Server::new(move |call| match call.procedure {
            nfs3::LOOKUP => Act::Refuse(refusal),
            _ => Act::Answer,
        });
        let client = server.client(quick(1)).await;
        let error = client.lookup(&caller(), &handle(ROOT), b"x").await.expect_err("refused");
        let same = std::mem::discriminant(&error) == std::mem::discriminant(&check);
        let status = !matches!(check, Error::Status(_)) || error == check;
        assert!(same && status, "{refusal:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_refused_key_is_told_at_once() {
    let server = Server::new(|_| Act::Refuse(Refusal::AuthError(2)));
    let connected = NfsClient::connect(std::sync::Arc::new(Scripted(server)), quick(1)).await;
    match connected.err() {
        Some(ConnectError::Fatal(text)) => assert!(text.contains("denied"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_busy_server_is_asked_again_as_a_new_call() {
    let server = Server::remembering(|call| match call.procedure {
        nfs3::MKDIR | nfs3::READ if call.before < 4 => Act::Status(Status::JUKEBOX),
        _ => Act::Answer,
    });
    let file = server.model.lock().add_file("f", vec![1; 100]);
    let client = server.client(quick(1)).await;
    let attr = gridvfs_vfs::SetAttr::default();
    client.mkdir(&caller(), &handle(ROOT), b"d", &attr).await.expect("made");
    assert_eq!(client.read(&caller(), &file, 0, 100).await.expect("read").data.len(), 100);
    assert_eq!(client.counters().busy.load(Ordering::Relaxed), 8);
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up_after_the_timeout() {
    // It is alive: it answers pings. And one that is as dead as can be.
    for dead in [false, true] {
        let server = Server::new(move |call| match call.procedure {
            nfs3::LOOKUP => Act::Ignore,
            nfs3::NULL if dead => Act::Ignore,
            _ => Act::Answer,
        });
        let mut options = quick(2);
        options.timeout = Some(Duration::from_secs(2));
        let client = server.client(options).await;
        let error = client.lookup(&caller(), &handle(ROOT), b"x").await.expect_err("no answer");
        assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
        assert!(server.count(nfs3::LOOKUP) >= 2, "it was sent again");
        client.getattr(&caller(), &handle(ROOT)).await.expect("alive");
    }
}
