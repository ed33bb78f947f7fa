//! Settling: what is done of a file when all its data is on the server, and with what an earlier
//! process has left of one without unsent data.

use std::sync::Arc;

use gridvfs_vfs::{Attr, Change, Result, SetAttr, SetTime, Status, Time, Vfs, Wcc, WccAttr};

use super::node::{Node, State, Times};
use super::options::Consistency;
use super::send::is_gone;
use super::{Core, attributes};
use crate::crash;
use crate::journal::Record;

impl Core {
    /// All data is on the server: asks what its attributes are now, after setting the times that
    /// programs have been told.
    pub async fn settle(&self, node: &Arc<Node>) {
        let lazy = self.treatment(node).is_lazy();
        let _turn = node.turn.lock().await;
        let recovered = node.state.lock().recovered;
        if recovered {
            if let Err(error) = self.take_stock(node).await {
                self.failed(node, &error, true);
            }
            return;
        }
        let (times, writer) = {
            let mut state = node.state.lock();
            if !state.dirty.is_empty() {
                return;
            }
            let Times { atime, mtime } = state.times;
            if (atime, mtime) != (state.said.atime, state.said.mtime) {
                // The next process is to know who has set them.
                let times = Record::Times { handle: node.handle, atime, mtime };
                self.note(&mut state, times);
            }
            (state.times, state.writer.clone())
        };
        let caller = writer.unwrap_or_else(|| Arc::new(self.own.clone()));
        if lazy
            && times != Default::default()
            && let Err(error) = self.sync_journal().await
        {
            // After a power loss, too, the next process is to know who has set them.
            self.failed(node, &error, true);
            return;
        }
        crash::point(crash::Point::BEFORE_SETTLE);
        let asked = self.ask();
        let set = |time: Option<_>| time.map_or(SetTime::Keep, SetTime::To);
        let attr = if times == Default::default() {
            self.buffer.getattr(&caller, &node.handle).await
        } else {
            let changes =
                SetAttr { atime: set(times.atime), mtime: set(times.mtime), ..SetAttr::default() };
            match self.buffer.setattr(&caller, &node.handle, &changes, None).await {
                Ok(Wcc { after: Some(attr), .. }) => Ok(attr),
                Ok(_) => self.buffer.getattr(&caller, &node.handle).await,
                // Whoever may write need not be allowed to set times.
                Err(error) if matches!(error.status(), Status::PERM | Status::ACCES) => {
                    self.buffer.getattr(&caller, &node.handle).await
                }
                Err(error) => Err(error),
            }
        };
        match attr {
            Ok(attr) => {
                self.settled(node, attr, asked, times, lazy);
                crash::point(crash::Point::AFTER_SETTLE);
            }
            Err(error) if is_gone(&error) => {
                let mut state = node.state.lock();
                state.settled = true;
                self.times_set(node, &mut state);
                self.index.update(&node.handle, |known| known.attr = None);
            }
            Err(error) => self.failed(node, &error, true),
        }
    }

    /// Looks whether a file without unsent data is as an earlier process left it, whose times are
    /// still to be set. If it is not, they are not to be set to what it is now.
    async fn take_stock(&self, node: &Arc<Node>) -> Result<()> {
        let asked = self.ask();
        let attr = match self.buffer.getattr(&self.own, &node.handle).await {
            Ok(attr) => attr,
            Err(error) if is_gone(&error) => {
                self.discard(&node.handle);
                self.nothing_left(node, &mut node.state.lock());
                self.index.update(&node.handle, |known| known.attr = None);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let signature = WccAttr::from(&attr);
        let mut state = node.state.lock();
        if !state.recovered || !state.dirty.is_empty() {
            // Somebody else has found out, or will before data is sent.
            state.recovered = false;
            return Ok(());
        }
        if state.changed_at > asked {
            self.nothing_left(node, &mut state);
            return Ok(());
        }
        if state.base.is_some_and(|base| attributes::same_data(&base, &signature))
            || state.is_timed(&signature)
        {
            state.base = Some(signature);
            state.recovered = false;
            return self.no_intents(node, &mut state);
        }
        self.renew(node, &mut state, Some(signature));
        self.nothing_left(node, &mut state);
        node.set_size(Some(attr.size));
        self.index.update(&node.handle, |known| known.attr = None);
        Ok(())
    }

    /// There is nothing to be done any more of what an earlier process has left.
    pub fn nothing_left(&self, node: &Node, state: &mut State) {
        state.recovered = false;
        state.settled = true;
        self.times_set(node, state);
        if let Err(error) = self.no_intents(node, state) {
            log::warn!("{error}");
        }
    }

    /// What an earlier process intended has not come about, or is dealt with.
    pub fn no_intents(&self, node: &Node, state: &mut State) -> Result<()> {
        if !std::mem::replace(&mut state.intents_in_doubt, false) {
            return Ok(());
        }
        self.log(state, Record::Abandoned { handle: node.handle })
    }

    /// No times are to be set any more.
    fn times_set(&self, node: &Node, state: &mut State) {
        state.times = Times::default();
        if state.said.atime.is_some() || state.said.mtime.is_some() {
            self.note(state, Record::Times { handle: node.handle, atime: None, mtime: None });
        }
    }

    fn settled(&self, node: &Node, mut attr: Attr, asked: u64, times: Times, lazy: bool) {
        let mut state = node.state.lock();
        let known = self.index.node(&node.handle);
        if state.changed_at > asked || known.is_some_and(|known| known.overtaken(asked)) {
            // It is asked for again.
            return;
        }
        if times != Times::default() {
            // Answers from before the times were set tell of an earlier version.
            state.changed_at = self.tick();
        }
        // Data that was written meanwhile is over this very version.
        self.take_own_base(&mut state, &attr);
        state.settled = true;
        state.clears_ids &= !state.dirty.is_empty();
        if !state.dirty.is_empty() {
            let base = WccAttr::from(&attr);
            self.note(&mut state, attributes::base_record(node, &base));
            return;
        }
        if state.times == times {
            self.times_set(node, &mut state);
        }
        node.set_size(Some(attr.size));
        // What programs have seen stays as they have seen it.
        let written = state.mtime != Time::default();
        if lazy && written {
            state.told = Some((attr.ctime, state.ctime));
            attr.ctime = state.ctime;
        }
        let (base, written) = (state.base, self.period());
        let learned = self.tick();
        self.index.update(&node.handle, |known| {
            known.base = base;
            known.written = written;
            // Its name may have been changed by us meanwhile, and its ctime with it.
            known.attr = Some(attr).filter(|_| !known.overtaken(asked));
            known.at = super::now_ms();
            (known.asked, known.learned) = (asked, learned);
        });
        drop(state);
        if self.settings.read().consistency == Consistency::Shared {
            // What was answered before was the best guess.
            self.coherence.tell(&Change::Attributes(node.handle, Some(attr)));
        }
    }
}
