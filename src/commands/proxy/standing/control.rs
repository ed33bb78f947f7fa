//! What a standing proxy's control socket and signals tell and do: those verbs of a session
//! (docs/control.md) that mean something without a mount, and `stop`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use gridvfs_cache::DiskCache;
use gridvfs_proxy::serve;
use gridvfs_vfs::{Durations, Error};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::Served;
use crate::commands::mount::control::conflicts;
use crate::commands::mount::control::status::{stack_json, times_json};
use crate::commands::mount::manager::{Held, Service};
use crate::options::differences;
use crate::proxy_config::ProxyConfig;
use crate::report::{Exit, Hinted, unsent_text};
use crate::session::{Control, Progress, Record};

/// So many clients are told of one by one.
const CLIENTS_TOLD_MAX: usize = 1000;

/// A standing proxy, for its control socket, its signals and its service manager.
pub struct ProxyControl {
    path: PathBuf,
    record: Record,
    started: Instant,
    served: Arc<Vec<Served>>,
    serving: Arc<serve::Control>,
    /// What its file said when it was last read.
    config: Mutex<ProxyConfig>,
    /// One write-back at a time.
    writing_back: tokio::sync::Mutex<()>,
}

impl ProxyControl {
    /// Makes it of a proxy's parts.
    pub fn new(
        path: &Path,
        config: &ProxyConfig,
        record: &Record,
        served: Arc<Vec<Served>>,
        serving: Arc<serve::Control>,
    ) -> Self {
        Self {
            path: path.into(),
            record: record.clone(),
            started: Instant::now(),
            served,
            serving,
            config: Mutex::new(config.clone()),
            writing_back: tokio::sync::Mutex::new(()),
        }
    }

    /// The exports that have a disk cache.
    fn caches(&self) -> impl Iterator<Item = (&Served, &Arc<DiskCache>)> {
        self.served.iter().filter_map(|export| Some((export, &export.stack.cache.as_ref()?.disk)))
    }

    /// The same, each with its export's name.
    fn named_caches(&self) -> Vec<(Option<&str>, &Arc<DiskCache>)> {
        self.caches().map(|(export, disk)| (Some(&*export.name), disk)).collect()
    }

    /// Sends what is unsent of all exports; with `flushes`, empties their caches, too. Goes on after
    /// one that cannot be sent; returns the first reason.
    pub async fn send_all(&self, flushes: bool) -> Result<()> {
        let _one = self.writing_back.lock().await;
        let what = if flushes { "flush" } else { "write back" };
        let mut first = Ok(());
        for (export, disk) in self.caches() {
            let done = match flushes {
                true => disk.flush_all().await,
                false => disk.write_back().await,
            };
            if done.is_ok() {
                log::info!("export {}: {what}: done", export.name);
            }
            let unsent = disk.unsent();
            let exit = if unsent.conflicts > 0 { Exit::Conflict } else { Exit::Unsent };
            first = first.and(done.map_err(|error| match error {
                Error::Interrupted => Exit::Unsent.mark(Hinted::error(
                    format!(
                        "export {}: {what} was cancelled; {} not sent",
                        export.name,
                        unsent_text(&unsent)
                    ),
                    "it is kept, and sent when its time comes",
                )),
                error => exit.mark(anyhow::anyhow!("export {}: {what}: {error}", export.name)),
            }));
        }
        first
    }

    /// Reads the file again: the settings of caches that may change while they are used. The key file
    /// is read by itself. A file with an error in it changes nothing.
    pub fn reload(&self) -> Result<()> {
        let reloaded = self.reload_checked();
        if let Err(error) = &reloaded {
            log::error!("{error:#}; the settings stay as they were");
        }
        reloaded
    }

    fn reload_checked(&self) -> Result<()> {
        let new = ProxyConfig::from_file(&self.path)?;
        let mut config = self.config.lock();
        let mut wanted = Vec::new();
        let mut later = Vec::new();
        for (export, disk) in self.caches() {
            let (Some(old), Some(new)) =
                (config.exports.get(&export.name), new.exports.get(&export.name))
            else {
                continue;
            };
            let settings = old.settings.cache.settings_with(&new.settings.cache.changes)?;
            let fits = old.settings.cache.fit(&settings);
            fits.with_context(|| format!("[export.{}]", export.name))?;
            wanted.push((disk, settings));
        }
        for (name, old) in &config.exports {
            let Some(new) = new.exports.get(name) else { continue };
            let differ = differences(&old.settings, &new.settings);
            later.extend(differ.into_iter().map(|key| format!("{key} of [export.{name}]")));
        }
        let sources = |config: &ProxyConfig| -> Vec<_> {
            let exports = config.exports.iter();
            exports.map(|(name, export)| (name.clone(), export.text.clone())).collect()
        };
        let shape = |config: &ProxyConfig| {
            let ProxyConfig { name, listen, socket_mode, key_file, limits, .. } = config;
            (name.clone(), listen.clone(), *socket_mode, key_file.clone(), *limits)
        };
        let guests = |config: &ProxyConfig| {
            (config.keys.clone(), config.others.clone(), config.keyless.clone())
        };
        if sources(&config) != sources(&new) {
            later.push("exports and sources".into());
        }
        if shape(&config) != shape(&new) {
            later.push("names, addresses, the key file's path and limits".into());
        }
        if guests(&config) != guests(&new) {
            later.push("[identity], [key] and [keyless]".into());
        }
        for (disk, settings) in wanted {
            disk.set(settings).map_err(anyhow::Error::msg)?;
        }
        if !later.is_empty() {
            log::warn!("{} hold for a proxy's whole life: at the next start", later.join("; "));
        }
        // What holds for the whole life stays in force, and is compared with the next time.
        for (name, export) in &mut config.exports {
            if let Some(new) = new.exports.get(name) {
                export.settings.cache.changes = new.settings.cache.changes.clone();
            }
        }
        log::info!("{} was read again", self.path.display());
        Ok(())
    }

