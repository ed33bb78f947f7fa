//! Changes told to clients (docs/decisions/0029): what each was given, and what of that has changed.
//!
//! A [`Hub`] belongs to an export. It hears of changes that are made elsewhere from the file system below
//! ([`Vfs::listen`]), and of those that its clients make from the calls that pass ([`Attentive`]), which
//! say whose they are: a client is told of all but its own. Each client that has asked CHANGES once has
//! a [`Client`] here: which handles it was given, and what is to be told. What is told is looked up when
//! it is told, by the client's own right, so that nobody learns anything that it could not have asked for.
//!
//! Limits: [`GIVEN_MAX`] handles and [`PENDING_MAX`] changes for each client; beyond them the client is
//! told that changes are lost, and asks again for what it needs. [`CLIENTS_MAX`] clients.

mod attentive;

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gridvfs_vfs::ext::{CHANGES_MAX, Changes, ChangesArgs, HOLD_MAX, Reason, Told};
use gridvfs_vfs::{
    Attr, Caller, Change, Coverage, FileHandle, Leads, Listener, Result, Status, Vfs,
};
use parking_lot::{Mutex, RwLock};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::Notify;

use crate::confine::Seal;

pub(crate) use attentive::Attentive;

/// The most handles that are remembered of a client, of 16 bytes each.
const GIVEN_MAX: usize = 128 * 1024;
/// The most changes that wait to be told to a client.
const PENDING_MAX: usize = 8 * 1024;
/// The most clients of an export that are told.
const CLIENTS_MAX: usize = 1024;
/// A client that has not asked for this long is gone.
const CLIENT_LIFE: Duration = Duration::from_secs(120);
/// The last changes, which a call that is just being answered may have missed: as many as are made while
/// a disk takes its time for a COMMIT.
const RECENT_MAX: usize = 16 * 1024;
/// At least this long between two answers, so that a file that is being written is told of some
/// hundred times a second at most.
const ANSWER_INTERVAL: Duration = Duration::from_millis(5);

/// What is to be told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Item {
    File(FileHandle),
    Attributes(FileHandle),
    Uncovered(FileHandle),
    Name(FileHandle, Bytes),
    Names(FileHandle),
}

impl Item {
    fn subject(&self) -> &FileHandle {
        match self {
            Self::File(file) | Self::Attributes(file) | Self::Uncovered(file) => file,
            Self::Name(dir, _) | Self::Names(dir) => dir,
        }
    }
}

/// Who is a client: whose key it has, and the stamp of its credentials.
type ClientId = (usize, u32);

/// See the module's description.
pub struct Hub {
    source: Arc<dyn Vfs>,
    /// Between the handles of the source and those of clients.
    seal: Option<Arc<Seal>>,
    /// All changes pass here: somebody has said so.
    exclusive: bool,
    begun: AtomicBool,
    /// The number of the last change.
    newest: AtomicU64,
    recent: Mutex<VecDeque<Recent>>,
    /// Why not all changes are told; empty: all are.
    reason: RwLock<String>,
    clients: RwLock<HashMap<ClientId, Arc<Client>>>,
    hasher: RandomState,
}

/// A change that was told, and whose it was, if a client's.
struct Recent {
    number: u64,
    item: Item,
    by: Weak<Client>,
}

/// A client that is told of changes.
pub(crate) struct Client {
    state: Mutex<State>,
    wake: Notify,
    /// The call that is held now.
    turn: AtomicU64,
}

struct State {
    period: u64,
    number: u64,
    /// The hash of each handle that was given.
    given: HashSet<u64>,
    pending: HashSet<Item>,
    /// What is being looked up for an answer.
    looked_up: HashSet<Item>,
    /// What the last answer told; the client may not have it yet.
    sent: HashSet<Item>,
    lost: bool,
    reason: String,
    asked_at: Instant,
    answered_at: Option<Instant>,
}

impl State {
    fn add(&mut self, item: Item) {
        let is_said = match &item {
            Item::File(file) => {
                self.pending.remove(&Item::Attributes(*file));
                false
            }
            Item::Attributes(file) => self.pending.contains(&Item::File(*file)),
            _ => false,
        };
        if self.lost || is_said {
            return;
        }
        if self.pending.len() >= PENDING_MAX {
            self.lose();
        } else {
            self.pending.insert(item);
        }
    }

