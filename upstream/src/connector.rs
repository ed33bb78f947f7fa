//! Where channels come from.
//!
//! A [`Channel`] is a byte stream to a server with the [`Terms`] on which it was opened. A
//! [`Connector`] opens as many as asked for, and again when one has died.

mod tcp;
mod unix;

pub use tcp::TcpConnector;
pub use unix::UnixConnector;

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;
use gridvfs_vfs::FileHandle;
use tokio::io::{AsyncRead, AsyncWrite};

/// Opens channels to one server.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Opens the channel of a stripe (counted from 0). Takes bounded time.
    async fn connect(&self, stripe: usize) -> Result<Channel, ConnectError>;

    /// Says where to, for messages.
    fn describe(&self) -> String;
}

#[async_trait]
impl<T: Connector + ?Sized> Connector for Arc<T> {
    async fn connect(&self, stripe: usize) -> Result<Channel, ConnectError> {
        (**self).connect(stripe).await
    }

    fn describe(&self) -> String {
        (**self).describe()
    }
}

/// Why no channel could be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Trying again will not help: a person has to do something.
    #[error("{0}")]
    Fatal(String),
    /// It may work later.
    #[error("{0}")]
    Transient(String),
}

/// A byte stream to the server.
pub struct Channel {
    /// What the server sends.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// What it is sent.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// On which terms it was opened.
    pub terms: Terms,
    /// Dropped with the channel: a child process, for one.
    pub guard: Box<dyn Any + Send>,
}

impl Channel {
    /// Makes a channel of a stream's halves.
    pub fn new(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
        terms: Terms,
    ) -> Self {
        Self { reader: Box::new(reader), writer: Box::new(writer), terms, guard: Box::new(()) }
    }
}

/// What holds on a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The AUTH_SYS machine name. It carries the session key to our own proxies (the paper's
    /// section 3.2); NFS servers ignore it.
    pub machine_name: String,
    /// Whether the far side is said to have the extension program ([`gridvfs_vfs::ext`]).
    pub extensions: bool,
    /// Whether it is said to have FETCH of that program, which a forwarder has without the rest.
    pub fetch: bool,
    /// Whether it is said to tell changes (CHANGES of that program).
    pub changes: bool,
    /// Changes when the far side is a new session that knows nothing of earlier calls.
    pub generation: u64,
    /// The root's file handle, where it came with the channel.
    pub root: Option<FileHandle>,
    /// Whether the far side remembers its replies across the channels of a generation, so that a
    /// call that is sent again is not executed again.
    pub replay_cache: bool,
}

impl Terms {
    /// Returns the terms of a plain NFS server: it has a duplicate request cache for each
    /// connection at best, of no use after a reconnection.
    pub fn plain() -> Self {
        Self {
            machine_name: "gridvfs".into(),
            extensions: false,
            fetch: false,
            changes: false,
            generation: 0,
            root: None,
            replay_cache: false,
        }
    }
}

/// Opens channels to a standing proxy, whose key the user has from a file.
pub struct KeyedConnector<C> {
    inner: C,
    key: String,
}

impl<C: Connector> KeyedConnector<C> {
    /// Adds the key (in hexadecimal; empty for none) to the channels of `inner`.
    pub fn new(inner: C, key: String) -> Self {
        Self { inner, key }
    }
}

#[async_trait]
impl<C: Connector> Connector for KeyedConnector<C> {
    async fn connect(&self, stripe: usize) -> Result<Channel, ConnectError> {
        let mut channel = self.inner.connect(stripe).await?;
        if !self.key.is_empty() {
            channel.terms.machine_name.clone_from(&self.key);
        }
        // A standing proxy may have been restarted unnoticed, so its memory of replies does not
        // count.
        channel.terms.extensions = true;
        channel.terms.fetch = true;
        channel.terms.changes = true;
        Ok(channel)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}
