//! What a session's control socket and signals tell and do. What concerns single files is in
//! [`super::files`].

pub mod conflicts;
pub mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use gridvfs_cache::DiskCache;
use gridvfs_cache::disk::{Consistency, Policy, Settings};
use gridvfs_fuse::Activity;
use gridvfs_metadata::MetaLayer;
use gridvfs_vfs::{Error, Vfs};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::Plan;
use super::connect::Stack;
use super::files;
use super::manager::{Held, Service};
use crate::options::{Changes, Layers, Provenance, differences, settings_json};
use crate::paths;
use crate::report::{Exit, Hinted, unsent_text};
use crate::session::{Control, Progress, Record};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// How long the kernel may take to hand over what it has gathered.
const KERNEL_WRITES_MAX: Duration = Duration::from_secs(10);

/// What the kernel was told at the start, for good.
#[derive(Clone, Copy)]
pub struct Kernel {
    /// For how long it believes names and attributes.
    pub believes: Duration,
    /// Whether it gathers writes, and then believes nobody else about a file that it knows.
    pub writes_back: bool,
}

/// The session, for its control socket and its signals.
pub struct SessionControl {
    record: Record,
    started: Instant,
    top: Arc<dyn Vfs>,
    buffer: Option<Arc<gridvfs_cache::BufferLayer>>,
    client: Option<Arc<gridvfs_upstream::NfsClient>>,
    cache: Option<Arc<DiskCache>>,
    metadata: Option<Arc<MetaLayer>>,
    settings: crate::options::Settings,
    layers: Layers,
    provenance: Mutex<Provenance>,
    /// What is mounted and where to, and who says so.
    places: [Value; 2],
    kernel: Kernel,
    activity: Activity,
    /// One write-back at a time.
    writing_back: tokio::sync::Mutex<()>,
}

impl SessionControl {
    /// Makes it of a session's parts.
    pub(super) fn new(
        plan: &Plan,
        record: &Record,
        stack: &Stack,
        activity: Activity,
        kernel: Kernel,
    ) -> Self {
        Self {
            record: record.clone(),
            started: Instant::now(),
            top: stack.top.clone(),
            buffer: stack.buffer.clone(),
            client: stack.client.clone(),
            cache: stack.cache.as_ref().map(|cache| cache.disk.clone()),
            metadata: stack.metadata.clone(),
            settings: plan.settings.clone(),
            layers: plan.layers.clone(),
            provenance: Mutex::new(plan.provenance.clone()),
            places: plan.places(),
            kernel,
            activity,
            writing_back: tokio::sync::Mutex::new(()),
        }
    }

    fn cache(&self) -> Result<&Arc<DiskCache>> {
        self.cache.as_ref().ok_or_else(|| {
            Exit::Refused.mark(Hinted::error(
                format!("session {} has no disk cache", self.record.name),
                "mount with -o cache=on",
            ))
        })
    }

    /// Sends what is unsent; done when it is on the server's disk.
    pub async fn write_back(&self) -> Result<()> {
        let _one = self.writing_back.lock().await;
        if self.kernel.writes_back {
            self.have_kernel_write().await;
        }
        let Some(cache) = &self.cache else {
            let sent = self.top.shutdown().await;
            return sent.map_err(|error| Exit::Unsent.mark(error.into()));
        };
        let unsent = cache.unsent();
        if cache.settings().policy == Policy::ReadOnly
            && !unsent.is_empty()
            && self.settings.cache.read_only
        {
            return Err(Exit::Unsent.mark(Hinted::error(
                "the mount is read-only: what an earlier session has not sent stays in the cache",
                "mount it without ro to send it",
            )));
        }
        let done = cache.write_back().await;
        let unsent = cache.unsent();
        done.map_err(|error| match (error, unsent.conflicts) {
            (Error::Interrupted, _) => Exit::Unsent.mark(Hinted::error(
                format!("the write-back was cancelled; {} not sent", unsent_text(&unsent)),
                "it is kept, and sent when its time comes, at the end, or when it is asked for again",
            )),
            (error, 0) => Exit::Unsent.mark(anyhow::anyhow!("{}", files::plain(&error))),
            (_, count) => Exit::Conflict.mark(Hinted::error(
                match count {
                    1 => "1 file was changed on the server, too: a conflict".to_string(),
                    _ => format!("{count} files were changed on the server, too: conflicts"),
                },
                format!("gridvfs conflicts {} lists and resolves them", self.record.name),
            )),
        })
    }