    /// Gives up telling what has changed one by one.
    fn lose(&mut self) {
        self.lost = true;
        self.pending.clear();
        self.looked_up.clear();
        self.sent.clear();
        self.given.clear();
    }
}

impl Hub {
    /// Makes the hub of an export. `source`: what changes are heard from that are made elsewhere, whose
    /// handles are sealed by `seal` on their way to clients. `exclusive`: nobody changes the files but
    /// by calls that pass here.
    pub fn new(source: Arc<dyn Vfs>, seal: Option<Arc<Seal>>, exclusive: bool) -> Arc<Self> {
        Arc::new(Self {
            source,
            seal,
            exclusive,
            begun: AtomicBool::new(false),
            newest: AtomicU64::new(0),
            recent: Mutex::default(),
            reason: RwLock::new(match exclusive {
                true => String::new(),
                false => "nothing tells the proxy of changes".into(),
            }),
            clients: RwLock::default(),
            hasher: RandomState::new(),
        })
    }

    fn hash(&self, value: &impl Hash) -> u64 {
        self.hasher.hash_one(value)
    }

    /// Returns the client that a call is from, if it is one that is told of changes.
    pub(crate) fn client(&self, id: ClientId) -> Option<Arc<Client>> {
        self.clients.read().get(&id).cloned()
    }

    /// Says whether there are others than this one who may want to know of its changes.
    fn has_others(&self, client: Option<&Arc<Client>>) -> bool {
        let clients = self.clients.read();
        clients.values().any(|other| client.is_none_or(|client| !Arc::ptr_eq(client, other)))
    }

    /// The number of the last change: to be read before a call whose answer gives something.
    fn now(&self) -> u64 {
        self.newest.load(Ordering::SeqCst)
    }

    /// Tells all clients but the one whose change it is.
    fn tell(&self, item: &Item, by: Option<&Arc<Client>>) {
        if !self.has_others(by) {
            return;
        }
        {
            let mut recent = self.recent.lock();
            let number = self.newest.fetch_add(1, Ordering::SeqCst) + 1;
            if recent.len() >= RECENT_MAX {
                recent.pop_front();
            }
            let by = by.map(Arc::downgrade).unwrap_or_default();
            recent.push_back(Recent { number, item: item.clone(), by });
        }
        let subject = self.hash(item.subject());
        for client in self.clients.read().values() {
            if by.is_some_and(|by| Arc::ptr_eq(by, client)) {
                continue;
            }
            let mut state = client.state.lock();
            if state.given.contains(&subject) {
                state.add(item.clone());
                drop(state);
                client.wake.notify_one();
            }
        }
    }

    /// Notes what an answer gives a client; the call began when the last change was `since`.
    fn give(&self, client: &Client, file: &FileHandle, since: u64) {
        let key = self.hash(file);
        let mut state = client.state.lock();
        if state.given.len() >= GIVEN_MAX && !state.given.contains(&key) {
            state.lose();
            client.wake.notify_one();
        }
        state.given.insert(key);
        if self.now() == since {
            return;
        }
        let recent = self.recent.lock();
        let missed = recent.front().is_none_or(|first| first.number > since + 1);
        let before = state.pending.len();
        if missed {
            state.add(Item::File(*file));
            state.add(Item::Names(*file));
        }
        for Recent { item, by, .. } in recent.iter().rev().take_while(|it| it.number > since) {
            if item.subject() == file && !std::ptr::eq(by.as_ptr(), client) {
                state.add(item.clone());
            }
        }
        if state.pending.len() != before || state.lost {
            client.wake.notify_one();
        }
    }

