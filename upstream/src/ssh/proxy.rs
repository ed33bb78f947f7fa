//! A session with `gridvfs proxy` on the host: the first channel starts it, the others attach.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use tokio::sync::Mutex;

use gridvfs_vfs::FileHandle;

use crate::greeting::{FEATURE_CHANGES, FEATURE_EXTENSIONS, FEATURE_FETCH, Greeting, PROTOCOL};
use crate::{Channel, ConnectError, Connector, Terms};

use super::SshHost;
use super::child::SshChild;
use super::remote;

/// What the server-side proxy is to serve.
#[derive(Clone, Debug)]
pub struct RemoteExport {
    /// The command that runs `gridvfs` on the host; found there if `None`.
    pub program: Option<String>,
    /// The directory on the host, or the NFS server's export path with `nfs`.
    pub path: String,
    /// `ADDR[:PORT]` of an NFSv3 server, as the host sees it, to forward to.
    pub nfs: Option<String>,
    /// The port of that server's MOUNT service; its portmapper is asked if `None`.
    pub mount_port: Option<u16>,
    /// The identity at this end that the login at the host stands for: uid and gid.
    pub shadow: (u32, u32),
    /// Whether the proxy refuses every change.
    pub read_only: bool,
    /// For how many seconds a session without channels lasts.
    pub linger_seconds: u32,
}

/// What of ours a host lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// There is no `gridvfs` where it was looked for.
    Program,
    /// There is one that this one cannot speak with.
    Version,
}

/// Opens the channels of one session with a server-side proxy.
pub struct SshProxyConnector {
    host: Arc<SshHost>,
    export: RemoteExport,
    /// The session that stripes attach to. Held while one is being started.
    session: Mutex<Option<Session>>,
    generation: AtomicU64,
    lack: parking_lot::Mutex<Option<Lack>>,
}

#[derive(Clone)]
struct Session {
    name: String,
    version: String,
    key: String,
    root: FileHandle,
    extensions: bool,
    fetch: bool,
    changes: bool,
    generation: u64,
}

impl SshProxyConnector {
    /// Makes a connector. Nothing is run yet.
    pub fn new(host: Arc<SshHost>, export: RemoteExport) -> Self {
        let lack = parking_lot::Mutex::new(None);
        Self { host, export, session: Mutex::new(None), generation: AtomicU64::new(0), lack }
    }

    /// Returns the version of the program on the host, once a session has begun.
    pub async fn version(&self) -> Option<String> {
        self.session.lock().await.as_ref().map(|session| session.version.clone())
    }

    /// Says what the host lacked when it was last tried, if that was the trouble.
    pub fn lack(&self) -> Option<Lack> {
        *self.lack.lock()
    }

    fn stdio_arguments(&self) -> Vec<String> {
        let export = &self.export;
        let mut words = vec!["proxy".into(), "stdio".into()];
        words.push(format!("--export={}", export.path));
        words.push(format!("--shadow={}:{}", export.shadow.0, export.shadow.1));
        words.push(format!("--linger={}", export.linger_seconds));
        if let Some(nfs) = &export.nfs {
            words.push(format!("--nfs={nfs}"));
        }
        if let Some(port) = export.mount_port {
            words.push(format!("--mount-port={port}"));
        }
        if export.read_only {
            words.push("--read-only".into());
        }
        words
    }

    /// Runs a proxy command on the host until its greeting, trying the ways to log in.
    async fn greet(
        &self,
        arguments: &[String],
        first: bool,
    ) -> Result<(SshChild, Greeting), ConnectError> {
        let remote = [remote::command(self.export.program.as_deref(), arguments)];
        loop {
            let login = self.host.login();
            let mut child = SshChild::spawn(&self.host, login, first, &[], &remote)?;
            match child.greeting().await {
                Ok(greeting) => return Ok((child, greeting)),
                Err(failure) if failure.is_authentication() && self.host.next_login(login) => {}
                Err(failure) => {
                    *self.lack.lock() = failure.lack();
                    return Err(failure.into_connect_error(&self.host, &self.export.path));
                }
            }
        }
    }