    /// Takes back the write-back that is under way, the one at the session's end included.
    fn cancel(&self) -> Result<Value> {
        let cache = self.cache()?;
        let cancelled = cache.cancel_write_back();
        if cancelled {
            log::info!("the write-back is cancelled");
        }
        Ok(json!({"cancelled": cancelled, "unsent_bytes": cache.unsent().bytes}))
    }

    /// Has the kernel hand over what it has gathered, as far as it does when asked.
    async fn have_kernel_write(&self) {
        let Some(mountpoint) = self.record.mountpoint.clone() else { return };
        let synced = tokio::task::spawn_blocking(move || {
            std::fs::File::open(mountpoint).map(|root| nix::unistd::syncfs(&root))
        });
        // A mount that does not answer is no reason not to send what is here.
        let _ = tokio::time::timeout(KERNEL_WRITES_MAX, synced).await;
    }

    /// Sends what is unsent, and forgets what is clean.
    pub async fn flush(&self) -> Result<()> {
        let cache = self.cache()?;
        self.write_back().await?;
        // Nothing is left to be sent but what was written meanwhile.
        Ok(cache.flush_all().await?)
    }

    /// Reads the files of settings again. Returns whether there are any.
    pub fn reload(&self) -> Result<bool> {
        let reading = self.layers.read()?;
        if !reading.has_files {
            return Ok(false);
        }
        if let Some(cache) = &self.cache {
            let settings = self.settings.cache.settings_with(&reading.settings.cache.changes)?;
            self.adopt(cache, settings)?;
        }
        let later = differences(&self.settings, &reading.settings);
        if !later.is_empty() {
            log::warn!("{} hold for a mount's whole life: at the next mount", later.join(", "));
        }
        // Those keep the origin that their value has.
        self.provenance.lock().adopt(reading.provenance);
        Ok(true)
    }

    fn adopt(&self, cache: &DiskCache, settings: Settings) -> Result<()> {
        let adopted = self.settings.cache.fit(&settings).and_then(|()| {
            if self.kernel.writes_back && settings.consistency != Consistency::Dedicated {
                return Err(Hinted::error(
                    format!(
                        "consistency={}: the kernel gathers writes, as it may where nobody else \
                         changes the files",
                        settings.consistency
                    ),
                    "mount anew, or with -o kernel_writeback=off from the start",
                ));
            }
            cache.set(settings).map_err(anyhow::Error::msg)
        });
        adopted.map_err(|error| Exit::Refused.mark(error))
    }

    fn set(&self, arguments: &Value) -> Result<Value> {
        let cache = self.cache()?;
        let words = arguments["changes"].as_array().context("changes: a list is expected")?;
        let words: Option<Vec<&str>> = words.iter().map(Value::as_str).collect();
        let words = words.context("changes: text is expected")?;
        let before = cache.settings();
        let mut settings = (*before).clone();
        let keys = words.iter().filter_map(|word| word.split_once('=')).map(|(key, _)| key);
        Changes::parse(words.iter().copied())?.apply(&mut settings);
        let mut reply = json!({"settings": settings_json(&settings)});
        if before.consistency.trusts()
            && settings.consistency == Consistency::Shared
            && self.kernel.believes > Duration::from_secs(60)
        {
            reply["note"] = json!(format!(
                "the kernel goes on believing names and attributes that it has for up to {} s; \
                 files are compared with the server when they are opened",
                self.kernel.believes.as_secs()
            ));
        }
        self.adopt(cache, settings)?;
        self.provenance.lock().set(keys);
        Ok(reply)
    }

    async fn verify(&self, progress: Progress<'_>) -> Result<Value> {
        let cache = self.cache()?.clone();
        let counts = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let (disk, counted) = (cache.clone(), counts.clone());
        let mut work = tokio::task::spawn_blocking(move || {
            disk.verify(&mut |done, total| {
                counted.0.store(done, Ordering::Relaxed);
                counted.1.store(total, Ordering::Relaxed);
            })
        });
        let report = loop {
            tokio::select! {
                report = &mut work => break report?,
                _ = tokio::time::sleep(TELL_EVERY) => progress(json!({
                    "done": counts.0.load(Ordering::Relaxed),
                    "total": counts.1.load(Ordering::Relaxed),
                })),
            }
        };
        let bad = tokio::task::spawn_blocking(move || files::bad_ranges(&cache, &report));
        Ok(bad.await?)
    }

