//! Channels over TCP.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::{TcpSocket, TcpStream, lookup_host};

use super::{Channel, ConnectError, Connector, Terms};

/// How long a connection attempt may take. A lost SYN is sent again after 1 s and 3 s; the
/// kernel's own patience of two minutes would outlast the cut that it waits for.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The ports below 1024 that are tried, as bindresvport(3) does.
const PRIVILEGED_PORTS: std::ops::RangeInclusive<u16> = 600..=1023;
/// How many of them are tried before an ordinary port is used.
const PRIVILEGED_TRIES: u16 = 16;

/// Opens channels to a TCP port.
#[derive(Clone, Debug)]
pub struct TcpConnector {
    address: String,
    port: u16,
    prefer_privileged_port: bool,
}

impl TcpConnector {
    /// Makes a connector to a port of a host, given by name or address.
    pub fn new(address: String, port: u16) -> Self {
        Self { address, port, prefer_privileged_port: true }
    }

    /// Says whether to call from a port below 1024 where the process may (the default): many NFS
    /// servers insist on it.
    pub fn prefer_privileged_port(mut self, prefer: bool) -> Self {
        self.prefer_privileged_port = prefer;
        self
    }

    async fn open(&self, stripe: usize) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in lookup_host((self.address.as_str(), self.port)).await? {
            let opened = match self.prefer_privileged_port {
                true => open_from_privileged_port(address, stripe).await,
                false => TcpStream::connect(address).await,
            };
            match opened {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

async fn open_from_privileged_port(address: SocketAddr, stripe: usize) -> io::Result<TcpStream> {
    let ports = PRIVILEGED_PORTS.end() - PRIVILEGED_PORTS.start() + 1;
    let start = crate::rpc::random_u64() as u16 % ports + stripe as u16;
    for offset in 0..PRIVILEGED_TRIES {
        let port = PRIVILEGED_PORTS.start() + (start + offset) % ports;
        let (socket, from) = match address {
            SocketAddr::V4(_) => {
                (TcpSocket::new_v4()?, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
            }
            SocketAddr::V6(_) => {
                (TcpSocket::new_v6()?, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
            }
        };
        match socket.bind(from) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            Err(_) => continue,
        }
        match socket.connect(address).await {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
                ) => {}
            done => return done,
        }
    }
    TcpStream::connect(address).await
}

#[async_trait]
impl Connector for TcpConnector {
    async fn connect(&self, stripe: usize) -> Result<Channel, ConnectError> {
        let name = self.describe();
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, self.open(stripe)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(ConnectError::Transient(format!("{name}: {error}"))),
            Err(_) => return Err(ConnectError::Transient(format!("{name}: no answer"))),
        };
        let transient = |error| ConnectError::Transient(format!("{name}: {error}"));
        // Calls are small and their order is ours: waiting for more to send only adds delay.
        stream.set_nodelay(true).map_err(transient)?;
        let (reader, writer) = stream.into_split();
        Ok(Channel::new(reader, writer, Terms::plain()))
    }

    fn describe(&self) -> String {
        match self.address.contains(':') {
            true => format!("[{}]:{}", self.address, self.port),
            false => format!("{}:{}", self.address, self.port),
        }
    }
}
