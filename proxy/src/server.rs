//! The NFS front end: an NFSv3 server over any byte stream, for any [`Vfs`].
//!
//! Every call is checked for the session key before anything else of it is looked at. Calls run at
//! the same time, replies go out in the order in which they are ready. A call that is sent again
//! over another channel of the session is not run again ([`replay`]).

mod dispatch;
mod fetch;
mod mount;
mod replay;

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use gridvfs_upstream::RecordReader;
use gridvfs_vfs::rpc::{CallHeader, Refusal, ReplyHeader, record_mark};
use gridvfs_vfs::xdr::{Decoder, Encoder, Xdr, padding};
use gridvfs_vfs::{Durations, Histogram, ext, nfs3};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};

use crate::gate::{Gate, Guest};
use crate::hops::HopBoard;
use crate::room::{BYTES_UNIT, Room, Share};
use fetch::Fetches;
use replay::{Fate, ReplayCache};

/// The longest call that is taken: the largest WRITE with its header.
const RECORD_BYTES_MAX: usize = nfs3::DATA_BYTES_MAX + (64 << 10);
/// The most calls of a channel that run at once. Clients of ours keep at most 128 in flight.
const CALLS_MAX: usize = 256;
/// The most bytes of calls and their expected replies that are in memory for a channel.
const CALL_BYTES_MAX: usize = 32 << 20;
/// The most buffers of one vectored write.
const SLICES_MAX: usize = 64;

/// What the times of calls are kept of.
const CLASSES: [&str; 3] = ["small", "read", "write"];

/// What clients have asked and been refused.
#[derive(Debug, Default)]
pub struct ServerCounters {
    times: [Histogram; CLASSES.len()],
    /// Calls run.
    pub calls: AtomicU64,
    /// Calls without the session's key.
    pub denied: AtomicU64,
    /// Records that are no calls, or too long.
    pub garbled: AtomicU64,
    /// Calls answered from memory, or joined to one under way.
    pub replayed: AtomicU64,
}

impl ServerCounters {
    /// Returns how long calls took, from when they came to their results: READ (and FETCH), WRITE, all
    /// others.
    pub fn times(&self) -> Vec<(&'static str, Durations)> {
        CLASSES.into_iter().zip(self.times.iter().map(Histogram::snapshot)).collect()
    }

    fn took(&self, header: &CallHeader, time: Duration) {
        let class = match (header.program, header.procedure) {
            (nfs3::PROGRAM, nfs3::READ) | (ext::PROGRAM, ext::FETCH) => 1,
            (nfs3::PROGRAM, nfs3::WRITE) => 2,
            _ => 0,
        };
        self.times[class].record(time);
    }
}

/// What a server serves, and to whom.
pub struct ServerOptions {
    /// Who is let in, and what each is shown.
    pub gate: Arc<dyn Gate>,
    /// Set when the client says that it is done; `None` if there is more than one client.
    pub ended: Option<Arc<AtomicBool>>,
    /// The limits that this server shares with others; a channel has its own in any case.
    pub room: Option<Arc<Room>>,
    /// What clients are told of the way to the files.
    pub hops: Arc<HopBoard>,
}

impl ServerOptions {
    /// Returns options with nothing but a gate.
    pub fn new(gate: Arc<dyn Gate>) -> Self {
        Self { gate, ended: None, room: None, hops: Arc::default() }
    }
}

/// Who accepted a channel, and watches it until it has shown a key.
#[async_trait]
pub trait Visit: Send + Sync {
    /// Resolves when the channel is to be closed, whoever it is of.
    async fn sent_away(&self);

    /// The first call of a guest has come. Resolves when it may be served; `false`: there is no
    /// place, and the channel is closed.
    async fn welcome(&self, guest: &Guest) -> bool;

    /// A call without a good key has come. Resolves when it may be answered; `false`: it is not, and
    /// the channel is closed.
    async fn stranger(&self) -> bool;
}

/// A channel that needs no watching: only who may come can have opened it.
pub struct Expected;

#[async_trait]
impl Visit for Expected {
    async fn sent_away(&self) {
        std::future::pending().await
    }

