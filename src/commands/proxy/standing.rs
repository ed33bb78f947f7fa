//! `gridvfs proxy serve --config FILE`: a standing proxy, put together of what its file says.

mod control;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use gridvfs_proxy::backend;
use gridvfs_proxy::changes::Hub;
use gridvfs_proxy::confine::{ConfinedLayer, Seal};
use gridvfs_proxy::gate::{Export, Guest};
use gridvfs_proxy::hops::HopBoard;
use gridvfs_proxy::identity::IdentityLayer;
use gridvfs_proxy::rights::RightsLayer;
use gridvfs_proxy::serve::{self, KeyRing, ServeConfig};
use gridvfs_upstream::ConnectError;
use gridvfs_vfs::Vfs;
use gridvfs_vfs::ext::{HOP_ID_BYTES, Hops};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::commands::mount::connect::{Stack, Target, connect};
use crate::commands::mount::manager::{Manager, Service};
use crate::directories;
use crate::proxy_config::{ExportConfig, GuestConfig, ProxyConfig};
use crate::report::{Exit, error_text, unsent_text};
use crate::session::{Record, Registration, Server};
use crate::source::Source;
use control::ProxyControl;

/// How long to wait before an upstream that does not answer is tried again.
const CONNECT_PAUSE: Duration = Duration::from_secs(3);
/// How often the way to the files is asked for.
const HOPS_INTERVAL: Duration = Duration::from_secs(20);

/// An export with its layers.
pub(super) struct Served {
    name: String,
    source: String,
    stack: Stack,
    seal: Arc<Seal>,
    /// What clients reach of it: above the layers, below their identities.
    top: Arc<dyn Vfs>,
    /// It is a directory of this machine, and nothing is between.
    blocking: bool,
    /// It is a directory of this machine.
    local: bool,
    read_only: bool,
    changes: Arc<Hub>,
}

/// Serves until SIGTERM or SIGINT, and then sends what is to be sent.
pub async fn run(path: &Path) -> Result<()> {
    let config = ProxyConfig::from_file(path)?;
    let board = Arc::new(HopBoard::new(own_id(path)?, own_name(&config.name)));
    let mut served = Vec::new();
    for (name, export) in &config.exports {
        served.push(open(name, export, &board).await?);
    }
    let served = Arc::new(served);
    learn_hops(&served, &board).await?;
    // What is wrong with a guest is told now, not when it comes.
    for guest in config.keys.values().chain([&config.others, &config.keyless]) {
        exports_of(&served, guest)?;
    }
    let keys = match &config.key_file {
        Some(path) => Some(KeyRing::open(path, Box::new(shown(&config, &served)))?),
        None => None,
    };
    let keyless = config.listen.iter().any(|at| at.keyless);
    let keyless = match keyless {
        true => Some(Guest::new("anybody", None, exports_of(&served, &config.keyless)?)),
        false => None,
    };
    let listening = serve::listen(ServeConfig {
        listen: config.listen.clone(),
        socket_mode: config.socket_mode,
        keys,
        keyless,
        limits: config.limits,
        hops: board.clone(),
    })
    .await?;
    let registration = register(&config, &served, listening.addresses())?;
    let record = registration.record().clone();
    let control =
        Arc::new(ProxyControl::new(path, &config, &record, served.clone(), listening.control()));
    let server = Server::start(&record, control.clone())?;
    for address in listening.addresses() {
        println!("listening on {address}");
    }
    std::io::stdout().flush()?;
    let manager = Arc::new(Manager::new(true));
    handle_signals(&control)?;
    manager.ready(&control.words());
    tokio::spawn(manager.clone().watch(control.clone()));
    let look_again = Notify::new();
    let reload = || {
        manager.reloading();
        let words = match control.reload() {
            Ok(()) => control.words(),
            Err(error) => format!("{error:#}; the settings stay as they were"),
        };
        manager.ready(&words);
        look_again.notify_one();
    };
    let ended = tokio::select! {
        ended = listening.serve(reload) => {
            manager.stopping();
            match ended {
                Ok(()) => end(&served).await,
                Err(error) => Err(error.into()),
            }
        }
        // What is unsent stays in the caches: sending it would go round in the circle.
        looped = watch_hops(&served, &board, &look_again) => looped,
    };
    // The entry goes first: whoever hears that the proxy has ended may reuse its name.
    drop(registration);
    let error = ended.as_ref().err().map(|error| (format!("{error:#}"), Exit::of(error)));
    server.end(error, serde_json::json!({})).await;
    ended
}

