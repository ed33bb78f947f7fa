//! The writing half of a channel: queued calls to bytes.
//!
//! Headers and arguments of consecutive calls are collected in one buffer; a payload is sent from
//! where it is, between such buffers, by vectored writes.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use gridvfs_vfs::rpc::{AuthSys, CallHeader, record_mark};
use gridvfs_vfs::xdr::{Encoder, Xdr, padding};
use gridvfs_vfs::{Caller, nfs3};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use super::table::Item;
use super::watch::Pulse;
use super::{Request, Shared};
use crate::Terms;
use crate::counters::count;

/// The most buffers of one vectored write.
const SLICES_MAX: usize = 32;
/// The identity of pings, which do nothing: nobody.
const NOBODY: u32 = 65534;

/// Writes what is queued for a stripe until the channel fails.
pub(super) async fn write_queue(
    shared: &Shared,
    index: usize,
    mut writer: impl AsyncWrite + Unpin,
    terms: &Terms,
    pulse: &Pulse,
    wake: Arc<Notify>,
) -> io::Error {
    let machine_name = Bytes::copy_from_slice(terms.machine_name.as_bytes());
    let mut batch = Vec::new();
    let mut buffers = VecDeque::new();
    loop {
        let timing = &shared.options.timing;
        let resent = shared.table.lock().take_batch(index, terms, timing, &mut batch);
        if batch.is_empty() {
            wake.notified().await;
            continue;
        }
        count(&shared.counters.retransmits, resent);
        let mut encoder = Encoder::new();
        for item in batch.drain(..) {
            match item {
                Item::Call(xid, request) => {
                    encode(xid, &request, &machine_name, shared.stamp, &mut encoder, &mut buffers);
                }
                Item::Ping(xid) => {
                    let ping = ping();
                    encode(xid, &ping, &machine_name, shared.stamp, &mut encoder, &mut buffers);
                    pulse.ping_sent(xid);
                }
            }
        }
        flush_encoder(&mut encoder, &mut buffers);
        if let Err(error) = write_all(&mut writer, &mut buffers, shared, pulse).await {
            return error;
        }
    }
}

fn ping() -> Request {
    Request {
        program: nfs3::PROGRAM,
        version: nfs3::VERSION,
        procedure: nfs3::NULL,
        caller: Caller { uid: NOBODY, gid: NOBODY, groups: Vec::new() },
        arguments: Bytes::new(),
        payload: None,
        reply_bytes: 0,
        class: super::CallClass::Small,
    }
}

/// Encodes a call's record behind what `encoder` holds.
pub(crate) fn encode(
    xid: u32,
    request: &Request,
    machine_name: &Bytes,
    stamp: u32,
    encoder: &mut Encoder,
    buffers: &mut VecDeque<Bytes>,
) {
    let credential = AuthSys::of(&request.caller, machine_name.clone(), stamp).to_opaque();
    let header =
        CallHeader::new(xid, request.program, request.version, request.procedure, credential);
    let mut bytes = std::mem::take(encoder).into_vec();
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    *encoder = Encoder::from_vec(bytes);
    header.encode(encoder);
    let mut bytes = std::mem::take(encoder).into_vec();
    bytes.extend_from_slice(&request.arguments);
    let payload = request.payload.as_ref().map_or(0, Bytes::len);
    let length = bytes.len() - start - 4 + payload + padding(payload);
    bytes[start..start + 4].copy_from_slice(&record_mark(length));
    *encoder = Encoder::from_vec(bytes);
    if let Some(payload) = &request.payload {
        flush_encoder(encoder, buffers);
        buffers.push_back(payload.clone());
        let padding = padding(payload.len());
        if padding > 0 {
            *encoder = Encoder::from_vec(vec![0; padding]);
        }
    }
}

/// Moves what is encoded so far to the end of `buffers`.
pub(crate) fn flush_encoder(encoder: &mut Encoder, buffers: &mut VecDeque<Bytes>) {
    if !encoder.is_empty() {
        buffers.push_back(std::mem::take(encoder).into_vec().into());
    }
}

async fn write_all(
    writer: &mut (impl AsyncWrite + Unpin),
    buffers: &mut VecDeque<Bytes>,
    shared: &Shared,
    pulse: &Pulse,
) -> io::Result<()> {
    while let Some(first) = buffers.front() {
        if first.is_empty() {
            buffers.pop_front();
            continue;
        }
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let filled = buffers.len().min(SLICES_MAX);
        for (slice, buffer) in slices.iter_mut().zip(buffers.iter()) {
            *slice = IoSlice::new(buffer);
        }
        let mut written = writer.write_vectored(&slices[..filled]).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        pulse.accepted();
        count(&shared.counters.sent_bytes, written as u64);
        while let Some(first) = buffers.front_mut() {
            let part = written.min(first.len());
            first.advance(part);
            written -= part;
            if !first.is_empty() {
                break;
            }
            buffers.pop_front();
        }
    }
    writer.flush().await
}
