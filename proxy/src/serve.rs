//! A standing proxy: listens for NFSv3 clients, with a key or, on this machine alone, without.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

use crate::backend::{self, ExportConfig};
use crate::key::SessionKey;
use crate::server::{Server, ServerOptions};

/// The most connections at once.
const CONNECTIONS_MAX: usize = 256;

/// What a standing proxy serves, where, and to whom.
pub struct ServeConfig {
    /// What it serves.
    pub export: ExportConfig,
    /// `ADDR:PORT` or `unix:PATH`.
    pub listen: String,
    /// The key that every call must carry.
    pub key: Option<SessionKey>,
}

/// Why a standing proxy cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The export cannot be opened.
    #[error(transparent)]
    Backend(#[from] backend::BackendError),
    /// Without a key, anybody on the network could come in.
    #[error("{0} is not on this machine alone: --key-file is needed to listen there")]
    KeylessNetwork(SocketAddr),
    /// The address cannot be listened on.
    #[error("cannot listen on {0}: {1}")]
    Listen(String, std::io::Error),
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Serves until SIGTERM or SIGINT. `listening` is told the address once clients can come.
pub async fn run(config: ServeConfig, listening: impl FnOnce(&str)) -> Result<(), ServeError> {
    let backend = backend::open(&config.export).await?;
    let (listener, address) = listen(&config).await?;
    let export_path = config.export.path.to_string_lossy().into_owned().into_bytes();
    let server = Server::new(ServerOptions {
        ended: None,
        vfs: backend.vfs,
        blocking: backend.blocking,
        key: config.key,
        export_path,
    });
    listening(&address);
    let fault = |error| ServeError::Listen(address.clone(), error);
    let mut terminate = signal(SignalKind::terminate()).map_err(fault)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fault)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
        let server = server.clone();
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            () = accept(&listener, server, place) => {}
        }
    }
}

async fn accept(
    listener: &Listener,
    server: Arc<Server>,
    place: tokio::sync::OwnedSemaphorePermit,
) {
    match listener {
        Listener::Tcp(listener) => {
            let Ok((stream, _)) = listener.accept().await else { return };
            let _ = stream.set_nodelay(true);
            let (reader, writer) = stream.into_split();
            tokio::spawn(async move {
                server.serve(reader, writer).await;
                drop(place);
            });
        }
        Listener::Unix(listener, _) => {
            let Ok((stream, _)) = listener.accept().await else { return };
            let (reader, writer) = stream.into_split();
            tokio::spawn(async move {
                server.serve(reader, writer).await;
                drop(place);
            });
        }
    }
}

async fn listen(config: &ServeConfig) -> Result<(Listener, String), ServeError> {
    let fault = |error| ServeError::Listen(config.listen.clone(), error);
    if let Some(path) = config.listen.strip_prefix("unix:") {
        let path = PathBuf::from(path);
        // A socket that nobody listens on was left by a proxy that was killed.
        if std::os::unix::net::UnixStream::connect(&path).is_err() {
            let _ = std::fs::remove_file(&path);
        }
        let listener = UnixListener::bind(&path).map_err(fault)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, mode).map_err(fault)?;
        let address = config.listen.clone();
        return Ok((Listener::Unix(listener, path), address));
    }
    let addresses: Vec<SocketAddr> = config.listen.to_socket_addrs().map_err(fault)?.collect();
    if config.key.is_none()
        && let Some(address) = addresses.iter().find(|address| !address.ip().is_loopback())
    {
        return Err(ServeError::KeylessNetwork(*address));
    }
    let listener = TcpListener::bind(&addresses[..]).await.map_err(fault)?;
    let address = listener.local_addr().map_err(fault)?;
    Ok((Listener::Tcp(listener), address.to_string()))
}
