//! Verbs on single files of a cache: paths to handles by LOOKUP, and back.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use gridvfs_cache::DiskCache;
use gridvfs_cache::store::{BLOCK_BYTES, VerifyReport};
use gridvfs_metadata::MetaLayer;
use gridvfs_metadata::layer::Held;
use gridvfs_vfs::{Attr, Caller, Error, FileHandle, FileKind, Vfs, is_dots};
use serde_json::{Value, json};

use crate::paths;
use crate::session::Progress;

/// Files that are fetched at once: their READs are large and fill the link.
const WARMING_MAX: usize = 8;
/// The most files of one request.
const FILES_MAX: usize = 4 << 20;
/// How much of a listing is asked for at once, in bytes.
const LISTING_BYTES: u32 = 64 << 10;
/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// The most damaged ranges and failed files that are listed.
const TOLD_MAX: usize = 10_000;

/// Who the verbs act as: the user of the mount.
pub fn own_caller() -> Caller {
    Caller {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        groups: nix::unistd::getgroups()
            .map(|groups| groups.iter().map(|group| group.as_raw()).collect())
            .unwrap_or_default(),
    }
}

/// Returns a file's path for a reply; its handle if its path is not known.
pub fn path_value(cache: &DiskCache, file: &FileHandle) -> Value {
    match cache.path_of(file) {
        Some(path) => paths::to_value(&path),
        None => json!(format!("{file:?}")),
    }
}

/// An error as people know it.
pub fn plain(error: &Error) -> String {
    match error {
        Error::Status(status) => std::io::Error::from_raw_os_error(status.errno()).to_string(),
        error => error.to_string(),
    }
}

async fn find(vfs: &dyn Vfs, caller: &Caller, path: &[u8]) -> Result<(FileHandle, Attr)> {
    let walk = async {
        let mut handle = vfs.root();
        let mut attr = None;
        for name in paths::names(path) {
            let entry = vfs.lookup(caller, &handle, name).await?;
            (handle, attr) = (entry.handle, entry.attr);
        }
        let attr = match attr {
            Some(attr) => attr,
            None => vfs.getattr(caller, &handle).await?,
        };
        Ok((handle, attr))
    };
    let text = || paths::text(&paths::to_value(path));
    walk.await.map_err(|error| anyhow::anyhow!("{}: {}", text(), plain(&error)))
}

/// Returns the regular files at and below some paths, with their sizes, as `vfs` shows them.
async fn regular_files(
    vfs: &dyn Vfs,
    cache: &DiskCache,
    caller: &Caller,
    starts: &[Vec<u8>],
    progress: Progress<'_>,
) -> Result<Vec<(FileHandle, u64)>> {
    let mut files = Vec::new();
    let mut directories = Vec::new();
    for path in starts {
        let (handle, attr) = find(vfs, caller, path).await?;
        match attr.kind {
            FileKind::Regular => files.push((handle, attr.size)),
            FileKind::Directory => directories.push(handle),
            _ => {}
        }
    }
    let mut told = std::time::Instant::now();
    while let Some(dir) = directories.pop() {
        let (mut cookie, mut verifier) = (0, Default::default());
        loop {
            let page = vfs.readdir(caller, &dir, cookie, verifier, LISTING_BYTES, true).await;
            let page = page.map_err(|error| {
                anyhow::anyhow!("{}: {}", paths::text(&path_value(cache, &dir)), plain(&error))
            })?;
            verifier = page.verifier;
            for entry in &page.entries {
                cookie = entry.cookie;
                if is_dots(&entry.name) {
                    continue;
                }
                let (handle, attr) = match (entry.handle, entry.attr) {
                    (Some(handle), Some(attr)) => (handle, attr),
                    _ => match vfs.lookup(caller, &dir, &entry.name).await {
                        Ok(found) => match found.attr {
                            Some(attr) => (found.handle, attr),
                            None => (found.handle, vfs.getattr(caller, &found.handle).await?),
                        },
                        // Removed in between.
                        Err(_) => continue,
                    },
                };
                match attr.kind {
                    FileKind::Regular => files.push((handle, attr.size)),
                    FileKind::Directory => directories.push(handle),
                    _ => {}
                }
            }
            anyhow::ensure!(files.len() <= FILES_MAX, "more than {FILES_MAX} files");
            if told.elapsed() > TELL_EVERY {
                told = std::time::Instant::now();
                progress(json!({"done": 0, "total": 0, "files": files.len()}));
            }
            if page.eof || page.entries.is_empty() {
                break;
            }
        }
    }
    Ok(files)
}

