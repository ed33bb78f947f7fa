//! The mount process: from the connection to the last byte written back.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use env_logger::WriteStyle;
use env_logger::fmt::Formatter;
use gridvfs_cache::DiskCache;
use gridvfs_cache::disk::{AtEnd, Consistency, Policy};
use gridvfs_cache::store::Geometry;
use gridvfs_fuse::{MountOptions, Session, SessionOptions};
use serde_json::{Value, json};

use super::Plan;
use super::connect::{Cache, Stack, connect};
use super::control::{Kernel, SessionControl};
use super::manager::{Manager, Service};
use super::signals;
use crate::cache_dir::source_hash;
use crate::daemon::{self, Starter};
use crate::directories;
use crate::options::CacheOptions;
use crate::report::{Exit, bytes_text, count_text, unsent_text};
use crate::session::{Record, Registration, Server};

/// Two threads carry 1 Gbit/s with time to spare; more would only wait for each other.
const NETWORK_THREADS: usize = 2;

/// How long work that nobody waits for any more may keep the process.
const RUNTIME_END_MAX: Duration = Duration::from_secs(2);

/// Connects, mounts and serves until unmounted; returns when everything is on the state server.
pub fn run(plan: &Plan, starter: &mut Starter) -> Result<()> {
    let stays = plan.args.foreground || plan.args.debug;
    start_log(plan.args.debug, stays);
    // Files get the modes that callers ask for: the kernel has applied each caller's own umask.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    daemon::keep_memory_small();
    daemon::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(NETWORK_THREADS)
        .enable_all()
        .build()?;
    let target = plan.target();
    let stack = runtime.block_on(async {
        tokio::select! {
            stack = connect(&target) => stack,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        }
    })?;
    let suggested = plan.mountpoint.file_name().map_or("session".into(), |n| n.to_string_lossy());
    let draft = Record {
        name: suggested.into_owned(),
        source: plan.source_text.clone(),
        mountpoint: Some(plan.mountpoint.clone()),
        listen: Vec::new(),
        pid: std::process::id(),
        cache: stack.cache.as_ref().map(|cache| cache.dir.path.clone()),
    };
    let registration = Registration::new(plan.name.as_deref(), &draft)?;
    let record = registration.record().clone();
    let settings = &plan.settings;
    let device = gridvfs_fuse::mount(
        &plan.mountpoint,
        &MountOptions {
            source: plan.source_text.clone(),
            read_only: settings.read_only,
            allow_other: settings.allow_other,
            default_permissions: settings.default_permissions || settings.allow_other,
            nonempty: settings.nonempty,
            extra: settings.kernel.clone(),
        },
    )?;
    let mounted = Mounted { plan };
    let cache_settings = stack.cache.as_ref().map(|cache| cache.disk.settings());
    let life = |usual| CacheOptions::life(cache_settings.as_deref(), usual);
    let kernel_writeback = settings.cache.kernel_writeback
        && cache_settings.as_ref().is_some_and(|settings| {
            settings.consistency == Consistency::Dedicated && settings.policy == Policy::WriteBack
        });
    let second = Duration::from_secs(1);
    let options = SessionOptions {
        attr_timeout: settings.attr_timeout.unwrap_or(life(second)),
        entry_timeout: settings.entry_timeout.unwrap_or(life(second)),
        negative_timeout: settings.negative_timeout.unwrap_or(life(Duration::ZERO)),
        allow_other: settings.allow_other,
        default_permissions: settings.default_permissions || settings.allow_other,
        read_only: settings.read_only,
        writeback_cache: kernel_writeback,
        listing_cache: cache_settings.is_some_and(|settings| settings.consistency.trusts()),
        // A disk cache decides what is to be heard of.
        listens: stack.cache.is_some(),
        passthrough: settings.cache.passthrough,
        ..SessionOptions::default()
    };
    let silly =
        directories::state()?.join(format!("silly-{:016x}", source_hash(&plan.source_text)));
    let handle = runtime.handle().clone();
    let kernel = Kernel {
        believes: options.attr_timeout.max(options.entry_timeout),
        writes_back: kernel_writeback,
    };
    let session = Session::new(device, stack.top.clone(), handle, options, Some(&silly))
        .context("the kernel refuses the FUSE session")?;
    let control = SessionControl::new(plan, &record, &stack, session.activity(), kernel);
    let control = Arc::new(control);
    let context = runtime.enter();
    let server = Server::start(&record, control.clone())?;
    let words = words(plan, &record, stack.cache.as_ref());
    if let Some(host) = &stack.host {
        host.stop_prompting();
    }
    starter.started(&words, &directories::state()?.join(format!("{}.log", record.name)))?;
    log::info!("{} mounted {}", record.source, record.place());
    if !words.is_empty() && !plan.args.json {
        log::info!("{}", words.trim_end());
    }
    let manager = Arc::new(Manager::new(stays));
    signals::handle(&runtime, plan, &control, &manager)?;
    manager.ready(&control.words());
    runtime.spawn(manager.clone().watch(control.clone()));
    let served = session.run();
    drop(mounted);
    log::info!("unmounted; ending the session");
    manager.stopping();
    let ended = runtime.block_on(end(&record, &stack));
    let result = served.map_err(anyhow::Error::from).and(ended);
    let last = stack.cache.as_ref().map_or(json!({}), left);
    if let Some(client) = &stack.client {
        runtime.block_on(client.end_session(&gridvfs_vfs::Caller {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
        }));
    }
    // The entry goes first: whoever hears that the session has ended may reuse its name.
    drop(registration);
    let error = result.as_ref().err().map(|error| (format!("{error:#}"), Exit::of(error)));
    runtime.block_on(server.end(error, last));
    drop(context);
    // What somebody asked for and has not waited for (a look through all blocks) ends here.
    runtime.shutdown_timeout(RUNTIME_END_MAX);
    result
}

