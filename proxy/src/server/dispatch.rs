//! From a call's arguments to the [`Vfs`] call and back to its results.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use gridvfs_vfs::nfs3::{self, PlainPage, Reply, mount};
use gridvfs_vfs::rpc::{CallHeader, Refusal};
use gridvfs_vfs::xdr::{Decoder, Xdr, XdrError};
use gridvfs_vfs::{Caller, DirPage, Error, Stability, Status, Vfs, ext};
use tokio::sync::mpsc;

use super::fetch::{self, Fetches};
use super::{Permits, Record, ServerOptions, refusal_record, results, sealed};
use crate::changes::attentive;
use crate::gate::{Export, Guest};

/// Who calls without an AUTH_SYS credential, where that is let in at all.
const NOBODY: u32 = 65534;
/// The largest READ that is answered; a larger one gets less, as the protocol has it.
const READ_BYTES_MAX: u32 = 1 << 20;
/// The largest listing that is made at once, in bytes.
const LISTING_BYTES_MAX: u32 = 1 << 20;
/// The smallest listing: one entry of the longest name with its attributes.
const LISTING_BYTES_MIN: u32 = 512;

/// Answers NULL.
pub(super) fn null(header: &CallHeader) -> Record {
    sealed(results(header.xid), None)
}

/// Says whether running a call again does no harm, so that its reply need not be remembered.
pub(super) fn is_idempotent(header: &CallHeader) -> bool {
    match (header.program, header.procedure) {
        (nfs3::PROGRAM, procedure) => matches!(
            procedure,
            nfs3::GETATTR
                | nfs3::LOOKUP
                | nfs3::ACCESS
                | nfs3::READLINK
                | nfs3::READ
                | nfs3::READDIR
                | nfs3::READDIRPLUS
                | nfs3::FSSTAT
                | nfs3::FSINFO
                | nfs3::PATHCONF
        ),
        (ext::PROGRAM, procedure) => {
            matches!(procedure, ext::SEEK | ext::FETCH | ext::HOPS | ext::CHANGES)
        }
        _ => true,
    }
}

/// Returns about how many bytes a reply will take.
pub(super) fn reply_bytes(header: &CallHeader, arguments: Bytes) -> usize {
    if let Some(bytes) = fetch::size(header, &arguments) {
        return bytes;
    }
    let mut decoder = Decoder::new(arguments);
    match (header.program, header.procedure) {
        (nfs3::PROGRAM, nfs3::READ) => nfs3::ReadArgs::decode(&mut decoder)
            .map_or(0, |arguments| arguments.count.min(READ_BYTES_MAX) as usize),
        (nfs3::PROGRAM, nfs3::READDIRPLUS) => nfs3::ReadDirPlusArgs::decode(&mut decoder)
            .map_or(0, |arguments| arguments.max_count.min(LISTING_BYTES_MAX) as usize),
        _ => 512,
    }
}

/// What a call is run with.
pub(super) struct Context<'a> {
    pub options: &'a ServerOptions,
    pub fetches: &'a Arc<Fetches>,
    pub guest: &'a Guest,
}

/// Runs a call and makes the record of its reply.
pub(super) async fn run(context: &Context<'_>, header: &CallHeader, arguments: Bytes) -> Record {
    let (caller, stamp) = caller_of(header);
    let mut decoder = Decoder::new(arguments.clone());
    let export = context.guest.export_of(&arguments);
    let answer = match (header.program, header.procedure) {
        (mount::PROGRAM, _) => {
            return super::mount::run(context.guest, header, &caller, arguments).await;
        }
        (ext::PROGRAM, ext::END) => end(context.options, header),
        (ext::PROGRAM, ext::HOPS) => reply::<_, ()>(header, Ok(context.options.hops.told())),
        (ext::PROGRAM, procedure) if procedure > ext::CHANGES => Ok(None),
        (_, procedure) if header.program == nfs3::PROGRAM && procedure > nfs3::COMMIT => Ok(None),
        _ => match export {
            Some(export) => {
                let id = (std::ptr::from_ref(context.guest).addr(), stamp);
                let vfs = attentive(export.changes.as_ref(), &export.vfs, id);
                run_on(context, (export, &vfs), header, &caller, &mut decoder).await
            }
            None => no_export(header, &mut decoder),
        },
    };
    match answer {
        Ok(Some(record)) => record,
        Ok(None) => refusal_record(header.xid, Refusal::ProcedureUnavailable),
        Err(error) => {
            log::debug!("arguments of {}: {error}", nfs3::procedure_name(header.procedure));
            refusal_record(header.xid, Refusal::GarbageArguments)
        }
    }
}