    /// Starts a session on the host; its channel is the first stripe.
    async fn start(&self) -> Result<(SshChild, Session), ConnectError> {
        let (child, greeting) = self.greet(&self.stdio_arguments(), true).await?;
        let host = self.host.destination();
        if greeting.protocol != PROTOCOL {
            *self.lack.lock() = Some(Lack::Version);
            return Err(ConnectError::Fatal(format!(
                "gridvfs on {host} is version {} and speaks protocol {}, this one is {} and speaks \
                 protocol {PROTOCOL}: install the same version on both",
                greeting.version,
                greeting.protocol,
                env!("CARGO_PKG_VERSION"),
            )));
        }
        if !greeting.ok {
            child.finish().await;
            let message = greeting.message.clone().unwrap_or_default();
            let text = format!("{host}: {message}");
            return Err(match greeting.error.as_deref() {
                Some("nfs-unreachable" | "internal") => ConnectError::Transient(text),
                _ => ConnectError::Fatal(text),
            });
        }
        let incomplete = || ConnectError::Fatal(format!("incomplete greeting from {host}"));
        let has = |feature| greeting.features.iter().any(|name| name == feature);
        let (extensions, fetch) = (has(FEATURE_EXTENSIONS), has(FEATURE_FETCH));
        let changes = has(FEATURE_CHANGES);
        let session = Session {
            root: greeting.root_handle().ok_or_else(incomplete)?,
            key: greeting.key.clone().ok_or_else(incomplete)?,
            extensions,
            fetch,
            changes,
            name: greeting.session,
            version: greeting.version.clone(),
            generation: self.generation.fetch_add(1, Ordering::Relaxed) + 1,
        };
        if greeting.version != env!("CARGO_PKG_VERSION") {
            log::warn!(
                "gridvfs on {host} is version {}, this one is {}",
                greeting.version,
                env!("CARGO_PKG_VERSION")
            );
        }
        Ok((child, session))
    }

    fn channel(child: SshChild, session: &Session) -> Channel {
        let (reader, writer, guard) = child.into_parts();
        let terms = Terms {
            machine_name: session.key.clone(),
            extensions: session.extensions,
            fetch: session.fetch,
            changes: session.changes,
            generation: session.generation,
            root: Some(session.root),
            replay_cache: true,
        };
        Channel { reader, writer, terms, guard }
    }
}

#[async_trait]
impl Connector for SshProxyConnector {
    async fn connect(&self, _stripe: usize) -> Result<Channel, ConnectError> {
        loop {
            let mut current = self.session.lock().await;
            let Some(session) = current.clone() else {
                // Others wait here for the one that starts the session.
                let (child, session) = self.start().await?;
                let channel = Self::channel(child, &session);
                *current = Some(session);
                return Ok(channel);
            };
            drop(current);
            let attach = ["proxy".into(), "attach".into(), session.name.clone()];
            let (child, greeting) = self.greet(&attach, false).await?;
            if greeting.ok {
                return Ok(Self::channel(child, &session));
            }
            child.finish().await;
            if greeting.error.as_deref() != Some("no-such-session") {
                let message = greeting.message.unwrap_or_default();
                let host = self.host.destination();
                return Err(ConnectError::Transient(format!("{host}: {message}")));
            }
            // The host was restarted: begin a new session, unless another stripe already did.
            let mut current = self.session.lock().await;
            if current.as_ref().is_some_and(|now| now.generation == session.generation) {
                log::warn!("the session on {} is gone; starting anew", self.host.destination());
                *current = None;
            }
        }
    }

    fn describe(&self) -> String {
        format!("{}:{}", self.host.destination(), self.export.path)
    }
}
