//! A mounted session: the event loops, and what goes on beside them.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Weak};

use fuser::{Config, Notifier, SessionACL};
use gridvfs_vfs::{Listener, Vfs};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::callers::Callers;
use crate::core::{Core, Invalidation};
use crate::counters::Counters;
use crate::front::Front;
use crate::options::SessionOptions;
use crate::pending::Pending;
use crate::silly::SillyLog;
use crate::traffic::BusyFile;

/// What the kernel asks of a session.
#[derive(Clone)]
pub struct Activity {
    /// Counts of requests.
    pub counters: Arc<Counters>,
    core: Weak<Core>,
}

impl Activity {
    /// Returns the files with the most bytes read and written, as far as the kernel knows them: all
    /// inodes are looked through.
    pub fn busiest(&self, count: usize) -> Vec<BusyFile> {
        self.core.upgrade().map_or_else(Vec::new, |core| core.inodes.busiest(count))
    }
}

/// A session between the kernel and a [`Vfs`].
pub struct Session {
    inner: fuser::Session<Front>,
    core: Arc<Core>,
    counters: Arc<Counters>,
    watch: AbortHandle,
}

impl Session {
    /// Answers the kernel's first request on a descriptor from [`crate::mount`]. With `silly_log`,
    /// the files that a killed process has left hidden are removed.
    pub fn new(
        device: OwnedFd,
        vfs: Arc<dyn Vfs>,
        runtime: Handle,
        options: SessionOptions,
        silly_log: Option<&Path>,
    ) -> std::io::Result<Self> {
        let mut config = Config::default();
        config.n_threads = Some(options.event_loops.max(1));
        // The kernel itself keeps other users out, unless allow_other was given.
        let acl = SessionACL::All;
        let log = silly_log.map(SillyLog::open);
        let (invalidations, receiver) = mpsc::unbounded_channel();
        let core = Arc::new(Core::new(vfs.clone(), runtime.clone(), options, invalidations, log));
        if core.silly_log.is_some() {
            let core = core.clone();
            runtime.spawn(async move {
                let own = Core::own_caller();
                if let Some(log) = &core.silly_log {
                    log.clean(&*core.vfs, &own).await;
                }
            });
        }
        if core.options.listens {
            let listener: Arc<dyn Listener> = core.clone();
            vfs.listen(Arc::downgrade(&listener));
        }
        let pending = Arc::new(Pending::default());
        let counters = Arc::new(Counters::default());
        let front = Front {
            core: core.clone(),
            pending: pending.clone(),
            callers: Callers::new(),
            counters: counters.clone(),
        };
        let inner = fuser::Session::from_fd(front, device, acl, config)?;
        let notifier = inner.notifier();
        std::thread::Builder::new()
            .name("invalidate".into())
            .spawn(move || invalidate(&notifier, receiver))?;
        let watch = runtime.spawn(pending.watch()).abort_handle();
        Ok(Self { inner, core, counters, watch })
    }

    /// Returns what tells of requests and files while the session is served.
    pub fn activity(&self) -> Activity {
        Activity { counters: self.counters.clone(), core: Arc::downgrade(&self.core) }
    }

    /// Serves until unmounted. What layers below hold is theirs to write back.
    pub fn run(self) -> std::io::Result<()> {
        let Self { inner, core, watch, .. } = self;
        let result = inner.run();
        watch.abort();
        core.runtime.block_on(core.remove_all_hidden());
        result
    }
}

/// Tells the kernel to drop pages. On a thread of its own: the kernel may wait here for requests
/// that the event loops are to answer.
fn invalidate(notifier: &Notifier, mut receiver: mpsc::UnboundedReceiver<Invalidation>) {
    while let Some(invalidation) = receiver.blocking_recv() {
        let (number, result) = match &invalidation {
            Invalidation::Pages(number, _) => {
                (*number, notifier.inval_inode(fuser::INodeNo(*number), 0, 0))
            }
            // From a place before its start: no page at all.
            Invalidation::Attributes(number) => {
                (*number, notifier.inval_inode(fuser::INodeNo(*number), -1, 0))
            }
            Invalidation::Name(number, name) => {
                let name = OsStr::from_bytes(name);
                (*number, notifier.inval_entry(fuser::INodeNo(*number), name))
            }
        };
        if let Err(error) = result
            && error.raw_os_error() != Some(libc::ENOENT)
        {
            log::debug!("cannot invalidate inode {number}: {error}");
        }
        if let Invalidation::Pages(_, Some(done)) = invalidation {
            let _ = done.send(());
        }
    }
}
