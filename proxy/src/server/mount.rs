//! The MOUNT protocol, so that clients which know only a path get the root's handle.

use bytes::Bytes;
use gridvfs_vfs::Status;
use gridvfs_vfs::nfs3::mount::{self, DirPath, Export, ExportList, MountReply};
use gridvfs_vfs::rpc::{AUTH_SYS, CallHeader, Refusal};
use gridvfs_vfs::xdr::{Decoder, Xdr};

use super::{Record, ServerOptions, refusal_record, results, sealed};

/// Answers a call of the MOUNT program.
pub(super) fn run(options: &ServerOptions, header: &CallHeader, arguments: Bytes) -> Record {
    let mut reply = results(header.xid);
    match header.procedure {
        mount::MNT => {
            let Ok(path) = DirPath::decode(&mut Decoder::new(arguments)) else {
                return refusal_record(header.xid, Refusal::GarbageArguments);
            };
            // There is one export, known by its path and, for short, by `/`.
            let trimmed = path.0.strip_suffix(b"/").unwrap_or(&path.0);
            let answer = if trimmed.is_empty() || trimmed == options.export_path {
                MountReply::Ok { root: options.vfs.root(), flavors: vec![AUTH_SYS] }
            } else {
                MountReply::Failed(Status::NOENT)
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
