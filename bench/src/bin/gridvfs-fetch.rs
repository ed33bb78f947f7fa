//! `gridvfs-fetch`: a file of a host read as a whole, in one of the ways that there are, without a
//! mount or a cache: for choosing between them.
//!
//! It prints one line of JSON: how long it took from the first request to the last byte, once the
//! channels stood, how many bytes they brought for it, and how many of the file were zero.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use gridvfs_upstream::ssh::{
    Coding, RemoteExport, RemoteStream, SshHost, SshProxyConnector, SshSettings,
};
use gridvfs_upstream::{ClientOptions, NfsClient};
use gridvfs_vfs::{Caller, FileHandle, Vfs};
use serde_json::json;

/// Read a file of a host as a whole, and say how long that takes.
#[derive(Parser)]
#[command(name = "gridvfs-fetch", version)]
struct Cli {
    /// The host, as ssh knows it.
    host: String,
    /// A directory of the host.
    folder: String,
    /// A file in it.
    name: String,
    /// How to read it.
    #[arg(long, value_enum, default_value = "fetch")]
    by: Way,
    /// zstd's level; 0 for none.
    #[arg(long, default_value_t = 1)]
    level: i32,
    /// How much each request asks for, in KiB.
    #[arg(long, default_value_t = 1024)]
    kib: u32,
    /// How many ranges a request has.
    #[arg(long, default_value_t = 1)]
    ranges: usize,
    /// How many requests are under way.
    #[arg(long, default_value_t = 16)]
    flight: usize,
    /// How many channels there are.
    #[arg(long, default_value_t = 4)]
    stripes: usize,
    /// A configuration of ssh.
    #[arg(short = 'F')]
    ssh_config: Option<PathBuf>,
    /// What runs `gridvfs` on the host.
    #[arg(long)]
    gridvfs_command: Option<String>,
    /// A folder of the user's own, for sockets.
    #[arg(long)]
    private_dir: PathBuf,
    /// Where to put what is read; nowhere if not told.
    #[arg(long)]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// FETCHes by way of our proxy.
    Fetch,
    /// READs by way of our proxy.
    Read,
    /// A program of the host's, by ssh alone.
    Stream,
}

/// What was read.
#[derive(Default)]
struct Sum {
    took: Duration,
    file_bytes: u64,
    zero_bytes: u64,
    received_bytes: Option<u64>,
}

/// Where what is read goes.
#[derive(Clone)]
struct Sink(Option<Arc<File>>);

