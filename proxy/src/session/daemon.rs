//! The process that owns a session.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gridvfs_upstream::greeting::{
    FEATURE_CHANGES, FEATURE_EXTENSIONS, FEATURE_FETCH, Greeting, PROTOCOL,
};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{LINE_BYTES_MAX, SessionConfig, Started, handover, is_socket_name, socket_path};
use crate::backend::{self, Backend};
use crate::fdstream::FdStream;
use crate::gate::{Export, Guest, OneGuest};
use crate::key::SessionKey;
use crate::server::{Server, ServerOptions};

/// The most channels of a session at once.
const CHANNELS_MAX: usize = 64;
/// How long calls under way may take once the session has been told to end.
const END_GRACE: Duration = Duration::from_secs(5);

/// Removes the session's socket when dropped.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A session.
struct Session {
    server: Arc<Server>,
    name: String,
    key: SessionKey,
    root: String,
    extensions: bool,
    changes: bool,
    channels: watch::Sender<usize>,
    ended: Arc<AtomicBool>,
}

/// Runs the daemon: its configuration comes by standard input, a socket, and so does its first
/// channel. Returns when the session has ended.
pub async fn run_daemon() -> std::io::Result<()> {
    // SAFETY: standard input is ours, and nobody else uses it.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(libc::STDIN_FILENO) });
    let mut line = String::new();
    {
        // Read to the line's end and not beyond: descriptors come behind it.
        let mut reader = BufReader::with_capacity(1, std::io::Read::take(&socket, LINE_BYTES_MAX));
        reader.read_line(&mut line)?;
    }
    let config: SessionConfig = serde_json::from_str(&line)?;
    let say = |greeting: Option<Greeting>| -> std::io::Result<()> {
        let mut line = serde_json::to_vec(&Started { greeting })?;
        line.push(b'\n');
        (&socket).write_all(&line)
    };
    let opened = backend::open(&config.export).await;
    let backend = match opened {
        Ok(backend) => backend,
        Err(error) => return say(Some(Greeting::refusal(error.code, error.message))),
    };
    let (session, listener, _file) = match begin(&config, backend) {
        Ok(begun) => begun,
        Err(error) => {
            return say(Some(Greeting::refusal("internal", format!("no session: {error}"))));
        }
    };
    say(None)?;
    log::info!("session {} of {} begins", session.name, config.export.path.display());
    let linger = Duration::from_secs(config.linger_seconds.into());
    tokio::spawn(session.clone().channel(socket, true));
    session.clone().serve(listener, linger).await?;
    let counters = session.server.counters();
    log::info!(
        "session {} ends: {} calls, {} refused",
        session.name,
        counters.calls.load(Ordering::Relaxed),
        counters.denied.load(Ordering::Relaxed)
    );
    Ok(())
}

type Begun = (Arc<Session>, UnixListener, Socket);

fn begin(config: &SessionConfig, backend: Backend) -> std::io::Result<Begun> {
    let fault = |error: &dyn std::fmt::Display| std::io::Error::other(error.to_string());
    let mut number = [0; 8];
    SystemRandom::new().fill(&mut number).map_err(|error| fault(&error))?;
    let name = hex(&number);
    let key = SessionKey::random().map_err(|error| fault(&error))?;
    clear_dead_sockets(&config.runtime_dir);
    let path = socket_path(&config.runtime_dir, &name);
    let listener = UnixListener::bind(&path)?;
    let file = Socket(path);
    std::fs::set_permissions(&file.0, PermissionsExt::from_mode(0o600))?;
    let root = hex(backend.vfs.root().as_bytes());
    let (extensions, changes) = (backend.extensions, backend.changes.is_some());
    let path = config.export.path.to_string_lossy().into_owned().into_bytes();
    let ended: Arc<AtomicBool> = Arc::default();
    let Backend { vfs, blocking, changes: hub, .. } = backend;
    let export = Export { path, vfs, blocking, seal: None, changes: hub };
    let guest = Guest::new(&*name, Some(key.clone()), vec![export]);
    let options = ServerOptions {
        ended: Some(ended.clone()),
        ..ServerOptions::new(Arc::new(OneGuest::new(guest)))
    };
    let server = Server::new(options);
    // The first channel is on its way: the session is not idle.
    let channels = watch::Sender::new(0);
    let session = Session { server, name, key, root, extensions, changes, channels, ended };
    Ok((Arc::new(session), listener, file))
}

