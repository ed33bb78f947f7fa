//! NFS version 3 (RFC 1813) as a [`Vfs`].
//!
//! Each call of the trait is one procedure, except where a request is larger than the server
//! takes, a reply is shorter than asked for, or NFSv3 has no such call (see the modules). Nothing
//! is cached here: attributes and weak cache consistency data are passed up with each reply.
//!
//! After a retransmission to a server that may not remember the first execution, some errors mean
//! success: the rules are in [`replay`].

mod changes;
mod directory;
mod extension;
mod fetch;
mod interface;
mod names;
mod read;
mod replay;
mod sizes;
mod write;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use gridvfs_vfs::xdr::{Decoder, Encoder, Xdr, XdrResult};
use gridvfs_vfs::{
    Attr, Caller, Ears, Error, FileHandle, FileKind, FsInfo, Result, Status, Vfs, nfs3,
};
use tokio::runtime::Handle;

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
    /// The server has (or is not known not to have) FETCH of that program.
    fetches: AtomicBool,
    this: Weak<Self>,
    ears: Arc<Ears>,
    runtime: Handle,
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
        let terms = rpc.terms();
        let mut client = Self {
            rpc,
            root,
            sizes: Sizes::smallest(),
            credential: options.credential,
            plain_listings: AtomicBool::new(false),
            extensions: AtomicBool::new(terms.extensions),
            fetches: AtomicBool::new(terms.fetch),
            this: Weak::new(),
            ears: Arc::default(),
            runtime: Handle::current(),
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
        Ok(Arc::new_cyclic(|this| Self { this: this.clone(), ..client }))
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