/// Enters the proxy among the sessions. A name that its file gives is the one, or it does not start.
fn register(config: &ProxyConfig, served: &[Served], addresses: &[String]) -> Result<Registration> {
    let sources: Vec<&str> = served.iter().map(|export| &*export.source).collect();
    let draft = Record {
        name: config.name.clone(),
        source: sources.join(", "),
        mountpoint: None,
        listen: addresses.to_vec(),
        pid: std::process::id(),
        cache: None,
    };
    Registration::new(config.is_named.then_some(&*config.name), &draft)
}

/// Opens an export. An upstream that does not answer is tried again: it may be started later.
async fn open(name: &str, config: &ExportConfig, board: &Arc<HopBoard>) -> Result<Served> {
    let target = Target {
        text: config.text.clone(),
        source: config.source.clone(),
        settings: config.settings.clone(),
        mountpoint: None,
        // Clients keep handles for longer than a cache need live.
        defer_names: false,
        hops: Some(board.clone()),
    };
    let mut said = false;
    let stack = loop {
        match connect(&target).await {
            Ok(stack) => break stack,
            Err(error) => {
                let again = error
                    .chain()
                    .any(|cause| matches!(cause.downcast_ref(), Some(ConnectError::Transient(_))));
                if !again {
                    return Err(error).with_context(|| format!("[export.{name}]"));
                }
                if !std::mem::replace(&mut said, true) {
                    log::warn!("export {name}: {error:#}; trying again");
                }
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
        }
    };
    if let Some(cache) = &stack.cache {
        let words = match cache.dir.unsent {
            unsent if unsent.is_empty() => "nothing unsent in it".into(),
            unsent => format!("{} of before not yet sent", unsent_text(&unsent)),
        };
        log::info!("export {name}: cache in {}, {words}", cache.dir.path.display());
    }
    let local = matches!(config.source, Source::Local(_));
    let top: Arc<dyn Vfs> = match (&stack.cache, &stack.client) {
        // Without a cache nothing is held here: what is answered is on its way, or done, upstream.
        (None, Some(client)) => client.clone(),
        _ => stack.top.clone(),
    };
    let blocking = local && stack.cache.is_none();
    let seal = Arc::new(Seal::open(&directories::state()?, name)?);
    let changes = Hub::new(top.clone(), Some(seal.clone()), config.exclusive);
    Ok(Served {
        name: name.into(),
        source: config.text.clone(),
        blocking,
        seal,
        changes,
        top,
        stack,
        local,
        read_only: config.settings.read_only,
    })
}

/// Makes what a guest is shown.
fn exports_of(served: &[Served], guest: &GuestConfig) -> Result<Vec<Export>> {
    let wanted = |export: &&Served| match &guest.exports {
        Some(names) => names.contains(&export.name),
        None => true,
    };
    let mut exports = Vec::new();
    for export in served.iter().filter(wanted) {
        let map = backend::identity_map(guest.shadow, guest.table.as_ref(), export.local)
            .with_context(|| format!("[export.{}]", export.name))?;
        let read_only = export.read_only || guest.read_only;
        let mut vfs: Arc<dyn Vfs> =
            Arc::new(ConfinedLayer::sealed_by(export.seal.clone(), export.top.clone(), read_only));
        if export.stack.cache.is_some() && !map.is_squash() {
            vfs = Arc::new(RightsLayer::new(vfs));
        }
        exports.push(Export {
            path: format!("/{}", export.name).into_bytes(),
            vfs: Arc::new(IdentityLayer::new(vfs, map)),
            blocking: export.blocking,
            seal: Some(export.seal.clone()),
            changes: Some(export.changes.clone()),
        });
    }
    Ok(exports)
}

fn shown(
    config: &ProxyConfig,
    served: &Arc<Vec<Served>>,
) -> impl Fn(&str) -> Option<Vec<Export>> + Send + Sync + 'static {
    let (served, others) = (served.clone(), config.others.clone());
    let keys: BTreeMap<String, GuestConfig> = config.keys.clone();
    move |name| match exports_of(&served, keys.get(name).unwrap_or(&others)) {
        Ok(exports) => Some(exports),
        Err(error) => {
            log::error!("the key of {name} is good for nothing: {error:#}");
            None
        }
    }
}