/// What to print once the mount works.
fn words(plan: &Plan, record: &Record, cache: Option<&Cache>) -> String {
    let unsent = cache.map(|cache| cache.dir.unsent).filter(|unsent| !unsent.is_empty());
    let kept = cache.is_some_and(|cache| {
        let settings = cache.disk.settings();
        settings.at_end == AtEnd::Preserve || settings.policy == Policy::ReadOnly
    });
    if plan.args.json {
        let mut words = json!({
            "ok": true, "session": record.name, "source": record.source,
            "mountpoint": record.mountpoint, "pid": record.pid,
        });
        if let Some(cache) = cache {
            words["cache"] = json!({
                "directory": cache.dir.path,
                "unsent_bytes": unsent.map_or(0, |unsent| unsent.bytes),
                "unsent_files": unsent.map_or(0, |unsent| unsent.files),
                "unsent_names": unsent.map_or(0, |unsent| unsent.names),
                "unsent_kept": kept,
                "emptied": cache.disk.replaced().is_some(),
            });
        }
        return format!("{words}\n");
    }
    let Some(cache) = cache else { return String::new() };
    let shape = shape_words(&cache.disk, &plan.settings.cache.geometry);
    let Some(unsent) = unsent else { return shape };
    let found = format!("{} of an earlier session not yet sent", unsent_text(&unsent));
    let (name, settings) = (&record.name, cache.disk.settings());
    let becomes = match (settings.policy, settings.at_end) {
        (Policy::ReadOnly, _) => "kept: this mount is read-only".to_string(),
        (_, AtEnd::Preserve) => {
            format!("kept, as at_end=preserve says (gridvfs writeback {name} sends it)")
        }
        _ => format!("being sent now (gridvfs status {name})"),
    };
    let conflicts = match unsent.conflicts {
        0 => String::new(),
        count => format!("\n{count} in conflict: gridvfs conflicts {name}"),
    };
    format!("{shape}{found}: {becomes}{conflicts}\n")
}

