//! Listening to the far proxy: one call of CHANGES is always under way.
//!
//! It is told in whose order things are: [`Listener::asking`] before each question, then what its
//! answer says. An answer that does not come in time ends the trust in what is known; when it comes
//! after all, nothing has been lost, and trust goes on.

use std::sync::{Arc, Weak};
use std::time::Duration;

use gridvfs_vfs::ext::{self, Changes, ChangesArgs, HOLD_MAX};
use gridvfs_vfs::rpc::Refusal;
use gridvfs_vfs::{Caller, Coverage, Ears, Listener, Status};

use super::{NfsClient, results};
use crate::rpc::{CallClass, CallError, Pending};

/// How long an answer may be late before nothing is believed without asking any more: a link that
/// stutters is no reason.
const LATE_MAX: Duration = Duration::from_secs(5);
/// How long to wait after an answer that was an error.
const PAUSE: Duration = Duration::from_secs(1);
/// The same after one that says that the server cannot: it may be replaced by one that can.
const PAUSE_MAX: Duration = Duration::from_secs(60);

impl NfsClient {
    pub(super) fn begin_to_listen(&self, listener: Weak<dyn Listener>) {
        if self.ears.add(listener) {
            let mut follower =
                Follower { ears: self.ears.clone(), period: 0, heard: 0, state: State::Void };
            let client = self.this.clone();
            self.runtime.spawn(async move { follower.follow(client).await });
        }
    }

    /// Sends the question. Returns also how long the server may hold it.
    async fn ask_changes(&self, period: u64, heard: u64) -> (Duration, Result<Pending, CallError>) {
        // Well before this client's own patience ends.
        let hold = self.rpc.patience().map_or(HOLD_MAX, |patience| HOLD_MAX.min(patience / 2));
        let hold_ms = hold.as_millis() as u32;
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let caller = Caller { uid, gid, groups: Vec::new() };
        let arguments = ChangesArgs { root: self.root, period, heard, hold_ms };
        let mut request = self.request(&caller, ext::CHANGES, &arguments, CallClass::Held);
        (request.program, request.version) = (ext::PROGRAM, ext::VERSION);
        (hold, self.rpc.send(request).await)
    }
}

/// Whether what was answered before is still covered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Whole,
    /// Nothing has been lost, but not all is told now.
    Lapsed,
    Void,
}

struct Follower {
    ears: Arc<Ears>,
    period: u64,
    heard: u64,
    state: State,
}

impl Follower {
    async fn follow(&mut self, client: Weak<NfsClient>) {
        loop {
            self.ears.asking();
            let (counters, (hold, pending)) = {
                let Some(client) = client.upgrade() else { return };
                if !client.rpc.terms().changes {
                    self.lapse("the far side does not tell changes".into());
                    drop(client);
                    tokio::time::sleep(PAUSE_MAX).await;
                    continue;
                }
                let counters = client.counters().clone();
                (counters, client.ask_changes(self.period, self.heard).await)
            };
            let answered = async { pending?.reply_with(results::<Changes>).await };
            let mut answered = std::pin::pin!(answered);
            let answer = tokio::select! {
                answer = &mut answered => answer,
                () = tokio::time::sleep(hold + LATE_MAX) => {
                    self.lapse("the far side does not answer".into());
                    answered.await
                }
                () = counters.cut() => {
                    self.lapse("the far side cannot be reached".into());
                    answered.await
                }
            };
            let pause = match answer {
                Ok(reply) => match reply.results {
                    Ok(changes) => {
                        self.heard(changes);
                        continue;
                    }
                    Err(Status::NOTSUPP) => {
                        self.lapse("nothing tells the far side of changes".into());
                        PAUSE_MAX
                    }
                    Err(status) => {
                        self.lapse(format!("the far side answers {status}"));
                        PAUSE
                    }
                },
                Err(CallError::Refused(
                    Refusal::ProgramUnavailable
                    | Refusal::ProgramMismatch { .. }
                    | Refusal::ProcedureUnavailable,
                )) => {
                    self.lapse("the far side does not tell changes".into());
                    PAUSE_MAX
                }
                Err(error) => {
                    self.lapse(error.to_string());
                    PAUSE
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn lapse(&mut self, reason: String) {
        if self.state == State::Whole {
            self.state = State::Lapsed;
        }
        self.ears.covered(&Coverage::Partial(reason));
    }

    fn heard(&mut self, changes: Changes) {
        if changes.period != self.period || changes.lost {
            self.state = State::Void;
        }
        (self.period, self.heard) = (changes.period, changes.number);
        let covers = changes.reason.0.is_empty();
        if covers && self.state == State::Void {
            self.ears.covered(&Coverage::Whole);
            self.state = State::Whole;
        }
        changes.told.0.iter().for_each(|change| self.ears.changed(change));
        if covers && self.state == State::Lapsed {
            self.ears.covered(&Coverage::Resumed);
            self.state = State::Whole;
        }
        if !covers {
            self.lapse(changes.reason.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use gridvfs_vfs::ext::{Reason, Told};
    use gridvfs_vfs::{Change, FileHandle};

    use super::*;

    #[derive(Default)]
    struct Notes(Mutex<Vec<String>>);

    impl Listener for Notes {
        fn changed(&self, _change: &Change) {
            self.0.lock().expect("no panic").push("change".into());
        }
        fn covered(&self, coverage: &Coverage) {
            let word = match coverage {
                Coverage::Whole => "whole".into(),
                Coverage::Resumed => "resumed".into(),
                Coverage::Partial(why) => format!("partial: {why}"),
            };
            self.0.lock().expect("no panic").push(word);
        }
    }

    #[test]
    fn trust_begins_anew_with_each_period_and_goes_on_after_a_pause() {
        let notes = Arc::new(Notes::default());
        let listener: Weak<dyn Listener> = Arc::downgrade(&(notes.clone() as Arc<dyn Listener>));
        let ears = Arc::new(Ears::default());
        ears.add(listener);
        let mut follower = Follower { ears, period: 0, heard: 0, state: State::Void };
        let change = Change::Names(FileHandle::new(&[1]).expect("short"));
        let answer = |period, number, lost, reason: &str| Changes {
            period,
            number,
            lost,
            reason: Reason(reason.into()),
            told: Told(vec![change.clone()]),
        };
        let mut hears = |what: Result<Changes, &str>| {
            match what {
                Ok(changes) => follower.heard(changes),
                Err(why) => follower.lapse(why.into()),
            }
            std::mem::take(&mut *notes.0.lock().expect("no panic")).join(", ")
        };
        assert_eq!(hears(Ok(answer(7, 1, false, ""))), "whole, change");
        assert_eq!(hears(Ok(answer(7, 2, false, ""))), "change");
        assert_eq!(hears(Err("silence")), "partial: silence");
        // What happened meanwhile is heard before anything is believed again.
        assert_eq!(hears(Ok(answer(7, 3, false, ""))), "change, resumed");
        assert_eq!(hears(Ok(answer(7, 4, true, ""))), "whole, change");
        // What is lost while nothing is believed is not forgotten.
        assert_eq!(hears(Ok(answer(7, 5, true, "watches"))), "change, partial: watches");
        assert_eq!(hears(Ok(answer(7, 6, false, ""))), "whole, change");
        assert_eq!(hears(Ok(answer(8, 1, false, ""))), "whole, change", "another process");
        assert_eq!(follower.heard, 1);
    }
}
