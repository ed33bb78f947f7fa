//! Whole files from a host that has no proxy of ours: by a program that it has, over ssh.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use gridvfs_metadata::actions::{Remote, Stream};
use gridvfs_metadata::format::Compression;
use gridvfs_upstream::ssh::{Coding, RemoteStream, SshHost};

/// The files below an export's path on the host. If the NFS server is another machine than the
/// host, they are not there, and are read through that server.
pub struct SshFiles {
    host: Arc<SshHost>,
    export: Vec<u8>,
}

impl SshFiles {
    /// `export`: the export's path, which begins with `/`.
    pub fn new(host: Arc<SshHost>, export: &str) -> Self {
        Self { host, export: export.trim_end_matches('/').into() }
    }
}

#[async_trait]
impl Remote for SshFiles {
    async fn stream(
        &self,
        path: &[u8],
        size: u64,
        compression: Compression,
        level: i8,
    ) -> Result<Box<dyn Stream>, String> {
        let coding = match compression {
            Compression::None => Coding::Plain,
            Compression::Zstd => Coding::Zstd(level.clamp(1, 19) as u8),
            Compression::Gzip => Coding::Gzip(level.clamp(1, 9) as u8),
        };
        let path = [&self.export, &b"/"[..], path].concat();
        match RemoteStream::open(&self.host, &path, coding, size).await {
            Ok(stream) => Ok(Box::new(Pieces(stream))),
            Err(error) => Err(error.to_string()),
        }
    }
}

struct Pieces(RemoteStream);

#[async_trait]
impl Stream for Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        self.0.next().await.map_err(|error| error.to_string())
    }
}
