//! A call on its way, from the caller's side.

use std::sync::Arc;
use std::time::Instant;

use gridvfs_vfs::rpc::{Refusal, ReplyHeader};
use gridvfs_vfs::xdr::{Decoder, Xdr};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::table::{Arrival, GARBLED_MAX, Sent};
use super::{CallClass, CallError, DATA_UNIT_BYTES, Request, Shared, patiently};
use crate::counters::count;

/// How often a call is repeated whose session key has been replaced meanwhile.
const REKEYED_MAX: u32 = 3;

/// The results of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply<T> {
    /// The results.
    pub results: T,
    /// Whether the call was sent again to a server that may have executed it before and does not
    /// remember: an error may then be the consequence of the first execution's success.
    pub retransmitted: bool,
}

/// A call on its way. Dropping it gives the call up.
pub struct Pending {
    shared: Arc<Shared>,
    request: Arc<Request>,
    xid: u32,
    receiver: oneshot::Receiver<Arrival>,
    began: Instant,
}

impl Pending {
    pub(super) async fn begin(
        shared: Arc<Shared>,
        request: Arc<Request>,
    ) -> Result<Self, CallError> {
        let began = Instant::now();
        let permits = permits(&shared, &request, began).await?;
        let xid = shared.next_xid();
        let receiver = shared.table.lock().add(xid, request.clone(), None, 0, permits);
        Ok(Self { shared, request, xid, receiver, began })
    }

    /// Waits for the reply and decodes its results.
    pub async fn reply<T: Xdr>(self) -> Result<Reply<T>, CallError> {
        self.reply_with(T::decode).await
    }

    /// Waits for the reply and decodes its results by `decode`.
    pub async fn reply_with<T>(
        mut self,
        decode: impl Fn(&mut Decoder) -> gridvfs_vfs::xdr::XdrResult<T>,
    ) -> Result<Reply<T>, CallError> {
        let (mut garbled, mut rekeyed) = (0, 0);
        loop {
            let (record, sent) = self.arrival().await?;
            let mut decoder = Decoder::new(record);
            let decoded =
                ReplyHeader::decode(&mut decoder).and_then(|header| match header.outcome {
                    Ok(()) => decode(&mut decoder).map(Ok),
                    Err(refusal) => Ok(Err(refusal)),
                });
            match decoded {
                Ok(Ok(results)) => {
                    if self.request.class != CallClass::Held {
                        self.shared.counters.took(self.request.class, self.began.elapsed());
                    }
                    return Ok(Reply { results, retransmitted: sent.unsafely });
                }
                // The key was that of a session that has since been replaced by a new one.
                Ok(Err(Refusal::AuthError(_)))
                    if rekeyed < REKEYED_MAX
                        && sent.generation < self.shared.terms.lock().generation =>
                {
                    rekeyed += 1;
                }
                Ok(Err(refusal)) => return Err(refusal.into()),
                Err(error) => {
                    count(&self.shared.counters.garbled, 1);
                    garbled += 1;
                    if garbled >= GARBLED_MAX {
                        return Err(CallError::Protocol(error.to_string()));
                    }
                }
            }
            self.send_again(sent, garbled).await?;
        }
    }

    async fn arrival(&mut self) -> Result<(bytes::Bytes, Sent), CallError> {
        match patiently(&self.shared, self.began, &mut self.receiver).await? {
            Ok(arrival) => arrival,
            Err(_) => {
                let why = self.shared.counters.last_error();
                Err(CallError::Unreachable(why.unwrap_or("the session has ended".into())))
            }
        }
    }

    /// Sends it again, as the same call: a server that remembers its replies repeats the first.
    async fn send_again(&mut self, sent: Sent, garbled: u8) -> Result<(), CallError> {
        let permits = permits(&self.shared, &self.request, self.began).await?;
        let (xid, request) = (self.xid, self.request.clone());
        self.receiver = self.shared.table.lock().add(xid, request, Some(sent), garbled, permits);
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let abandoned = self.shared.table.lock().abandon(self.xid);
        if abandoned && self.request.class != CallClass::Held {
            count(&self.shared.counters.abandoned, 1);
        }
    }
}

/// Waits until the limits allow for the call. Semaphores are fair: first come, first served. Calls
/// without data never wait for those with data.
async fn permits(
    shared: &Shared,
    request: &Request,
    began: Instant,
) -> Result<[Option<OwnedSemaphorePermit>; 2], CallError> {
    if request.class == CallClass::Held {
        return Ok([None, None]);
    }
    let ended = |_| CallError::Unreachable("the session has ended".into());
    let acquire = |semaphore: &Arc<Semaphore>, permits: usize| {
        semaphore.clone().acquire_many_owned(permits as u32)
    };
    let units = request.data_bytes().div_ceil(DATA_UNIT_BYTES);
    // A call larger than the limit goes alone.
    let units = units.min((shared.options.data_bytes_max / DATA_UNIT_BYTES).max(1));
    let data = match units {
        0 => None,
        units => {
            let permit = patiently(shared, began, acquire(&shared.data, units)).await?;
            Some(permit.map_err(ended)?)
        }
    };
    let slot = patiently(shared, began, acquire(&shared.slots, 1)).await?.map_err(ended)?;
    Ok([data, Some(slot)])
}
