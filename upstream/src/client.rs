//! NFS version 3 (RFC 1813) as a [`Vfs`].
//!
//! Each call of the trait is one procedure, except where a request is larger than the server
//! takes, a reply is shorter than asked for, or NFSv3 has no such call (see the modules). Nothing
//! is cached here: attributes and weak cache consistency data are passed up with each reply.
//!
//! After a retransmission to a server that may not remember the first execution, some errors mean
//! success: the rules are in [`replay`].

mod directory;
mod extension;
mod names;
mod read;
mod replay;
mod sizes;
mod write;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use async_trait::async_trait;
use bytes::Bytes;
use gridvfs_vfs::xdr::{Decoder, Encoder, Xdr, XdrResult};
use gridvfs_vfs::{
    Access, AccessGranted, Allocation, Attr, Caller, Committed, CreateHow, Created, DirPage, Entry,
    Error, FileHandle, FileKind, FsInfo, FsStat, Linked, NodeKind, PathConf, ReadData, Result,
    SeekWhence, SetAttr, Stability, Status, Time, Verifier, Vfs, Wcc, Written, nfs3,
};

use crate::rpc::{CallClass, CallError, Request, RpcClient};
use crate::{ClientOptions, ConnectError, Connector, Counters};
use sizes::Sizes;

/// The client of one export.
pub struct NfsClient {
    rpc: RpcClient,
    root: FileHandle,
    sizes: Sizes,
    credential: Option<(u32, u32)>,
    /// The server answered READDIRPLUS by NOTSUPP.
    plain_listings: AtomicBool,
    /// The server has (or is not known not to have) the extension program.
    extensions: AtomicBool,
}

/// The status or results of a procedure.
struct Answer<T> {
    result: Result<T, Status>,
    /// See [`crate::Reply::retransmitted`].
    retransmitted: bool,
}

impl<T> Answer<T> {
    fn into_result(self) -> Result<T> {
        Ok(self.result?)
    }

    /// Says whether it failed by `status`, perhaps because it was executed before.
    fn may_be_replay(&self, status: Status) -> bool {
        self.retransmitted && self.result.as_ref().is_err_and(|error| *error == status)
    }
}

/// Takes results: the status, and what follows NFS3_OK. What follows another status is not
/// needed, and some servers leave it out.
fn results<T: Xdr>(from: &mut Decoder) -> XdrResult<Result<T, Status>> {
    match from.u32()? {
        0 => T::decode(from).map(Ok),
        status => Ok(Err(Status(status))),
    }
}

fn encoded(arguments: &impl Xdr) -> Bytes {
    let mut encoder = Encoder::new();
    arguments.encode(&mut encoder);
    encoder.into_vec().into()
}

impl NfsClient {
    /// Connects to a server whose channels tell the root's handle: our own proxies.
    pub async fn connect(
        connector: Arc<dyn Connector>,
        options: ClientOptions,
    ) -> Result<Arc<Self>, ConnectError> {
        let name = connector.describe();
        let rpc = RpcClient::connect(connector, options.clone()).await?;
        let Some(root) = rpc.terms().root else {
            return Err(ConnectError::Fatal(format!("{name}: no root handle was given")));
        };
        Self::set_up(rpc, root, options, &name).await
    }

    /// Connects to a server whose root handle came from the MOUNT protocol.
    pub async fn connect_with_root(
        connector: Arc<dyn Connector>,
        root: FileHandle,
        options: ClientOptions,
    ) -> Result<Arc<Self>, ConnectError> {
        let name = connector.describe();
        let rpc = RpcClient::connect(connector, options.clone()).await?;
        Self::set_up(rpc, root, options, &name).await
    }

