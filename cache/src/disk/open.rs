//! Opening a cache: what it belongs to, what may be believed of it, and what is still to be sent.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use dashmap::DashMap;
use gridvfs_vfs::{Caller, FileHandle, Vfs};
use lru::LruCache;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};

use super::below::NameLayer;
use super::coherence::Coherence;
use super::left::{JOURNAL, Left};
use super::look_again;
use super::options::{AtEnd, Consistency, DiskOptions, Policy};
use super::pending::{Queue, is_ours};
use super::{
    Core, DiskCache, PLACES_MAX, SENDING_MAX, Unsent, WALK_READS_MAX, deliver, now_ms, recover,
};
use crate::BufferLayer;
use crate::blocks::Blocks;
use crate::index::{Index, IndexError, IndexOptions};
use crate::journal::{Journal, JournalError, Record, RecoveredFile};
use crate::store::{Store, StoreError};

/// Why a cache cannot be opened. Nothing in it has been changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The block store's reason.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal's reason.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The index's reason.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The server's reason: it was asked for its limits.
    #[error(transparent)]
    Server(#[from] gridvfs_vfs::Error),
    /// A file of the cache's own cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The disk's error.
        source: std::io::Error,
    },
    /// The cache has unsent data for another export than the one that the source leads to now.
    #[error(
        "{} has unsent data of another export than the source leads to now; \
         mount what it was made for, or remove the directory to drop the data", path.display()
    )]
    OtherExport {
        /// The cache's directory.
        path: PathBuf,
    },
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
    let path = path.to_path_buf();
    move |source| OpenError::Io { path, source }
}

/// What the cache was made for, when its machine was started, and up to where it is safe from a power
/// loss: four lines of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    root: String,
    boot: String,
    /// The period of the store: from one time that it is made durable to the next.
    pub period: u64,
    /// All changes up to the end of this period are durable.
    pub safe: u64,
}

impl Origin {
    fn now(root: &FileHandle) -> Self {
        // A machine that does not tell is taken to have been started anew each time.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let boot = boot.unwrap_or_else(|_| format!("unknown-{}", now_ms()));
        Self { root: format!("{root:?}"), boot: boot.trim().into(), period: 1, safe: 0 }
    }

    fn read(path: &Path) -> Result<Option<Self>, OpenError> {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let mut lines = text.lines();
                let mut line = || lines.next().unwrap_or_default().to_string();
                let (root, boot) = (line(), line());
                let mut number = || line().parse().unwrap_or(0);
                Ok(Some(Self { root, boot, period: number(), safe: number() }))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error(path)(error)),
        }
    }

    pub fn write(&self, path: &Path) -> Result<(), OpenError> {
        let draft = path.with_extension("draft");
        let Self { root, boot, period, safe } = self;
        std::fs::write(&draft, format!("{root}\n{boot}\n{period}\n{safe}\n"))
            .and_then(|()| std::fs::File::open(&draft)?.sync_all())
            .and_then(|()| std::fs::rename(&draft, path))
            .map_err(io_error(path))
    }
}

/// Says if a part of a cache cannot be written to, before anything is done that needs it: segments and
/// banks are made when they are needed, which is too late to be told.
fn check_writable(dir: &Path) -> Result<(), OpenError> {
    let parts = ["journal", "store", "store/banks"].map(|part| dir.join(part));
    for path in std::iter::once(dir.to_path_buf()).chain(parts) {
        match access(&path, AccessFlags::W_OK | AccessFlags::X_OK) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(io_error(&path)(error.into())),
        }
    }
    Ok(())
}

/// Drops what is pending of files that were made here and of which nothing else is known: a power
/// loss took the record that made them, and nobody had been promised it. If the disk has lost
/// something that it had promised, unsent data stays, and will be found in conflict.
fn drop_unknown(
    journal: &Journal,
    queue: &mut Queue,
    files: &mut HashMap<FileHandle, RecoveredFile>,
    synced_damage: bool,
) {
    let changes = queue.drop_unknown();
    if changes > 0 {
        log::warn!("{changes} changes of names did not reach the disk in time");
    }
    let unknown = |handle: &FileHandle| {
        is_ours(handle) && queue.server(handle).is_none() && queue.created(handle).is_none()
    };
    files.retain(|handle, file| {
        // One that is being removed is dropped by whoever is to send it.
        if synced_damage || !unknown(handle) {
            return true;
        }
        let record = Record::Removed { handle: *handle };
        if let Err(error) = journal.append(&record) {
            log::warn!("cannot write to the journal: {error}");
            return true;
        }
        journal.release_all(&file.dirty.clear());
        false
    });
}

