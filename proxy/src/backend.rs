//! What a proxy serves: a directory of this machine, or another NFSv3 server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use gridvfs_upstream::{
    ClientOptions, ConnectError, Connector, MountTarget, NfsClient, TcpConnector,
};
use gridvfs_vfs::rpc::portmap;
use gridvfs_vfs::{Caller, Vfs, nfs3};
use serde::{Deserialize, Serialize};

use crate::changes::Hub;
use crate::confine::ConfinedLayer;
use crate::identity::{IdentityLayer, IdentityMap, IdentityTable, TableConfig};
use crate::local_dir::{LocalDir, LocalDirOptions, OpenError};

/// What to serve, and as whom.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExportConfig {
    /// The directory; with `nfs`, the NFS server's export path.
    pub path: PathBuf,
    /// `ADDR[:PORT]` of an NFSv3 server to forward to.
    pub nfs: Option<String>,
    /// The port of that server's MOUNT service; its portmapper is asked if `None`.
    pub mount_port: Option<u16>,
    /// Refuse every change.
    pub read_only: bool,
    /// The client's identity that this process's stands for: uid and gid.
    pub shadow: Option<(u32, u32)>,
    /// Who is who, where this process may act as several: the host's administrator's word.
    #[serde(default)]
    pub identity: Option<TableConfig>,
    /// Where handle tables and secrets are kept.
    pub state_dir: PathBuf,
    /// The most directories that are watched for changes.
    #[serde(default)]
    pub watches_max: Option<usize>,
}

/// What is served.
pub struct Backend {
    /// The file system.
    pub vfs: Arc<dyn Vfs>,
    /// Whether its calls block their thread.
    pub blocking: bool,
    /// Whether it has what the extension program asks for.
    pub extensions: bool,
    /// Tells of changes, whoever makes them; `None` if it cannot.
    pub changes: Option<Arc<Hub>>,
}

/// Why an export cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct BackendError {
    /// A code for programs.
    pub code: &'static str,
    /// A sentence for people.
    pub message: String,
}

impl BackendError {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<OpenError> for BackendError {
    fn from(error: OpenError) -> Self {
        let code = match error {
            OpenError::Missing(_) => "no-such-path",
            OpenError::NotADirectory(_) => "not-a-directory",
            OpenError::Unreadable(_) => "permission-denied",
            OpenError::Unsupported { .. } | OpenError::Io { .. } => "internal",
        };
        Self::new(code, error.to_string())
    }
}

/// The connections to an NFS server in the neighbourhood: more would not make it faster.
const FORWARD_STRIPES: usize = 2;

/// Opens an export.
pub async fn open(config: &ExportConfig) -> Result<Backend, BackendError> {
    let map = identity_map(config.shadow, config.identity.as_ref(), config.nfs.is_none())?;
    let (vfs, blocking): (Arc<dyn Vfs>, bool) = match &config.nfs {
        None => {
            let options = LocalDirOptions {
                state_dir: Some(config.state_dir.clone()),
                read_only: config.read_only,
                watches_max: config.watches_max,
            };
            (Arc::new(LocalDir::open(&config.path, options)?), true)
        }
        Some(server) => (forward(config, server).await?, false),
    };
    let vfs: Arc<dyn Vfs> = Arc::new(IdentityLayer::new(vfs, map));
    // Of what others do on an NFS server nobody tells a forwarder.
    let changes = config.nfs.is_none().then(|| Hub::new(vfs.clone(), None, false));
    Ok(Backend { vfs, blocking, extensions: config.nfs.is_none(), changes })
}

/// Says who acts for whom. In a process that is not root calls on a local directory run as itself
/// alone, whatever a table says; as root they run as whoever calls, or as the table has it.
pub fn identity_map(
    shadow: Option<(u32, u32)>,
    table: Option<&TableConfig>,
    is_local: bool,
) -> Result<IdentityMap, BackendError> {
    let root = nix::unistd::geteuid().is_root();
    if let Some(table) = table {
        if is_local && !root {
            return Err(BackendError::new(
                "identities",
                "a table of identities for a directory of this machine needs root: another user's \
                 process acts as that user alone",
            ));
        }
        let table = IdentityTable::new(table)
            .map_err(|error| BackendError::new("identities", error.to_string()))?;
        return Ok(IdentityMap::Table(Arc::new(table)));
    }
    if root {
        return Ok(IdentityMap::Identity);
    }
    let login = own_identity();
    let (shadow_uid, shadow_gid) = shadow.unwrap_or((login.uid, login.gid));
    Ok(IdentityMap::Squash { login, shadow_uid, shadow_gid })
}

/// Returns the identity of this process.
pub fn own_identity() -> Caller {
    let groups = nix::unistd::getgroups().unwrap_or_default();
    Caller {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        groups: groups.into_iter().map(|group| group.as_raw()).collect(),
    }
}

async fn forward(config: &ExportConfig, server: &str) -> Result<Arc<dyn Vfs>, BackendError> {
    let (address, port) = server_address(server)
        .ok_or_else(|| BackendError::new("nfs-unreachable", format!("{server}: no address")))?;
    let path = config.path.to_string_lossy();
    let failed = |error: ConnectError| match error {
        ConnectError::Transient(text) => BackendError::new("nfs-unreachable", text),
        ConnectError::Fatal(text) => BackendError::new("nfs-mount-refused", text),
    };
    let connector = |port| TcpConnector::new(address.clone(), port);
    let mount_port = match config.mount_port {
        Some(port) => port,
        None => {
            let portmapper = connector(portmap::PORT);
            MountTarget::ask_portmapper(&portmapper).await.map_err(failed)?
        }
    };
    let caller = Caller { groups: Vec::new(), ..own_identity() };
    let root = MountTarget::mount(&connector(mount_port), &caller, &path).await.map_err(failed)?;
    let options = ClientOptions { stripes: FORWARD_STRIPES, ..ClientOptions::default() };
    let connector: Arc<dyn Connector> = Arc::new(connector(port));
    let client = NfsClient::connect_with_root(connector, root, options).await.map_err(failed)?;
    let confined = ConfinedLayer::new(client, &config.state_dir, config.read_only)
        .map_err(|error| BackendError::new("internal", error.to_string()))?;
    Ok(Arc::new(confined))
}

/// Takes `ADDR`, `ADDR:PORT`, `[V6]`, `[V6]:PORT` or a bare V6 address apart.
fn server_address(text: &str) -> Option<(String, u16)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let port = match port {
            "" => nfs3::PORT,
            port => port.strip_prefix(':')?.parse().ok()?,
        };
        return Some((address.into(), port));
    }
    match text.rsplit_once(':') {
        Some((address, port)) if !address.contains(':') && !address.is_empty() => {
            Some((address.into(), port.parse().ok()?))
        }
        _ if text.is_empty() || (text.starts_with(':') && !text.starts_with("::")) => None,
        _ => Some((text.into(), nfs3::PORT)),
    }
}

/// Makes a path absolute, as the login shell's directory has it.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_addresses_are_taken_apart() {
        let parts = |text| server_address(text);
        assert_eq!(parts("host"), Some(("host".into(), 2049)));
        assert_eq!(parts("10.0.0.1:99"), Some(("10.0.0.1".into(), 99)));
        assert_eq!(parts("::1"), Some(("::1".into(), 2049)));
        assert_eq!(parts("[::1]:5"), Some(("::1".into(), 5)));
        for text in ["", ":5", "h:x", "[::1", "[::1]5"] {
            assert_eq!(parts(text), None, "{text}");
        }
    }
}
