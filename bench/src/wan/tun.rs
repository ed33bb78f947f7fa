//! A network namespace with a TUN device in it.
//!
//! The device carries virtio headers and takes segmentation off the kernel's hands, so that TCP
//! hands over packets of up to 64 KiB: a gigabit costs two thousand of them a second.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};

/// The virtio-net header before each packet, in bytes (without mergeable buffers).
pub const HEADER: usize = 10;
/// The largest read: a header and an IP packet.
pub const PACKET_MAX: usize = HEADER + 65535 + 64;
/// Bytes that TCP may have under way: enough for 1 Gbit/s at 120 ms.
const TCP_MEMORY: &str = "4096 131072 16777216";

/// A namespace, entered by its descriptor, and its device.
pub struct Side {
    /// The namespace.
    pub namespace: File,
    /// The device.
    pub device: File,
}

impl Side {
    /// Makes a namespace with a device that has `address` (of the network `address`/30).
    pub fn new(address: &str) -> Result<Self> {
        // A thread of its own: the caller keeps its namespace.
        let address = address.to_string();
        let made = std::thread::spawn(move || Self::make(&address)).join();
        made.unwrap_or_else(|_| bail!("the thread that makes a namespace has panicked"))
    }

    fn make(address: &str) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        let namespace = File::open("/proc/thread-self/ns/net")?;
        let device = open_device("wan0")?;
        for (setting, value) in [
            ("ipv6/conf/all/disable_ipv6", "1"),
            ("ipv4/tcp_rmem", TCP_MEMORY),
            ("ipv4/tcp_wmem", TCP_MEMORY),
            // One run does not teach the next.
            ("ipv4/tcp_no_metrics_save", "1"),
            // Whoever has no other user than root there may still ping.
            ("ipv4/ping_group_range", "0 2147483647"),
        ] {
            if let Err(error) = std::fs::write(format!("/proc/sys/net/{setting}"), value) {
                eprintln!("gridvfs-wan: {setting} stays as it is: {error}");
            }
        }
        ip(&["link", "set", "lo", "up"])?;
        ip(&["address", "add", &format!("{address}/30"), "dev", "wan0"])?;
        ip(&["link", "set", "wan0", "txqueuelen", "10000", "up"])?;
        Ok(Self { namespace, device })
    }

    /// Lets the kernel hand over large packets, or has it cut them into segments first, so that
    /// each can be lost by itself.
    pub fn set_segmentation_offload(&self, offload: bool) -> Result<()> {
        set_offload(&self.device, offload)
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .context("cannot run ip (of the package iproute2)")?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn open_device(name: &str) -> Result<File> {
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("cannot open /dev/net/tun (is the module tun there?)")?;
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: a live request of the type that this ioctl takes.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error()).context("cannot make a TUN device");
    }
    set_offload(&device, true)?;
    Ok(device)
}

fn set_offload(device: &File, offload: bool) -> Result<()> {
    let flags = match offload {
        true => libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6,
        false => libc::TUN_F_CSUM,
    };
    // SAFETY: this ioctl takes a number.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETOFFLOAD, flags) };
    if result < 0 {
        return Err(io::Error::last_os_error()).context("the TUN device refuses offloads");
    }
    Ok(())
}

/// The bytes of a packet (with its header) as segments on the wire: the headers of each segment of
/// a large packet count.
pub fn wire_bytes(packet: &[u8]) -> u64 {
    let length = packet.len().saturating_sub(HEADER) as u64;
    if packet.len() < HEADER || packet[1] == 0 {
        return length;
    }
    let headers = u64::from(u16::from_le_bytes([packet[2], packet[3]]));
    let segment = u64::from(u16::from_le_bytes([packet[4], packet[5]])).max(1);
    let payload = length.saturating_sub(headers);
    payload + headers * payload.div_ceil(segment).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_of_large_packets_have_headers_each() {
        let mut packet = vec![0; HEADER + 1500];
        assert_eq!(wire_bytes(&packet), 1500);
        packet = vec![0; HEADER + 52 + 10_000];
        packet[1] = 1; // TCP over IPv4
        packet[2..4].copy_from_slice(&52u16.to_le_bytes());
        packet[4..6].copy_from_slice(&1448u16.to_le_bytes());
        assert_eq!(wire_bytes(&packet), 10_000 + 7 * 52);
        assert_eq!(wire_bytes(&[0; 4]), 0);
    }
}
