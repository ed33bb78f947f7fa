//! Being told of others' changes (docs/decisions/0029): a session whose files others may change then
//! believes what it knows, until it hears otherwise.
//!
//! What is known of a file is believed if changes are told ([`Coherence::is_on`]), and if it was asked
//! for after they began to be. What is told and what is answered may overtake each other on their way.
//! The cache's clock orders them: an answer to a question from before a change was told is older than
//! it, and what is told may be older than what was learnt since its question was sent; then neither is
//! believed, and the server is asked.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use gridvfs_vfs::{
    Attr, Change, Coverage, Ears, FileHandle, FileKind, Leads, Listener, Vfs, WccAttr,
};
use parking_lot::Mutex;

use super::attributes::same_data;
use super::node::{ConflictKind, Node, State};
use super::options::Consistency;
use super::{Core, DiskCache, now_ms};
use crate::counters::add;
use crate::index::{Known, Name};

/// What is known of a file is asked for again after this long in any case: what reaches it by a way that
/// nobody watches (a further hard link from elsewhere, a shared mapping) is seen then.
const BELIEVED_FOR: Duration = Duration::from_secs(300);

/// For how long the answer to a change of ours may have had others' in it that is still to be told: as
/// long as an answer is waited for before nothing is believed any more.
const UNTOLD_MAX: Duration = Duration::from_secs(15);

/// See the module's description.
#[derive(Default)]
pub(crate) struct Coherence {
    wanted: bool,
    /// Changes are told.
    on: AtomicBool,
    /// The clock when they began to be: what was asked for before is not believed.
    began: AtomicU64,
    /// The clock when the question was sent whose answer is told now.
    asked: AtomicU64,
    listening: AtomicBool,
    state: Mutex<Told>,
    ears: Ears,
}

struct Told {
    since: Instant,
    reason: String,
}

impl Default for Told {
    fn default() -> Self {
        Self { since: Instant::now(), reason: "not yet".into() }
    }
}

/// Whether a cache hears of others' changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoherenceStatus {
    /// Why not; `None`: it does.
    pub reason: Option<String>,
    /// For how long that has been so.
    pub lasting: Duration,
}

impl Coherence {
    pub fn new(wanted: bool) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// Tells a change that was found here.
    pub fn tell(&self, change: &Change) {
        self.ears.changed(change);
    }

    /// Says whether changes are told.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Says whether what is known of a file has been covered since it was asked for.
    pub fn covers(&self, known: &Known) -> bool {
        let lives = known.attr.is_some_and(|attr| attr.kind != FileKind::Regular)
            || known.at.saturating_add(BELIEVED_FOR.as_millis() as u64) > now_ms();
        self.is_on() && known.asked >= self.began.load(Ordering::Acquire) && lives
    }

    /// Says whether others' change may have been lost that has come beside ours, and cannot be told from it.
    pub fn has_missed(&self, known: &Known) -> bool {
        known.changed_at != 0 && known.changed_at < self.began.load(Ordering::Acquire)
    }

    fn set(&self, reason: Option<&str>) {
        let mut state = self.state.lock();
        let before = self.is_on().then(|| state.reason.clone());
        let same = match (reason, &before) {
            (None, Some(_)) => true,
            (Some(reason), None) => *reason == state.reason,
            _ => false,
        };
        if !same {
            state.since = Instant::now();
        }
        state.reason = reason.unwrap_or_default().into();
        self.on.store(reason.is_none(), Ordering::Release);
    }
}

/// What a change that is told says of a file that something else is known of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing new.
    Same,
    /// The file is like that now.
    News,
    /// One of the two is older than the other: nobody knows which.
    Unclear,
}

/// Judges attributes that are told. `asked`: the clock when the question was sent that they answer;
/// `changed_at`: at our own last change, or when the file was told of last.
fn judge(known: &Known, told: &Attr, asked: u64, changed_at: u64) -> Verdict {
    let Some(attr) = &known.attr else {
        return if changed_at > asked { Verdict::Unclear } else { Verdict::News };
    };
    if is_same(attr, told) {
        return Verdict::Same;
    }
    // A file's ctime does not go back, as long as its server's clock does not; our own changes have
    // times of their own.
    let newer = told.ctime > attr.ctime;
    if changed_at > asked || (known.learned > asked && !newer) {
        return Verdict::Unclear;
    }
    Verdict::News
}

/// Says whether attributes tell the same, but for what reading changes and what the disk does later.
fn is_same(a: &Attr, b: &Attr) -> bool {
    Attr { atime: b.atime, used: b.used, ..*a } == *b
}