/// Removes the sockets of daemons that were killed. One that was made just now may not listen yet.
fn clear_dead_sockets(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_str().is_some_and(is_socket_name);
        let age = entry.metadata().and_then(|meta| meta.modified()).map(|time| time.elapsed());
        let is_old = age.is_ok_and(|age| age.is_ok_and(|age| age > Duration::from_secs(60)));
        if is_ours
            && is_old
            && let Err(error) = UnixStream::connect(entry.path())
            && error.kind() == std::io::ErrorKind::ConnectionRefused
        {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Session {
    /// Accepts channels until there has been none for `linger`, the client has said that it is
    /// done, or a signal ends the session.
    async fn serve(
        self: Arc<Self>,
        listener: UnixListener,
        linger: Duration,
    ) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let _hang_up = signal(SignalKind::hangup())?;
        let mut channels = self.channels.subscribe();
        let mut idle_since = Instant::now();
        loop {
            let idle = *channels.borrow_and_update() == 0;
            if !idle {
                idle_since = Instant::now();
            } else if self.ended.load(Ordering::Relaxed) {
                return Ok(());
            }
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    if *self.channels.borrow() >= CHANNELS_MAX || !is_ours(&stream) {
                        continue;
                    }
                    let Ok(stream) = stream.into_std() else { continue };
                    tokio::spawn(self.clone().channel(stream, false));
                }
                _ = channels.changed() => {}
                () = tokio::time::sleep_until((idle_since + linger).into()), if idle => {
                    return Ok(());
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        // Calls under way are finished, as far as that does not take for ever.
        let ended = channels.wait_for(|channels| *channels == 0);
        let _ = tokio::time::timeout(END_GRACE, ended).await;
        Ok(())
    }

    /// Serves a channel whose descriptors come over `socket`; the socket is closed when it ends.
    async fn channel(self: Arc<Self>, socket: UnixStream, first: bool) {
        self.channels.send_modify(|channels| *channels += 1);
        if let Err(error) = self.serve_channel(socket, first).await {
            log::info!("session {}: a channel failed: {error}", self.name);
        }
        self.channels.send_modify(|channels| *channels -= 1);
    }

    async fn serve_channel(&self, socket: UnixStream, first: bool) -> std::io::Result<()> {
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        let (socket, received) = tokio::task::spawn_blocking(move || {
            let received = handover::receive(&socket);
            (socket, received)
        })
        .await?;
        let Some((input, output)) = received? else { return Ok(()) };
        let reader = FdStream::new(input)?;
        let mut writer = FdStream::new(output)?;
        writer.write_all(self.greeting(first).to_line().as_bytes()).await?;
        self.server.clone().serve(reader, writer).await;
        drop(socket);
        Ok(())
    }

    fn greeting(&self, first: bool) -> Greeting {
        let mut features = vec![FEATURE_FETCH.into()];
        if self.extensions {
            features.push(FEATURE_EXTENSIONS.into());
        }
        if self.changes {
            features.push(FEATURE_CHANGES.into());
        }
        Greeting {
            ok: true,
            version: env!("CARGO_PKG_VERSION").into(),
            protocol: PROTOCOL,
            session: self.name.clone(),
            key: first.then(|| self.key.to_hex()),
            root: self.root.clone(),
            features,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            error: None,
            message: None,
        }
    }
}

/// Says whether the other side is this user's own process. The socket's mode says so already;
/// root, who may open anything, is no stranger either.
fn is_ours(stream: &tokio::net::UnixStream) -> bool {
    let peer =
        nix::sys::socket::getsockopt(&stream.as_fd(), nix::sys::socket::sockopt::PeerCredentials);
    peer.is_ok_and(|peer| peer.uid() == nix::unistd::geteuid().as_raw() || peer.uid() == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn sockets_of_killed_daemons_are_removed_and_no_others() {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name: &str| folder.path().join(name);
        let live = UnixListener::bind(path("proxy-11.sock")).expect("binds");
        for name in ["proxy-22.sock", "proxy-33.sock", "other.sock"] {
            drop(UnixListener::bind(path(name)).expect("binds"));
        }
        let names = ["proxy-11.sock", "proxy-22.sock", "other.sock"];
        let mut touch = std::process::Command::new("touch");
        touch.args(["-d", "1 hour ago"]).args(names.map(path));
        assert!(touch.status().expect("touch").success());
        clear_dead_sockets(folder.path());
        assert!(path("proxy-11.sock").exists(), "answers");
        assert!(!path("proxy-22.sock").exists(), "dead");
        assert!(path("proxy-33.sock").exists(), "too young to tell");
        assert!(path("other.sock").exists(), "not ours");
        drop(live);
    }
}
