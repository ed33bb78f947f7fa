//! A standing proxy: listens for NFSv3 clients, with a key or, on this machine alone, without.
//!
//! What it serves is put together by whoever starts it; here are the listeners, the keys, and the
//! limits. Nothing of a client can be reached by another: each key has exports of its own.

mod doors;
mod guesses;
mod keys;

use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::gate::{Guest, OneGuest, Traffic};
use crate::hops::HopBoard;
use crate::room::Room;
use crate::server::{Server, ServerCounters, ServerOptions};
use doors::Doors;
use guesses::Peer;
use keys::KeyGate;

pub use keys::{KeyRing, Shown};

/// How long calls under way may take once the proxy has been told to end.
const END_GRACE: Duration = Duration::from_secs(5);
/// How long the proxy waits when the system has no descriptors for a new channel.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Where a standing proxy listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAt {
    /// `ADDR:PORT` or `unix:PATH`.
    pub address: String,
    /// Whether clients are let in without a key.
    pub keyless: bool,
}

/// The limits of a standing proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most channels at once. A session has four of them.
    pub clients_max: usize,
    /// The most calls under way, of all channels together.
    pub calls_max: usize,
    /// The most memory for calls and their replies, in bytes.
    pub memory_max_bytes: usize,
}

impl Default for Limits {
    /// 64 sessions of 4 channels; the calls that 8 of them can have under way; the memory that 8
    /// channels can use.
    fn default() -> Self {
        Self { clients_max: 256, calls_max: 4096, memory_max_bytes: 256 << 20 }
    }
}

/// What a standing proxy serves, where, and to whom.
pub struct ServeConfig {
    /// Where it listens.
    pub listen: Vec<ListenAt>,
    /// The mode of its unix sockets.
    pub socket_mode: u32,
    /// Those who are let in with a key.
    pub keys: Option<Arc<KeyRing>>,
    /// Those who are let in without.
    pub keyless: Option<Guest>,
    /// Its limits.
    pub limits: Limits,
    /// What clients are told of the way to the files.
    pub hops: Arc<HopBoard>,
}

/// Why a standing proxy cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Without a key, anybody on the network could come in.
    #[error("{0} is not on this machine alone: a key file is needed to listen there")]
    KeylessNetwork(SocketAddr),
    /// The address cannot be listened on.
    #[error("cannot listen on {0}: {1}")]
    Listen(String, std::io::Error),
    /// Signals cannot be handled.
    #[error("cannot wait for signals: {0}")]
    Signals(std::io::Error),
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

/// A standing proxy that listens.
pub struct Standing {
    listeners: Vec<(Listener, Arc<Server>)>,
    addresses: Vec<String>,
    control: Arc<Control>,
}

/// What can be seen of a standing proxy, and be asked of it, while it serves.
pub struct Control {
    /// Those of the clients with keys and of those without, as far as there are such.
    servers: Vec<Arc<Server>>,
    keys: Option<Arc<KeyRing>>,
    keyless: Option<Arc<Guest>>,
    doors: Arc<Doors>,
    stop: Notify,
}

impl Control {
    /// Returns the clients that have called, or are connected, by name.
    pub fn clients(&self) -> Vec<Arc<Guest>> {
        let keyed = self.keys.iter().flat_map(|keys| keys.guests().to_vec());
        let has_come = |guest: &Arc<Guest>| {
            let Traffic { channels, calls, .. } = guest.traffic();
            channels.load(Ordering::Relaxed) + calls.load(Ordering::Relaxed) > 0
        };
        let mut clients: Vec<_> =
            keyed.chain(self.keyless.iter().cloned()).filter(has_come).collect();
        clients.sort_by(|a, b| a.name().cmp(b.name()));
        clients
    }

    /// Returns the counters: one set for clients with keys, one for those without.
    pub fn counters(&self) -> impl Iterator<Item = &ServerCounters> {
        self.servers.iter().map(|server| server.counters())
    }

    /// Returns how many channels are open, those of strangers among them.
    pub fn channels(&self) -> usize {
        *self.doors.channels.borrow()
    }

    /// Ends it, as SIGTERM does.
    pub fn stop(&self) {
        self.stop.notify_one();
    }
}

/// Begins to listen.
pub async fn listen(config: ServeConfig) -> Result<Standing, ServeError> {
    let Limits { clients_max, calls_max, memory_max_bytes } = config.limits;
    let room = Arc::new(Room::new(calls_max, memory_max_bytes));
    let server = |gate| {
        Server::new(ServerOptions {
            room: Some(room.clone()),
            hops: config.hops.clone(),
            ..ServerOptions::new(gate)
        })
    };
    let keyed = config.keys.clone().map(|keys| server(Arc::new(KeyGate(keys))));
    let anybody = config.keyless.map(Arc::new);
    let keyless = anybody.clone().map(|guest| server(Arc::new(OneGuest::of(guest))));
    let (mut listeners, mut addresses) = (Vec::new(), Vec::new());
    for at in &config.listen {
        let (listener, address) = listen_at(at, config.socket_mode).await?;
        let server = if at.keyless { &keyless } else { &keyed };
        if let Some(server) = server {
            listeners.push((listener, server.clone()));
            addresses.push(address);
        }
    }
    let control = Arc::new(Control {
        servers: keyed.into_iter().chain(keyless).collect(),
        keys: config.keys,
        keyless: anybody,
        doors: Doors::new(clients_max.max(1)),
        stop: Notify::new(),
    });
    Ok(Standing { listeners, addresses, control })
}

