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

use bytes::{Buf, Bytes};
use gridvfs_upstream::RecordReader;
use gridvfs_vfs::rpc::{AuthSys, CallHeader, Refusal, ReplyHeader, record_mark};
use gridvfs_vfs::xdr::{Decoder, Encoder, Xdr, padding};
use gridvfs_vfs::{Vfs, ext, nfs3};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};

use crate::key::SessionKey;
use fetch::Fetches;
use replay::{Fate, ReplayCache};

/// The longest call that is taken: the largest WRITE with its header.
const RECORD_BYTES_MAX: usize = nfs3::DATA_BYTES_MAX + (64 << 10);
/// The most calls of a channel that run at once. Clients of ours keep at most 128 in flight.
const CALLS_MAX: usize = 256;
/// The most bytes of calls and their expected replies that are in memory for a channel.
const CALL_BYTES_MAX: usize = 32 << 20;
/// What the byte semaphore counts in.
const BYTES_UNIT: usize = 4096;
/// The most buffers of one vectored write.
const SLICES_MAX: usize = 64;

/// What clients have asked and been refused.
#[derive(Debug, Default)]
pub struct ServerCounters {
    /// Calls run.
    pub calls: AtomicU64,
    /// Calls without the session's key.
    pub denied: AtomicU64,
    /// Records that are no calls, or too long.
    pub garbled: AtomicU64,
    /// Calls answered from memory, or joined to one under way.
    pub replayed: AtomicU64,
}

/// What a server serves, and to whom.
pub struct ServerOptions {
    /// The file system.
    pub vfs: Arc<dyn Vfs>,
    /// Whether its calls block their thread (the local directory's do).
    pub blocking: bool,
    /// The key that every call must carry; without one, anybody is let in.
    pub key: Option<SessionKey>,
    /// The path under which the root can be mounted by clients that ask (MOUNT protocol).
    pub export_path: Vec<u8>,
    /// Set when the client says that it is done; `None` if there is more than one client.
    pub ended: Option<Arc<AtomicBool>>,
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
        // Bounded by the calls in flight, which the semaphores bound.
        let (replies, queue) = mpsc::unbounded_channel();
        let writing = tokio::spawn(write_replies(writer, queue));
        let slots = Arc::new(Semaphore::new(CALLS_MAX));
        let bytes = Arc::new(Semaphore::new(CALL_BYTES_MAX / BYTES_UNIT));
        let mut records = RecordReader::new(reader, RECORD_BYTES_MAX);
        loop {
            let record = match records.next().await {
                Ok(record) => record,
                Err(error) => {
                    log::debug!("channel ended: {error}");
                    break;
                }
            };
            let (header, arguments) = match self.accept(&record) {
                Accepted::Call(header, arguments) => (header, arguments),
                Accepted::Answer(reply) => {
                    let _ = replies.send((reply, None));
                    continue;
                }
                Accepted::Garbage => {
                    count(&self.counters.garbled);
                    break;
                }
            };
            if header.procedure == nfs3::NULL {
                // At once, whatever else waits: it is how clients see that we live.
                let _ = replies.send((dispatch::null(&header), None));
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
            self.clone().start(header, record, arguments, replies.clone(), Some((slot, units)));
            if writing.is_finished() {
                break;
            }
        }
        drop(replies);
        let _ = writing.await;
    }

    /// Checks a record: who sends it, and whether it is a call that is served here.
    fn accept(&self, record: &Bytes) -> Accepted {
        let mut decoder = Decoder::new(record.clone());
        let Ok(header) = CallHeader::decode(&mut decoder) else { return Accepted::Garbage };
        let refused = |refusal| Accepted::Answer(refusal_record(header.xid, refusal));
        if !header.is_rpc_version_2() {
            return refused(Refusal::RpcMismatch);
        }
        if let Some(key) = &self.options.key {
            let credential = header.credential.auth_sys();
            let matches = |credential: &AuthSys| key.matches(&credential.machine_name);
            if !credential.as_ref().is_some_and(matches) {
                count(&self.counters.denied);
                let why = match credential {
                    Some(_) => Refusal::AUTH_REJECTEDCRED,
                    None => Refusal::AUTH_BADCRED,
                };
                return refused(Refusal::AuthError(why));
            }
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
        Accepted::Call(header, decoder.rest())
    }

    /// Runs a call, or joins one that is run already.
    fn start(
        self: Arc<Self>,
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
                let _ = replies.send((reply, permits));
                return;
            }
        };
        count(&self.counters.calls);
        drop(record);
        let fetched = fetch::size(&header, &arguments);
        let server = self.clone();
        let call = async move {
            let reply = dispatch::run(&server.options, &server.fetches, &header, arguments).await;
            match ticket {
                Some(ticket) => server.replays.finish(ticket, reply, permits),
                // The channel may be gone: then nobody waits here for the reply.
                None => drop(replies.send((reply, permits))),
            }
        };
        let blocking = self.options.blocking;
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

/// A call's share of the limits, given back when its reply is written.
pub(crate) type Permits =
    Option<(tokio::sync::OwnedSemaphorePermit, tokio::sync::OwnedSemaphorePermit)>;

enum Accepted {
    Call(CallHeader, Bytes),
    Answer(Record),
    Garbage,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
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
