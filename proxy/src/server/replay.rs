//! The duplicate request cache: a call that is sent again is not run again.
//!
//! One for all channels of a session, since a client whose channel has died sends its calls again
//! over another. A call is known by a digest of its whole record: number, credential with the
//! client's random stamp, procedure and arguments.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{Permits, Record};

/// The most calls that are remembered: several times what a session has in flight.
const CALLS_MAX: usize = 4096;
/// How much of a record is digested: all but the bulk of a WRITE's data.
const DIGEST_BYTES: usize = 1024;

type Replies = mpsc::UnboundedSender<(Record, Permits)>;

enum State {
    /// Under way; its reply goes to the channel that asked last.
    Running(Replies),
    Done(Record),
}

#[derive(Default)]
struct Memory {
    calls: HashMap<u64, State>,
    /// Finished calls, oldest first.
    done: VecDeque<u64>,
}

/// Remembers calls and replies.
pub(super) struct ReplayCache {
    hasher: RandomState,
    memory: Mutex<Memory>,
}

/// A call that was begun and must be finished.
pub(super) struct Ticket(u64);

/// What is to be done with a call.
pub(super) enum Fate {
    /// It is new. With a ticket, its reply is to be remembered.
    Run(Option<Ticket>),
    /// It is under way; the reply will come.
    Joined,
    /// It was run before.
    Answer(Record),
}

impl ReplayCache {
    pub fn new() -> Self {
        Self { hasher: RandomState::new(), memory: Mutex::default() }
    }

    pub fn begin(&self, record: &Bytes, replies: &Replies) -> Fate {
        let head = &record[..record.len().min(DIGEST_BYTES)];
        let digest = self.hasher.hash_one((record.len(), head));
        let mut memory = self.memory.lock();
        match memory.calls.get_mut(&digest) {
            Some(State::Running(to)) => {
                to.clone_from(replies);
                Fate::Joined
            }
            Some(State::Done(reply)) => Fate::Answer(reply.clone()),
            None => {
                memory.calls.insert(digest, State::Running(replies.clone()));
                Fate::Run(Some(Ticket(digest)))
            }
        }
    }

    pub fn finish(&self, ticket: Ticket, reply: Record, permits: Permits) {
        let mut memory = self.memory.lock();
        let before = memory.calls.insert(ticket.0, State::Done(reply.clone()));
        memory.done.push_back(ticket.0);
        while memory.done.len() > CALLS_MAX {
            if let Some(oldest) = memory.done.pop_front() {
                memory.calls.remove(&oldest);
            }
        }
        if let Some(State::Running(to)) = before {
            // If that channel has died too, the client asks again and is answered from memory.
            let _ = to.send((reply, permits));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_runs_once_and_its_reply_goes_to_who_asked_last() {
        let cache = ReplayCache::new();
        let record = Bytes::from_static(b"one call");
        let (first, mut first_replies) = mpsc::unbounded_channel();
        let (second, mut second_replies) = mpsc::unbounded_channel();
        let Fate::Run(Some(ticket)) = cache.begin(&record, &first) else { panic!("new") };
        assert!(matches!(cache.begin(&record, &second), Fate::Joined));
        let reply = vec![Bytes::from_static(b"reply")];
        cache.finish(ticket, reply.clone(), None);
        assert!(first_replies.try_recv().is_err());
        assert_eq!(second_replies.try_recv().expect("a reply").0, reply);
        let Fate::Answer(again) = cache.begin(&record, &first) else { panic!("remembered") };
        assert_eq!(again, reply);
        let other = Bytes::from_static(b"another");
        assert!(matches!(cache.begin(&other, &first), Fate::Run(Some(_))));
    }

    #[test]
    fn the_memory_is_bounded() {
        let cache = ReplayCache::new();
        let (replies, _keep) = mpsc::unbounded_channel();
        for number in 0..CALLS_MAX + 100 {
            let record = Bytes::from(number.to_string());
            let Fate::Run(Some(ticket)) = cache.begin(&record, &replies) else { panic!("new") };
            cache.finish(ticket, Vec::new(), None);
        }
        assert_eq!(cache.memory.lock().calls.len(), CALLS_MAX);
    }
}