impl Core {
    /// Says whether what is known is believed without asking, where it is covered.
    pub fn trusts(&self) -> bool {
        match self.settings.read().consistency {
            Consistency::Shared => self.coherence.is_on(),
            consistency => consistency.trusts(),
        }
    }

    /// Begins to listen, if the settings want it.
    pub fn begin_to_listen(self: &Arc<Self>) {
        let shared = self.settings.read().consistency == Consistency::Shared;
        if !self.coherence.wanted || !shared {
            let reason = match self.coherence.wanted {
                true => "consistency is not shared",
                false => "coherence=no",
            };
            if !self.coherence.listening.load(Ordering::Acquire) {
                self.coherence.set(Some(reason));
            }
            self.coherence.ears.covered(&Coverage::Partial(reason.into()));
            return;
        }
        if self.coherence.listening.swap(true, Ordering::AcqRel) {
            // What was told meanwhile was not taken.
            if self.coherence.is_on() {
                self.covered(&Coverage::Whole);
            }
            return;
        }
        let listener: Arc<dyn Listener> = self.clone();
        self.buffer.listen(Arc::downgrade(&listener));
    }

    /// A change of a file was told.
    fn mark(&self, file: &FileHandle, forget: bool) {
        let note = |clock| {
            self.index.update(file, |known| {
                (known.changed_at, known.told_at) = (clock, clock);
                if forget {
                    known.attr = None;
                }
            });
        };
        if let Some(node) = self.known_or(file, || note(self.tick())) {
            // The node first: whoever has its lock reads the index.
            let mut state = node.state.lock();
            let clock = self.tick();
            (state.changed_at, state.told_at) = (clock, clock);
            note(clock);
        }
    }

    /// Others have changed a file's data, or may have: what is kept of it goes, whatever its attributes
    /// are. Those that we know may have come with the answer to a change of ours, which was on the server
    /// after theirs.
    fn data_told(&self, file: &FileHandle, told: Option<&Attr>) {
        let verdict = self.judge(file, told);
        self.mark(file, true);
        self.drop_data(file, told);
        match told {
            Some(told) if verdict.is_some_and(|verdict| verdict != Verdict::Unclear) => {
                let mut attr = *told;
                self.observe(file, &mut attr, self.ask());
                // What is under way was asked for before.
                self.mark(file, false);
            }
            _ => self.ask_later(file),
        }
    }

    fn drop_data(&self, file: &FileHandle, told: Option<&Attr>) {
        self.buffer.invalidate(file);
        let renew = || {
            if self.index.node(file).is_some_and(|known| known.base.is_some()) {
                add(&self.counters.changed, 1);
                self.index.update(file, |known| known.renew_key(None));
            }
        };
        let Some(node) = self.known_or(file, renew) else {
            return self.coherence.tell(&Change::File(*file, None));
        };
        let lazy = self.treatment(&node).is_lazy();
        let mut state = node.state.lock();
        if state.dirty.is_empty() {
            self.renew(&node, &mut state, None);
            return node.set_size(None);
        }
        if lazy || state.inherited || state.in_doubt {
            return self.told_under_unsent(&node, &mut state, told);
        }
        // As NFS clients do: what is being written goes over what others have written, or has gone. It
        // is soon on the server's disk and leaves the journal, which lies over everything.
        self.renew(&node, &mut state, None);
        state.overtaken_up_to = state.newest;
        state.commit_wanted = state.newest;
        drop(state);
        node.wake.notify_one();
    }

    /// Others have changed the data under what is to be sent at leisure: a conflict, which is found when
    /// it is compared with the base, unless the base has it in it.
    fn told_under_unsent(&self, node: &Node, state: &mut State, told: Option<&Attr>) {
        if state.handed > state.committed || state.handing || state.committing {
            state.overtaken_up_to = state.newest;
            return;
        }
        let told = told.map(WccAttr::from);
        let hidden = told.zip(state.base).is_some_and(|(told, base)| same_data(&told, &base))
            && state.own_base_at.is_some_and(|at| at.elapsed() < UNTOLD_MAX);
        if hidden && state.settled && state.conflict.is_none() {
            self.find_conflict(node, state, ConflictKind::Changed);
        }
    }

    /// Data was sent while others' change was told: only the server knows what has become of the file.
    pub fn sent_over_others(&self, node: &Node, state: &mut State, lazy: bool) {
        let base = state.base.filter(|_| lazy);
        self.renew(node, state, base);
        if state.dirty.is_empty() {
            node.set_size(None);
        } else if lazy {
            self.find_conflict(node, state, ConflictKind::Changed);
        }
        self.index.update(&node.handle, |known| known.attr = None);
    }