/// Says if a cache has another size or shape than it had, or than is wanted.
fn shape_words(cache: &DiskCache, wanted: &Geometry) -> String {
    let text = |geometry: &Geometry| {
        let Geometry { size_bytes, banks, ways, frame_bytes } = *geometry;
        let (size, frame) = (bytes_text(size_bytes), frame_bytes >> 10);
        format!(
            "{size} ({}, {}, frames of {frame} KiB)",
            count_text(banks.into(), "bank"),
            count_text(ways.into(), "way")
        )
    };
    let now = cache.geometry();
    match cache.replaced() {
        Some(before) => format!(
            "the cache had {} and has been made anew, empty, with {}: nothing unsent is lost, what \
             was read is fetched again\n",
            text(&before),
            text(&now)
        ),
        None if now != *wanted => {
            format!("the cache is shared and keeps {}, not {}\n", text(&now), text(wanted))
        }
        None => String::new(),
    }
}

/// Ends the layers: what is to reach the state server has, or stays in the cache.
async fn end(record: &Record, stack: &Stack) -> Result<()> {
    if let Some(metadata) = stack.metadata.clone() {
        let _ = tokio::task::spawn_blocking(move || metadata.end()).await;
    }
    let Some(cache) = &stack.cache else {
        let ended = stack.top.shutdown().await;
        let ended = ended.map_err(|error| Exit::Unsent.mark(error.into()));
        return ended.with_context(|| format!("{}: not all data was written back", record.source));
    };
    let ended = cache.disk.close().await;
    let unsent = cache.disk.unsent();
    let place = cache.dir.path.display();
    if !unsent.is_empty() {
        log::warn!("{} not sent, kept in {place} for the next mount", unsent_text(&unsent));
    }
    let ended = ended.map_err(|error| Exit::Unsent.mark(error.into()));
    ended.with_context(|| match unsent.is_empty() {
        true => format!("{}: not all data was written back", record.source),
        false => format!(
            "{}: {} could not be written back and is kept in {place} for the next mount",
            record.source,
            unsent_text(&unsent)
        ),
    })
}

/// What is left in a cache.
fn left(cache: &Cache) -> Value {
    let unsent = cache.disk.unsent();
    json!({
        "unsent_bytes": unsent.bytes, "unsent_files": unsent.files,
        "unsent_names": unsent.names,
        "cache_directory": cache.dir.path,
    })
}

/// Unmounts when the start fails half way. A clean unmount has happened before it is dropped.
struct Mounted<'a> {
    plan: &'a Plan,
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let mountpoint = &self.plan.mountpoint;
        if let gridvfs_fuse::MountState::Stale { .. } = gridvfs_fuse::inspect(mountpoint) {
            let _ = gridvfs_fuse::unmount(mountpoint, true);
        }
    }
}

/// What goes to the background ends in a file, where colours are noise.
fn start_log(debug: bool, stays: bool) {
    let level = if debug { "debug" } else { "info" };
    let environment = env_logger::Env::default().filter_or("GRIDVFS_LOG", level);
    let style = if stays { WriteStyle::Auto } else { WriteStyle::Never };
    let mut builder = env_logger::Builder::from_env(environment);
    builder.format_target(false).write_style(style);
    if stays && std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.format(write_for_journal);
    }
    builder.init();
}

/// The journal of systemd has the time already, and takes the level as sd-daemon(3) says.
fn write_for_journal(out: &mut Formatter, record: &log::Record<'_>) -> std::io::Result<()> {
    let level = match record.level() {
        log::Level::Error => 3,
        log::Level::Warn => 4,
        log::Level::Info => 6,
        log::Level::Debug | log::Level::Trace => 7,
    };
    for line in record.args().to_string().lines() {
        writeln!(out, "<{level}>{line}")?;
    }
    Ok(())
}