    async fn welcome(&self, _guest: &Guest) -> bool {
        true
    }

    async fn stranger(&self) -> bool {
        true
    }
}

/// An NFSv3 server.
pub struct Server {
    options: ServerOptions,
    replays: ReplayCache,
    fetches: Arc<Fetches>,
    counters: ServerCounters,
}

/// A reply's record: head, payload, padding.
pub(crate) type Record = Vec<Bytes>;

impl Server {
    /// Makes a server. It serves the channels it is given.
    pub fn new(options: ServerOptions) -> Arc<Self> {
        Arc::new(Self {
            options,
            replays: ReplayCache::new(),
            fetches: Arc::new(Fetches::new()),
            counters: ServerCounters::default(),
        })
    }

    /// Returns the counters.
    pub fn counters(&self) -> &ServerCounters {
        &self.counters
    }

    /// Serves a channel until it ends. Calls under way are finished all the same.
    pub async fn serve(
        self: Arc<Self>,
        reader: impl AsyncRead + Unpin + Send,
        writer: impl AsyncWrite + Unpin + Send + 'static,
    ) {
        self.receive(reader, writer, &Expected).await;
    }

    /// The same for a channel that is watched.
    pub async fn receive(
        self: Arc<Self>,
        reader: impl AsyncRead + Unpin + Send,
        writer: impl AsyncWrite + Unpin + Send + 'static,
        visit: &dyn Visit,
    ) {
        // Bounded by the calls in flight, which the semaphores bound.
        let (replies, queue) = mpsc::unbounded_channel();
        let writing = tokio::spawn(write_replies(writer, queue));
        let slots = Arc::new(Semaphore::new(CALLS_MAX));
        let bytes = Arc::new(Semaphore::new(CALL_BYTES_MAX / BYTES_UNIT));
        let mut records = RecordReader::new(reader, RECORD_BYTES_MAX);
        // Who called last: calls of one channel are of one guest as a rule.
        let mut guest: Option<Arc<Guest>> = None;
        let mut presence: Option<Presence> = None;
        loop {
            let record = tokio::select! {
                record = records.next() => record,
                () = visit.sent_away() => break,
                () = revoked(guest.as_deref()) => {
                    // What it has asked before is not answered any more.
                    writing.abort();
                    break;
                }
            };
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    log::debug!("channel ended: {error}");
                    break;
                }
            };
            let (header, arguments) = match self.accept(&record, &mut guest) {
                Accepted::Call(header, arguments, first) => {
                    if first
                        && let Some(guest) = &guest
                        && !visit.welcome(guest).await
                    {
                        break;
                    }
                    (header, arguments)
                }
                Accepted::Answer(reply) => {
                    let _ = replies.send((reply, None));
                    continue;
                }
                Accepted::Stranger(reply) => {
                    if !visit.stranger().await {
                        break;
                    }
                    let _ = replies.send((reply, None));
                    continue;
                }
                Accepted::Garbage => {
                    count(&self.counters.garbled);
                    break;
                }
            };
            let Some(caller) = guest.clone() else { break };
            if presence.as_ref().is_none_or(|present| !Arc::ptr_eq(&present.0, &caller)) {
                presence = Some(Presence::new(caller.clone()));
            }
            count(&caller.traffic().calls);
            add(&caller.traffic().received_bytes, record.len());
            if header.procedure == nfs3::NULL {
                // At once, whatever else waits: it is how clients see that we live.
                let _ = replies.send((dispatch::null(&header), None));
                continue;
            }
            if (header.program, header.procedure) == (ext::PROGRAM, ext::CHANGES) {
                // It waits here for others' calls: it has no part in the limits, and neither the
                // channel nor its end waits for it.
                tokio::spawn(dispatch::hold(caller, header, arguments, replies.downgrade()));
                continue;
            }
            // Large replies count like large calls.
            let size = record.len() + dispatch::reply_bytes(&header, arguments.clone());
            let units = size.min(CALL_BYTES_MAX).div_ceil(BYTES_UNIT) as u32;
            let (Ok(slot), Ok(units)) = (
                slots.clone().acquire_owned().await,
                bytes.clone().acquire_many_owned(units).await,
            ) else {
                break;
            };
            let share = match &self.options.room {
                Some(room) => room.enter(size).await,
                None => None,
            };
            let permits = Some((slot, units, share));
            self.clone().start(caller, header, record, arguments, replies.clone(), permits);
            if writing.is_finished() {
                break;
            }
        }
        drop(replies);
        let _ = writing.await;
    }

    /// Checks a record: who sends it, and whether it is a call that is served here.
    fn accept(&self, record: &Bytes, guest: &mut Option<Arc<Guest>>) -> Accepted {
        let mut decoder = Decoder::new(record.clone());
        let Ok(header) = CallHeader::decode(&mut decoder) else { return Accepted::Garbage };
        let refused = |refusal| Accepted::Answer(refusal_record(header.xid, refusal));
        if !header.is_rpc_version_2() {
            return refused(Refusal::RpcMismatch);
        }
        let credential = header.credential.auth_sys();
        let name = credential.as_ref().map(|credential| &credential.machine_name[..]);
        let mut first = false;
        if !guest.as_ref().is_some_and(|guest| guest.matches(name)) {
            let Some(found) = self.options.gate.admit(name) else {
                count(&self.counters.denied);
                let why = match credential {
                    Some(_) => Refusal::AUTH_REJECTEDCRED,
                    None => Refusal::AUTH_BADCRED,
                };
                let reply = refusal_record(header.xid, Refusal::AuthError(why));
                return Accepted::Stranger(reply);
            };
            first = guest.is_none();
            *guest = Some(found);
        }
        let served = match header.program {
            nfs3::PROGRAM => nfs3::VERSION,
            nfs3::mount::PROGRAM => nfs3::mount::VERSION,
            ext::PROGRAM => ext::VERSION,
            _ => return refused(Refusal::ProgramUnavailable),
        };
        if header.version != served {
            return refused(Refusal::ProgramMismatch { low: served, high: served });
        }
        Accepted::Call(header, decoder.rest(), first)
    }

    /// Runs a call, or joins one that is run already.
    fn start(
        self: Arc<Self>,
        guest: Arc<Guest>,
        header: CallHeader,
        record: Bytes,
        arguments: Bytes,
        replies: mpsc::UnboundedSender<(Record, Permits)>,
        permits: Permits,
    ) {
        let fate = if dispatch::is_idempotent(&header) {
            Fate::Run(None)
        } else {
            self.replays.begin(&record, &replies)
        };
        let ticket = match fate {
            Fate::Run(ticket) => ticket,
            Fate::Joined => {
                count(&self.counters.replayed);
                return;
            }
            Fate::Answer(reply) => {
                count(&self.counters.replayed);
                add(&guest.traffic().sent_bytes, bytes_of(&reply));
                let _ = replies.send((reply, permits));
                return;
            }
        };
        count(&self.counters.calls);
        drop(record);
        let fetched = fetch::size(&header, &arguments);
        let server = self.clone();
        let began = Instant::now();
        // What belongs to none of the guest's exports is refused without being run.
        let blocking = guest.export_of(&arguments).is_some_and(|export| export.blocking)
            || (header.program == nfs3::mount::PROGRAM
                && guest.exports().iter().any(|export| export.blocking));
        let call = async move {
            let context = dispatch::Context {
                options: &server.options,
                fetches: &server.fetches,
                guest: &guest,
            };
            let reply = dispatch::run(&context, &header, arguments).await;
            server.counters.took(&header, began.elapsed());
            add(&guest.traffic().sent_bytes, bytes_of(&reply));
            match ticket {
                Some(ticket) => server.replays.finish(ticket, reply, permits),
                // The channel may be gone: then nobody waits here for the reply.
                None => drop(replies.send((reply, permits))),
            }
        };
        match fetched {
            None => spawn(blocking, call),
            // It waits for its turn here, and not on a thread that another call could use.
            Some(bytes) => drop(tokio::spawn(async move {
                let turn = self.fetches.turn(bytes).await;
                spawn(blocking, async move {
                    call.await;
                    drop(turn);
                });
            })),
        }
    }
}