/// Returns what tells this proxy from others: made at random the first time, and kept.
fn own_id(config: &Path) -> Result<[u8; HOP_ID_BYTES]> {
    let config = std::fs::canonicalize(config)?;
    let hash = crate::cache_dir::source_hash(&config.to_string_lossy());
    let path = directories::state()?.join(format!("proxy-{hash:016x}.id"));
    if let Some(id) = std::fs::read(&path).ok().and_then(|bytes| bytes.try_into().ok()) {
        return Ok(id);
    }
    let mut id = [0; HOP_ID_BYTES];
    if SystemRandom::new().fill(&mut id).is_err() {
        bail!("no random numbers to name this proxy by");
    }
    let mut options = std::fs::File::options();
    let written = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
    written.and_then(|mut file| file.write_all(&id)).with_context(|| path.display().to_string())?;
    Ok(id)
}

fn own_name(name: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{name}@{}", host.trim())
}

/// Asks all upstreams which proxies they are and have behind them.
async fn learn_hops(served: &[Served], board: &HopBoard) -> Result<()> {
    let caller = backend::own_identity();
    let mut answers: Vec<Hops> = Vec::new();
    for export in served {
        let Some(client) = &export.stack.client else { continue };
        match client.hops(&caller).await {
            Ok(hops) => answers.push(hops),
            Err(error) => log::debug!("export {}: {error}", export.name),
        }
    }
    board.learn(&answers).context("a proxy must not be its own upstream")
}

/// Goes on asking: an upstream may have been started anew with another upstream of its own.
async fn watch_hops(served: &[Served], board: &HopBoard, look_again: &Notify) -> Result<()> {
    loop {
        let _ = tokio::time::timeout(HOPS_INTERVAL, look_again.notified()).await;
        learn_hops(served, board).await?;
    }
}

/// SIGUSR1 writes back, SIGUSR2 flushes (paper, section 4.2).
fn handle_signals(control: &Arc<ProxyControl>) -> Result<()> {
    let mut write_back = signal(SignalKind::user_defined1())?;
    let mut flush = signal(SignalKind::user_defined2())?;
    let control = control.clone();
    tokio::spawn(async move {
        loop {
            let flushes = tokio::select! {
                _ = write_back.recv() => false,
                _ = flush.recv() => true,
            };
            let control = control.clone();
            tokio::spawn(async move {
                if let Err(error) = control.send_all(flushes).await {
                    log::error!("{error:#}");
                }
            });
        }
    });
    Ok(())
}

/// Ends the layers: what is to reach the upstreams has, or stays in the caches.
async fn end(served: &[Served]) -> Result<()> {
    let mut result = Ok(());
    for export in served {
        let stack = &export.stack;
        if let Some(metadata) = stack.metadata.clone() {
            let _ = tokio::task::spawn_blocking(move || metadata.end()).await;
        }
        if let Some(cache) = &stack.cache {
            let ended = cache.disk.close().await;
            let unsent = cache.disk.unsent();
            if !unsent.is_empty() {
                log::warn!("export {}: {} not sent, kept", export.name, unsent_text(&unsent));
            }
            if let Err(error) = ended {
                let error = Exit::Unsent
                    .mark(error.into())
                    .context(format!("export {}: not all was written back", export.name));
                log::error!("{}", error_text(&error));
                result = Err(error);
            }
        }
        if let Some(client) = &stack.client {
            let counters = client.counters();
            log::info!(
                "export {} of {} ends: {} calls, {} MiB received",
                export.name,
                export.source,
                counters.calls.load(Ordering::Relaxed),
                counters.received_bytes.load(Ordering::Relaxed) >> 20,
            );
            client.end_session(&backend::own_identity()).await;
        }
    }
    result
}
