//! Every value comes back from its wire form, and no record, however damaged, makes the decoder
//! panic or allocate more than the record is long.

use bytes::Bytes;
use gridvfs_vfs::nfs3::{self, mount};
use gridvfs_vfs::rpc::{AuthSys, CallHeader, OpaqueAuth, Refusal, ReplyHeader};
use gridvfs_vfs::xdr::{Decoder, Encoder, Xdr};
use gridvfs_vfs::*;
use proptest::prelude::*;

fn round_trip<T: Xdr + PartialEq + std::fmt::Debug>(value: &T) {
    let mut encoder = Encoder::new();
    value.encode(&mut encoder);
    let wire = Bytes::from(encoder.into_vec());
    assert_eq!(wire.len() % 4, 0, "XDR is a multiple of four bytes");
    let mut decoder = Decoder::new(wire.clone());
    assert_eq!(&T::decode(&mut decoder).expect("decodes"), value);
    assert!(decoder.remaining() < 4, "nothing is left but padding");
    // Cut short anywhere, it is refused rather than misread.
    for length in (0..wire.len()).step_by(4) {
        let cut = T::decode(&mut Decoder::new(wire.slice(..length)));
        assert_ne!(cut.as_ref().ok(), Some(value), "cut at {length}");
    }
}

fn time() -> impl Strategy<Value = Time> {
    (0..=i64::from(u32::MAX), 0..1_000_000_000u32)
        .prop_map(|(seconds, nanoseconds)| Time { seconds, nanoseconds })
}

fn handle() -> impl Strategy<Value = FileHandle> {
    prop::collection::vec(any::<u8>(), 0..=HANDLE_BYTES_MAX)
        .prop_map(|bytes| FileHandle::new(&bytes).expect("short enough"))
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..=max).prop_map(Bytes::from)
}

fn kind() -> impl Strategy<Value = FileKind> {
    use FileKind::*;
    prop::sample::select(vec![Regular, Directory, Block, Character, Symlink, Socket, Fifo])
}

prop_compose! {
    fn attr()(
        kind in kind(), mode in 0..0o10000u32, links: u32, uid: u32, gid: u32, size: u64, used: u64,
        (major, minor) in any::<(u32, u32)>(), fsid: u64, fileid: u64,
        (atime, mtime, ctime) in (time(), time(), time()),
    ) -> Attr {
        let device = DeviceNumber { major, minor };
        Attr { kind, mode, links, uid, gid, size, used, device, fsid, fileid, atime, mtime, ctime }
    }
}

fn set_time() -> impl Strategy<Value = SetTime> {
    prop_oneof![Just(SetTime::Keep), Just(SetTime::ServerNow), time().prop_map(SetTime::To)]
}

prop_compose! {
    fn set_attr()(
        mode: Option<u32>, uid: Option<u32>, gid: Option<u32>, size: Option<u64>,
        atime in set_time(), mtime in set_time(),
    ) -> SetAttr {
        SetAttr { mode, uid, gid, size, atime, mtime }
    }
}

fn wcc() -> impl Strategy<Value = Wcc> {
    (prop::option::of(attr()), prop::option::of(attr()))
        .prop_map(|(before, after)| Wcc { before: before.as_ref().map(WccAttr::from), after })
}

fn at() -> impl Strategy<Value = nfs3::DirOpArgs> {
    (handle(), bytes(300)).prop_map(|(dir, name)| nfs3::DirOpArgs { dir, name: nfs3::Name(name) })
}

prop_compose! {
    fn entry(plus: bool)(
        fileid: u64, name in bytes(255), cookie: u64,
        attr in prop::option::of(attr()), handle in prop::option::of(handle()),
    ) -> DirEntry {
        let (attr, handle) = if plus { (attr, handle) } else { (None, None) };
        DirEntry { fileid, name, cookie, attr, handle }
    }
}

fn page(plus: bool) -> impl Strategy<Value = DirPage> {
    (
        prop::collection::vec(entry(plus), 0..20),
        any::<bool>(),
        any::<Verifier>(),
        prop::option::of(attr()),
    )
        .prop_map(|(entries, eof, verifier, dir_attr)| DirPage {
            entries,
            eof,
            verifier,
            dir_attr,
        })
}