async fn run_on(
    context: &Context<'_>,
    (export, shared): (&Export, &Arc<dyn Vfs>),
    header: &CallHeader,
    caller: &Caller,
    decoder: &mut Decoder,
) -> Answer {
    let vfs = &**shared;
    match (header.program, header.procedure) {
        (ext::PROGRAM, ext::FETCH) => {
            fetch((export, shared), context.fetches, header, caller, decoder).await
        }
        (ext::PROGRAM, _) => extension(vfs, header, caller, decoder).await,
        (_, nfs3::READ) => read(vfs, header, caller, decoder).await,
        _ => procedure(vfs, header, caller, decoder).await,
    }
}

/// Answers a call about a handle that none of the guest's exports gave out.
fn no_export(header: &CallHeader, decoder: &mut Decoder) -> Answer {
    let _: gridvfs_vfs::FileHandle = Xdr::decode(decoder)?;
    let error = Err(Status::BADHANDLE.into());
    // What follows the status where there are no attributes to tell: nothing, or as many words of 0
    // as the procedure has optional parts.
    match (header.program, header.procedure) {
        (ext::PROGRAM, ext::ALLOCATE) => reply::<(), gridvfs_vfs::Wcc>(header, error),
        (ext::PROGRAM, ext::RENAME_NOREPLACE) | (nfs3::PROGRAM, nfs3::RENAME) => {
            reply::<(), (gridvfs_vfs::Wcc, gridvfs_vfs::Wcc)>(header, error)
        }
        (ext::PROGRAM, _) | (_, nfs3::GETATTR) => reply::<(), ()>(header, error),
        (
            _,
            nfs3::LOOKUP
            | nfs3::ACCESS
            | nfs3::READLINK
            | nfs3::READ
            | nfs3::READDIR
            | nfs3::READDIRPLUS
            | nfs3::FSSTAT
            | nfs3::FSINFO
            | nfs3::PATHCONF,
        ) => reply::<(), Option<gridvfs_vfs::Attr>>(header, error),
        (_, nfs3::LINK) => {
            reply::<(), (Option<gridvfs_vfs::Attr>, gridvfs_vfs::Wcc)>(header, error)
        }
        _ => reply::<(), gridvfs_vfs::Wcc>(header, error),
    }
}

/// Who calls, and the stamp that tells its process from others.
fn caller_of(header: &CallHeader) -> (Caller, u32) {
    match header.credential.auth_sys() {
        Some(credential) => (credential.caller(), credential.stamp),
        None => (Caller { uid: NOBODY, gid: NOBODY, groups: Vec::new() }, 0),
    }
}

