//! A stripe: opens its channel, serves it until it fails, and opens the next.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncRead;

use super::Shared;
use super::backoff::Backoff;
use super::watch::{Pulse, watch};
use super::write::write_queue;
use crate::counters::count;
use crate::{Channel, ConnectError, Connector, RecordError, RecordReader};

/// The shortest reply: number, direction, status.
const REPLY_BYTES_MIN: usize = 12;
/// RPC's message type of replies.
const REPLY: u32 = 1;

/// How a channel ended.
enum End {
    /// The stream closed or failed.
    Lost(String),
    /// The server sent what is no reply; to which call, where that is known.
    Violation(String, Option<u32>),
    /// No sign of life.
    Silent(Duration),
}

impl End {
    fn text(&self) -> String {
        match self {
            Self::Lost(text) | Self::Violation(text, _) => text.clone(),
            Self::Silent(duration) => {
                format!("no sign of life for {:.1} s", duration.as_secs_f64())
            }
        }
    }
}

/// Keeps a stripe going for as long as the client lives; without a connector, for as long as its
/// first channel does.
pub(super) async fn supervise(
    shared: Arc<Shared>,
    connector: Option<Arc<dyn Connector>>,
    index: usize,
    mut first: Option<Channel>,
) {
    let Some(connector) = connector else {
        if let Some(channel) = first {
            let (end, _) = serve(&shared, index, channel, 0).await;
            shared.counters.set_last_error(end.text());
            shared.table.lock().end();
        }
        return;
    };
    let timing = shared.options.timing;
    let mut backoff = Backoff::new(timing.reconnect_min, timing.reconnect_max);
    let mut strikes = 0;
    let mut opened_before = false;
    loop {
        let channel = match first.take() {
            Some(channel) => channel,
            None => match connector.connect(index).await {
                Ok(channel) => channel,
                Err(error) => {
                    if let ConnectError::Fatal(_) = &error {
                        backoff.give_up_hope();
                    }
                    log::info!("stripe {index}: cannot connect: {error}");
                    shared.counters.set_last_error(error.to_string());
                    tokio::time::sleep(backoff.next_pause()).await;
                    continue;
                }
            },
        };
        if std::mem::replace(&mut opened_before, true) {
            count(&shared.counters.reconnects, 1);
            let again = strikes > 0 || shared.counters.stripes_alive() == 0;
            log::log!(
                if again { log::Level::Info } else { log::Level::Debug },
                "stripe {index}: connected to {}",
                connector.describe()
            );
        }
        let (end, replies) = serve(&shared, index, channel, strikes).await;
        if replies > 0 {
            backoff.reset();
            strikes = 0;
        }
        let text = end.text();
        let violation = match end {
            End::Lost(_) => None,
            End::Violation(text, culprit) => {
                count(&shared.counters.garbled, 1);
                Some((text, culprit))
            }
            End::Silent(_) => {
                strikes += 1;
                None
            }
        };
        log::warn!("stripe {index} to {}: {text}; reconnecting", connector.describe());
        let alive = {
            let mut table = shared.table.lock();
            table.stripe_down(index, violation);
            table.alive()
        };
        shared.counters.set_alive(alive);
        shared.counters.set_last_error(text);
        tokio::time::sleep(backoff.next_pause()).await;
    }
}

/// Serves a channel until it ends; says how, and how many replies it brought.
async fn serve(shared: &Arc<Shared>, index: usize, channel: Channel, strikes: u32) -> (End, u64) {
    let Channel { reader, writer, terms, guard } = channel;
    let pulse = Arc::new(Pulse::new());
    {
        let mut newest = shared.terms.lock();
        if terms.generation >= newest.generation {
            newest.clone_from(&terms);
        }
    }
    let ((wake, busy), alive) = {
        let mut table = shared.table.lock();
        (table.stripe_up(index), table.alive())
    };
    shared.counters.set_alive(alive);
    let mut replies = 0;
    let end = tokio::select! {
        end = read_replies(shared, index, reader, pulse.clone(), &mut replies) => end,
        error = write_queue(shared, index, writer, &terms, &pulse, wake) => {
            End::Lost(error.to_string())
        }
        silent = watch(shared, index, &pulse, busy, strikes) => End::Silent(silent),
    };
    drop(guard);
    (end, replies)
}

async fn read_replies(
    shared: &Arc<Shared>,
    index: usize,
    reader: impl AsyncRead + Unpin,
    pulse: Arc<Pulse>,
    replies: &mut u64,
) -> End {
    /// Less could be the answer to a ping, which is no progress.
    const PROGRESS_BYTES: usize = 1024;
    let observer = {
        let (shared, pulse) = (shared.clone(), pulse.clone());
        move |bytes| {
            pulse.received();
            count(&shared.counters.received_bytes, bytes as u64);
            if bytes >= PROGRESS_BYTES {
                shared.note_progress();
            }
        }
    };
    let max = shared.options.record_bytes_max;
    let mut records = RecordReader::with_observer(reader, max, observer);
    loop {
        let record = match records.next().await {
            Ok(record) => record,
            Err(RecordError::TooLong { xid, bytes, max }) => {
                let text = RecordError::TooLong { bytes, max, xid }.to_string();
                return End::Violation(text, xid);
            }
            Err(error @ RecordError::Empty) => return End::Violation(error.to_string(), None),
            Err(error) => return End::Lost(error.to_string()),
        };
        if let Err((text, culprit)) = deliver(shared, index, record, &pulse) {
            return End::Violation(text, culprit);
        }
        *replies += 1;
    }
}

/// Hands a reply to its call.
fn deliver(
    shared: &Shared,
    index: usize,
    record: Bytes,
    pulse: &Pulse,
) -> Result<(), (String, Option<u32>)> {
    let word = |at: usize| record.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
    let (Some(xid), direction) = (word(0), word(4)) else {
        return Err(("a reply of less than four bytes".into(), None));
    };
    if !shared.was_issued(xid) {
        return Err((format!("a reply to a call that was never made (xid {xid:#x})"), None));
    }
    if direction != Some(REPLY) || record.len() < REPLY_BYTES_MIN {
        return Err(("what came is no reply".into(), Some(xid)));
    }
    if let Some(sent_at) = pulse.take_ping(xid) {
        let mut table = shared.table.lock();
        table.ping_answered(index, sent_at);
        if let Some(rtt) = table.rtt() {
            shared.counters.set_rtt(rtt);
        }
        return Ok(());
    }
    let (found, rtt) = {
        let mut table = shared.table.lock();
        (table.answer(index, xid, record), table.rtt())
    };
    if found {
        shared.note_progress();
        if let Some(rtt) = rtt {
            shared.counters.set_rtt(rtt);
        }
    } else {
        count(&shared.counters.late_replies, 1);
    }
    Ok(())
}