    async fn set_up(
        rpc: RpcClient,
        root: FileHandle,
        options: ClientOptions,
        name: &str,
    ) -> Result<Arc<Self>, ConnectError> {
        let extensions = rpc.terms().extensions;
        let mut client = Self {
            rpc,
            root,
            sizes: Sizes::smallest(),
            credential: options.credential,
            plain_listings: AtomicBool::new(false),
            extensions: AtomicBool::new(extensions),
        };
        let negotiation = tokio::time::timeout(options.timing.setup, client.negotiate());
        let (kind, info) = match negotiation.await {
            Ok(Ok(answers)) => answers,
            Ok(Err(error @ Error::Unreachable(_))) => {
                return Err(ConnectError::Transient(format!("{name}: {error}")));
            }
            Ok(Err(error)) => return Err(ConnectError::Fatal(format!("{name}: {error}"))),
            Err(_) => {
                let why = client.counters().last_error().unwrap_or("it says nothing".into());
                return Err(ConnectError::Transient(format!("{name}: no answer: {why}")));
            }
        };
        if kind != FileKind::Directory {
            return Err(ConnectError::Fatal(format!("{name}: the export is not a directory")));
        }
        client.sizes = Sizes::negotiated(&info, options.transfer_bytes_max);
        Ok(Arc::new(client))
    }

    /// Asks what the root is and what the server can do, as the user of this process.
    async fn negotiate(&self) -> Result<(FileKind, FsInfo)> {
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let caller = Caller { uid, gid, groups: Vec::new() };
        let info = self.server_limits(&caller, &self.root).await?;
        Ok((self.getattr(&caller, &self.root).await?.kind, info))
    }

    /// Returns the counters.
    pub fn counters(&self) -> &Arc<Counters> {
        self.rpc.counters()
    }

    /// Returns the caller that the server is shown.
    fn shown(&self, caller: &Caller) -> Caller {
        match self.credential {
            Some((uid, gid)) => Caller { uid, gid, groups: Vec::new() },
            None => caller.clone(),
        }
    }

    /// Makes a request of an NFSv3 procedure.
    fn request(
        &self,
        caller: &Caller,
        procedure: u32,
        arguments: &impl Xdr,
        class: CallClass,
    ) -> Request {
        Request {
            program: nfs3::PROGRAM,
            version: nfs3::VERSION,
            procedure,
            caller: self.shown(caller),
            arguments: encoded(arguments),
            payload: None,
            reply_bytes: 0,
            class,
        }
    }

    /// Makes a call; repeats it for as long as the server is too busy for it.
    async fn exchange<T: Xdr>(&self, request: Request) -> Result<Answer<T>, CallError> {
        let mut busy = None;
        let mut retransmitted = false;
        loop {
            let reply = self.rpc.send(request.clone()).await?.reply_with(results).await?;
            retransmitted |= reply.retransmitted;
            match reply.results {
                // As a new call each time: a server that remembers would repeat this answer.
                Err(Status::JUKEBOX) => {
                    busy.get_or_insert_with(|| self.rpc.busy()).pause().await?;
                }
                result => return Ok(Answer { result, retransmitted }),
            }
        }
    }

    async fn call<T: Xdr>(
        &self,
        caller: &Caller,
        procedure: u32,
        arguments: &impl Xdr,
        class: CallClass,
    ) -> Result<Answer<T>> {
        Ok(self.exchange(self.request(caller, procedure, arguments, class)).await?)
    }

    /// Makes a small call that may be executed any number of times.
    async fn ask<T: Xdr>(
        &self,
        caller: &Caller,
        procedure: u32,
        arguments: &impl Xdr,
    ) -> Result<T> {
        self.call(caller, procedure, arguments, CallClass::Small).await?.into_result()
    }

    async fn server_limits(&self, caller: &Caller, file: &FileHandle) -> Result<FsInfo> {
        let (_, info): (Option<Attr>, FsInfo) = self.ask(caller, nfs3::FSINFO, file).await?;
        Ok(info)
    }
}

#[async_trait]
impl Vfs for NfsClient {
    fn root(&self) -> FileHandle {
        self.root
    }

    async fn getattr(&self, caller: &Caller, file: &FileHandle) -> Result<Attr> {
        self.ask(caller, nfs3::GETATTR, file).await
    }

    async fn setattr(
        &self,
        caller: &Caller,
        file: &FileHandle,
        changes: &SetAttr,
        guard: Option<Time>,
    ) -> Result<Wcc> {
        self.change_attributes(caller, file, changes, guard).await
    }

