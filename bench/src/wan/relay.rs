//! The link without root: TCP connections are passed on with a delay, at a rate.
//!
//! The two TCPs end here, so what is emulated is a link that loses nothing and whose senders know
//! its capacity. Setting a connection up costs no round trip. A cut holds everything back.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::control::Controlled;
use super::lane::{Bottleneck, Lane};
use super::{Change, Conditions, Weather};

/// The most that is passed on as one piece, in bytes.
const PIECE: usize = 32 * 1024;

type Pieces = Lane<Box<[u8]>>;

/// A relay that is there while the process lives.
pub struct Relay {
    listen: SocketAddr,
    to: SocketAddr,
    weather: Arc<Weather>,
    carried: Arc<[AtomicU64; 2]>,
}

impl Relay {
    /// Listens, and passes connections on from then.
    pub fn start(listen: SocketAddr, to: SocketAddr, conditions: Conditions) -> Result<Self> {
        if conditions.loss > 0.0 {
            bail!("a relay cannot lose packets: that needs a link (gridvfs-wan up), so root");
        }
        // SAFETY: this call takes a number. Threads made from here on inherit it.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1u64) };
        let listener =
            TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
        let listen = listener.local_addr()?;
        let weather = Arc::new(Weather::new(conditions));
        let carried: Arc<[AtomicU64; 2]> = Arc::default();
        let relay = Self { listen, to, weather: weather.clone(), carried: carried.clone() };
        let bottlenecks = [Bottleneck::new(), Bottleneck::new()];
        std::thread::spawn(move || {
            for client in listener.incoming() {
                match client.and_then(|client| Ok((client, TcpStream::connect(to)?))) {
                    Ok((client, server)) => {
                        if let Err(error) = join(&client, &server, &weather, &bottlenecks, &carried)
                        {
                            eprintln!("gridvfs-wan: {error}");
                        }
                    }
                    Err(error) => eprintln!("gridvfs-wan: a connection to {to}: {error}"),
                }
            }
        });
        Ok(relay)
    }

    /// Where it listens: the port is known from here on.
    pub fn address(&self) -> SocketAddr {
        self.listen
    }
}

fn join(
    client: &TcpStream,
    server: &TcpStream,
    weather: &Arc<Weather>,
    bottlenecks: &[Arc<Bottleneck>; 2],
    carried: &Arc<[AtomicU64; 2]>,
) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    for (way, (from, to)) in [(client, server), (server, client)].into_iter().enumerate() {
        let lane = Arc::new(Pieces::new(weather.clone(), bottlenecks[way].clone(), 1));
        let (put, carried) = (lane.clone(), carried.clone());
        let (from, to) = (from.try_clone()?, to.try_clone()?);
        let source = from.try_clone()?;
        std::thread::spawn(move || carry_in(source, &put));
        std::thread::spawn(move || carry_out(&lane, to, &from, &carried[way]));
    }
    Ok(())
}

fn carry_in(mut source: TcpStream, lane: &Pieces) {
    let mut buffer = vec![0; PIECE];
    while let Ok(length @ 1..) = source.read(&mut buffer) {
        if !lane.send_stream(buffer[..length].into(), length as u64) {
            break;
        }
    }
    lane.close();
}

fn carry_out(lane: &Pieces, mut sink: TcpStream, source: &TcpStream, carried: &AtomicU64) {
    while let Some(piece) = lane.receive_stream() {
        if sink.write_all(&piece).is_err() {
            // Nobody reads any more: nothing more needs to come.
            let _ = source.shutdown(Shutdown::Read);
            lane.close();
        } else {
            carried.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
    }
    let _ = sink.shutdown(Shutdown::Write);
}

impl Controlled for Relay {
    fn status(&self) -> Value {
        let bytes = |way: usize| json!({"bytes": self.carried[way].load(Ordering::Relaxed)});
        json!({
            "kind": "relay",
            "pid": std::process::id(),
            "conditions": self.weather.now(),
            "listen": self.listen.to_string(),
            "to": self.to.to_string(),
            "a_to_b": bytes(0),
            "b_to_a": bytes(1),
        })
    }

    fn change(&self, change: &Change) -> Result<()> {
        if change.loss.is_some_and(|loss| loss > 0.0) {
            bail!("a relay cannot lose packets: that needs a link (gridvfs-wan up), so root");
        }
        self.weather.change(change);
        Ok(())
    }
}