impl Standing {
    /// Returns where it listens, in the order in which that was asked for.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Returns what can be seen and asked of it while it serves.
    pub fn control(&self) -> Arc<Control> {
        self.control.clone()
    }

    /// Serves until SIGTERM, SIGINT or [`Control::stop`]; SIGHUP reads the key file again, and then
    /// calls `hang_up`. Returns when the calls under way are done.
    pub async fn serve(self, hang_up: impl Fn()) -> Result<(), ServeError> {
        let Control { keys, doors, stop, .. } = &*self.control;
        let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
        let mut hangs_up = signal(SignalKind::hangup()).map_err(ServeError::Signals)?;
        let mut accepting = JoinSet::new();
        for (listener, server) in self.listeners {
            let doors = doors.clone();
            accepting.spawn(async move {
                loop {
                    accept(&listener, &server, &doors).await;
                }
            });
        }
        if let Some(keys) = keys.clone() {
            accepting.spawn(async move { keys.follow().await });
        }
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                () = stop.notified() => break,
                _ = hangs_up.recv() => {
                    if let Some(keys) = keys {
                        keys.reload();
                    }
                    hang_up();
                }
            }
        }
        accepting.shutdown().await;
        doors.stopping.send_replace(true);
        let mut channels = doors.channels.subscribe();
        let ended = channels.wait_for(|channels| *channels == 0);
        let _ = tokio::time::timeout(END_GRACE, ended).await;
        Ok(())
    }
}

async fn accept(listener: &Listener, server: &Arc<Server>, doors: &Arc<Doors>) {
    let accepted = match listener {
        Listener::Tcp(listener) => listener.accept().await.map(|(stream, from)| {
            let _ = stream.set_nodelay(true);
            let (reader, writer) = stream.into_split();
            begin(reader, writer, server, doors, Peer::of(from.ip()));
        }),
        Listener::Unix(listener, _) => listener.accept().await.map(|(stream, _)| {
            let option = nix::sys::socket::sockopt::PeerCredentials;
            let peer = nix::sys::socket::getsockopt(&stream.as_fd(), option);
            let user = peer.map_or(u32::MAX, |peer| peer.uid());
            let (reader, writer) = stream.into_split();
            begin(reader, writer, server, doors, Peer::User(user));
        }),
    };
    if let Err(error) = accepted {
        log::warn!("cannot take a new channel: {error}");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

fn begin(
    reader: impl AsyncRead + Unpin + Send + 'static,
    writer: impl AsyncWrite + Unpin + Send + 'static,
    server: &Arc<Server>,
    doors: &Arc<Doors>,
    peer: Peer,
) {
    let (server, knock) = (server.clone(), doors.knock(peer));
    tokio::spawn(async move { server.receive(reader, writer, &knock).await });
}

async fn listen_at(at: &ListenAt, socket_mode: u32) -> Result<(Listener, String), ServeError> {
    let fault = |error| ServeError::Listen(at.address.clone(), error);
    if let Some(path) = at.address.strip_prefix("unix:") {
        let path = PathBuf::from(path);
        // A socket that nobody listens on was left by a proxy that was killed.
        if std::os::unix::net::UnixStream::connect(&path).is_err() {
            let is_socket = std::fs::symlink_metadata(&path)
                .is_ok_and(|meta| std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()));
            if is_socket {
                let _ = std::fs::remove_file(&path);
            }
        }
        // From the start nobody but us can connect: the mode is opened later, if at all.
        let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(&path);
        nix::sys::stat::umask(before);
        let listener = bound.map_err(fault)?;
        let mode = std::fs::Permissions::from_mode(socket_mode);
        std::fs::set_permissions(&path, mode).map_err(fault)?;
        return Ok((Listener::Unix(listener, path), at.address.clone()));
    }
    let addresses: Vec<SocketAddr> = at.address.to_socket_addrs().map_err(fault)?.collect();
    if at.keyless
        && let Some(address) = addresses.iter().find(|address| !address.ip().is_loopback())
    {
        return Err(ServeError::KeylessNetwork(*address));
    }
    let listener = TcpListener::bind(&addresses[..]).await.map_err(fault)?;
    let address = listener.local_addr().map_err(fault)?;
    Ok((Listener::Tcp(listener), address.to_string()))
}