/// Fetches what is missing of files, and of all below directories, but for zeros that metadata
/// tells. The reply says what is here when all is done: what came first may have made room again.
pub async fn warm(
    cache: &Arc<DiskCache>,
    metadata: Option<&Arc<MetaLayer>>,
    starts: &[Vec<u8>],
    progress: Progress<'_>,
) -> Result<Value> {
    let caller = own_caller();
    let shown: &dyn Vfs = match metadata {
        Some(layer) => &**layer,
        None => &**cache,
    };
    let mut files = regular_files(shown, cache, &caller, starts, progress).await?;
    let mut seen = HashSet::new();
    files.retain(|(file, _)| seen.insert(*file));
    let total = files.iter().map(|(_, size)| size).sum::<u64>();
    let done = Arc::new(AtomicU64::new(0));
    let mut waiting = files.iter().copied();
    let mut running = tokio::task::JoinSet::new();
    let mut failed = HashSet::new();
    let mut failures = Vec::new();
    loop {
        while running.len() < WARMING_MAX
            && let Some((file, size)) = waiting.next()
        {
            let (cache, metadata) = (cache.clone(), metadata.cloned());
            let (caller, done) = (caller.clone(), done.clone());
            running.spawn(async move {
                let mine = AtomicU64::new(0);
                let tell = |bytes| {
                    // What is begun anew is told again.
                    let left = size.saturating_sub(mine.fetch_add(bytes, Ordering::Relaxed));
                    done.fetch_add(bytes.min(left), Ordering::Relaxed);
                };
                let result = match metadata {
                    Some(layer) => layer.warm(&caller, &file, &tell).await,
                    None => cache.warm(&caller, &file, &tell).await,
                };
                // It may have shrunk, or failed: what was counted on is dealt with all the same.
                let rest = size.saturating_sub(mine.load(Ordering::Relaxed));
                done.fetch_add(rest, Ordering::Relaxed);
                (file, result)
            });
        }
        tokio::select! {
            next = running.join_next() => match next {
                None => break,
                Some(Ok((_, Ok(())))) => {}
                Some(Ok((file, Err(error)))) => {
                    failed.insert(file);
                    if failures.len() < TOLD_MAX {
                        let path = path_value(cache, &file);
                        failures.push(json!({"path": path, "error": plain(&error)}));
                    }
                }
                Some(Err(error)) => return Err(error.into()),
            },
            _ = tokio::time::sleep(TELL_EVERY) => {
                progress(json!({"done": done.load(Ordering::Relaxed), "total": total}));
            }
        }
    }
    let (cache, metadata) = (cache.clone(), metadata.cloned());
    let counted = tokio::task::spawn_blocking(move || {
        let (mut all, mut missing) = (Held::default(), 0);
        for (file, size) in &files {
            let held = match &metadata {
                Some(layer) => layer.held(file, *size),
                None => Held { bytes: cache.held_bytes(file, 0, *size), zero_bytes: 0 },
            };
            all.bytes += held.bytes;
            all.zero_bytes += held.zero_bytes;
            if !failed.contains(file) {
                missing += size.saturating_sub(held.bytes + held.zero_bytes);
            }
        }
        json!({
            "files": files.len(), "bytes": all.bytes, "zero_bytes": all.zero_bytes,
            "missing_bytes": missing, "failed": failed.len(), "failures": failures,
        })
    });
    Ok(counted.await?)
}

/// Pins files, and those that are now below directories.
pub async fn pin(cache: &Arc<DiskCache>, starts: &[Vec<u8>], pinned: bool) -> Result<Value> {
    let files = regular_files(&**cache, cache, &own_caller(), starts, &|_| {}).await?;
    for (file, _) in &files {
        cache.pin(file, pinned);
    }
    Ok(json!({"files": files.len(), "pinned_files": cache.pinned().len()}))
}

/// Returns where a complete file of the file cache is on this machine; null if it is not there.
pub async fn local_file(cache: &Arc<DiskCache>, path: &[u8]) -> Result<Value> {
    let (file, _) = find(&**cache, &own_caller(), path).await?;
    // As an open does: what was changed by others is not what is here.
    cache.getattr(&own_caller(), &file).await?;
    let local = cache.local_path(&file);
    let local = local.map(|path| paths::to_value(path.as_os_str().as_encoded_bytes()));
    Ok(json!({ "path": local }))
}

/// Tells damaged blocks as ranges of files.
pub fn bad_ranges(cache: &DiskCache, report: &VerifyReport) -> Value {
    let mut by_file: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for block in &report.bad {
        by_file.entry(block.key.0).or_default().push(block.offset);
    }
    let mut bad = Vec::new();
    for (key, mut offsets) in by_file {
        let file = cache.file_of(gridvfs_cache::FileKey(key));
        let path = match file {
            Some(file) => path_value(cache, &file),
            None => json!("(of an old version of a file)"),
        };
        offsets.sort_unstable();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for offset in offsets {
            let end = offset + BLOCK_BYTES as u64;
            match ranges.last_mut() {
                Some(last) if last.1 == offset => last.1 = end,
                _ => ranges.push((offset, end)),
            }
        }
        for (from, to) in ranges {
            if bad.len() < TOLD_MAX {
                bad.push(json!({"path": path, "from": from, "to": to}));
            }
        }
    }
    json!({"blocks": report.blocks, "bad_blocks": report.bad_count, "bad": bad})
}
