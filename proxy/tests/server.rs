//! The NFS front end against clients that are wrong, lie, or come twice.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use gridvfs_proxy::confine::ConfinedLayer;
use gridvfs_proxy::gate::{Export, Guest, OneGuest};
use gridvfs_proxy::key::SessionKey;
use gridvfs_proxy::local_dir::{LocalDir, LocalDirOptions};
use gridvfs_proxy::server::{Server, ServerOptions};
use gridvfs_vfs::nfs3::mount::{DirPath, MountReply};
use gridvfs_vfs::nfs3::{self, DirOpArgs, MkdirArgs, Name};
use gridvfs_vfs::rpc::{AuthSys, CallHeader, OpaqueAuth, Refusal, ReplyHeader, record_mark};
use gridvfs_vfs::xdr::{Decoder, Encoder, Xdr};
use gridvfs_vfs::{Caller, FileHandle, SetAttr, Status, Vfs, ext};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

struct Rig {
    server: Arc<Server>,
    key: String,
    root: FileHandle,
    ended: Arc<AtomicBool>,
    folder: tempfile::TempDir,
}

fn local(path: &Path) -> LocalDir {
    LocalDir::open(path, LocalDirOptions::default()).expect("opens")
}

fn rig() -> Rig {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::create_dir(folder.path().join("export")).expect("mkdir");
    std::fs::create_dir(folder.path().join("export/sub")).expect("mkdir");
    std::fs::write(folder.path().join("export/sub/file"), b"inside").expect("write");
    std::fs::write(folder.path().join("secret"), b"outside").expect("write");
    std::os::unix::fs::symlink("..", folder.path().join("export/up")).expect("symlink");
    let vfs: Arc<dyn Vfs> = Arc::new(local(&folder.path().join("export")));
    let key = SessionKey::random().expect("key");
    let ended = Arc::new(AtomicBool::new(false));
    let root = vfs.root();
    let export = Export { path: b"/vms".to_vec(), vfs, blocking: true, seal: None, changes: None };
    let gate = OneGuest::new(Guest::new("rig", Some(key.clone()), vec![export]));
    let server = Server::new(ServerOptions {
        ended: Some(ended.clone()),
        ..ServerOptions::new(Arc::new(gate))
    });
    Rig { server, key: key.to_hex(), root, ended, folder }
}

impl Rig {
    fn channel(&self) -> DuplexStream {
        let (client, server) = tokio::io::duplex(1 << 20);
        let (reader, writer) = tokio::io::split(server);
        tokio::spawn(self.server.clone().serve(reader, writer));
        client
    }

    fn credential(&self, key: &str) -> OpaqueAuth {
        let caller = Caller { uid: 0, gid: 0, groups: Vec::new() };
        AuthSys::of(&caller, Bytes::copy_from_slice(key.as_bytes()), 1).to_opaque()
    }

    fn header(&self, xid: u32, procedure: u32) -> CallHeader {
        let credential = self.credential(&self.key);
        CallHeader::new(xid, nfs3::PROGRAM, nfs3::VERSION, procedure, credential)
    }
}

fn call(header: &CallHeader, arguments: &impl Xdr) -> Vec<u8> {
    let mut encoder = Encoder::new();
    header.encode(&mut encoder);
    arguments.encode(&mut encoder);
    let body = encoder.into_vec();
    [&record_mark(body.len())[..], &body].concat()
}

/// Reads a record; `None` when the channel has been closed.
async fn record(channel: &mut DuplexStream) -> Option<Bytes> {
    let read = async {
        let mut mark = [0; 4];
        channel.read_exact(&mut mark).await.ok()?;
        let mut body = vec![0; (u32::from_be_bytes(mark) & 0x7FFF_FFFF) as usize];
        channel.read_exact(&mut body).await.ok()?;
        Some(Bytes::from(body))
    };
    tokio::time::timeout(Duration::from_secs(20), read).await.expect("an answer, or the end")
}

/// Makes a call; returns how it was refused, or its status and the rest of its results.
async fn ask(
    channel: &mut DuplexStream,
    header: &CallHeader,
    arguments: &impl Xdr,
) -> Result<(Status, Decoder), Refusal> {
    channel.write_all(&call(header, arguments)).await.expect("sends");
    let mut decoder = Decoder::new(record(channel).await.expect("an answer"));
    let reply = ReplyHeader::decode(&mut decoder).expect("a reply");
    assert_eq!(reply.xid, header.xid);
    reply.outcome?;
    let status = if decoder.remaining() == 0 { 0 } else { decoder.u32().expect("a status") };
    Ok((Status(status), decoder))
}

