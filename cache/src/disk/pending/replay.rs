//! What is pending as the journal has it: copies of all of it, and back from its records.

use std::collections::HashSet;
use std::time::Instant;

use gridvfs_vfs::FileHandle;

use super::Queue;
use crate::journal::{NameEvent, NameRecord};

impl Queue {
    /// All that is pending, for a copy in the journal.
    pub fn copy(&self) -> Vec<NameRecord> {
        let mut records = vec![NameRecord::Begin];
        let mut bound = HashSet::new();
        for (number, pending) in &self.ops {
            let asked = pending.asked || pending.sending;
            records.push(NameRecord::Copy(*number, asked, Box::new(pending.op.clone())));
            for file in [Some(*pending.op.file()), pending.op.replaced()].into_iter().flatten() {
                if let Some(server) = self.to_server.get(&file).filter(|_| bound.insert(file)) {
                    records.push(NameRecord::CopyBound(file, *server));
                }
            }
        }
        records.push(NameRecord::End(records.len() as u64 - 1));
        records
    }

    /// Builds what is pending from the journal's records. Tells whether something is missing in
    /// between that was never promised, so that what is left has to be written down.
    pub fn replay(events: Vec<NameEvent>, at: Instant) -> (Self, bool) {
        let mut queue = Self::default();
        let (mut broken, mut any_hole) = (false, false);
        let mut copy: Option<Vec<NameRecord>> = None;
        for event in events {
            match event {
                NameEvent::Hole => (broken, any_hole) = (true, true),
                NameEvent::Record(_, NameRecord::Begin) => copy = Some(Vec::new()),
                NameEvent::Record(_, NameRecord::End(count)) => {
                    let Some(records) = copy.take().filter(|all| all.len() as u64 == count) else {
                        continue;
                    };
                    // Handles stay true: only what is pending is replaced.
                    let (to_server, to_ours) = (queue.to_server, queue.to_ours);
                    queue = Self { to_server, to_ours, ..Self::default() };
                    records.into_iter().for_each(|record| queue.restore(record, at));
                    broken = false;
                }
                NameEvent::Record(
                    _,
                    record @ (NameRecord::Copy(..) | NameRecord::CopyBound(..)),
                ) => copy.iter_mut().for_each(|all| all.push(record.clone())),
                // Elsewhere than in order these tell nothing that could be relied upon.
                _ if broken => {}
                NameEvent::Bound(ours, server, made_by) => {
                    queue.bind(ours, server);
                    queue.done(made_by);
                }
                NameEvent::Record(number, NameRecord::Op(op)) => queue.add(number, *op, None, at),
                NameEvent::Record(_, NameRecord::Started(all)) => queue.started(&all),
                NameEvent::Record(_, NameRecord::Done(number)) => drop(queue.done(number)),
            }
        }
        queue.ops.values_mut().for_each(|pending| pending.doubt = pending.asked);
        (queue, any_hole)
    }

    fn restore(&mut self, record: NameRecord, at: Instant) {
        match record {
            NameRecord::Copy(number, asked, op) => self.insert(number, *op, None, at, asked),
            NameRecord::CopyBound(ours, server) => self.bind(ours, server),
            _ => {}
        }
    }

    /// Drops changes of files that nobody knows any more: the record that made them is damaged.
    /// Returns how many.
    pub fn drop_unknown(&mut self) -> usize {
        let known = |file: &FileHandle| self.server(file).is_some() || self.created(file).is_some();
        let unknown: Vec<_> = self
            .ops
            .iter()
            .filter(|(_, pending)| !known(pending.op.file()))
            .map(|(number, _)| *number)
            .collect();
        unknown.iter().for_each(|number| drop(self.done(*number)));
        unknown.len()
    }
}