/// Answers CHANGES, some time, if the channel is still there then.
pub(super) async fn hold(
    guest: Arc<Guest>,
    header: CallHeader,
    arguments: Bytes,
    replies: mpsc::WeakUnboundedSender<(Record, Permits)>,
) {
    let args = ext::ChangesArgs::decode(&mut Decoder::new(arguments.clone()));
    let export = guest.export_of(&arguments);
    let answer = match (args, export.map(|export| (export, &export.changes))) {
        (Err(_), _) => Ok(Some(refusal_record(header.xid, Refusal::GarbageArguments))),
        (_, None) => reply::<ext::Changes, ()>(&header, Err(Status::BADHANDLE.into())),
        (_, Some((_, None))) => reply::<ext::Changes, ()>(&header, Err(Status::NOTSUPP.into())),
        (Ok(args), Some((export, Some(hub)))) => {
            let (caller, stamp) = caller_of(&header);
            let id = (Arc::as_ptr(&guest).addr(), stamp);
            let (vfs, blocking) = (export.vfs.clone(), export.blocking);
            tokio::select! {
                answer = hub.answer(id, caller, vfs, blocking, &args) => match answer {
                    Some(answer) => reply::<_, ()>(&header, answer),
                    None => return,
                },
                () = guest.revoked() => return,
            }
        }
    };
    if let (Ok(Some(record)), Some(replies)) = (answer, replies.upgrade()) {
        let _ = replies.send((record, None));
    }
}

/// The client's last call. A server that does not belong to one session has nothing to end.
fn end(options: &ServerOptions, header: &CallHeader) -> Answer {
    let Some(ended) = &options.ended else { return Ok(None) };
    ended.store(true, Ordering::Relaxed);
    reply::<(), ()>(header, Ok(()))
}

type Answer = Result<Option<Record>, XdrError>;

fn reply<T, F>(header: &CallHeader, result: Result<T, Error>) -> Answer
where
    Reply<T, F>: Xdr,
    F: Default,
{
    let mut encoder = results(header.xid);
    Reply::<T, F>::from(result).encode(&mut encoder);
    Ok(Some(sealed(encoder, None)))
}

async fn read(
    vfs: &dyn Vfs,
    header: &CallHeader,
    caller: &Caller,
    decoder: &mut Decoder,
) -> Answer {
    let nfs3::ReadArgs { file, offset, count } = Xdr::decode(decoder)?;
    match vfs.read(caller, &file, offset, count.min(READ_BYTES_MAX)).await {
        Ok(mut read) => {
            if read.data.len() > count as usize {
                read.data.truncate(count as usize);
                read.eof = false;
            }
            let mut encoder = results(header.xid);
            nfs3::read_reply_head(&read, &mut encoder);
            Ok(Some(sealed(encoder, Some(read.data))))
        }
        Err(error) => reply::<gridvfs_vfs::ReadData, Option<gridvfs_vfs::Attr>>(header, Err(error)),
    }
}

async fn fetch(
    (export, vfs): (&Export, &Arc<dyn Vfs>),
    fetches: &Arc<Fetches>,
    header: &CallHeader,
    caller: &Caller,
    decoder: &mut Decoder,
) -> Answer {
    let arguments = Xdr::decode(decoder)?;
    match fetches.run(vfs, export.blocking, caller, arguments).await {
        Ok(packed) => {
            let mut encoder = results(header.xid);
            encoder.u32(0);
            packed.encode_head(&mut encoder);
            Ok(Some(sealed(encoder, Some(packed.data))))
        }
        Err(error) => reply::<ext::PackedFetch, ()>(header, Err(error)),
    }
}

