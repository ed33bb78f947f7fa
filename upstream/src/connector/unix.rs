//! Channels over a unix socket.

use std::path::PathBuf;

use async_trait::async_trait;
use tokio::net::UnixStream;

use super::{Channel, ConnectError, Connector, Terms};

/// Opens channels to a unix socket.
#[derive(Clone, Debug)]
pub struct UnixConnector {
    path: PathBuf,
}

impl UnixConnector {
    /// Makes a connector to the socket at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

#[async_trait]
impl Connector for UnixConnector {
    async fn connect(&self, _stripe: usize) -> Result<Channel, ConnectError> {
        let stream = UnixStream::connect(&self.path).await.map_err(|error| {
            let text = format!("{}: {error}", self.path.display());
            match error.kind() {
                std::io::ErrorKind::PermissionDenied => ConnectError::Fatal(text),
                // The socket of a proxy that is being restarted is absent for a moment.
                _ => ConnectError::Transient(text),
            }
        })?;
        let (reader, writer) = stream.into_split();
        Ok(Channel::new(reader, writer, Terms::plain()))
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyedConnector;

    #[tokio::test]
    async fn a_socket_is_reached_with_the_key_once_it_is_there() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("socket");
        let connector = KeyedConnector::new(UnixConnector::new(path.clone()), "0123".into());
        let missing = connector.connect(0).await.err();
        assert!(matches!(missing, Some(ConnectError::Transient(_))), "{missing:?}");
        let _listener = tokio::net::UnixListener::bind(&path).expect("listens");
        let channel = connector.connect(0).await.expect("connects");
        assert_eq!(channel.terms.machine_name, "0123");
        assert!(channel.terms.extensions && !channel.terms.replay_cache);
    }
}
