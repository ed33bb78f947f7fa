//! Who is let in, and what each is shown.
//!
//! A [`Gate`] turns the key of a call into a [`Guest`], and a guest has exports. A session's daemon
//! has one guest; a standing proxy has as many as its key file has keys, and perhaps one more for
//! those who come without. A guest can be sent away while it is being served.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use gridvfs_vfs::xdr::Decoder;
use gridvfs_vfs::{FileHandle, HANDLE_BYTES_MAX, Vfs};
use tokio::sync::watch;

use crate::changes::Hub;
use crate::confine::Seal;
use crate::key::SessionKey;

/// What a guest may mount.
#[derive(Clone)]
pub struct Export {
    /// The path under which it is mounted (MOUNT protocol).
    pub path: Vec<u8>,
    /// The file system, as this guest sees it.
    pub vfs: Arc<dyn Vfs>,
    /// Whether its calls block their thread (the local directory's do).
    pub blocking: bool,
    /// What tells this export's handles from those of others; `None` if there is one export only.
    pub seal: Option<Arc<Seal>>,
    /// Tells clients of changes; `None` if nothing is known of them.
    pub changes: Option<Arc<Hub>>,
}

/// What a guest has asked for.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Channels that are open.
    pub channels: AtomicU64,
    /// Calls run, or answered from memory.
    pub calls: AtomicU64,
    /// Bytes of its calls.
    pub received_bytes: AtomicU64,
    /// Bytes of the replies.
    pub sent_bytes: AtomicU64,
}

/// Somebody who is let in.
pub struct Guest {
    name: String,
    traffic: Traffic,
    /// `None`: whoever comes.
    key: Option<SessionKey>,
    exports: Vec<Export>,
    revoked: watch::Sender<bool>,
}

impl Guest {
    /// Makes a guest who has a key, or who is anybody.
    pub fn new(name: impl Into<String>, key: Option<SessionKey>, exports: Vec<Export>) -> Self {
        let (name, traffic, revoked) = (name.into(), Traffic::default(), watch::Sender::new(false));
        Self { name, traffic, key, exports, revoked }
    }

    /// Returns the guest's name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what the guest has asked for.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Returns what the guest may mount.
    pub fn exports(&self) -> &[Export] {
        &self.exports
    }

    /// Says whether a call with this machine name (`None`: without an AUTH_SYS credential) is the
    /// guest's.
    pub fn matches(&self, machine_name: Option<&[u8]>) -> bool {
        let good = match (&self.key, machine_name) {
            (None, _) => true,
            (Some(key), Some(name)) => key.matches(name),
            (Some(_), None) => false,
        };
        good && !*self.revoked.borrow()
    }

    /// Says whether this is the guest's key.
    pub fn has_key(&self, key: &SessionKey) -> bool {
        self.key.as_ref().is_some_and(|own| own.matches(key.to_hex().as_bytes()))
    }

    /// Sends the guest away: no call is let in any more, and the guest's channels end.
    pub fn revoke(&self) {
        self.revoked.send_replace(true);
    }

    /// Resolves when the guest has been sent away.
    pub async fn revoked(&self) {
        let mut told = self.revoked.subscribe();
        let gone = told.wait_for(|revoked| *revoked).await.is_ok();
        if !gone {
            // Only when the guest is no more, and then nobody can wait here.
            std::future::pending::<()>().await;
        }
    }

    /// Returns the export that a call is about: all procedures of NFS and of the extension program
    /// begin with a file handle. `None`: no export of this guest gave that handle out.
    pub(crate) fn export_of(&self, arguments: &Bytes) -> Option<&Export> {
        if let [only] = &self.exports[..] {
            return Some(only);
        }
        let bytes = Decoder::new(arguments.clone()).opaque(HANDLE_BYTES_MAX).ok()?;
        let handle = FileHandle::new(&bytes)?;
        let owns = |export: &&Export| export.seal.as_ref().is_some_and(|seal| seal.is_of(&handle));
        self.exports.iter().find(owns)
    }
}

/// Lets guests in.
pub trait Gate: Send + Sync + 'static {
    /// Finds whose call carries this machine name (`None`: it has no AUTH_SYS credential).
    fn admit(&self, machine_name: Option<&[u8]>) -> Option<Arc<Guest>>;

    /// Says whether a key is asked for.
    fn is_keyed(&self) -> bool;
}

/// The gate of one guest: that of a session, or whoever can connect.
pub struct OneGuest(Arc<Guest>);

impl OneGuest {
    /// Makes a gate for the guest.
    pub fn new(guest: Guest) -> Self {
        Self::of(Arc::new(guest))
    }

    /// The same for one that is seen elsewhere, too.
    pub fn of(guest: Arc<Guest>) -> Self {
        Self(guest)
    }
}

impl Gate for OneGuest {
    fn admit(&self, machine_name: Option<&[u8]>) -> Option<Arc<Guest>> {
        self.0.matches(machine_name).then(|| self.0.clone())
    }

    fn is_keyed(&self) -> bool {
        self.0.key.is_some()
    }
}
