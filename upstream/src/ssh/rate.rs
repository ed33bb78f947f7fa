//! How fast a link is, as a session would find it: over real logins, one for each stripe.
//!
//! Down: the host's random numbers, which nothing on the way can compress, read for a while once all
//! logins stand. Up: as many, until the host has taken all. Round trip: a byte that comes back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::ConnectError;

use super::SshHost;
use super::child::SshChild;
use super::script::open;

/// How many bytes are sent back and forth; the middle one counts.
const ECHOES: usize = 9;
/// How much is read or written at once, in bytes.
const PIECE_BYTES: usize = 256 << 10;
/// Beyond this time a byte does not come back.
const SILENCE_MAX: Duration = Duration::from_secs(20);

fn transient(error: impl std::fmt::Display) -> ConnectError {
    ConnectError::Transient(format!("ssh: {error}"))
}

/// Returns the round-trip time within a channel.
pub async fn round_trip(host: &Arc<SshHost>) -> Result<Duration, ConnectError> {
    let child = open(host, true, "exec cat", &[], &[]).await?;
    let (mut reader, mut writer, _process) = child.into_stream();
    let echoes = async {
        let mut times = Vec::new();
        for _ in 0..ECHOES {
            let began = Instant::now();
            writer.write_all(b".").await?;
            reader.read_exact(&mut [0]).await?;
            times.push(began.elapsed());
        }
        times.sort_unstable();
        Ok::<_, std::io::Error>(times[ECHOES / 2])
    };
    match tokio::time::timeout(SILENCE_MAX, echoes).await {
        Ok(time) => time.map_err(transient),
        Err(_) => Err(transient("nothing comes back")),
    }
}

/// Opens so many channels that run a script.
async fn channels(
    host: &Arc<SshHost>,
    stripes: usize,
    text: &'static str,
) -> Result<Vec<SshChild>, ConnectError> {
    // The first may have to ask the user; the others then come without.
    let mut all = vec![open(host, true, text, &[], &["Compression=no"]).await?];
    let mut logins = JoinSet::new();
    for _ in 1..stripes {
        let host = host.clone();
        logins.spawn(async move { open(&host, false, text, &[], &["Compression=no"]).await });
    }
    while let Some(login) = logins.join_next().await {
        all.push(login.map_err(transient)??);
    }
    Ok(all)
}

/// Returns how many bytes a second come over so many stripes.
pub async fn download(
    host: &Arc<SshHost>,
    stripes: usize,
    time: Duration,
) -> Result<f64, ConnectError> {
    let mut readers = JoinSet::new();
    let children = channels(host, stripes, "exec cat /dev/urandom").await?;
    let end = Instant::now() + time;
    let began = Instant::now();
    for child in children {
        readers.spawn(async move {
            let (mut reader, _writer, _process) = child.into_stream();
            let (mut piece, mut bytes) = (vec![0; PIECE_BYTES], 0u64);
            while let Ok(Ok(count @ 1..)) =
                tokio::time::timeout_at(end.into(), reader.read(&mut piece)).await
            {
                bytes += count as u64;
            }
            bytes
        });
    }
    let bytes: u64 = readers.join_all().await.into_iter().sum();
    match bytes {
        0 => Err(transient("nothing comes: is there a /dev/urandom?")),
        bytes => Ok(bytes as f64 / began.elapsed().as_secs_f64()),
    }
}

/// Returns how many bytes a second go over so many stripes.
pub async fn upload(
    host: &Arc<SshHost>,
    stripes: usize,
    time: Duration,
) -> Result<f64, ConnectError> {
    let mut writers = JoinSet::new();
    let children = channels(host, stripes, "cat >/dev/null; echo .").await?;
    let began = Instant::now();
    // The same piece again and again: nothing compresses it, since that is switched off.
    let piece = Arc::new(vec![0x5a; PIECE_BYTES]);
    for child in children {
        let piece = piece.clone();
        writers.spawn(async move {
            let (mut reader, mut writer, _process) = child.into_stream();
            let mut bytes = 0u64;
            while began.elapsed() < time && writer.write_all(&piece).await.is_ok() {
                bytes += piece.len() as u64;
            }
            let _ = writer.shutdown().await;
            // Said when all has been taken.
            let taken = reader.read_exact(&mut [0]).await;
            if taken.is_ok() { bytes } else { 0 }
        });
    }
    let limit = time * 10 + SILENCE_MAX;
    match tokio::time::timeout(limit, writers.join_all()).await {
        Ok(bytes) => match bytes.into_iter().sum::<u64>() {
            0 => Err(transient("nothing was taken")),
            bytes => Ok(bytes as f64 / began.elapsed().as_secs_f64()),
        },
        Err(_) => Err(transient("what was sent is not taken")),
    }
}
