//! The multiplexer: ONC RPC calls over the stripes of a session.
//!
//! A call goes to the stripe with the fewest bytes outstanding, among many others in flight, and
//! its reply is matched by its number (xid) in whatever order replies come. What is sent and not
//! yet answered is kept (a reference, not a copy), so that when a channel dies its calls move to
//! the living ones at once, or wait until one is back. Nobody who waits for a reply can tell,
//! except by [`Reply::retransmitted`].
//!
//! Limits: [`ClientOptions::calls_per_stripe`] × stripes calls, [`ClientOptions::data_bytes_max`]
//! bytes of READ and WRITE data; beyond them callers wait, first come first served. A record is at
//! most [`ClientOptions::record_bytes_max`] long.

mod backoff;
mod pending;
mod rtt;
mod stripe;
mod table;
mod watch;
mod write;

pub use pending::{Pending, Reply};

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gridvfs_vfs::rpc::Refusal;
use gridvfs_vfs::{Caller, Error, Status};
use parking_lot::Mutex;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use crate::counters::count;
use crate::{Channel, ClientOptions, ConnectError, Connector, Counters, Terms, Timing};
use backoff::Backoff;
use table::Table;

/// What the data semaphore counts in: its permits are a u32, and smaller amounts do not matter.
const DATA_UNIT_BYTES: usize = 1024;

/// How a call's round-trip time compares: estimates are kept for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallClass {
    /// Small both ways, answered from memory as a rule.
    Small = 0,
    /// Data from the server.
    Read = 1,
    /// Data to the server.
    Write = 2,
    /// Waits for the server's disk: COMMIT and changes of directories.
    Slow = 3,
    /// Held by the server on purpose: it is no load, and says nothing of the link. It has no part in
    /// the limits and the counters, and is not missed.
    Held = 4,
}

/// A call: everything but what differs from channel to channel.
#[derive(Clone, Debug)]
pub struct Request {
    /// The program.
    pub program: u32,
    /// Its version.
    pub version: u32,
    /// The procedure.
    pub procedure: u32,
    /// Who calls.
    pub caller: Caller,
    /// The arguments in XDR. With a payload, up to and with its length word.
    pub arguments: Bytes,
    /// Opaque data behind the arguments, sent from where it is, padding added.
    pub payload: Option<Bytes>,
    /// About how much data the reply will bring, in bytes.
    pub reply_bytes: usize,
    /// What kind of call it is.
    pub class: CallClass,
}

impl Request {
    fn data_bytes(&self) -> usize {
        self.payload.as_ref().map_or(0, Bytes::len) + self.reply_bytes
    }
}

/// Why a call has no results.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No answer within the timeout, or the client has ended.
    #[error("{0}")]
    Unreachable(String),
    /// The answers, repeatedly, were not what the protocol says.
    #[error("{0}")]
    Protocol(String),
    /// The server answered that it did not run the procedure.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Unreachable(text) => Self::Unreachable(text),
            CallError::Protocol(text) => Self::Protocol(text),
            CallError::Refused(refusal @ (Refusal::AuthError(_) | Refusal::RpcMismatch)) => {
                Self::Denied(refusal.to_string())
            }
            CallError::Refused(
                Refusal::ProgramUnavailable
                | Refusal::ProgramMismatch { .. }
                | Refusal::ProcedureUnavailable,
            ) => Self::Status(Status::NOTSUPP),
            CallError::Refused(Refusal::SystemError) => Self::Status(Status::SERVERFAULT),
            CallError::Refused(Refusal::GarbageArguments) => {
                Self::Protocol("the server did not understand the arguments".into())
            }
        }
    }
}

/// What the tasks of a client and its callers share.
pub(crate) struct Shared {
    options: ClientOptions,
    counters: Arc<Counters>,
    table: Mutex<Table>,
    slots: Arc<Semaphore>,
    data: Arc<Semaphore>,
    next_xid: AtomicU32,
    /// The AUTH_SYS stamp: an arbitrary number that stays with the client.
    stamp: u32,
    started: Instant,
    /// When the session last made progress with a call, in milliseconds since `started`.
    progress_ms: AtomicU64,
    terms: Mutex<Terms>,
}

impl Shared {
    fn next_xid(&self) -> u32 {
        self.next_xid.fetch_add(1, Ordering::Relaxed)
    }

    /// Says whether `xid` was given to a call lately.
    fn was_issued(&self, xid: u32) -> bool {
        /// Calls older than a million others have long been given up.
        const WINDOW: u32 = 1 << 20;
        self.next_xid.load(Ordering::Relaxed).wrapping_sub(1).wrapping_sub(xid) < WINDOW
    }

    fn note_progress(&self) {
        let now = self.started.elapsed().as_millis() as u64;
        self.progress_ms.store(now, Ordering::Relaxed);
    }

