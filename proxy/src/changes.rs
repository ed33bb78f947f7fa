//! Changes told to clients (docs/decisions/0029): what each was given, and what of that has changed.
//!
//! A [`Hub`] belongs to an export. It hears of changes from the file system below ([`Vfs::listen`]) and,
//! where that does not see them, from the calls that pass ([`Attentive`]). Each client that has asked
//! CHANGES once has a [`Client`] here: digests of the handles that it was given, and what is to be told.
//! What is told is looked up when it is told, by the client's own right, so that nobody learns anything
//! that it could not have asked for.
//!
//! Limits: [`GIVEN_MAX`] handles and [`PENDING_MAX`] changes for each client; beyond them the client is
//! told that changes are lost, and asks again for what it needs. [`CLIENTS_MAX`] clients.

mod attentive;

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
/// The last changes, which a call that is just being answered may have missed.
const RECENT_MAX: usize = 1024;
/// At least this long between two answers, so that a file that is being written is told of some
/// hundred times a second at most.
const ANSWER_INTERVAL: Duration = Duration::from_millis(5);

/// What is to be told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Item {
    File(FileHandle),
    Uncovered(FileHandle),
    Name(FileHandle, Bytes),
    Names(FileHandle),
}

impl Item {
    fn subject(&self) -> &FileHandle {
        match self {
            Self::File(file) | Self::Uncovered(file) => file,
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
    /// Calls that pass are told, too: the source does not see them.
    in_process: bool,
    /// All changes pass here: somebody has said so.
    exclusive: bool,
    begun: AtomicBool,
    /// The number of the last change.
    newest: AtomicU64,
    recent: Mutex<VecDeque<(u64, Item)>>,
    /// Why not all changes are told; empty: all are.
    reason: RwLock<String>,
    clients: RwLock<HashMap<ClientId, Arc<Client>>>,
    hasher: RandomState,
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
    /// By the hash of each handle that was given: the digest of the attributes that a change of the
    /// client's own, or the last word about it, has left; 0: any may be.
    given: HashMap<u64, u64>,
    /// The same of names: what the client's own change has made them lead to.
    own_names: HashMap<u64, u64>,
    pending: HashSet<Item>,
    /// What the last answer told; the client may not have it yet.
    sent: HashSet<Item>,
    lost: bool,
    reason: String,
    asked_at: Instant,
    answered_at: Option<Instant>,
}

impl State {
    fn add(&mut self, item: Item) {
        if self.lost {
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
        self.sent.clear();
        self.given.clear();
        self.own_names.clear();
    }
}

impl Hub {
    /// Makes the hub of an export. `source`: what changes are heard from, whose handles are sealed by
    /// `seal` on their way to clients. `in_process`: the source does not hear of what clients of this
    /// process do by itself. `exclusive`: nobody changes the files in any other way.
    pub fn new(
        source: Arc<dyn Vfs>,
        seal: Option<Arc<Seal>>,
        in_process: bool,
        exclusive: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            source,
            seal,
            in_process,
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

    /// Of what tells one state of a file from another; reading it changes nothing of that.
    fn digest(&self, attr: &Attr) -> u64 {
        let Attr { kind, mode, links, uid, gid, size, fileid, mtime, ctime, .. } = *attr;
        self.hash(&((kind, mode, links, uid, gid), (size, fileid, mtime, ctime))) | 1
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

    /// Says whether calls have to be looked at.
    pub(crate) fn is_used(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// The number of the last change: to be read before a call whose answer gives something.
    fn now(&self) -> u64 {
        self.newest.load(Ordering::SeqCst)
    }

    /// Tells all clients but the one whose change it is.
    fn tell(&self, item: &Item, by: Option<&Arc<Client>>) {
        {
            let mut recent = self.recent.lock();
            let number = self.newest.fetch_add(1, Ordering::SeqCst) + 1;
            if recent.len() >= RECENT_MAX {
                recent.pop_front();
            }
            recent.push_back((number, item.clone()));
        }
        let subject = self.hash(item.subject());
        for client in self.clients.read().values() {
            if by.is_some_and(|by| Arc::ptr_eq(by, client)) {
                continue;
            }
            let mut state = client.state.lock();
            if state.given.contains_key(&subject) {
                state.add(item.clone());
                drop(state);
                client.wake.notify_one();
            }
        }
    }

    /// Notes what an answer gives a client; the call began when the last change was `since`. `own`: the
    /// attributes are what the client's own change has left.
    fn give(&self, client: &Client, file: &FileHandle, own: Option<&Attr>, since: u64) {
        let key = self.hash(file);
        let mut state = client.state.lock();
        if state.given.len() >= GIVEN_MAX && !state.given.contains_key(&key) {
            state.lose();
            client.wake.notify_one();
        }
        // While a word about the file is on its way, what comes first is anybody's guess.
        let digest = match own {
            Some(attr) if !state.sent.contains(&Item::File(*file)) => Some(self.digest(attr)),
            Some(_) => Some(0),
            None => None,
        };
        let told = state.given.entry(key).or_insert(0);
        if let Some(digest) = digest {
            *told = digest;
        }
        if self.now() == since {
            return;
        }
        let recent = self.recent.lock();
        let missed = recent.front().is_none_or(|(first, _)| *first > since + 1);
        let before = state.pending.len();
        if missed {
            state.add(Item::File(*file));
            state.add(Item::Names(*file));
        }
        for (_, item) in recent.iter().rev().take_while(|(number, _)| *number > since) {
            if item.subject() == file {
                state.add(item.clone());
            }
        }
        if state.pending.len() != before || state.lost {
            client.wake.notify_one();
        }
    }

    /// Notes what a client's own change has made a name lead to.
    fn give_name(&self, client: &Client, dir: &FileHandle, name: &[u8], to: Option<&FileHandle>) {
        let mut state = client.state.lock();
        if state.own_names.len() >= PENDING_MAX {
            state.own_names.clear();
        }
        let leads = to.map_or(0, |to| self.hash(to));
        state.own_names.insert(self.hash(&(dir, name)), leads);
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
                    for item in sent {
                        let key = self.hash(item.subject());
                        state.given.entry(key).and_modify(|told| *told = 0);
                        state.add(item);
                    }
                }
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
            given: HashMap::new(),
            own_names: HashMap::new(),
            pending: HashSet::new(),
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

    /// Looks up what is to be told; `None` if there turns out to be nothing.
    async fn gather(&self, client: &Client, vfs: &dyn Vfs, caller: &Caller) -> Option<Changes> {
        let (items, lost) = {
            let mut state = client.state.lock();
            let lost = std::mem::take(&mut state.lost);
            let items: Vec<Item> = state.pending.iter().take(CHANGES_MAX).cloned().collect();
            for item in &items {
                state.pending.remove(item);
                // From here on an answer that overtakes ours is known to.
                state.sent.insert(item.clone());
            }
            (items, lost)
        };
        let mut told = Vec::new();
        for item in &items {
            told.extend(self.look(client, item, vfs, caller).await);
        }
        let reason = self.reason.read().clone();
        if told.is_empty() && !lost && client.state.lock().reason == reason {
            client.state.lock().sent.clear();
            return None;
        }
        client.state.lock().reason = reason;
        Some(client.answered(told, lost))
    }

    async fn look(
        &self,
        client: &Client,
        item: &Item,
        vfs: &dyn Vfs,
        caller: &Caller,
    ) -> Option<Change> {
        match item {
            Item::File(file) => {
                let attr = vfs.getattr(caller, file).await;
                let key = self.hash(file);
                let mut state = client.state.lock();
                match attr {
                    Ok(attr) => {
                        let digest = self.digest(&attr);
                        let told = state.given.entry(key).or_insert(0);
                        let known = std::mem::replace(told, digest) == digest;
                        (!known).then_some(Change::File(*file, Some(attr)))
                    }
                    Err(_) => {
                        state.given.remove(&key);
                        Some(Change::File(*file, None))
                    }
                }
            }
            Item::Name(dir, name) => {
                let since = self.now();
                let leads = match vfs.lookup(caller, dir, name).await {
                    Ok(entry) => Leads::To(entry.handle, entry.attr),
                    Err(error) if error.status() == Status::NOENT => Leads::Nowhere,
                    // It may not even know the name.
                    Err(_) => return Some(Change::Names(*dir)),
                };
                let to = match &leads {
                    Leads::To(file, _) => self.hash(file),
                    _ => 0,
                };
                let own = client.state.lock().own_names.remove(&self.hash(&(dir, &name[..])));
                if own == Some(to) {
                    return None;
                }
                if let Leads::To(file, _) = &leads {
                    self.give(client, file, None, since);
                }
                Some(Change::Name(*dir, name.clone(), leads))
            }
            Item::Names(dir) => Some(Change::Names(*dir)),
            Item::Uncovered(file) => Some(Change::Uncovered(*file)),
        }
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
            Change::Name(_, name, _) => Item::Name(subject, name.clone()),
            Change::Names(_) => Item::Names(subject),
            Change::Uncovered(_) => Item::Uncovered(subject),
        };
        self.tell(&item, None);
        if let Change::Name(_, _, Leads::To(file, Some(_))) = change
            && let Some(file) = self.outer(file)
        {
            self.tell(&Item::File(file), None);
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

/// For calls that are looked at by nobody: nothing is told.
pub(crate) fn attentive(hub: Option<&Arc<Hub>>, vfs: &Arc<dyn Vfs>, id: ClientId) -> Arc<dyn Vfs> {
    let Some(hub) = hub.filter(|hub| hub.is_used()) else { return vfs.clone() };
    let client = hub.client(id);
    if client.is_none() && !hub.in_process {
        return vfs.clone();
    }
    Arc::new(Attentive::new(vfs.clone(), hub.clone(), client))
}

#[cfg(test)]
mod tests;
