//! What a session tells of itself.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use gridvfs_cache::disk::CoherenceStatus;
use gridvfs_cache::{BufferLayer, DiskCache};
use gridvfs_fuse::BusyFile;
use gridvfs_metadata::MetaLayer;
use gridvfs_metadata::layer::ReadOf;
use gridvfs_vfs::{Durations, FileHandle};
use serde_json::{Value, json};

use super::super::connect::Stack;
use super::super::files;
use super::SessionControl;
use crate::options::{Shown, settings_json};
use crate::paths;

/// So many files are listed one by one.
const FILES_TOLD_MAX: usize = 1000;
/// The same of files with metadata: the status is asked for often.
const READ_FILES_TOLD_MAX: usize = 20;

impl SessionControl {
    /// Returns each setting, and where it comes from.
    pub(super) fn config(&self) -> Value {
        let cache = self.cache.as_ref().map(|cache| cache.settings());
        let provenance = self.provenance.lock();
        let shown = Shown {
            settings: &self.settings,
            cache: cache.as_deref(),
            cache_dir: self.record.cache.as_deref(),
            provenance: &provenance,
        };
        let rows = self.places.iter().cloned().chain(shown.rows()).collect::<Vec<_>>();
        json!({"session": self.record.name, "settings": rows})
    }

    /// Returns the state and the counters; with `files`, so many of the busiest, which takes a look
    /// at all that the kernel knows.
    pub(super) fn status(&self, arguments: &Value) -> Value {
        let mut status = json!({
            "session": self.record.name,
            "source": self.record.source,
            "mountpoint": self.record.mountpoint,
            "pid": std::process::id(),
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "requests": self.activity.counters.to_map(),
        });
        status["latency"] = json!({"requests": times_json(self.activity.counters.times())});
        if let Some(client) = &self.client {
            status["latency"]["calls"] = times_json(client.counters().times());
        }
        if let Some(count) = arguments["files"].as_u64() {
            let busy = self.activity.busiest(FILES_TOLD_MAX.min(count as usize));
            let file = |file: BusyFile| {
                json!({
                    "path": self.path_of(&file.handle),
                    "reads": file.reads, "read_bytes": file.read_bytes,
                    "writes": file.writes, "written_bytes": file.written_bytes,
                })
            };
            status["files"] = busy.into_iter().map(file).collect();
        }
        status["coherence"] = self.coherence();
        if let Some(cache) = &self.cache {
            status["cache"] = self.cache_status(cache);
        }
        if let Some(metadata) = &self.metadata {
            status["metadata"] = metadata_json(metadata);
        }
        if let Some(buffer) = &self.buffer {
            status["buffer"] = buffer_json(buffer);
        }
        if let Some(client) = &self.client {
            status["link"] = json!(client.counters().to_map());
        }
        status
    }

    /// Says whether others' changes are heard of, since when, or why not.
    fn coherence(&self) -> Value {
        let Some(cache) = &self.cache else {
            return json!({"on": false, "reason": "it needs the disk cache"});
        };
        let CoherenceStatus { reason, lasting } = cache.coherence();
        let mut told = json!({"on": reason.is_none(), "seconds": lasting.as_secs()});
        if let Some(reason) = reason {
            told["reason"] = json!(reason);
        }
        told
    }

    /// Returns a file's path, as far as anybody here knows it.
    fn path_of(&self, handle: &FileHandle) -> Value {
        match &self.cache {
            Some(cache) => files::path_value(cache, handle),
            None => json!(format!("{handle:?}")),
        }
    }

    /// What is known of the cache without looking through it.
    fn cache_status(&self, cache: &DiskCache) -> Value {
        cache_json(self.record.cache.as_deref(), cache)
    }

