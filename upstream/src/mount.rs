//! From an export's path to its root handle: the MOUNT protocol and the portmapper.

use std::time::Duration;

use bytes::Bytes;
use gridvfs_vfs::nfs3::Reply;
use gridvfs_vfs::nfs3::mount::{self, DirPath, MountReply};
use gridvfs_vfs::rpc::{AUTH_SYS, Refusal, portmap};
use gridvfs_vfs::xdr::{Encoder, Xdr};
use gridvfs_vfs::{Caller, FileHandle, Status, ext, nfs3};

use crate::rpc::{CallClass, CallError, Request, RpcClient};
use crate::{ClientOptions, ConnectError, Connector};

/// How long the one call of a conversation may take. Mount services look up host names.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Asks a server's MOUNT service and portmapper.
pub struct MountTarget;

impl MountTarget {
    /// Asks the portmapper that `connector` reaches for the TCP port of the MOUNT service.
    pub async fn ask_portmapper(connector: &dyn Connector) -> Result<u16, ConnectError> {
        Self::ask_port(connector, mount::PROGRAM, mount::VERSION, "MOUNT version 3").await
    }

    /// Asks the portmapper that `connector` reaches for the TCP port of NFS version 3.
    pub async fn ask_nfs_port(connector: &dyn Connector) -> Result<u16, ConnectError> {
        Self::ask_port(connector, nfs3::PROGRAM, nfs3::VERSION, "NFS version 3").await
    }

    async fn ask_port(
        connector: &dyn Connector,
        program: u32,
        version: u32,
        name: &str,
    ) -> Result<u16, ConnectError> {
        let mapping = portmap::Mapping { program, version, protocol: portmap::TCP, port: 0 };
        let caller = Caller { uid: 0, gid: 0, groups: Vec::new() };
        let target = (portmap::PROGRAM, portmap::VERSION, portmap::GETPORT);
        let port: u32 = ask(connector, target, &caller, &mapping).await?;
        match u16::try_from(port) {
            Ok(0) | Err(_) => Err(ConnectError::Fatal(format!(
                "{}: no {name} over TCP is registered there",
                connector.describe()
            ))),
            Ok(port) => Ok(port),
        }
    }

    /// Asks the MOUNT service that `connector` reaches for the root handle of the export `path`.
    pub async fn mount(
        connector: &dyn Connector,
        caller: &Caller,
        path: &str,
    ) -> Result<FileHandle, ConnectError> {
        let name = connector.describe();
        if path.len() > mount::PATH_BYTES_MAX {
            return Err(ConnectError::Fatal(format!("{name}: {path}: the path is too long")));
        }
        let argument = DirPath(Bytes::copy_from_slice(path.as_bytes()));
        let target = (mount::PROGRAM, mount::VERSION, mount::MNT);
        match ask(connector, target, caller, &argument).await? {
            MountReply::Ok { root, flavors } => {
                if !flavors.is_empty() && !flavors.contains(&AUTH_SYS) && !flavors.contains(&0) {
                    return Err(ConnectError::Fatal(format!(
                        "{name}: {path} is not exported with AUTH_SYS (sec=sys)"
                    )));
                }
                Ok(root)
            }
            MountReply::Failed(status) => {
                let why = match status {
                    Status::ACCES | Status::PERM => "the server does not export it to this machine",
                    Status::NOENT => "there is no such export on the server",
                    Status::NOTDIR => "it is not a directory",
                    Status::NAMETOOLONG => "the path is too long",
                    _ => "the server cannot mount it",
                };
                Err(ConnectError::Fatal(format!("{name}: {path}: {why} ({status})")))
            }
        }
    }
}

/// Asks a standing proxy which proxies are on the way to its files, itself among them, before
/// anything of those files is asked for. Whoever does not know the call is none.
pub async fn ask_hops(
    connector: &dyn Connector,
    caller: &Caller,
) -> Result<ext::Hops, ConnectError> {
    let target = (ext::PROGRAM, ext::VERSION, ext::HOPS);
    match try_ask::<_, Reply<ext::Hops, ()>>(connector, target, caller, &()).await? {
        Ok(Reply::Ok(hops)) => Ok(hops),
        Ok(Reply::Failed(..))
        | Err(CallError::Refused(Refusal::ProgramUnavailable))
        | Err(CallError::Refused(Refusal::ProcedureUnavailable)) => Ok(ext::Hops::default()),
        Err(error) => Err(failed(connector, error)),
    }
}

fn failed(connector: &dyn Connector, error: CallError) -> ConnectError {
    let text = format!("{}: {error}", connector.describe());
    match error {
        CallError::Unreachable(_) => ConnectError::Transient(text),
        _ => ConnectError::Fatal(text),
    }
}

/// Makes one call on a channel of its own.
async fn ask<A: Xdr, T: Xdr>(
    connector: &dyn Connector,
    target: (u32, u32, u32),
    caller: &Caller,
    arguments: &A,
) -> Result<T, ConnectError> {
    let answer = try_ask(connector, target, caller, arguments).await?;
    answer.map_err(|error| failed(connector, error))
}

/// The same; what the server refuses is told apart.
async fn try_ask<A: Xdr, T: Xdr>(
    connector: &dyn Connector,
    (program, version, procedure): (u32, u32, u32),
    caller: &Caller,
    arguments: &A,
) -> Result<Result<T, CallError>, ConnectError> {
    let name = connector.describe();
    let channel = connector.connect(0).await?;
    let options = ClientOptions { stripes: 1, calls_per_stripe: 1, ..ClientOptions::default() };
    let client = RpcClient::over(channel, options);
    let mut encoder = Encoder::new();
    arguments.encode(&mut encoder);
    let request = Request {
        program,
        version,
        procedure,
        caller: caller.clone(),
        arguments: encoder.into_vec().into(),
        payload: None,
        reply_bytes: 0,
        class: CallClass::Slow,
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, client.call(request)).await {
        Ok(answer) => Ok(answer.map(|reply| reply.results)),
        Err(_) => {
            let why = client.counters().last_error().unwrap_or("it says nothing".into());
            Err(ConnectError::Transient(format!("{name}: no answer: {why}")))
        }
    }
}