/// Removes the empty journals of sessions that shared a cache and were killed.
fn remove_dead_journals(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix("journal-"));
        if let Some(Ok(number)) = process.map(str::parse::<u32>)
            && !Path::new(&format!("/proc/{number}")).exists()
        {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

impl DiskCache {
    /// Says how much unsent data a directory's cache holds. Nothing is changed in it; it must not be
    /// in use. Blocks the calling thread while the disk works.
    ///
    /// # Errors
    /// Those of the journal: a format that is not known, the disk's.
    pub fn unsent_in(dir: &Path) -> Result<Unsent, OpenError> {
        Ok(Left::read(dir)?.map(|left| left.unsent()).unwrap_or_default())
    }

    /// Opens the cache in `options.dir` over `buffer`, which stands over `names`, and
    /// that over the server. Unsent data of
    /// an earlier process is sent at once, unless the session is to preserve it, or only reads.
    ///
    /// Blocks the calling thread while the disk works.
    pub async fn open(
        buffer: Arc<BufferLayer>,
        names: Arc<NameLayer>,
        runtime: Handle,
        options: DiskOptions,
    ) -> Result<Self, OpenError> {
        let DiskOptions {
            dir,
            geometry,
            shared,
            left,
            small_max_bytes,
            settings,
            defer_names,
            coherence,
        } = options;
        let own = Caller {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            groups: nix::unistd::getgroups()
                .map(|groups| groups.iter().map(|group| group.as_raw()).collect())
                .unwrap_or_default(),
        };
        let root = buffer.root();
        let info = buffer.fsinfo(&own, &root).await?;
        check_writable(&dir)?;
        let origin_path = dir.join("origin");
        let mut origin = Origin::now(&root);
        let before = Origin::read(&origin_path)?;

        // Sessions that share a cache only read, and have nothing to send.
        let journal_dir = match shared {
            true => {
                remove_dead_journals(&dir);
                dir.join(format!("journal-{}", std::process::id()))
            }
            false => dir.join(JOURNAL),
        };
        let Left { journal, mut files, mut queue, hole, damage } = match left {
            Some(left) if left.journal.is_in(&journal_dir) => left,
            _ => Left::replay(&journal_dir)?,
        };
        let store = Store::open(&dir.join("store"), &geometry, shared)?;
        let store = Blocks::new(store, dir.join("files"))?;
        let index = Index::open(&dir.join("index.sqlite"), IndexOptions::default())?;

        let moved = before.as_ref().is_some_and(|before| before.root != origin.root);
        if moved && !(files.is_empty() && queue.is_empty()) {
            return Err(OpenError::OtherExport { path: dir });
        }
        if moved {
            log::info!("the source leads to another export than before: the cache starts empty");
            store.clear();
            index.forget_all();
            index.forget_aliases();
        }
        // A cache that does not say may be what a power loss has left of a new one.
        let restarted = before.as_ref().is_none_or(|before| before.boot != origin.boot);
        if restarted {
            // Blocks that we changed before the machine went down may be older than the server's.
            index.distrust_written(before.as_ref().map_or(0, |before| before.safe));
        }
        if let Some(before) = &before {
            // The period before may have begun without a word of it having reached the disk.
            origin.period = before.period.max(before.safe) + 2;
            origin.safe = before.safe;
        }
        if !shared || before.is_none() {
            origin.write(&origin_path)?;
        }
        let questions = match settings.consistency {
            Consistency::ReadOnlyShared => look_again::questions(&index, root),
            _ => Vec::new(),
        };
        // A process that was killed may have changed names without a word of it in the index.
        if settings.consistency != Consistency::Dedicated || !index.closed_cleanly() {
            index.forget_all();
        }
        // What the journal knows, the index may have been about to write.
        let told = queue.bound();
        for (ours, server) in index.aliases() {
            if queue.server(&ours).is_none() {
                queue.bind(ours, server);
            }
        }
        told.iter().for_each(|(ours, server)| index.set_alias(ours, Some(server)));
        let synced_damage = damage.iter().any(|damage| damage.synced);
        drop_unknown(&journal, &mut queue, &mut files, synced_damage);
        for damage in &damage {
            recover::report(&index, &root, damage);
        }
        let hold = settings.at_end == AtEnd::Preserve || settings.policy == Policy::ReadOnly;
        if !hold {
            // Their time has come long ago.
            let all = queue.ops.keys().copied().collect();
            queue.urge(&all);
        }
        let core = Arc::new_cyclic(|this| Core {
            this: this.clone(),
            root,
            verifier: now_ms().to_be_bytes(),
            file_size_max: if info.file_size_max == 0 { u64::MAX } else { info.file_size_max },
            buffer,
            client: names.clone(),
            runtime,
            store,
            making_whole: Mutex::new(()),
            journal,
            index,
            origin: Mutex::new(origin),
            origin_path,
            changed_files: false.into(),
            journal_dir,
            names: names.clone(),
            shared,
            small_max_bytes,
            settings: RwLock::new(Arc::new(settings)),
            settings_version: AtomicU64::new(1),
            nodes: DashMap::new(),
            places: Mutex::new(LruCache::new(PLACES_MAX)),
            dirty_bytes: AtomicU64::new(0),
            hurry: false.into(),
            closing: false.into(),
            held: hold.into(),
            write_backs: AtomicUsize::new(0),
            cancelled: watch::Sender::new(0),
            found_seq: files.values().map(|file| file.dirty.newest_seq()).max().unwrap_or(0),
            dead_bytes: AtomicU64::new(0),
            reclaim: Arc::default(),
            room: Notify::new(),
            sending: Arc::new(Semaphore::new(SENDING_MAX)),
            walking: Arc::new(Semaphore::new(WALK_READS_MAX)),
            walks: Default::default(),
            pins: Default::default(),
            fetch_number: AtomicU64::new(0),
            clock: AtomicU64::new(0),
            coherence: Coherence::new(coherence),
            began_ms: now_ms(),
            own,
            counters: Arc::default(),
        });
        // The server's times are compared with what we have set.
        names.begin(core.this.clone(), queue, defer_names && info.time_delta_ns == 1);
        if hole && let Err(error) = core.copy_names().and_then(|()| core.journal.sync()) {
            return Err(io_error(&core.journal_dir)(error));
        }
        core.begin_to_listen();
        core.recover(files, restarted);
        core.runtime.spawn(deliver::send_names(core.this.clone()));
        core.runtime.spawn(recover::keep_house(core.this.clone()));
        core.look_again(questions);
        Ok(Self { core })
    }
}
