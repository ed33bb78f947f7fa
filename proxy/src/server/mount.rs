//! The MOUNT protocol, so that clients which know only a path get the root's handle.

use bytes::Bytes;
use gridvfs_vfs::nfs3::mount::{self, DirPath, Export, ExportList, MountReply};
use gridvfs_vfs::rpc::{AUTH_SYS, CallHeader, Refusal};
use gridvfs_vfs::xdr::{Decoder, Xdr};
use gridvfs_vfs::{Caller, Error, FileHandle, FileKind, Result, Status};

use super::{Record, ServerOptions, refusal_record, results, sealed};

/// Answers a call of the MOUNT program.
pub(super) async fn run(
    options: &ServerOptions,
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
            let answer = match find(options, caller, &path.0).await {
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
            let path = Bytes::copy_from_slice(&options.export_path);
            ExportList(vec![Export { path }]).encode(&mut reply);
        }
        _ => return refusal_record(header.xid, Refusal::ProcedureUnavailable),
    }
    sealed(reply, None)
}

/// Finds what a client may mount: the export by its path or, for short, by `/`; and directories in
/// it, name by name from the root, so that nothing outside can be reached.
async fn find(options: &ServerOptions, caller: &Caller, path: &[u8]) -> Result<FileHandle> {
    let vfs = &*options.vfs;
    let export = &options.export_path[..];
    let below = match path.strip_prefix(export) {
        Some(below) if below.is_empty() || below[0] == b'/' || export.ends_with(b"/") => below,
        _ if matches!(path, b"" | b"/") => b"",
        _ => return Err(Status::NOENT.into()),
    };
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
