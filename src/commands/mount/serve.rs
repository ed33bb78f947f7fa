//! The mount process: from the connection to the last byte written back.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use env_logger::WriteStyle;
use gridvfs_fuse::{MountOptions, Session, SessionOptions};
use gridvfs_vfs::Vfs;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::Plan;
use super::connect::{Stack, connect};
use crate::daemon::{self, Starter};
use crate::directories;
use crate::session::{Control, Registration, Server};

/// Two threads carry 1 Gbit/s with time to spare; more would only wait for each other.
const NETWORK_THREADS: usize = 2;

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
    let stack = runtime.block_on(async {
        tokio::select! {
            stack = connect(plan) => stack,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        }
    })?;
    let suggested = plan.mountpoint.file_name().map_or("session".into(), |n| n.to_string_lossy());
    let registration = Registration::new(
        plan.args.session.as_deref(),
        &suggested,
        &plan.args.source,
        &plan.mountpoint,
    )?;
    let record = registration.record().clone();
    let settings = &plan.settings;
    let device = gridvfs_fuse::mount(
        &plan.mountpoint,
        &MountOptions {
            source: plan.args.source.clone(),
            read_only: settings.read_only,
            allow_other: settings.allow_other,
            default_permissions: settings.default_permissions || settings.allow_other,
            nonempty: settings.nonempty,
            extra: settings.kernel.clone(),
        },
    )?;
    let mounted = Mounted { plan };
    let options = SessionOptions {
        attr_timeout: settings.attr_timeout,
        entry_timeout: settings.entry_timeout,
        negative_timeout: settings.negative_timeout,
        allow_other: settings.allow_other,
        default_permissions: settings.default_permissions || settings.allow_other,
        read_only: settings.read_only,
        ..SessionOptions::default()
    };
    let silly = directories::state()?.join(format!("silly-{:016x}", name_hash(&plan.args.source)));
    let handle = runtime.handle().clone();
    let session = Session::new(device, stack.top.clone(), handle, options, Some(&silly))
        .context("the kernel refuses the FUSE session")?;
    let control = Arc::new(SessionControl::new(&record, &stack, session.counters()));
    let _context = runtime.enter();
    let server = Server::start(&record, control)?;
    let words = if plan.args.json {
        format!(
            "{}\n",
            json!({"ok": true, "session": record.name, "source": record.source,
            "mountpoint": record.mountpoint, "pid": record.pid})
        )
    } else {
        String::new()
    };
    if let Some(host) = &stack.host {
        host.stop_prompting();
    }
    starter.started(&words, &directories::state()?.join(format!("{}.log", record.name)))?;
    log::info!("{} mounted on {}", record.source, record.mountpoint.display());
    unmount_on_signals(&runtime, plan)?;
    let served = session.run();
    drop(mounted);
    log::info!("unmounted; writing back");
    let ended = runtime.block_on(stack.top.shutdown());
    let result = served.map_err(anyhow::Error::from).and(ended.map_err(|error| {
        anyhow::Error::from(error)
            .context(format!("{}: data could not be written back", record.source))
    }));
    if let Some(client) = &stack.client {
        runtime.block_on(client.end_session(&gridvfs_vfs::Caller {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
        }));
    }
    // The entry goes first: whoever hears that the session has ended may reuse its name.
    drop(registration);
    runtime.block_on(server.end(result.as_ref().err().map(|error| format!("{error:#}"))));
    result
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

/// Names what is kept for a source between mounts.
fn name_hash(source: &str) -> u64 {
    // FNV-1a: the same in every version of the program.
    source.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What goes to the background ends in a file, where colours are noise.
fn start_log(debug: bool, stays: bool) {
    let level = if debug { "debug" } else { "info" };
    let environment = env_logger::Env::default().filter_or("GRIDVFS_LOG", level);
    let style = if stays { WriteStyle::Auto } else { WriteStyle::Never };
    env_logger::Builder::from_env(environment).format_target(false).write_style(style).init();
}

/// SIGTERM and SIGINT unmount, as they do for sshfs; busy or not, since whoever sends them wants
/// the process to end. What is held is written back all the same; a second signal gives that up.
fn unmount_on_signals(runtime: &Runtime, plan: &Plan) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mountpoint = plan.mountpoint.clone();
    runtime.spawn(async move {
        let mut asked = false;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                // The terminal that the mount was made from has been closed: no reason to end.
                _ = hang_up.recv() => continue,
            }
            if asked {
                log::error!("asked to end a second time: giving up what is not written back");
                std::process::exit(1);
            }
            asked = true;
            let mountpoint = mountpoint.clone();
            let unmounted = tokio::task::spawn_blocking(move || {
                gridvfs_fuse::unmount(&mountpoint, false)
                    .or_else(|_| gridvfs_fuse::unmount(&mountpoint, true))
            });
            if let Ok(Err(error)) = unmounted.await {
                log::error!("cannot unmount: {error}");
            }
        }
    });
    Ok(())
}

/// What the control socket tells and does.
struct SessionControl {
    name: String,
    source: String,
    mountpoint: std::path::PathBuf,
    started: Instant,
    top: Arc<dyn Vfs>,
    buffer: Option<Arc<gridvfs_cache::BufferLayer>>,
    client: Option<Arc<gridvfs_upstream::NfsClient>>,
    counters: Arc<gridvfs_fuse::Counters>,
}

impl SessionControl {
    fn new(
        record: &crate::session::Record,
        stack: &Stack,
        counters: Arc<gridvfs_fuse::Counters>,
    ) -> Self {
        Self {
            name: record.name.clone(),
            source: record.source.clone(),
            mountpoint: record.mountpoint.clone(),
            started: Instant::now(),
            top: stack.top.clone(),
            buffer: stack.buffer.clone(),
            client: stack.client.clone(),
            counters,
        }
    }
}

impl Control for SessionControl {
    fn status(&self) -> Value {
        let mut status = json!({
            "session": self.name,
            "source": self.source,
            "mountpoint": self.mountpoint,
            "pid": std::process::id(),
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "requests": self.counters.to_map(),
        });
        if let Some(buffer) = &self.buffer {
            status["buffer"] = json!(buffer.counters().to_map());
            status["buffer"]["held_bytes"] = json!(buffer.dirty_bytes());
        }
        if let Some(client) = &self.client {
            status["link"] = json!(client.counters().to_map());
        }
        status
    }

    fn write_back(&self) -> Pin<Box<dyn Future<Output = Result<()>> + Send + '_>> {
        Box::pin(async { Ok(self.top.shutdown().await?) })
    }
}
