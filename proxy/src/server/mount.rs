//! The MOUNT protocol, so that clients which know only a path get the root's handle.

use bytes::Bytes;
use gridvfs_vfs::nfs3::mount::{self, DirPath, Export, ExportList, MountReply};
use gridvfs_vfs::rpc::{AUTH_SYS, CallHeader, Refusal};
use gridvfs_vfs::xdr::{Decoder, Xdr};
use gridvfs_vfs::{Caller, Error, FileHandle, FileKind, Result, Status};

use super::{Record, refusal_record, results, sealed};
use crate::gate::{Export as Served, Guest};

/// Answers a call of the MOUNT program.
pub(super) async fn run(
    guest: &Guest,
    header: &CallHeader,
    caller: &Caller,
    arguments: Bytes,
) -> Record {
    let mut reply = results(header.xid);
    match header.procedure {
        mount::MNT => {
            let Ok(path) = DirPath::decode(&mut Decoder::new(arguments)) else {
                return refusal_record(header.xid, Refusal::GarbageArguments);
            };
            let answer = match find(guest, caller, &path.0).await {
                Ok(root) => MountReply::Ok { root, flavors: vec![AUTH_SYS] },
                Err(Error::Status(status)) => MountReply::Failed(status),
                Err(_) => MountReply::Failed(Status::IO),
            };
            answer.encode(&mut reply);
        }
        // No list of mounts is kept: the protocol itself says that it cannot be relied on.
        mount::DUMP => reply.bool(false),
        mount::UMNT | mount::UMNTALL => {}
        mount::EXPORT => {
            let exports = guest.exports().iter();
            let path = |served: &Served| Bytes::copy_from_slice(&served.path);
            ExportList(exports.map(|served| Export { path: path(served) }).collect())
                .encode(&mut reply);
        }
        _ => return refusal_record(header.xid, Refusal::ProcedureUnavailable),
    }
    sealed(reply, None)
}

/// Finds what a client may mount: an export by its path or, if there is only one, by `/`; and
/// directories in it, name by name from the root, so that nothing outside can be reached.
async fn find(guest: &Guest, caller: &Caller, path: &[u8]) -> Result<FileHandle> {
    let below = |served: &Served| -> Option<Vec<u8>> {
        let export = &served.path[..];
        let below = path.strip_prefix(export)?;
        let good = below.is_empty() || below[0] == b'/' || export.ends_with(b"/");
        good.then(|| below.to_vec())
    };
    // Of exports whose paths begin alike, the longest is meant.
    let named = guest.exports().iter().filter_map(|served| Some((served, below(served)?)));
    let (served, below) = match (named.max_by_key(|(served, _)| served.path.len()), path) {
        (Some(found), _) => found,
        (None, b"" | b"/") if guest.exports().len() == 1 => (&guest.exports()[0], Vec::new()),
        _ => return Err(Status::NOENT.into()),
    };
    let vfs = &*served.vfs;
    let mut found = vfs.root();
    for name in below.split(|byte| *byte == b'/') {
        if matches!(name, b"" | b".") {
            continue;
        }
        if name == b".." {
            return Err(Status::ACCES.into());
        }
        let entry = vfs.lookup(caller, &found, name).await?;
        let attr = match entry.attr {
            Some(attr) => attr,
            None => vfs.getattr(caller, &entry.handle).await?,
        };
        if attr.kind != FileKind::Directory {
            return Err(Status::NOTDIR.into());
        }
        found = entry.handle;
    }
    Ok(found)
}