async fn procedure(
    vfs: &dyn Vfs,
    header: &CallHeader,
    caller: &Caller,
    from: &mut Decoder,
) -> Answer {
    match header.procedure {
        nfs3::GETATTR => {
            let file = Xdr::decode(from)?;
            reply::<_, ()>(header, vfs.getattr(caller, &file).await)
        }
        nfs3::SETATTR => {
            let nfs3::SetAttrArgs { file, changes, guard } = Xdr::decode(from)?;
            reply::<_, gridvfs_vfs::Wcc>(header, vfs.setattr(caller, &file, &changes, guard).await)
        }
        nfs3::LOOKUP => {
            let nfs3::DirOpArgs { dir, name } = Xdr::decode(from)?;
            reply::<_, Option<gridvfs_vfs::Attr>>(header, vfs.lookup(caller, &dir, &name.0).await)
        }
        nfs3::ACCESS => {
            let nfs3::AccessArgs { file, wanted } = Xdr::decode(from)?;
            reply::<_, Option<gridvfs_vfs::Attr>>(header, vfs.access(caller, &file, wanted).await)
        }
        nfs3::READLINK => {
            let file = Xdr::decode(from)?;
            let target = vfs.readlink(caller, &file).await;
            let target = target.map(|target| (None, nfs3::Path(target)));
            reply_with_attr(header, target)
        }
        nfs3::WRITE => {
            let nfs3::WriteArgs { head, data } = Xdr::decode(from)?;
            let written = vfs.write(caller, &head.file, head.offset, data, head.stable).await;
            // What a cache that writes through holds is on its way at once, and its upstream has it
            // when this is answered: who closes a file without COMMIT relies on that. One that
            // writes back waits for nothing here.
            let written = match written {
                Ok(written) if written.committed == Stability::Unstable => {
                    vfs.flush(caller, &head.file).await.map(|()| written)
                }
                written => written,
            };
            reply::<_, gridvfs_vfs::Wcc>(header, written)
        }
        nfs3::CREATE => {
            let nfs3::CreateArgs { at, how } = Xdr::decode(from)?;
            let created = vfs.create(caller, &at.dir, &at.name.0, &how).await;
            reply::<_, gridvfs_vfs::Wcc>(header, created)
        }
        nfs3::MKDIR => {
            let nfs3::MkdirArgs { at, attr } = Xdr::decode(from)?;
            let created = vfs.mkdir(caller, &at.dir, &at.name.0, &attr).await;
            reply::<_, gridvfs_vfs::Wcc>(header, created)
        }
        nfs3::SYMLINK => {
            let nfs3::SymlinkArgs { at, attr, target } = Xdr::decode(from)?;
            let created = vfs.symlink(caller, &at.dir, &at.name.0, &target.0, &attr).await;
            reply::<_, gridvfs_vfs::Wcc>(header, created)
        }
        nfs3::MKNOD => {
            let nfs3::MknodArgs { at, kind, attr } = match Xdr::decode(from) {
                // Not a fault of the wire, but a type that MKNOD does not make.
                Err(XdrError::Unknown { what: "MKNOD type", .. }) => {
                    let error = Err(Status::BADTYPE.into());
                    return reply::<gridvfs_vfs::Created, gridvfs_vfs::Wcc>(header, error);
                }
                arguments => arguments?,
            };
            let created = vfs.mknod(caller, &at.dir, &at.name.0, kind, &attr).await;
            reply::<_, gridvfs_vfs::Wcc>(header, created)
        }
        nfs3::REMOVE => {
            let nfs3::DirOpArgs { dir, name } = Xdr::decode(from)?;
            reply::<_, gridvfs_vfs::Wcc>(header, vfs.remove(caller, &dir, &name.0).await)
        }
        nfs3::RMDIR => {
            let nfs3::DirOpArgs { dir, name } = Xdr::decode(from)?;
            reply::<_, gridvfs_vfs::Wcc>(header, vfs.rmdir(caller, &dir, &name.0).await)
        }
        nfs3::RENAME => rename(vfs, header, caller, from, false).await,
        nfs3::LINK => {
            let nfs3::LinkArgs { file, at } = Xdr::decode(from)?;
            let linked = vfs.link(caller, &file, &at.dir, &at.name.0).await;
            reply::<_, (Option<gridvfs_vfs::Attr>, gridvfs_vfs::Wcc)>(header, linked)
        }
        nfs3::READDIR => {
            let nfs3::ReadDirArgs { dir, cookie, verifier, count } = Xdr::decode(from)?;
            let page = list(vfs, caller, &dir, cookie, verifier, count, false).await;
            reply::<_, Option<gridvfs_vfs::Attr>>(header, page.map(PlainPage))
        }
        nfs3::READDIRPLUS => {
            let nfs3::ReadDirPlusArgs { dir, cookie, verifier, max_count, .. } = Xdr::decode(from)?;
            let page = list(vfs, caller, &dir, cookie, verifier, max_count, true).await;
            reply::<_, Option<gridvfs_vfs::Attr>>(header, page)
        }
        nfs3::FSSTAT => {
            let file = Xdr::decode(from)?;
            let stat = vfs.fsstat(caller, &file).await.map(|stat| (None, stat));
            reply_with_attr(header, stat)
        }
        nfs3::FSINFO => {
            let file = Xdr::decode(from)?;
            let info = vfs.fsinfo(caller, &file).await.map(|info| (None, info));
            reply_with_attr(header, info)
        }
        nfs3::PATHCONF => {
            let file = Xdr::decode(from)?;
            let conf = vfs.pathconf(caller, &file).await.map(|conf| (None, conf));
            reply_with_attr(header, conf)
        }
        nfs3::COMMIT => {
            let nfs3::CommitArgs { file, offset, count } = Xdr::decode(from)?;
            let committed = vfs.commit(caller, &file, offset, count).await;
            reply::<_, gridvfs_vfs::Wcc>(header, committed)
        }
        _ => Ok(None),
    }
}