    /// Answers CHANGES: as soon as there is something to tell. `None`: the client has asked again
    /// meanwhile. `vfs` is the export as the client sees it, `blocking` whether its calls are.
    pub(crate) async fn answer(
        self: &Arc<Self>,
        id: ClientId,
        caller: Caller,
        vfs: Arc<dyn Vfs>,
        blocking: bool,
        args: &ChangesArgs,
    ) -> Option<Result<Changes>> {
        if !self.begun.swap(true, Ordering::AcqRel) {
            let listener: Arc<dyn Listener> = self.clone();
            self.source.listen(Arc::downgrade(&listener));
        }
        let client = match self.known(id, args) {
            Ok(client) => client,
            Err(answer) => return Some(answer),
        };
        let turn = client.turn.fetch_add(1, Ordering::AcqRel) + 1;
        client.wake.notify_one();
        let until = Instant::now() + HOLD_MAX.min(Duration::from_millis(args.hold_ms.into()));
        loop {
            if client.turn.load(Ordering::Acquire) != turn {
                client.wake.notify_one();
                return None;
            }
            let (ready, due) = {
                let state = client.state.lock();
                let ready =
                    state.lost || !state.pending.is_empty() || state.reason != *self.reason.read();
                (ready, state.answered_at.map(|at| at + ANSWER_INTERVAL))
            };
            let over = Instant::now() >= until;
            if ready
                && !over
                && let Some(due) = due.filter(|due| *due > Instant::now())
            {
                tokio::time::sleep_until(due.into()).await;
                continue;
            }
            if !ready && !over {
                let _ = tokio::time::timeout_at(until.into(), client.wake.notified()).await;
                continue;
            }
            let (hub, of, vfs, caller) =
                (self.clone(), client.clone(), vfs.clone(), caller.clone());
            let gathering = async move { hub.gather(&of, &*vfs, &caller).await };
            let changes = match blocking {
                true => {
                    let runtime = tokio::runtime::Handle::current();
                    tokio::task::spawn_blocking(move || runtime.block_on(gathering)).await
                }
                false => Ok(gathering.await),
            };
            match changes {
                Ok(Some(changes)) => return Some(Ok(changes)),
                Ok(None) if over => return Some(Ok(client.answered(Vec::new(), false))),
                Ok(None) => {}
                Err(_) => return Some(Err(Status::SERVERFAULT.into())),
            }
        }
    }

    /// Finds who asks. One who is new, or has another period, is told that at once.
    fn known(
        &self,
        id: ClientId,
        args: &ChangesArgs,
    ) -> std::result::Result<Arc<Client>, Result<Changes>> {
        if let Some(client) = self.client(id) {
            let mut state = client.state.lock();
            if state.period == args.period {
                state.asked_at = Instant::now();
                let sent = std::mem::take(&mut state.sent);
                if state.number != args.heard {
                    // The answer was lost on its way.
                    sent.into_iter().for_each(|item| state.add(item));
                }
                // So will be one that is still being made: its question was given up.
                let looked_up = std::mem::take(&mut state.looked_up);
                looked_up.into_iter().for_each(|item| state.add(item));
                drop(state);
                return Ok(client);
            }
        }
        let mut period = [0; 8];
        if SystemRandom::new().fill(&mut period).is_err() {
            return Err(Err(Status::SERVERFAULT.into()));
        }
        let reason = self.reason.read().clone();
        let state = State {
            period: u64::from_ne_bytes(period) | 1,
            number: 1,
            given: HashSet::new(),
            pending: HashSet::new(),
            looked_up: HashSet::new(),
            sent: HashSet::new(),
            lost: false,
            reason: reason.clone(),
            asked_at: Instant::now(),
            answered_at: None,
        };
        let changes = Changes {
            period: state.period,
            number: 1,
            lost: false,
            reason: Reason(reason),
            told: Told::default(),
        };
        let client =
            Arc::new(Client { state: Mutex::new(state), wake: Notify::new(), turn: 0.into() });
        let mut clients = self.clients.write();
        clients.retain(|_, client| client.state.lock().asked_at.elapsed() < CLIENT_LIFE);
        if clients.len() >= CLIENTS_MAX && !clients.contains_key(&id) {
            return Err(Err(Status::NOTSUPP.into()));
        }
        if let Some(before) = clients.insert(id, client) {
            // A call that it holds ends.
            before.turn.fetch_add(1, Ordering::AcqRel);
            before.wake.notify_one();
        }
        Err(Ok(changes))
    }

    /// Looks up what is to be told; `None` if there is nothing.
    async fn gather(&self, client: &Client, vfs: &dyn Vfs, caller: &Caller) -> Option<Changes> {
        let (items, lost) = {
            let mut state = client.state.lock();
            let lost = std::mem::take(&mut state.lost);
            let items: Vec<Item> = state.pending.iter().take(CHANGES_MAX).cloned().collect();
            for item in &items {
                state.pending.remove(item);
                state.looked_up.insert(item.clone());
            }
            (items, lost)
        };
        let mut told = Vec::new();
        for item in &items {
            told.push(self.look(client, item, vfs, caller).await);
        }
        let reason = self.reason.read().clone();
        if told.is_empty() && !lost && client.state.lock().reason == reason {
            return None;
        }
        client.state.lock().reason = reason;
        Some(client.answered(told, lost))
    }

