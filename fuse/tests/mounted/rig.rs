//! A directory and a mount of it in this process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use gridvfs_fuse::{MountOptions, Session, SessionOptions};

use crate::probe::Probe;

/// A mount, ended when dropped.
pub struct Rig {
    pub export: PathBuf,
    pub mnt: PathBuf,
    pub folder: PathBuf,
    pub probe: Arc<Probe>,
    thread: Option<JoinHandle<()>>,
    _runtime: tokio::runtime::Runtime,
    _temporary: tempfile::TempDir,
}

impl Rig {
    /// Mounts. `None`, and a word about it, where that cannot be.
    pub fn new(test: &str, options: SessionOptions) -> Option<Self> {
        let temporary = tempfile::tempdir().expect("folder");
        let folder = temporary.path().canonicalize().expect("folder");
        let (export, mnt) = (folder.join("export"), folder.join("mnt"));
        for directory in [&export, &mnt] {
            std::fs::create_dir(directory).expect("mkdir");
        }
        let mount = MountOptions {
            source: test.into(),
            allow_other: options.allow_other,
            default_permissions: options.default_permissions,
            read_only: options.read_only,
            ..MountOptions::default()
        };
        let device = match gridvfs_fuse::mount(&mnt, &mount) {
            Ok(device) => device,
            Err(error) => {
                println!("SKIPPED: {test}: {error}");
                return None;
            }
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("runtime");
        let probe = Arc::new(Probe::new(&export));
        let handle = runtime.handle().clone();
        let session = Session::new(device, probe.clone(), handle, options, None).expect("session");
        let thread = Some(std::thread::spawn(move || session.run().expect("served")));
        Some(Self { export, mnt, folder, probe, thread, _runtime: runtime, _temporary: temporary })
    }

    /// A path in the mount.
    pub fn at(&self, name: &str) -> PathBuf {
        self.mnt.join(name)
    }

    /// A path on the server.
    pub fn behind(&self, name: &str) -> PathBuf {
        self.export.join(name)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let panics = std::thread::panicking();
        let _ = gridvfs_fuse::unmount(&self.mnt, panics)
            .or_else(|_| gridvfs_fuse::unmount(&self.mnt, true));
        if let Some(thread) = self.thread.take().filter(|_| !panics) {
            thread.join().expect("no panic");
        }
    }
}

/// Says whether this process is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Reads a file of which nothing may be missing.
pub fn content(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("read")
}