fn reply_with_attr<T: Xdr>(
    header: &CallHeader,
    result: Result<(Option<gridvfs_vfs::Attr>, T), Error>,
) -> Answer {
    reply::<_, Option<gridvfs_vfs::Attr>>(header, result)
}

async fn extension(
    vfs: &dyn Vfs,
    header: &CallHeader,
    caller: &Caller,
    from: &mut Decoder,
) -> Answer {
    match header.procedure {
        ext::SEEK => {
            let ext::SeekArgs { file, offset, whence } = Xdr::decode(from)?;
            reply::<_, ()>(header, vfs.seek(caller, &file, offset, whence).await)
        }
        ext::ALLOCATE => {
            let ext::AllocateArgs { file, offset, length, how } = Xdr::decode(from)?;
            let wcc = vfs.allocate(caller, &file, offset, length, how).await;
            reply::<_, gridvfs_vfs::Wcc>(header, wcc)
        }
        ext::RENAME_NOREPLACE => rename(vfs, header, caller, from, true).await,
        _ => Ok(None),
    }
}

async fn rename(
    vfs: &dyn Vfs,
    header: &CallHeader,
    caller: &Caller,
    from: &mut Decoder,
    no_replace: bool,
) -> Answer {
    let nfs3::RenameArgs { from, to } = Xdr::decode(from)?;
    let renamed =
        vfs.rename(caller, &from.dir, &from.name.0, &to.dir, &to.name.0, no_replace).await;
    reply::<_, (gridvfs_vfs::Wcc, gridvfs_vfs::Wcc)>(header, renamed)
}

/// Lists a directory into a reply of at most `count` bytes: what does not fit is left for the next.
async fn list(
    vfs: &dyn Vfs,
    caller: &Caller,
    dir: &gridvfs_vfs::FileHandle,
    cookie: u64,
    verifier: gridvfs_vfs::Verifier,
    count: u32,
    plus: bool,
) -> Result<DirPage, Error> {
    let count = count.min(LISTING_BYTES_MAX);
    let asked = count.max(LISTING_BYTES_MIN);
    let mut page = vfs.readdir(caller, dir, cookie, verifier, asked, plus).await?;
    let mut size = DirPage::OVERHEAD_BYTES;
    let fitting = page.entries.iter().position(|entry| {
        size += if plus {
            let handle = entry.handle.map(|handle| handle.as_bytes().len());
            DirPage::entry_bytes(entry.name.len(), handle, entry.attr.is_some())
        } else {
            PlainPage::entry_bytes(entry.name.len())
        };
        size > count as usize
    });
    match fitting {
        Some(0) => return Err(Status::TOOSMALL.into()),
        Some(number) => {
            page.entries.truncate(number);
            page.eof = false;
        }
        None => {}
    }
    Ok(page)
}