/// Runs a call on a thread that it may block if it does.
fn spawn(blocking: bool, call: impl Future<Output = ()> + Send + 'static) {
    if blocking {
        tokio::task::spawn_blocking(move || tokio::runtime::Handle::current().block_on(call));
    } else {
        tokio::spawn(call);
    }
}

/// Resolves when a guest has been sent away; never without one.
async fn revoked(guest: Option<&Guest>) {
    match guest {
        Some(guest) => guest.revoked().await,
        None => std::future::pending().await,
    }
}

/// A call's share of the limits, given back when its reply is written.
pub(crate) type Permits =
    Option<(tokio::sync::OwnedSemaphorePermit, tokio::sync::OwnedSemaphorePermit, Option<Share>)>;

enum Accepted {
    /// A call, and whether it is the first with a good key.
    Call(CallHeader, Bytes, bool),
    Answer(Record),
    /// The call of somebody without a good key.
    Stranger(Record),
    Garbage,
}

fn count(counter: &AtomicU64) {
    add(counter, 1);
}

fn add(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

fn bytes_of(record: &Record) -> usize {
    record.iter().map(Bytes::len).sum()
}

/// A channel on which a guest is.
struct Presence(Arc<Guest>);

impl Presence {
    fn new(guest: Arc<Guest>) -> Self {
        count(&guest.traffic().channels);
        Self(guest)
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.traffic().channels.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Makes the record of a refusal.
pub(crate) fn refusal_record(xid: u32, refusal: Refusal) -> Record {
    let mut encoder = Encoder::from_vec(vec![0; 4]);
    ReplyHeader { xid, outcome: Err(refusal) }.encode(&mut encoder);
    sealed(encoder, None)
}

/// Begins the record of an accepted call's results.
pub(crate) fn results(xid: u32) -> Encoder {
    let mut encoder = Encoder::from_vec(Vec::with_capacity(512));
    encoder.u32(0);
    ReplyHeader { xid, outcome: Ok(()) }.encode(&mut encoder);
    encoder
}

/// Puts the record mark in front; a payload follows where it is, without copying.
pub(crate) fn sealed(encoder: Encoder, payload: Option<Bytes>) -> Record {
    let mut head = encoder.into_vec();
    let extra = payload.as_ref().map_or(0, |payload| payload.len() + padding(payload.len()));
    let mark = record_mark(head.len() - 4 + extra);
    head[..4].copy_from_slice(&mark);
    let mut record = vec![Bytes::from(head)];
    if let Some(payload) = payload.filter(|payload| !payload.is_empty()) {
        let pad = padding(payload.len());
        record.push(payload);
        if pad > 0 {
            record.push(Bytes::from_static(&[0; 3]).slice(..pad));
        }
    }
    record
}

async fn write_replies(
    mut writer: impl AsyncWrite + Unpin,
    mut queue: mpsc::UnboundedReceiver<(Record, Permits)>,
) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, SLICES_MAX / 2).await > 0 {
        let mut buffers: Vec<Bytes> = Vec::with_capacity(SLICES_MAX);
        let mut permits = Vec::with_capacity(batch.len());
        for (record, permit) in batch.drain(..) {
            buffers.extend(record);
            permits.push(permit);
        }
        if let Err(error) = write_all(&mut writer, &mut buffers).await {
            log::debug!("channel cannot be written: {error}");
            return;
        }
    }
    let _ = writer.shutdown().await;
}

async fn write_all(
    writer: &mut (impl AsyncWrite + Unpin),
    buffers: &mut [Bytes],
) -> std::io::Result<()> {
    let mut first = 0;
    while first < buffers.len() {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let filled = (buffers.len() - first).min(SLICES_MAX);
        for (slice, buffer) in slices.iter_mut().zip(&buffers[first..]) {
            *slice = IoSlice::new(buffer);
        }
        let mut written = writer.write_vectored(&slices[..filled]).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        while first < buffers.len() && written >= buffers[first].len() {
            written -= buffers[first].len();
            buffers[first] = Bytes::new();
            first += 1;
        }
        if written > 0 {
            buffers[first].advance(written);
        }
    }
    writer.flush().await
}
