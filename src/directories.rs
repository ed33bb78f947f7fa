//! Where the command keeps what it needs between runs: the runtime directory (sockets, gone at
//! log-out) and the state directory (logs, file handle tables, secrets); and where people keep their
//! session files.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Returns `$XDG_RUNTIME_DIR/gridvfs` or the nearest thing to it, made private to the user.
pub fn runtime() -> Result<PathBuf> {
    let uid = nix::unistd::geteuid();
    let logged_in = PathBuf::from(format!("/run/user/{uid}"));
    let directory = match std::env::var_os("XDG_RUNTIME_DIR") {
        // An inherited one (su, sudo) belongs to somebody else and is not ours to use.
        Some(path) if owned_by_us(Path::new(&path)) => PathBuf::from(path).join("gridvfs"),
        _ if owned_by_us(&logged_in) => logged_in.join("gridvfs"),
        _ if uid.is_root() => PathBuf::from("/run/gridvfs"),
        _ => std::env::temp_dir().join(format!("gridvfs-{uid}")),
    };
    private(&directory)?;
    Ok(directory)
}

/// Returns `$XDG_STATE_HOME/gridvfs` or `~/.local/state/gridvfs`, made private to the user. Without
/// a home directory it is in the runtime directory.
pub fn state() -> Result<PathBuf> {
    let base = match (std::env::var_os("XDG_STATE_HOME"), home()) {
        (Some(path), _) if Path::new(&path).is_absolute() => PathBuf::from(path),
        (_, Some(home)) => home.join(".local/state"),
        _ => runtime()?.join("state"),
    };
    let directory = base.join("gridvfs");
    match private(&directory) {
        Ok(()) => Ok(directory),
        // A home that cannot be written (a system account) is no reason to refuse.
        Err(_) => {
            let directory = runtime()?.join("state");
            private(&directory)?;
            Ok(directory)
        }
    }
}

/// Returns `$XDG_CACHE_HOME/gridvfs` or `~/.cache/gridvfs`, which need not exist.
pub fn cache() -> Result<PathBuf> {
    let base = match (std::env::var_os("XDG_CACHE_HOME"), home()) {
        (Some(path), _) if Path::new(&path).is_absolute() => PathBuf::from(path),
        (_, Some(home)) => home.join(".cache"),
        _ => bail!("there is no home directory, and XDG_CACHE_HOME is not set"),
    };
    Ok(base.join("gridvfs"))
}

/// Returns where session files are, the user's own place first: `$XDG_CONFIG_HOME/gridvfs` or
/// `~/.config/gridvfs`, and for root `/etc/gridvfs`. They need not exist.
pub fn config() -> Vec<PathBuf> {
    let own = match (std::env::var_os("XDG_CONFIG_HOME"), home()) {
        (Some(path), _) if Path::new(&path).is_absolute() => Some(PathBuf::from(path)),
        (_, Some(home)) => Some(home.join(".config")),
        _ => None,
    };
    let own = own.map(|base| base.join("gridvfs"));
    let system = nix::unistd::geteuid().is_root().then(|| PathBuf::from("/etc/gridvfs"));
    own.into_iter().chain(system).collect()
}

/// Returns the home directory of who runs this.
pub fn home() -> Option<PathBuf> {
    // $HOME survives `runuser` and `sudo -E` though it is another user's: ask who we are.
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
    let environment = std::env::var_os("HOME").map(PathBuf::from);
    environment.filter(|home| owned_by_us(home)).or_else(|| user.map(|user| user.dir))
}

fn owned_by_us(path: &Path) -> bool {
    fs::metadata(path)
        .is_ok_and(|meta| meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw())
}

/// Makes a directory of mode 0700, or checks that an existing one is ours alone.
fn private(directory: &Path) -> Result<()> {
    let what = || directory.display().to_string();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(what)?;
    let meta = fs::symlink_metadata(directory).with_context(what)?;
    if !meta.is_dir() || meta.uid() != nix::unistd::geteuid().as_raw() {
        bail!("{} belongs to somebody else; remove it or set XDG_RUNTIME_DIR", what());
    }
    if meta.mode() & 0o077 != 0 {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).with_context(what)?;
    }
    Ok(())
}
