//! Two network namespaces, `a` and `b`, joined by the emulated link.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::control::Controlled;
use super::lane::{Bottleneck, Lane};
use super::tun::{PACKET_MAX, Side, wire_bytes};
use super::{Change, Conditions, Weather};

/// The address of side `a`, in its own namespace.
pub const ADDRESS_A: &str = "10.77.0.1";
/// The address of side `b`.
pub const ADDRESS_B: &str = "10.77.0.2";

type Packets = Lane<Box<[u8]>>;

/// A link that is up while the process lives.
pub struct Link {
    weather: Arc<Weather>,
    sides: [Side; 2],
    lanes: [Arc<Packets>; 2],
}

impl Link {
    /// Makes both namespaces and begins to carry packets.
    pub fn up(conditions: Conditions) -> Result<Self> {
        // Wake up when packets are due, not up to 50 µs later.
        // SAFETY: this call takes a number. Threads made from here on inherit it.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1u64) };
        let weather = Arc::new(Weather::new(conditions));
        let sides = [Side::new(ADDRESS_A)?, Side::new(ADDRESS_B)?];
        let lane = |seed: u64| {
            Arc::new(Packets::new(weather.clone(), Bottleneck::new(), 0x5eed_0000 + seed))
        };
        let lanes = [lane(1), lane(2)];
        for (from, lane) in lanes.iter().enumerate() {
            let mut source = sides[from].device.try_clone()?;
            let mut sink = sides[1 - from].device.try_clone()?;
            let (put, get) = (lane.clone(), lane.clone());
            let thread = |name: &str| std::thread::Builder::new().name(format!("{name} {from}"));
            thread("read").spawn(move || carry_in(&mut source, &put)).context("no thread")?;
            thread("write").spawn(move || carry_out(&get, &mut sink)).context("no thread")?;
        }
        let link = Self { weather, sides, lanes };
        link.apply_loss()?;
        Ok(link)
    }

    /// Packets that may be lost are lost one by one.
    fn apply_loss(&self) -> Result<()> {
        let offload = self.weather.now().loss == 0.0;
        self.sides.iter().try_for_each(|side| side.set_segmentation_offload(offload))
    }
}

fn carry_in(source: &mut impl Read, lane: &Packets) {
    let mut buffer = vec![0; PACKET_MAX];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                let packet = &buffer[..length];
                lane.send(packet.into(), wire_bytes(packet));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                eprintln!("gridvfs-wan: reading packets: {error}");
                std::process::exit(1);
            }
        }
    }
}

fn carry_out(lane: &Packets, sink: &mut impl Write) {
    while let Some(packet) = lane.receive() {
        // A packet that the other side does not take is a packet lost.
        let _ = sink.write_all(&packet);
    }
}

impl Controlled for Link {
    fn status(&self) -> Value {
        let pid = std::process::id();
        let side = |at: usize, address: &str| {
            let fd = self.sides[at].namespace.as_raw_fd();
            json!({"netns": format!("/proc/{pid}/fd/{fd}"), "address": address})
        };
        json!({
            "kind": "link",
            "pid": pid,
            "conditions": self.weather.now(),
            "a": side(0, ADDRESS_A),
            "b": side(1, ADDRESS_B),
            "a_to_b": self.lanes[0].traffic(),
            "b_to_a": self.lanes[1].traffic(),
        })
    }

    fn change(&self, change: &Change) -> Result<()> {
        self.weather.change(change);
        self.apply_loss()
    }
}