    /// Resolves when a call that began at `began` has waited for too long.
    async fn out_of_patience(&self, began: Instant) -> CallError {
        let Some(timeout) = self.options.timeout else {
            return std::future::pending().await;
        };
        loop {
            let progress = Duration::from_millis(self.progress_ms.load(Ordering::Relaxed));
            let quiet_since = (self.started + progress).max(began);
            let deadline = (quiet_since + timeout).min(began + timeout * Timing::PATIENCE);
            if Instant::now() >= deadline {
                let waited = began.elapsed().as_secs_f64();
                let why = self.counters.last_error();
                let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
                return CallError::Unreachable(format!("no answer for {waited:.0} s{why}"));
            }
            tokio::time::sleep_until(deadline.into()).await;
        }
    }
}

/// A session's RPC client. Its tasks end when it is dropped; calls in flight then fail with
/// [`CallError::Unreachable`].
pub struct RpcClient {
    shared: Arc<Shared>,
    stripes: Vec<AbortHandle>,
}

impl RpcClient {
    /// Opens the first channel, and the others in the background.
    pub async fn connect(
        connector: Arc<dyn Connector>,
        options: ClientOptions,
    ) -> Result<Self, ConnectError> {
        let first = connector.connect(0).await?;
        Ok(Self::start(Some(connector), first, options))
    }

    /// Uses one channel that is open, for as long as it lasts: calls fail when it ends.
    pub fn over(channel: Channel, options: ClientOptions) -> Self {
        let options = ClientOptions { stripes: 1, ..options };
        Self::start(None, channel, options)
    }

    fn start(
        connector: Option<Arc<dyn Connector>>,
        first: Channel,
        options: ClientOptions,
    ) -> Self {
        let stripes = options.stripes.max(1);
        let random = random_u64();
        let shared = Arc::new(Shared {
            counters: Arc::new(Counters::new(stripes)),
            table: Mutex::new(Table::new(stripes)),
            slots: Arc::new(Semaphore::new(stripes * options.calls_per_stripe.max(1))),
            data: Arc::new(Semaphore::new((options.data_bytes_max / DATA_UNIT_BYTES).max(1))),
            next_xid: AtomicU32::new(random as u32),
            stamp: (random >> 32) as u32,
            started: Instant::now(),
            progress_ms: AtomicU64::new(0),
            terms: Mutex::new(first.terms.clone()),
            options,
        });
        let mut first = Some(first);
        let stripes = (0..stripes)
            .map(|index| {
                let task =
                    stripe::supervise(shared.clone(), connector.clone(), index, first.take());
                tokio::spawn(task).abort_handle()
            })
            .collect();
        Self { shared, stripes }
    }

    /// Returns the counters.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.shared.counters
    }

    /// Returns how long calls may take, if there is a limit.
    pub(crate) fn patience(&self) -> Option<Duration> {
        self.shared.options.timeout
    }

    /// Returns the terms of the newest channel.
    pub fn terms(&self) -> Terms {
        self.shared.terms.lock().clone()
    }

    /// Sends a call on its way, as soon as the limits let it. Dropping what is returned gives the
    /// call up; its reply is discarded when it comes.
    pub async fn send(&self, request: Request) -> Result<Pending, CallError> {
        if request.class != CallClass::Held {
            count(&self.shared.counters.calls, 1);
        }
        Pending::begin(self.shared.clone(), Arc::new(request)).await
    }

    /// Makes a call and decodes its results. An answer that cannot be decoded is asked for again,
    /// a few times.
    pub async fn call<T: gridvfs_vfs::xdr::Xdr>(
        &self,
        request: Request,
    ) -> Result<Reply<T>, CallError> {
        self.send(request).await?.reply().await
    }

    /// Returns the pauses of a caller that repeats a call which the server was too busy for.
    pub(crate) fn busy(&self) -> Busy {
        let timing = &self.shared.options.timing;
        Busy {
            shared: self.shared.clone(),
            began: Instant::now(),
            backoff: Backoff::new(timing.jukebox_min, timing.jukebox_max),
        }
    }
}

/// Growing pauses between repetitions, up to the timeout.
pub(crate) struct Busy {
    shared: Arc<Shared>,
    began: Instant,
    backoff: Backoff,
}

impl Busy {
    /// Waits; an error when the timeout is over.
    pub async fn pause(&mut self) -> Result<(), CallError> {
        count(&self.shared.counters.busy, 1);
        tokio::time::sleep(self.backoff.next_pause()).await;
        match self.shared.options.timeout {
            Some(timeout) if self.began.elapsed() > timeout => {
                Err(CallError::Unreachable("the server is too busy to answer".into()))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for RpcClient {
    fn drop(&mut self) {
        self.stripes.iter().for_each(AbortHandle::abort);
        self.shared.table.lock().end();
    }
}

/// Returns a random number; an arbitrary one should the system have none.
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes),
        Err(_) => std::process::id().into(),
    }
}

/// Waits for `future`, or for the patience of a call to end.
async fn patiently<T>(
    shared: &Shared,
    began: Instant,
    future: impl Future<Output = T>,
) -> Result<T, CallError> {
    if shared.options.timeout.is_none() {
        return Ok(future.await);
    }
    tokio::select! {
        biased;
        value = future => Ok(value),
        error = shared.out_of_patience(began) => Err(error),
    }
}