    /// Judges told attributes; `None` if only the server can say what the file's are.
    fn judge(&self, file: &FileHandle, told: Option<&Attr>) -> Option<Verdict> {
        let (asked, told) = (self.coherence.asked.load(Ordering::Acquire), told?);
        let known = self.index.node(file);
        let Some(node) = self.known(file) else {
            // If nothing is known, an answer from before may be on its way.
            let judged = known.map(|known| judge(&known, told, asked, known.changed_at));
            return Some(judged.unwrap_or(Verdict::News));
        };
        let lazy = self.treatment(&node).is_lazy();
        let state = node.state.lock();
        let quiet = state.dirty.is_empty() && state.settled;
        if !lazy && !quiet {
            // What is told may be from before our last WRITE. An answer is not.
            return None;
        }
        let shown = state.shown(told);
        Some(known.map_or(Verdict::News, |known| {
            judge(&known, &shown, asked, state.changed_at.max(known.changed_at))
        }))
    }

    /// Others have changed a file's attributes, and not its data.
    fn attributes_told(&self, file: &FileHandle, told: Option<&Attr>) {
        match (self.judge(file, told), told) {
            (Some(Verdict::Same), Some(told)) => {
                add(&self.counters.notices_known, 1);
                // Who listens here may know less than we do.
                let node = self.known(file);
                if node.as_ref().is_none_or(|node| !node.is_local()) {
                    let shown = node.map_or(*told, |node| node.state.lock().shown(told));
                    self.coherence.tell(&Change::Attributes(*file, Some(shown)));
                }
            }
            (Some(Verdict::News), Some(told)) => {
                let mut attr = *told;
                self.observe(file, &mut attr, self.ask());
                self.mark(file, false);
                self.coherence.tell(&Change::Attributes(*file, Some(attr)));
            }
            _ => {
                self.mark(file, true);
                self.ask_later(file);
            }
        }
    }

    /// What is known of a file is not what it is like. One in use is asked for at once: who has it open
    /// reads on without asking.
    fn ask_later(&self, file: &FileHandle) {
        let in_use = self.known(file).is_some();
        let Some(core) = self.this.upgrade().filter(|_| in_use) else {
            return self.coherence.tell(&Change::Attributes(*file, None));
        };
        let file = *file;
        self.runtime.spawn(async move {
            let attr = core.getattr(&core.own, &file).await.ok();
            core.coherence.tell(&Change::Attributes(file, attr));
        });
    }

    fn name_told(&self, dir: &FileHandle, name: &[u8], leads: &Leads) {
        let asked = self.coherence.asked.load(Ordering::Acquire);
        let own = self.index.node(dir).is_some_and(|known| known.changed_at > asked);
        let to = match leads {
            Leads::To(file, _) => Name::Here(*file),
            Leads::Nowhere => Name::Absent,
            Leads::Unknown => Name::Unknown,
        };
        let known = self.index.lookup(dir, name);
        // First: a change of ours may be answered just now.
        let clock = self.tick();
        self.index.update(dir, |known| known.told_at = clock);
        // What was asked before is not to be noted any more.
        self.index.dir_changed(dir);
        if to != Name::Unknown && known == to {
            add(&self.counters.notices_known, 1);
        } else {
            match to {
                Name::Here(file) if !own => self.index.set_name(dir, name, Some(file)),
                Name::Absent if !own => self.index.set_name(dir, name, None),
                _ => self.index.forget_name(dir, name),
            }
        }
        // Who listens here may know less than we do.
        self.coherence.ears.changed(&Change::Name(*dir, name.to_vec().into(), *leads));
        if let Leads::To(file, Some(attr)) = leads {
            self.attributes_told(file, Some(attr));
        }
    }
}

impl Core {
    /// Changes by others may have been lost: where they came beside ours, nothing else tells of them.
    fn distrust_own(&self) {
        let nodes: Vec<_> = self.nodes.iter().map(|node| node.value().clone()).collect();
        for node in nodes {
            // What is to be sent at leisure is compared with the server's before.
            let lazy = node.is_local() && self.treatment(&node).is_lazy();
            if !lazy && (node.is_local() || node.state.lock().changed_at != 0) {
                self.drop_data(&node.handle, None);
            }
        }
    }
}

impl Listener for Core {
    fn asking(&self) {
        self.coherence.asked.store(self.ask(), Ordering::Release);
    }