    /// All that can be said of the cache.
    pub(super) async fn whole_cache_status(&self) -> Result<Value> {
        let cache = self.cache()?.clone();
        let mut status = self.cache_status(&cache);
        if let Some(buffer) = &self.buffer {
            status["joined"] = json!(buffer.counters().to_map()["joined"]);
        }
        let looked = tokio::task::spawn_blocking(move || {
            let usage = cache.usage();
            let files = cache.unsent_files();
            let all = files.len();
            let files: Vec<Value> = files
                .into_iter()
                .take(FILES_TOLD_MAX)
                .map(|file| {
                    let mut told = json!({
                        "path": files::path_value(&cache, &file.handle),
                        "unsent_bytes": file.unsent_bytes,
                        "conflict": file.conflict,
                    });
                    if let Some(error) = &file.error {
                        told["error"] = json!(files::plain(error));
                    }
                    told
                })
                .collect();
            let pinned: Vec<Value> =
                cache.pinned().iter().map(|file| files::path_value(&cache, file)).collect();
            (usage, files, all, pinned)
        });
        let (usage, files, all, pinned) = looked.await?;
        status["size_bytes"] = json!(usage.bytes_max);
        status["used_bytes"] = json!(usage.bytes);
        status["disk_bytes"] = json!(usage.disk_bytes + usage.tags_bytes);
        status["frames"] = json!(usage.frames);
        status["frames_max"] = json!(usage.frames_max);
        status["frames_pinned"] = json!(usage.frames_pinned);
        status["pinned"] = json!(pinned);
        status["unsent"] = json!(files);
        status["unsent_not_listed"] = json!(all - files.len());
        let count = |name: &str| status[name].as_u64().unwrap_or(0);
        let (hits, misses) = (count("hits"), count("misses"));
        status["hit_ratio"] = match hits + misses {
            0 => Value::Null,
            all => json!((hits as f64 / all as f64 * 10_000.0).round() / 10_000.0),
        };
        Ok(status)
    }
}

/// What the layers of a standing proxy's export tell, as a mount's do.
pub(crate) fn stack_json(stack: &Stack) -> Value {
    let mut status = json!({});
    if let Some(cache) = &stack.cache {
        status["cache"] = cache_json(Some(&cache.dir.path), &cache.disk);
    }
    if let Some(metadata) = &stack.metadata {
        status["metadata"] = metadata_json(metadata);
    }
    if let Some(buffer) = &stack.buffer {
        status["buffer"] = buffer_json(buffer);
    }
    if let Some(client) = &stack.client {
        status["link"] = json!(client.counters().to_map());
        status["latency"] = json!({"calls": times_json(client.counters().times())});
    }
    status
}

fn cache_json(directory: Option<&Path>, cache: &DiskCache) -> Value {
    let mut status = json!({ "directory": directory });
    let unsent = cache.unsent();
    let mut add = |name: &str, value: Value| status[name] = value;
    for (name, count) in cache.counters().to_map() {
        add(name, json!(count));
    }
    for (name, count) in cache.store_counters() {
        add(name, json!(count));
    }
    add("unsent_bytes", json!(unsent.bytes));
    add("unsent_files", json!(unsent.files));
    add("unsent_names", json!(unsent.names));
    add("unsent_conflicts", json!(unsent.conflicts));
    add("journal_bytes", json!(cache.journal_bytes()));
    add("settings", settings_json(&cache.settings()));
    status
}

fn metadata_json(metadata: &MetaLayer) -> Value {
    let mut status = json!(metadata.counters().to_map());
    let file = |read: ReadOf| {
        json!({
            "path": paths::to_value(&read.path),
            "guided_bytes": read.guided_bytes,
            "zero_bytes": read.zero_bytes,
        })
    };
    status["files"] = metadata.reads(READ_FILES_TOLD_MAX).into_iter().map(file).collect();
    status
}

fn buffer_json(buffer: &BufferLayer) -> Value {
    let mut status = json!(buffer.counters().to_map());
    status["held_bytes"] = json!(buffer.dirty_bytes());
    status
}

/// How long things took: in all, and counts by what they took at most, in microseconds.
pub(crate) fn times_json(times: Vec<(&'static str, Durations)>) -> Value {
    let told = |durations: Durations| {
        let micros = |up_to: Option<Duration>| up_to.map(|up_to| up_to.as_micros() as u64);
        let buckets = durations.buckets().map(|(up_to, count)| json!([micros(up_to), count]));
        json!({
            "count": durations.count(),
            "seconds": durations.total().as_secs_f64(),
            "buckets": buckets.collect::<Vec<_>>(),
        })
    };
    times.into_iter().map(|(kind, times)| (kind.to_string(), told(times))).collect()
}