    async fn lookup(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Entry> {
        self.find(caller, dir, name).await
    }

    async fn access(
        &self,
        caller: &Caller,
        file: &FileHandle,
        wanted: Access,
    ) -> Result<AccessGranted> {
        let arguments = nfs3::AccessArgs { file: *file, wanted };
        let mut answer: AccessGranted = self.ask(caller, nfs3::ACCESS, &arguments).await?;
        answer.granted.0 &= wanted.0;
        Ok(answer)
    }

    async fn readlink(&self, caller: &Caller, file: &FileHandle) -> Result<Bytes> {
        let (_, target): (Option<Attr>, nfs3::Path) =
            self.ask(caller, nfs3::READLINK, file).await?;
        if target.0.contains(&0) {
            return Err(Error::Protocol("a link's target contains a NUL".into()));
        }
        Ok(target.0)
    }

    async fn read(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<ReadData> {
        self.read_range(caller, file, offset, count).await
    }

    async fn write(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        data: Bytes,
        stable: Stability,
    ) -> Result<Written> {
        self.write_range(caller, file, offset, data, stable).await
    }

    async fn create(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        how: &CreateHow,
    ) -> Result<Created> {
        self.create_file(caller, dir, name, how).await
    }

    async fn mkdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        self.create_directory(caller, dir, name, attr).await
    }

    async fn symlink(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        target: &[u8],
        attr: &SetAttr,
    ) -> Result<Created> {
        self.create_symlink(caller, dir, name, target, attr).await
    }

    async fn mknod(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        kind: NodeKind,
        attr: &SetAttr,
    ) -> Result<Created> {
        self.create_node(caller, dir, name, kind, attr).await
    }

    async fn remove(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        self.remove_name(caller, nfs3::REMOVE, dir, name).await
    }

    async fn rmdir(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        self.remove_name(caller, nfs3::RMDIR, dir, name).await
    }

    async fn rename(
        &self,
        caller: &Caller,
        from_dir: &FileHandle,
        from_name: &[u8],
        to_dir: &FileHandle,
        to_name: &[u8],
        no_replace: bool,
    ) -> Result<(Wcc, Wcc)> {
        let from = names::at(from_dir, from_name)?;
        let to = names::at(to_dir, to_name)?;
        match no_replace {
            true => self.rename_without_replacing(caller, from, to).await,
            false => self.rename_replacing(caller, from, to).await,
        }
    }

    async fn link(
        &self,
        caller: &Caller,
        file: &FileHandle,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Linked> {
        self.create_link(caller, file, names::at(dir, name)?).await
    }

    async fn readdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        cookie: u64,
        verifier: Verifier,
        size_bytes: u32,
        plus: bool,
    ) -> Result<DirPage> {
        self.list(caller, dir, cookie, verifier, size_bytes, plus).await
    }

    async fn fsstat(&self, caller: &Caller, file: &FileHandle) -> Result<FsStat> {
        let (_, answer): (Option<Attr>, FsStat) = self.ask(caller, nfs3::FSSTAT, file).await?;
        Ok(answer)
    }

    /// The sizes are those that were negotiated for the export. Larger requests are split.
    async fn fsinfo(&self, caller: &Caller, file: &FileHandle) -> Result<FsInfo> {
        Ok(self.sizes.applied_to(self.server_limits(caller, file).await?))
    }

    async fn pathconf(&self, caller: &Caller, file: &FileHandle) -> Result<PathConf> {
        let (_, answer): (Option<Attr>, PathConf) = self.ask(caller, nfs3::PATHCONF, file).await?;
        Ok(answer)
    }

    async fn commit(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<Committed> {
        let arguments = nfs3::CommitArgs { file: *file, offset, count };
        self.call(caller, nfs3::COMMIT, &arguments, CallClass::Slow).await?.into_result()
    }

    async fn seek(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        whence: SeekWhence,
    ) -> Result<u64> {
        self.seek_extended(caller, file, offset, whence).await
    }

    async fn allocate(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        length: u64,
        how: Allocation,
    ) -> Result<Wcc> {
        self.allocate_extended(caller, file, offset, length, how).await
    }
}
