//! Where disk caches are, and who has one: a directory for each source, held by a lock as long as a
//! session uses it. Nothing in it is ever removed here.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use gridvfs_cache::DiskCache;
use gridvfs_cache::disk::{Left, Unsent};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::directories;
use crate::options::CacheOptions;
use crate::report::Hinted;

/// How many sessions of one source may each have a cache of their own at once.
const NUMBER_MAX: u32 = 16;
/// How long a process may take to end once its session has.
const ENDING_MAX: Duration = Duration::from_secs(10);
/// A directory with one of these names in it is a cache, or the rest of one.
const OURS: &[&str] = &["lock", "source", "origin", "store", "journal", "index.sqlite"];
/// What is often the remedy.
const REMEDY: &str = "-o cache_dir=DIR puts the cache elsewhere, -o cache=off does without";

/// A cache's directory, held for this process.
pub struct CacheDir {
    /// Where it is.
    pub path: PathBuf,
    /// What an earlier session has left in it that is not on the state server.
    pub unsent: Unsent,
    /// The same, for the cache that is opened in it.
    left: Option<Left>,
    /// There was nothing there, and there may be nothing again.
    fresh: bool,
    _lock: Flock<File>,
}

/// A mount that fails before it has a cache leaves none.
impl Drop for CacheDir {
    fn drop(&mut self) {
        if self.fresh {
            let _ = fs::remove_file(self.path.join("source"));
            let _ = fs::remove_file(self.path.join("lock"));
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Names what is kept for a source between mounts. FNV-1a: the same in every version of the program.
pub fn source_hash(source: &str) -> u64 {
    source.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl CacheDir {
    /// Gives what an earlier session has left to the cache that takes it over.
    pub fn take_left(&mut self) -> Option<Left> {
        self.left.take()
    }

    /// Says that there is a cache in it now.
    pub fn is_used(&mut self) {
        self.fresh = false;
    }

    /// Takes the directory that the options name, or one of the source's own.
    pub fn take(options: &CacheOptions, source: &str, mountpoint: Option<&Path>) -> Result<Self> {
        let taken = match &options.dir {
            Some(path) => Self::take_named(path, options.share, mountpoint)?,
            None => Self::take_default(options.share, source)?,
        };
        let note = taken.path.join("source");
        fs::write(&note, format!("{source}\n"))
            .map_err(|error| unusable(&taken.path, &error.to_string()))?;
        Ok(taken)
    }

    fn take_named(path: &Path, share: bool, mountpoint: Option<&Path>) -> Result<Self> {
        if mountpoint.is_some_and(|mountpoint| path.starts_with(mountpoint)) {
            bail!("-o cache_dir={}: a cache cannot be in its own mount", path.display());
        }
        if !is_cache(path) && fs::read_dir(path).is_ok_and(|mut files| files.next().is_some()) {
            return Err(Hinted::error(
                format!("-o cache_dir={}: the directory has files of others", path.display()),
                "give an empty or a new directory",
            ));
        }
        match Self::hold_soon(path, share)? {
            Some(held) => {
                remember(path);
                Ok(held)
            }
            None => {
                let hint = match share {
                    true => "choose another -o cache_dir= (it is not in use by cache_share mounts)",
                    false => {
                        "choose another -o cache_dir=; read-only mounts share one with \
                         -o cache_share"
                    }
                };
                let users = users(path).join(", ");
                let by = if users.is_empty() { String::new() } else { format!(" by {users}") };
                let text = format!("-o cache_dir={}: the cache is in use{by}", path.display());
                Err(Hinted::error(text, hint))
            }
        }
    }

    /// Takes the first that has unsent data, or else the first that is free.
    fn take_default(share: bool, source: &str) -> Result<Self> {
        let base = directories::cache()?;
        let name = format!("{}-{:016x}", readable(source), source_hash(source));
        let mut best: Option<Self> = None;
        let mut fresh = None;
        for number in 1..=NUMBER_MAX {
            let path = match number {
                1 => base.join(&name),
                _ => base.join(format!("{name}-{number}")),
            };
            if !path.exists() {
                fresh = fresh.or(Some((number, path)));
                continue;
            }
            let Some(held) = Self::hold_soon(&path, share)? else {
                log::debug!("{} is in use", path.display());
                continue;
            };
            if !held.unsent.is_empty() {
                return Ok(held);
            }
            best = best.or(Some(held));
            if share {
                break;
            }
        }
        if let Some(best) = best {
            return Ok(best);
        }
        let Some((_, path)) = fresh else {
            return Err(Hinted::error(
                format!("{NUMBER_MAX} mounts of {source} have their caches in use"),
                REMEDY,
            ));
        };
        match Self::hold(&path, share)? {
            Some(held) => Ok(held),
            // Another mount was quicker by a moment.
            None => Self::take_default(share, source),
        }
    }

    /// Takes a directory. A session that has just ended may hold it for a moment yet: it is waited
    /// for.
    fn hold_soon(path: &Path, share: bool) -> Result<Option<Self>> {
        let patience = Instant::now() + ENDING_MAX;
        loop {
            if let Some(held) = Self::hold(path, share)? {
                return Ok(Some(held));
            }
            if Instant::now() > patience || !users(path).is_empty() {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Takes a directory, which is made if need be. `None`: it is in use.
    fn hold(path: &Path, share: bool) -> Result<Option<Self>> {
        let fail = |error: io::Error| unusable(path, &error.to_string());
        let fresh = !path.exists();
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fail)?;
        let meta = fs::symlink_metadata(path).map_err(fail)?;
        if !meta.is_dir() && !path.is_dir() {
            return Err(unusable(path, "not a directory"));
        }
        let meta = fs::metadata(path).map_err(fail)?;
        if meta.uid() != nix::unistd::geteuid().as_raw() {
            return Err(unusable(path, "it belongs to somebody else"));
        }
        if meta.mode() & 0o077 != 0 {
            fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(fail)?;
        }
        let Some(lock) = lock(path, share).map_err(fail)? else { return Ok(None) };
        // What stands in the way of knowing is told when the cache is opened.
        let left = Left::read(path).unwrap_or_default();
        let unsent = left.as_ref().map(Left::unsent).unwrap_or_default();
        // Sessions that share a cache use another journal each, and look at this one in turns.
        let left = left.filter(|_| !share);
        Ok(Some(Self { path: path.into(), unsent, left, fresh, _lock: lock }))
    }
}

/// Locks a cache. Who only looks holds it for a moment, so it is tried more than once.
fn lock(path: &Path, share: bool) -> io::Result<Option<Flock<File>>> {
    let how = if share { FlockArg::LockSharedNonblock } else { FlockArg::LockExclusiveNonblock };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(path.join("lock"))?;
    for _ in 0..3 {
        match Flock::lock(file, how) {
            Ok(lock) => return Ok(Some(lock)),
            Err((back, Errno::EWOULDBLOCK)) => file = back,
            Err((_, error)) => return Err(error.into()),
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    Ok(None)
}

fn unusable(path: &Path, reason: &str) -> anyhow::Error {
    Hinted::error(format!("cannot use the cache directory {}: {reason}", path.display()), REMEDY)
}

/// Says why a cache cannot be opened, and what to do.
pub fn open_error(path: &Path, error: gridvfs_cache::disk::OpenError) -> anyhow::Error {
    use gridvfs_cache::disk::OpenError;
    match error {
        OpenError::Server(error) => anyhow::Error::from(error),
        OpenError::OtherExport { .. } => Hinted::error(error.to_string(), REMEDY),
        error => Hinted::error(format!("the cache in {}: {error}", path.display()), REMEDY),
    }
}

fn is_cache(path: &Path) -> bool {
    OURS.iter().any(|name| path.join(name).exists())
}

/// A source as a part of a file name.
fn readable(source: &str) -> String {
    let mut name = String::new();
    for character in source.chars() {
        let good = character.is_ascii_alphanumeric() || "@._".contains(character);
        match good {
            true => name.push(character),
            false if !name.ends_with('-') => name.push('-'),
            false => {}
        }
    }
    let name = name.trim_matches(['-', '.']);
    // The end of a path says more than its beginning.
    let start = name.len().saturating_sub(48);
    let name = name[start..].trim_start_matches(['-', '.']);
    if name.is_empty() { "source".into() } else { name.into() }
}

/// Caches outside the user's cache directory are noted, so that they can be listed.
fn remember(path: &Path) {
    let note = || -> Result<()> {
        let directory = directories::state()?.join("caches");
        fs::create_dir_all(&directory)?;
        let name = format!("{:016x}", source_hash(&path.to_string_lossy()));
        use std::os::unix::ffi::OsStrExt;
        Ok(fs::write(directory.join(name), path.as_os_str().as_bytes())?)
    };
    if let Err(error) = note() {
        log::debug!("{}: not noted: {error}", path.display());
    }
}

fn remembered() -> Vec<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let Ok(directory) = directories::state() else { return Vec::new() };
    let Ok(notes) = fs::read_dir(directory.join("caches")) else { return Vec::new() };
    notes
        .filter_map(|note| fs::read(note.ok()?.path()).ok())
        .map(|bytes| PathBuf::from(std::ffi::OsString::from_vec(bytes)))
        .collect()
}

fn users(path: &Path) -> Vec<String> {
    let records = crate::session::list().unwrap_or_default();
    let uses = |record: &crate::session::Record| record.cache.as_deref() == Some(path);
    let users = records.into_iter().filter(|record| uses(record) && record.is_alive());
    users.map(|record| record.name).collect()
}

/// A cache on this machine.
pub struct Found {
    /// Where it is.
    pub path: PathBuf,
    /// What it is of, if it says so.
    pub source: Option<String>,
    /// What it takes of the disk, in bytes.
    pub disk_bytes: u64,
    /// The sessions that use it.
    pub users: Vec<String>,
    /// What is not on the state server yet; `None` if it cannot be told.
    pub unsent: Option<Unsent>,
}

/// Finds the caches of this user.
pub fn list() -> Result<Vec<Found>> {
    let base = directories::cache()?;
    let mut paths: Vec<PathBuf> = match fs::read_dir(&base) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| base.display().to_string()),
    };
    paths.extend(remembered());
    paths.extend(crate::session::list()?.into_iter().filter_map(|record| record.cache));
    paths.retain(|path| is_cache(path));
    paths.sort();
    paths.dedup();
    let found = |path: PathBuf| {
        let users = users(&path);
        let lock = if users.is_empty() { lock(&path, false).ok().flatten() } else { None };
        let unsent = lock.as_ref().and_then(|_| DiskCache::unsent_in(&path).ok());
        Found {
            source: fs::read_to_string(path.join("source")).ok().map(|text| text.trim().into()),
            disk_bytes: disk_bytes(&path),
            unsent,
            users,
            path,
        }
    };
    Ok(paths.into_iter().map(found).collect())
}

fn disk_bytes(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    let own = meta.blocks() * 512;
    if !meta.is_dir() {
        return own;
    }
    let Ok(entries) = fs::read_dir(path) else { return own };
    own + entries.filter_map(Result::ok).map(|entry| disk_bytes(&entry.path())).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_become_names() {
        for (source, name) in [
            ("vm@host:/vms/a", "vm@host-vms-a"),
            ("/", "source"),
            ("nfs://[::1]:20/e", "nfs-1-20-e"),
            ("../../x", "x"),
        ] {
            assert_eq!(readable(source), name);
        }
        let long = readable(&format!("host:/{}/end", "x".repeat(200)));
        assert!(long.len() <= 48 && long.ends_with("-end"), "{long}");
        assert_ne!(source_hash("a@h:/x"), source_hash("b@h:/x"));
    }

    #[test]
    fn a_directory_in_use_is_not_taken() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("cache");
        let held = CacheDir::hold(&path, false).expect("good").expect("free");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o700);
        assert!(CacheDir::hold(&path, false).expect("good").is_none());
        assert!(CacheDir::hold(&path, true).expect("good").is_none());
        drop(held);
        let shared = CacheDir::hold(&path, true).expect("good").expect("free");
        let other = CacheDir::hold(&path, true).expect("good").expect("shared");
        assert!(CacheDir::hold(&path, false).expect("good").is_none());
        drop((shared, other));
        assert!(CacheDir::hold(&path, false).expect("good").is_some());
    }

    #[test]
    fn other_directories_are_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("thesis"), b"x").expect("write");
        let error = CacheDir::take_named(folder.path(), false, Some(Path::new("/m"))).err();
        assert!(error.expect("refused").to_string().contains("files of others"));
        let within = CacheDir::take_named(Path::new("/m/x"), false, Some(Path::new("/m"))).err();
        assert!(within.expect("refused").to_string().contains("own mount"));
        let file = folder.path().join("thesis");
        let error =
            CacheDir::take_named(&file, false, Some(Path::new("/m"))).err().expect("refused");
        assert!(crate::report::error_text(&error).contains("cache=off"), "{error:#}");
    }
}
