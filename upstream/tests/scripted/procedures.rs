//! What a call of the trait becomes when the server has small limits or lacks a procedure.

use std::sync::atomic::Ordering;

use gridvfs_vfs::rpc::Refusal;
use gridvfs_vfs::{Access, Allocation, Error, SeekWhence, Status, Vfs, ext, nfs3};

use super::model::{ROOT, handle};
use super::server::{Act, Server, caller, quick};

#[tokio::test]
async fn listings_go_on_without_readdirplus_and_over_small_pages() {
    for readdirplus in [true, false] {
        let server = Server::new(|_| Act::Answer);
        server.model.lock().readdirplus = readdirplus;
        let names: Vec<String> = (0..500).map(|number| format!("{number:03}")).collect();
        for name in &names {
            server.model.lock().add_file(name, Vec::new());
        }
        let long = "n".repeat(250);
        server.model.lock().add_file(&long, Vec::new());
        let client = server.client(quick(1)).await;
        let (mut cookie, mut verifier, mut found) = (0, [0; 8], Vec::new());
        loop {
            let page = client.readdir(&caller(), &handle(ROOT), cookie, verifier, 1, true).await;
            let page = page.expect("page");
            for entry in &page.entries {
                assert_eq!(entry.attr.is_some(), readdirplus);
                found.push(String::from_utf8(entry.name.to_vec()).expect("text"));
                cookie = entry.cookie;
            }
            verifier = page.verifier;
            if page.eof {
                break;
            }
        }
        assert_eq!(found[..500], names);
        assert_eq!(found[500..], [long]);
        let asked = server.count(nfs3::READDIRPLUS);
        assert!(if readdirplus { asked > 1 } else { asked == 1 }, "{asked}");
    }
}

#[tokio::test]
async fn a_page_that_is_too_small_is_asked_for_larger() {
    let server = Server::new(|call| match call.procedure {
        nfs3::READDIR if call.before < 3 => Act::Status(Status::TOOSMALL),
        _ => Act::Answer,
    });
    server.model.lock().add_file("f", Vec::new());
    let client = server.client(quick(1)).await;
    let page = client.readdir(&caller(), &handle(ROOT), 0, [0; 8], 4096, false).await;
    assert_eq!(page.expect("page").entries.len(), 1);
}

#[tokio::test]
async fn rename_without_replacing_replaces_nothing() {
    let server = Server::new(|_| Act::Answer);
    let file = server.model.lock().add_file("a", vec![1]);
    server.model.lock().add_file("b", vec![2]);
    let client = server.client(quick(1)).await;
    let (me, root) = (caller(), handle(ROOT));
    let exists = client.rename(&me, &root, b"a", &root, b"b", true).await;
    assert_eq!(exists, Err(Error::Status(Status::EXIST)));
    let (from, to) = client.rename(&me, &root, b"a", &root, b"c", true).await.expect("renamed");
    assert_eq!(from, to);
    assert!(from.before.is_some(), "nobody came in between");
    assert_eq!(client.lookup(&me, &root, b"c").await.expect("there").handle, file);
    let gone = client.lookup(&me, &root, b"a").await;
    assert_eq!(gone, Err(Error::Status(Status::NOENT)));

    client.mkdir(&me, &root, b"d", &Default::default()).await.expect("made");
    let exists = client.rename(&me, &root, b"d", &root, b"c", true).await;
    assert_eq!(exists, Err(Error::Status(Status::EXIST)));
    client.rename(&me, &root, b"d", &root, b"e", true).await.expect("renamed");
    client.lookup(&me, &root, b"e").await.expect("there");
}

#[tokio::test]
async fn what_nfs_3_lacks_is_refused() {
    let server = Server::new(|_| Act::Answer);
    let client = server.client(quick(1)).await;
    let (me, root) = (caller(), handle(ROOT));
    let seek = client.seek(&me, &root, 0, SeekWhence::Data).await;
    assert_eq!(seek, Err(Error::Status(Status::NOTSUPP)));
    let allocate = client.allocate(&me, &root, 0, 1, Allocation::PunchHole).await;
    assert_eq!(allocate.err(), Some(Error::Status(Status::NOTSUPP)));
}

#[tokio::test]
async fn names_that_are_none_are_not_sent() {
    let server = Server::new(|_| Act::Answer);
    let client = server.client(quick(1)).await;
    let (me, root) = (caller(), handle(ROOT));
    for (name, status) in [
        (&b""[..], Status::INVAL),
        (b"a/b", Status::INVAL),
        (b"a\0", Status::INVAL),
        (&[b'n'; 5000], Status::NAMETOOLONG),
    ] {
        let found = client.lookup(&me, &root, name).await;
        assert_eq!(found, Err(Error::Status(status)));
    }
    assert_eq!(server.count(nfs3::LOOKUP), 0);
    let granted = client.access(&me, &root, Access(Access::READ)).await.expect("granted");
    assert_eq!(granted.granted, Access(Access::READ), "no more than was asked for");
}

#[tokio::test]
async fn the_extension_program_is_used_where_it_is() {
    // The first reply to a rename is lost, and with it the far side's memory.
    let server = Server::new(|call| match (call.program, call.procedure, call.repeats) {
        (ext::PROGRAM, ext::RENAME_NOREPLACE, 0) => Act::Close,
        _ => Act::Answer,
    });
    server.extensions.store(true, Ordering::SeqCst);
    let file = server.model.lock().add_file("a", Vec::new());
    let client = server.client(quick(1)).await;
    let (me, root) = (caller(), handle(ROOT));
    assert_eq!(client.seek(&me, &file, 5, SeekWhence::Hole).await.expect("seek"), 1005);
    let wcc = client.allocate(&me, &file, 10, 90, Allocation::Reserve).await.expect("allocate");
    assert_eq!(wcc.after.expect("told").size, 100);
    client.rename(&me, &root, b"a", &root, b"b", true).await.expect("renamed");
    server.model.lock().add_file("c", Vec::new());
    let exists = client.rename(&me, &root, b"b", &root, b"c", true).await;
    assert_eq!(exists, Err(Error::Status(Status::EXIST)));
    assert_eq!(client.lookup(&me, &root, b"b").await.expect("there").handle, file);
}

#[tokio::test]
async fn a_missing_extension_program_is_asked_for_once() {
    let server = Server::new(|call| match call.program {
        ext::PROGRAM => Act::Refuse(Refusal::ProgramUnavailable),
        _ => Act::Answer,
    });
    server.extensions.store(true, Ordering::SeqCst);
    let client = server.client(quick(1)).await;
    let (me, root) = (caller(), handle(ROOT));
    let calls =
        |client: &gridvfs_upstream::NfsClient| client.counters().calls.load(Ordering::Relaxed);
    let before = calls(&client);
    for _ in 0..3 {
        let seek = client.seek(&me, &root, 0, SeekWhence::Data).await;
        assert_eq!(seek, Err(Error::Status(Status::NOTSUPP)));
    }
    assert_eq!(calls(&client) - before, 1);
}
