//! What NFSv3 lacks: by our extension program where the far side has it, composed of other calls
//! or refused where it has not.

use std::sync::atomic::Ordering;
use std::time::Duration;

use gridvfs_vfs::ext;
use gridvfs_vfs::nfs3::{self, DirOpArgs, RenameArgs};
use gridvfs_vfs::rpc::Refusal;
use gridvfs_vfs::xdr::Xdr;
use gridvfs_vfs::{
    Allocation, Caller, Error, FileHandle, FileKind, Linked, Result, SeekWhence, Status, Vfs, Wcc,
};

use super::{Answer, NfsClient};
use crate::rpc::{CallClass, CallError};

/// How long the answer to a farewell is waited for.
const END_PATIENCE: Duration = Duration::from_secs(2);

impl NfsClient {
    /// Calls the extension program; `None` when the far side does not have it.
    async fn extended<T: Xdr>(
        &self,
        caller: &Caller,
        procedure: u32,
        arguments: &impl Xdr,
    ) -> Result<Option<Answer<T>>> {
        if !self.extensions.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut request = self.request(caller, procedure, arguments, CallClass::Slow);
        (request.program, request.version) = (ext::PROGRAM, ext::VERSION);
        match self.exchange(request).await {
            Ok(answer) => Ok(Some(answer)),
            Err(CallError::Refused(
                Refusal::ProgramUnavailable | Refusal::ProgramMismatch { .. },
            )) => {
                self.extensions.store(false, Ordering::Relaxed);
                Ok(None)
            }
            Err(CallError::Refused(Refusal::ProcedureUnavailable)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells a proxy of our own that this was the last call: it need not wait for us to come back.
    /// Whoever does not know what that means may wait.
    pub async fn end_session(&self, caller: &Caller) {
        let mut request = self.request(caller, ext::END, &(), CallClass::Small);
        (request.program, request.version) = (ext::PROGRAM, ext::VERSION);
        let told = tokio::time::timeout(END_PATIENCE, self.exchange::<()>(request));
        let _ = told.await;
    }

    /// Asks which standing proxies are on the way to the files. None are known of where the far
    /// side does not have the call.
    pub async fn hops(&self, caller: &Caller) -> Result<ext::Hops> {
        match self.extended(caller, ext::HOPS, &()).await? {
            Some(answer) => answer.into_result(),
            None => Ok(ext::Hops::default()),
        }
    }

    pub(super) async fn seek_extended(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        whence: SeekWhence,
    ) -> Result<u64> {
        let arguments = ext::SeekArgs { file: *file, offset, whence };
        match self.extended(caller, ext::SEEK, &arguments).await? {
            Some(answer) => answer.into_result(),
            None => Err(Status::NOTSUPP.into()),
        }
    }

    pub(super) async fn allocate_extended(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        length: u64,
        how: Allocation,
    ) -> Result<Wcc> {
        let arguments = ext::AllocateArgs { file: *file, offset, length, how };
        match self.extended(caller, ext::ALLOCATE, &arguments).await? {
            Some(answer) => answer.into_result(),
            None => Err(Status::NOTSUPP.into()),
        }
    }

    /// Renames unless the new name exists.
    ///
    /// Without the extension program, a file is linked to its new name (which fails if that
    /// exists) and then removed from its old one: atomic as far as the new name goes. A directory
    /// cannot be linked, and some file systems have no links: there the new name is looked up
    /// first, which leaves a moment for somebody else to make it.
    pub(super) async fn rename_without_replacing(
        &self,
        caller: &Caller,
        from: DirOpArgs,
        to: DirOpArgs,
    ) -> Result<(Wcc, Wcc)> {
        let arguments = RenameArgs { from, to };
        let extended = self.extended(caller, ext::RENAME_NOREPLACE, &arguments).await?;
        if let Some(answer) = extended {
            if (answer.may_be_replay(Status::EXIST) || answer.may_be_replay(Status::NOENT))
                && let Some(wccs) = self.replayed_rename(caller, &arguments).await
            {
                return Ok(wccs);
            }
            // NOTSUPP: the far side passes on to a server that cannot, either.
            if answer.result.is_ok() || answer.result != Err(Status::NOTSUPP) {
                return answer.into_result();
            }
        }
        let RenameArgs { from, to } = arguments;
        let source = self.find(caller, &from.dir, &from.name.0).await?;
        let kind = match source.attr {
            Some(attr) => attr.kind,
            None => self.getattr(caller, &source.handle).await?.kind,
        };
        if kind != FileKind::Directory {
            match self.create_link(caller, &source.handle, to.clone()).await {
                Ok(linked) => return self.finish_rename(caller, from, to, linked).await,
                Err(Error::Status(
                    Status::NOTSUPP | Status::MLINK | Status::PERM | Status::INVAL,
                )) => {}
                Err(error) => return Err(error),
            }
        }
        match self.find(caller, &to.dir, &to.name.0).await {
            Err(Error::Status(Status::NOENT)) => self.rename_replacing(caller, from, to).await,
            Ok(_) => Err(Status::EXIST.into()),
            Err(error) => Err(error),
        }
    }

    /// Removes the old name of a file that has been linked to its new one.
    async fn finish_rename(
        &self,
        caller: &Caller,
        from: DirOpArgs,
        to: DirOpArgs,
        linked: Linked,
    ) -> Result<(Wcc, Wcc)> {
        match self.remove_name(caller, nfs3::REMOVE, &from.dir, &from.name.0).await {
            Ok(removed) if from.dir == to.dir => {
                let wcc = in_turn(linked.dir_wcc, removed);
                Ok((wcc, wcc))
            }
            Ok(removed) => Ok((removed, linked.dir_wcc)),
            Err(error) => {
                // As if nothing had been tried. Should this fail too, both names remain.
                let _ = self.remove_name(caller, nfs3::REMOVE, &to.dir, &to.name.0).await;
                Err(error)
            }
        }
    }
}

/// Puts together what two changes of one directory say, if nobody else came in between.
fn in_turn(first: Wcc, second: Wcc) -> Wcc {
    let undisturbed = match (first.after, second.before) {
        (Some(after), Some(before)) => after.ctime == before.ctime && after.size == before.size,
        _ => false,
    };
    Wcc { before: first.before.filter(|_| undisturbed), after: second.after }
}