fn at(dir: &FileHandle, name: &[u8]) -> DirOpArgs {
    DirOpArgs { dir: *dir, name: Name(Bytes::copy_from_slice(name)) }
}

const OK: Status = Status(0);

#[tokio::test(flavor = "multi_thread")]
async fn nothing_passes_without_the_key() {
    let rig = rig();
    let mut channel = rig.channel();
    let mut wrong = rig.key.clone().into_bytes();
    wrong[31] ^= 1;
    let wrong = String::from_utf8(wrong).expect("ascii");
    let refused = Err(Refusal::AuthError(Refusal::AUTH_REJECTEDCRED));
    for (number, key) in
        ["", "localhost", &wrong, &rig.key[..31], &format!("{}0", rig.key)].into_iter().enumerate()
    {
        for procedure in [nfs3::NULL, nfs3::GETATTR, nfs3::REMOVE, 99] {
            let mut header = rig.header(7, procedure);
            header.credential = rig.credential(key);
            let answer = ask(&mut channel, &header, &at(&rig.root, b"sub")).await.map(|_| ());
            assert_eq!(answer, refused, "key {number}");
        }
    }
    let mut header = rig.header(8, nfs3::GETATTR);
    header.credential = OpaqueAuth::none();
    let answer = ask(&mut channel, &header, &rig.root).await.map(|_| ());
    assert_eq!(answer, Err(Refusal::AuthError(Refusal::AUTH_BADCRED)));
    // MOUNT and the extension ask for it too, and the export's path gives nothing away.
    for (program, version) in [(nfs3::mount::PROGRAM, 3), (ext::PROGRAM, ext::VERSION), (1, 1)] {
        let mut header = rig.header(9, 1);
        (header.program, header.version) = (program, version);
        header.credential = rig.credential("");
        let answer = ask(&mut channel, &header, &DirPath(Bytes::from_static(b"/vms"))).await;
        assert_eq!(answer.map(|_| ()), refused);
    }
    assert_eq!(rig.server.counters().denied.load(Ordering::Relaxed), 5 * 4 + 1 + 3);
    assert_eq!(rig.server.counters().calls.load(Ordering::Relaxed), 0);
    // The channel is still good for who has the key.
    let (status, _) =
        ask(&mut channel, &rig.header(10, nfs3::GETATTR), &rig.root).await.expect("runs");
    assert_eq!(status, OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_served_is_refused_by_name() {
    let rig = rig();
    let mut channel = rig.channel();
    let mut header = rig.header(1, nfs3::GETATTR);
    header.program = 100_099;
    let answer = ask(&mut channel, &header, &rig.root).await.map(|_| ());
    assert_eq!(answer, Err(Refusal::ProgramUnavailable));
    header = rig.header(2, nfs3::GETATTR);
    header.version = 4;
    let answer = ask(&mut channel, &header, &rig.root).await.map(|_| ());
    assert_eq!(answer, Err(Refusal::ProgramMismatch { low: 3, high: 3 }));
    header = rig.header(3, nfs3::GETATTR);
    header.rpc_version = 3;
    let answer = ask(&mut channel, &header, &rig.root).await.map(|_| ());
    assert_eq!(answer, Err(Refusal::RpcMismatch));
    let answer = ask(&mut channel, &rig.header(4, 22), &rig.root).await.map(|_| ());
    assert_eq!(answer, Err(Refusal::ProcedureUnavailable));
    // Cut off in the middle of the arguments.
    let answer = ask(&mut channel, &rig.header(5, nfs3::RENAME), &at(&rig.root, b"sub")).await;
    assert_eq!(answer.map(|_| ()), Err(Refusal::GarbageArguments));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_no_calls_end_their_channel_alone() {
    let rig = rig();
    let mut good = rig.channel();
    for bytes in [
        // Says that 2 GiB follow.
        vec![0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 1],
        // 64 bytes that are no call.
        [&record_mark(64)[..], &[0xA5; 64]].concat(),
        // A reply.
        [&record_mark(12)[..], &[0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]].concat(),
    ] {
        let mut bad = rig.channel();
        bad.write_all(&bytes).await.expect("sends");
        assert_eq!(record(&mut bad).await, None, "{bytes:x?}");
    }
    let (status, _) = ask(&mut good, &rig.header(1, nfs3::GETATTR), &rig.root).await.expect("runs");
    assert_eq!(status, OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_for_arguments_harm_nothing() {
    let rig = rig();
    let mut channel = rig.channel();
    let mut random = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for round in 0..3000 {
        let mut header = rig.header(round, (next() % 24) as u32);
        match next() % 8 {
            0 => (header.program, header.version) = (ext::PROGRAM, ext::VERSION),
            1 => (header.program, header.version) = (nfs3::mount::PROGRAM, 3),
            _ => {}
        }
        let mut message = Encoder::new();
        header.encode(&mut message);
        // Often a good handle first, so that more than the first decoder sees the rest.
        if next() % 2 == 0 {
            rig.root.encode(&mut message);
        }
        let mut body = message.into_vec();
        let length = (next() % 96) as usize & !3;
        body.extend((0..length).map(|_| if next() % 3 == 0 { next() as u8 } else { 0 }));
        channel.write_all(&record_mark(body.len())).await.expect("sends");
        channel.write_all(&body).await.expect("sends");
        let reply = record(&mut channel).await.expect("every call is answered");
        let reply = ReplyHeader::decode(&mut Decoder::new(reply)).expect("a reply");
        assert_eq!(reply.xid, round);
    }
    let outside = std::fs::read(rig.folder.path().join("secret")).expect("still there");
    assert_eq!(outside, b"outside");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_sent_again_over_another_channel_is_not_run_again() {
    let rig = rig();
    let (mut first, mut second) = (rig.channel(), rig.channel());
    let arguments = MkdirArgs { at: at(&rig.root, b"new"), attr: SetAttr::default() };
    let header = rig.header(77, nfs3::MKDIR);
    let (status, _) = ask(&mut first, &header, &arguments).await.expect("runs");
    assert_eq!(status, OK);
    for channel in [&mut first, &mut second] {
        let (status, _) = ask(channel, &header, &arguments).await.expect("is answered");
        assert_eq!(status, OK, "the first answer again");
    }
    assert_eq!(rig.server.counters().replayed.load(Ordering::Relaxed), 2);
    // Another call, even of that number, is another call.
    let (status, _) =
        ask(&mut second, &rig.header(78, nfs3::MKDIR), &arguments).await.expect("runs");
    assert_eq!(status, Status::EXIST);
    let other = MkdirArgs { at: at(&rig.root, b"other"), attr: SetAttr::default() };
    let (status, _) = ask(&mut second, &header, &other).await.expect("runs");
    assert_eq!(status, OK);
    assert!(rig.folder.path().join("export/other").is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_do_not_lead_out() {
    let rig = rig();
    let mut channel = rig.channel();
    for (xid, name) in
        [&b"../secret"[..], b"sub/file", b"/etc/passwd", b"", b"sub\0x"].into_iter().enumerate()
    {
        for procedure in [nfs3::LOOKUP, nfs3::REMOVE, nfs3::RMDIR] {
            let header = rig.header(xid as u32, procedure);
            let (status, _) = ask(&mut channel, &header, &at(&rig.root, name)).await.expect("runs");
            assert_ne!(status, OK, "{name:?}");
        }
    }
    // The parent of the root is the root; a symbolic link is no directory to look into.
    let header = rig.header(20, nfs3::LOOKUP);
    let (status, mut rest) = ask(&mut channel, &header, &at(&rig.root, b"..")).await.expect("runs");
    if status == OK {
        assert_eq!(FileHandle::decode(&mut rest).expect("a handle"), rig.root);
    }
    let header = rig.header(21, nfs3::LOOKUP);
    let (status, mut rest) = ask(&mut channel, &header, &at(&rig.root, b"up")).await.expect("runs");
    assert_eq!(status, OK);
    let link = FileHandle::decode(&mut rest).expect("a handle");
    let header = rig.header(22, nfs3::LOOKUP);
    let (status, _) = ask(&mut channel, &header, &at(&link, b"secret")).await.expect("runs");
    assert_eq!(status, Status::NOTDIR);
}

#[tokio::test(flavor = "multi_thread")]
async fn mount_gives_the_export_and_what_is_in_it() {
    let rig = rig();
    let mut channel = rig.channel();
    let mut mount = async |xid: u32, path: &'static str| {
        let mut header = rig.header(xid, nfs3::mount::MNT);
        header.program = nfs3::mount::PROGRAM;
        let arguments = DirPath(Bytes::from_static(path.as_bytes()));
        channel.write_all(&call(&header, &arguments)).await.expect("sends");
        let mut decoder = Decoder::new(record(&mut channel).await.expect("an answer"));
        ReplyHeader::decode(&mut decoder).expect("a reply").outcome.expect("runs");
        MountReply::decode(&mut decoder).expect("a mount reply")
    };
    for (xid, path) in ["/", "/vms", "/vms/", "", "/vms/."].into_iter().enumerate() {
        let reply = mount(xid as u32, path).await;
        assert!(matches!(reply, MountReply::Ok { root, .. } if root == rig.root), "{path:?}");
    }
    let sub = mount(10, "/vms//sub/").await;
    assert!(matches!(sub, MountReply::Ok { root, .. } if root != rig.root));
    for (path, status) in [
        ("/vms/..", Status::ACCES),
        ("/vms/sub/../..", Status::ACCES),
        ("/vms/up", Status::NOTDIR),
        ("/vms/sub/file", Status::NOTDIR),
        ("/vms/none", Status::NOENT),
        ("/vmsx", Status::NOENT),
        ("/etc", Status::NOENT),
    ] {
        assert_eq!(mount(11, path).await, MountReply::Failed(status), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_done_says_so() {
    let rig = rig();
    let mut channel = rig.channel();
    let mut header = rig.header(1, ext::END);
    (header.program, header.version) = (ext::PROGRAM, ext::VERSION);
    assert!(!rig.ended.load(Ordering::Relaxed));
    let (status, _) = ask(&mut channel, &header, &()).await.expect("runs");
    assert_eq!(status, OK);
    assert!(rig.ended.load(Ordering::Relaxed));
}

/// Tries a handle, and all that differ from it by a bit.
async fn assert_unforgeable(vfs: &dyn Vfs, handle: &FileHandle, caller: &Caller) {
    assert!(vfs.getattr(caller, handle).await.is_ok());
    let own = vfs.getattr(caller, handle).await.expect("there").fileid;
    for bit in 0..handle.as_bytes().len() * 8 {
        let mut bytes = handle.as_bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let forged = FileHandle::new(&bytes).expect("short enough");
        if let Ok(attr) = vfs.getattr(caller, &forged).await {
            assert_eq!(attr.fileid, own, "bit {bit} leads to another file");
        }
    }
    for bytes in [&[][..], &[0; 64], &[0xFF; 32], &handle.as_bytes()[1..]] {
        let Some(forged) = FileHandle::new(bytes) else { continue };
        assert!(vfs.getattr(caller, &forged).await.is_err(), "{bytes:x?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handles_cannot_be_forged_or_taken_elsewhere() {
    let rig = rig();
    // SAFETY: no preconditions.
    let caller =
        unsafe { Caller { uid: libc::geteuid(), gid: libc::getegid(), groups: Vec::new() } };
    let inside: Arc<dyn Vfs> = Arc::new(local(&rig.folder.path().join("export")));
    let outside = local(rig.folder.path());
    let secret = outside.lookup(&caller, &outside.root(), b"secret").await.expect("there").handle;
    assert!(inside.getattr(&caller, &secret).await.is_err(), "a handle from outside the export");
    assert!(inside.getattr(&caller, &outside.root()).await.is_err(), "the export's own parent");
    let sub = inside.lookup(&caller, &inside.root(), b"sub").await.expect("there").handle;
    let file = inside.lookup(&caller, &sub, b"file").await.expect("there").handle;
    for handle in [inside.root(), sub, file] {
        assert_unforgeable(&*inside, &handle, &caller).await;
    }

    // The forwarder: what its server would take is not taken from a client.
    let whole: Arc<dyn Vfs> = Arc::new(local(rig.folder.path()));
    let confined = ConfinedLayer::new(whole.clone(), rig.folder.path(), false).expect("opens");
    let secret = whole.lookup(&caller, &whole.root(), b"secret").await.expect("there").handle;
    assert!(confined.getattr(&caller, &secret).await.is_err(), "an unsealed handle");
    let sealed = confined.lookup(&caller, &confined.root(), b"secret").await.expect("in it").handle;
    assert_unforgeable(&confined, &sealed, &caller).await;
    // Another login's secret makes another seal.
    let elsewhere = tempfile::tempdir().expect("folder");
    let other = ConfinedLayer::new(whole, elsewhere.path(), false).expect("opens");
    assert!(other.getattr(&caller, &sealed).await.is_err(), "sealed by somebody else");
}