    /// Looks up what has become of an item. That it is as the client may know it is no reason to keep
    /// it back: the answer to a change of the client's own may have had the attributes that another's
    /// left, and two changes may leave the same.
    async fn look(&self, client: &Client, item: &Item, vfs: &dyn Vfs, caller: &Caller) -> Change {
        match item {
            Item::File(file) => Change::File(*file, self.attr(client, file, vfs, caller).await),
            Item::Attributes(file) => {
                Change::Attributes(*file, self.attr(client, file, vfs, caller).await)
            }
            Item::Name(dir, name) => {
                let since = self.now();
                let leads = match vfs.lookup(caller, dir, name).await {
                    Ok(entry) => Leads::To(entry.handle, entry.attr),
                    Err(error) if error.status() == Status::NOENT => Leads::Nowhere,
                    // It may not even know the name.
                    Err(_) => return Change::Names(*dir),
                };
                if let Leads::To(file, _) = &leads {
                    self.give(client, file, since);
                }
                Change::Name(*dir, name.clone(), leads)
            }
            Item::Names(dir) => Change::Names(*dir),
            Item::Uncovered(file) => Change::Uncovered(*file),
        }
    }

    async fn attr(
        &self,
        client: &Client,
        file: &FileHandle,
        vfs: &dyn Vfs,
        caller: &Caller,
    ) -> Option<Attr> {
        let since = self.now();
        // Before: the answer to a call of the client's may give it again meanwhile.
        client.state.lock().given.remove(&self.hash(file));
        let attr = vfs.getattr(caller, file).await.ok()?;
        self.give(client, file, since);
        Some(attr)
    }

    /// A handle of the source's as clients know it.
    fn outer(&self, file: &FileHandle) -> Option<FileHandle> {
        match &self.seal {
            Some(seal) => seal.sealed_handle(file),
            None => Some(*file),
        }
    }
}

impl Client {
    fn answered(&self, told: Vec<Change>, lost: bool) -> Changes {
        let mut state = self.state.lock();
        state.number += 1;
        let State { looked_up, sent, .. } = &mut *state;
        sent.extend(looked_up.drain());
        state.answered_at = Some(Instant::now());
        Changes {
            period: state.period,
            number: state.number,
            lost,
            reason: Reason(state.reason.clone()),
            told: Told(told),
        }
    }
}

impl Listener for Hub {
    fn changed(&self, change: &Change) {
        let Some(subject) = self.outer(change.subject()) else { return };
        let item = match change {
            Change::File(..) => Item::File(subject),
            Change::Attributes(..) => Item::Attributes(subject),
            Change::Name(_, name, _) => Item::Name(subject, name.clone()),
            Change::Names(_) => Item::Names(subject),
            Change::Uncovered(_) => Item::Uncovered(subject),
        };
        self.tell(&item, None);
        if let Change::Name(_, _, Leads::To(file, Some(_))) = change
            && let Some(file) = self.outer(file)
        {
            self.tell(&Item::Attributes(file), None);
        }
    }

    fn covered(&self, coverage: &Coverage) {
        let reason = match coverage {
            Coverage::Partial(reason) => reason.clone(),
            Coverage::Whole | Coverage::Resumed => String::new(),
        };
        let lost = *coverage == Coverage::Whole;
        *self.reason.write() = if self.exclusive { String::new() } else { reason };
        for client in self.clients.read().values() {
            if lost {
                client.state.lock().lose();
            }
            client.wake.notify_one();
        }
    }
}

/// The export as a client of it calls it, so that the hub learns of its calls. Also while nobody asks
/// for changes: somebody may before a call ends.
pub(crate) fn attentive(hub: Option<&Arc<Hub>>, vfs: &Arc<dyn Vfs>, id: ClientId) -> Arc<dyn Vfs> {
    let Some(hub) = hub else { return vfs.clone() };
    Arc::new(Attentive::new(vfs.clone(), hub.clone(), hub.client(id)))
}

#[cfg(test)]
mod tests;