    /// Starts or ends a recording of what is touched, or tells what was.
    async fn profile(&self, arguments: &Value) -> Result<Value> {
        let layer = self.metadata.as_ref().filter(|_| self.cache.is_some()).ok_or_else(|| {
            Exit::Refused.mark(Hinted::error(
                format!("session {} has no metadata layer over a disk cache", self.record.name),
                "mount with -o cache=on,metadata=on",
            ))
        })?;
        let caller = files::own_caller();
        let profiled = match arguments["what"].as_str().unwrap_or_default() {
            "start" => {
                layer.start_profile();
                Vec::new()
            }
            "stop" => layer.stop_profile(&caller).await,
            "show" => layer.profile(),
            other => bail!("profile {other}: start, stop or show is expected"),
        };
        let file = |profiled: gridvfs_metadata::layer::Profiled| {
            let mut file = json!({
                "path": paths::to_value(&profiled.path),
                "size": profiled.size,
                "bytes": profiled.set.bytes(),
                "runs": profiled.set.runs,
                "ranges": profiled.set.ranges,
            });
            if let Some(error) = profiled.error {
                file["error"] = json!(error);
            }
            file
        };
        Ok(json!({"files": profiled.into_iter().map(file).collect::<Vec<_>>()}))
    }

    fn prune(&self, arguments: &Value) -> Result<Value> {
        let cache = self.cache()?;
        let bytes = arguments["bytes"].as_u64().context("bytes: a number is expected")?;
        Ok(json!({"freed_bytes": cache.prune(bytes)}))
    }
}

impl Service for SessionControl {
    fn words(&self) -> String {
        format!("{} {}", self.record.source, self.record.place())
    }

    fn is_writing_back(&self) -> bool {
        self.writing_back.try_lock().is_err()
    }

    fn held(&self) -> Held {
        let link = self.client.as_ref().map(|client| client.counters().to_map());
        let of_link = |name: &str| link.as_ref().and_then(|link| link.get(name)?.as_u64());
        let buffered = || self.buffer.as_ref().map_or(0, |buffer| buffer.dirty_bytes());
        let unsent = self.cache.as_ref().map(|cache| cache.unsent());
        Held {
            // What the buffers hold is part of what the cache has not sent.
            unsent_bytes: unsent.as_ref().map_or_else(buffered, |unsent| unsent.bytes),
            unsent_names: unsent.map_or(0, |unsent| unsent.names),
            sent_bytes: of_link("sent_bytes").unwrap_or(0),
            unreachable_seconds: of_link("unreachable_seconds"),
        }
    }
}

#[async_trait]
impl Control for SessionControl {
    async fn run(
        &self,
        verb: &str,
        arguments: &Value,
        progress: Progress<'_>,
    ) -> Result<Option<Value>> {
        let paths = || -> Result<Vec<Vec<u8>>> {
            let list = arguments["paths"].as_array().context("paths: a list is expected")?;
            if list.is_empty() {
                bail!("no path is given");
            }
            list.iter().map(paths::from_value).collect()
        };
        Ok(Some(match verb {
            "status" => self.status(arguments),
            "config" => self.config(),
            "writeback" => {
                self.write_back().await?;
                json!({})
            }
            "flush" => {
                self.flush().await?;
                json!({})
            }
            "cancel" => self.cancel()?,
            "set" => self.set(arguments)?,
            "conflicts" => conflicts::list(&[(None, self.cache()?)]),
            "resolve" => {
                conflicts::resolve(&[(None, self.cache()?)], &self.record.name, arguments).await?
            }
            "cache-status" => self.whole_cache_status().await?,
            "cache-verify" => self.verify(progress).await?,
            "cache-warm" => {
                let metadata = self.metadata.as_ref();
                files::warm(self.cache()?, metadata, &paths()?, progress).await?
            }
            "cache-pin" => {
                let pinned = arguments["pinned"].as_bool().context("pinned: yes or no?")?;
                files::pin(self.cache()?, &paths()?, pinned).await?
            }
            "cache-prune" => self.prune(arguments)?,
            "profile" => self.profile(arguments).await?,
            "local-file" => {
                let path = paths::from_value(&arguments["path"])?;
                files::local_file(self.cache()?, &path).await?
            }
            _ => return Ok(None),
        }))
    }
}
