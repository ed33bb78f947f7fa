//! Calls that change names: CREATE to LINK of RFC 1813, and SETATTR.

use bytes::Bytes;
use gridvfs_vfs::nfs3::{self, DirOpArgs, NAME_BYTES_MAX, Name, PATH_BYTES_MAX};
use gridvfs_vfs::{
    Caller, CreateHow, Created, Entry, FileHandle, Linked, NodeKind, Result, SetAttr, Status, Time,
    Wcc,
};

use super::NfsClient;
use crate::rpc::CallClass;

/// Makes the place of a name.
pub(super) fn at(dir: &FileHandle, name: &[u8]) -> Result<DirOpArgs> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Status::NAMETOOLONG.into());
    }
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
        return Err(Status::INVAL.into());
    }
    Ok(DirOpArgs { dir: *dir, name: Name::from(name) })
}

impl NfsClient {
    pub(super) async fn find(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Entry> {
        self.ask(caller, nfs3::LOOKUP, &at(dir, name)?).await
    }

    pub(super) async fn change_attributes(
        &self,
        caller: &Caller,
        file: &FileHandle,
        changes: &SetAttr,
        guard: Option<Time>,
    ) -> Result<Wcc> {
        let arguments = nfs3::SetAttrArgs { file: *file, changes: *changes, guard };
        let answer = self.call(caller, nfs3::SETATTR, &arguments, CallClass::Slow).await?;
        if answer.may_be_replay(Status::NOT_SYNC)
            && let Some(wcc) = self.replayed_setattr(caller, file, changes).await
        {
            return Ok(wcc);
        }
        answer.into_result()
    }

    pub(super) async fn create_file(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        how: &CreateHow,
    ) -> Result<Created> {
        let at = at(dir, name)?;
        let arguments = nfs3::CreateArgs { at: at.clone(), how: *how };
        let answer = self.call(caller, nfs3::CREATE, &arguments, CallClass::Slow).await?;
        if let CreateHow::Guarded(attr) = how
            && answer.may_be_replay(Status::EXIST)
            && let Some(created) = self.replayed_create(caller, &at, attr).await
        {
            return Ok(created);
        }
        answer.into_result()
    }

    pub(super) async fn create_directory(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        let at = at(dir, name)?;
        let arguments = nfs3::MkdirArgs { at: at.clone(), attr: *attr };
        let answer = self.call(caller, nfs3::MKDIR, &arguments, CallClass::Slow).await?;
        if answer.may_be_replay(Status::EXIST)
            && let Some(created) = self.replayed_mkdir(caller, &at, attr).await
        {
            return Ok(created);
        }
        answer.into_result()
    }

    pub(super) async fn create_symlink(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        target: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        if target.len() > PATH_BYTES_MAX {
            return Err(Status::NAMETOOLONG.into());
        }
        let at = at(dir, name)?;
        let path = nfs3::Path(Bytes::copy_from_slice(target));
        let arguments = nfs3::SymlinkArgs { at: at.clone(), attr: *attr, target: path };
        let answer = self.call(caller, nfs3::SYMLINK, &arguments, CallClass::Slow).await?;
        if answer.may_be_replay(Status::EXIST)
            && let Some(created) = self.replayed_symlink(caller, &at, target).await
        {
            return Ok(created);
        }
        answer.into_result()
    }

    pub(super) async fn create_node(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        kind: NodeKind,
        attr: &SetAttr,
    ) -> Result<Created> {
        let at = at(dir, name)?;
        let arguments = nfs3::MknodArgs { at: at.clone(), kind, attr: *attr };
        let answer = self.call(caller, nfs3::MKNOD, &arguments, CallClass::Slow).await?;
        if answer.may_be_replay(Status::EXIST)
            && let Some(created) = self.replayed_mknod(caller, &at, kind, attr).await
        {
            return Ok(created);
        }
        answer.into_result()
    }

    /// REMOVE or RMDIR.
    pub(super) async fn remove_name(
        &self,
        caller: &Caller,
        procedure: u32,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Wcc> {
        let answer = self.call(caller, procedure, &at(dir, name)?, CallClass::Slow).await?;
        if answer.may_be_replay(Status::NOENT) {
            return Ok(self.replayed_remove());
        }
        answer.into_result()
    }

    pub(super) async fn rename_replacing(
        &self,
        caller: &Caller,
        from: DirOpArgs,
        to: DirOpArgs,
    ) -> Result<(Wcc, Wcc)> {
        let arguments = nfs3::RenameArgs { from, to };
        let answer = self.call(caller, nfs3::RENAME, &arguments, CallClass::Slow).await?;
        if answer.may_be_replay(Status::NOENT)
            && let Some(wccs) = self.replayed_rename(caller, &arguments).await
        {
            return Ok(wccs);
        }
        answer.into_result()
    }

    pub(super) async fn create_link(
        &self,
        caller: &Caller,
        file: &FileHandle,
        at: DirOpArgs,
    ) -> Result<Linked> {
        let arguments = nfs3::LinkArgs { file: *file, at };
        let answer = self.call(caller, nfs3::LINK, &arguments, CallClass::Slow).await?;
        if answer.may_be_replay(Status::EXIST)
            && let Some(linked) = self.replayed_link(caller, &arguments).await
        {
            return Ok(linked);
        }
        answer.into_result()
    }
}