    fn status(&self) -> Value {
        let export = |export: &Served| {
            let mut status = stack_json(&export.stack);
            status["source"] = json!(export.source);
            (export.name.clone(), status)
        };
        let exports: serde_json::Map<String, Value> = self.served.iter().map(export).collect();
        let mut server = json!({"channels": self.serving.channels()});
        let mut times: Vec<(&'static str, Durations)> = Vec::new();
        let mut sums = [("calls", 0), ("denied", 0), ("garbled", 0), ("replayed", 0)];
        for counters in self.serving.counters() {
            let counted =
                [&counters.calls, &counters.denied, &counters.garbled, &counters.replayed];
            for ((_, sum), counter) in sums.iter_mut().zip(counted) {
                *sum += counter.load(Ordering::Relaxed);
            }
            for (class, took) in counters.times() {
                match times.iter_mut().find(|(other, _)| *other == class) {
                    Some((_, all)) => all.add(&took),
                    None => times.push((class, took)),
                }
            }
        }
        sums.into_iter().for_each(|(name, sum)| server[name] = json!(sum));
        let client = |client: Arc<gridvfs_proxy::gate::Guest>| {
            let traffic = client.traffic();
            json!({
                "name": client.name(),
                "channels": traffic.channels.load(Ordering::Relaxed),
                "calls": traffic.calls.load(Ordering::Relaxed),
                "received_bytes": traffic.received_bytes.load(Ordering::Relaxed),
                "sent_bytes": traffic.sent_bytes.load(Ordering::Relaxed),
            })
        };
        let clients = self.serving.clients();
        let not_listed = clients.len().saturating_sub(CLIENTS_TOLD_MAX);
        let clients: Vec<Value> = clients.into_iter().take(CLIENTS_TOLD_MAX).map(client).collect();
        json!({
            "session": self.record.name,
            "source": self.record.source,
            "listen": self.record.listen,
            "pid": self.record.pid,
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "clients": clients,
            "clients_not_listed": not_listed,
            "server": server,
            "latency": {"requests": times_json(times)},
            "exports": exports,
        })
    }

    fn cancel(&self) -> Value {
        let (mut cancelled, mut unsent_bytes) = (false, 0);
        for (export, disk) in self.caches() {
            if disk.cancel_write_back() {
                log::info!("export {}: the write-back is cancelled", export.name);
                cancelled = true;
            }
            unsent_bytes += disk.unsent().bytes;
        }
        json!({"cancelled": cancelled, "unsent_bytes": unsent_bytes})
    }
}

impl Service for ProxyControl {
    fn words(&self) -> String {
        format!("{} {}", self.record.source, self.record.place())
    }

    fn is_writing_back(&self) -> bool {
        self.writing_back.try_lock().is_err()
    }

    fn held(&self) -> Held {
        let mut held =
            Held { unsent_bytes: 0, unsent_names: 0, sent_bytes: 0, unreachable_seconds: None };
        for (export, disk) in self.caches() {
            let unsent = disk.unsent();
            held.unsent_bytes += unsent.bytes;
            held.unsent_names += unsent.names;
            if let Some(client) = &export.stack.client {
                let counters = client.counters();
                held.sent_bytes += counters.sent_bytes.load(Ordering::Relaxed);
                let away = counters.unreachable_for().map(|time| time.as_secs());
                held.unreachable_seconds = held.unreachable_seconds.max(away);
            }
        }
        held
    }
}

#[async_trait]
impl Control for ProxyControl {
    async fn run(&self, verb: &str, arguments: &Value, _: Progress<'_>) -> Result<Option<Value>> {
        Ok(Some(match verb {
            "status" => self.status(),
            "writeback" | "flush" => {
                if verb == "flush" && self.caches().next().is_none() {
                    return Err(Exit::Refused.mark(Hinted::error(
                        format!("no export of {} has a disk cache", self.record.name),
                        "cache = \"on\" in [export.NAME]",
                    )));
                }
                self.send_all(verb == "flush").await?;
                json!({})
            }
            "cancel" => self.cancel(),
            "stop" => {
                self.serving.stop();
                json!({})
            }
            "set" | "config" => {
                return Err(Exit::Refused.mark(Hinted::error(
                    format!("session {} is a standing proxy", self.record.name),
                    format!(
                        "its settings are in {}; SIGHUP has it read that again",
                        self.path.display()
                    ),
                )));
            }
            "conflicts" => conflicts::list(&self.named_caches()),
            "resolve" => {
                conflicts::resolve(&self.named_caches(), &self.record.name, arguments).await?
            }
            _ if verb.starts_with("cache-") || matches!(verb, "profile" | "local-file") => {
                bail!(Exit::Refused.mark(anyhow::anyhow!(
                    "{verb} is for mounts; {} is a standing proxy",
                    self.record.name
                )))
            }
            _ => return Ok(None),
        }))
    }
}