impl Sink {
    fn put(&self, offset: u64, data: &[u8]) -> Result<()> {
        match &self.0 {
            Some(file) => file.write_all_at(data, offset).context("writing what was read"),
            None => Ok(()),
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let sink = match &cli.output {
        Some(path) => Sink(Some(Arc::new(File::create(path)?))),
        None => Sink(None),
    };
    let host = host(&cli);
    let client = connect(&cli, host.clone()).await?;
    let me = Caller {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        groups: Vec::new(),
    };
    let file = client.lookup(&me, &client.root(), cli.name.as_bytes()).await?.handle;
    let size = client.getattr(&me, &file).await?.size;
    if let Sink(Some(file)) = &sink {
        file.set_len(size)?;
    }
    let sum = match cli.by {
        Way::Stream => stream(&cli, &host, size, &sink).await?,
        way => requests(&cli, way, &client, me.clone(), file, size, &sink).await?,
    };
    ensure!(sum.file_bytes == size, "{} of {size} bytes came", sum.file_bytes);
    client.end_session(&me).await;
    let seconds = sum.took.as_secs_f64();
    println!(
        "{}",
        json!({
            "seconds": (seconds * 1e3).round() / 1e3,
            "mib_per_second": (size as f64 / seconds / 1048576.0).round(),
            "file_mib": size >> 20,
            "zero_mib": sum.zero_bytes >> 20,
            "received_mib": sum.received_bytes.map(|bytes| (bytes as f64 / 104857.6).round() / 10.0),
        })
    );
    Ok(())
}

fn host(cli: &Cli) -> Arc<SshHost> {
    let mut command = vec!["ssh".to_string()];
    if let Some(config) = &cli.ssh_config {
        command.extend(["-F".into(), config.display().to_string()]);
    }
    SshHost::new(SshSettings {
        command,
        destination: cli.host.clone(),
        private_dir: cli.private_dir.clone(),
        may_prompt: false,
        on_message: Arc::new(|line| eprintln!("{line}")),
    })
}

async fn connect(cli: &Cli, host: Arc<SshHost>) -> Result<Arc<NfsClient>> {
    let export = RemoteExport {
        program: cli.gridvfs_command.clone(),
        path: cli.folder.clone(),
        nfs: None,
        mount_port: None,
        shadow: (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()),
        read_only: true,
        linger_seconds: 1,
    };
    let options = ClientOptions { stripes: cli.stripes, ..ClientOptions::default() };
    let connector = Arc::new(SshProxyConnector::new(host, export));
    let client = NfsClient::connect(connector, options).await?;
    while client.counters().stripes_alive() < cli.stripes {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(client)
}

async fn stream(cli: &Cli, host: &Arc<SshHost>, size: u64, sink: &Sink) -> Result<Sum> {
    let path = format!("{}/{}", cli.folder, cli.name);
    let level = u8::try_from(cli.level).context("a level")?;
    let coding = if level == 0 { Coding::Plain } else { Coding::Zstd(level) };
    let began = Instant::now();
    let mut stream = RemoteStream::open(host, path.as_bytes(), coding, size).await?;
    let mut sum = Sum::default();
    while let Some(piece) = stream.next().await? {
        sink.put(sum.file_bytes, &piece)?;
        sum.file_bytes += piece.len() as u64;
    }
    sum.took = began.elapsed();
    Ok(sum)
}

/// Keeps so many requests under way until the file is read.
async fn requests(
    cli: &Cli,
    way: Way,
    client: &Arc<NfsClient>,
    me: Caller,
    file: FileHandle,
    size: u64,
    sink: &Sink,
) -> Result<Sum> {
    let part = u64::from(cli.kib) << 10;
    let starts: Vec<u64> = (0..size.div_ceil(part)).map(|number| number * part).collect();
    let mut left: VecDeque<Vec<(u64, u32)>> = starts
        .chunks(cli.ranges.max(1))
        .map(|starts| starts.iter().map(|&at| (at, part.min(size - at) as u32)).collect())
        .collect();
    let before = client.counters().received_bytes.load(Ordering::Relaxed);
    let began = Instant::now();
    let mut sum = Sum::default();
    let mut under_way = tokio::task::JoinSet::new();
    loop {
        while under_way.len() < cli.flight
            && let Some(ranges) = left.pop_front()
        {
            let (client, me, sink, level) = (client.clone(), me.clone(), sink.clone(), cli.level);
            under_way.spawn(async move {
                match way {
                    Way::Fetch => fetch(&client, &me, &file, &ranges, level, &sink).await,
                    _ => read(&client, &me, &file, &ranges, &sink).await,
                }
            });
        }
        let Some(done) = under_way.join_next().await else { break };
        let (told, zero) = done??;
        sum.file_bytes += told + zero;
        sum.zero_bytes += zero;
    }
    sum.took = began.elapsed();
    let received = client.counters().received_bytes.load(Ordering::Relaxed) - before;
    sum.received_bytes = Some(received);
    Ok(sum)
}

/// Returns how many bytes were told, and how many were zero.
async fn fetch(
    client: &NfsClient,
    me: &Caller,
    file: &FileHandle,
    ranges: &[(u64, u32)],
    level: i32,
    sink: &Sink,
) -> Result<(u64, u64)> {
    let (mut told, mut zero) = (0, 0);
    for range in client.fetch(me, file, ranges, level).await?.ranges {
        for run in range.runs() {
            match run.data {
                Some(data) => {
                    sink.put(run.offset, &data)?;
                    told += data.len() as u64;
                }
                None => zero += u64::from(run.length),
            }
        }
    }
    Ok((told, zero))
}

async fn read(
    client: &NfsClient,
    me: &Caller,
    file: &FileHandle,
    ranges: &[(u64, u32)],
    sink: &Sink,
) -> Result<(u64, u64)> {
    let mut told = 0;
    for &(offset, length) in ranges {
        let read = client.read(me, file, offset, length).await?;
        if read.data.len() < length as usize {
            bail!("a short read at {offset}");
        }
        sink.put(offset, &read.data)?;
        told += u64::from(length);
    }
    Ok((told, 0))
}