    fn changed(&self, change: &Change) {
        if self.settings.read().consistency != Consistency::Shared {
            return;
        }
        add(&self.counters.notices, 1);
        match change {
            Change::File(file, told) => self.data_told(file, told.as_ref()),
            Change::Attributes(file, told) => self.attributes_told(file, told.as_ref()),
            Change::Name(dir, name, leads) => self.name_told(dir, name, leads),
            Change::Names(dir) => {
                self.index.forget_dir(dir);
                self.coherence.ears.changed(change);
            }
            Change::Uncovered(file) => {
                self.mark(file, true);
                self.index.forget_dir(file);
                self.coherence.ears.changed(change);
            }
        }
    }

    fn covered(&self, coverage: &Coverage) {
        match coverage {
            Coverage::Partial(reason) => self.coherence.set(Some(reason)),
            Coverage::Resumed => self.coherence.set(None),
            Coverage::Whole => {
                add(&self.counters.notices_begun, 1);
                self.coherence.on.store(false, Ordering::Release);
                // Answers that are on their way were asked for before.
                self.coherence.began.store(self.tick(), Ordering::Release);
                self.index.forget_all();
                self.distrust_own();
                self.coherence.set(None);
            }
        }
        self.coherence.ears.covered(coverage);
    }
}

impl DiskCache {
    /// Says whether changes of others are heard of.
    pub fn coherence(&self) -> CoherenceStatus {
        let state = self.core.coherence.state.lock();
        let on = self.core.coherence.is_on()
            && self.core.settings.read().consistency == Consistency::Shared;
        CoherenceStatus {
            reason: (!on).then(|| state.reason.clone()),
            lasting: state.since.elapsed(),
        }
    }

    /// Has a listener told of changes, once what is known here has been brought in line with them.
    pub(super) fn add_listener(&self, listener: Weak<dyn Listener>) {
        self.core.coherence.ears.add(listener);
    }
}

#[cfg(test)]
mod tests {
    use gridvfs_vfs::{DeviceNumber, Time};

    use super::*;
    use crate::FileKey;

    fn attr(ctime: i64, size: u64) -> Attr {
        let time = |seconds| Time { seconds, nanoseconds: 0 };
        Attr {
            kind: FileKind::Regular,
            mode: 0o644,
            links: 1,
            uid: 0,
            gid: 0,
            size,
            used: 0,
            device: DeviceNumber::default(),
            fsid: 1,
            fileid: 1,
            atime: time(0),
            mtime: time(ctime),
            ctime: time(ctime),
        }
    }

    fn known(attr: Option<Attr>, learned: u64) -> Known {
        Known {
            attr,
            at: 0,
            key: FileKey(1),
            base: None,
            written: 0,
            changed_at: 0,
            asked: 0,
            learned,
            told_at: 0,
        }
    }

    #[test]
    fn what_is_told_and_what_is_answered_are_put_in_order() {
        let old = known(Some(attr(10, 1)), 5);
        // Learnt before the question was sent: what it brings is newer, whatever the server's clock says.
        assert_eq!(judge(&old, &attr(11, 2), 7, 0), Verdict::News);
        assert_eq!(judge(&old, &attr(9, 2), 7, 0), Verdict::News);
        // Learnt since: newer by the server's clock, or nobody knows.
        assert_eq!(judge(&old, &attr(11, 2), 4, 0), Verdict::News);
        assert_eq!(judge(&old, &attr(9, 2), 4, 0), Verdict::Unclear, "an older word, overtaken");
        assert_eq!(judge(&old, &attr(10, 2), 4, 0), Verdict::Unclear, "within a tick of its clock");
        // A change of our own since.
        assert_eq!(judge(&old, &attr(11, 2), 4, 6), Verdict::Unclear);
        assert_eq!(judge(&known(None, 0), &attr(11, 2), 4, 6), Verdict::Unclear);
        assert_eq!(judge(&known(None, 0), &attr(11, 2), 7, 6), Verdict::News);
        // Our own change comes back, or the file was read.
        assert_eq!(judge(&old, &attr(10, 1), 4, 6), Verdict::Same);
        let read = Attr { atime: Time { seconds: 99, nanoseconds: 0 }, ..attr(10, 1) };
        assert_eq!(judge(&old, &read, 7, 0), Verdict::Same);
    }

    #[test]
    fn what_was_asked_for_before_is_not_covered() {
        let coherence = Coherence::new(true);
        coherence.began.store(5, Ordering::Release);
        let fresh = |asked| Known { at: now_ms(), asked, ..known(Some(attr(1, 1)), 0) };
        assert!(!coherence.covers(&fresh(9)), "nothing is told");
        coherence.set(None);
        assert!(coherence.covers(&fresh(5)) && !coherence.covers(&fresh(4)));
        assert!(!coherence.covers(&Known { at: 1, ..fresh(9) }), "for too long");
        coherence.set(Some("why"));
        assert!(!coherence.covers(&fresh(9)));
    }
}