proptest! {
    #[test]
    fn arguments_come_back(
        file in handle(), changes in set_attr(), guard in prop::option::of(time()),
        at_1 in at(), at_2 in at(), offset: u64, data in bytes(3000), verifier: Verifier,
    ) {
        round_trip(&nfs3::SetAttrArgs { file, changes, guard });
        round_trip(&at_1);
        round_trip(&nfs3::RenameArgs { from: at_1.clone(), to: at_2 });
        round_trip(&nfs3::LinkArgs { file, at: at_1.clone() });
        let head = nfs3::WriteHead { file, offset, count: data.len() as u32, stable: Stability::Unstable };
        round_trip(&nfs3::WriteArgs { head, data });
        for how in [CreateHow::Unchecked(changes), CreateHow::Guarded(changes), CreateHow::Exclusive(verifier)] {
            round_trip(&nfs3::CreateArgs { at: at_1.clone(), how });
        }
        let device = DeviceNumber { major: 7, minor: 9 };
        for kind in [NodeKind::Fifo, NodeKind::Socket, NodeKind::Block(device), NodeKind::Character(device)] {
            round_trip(&nfs3::MknodArgs { at: at_1.clone(), kind, attr: changes });
        }
        round_trip(&mount::MountReply::Ok { root: file, flavors: vec![1, 6] });
    }

    #[test]
    fn results_come_back(
        a in attr(), b in prop::option::of(attr()), w in wcc(), data in bytes(3000), eof: bool,
        handle in handle(), status in 1..100u32, plus_page in page(true), plain_page in page(false),
        verifier: Verifier,
    ) {
        round_trip(&nfs3::GetAttrReply::Ok(a));
        round_trip(&nfs3::LookupReply::Ok(Entry { handle, attr: b, dir_attr: Some(a) }));
        round_trip(&nfs3::LookupReply::Failed(Status(status), b));
        round_trip(&nfs3::ReadReply::Ok(ReadData { data, eof, attr: b }));
        round_trip(&nfs3::WriteReply::Ok(Written { count: 5, committed: Stability::FileSync, verifier, wcc: w }));
        round_trip(&nfs3::CreateReply::Ok(Created { handle: Some(handle), attr: b, dir_wcc: w }));
        round_trip(&nfs3::RenameReply::Failed(Status(status), (w, w)));
        round_trip(&nfs3::CommitReply::Ok(Committed { verifier, wcc: w }));
        round_trip(&nfs3::ReadDirPlusReply::Ok(plus_page));
        round_trip(&nfs3::ReadDirReply::Ok(nfs3::PlainPage(plain_page)));
    }

    #[test]
    fn entry_sizes_are_true(plus_page in page(true), plain_page in page(false)) {
        let mut encoder = Encoder::new();
        nfs3::ReadDirPlusReply::Ok(plus_page.clone()).encode(&mut encoder);
        let entries: usize = plus_page.entries.iter().map(|entry| DirPage::entry_bytes(
            entry.name.len(), entry.handle.map(|handle| handle.as_bytes().len()), entry.attr.is_some(),
        )).sum();
        let dir_attr_missing = if plus_page.dir_attr.is_none() { 84 } else { 0 };
        prop_assert_eq!(encoder.len(), DirPage::OVERHEAD_BYTES - dir_attr_missing + entries);
        let mut encoder = Encoder::new();
        nfs3::PlainPage(plain_page.clone()).encode(&mut encoder);
        let entries: usize = plain_page.entries.iter()
            .map(|entry| nfs3::PlainPage::entry_bytes(entry.name.len())).sum();
        prop_assert_eq!(encoder.len(), DirPage::OVERHEAD_BYTES - 4 - dir_attr_missing_of(&plain_page) + entries);
    }

    #[test]
    fn headers_come_back(
        xid: u32, program: u32, procedure: u32, name in bytes(255), uid: u32, gid: u32,
        groups in prop::collection::vec(any::<u32>(), 0..=16),
    ) {
        let credential = AuthSys { stamp: 1, machine_name: name, uid, gid, groups };
        round_trip(&credential);
        let header = CallHeader::new(xid, program, 3, procedure, credential.to_opaque());
        round_trip(&header);
        prop_assert_eq!(header.credential.auth_sys(), Some(credential));
        prop_assert_eq!(OpaqueAuth::none().auth_sys(), None);
        for outcome in [
            Ok(()), Err(Refusal::ProgramUnavailable), Err(Refusal::ProgramMismatch { low: 3, high: 3 }),
            Err(Refusal::ProcedureUnavailable), Err(Refusal::GarbageArguments), Err(Refusal::SystemError),
            Err(Refusal::RpcMismatch), Err(Refusal::AuthError(2)),
        ] {
            round_trip(&ReplyHeader { xid, outcome });
        }
    }

    #[test]
    fn garbage_is_refused_without_panic(record in bytes(2000)) {
        let decoder = || Decoder::new(record.clone());
        let _ = CallHeader::decode(&mut decoder());
        let _ = ReplyHeader::decode(&mut decoder());
        let _ = nfs3::ReadDirPlusReply::decode(&mut decoder());
        let _ = nfs3::ReadReply::decode(&mut decoder());
        let _ = nfs3::WriteArgs::decode(&mut decoder());
        let _ = nfs3::MknodArgs::decode(&mut decoder());
        let _ = nfs3::CreateArgs::decode(&mut decoder());
        let _ = mount::MountReply::decode(&mut decoder());
        let _ = mount::ExportList::decode(&mut decoder());
    }

    #[test]
    fn system_time_comes_back(seconds in -4_000_000_000i64..8_000_000_000, nanoseconds in 0..1_000_000_000u32) {
        let time = Time { seconds, nanoseconds };
        prop_assert_eq!(Time::from_system_time(time.to_system_time()), time);
    }
}

fn dir_attr_missing_of(page: &DirPage) -> usize {
    if page.dir_attr.is_none() { 84 } else { 0 }
}

#[test]
fn lengths_are_capped_before_allocating() {
    let mut wire = Encoder::new();
    wire.u32(u32::MAX);
    let wire = Bytes::from(wire.into_vec());
    assert!(FileHandle::decode(&mut Decoder::new(wire.clone())).is_err());
    assert!(nfs3::Name::decode(&mut Decoder::new(wire.clone())).is_err());
    assert!(OpaqueAuth::decode(&mut Decoder::new(wire)).is_err());
}

#[test]
fn times_that_nfs_cannot_carry_are_clamped() {
    for (seconds, wire_seconds) in [(-5, 0), (1 << 32, u32::MAX)] {
        let mut encoder = Encoder::new();
        Time { seconds, nanoseconds: 5 }.encode(&mut encoder);
        assert_eq!(encoder.into_vec()[..4], wire_seconds.to_be_bytes());
    }
}
