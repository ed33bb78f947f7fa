//! Moves one large file between memory and an NFS export as fast as the link carries it, and
//! prints the rate and what it cost in processor time.
//!
//! `transfer ADDRESS PORT MOUNT_PORT EXPORT NAME read|write|getattr MIB [STRIPES] [IN_FLIGHT]`

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use gridvfs_upstream::{ClientOptions, MountTarget, NfsClient, TcpConnector};
use gridvfs_vfs::{Caller, CreateHow, SetAttr, Stability, Vfs};
use tokio::task::JoinSet;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn processor_seconds() -> Result<f64, Failure> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, port, mount_port, export, name, what, mib, rest @ ..] = &arguments[..] else {
        return Err("see the head of the source for the arguments".into());
    };
    let number = |at: usize, default| rest.get(at).map_or(Ok(default), |text| text.parse());
    let (stripes, in_flight) = (number(0, 4usize)?, number(1, 16usize)?);
    let me = Caller { uid: 0, gid: 0, groups: Vec::new() };
    let mounter = TcpConnector::new(address.clone(), mount_port.parse()?);
    let root = MountTarget::mount(&mounter, &me, export).await?;
    let connector = Arc::new(TcpConnector::new(address.clone(), port.parse()?));
    let options = ClientOptions { stripes, ..ClientOptions::default() };
    let client = NfsClient::connect_with_root(connector, root, options).await?;
    let size = client.fsinfo(&me, &root).await?.read_max;
    let attr = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    let file = match what.as_str() {
        "write" => {
            client.create(&me, &root, name.as_bytes(), &CreateHow::Unchecked(attr)).await?.handle
        }
        _ => Some(client.lookup(&me, &root, name.as_bytes()).await?.handle),
    };
    let file = file.ok_or("no handle")?;
    let calls: u64 = match what.as_str() {
        "getattr" => mib.parse::<u64>()? * 1000,
        _ => (mib.parse::<u64>()? << 20) / u64::from(size),
    };
    let block = Bytes::from((0..size).map(|at| (at % 251) as u8).collect::<Vec<_>>());
    let (began, spent) = (Instant::now(), processor_seconds()?);
    let mut tasks = JoinSet::new();
    for call in 0..calls {
        if tasks.len() >= in_flight
            && let Some(done) = tasks.join_next().await
        {
            done??;
        }
        let (client, me, block, what) = (client.clone(), me.clone(), block.clone(), what.clone());
        tasks.spawn(async move {
            let at = call * u64::from(size);
            match what.as_str() {
                "write" => {
                    client.write(&me, &file, at, block, Stability::Unstable).await?;
                }
                "getattr" => {
                    client.getattr(&me, &file).await?;
                }
                _ => {
                    client.read(&me, &file, at, size).await?;
                }
            }
            Ok::<_, gridvfs_vfs::Error>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    if what == "write" {
        client.commit(&me, &file, 0, 0).await?;
    }
    let (took, spent) = (began.elapsed().as_secs_f64(), processor_seconds()? - spent);
    if what == "getattr" {
        println!(
            "{:.0} calls/s, {:.1} us of processor each",
            calls as f64 / took,
            spent * 1e6 / calls as f64
        );
    } else {
        let moved = (calls * u64::from(size)) as f64;
        println!(
            "{:.1} MB/s in calls of {size}, {:.3} processor seconds per GiB",
            moved / 1e6 / took,
            spent * f64::from(1 << 30) / moved
        );
    }
    println!("{}", serde_json::Value::from(client.counters().to_map()));
    Ok(())
}
