//! The guests of a standing proxy: one for each key of its key file, for as long as it is in there.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::gate::{Export, Gate, Guest};
use crate::key_file::{self, KeyFileError, NamedKey};

/// How often the file is looked at. A key that is revoked is refused within this time.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Says what the guest of a name is shown; `None`: nothing, its key is good for nothing.
pub type Shown = dyn Fn(&str) -> Option<Vec<Export>> + Send + Sync;

/// What tells one version of a file from another.
type Stamp = (u64, i64, i64, u64, u32);

fn stamp(meta: &Metadata) -> Stamp {
    (meta.ino(), meta.mtime(), meta.ctime_nsec(), meta.len(), meta.mode())
}

/// See the module's description.
pub struct KeyRing {
    path: PathBuf,
    shown: Box<Shown>,
    guests: RwLock<Arc<Vec<Arc<Guest>>>>,
    seen: Mutex<Option<Stamp>>,
}

impl KeyRing {
    /// Reads a key file for the first time.
    pub fn open(path: &Path, shown: Box<Shown>) -> Result<Arc<Self>, KeyFileError> {
        let ring =
            Self { path: path.into(), shown, guests: RwLock::default(), seen: Mutex::default() };
        ring.read()?;
        Ok(Arc::new(ring))
    }

    /// Reads the file. Whoever has the same key as before goes on undisturbed; whose key is there no
    /// more, or another, is sent away.
    fn read(&self) -> Result<String, KeyFileError> {
        // Before: what is written after it is a reason to look again.
        let seen = std::fs::metadata(&self.path).as_ref().map(stamp).ok();
        *self.seen.lock() = seen;
        let keys = key_file::read(&self.path)?;
        let before = self.guests.read().clone();
        let mut fresh = 0;
        let guests: Vec<Arc<Guest>> = keys
            .into_iter()
            .filter_map(|NamedKey { name, key }| {
                let known = before.iter().find(|known| known.name() == name && known.has_key(&key));
                known.cloned().or_else(|| {
                    fresh += 1;
                    Some(Arc::new(Guest::new(&*name, Some(key), (self.shown)(&name)?)))
                })
            })
            .collect();
        let gone: Vec<_> = before
            .iter()
            .filter(|guest| !guests.iter().any(|kept| Arc::ptr_eq(kept, guest)))
            .collect();
        let words = format!("{} keys: {fresh} new, {} revoked", guests.len(), gone.len());
        *self.guests.write() = Arc::new(guests);
        for guest in gone {
            log::info!("the key of {} is revoked", guest.name());
            guest.revoke();
        }
        Ok(words)
    }

    /// Returns those who have a key now.
    pub fn guests(&self) -> Arc<Vec<Arc<Guest>>> {
        self.guests.read().clone()
    }

    /// Reads the file again. One that cannot be read, or has an error in it, changes nothing.
    pub fn reload(&self) {
        match self.read() {
            Ok(words) => log::info!("{}: {words}", self.path.display()),
            Err(error) => log::error!("{error}; the keys stay as they were"),
        }
    }

    /// Reads the file again whenever it has changed.
    pub async fn follow(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let now = std::fs::metadata(&self.path).as_ref().map(stamp).ok();
            if now != *self.seen.lock() {
                self.reload();
            }
        }
    }
}

/// The gate of those who have a key.
pub struct KeyGate(pub Arc<KeyRing>);

impl Gate for KeyGate {
    fn admit(&self, machine_name: Option<&[u8]>) -> Option<Arc<Guest>> {
        let guests = self.0.guests.read().clone();
        // All are compared, so that how long it takes tells nothing.
        let mut found = None;
        for guest in guests.iter() {
            if guest.matches(machine_name) {
                found = Some(guest);
            }
        }
        found.cloned()
    }

    fn is_keyed(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_come_and_go_with_their_keys() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("keys");
        let (alice, bob) = (
            key_file::add(&path, "alice").expect("adds").to_hex(),
            key_file::add(&path, "bob").expect("adds").to_hex(),
        );
        let ring = KeyRing::open(&path, Box::new(|_| Some(Vec::new()))).expect("opens");
        let gate = KeyGate(ring.clone());
        let guest = gate.admit(Some(alice.as_bytes())).expect("let in");
        let other = gate.admit(Some(bob.as_bytes())).expect("let in");
        assert_eq!((guest.name(), other.name()), ("alice", "bob"));
        assert!(gate.admit(None).is_none() && gate.admit(Some(b"")).is_none());
        key_file::remove(&path, "alice").expect("removes");
        let again = key_file::add(&path, "alice").expect("adds").to_hex();
        ring.reload();
        assert!(gate.admit(Some(alice.as_bytes())).is_none(), "revoked");
        assert!(!guest.matches(Some(alice.as_bytes())), "on its channels too");
        assert!(gate.admit(Some(again.as_bytes())).is_some(), "its new key is good");
        assert!(Arc::ptr_eq(&other, &gate.admit(Some(bob.as_bytes())).expect("let in")));
        // An error changes nothing.
        std::fs::write(&path, "garbage").expect("writes");
        ring.reload();
        assert!(gate.admit(Some(bob.as_bytes())).is_some());
    }
}
