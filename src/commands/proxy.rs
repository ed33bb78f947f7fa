//! `gridvfs proxy`: the server side.

mod forced;
mod keys;
mod standing;
mod stop;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use gridvfs_proxy::backend::{self, ExportConfig};
use gridvfs_proxy::gate::{Export, Guest};
use gridvfs_proxy::hops::HopBoard;
use gridvfs_proxy::serve::{self, KeyRing, Limits, ListenAt, ServeConfig};
use gridvfs_proxy::session::{self, SessionConfig};

use crate::cli::{ExportArgs, ProxyCommand, ProxyServeArgs, ProxyStdioArgs};
use crate::{daemon, directories};

/// Threads for the network. Calls on the local directory block threads of their own.
const NETWORK_THREADS: usize = 2;
/// The most threads that calls on the local directory may block: as many as disks like to have
/// queued, and few enough to be no load. Bulk reads take half of them at most.
const DISK_THREADS: usize = 32;

/// Runs the command.
pub fn run(command: ProxyCommand) -> Result<ExitCode> {
    // Files get the modes that clients ask for.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    daemon::keep_memory_small();
    daemon::raise_descriptor_limit();
    match command {
        ProxyCommand::Stdio(args) => stdio(args),
        ProxyCommand::Attach { session } => {
            Ok(code(session::run_attach(&directories::runtime()?, &session)?))
        }
        ProxyCommand::Daemon => {
            start_log();
            Ok(runtime()?.block_on(session::run_daemon()).map(|()| ExitCode::SUCCESS)?)
        }
        ProxyCommand::Serve(args) => serve(args),
        ProxyCommand::Stop(args) => stop::run(args),
        ProxyCommand::Key(command) => keys::run(command),
        ProxyCommand::Forced { policy } => forced::run(&policy),
    }
}

fn code(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn start_log() {
    let environment = env_logger::Env::default().filter_or("GRIDVFS_LOG", "info");
    env_logger::Builder::from_env(environment).format_target(false).init();
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(NETWORK_THREADS)
        .max_blocking_threads(DISK_THREADS)
        .enable_all()
        .build()?)
}

fn export(args: &ExportArgs) -> Result<ExportConfig> {
    let shadow = args.shadow.as_deref().map(|text| {
        let (uid, gid) = text.split_once(':').context("--shadow: UID:GID is expected")?;
        anyhow::Ok((uid.parse()?, gid.parse()?))
    });
    let path = match &args.nfs {
        Some(_) => args.export.clone(),
        // The daemon has another working directory.
        None => backend::absolute(&args.export),
    };
    Ok(ExportConfig {
        path,
        nfs: args.nfs.clone(),
        mount_port: args.mount_port,
        read_only: args.read_only,
        shadow: shadow.transpose()?,
        state_dir: directories::state()?,
        identity: None,
        watches_max: watches_max()?,
    })
}

/// The most directories that are watched for changes, where the host's administrator says so.
pub(crate) fn watches_max() -> Result<Option<usize>> {
    match std::env::var("GRIDVFS_WATCHES_MAX") {
        Ok(text) => Ok(Some(text.parse().context("GRIDVFS_WATCHES_MAX: a number is expected")?)),
        Err(_) => Ok(None),
    }
}

fn stdio(args: ProxyStdioArgs) -> Result<ExitCode> {
    let export = export(&args.export)?;
    start_session(export, args.linger)
}

fn start_session(export: ExportConfig, linger: u32) -> Result<ExitCode> {
    let config =
        SessionConfig { export, linger_seconds: linger, runtime_dir: directories::runtime()? };
    let log = directories::state()?.join("proxy.log");
    // This very program, even if it was replaced on disk meanwhile.
    let program = PathBuf::from("/proc/self/exe");
    Ok(code(session::run_stdio(&config, &program, &log)?))
}

fn serve(args: ProxyServeArgs) -> Result<ExitCode> {
    start_log();
    if let Some(path) = &args.config {
        runtime()?.block_on(standing::run(path))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (Some(args_export), Some(listen)) = (&args.export, args.listen) else {
        bail!("--config FILE, or --export and --listen");
    };
    let config = export(args_export)?;
    let path = config.path.to_string_lossy().into_owned().into_bytes();
    runtime()?.block_on(async move {
        let backend = backend::open(&config).await?;
        let backend::Backend { vfs, blocking, changes, .. } = backend;
        let export = Export { path, vfs, blocking, seal: None, changes };
        let (keys, keyless) = match (&args.key_file, args.keyless) {
            (Some(path), _) => {
                let shown = Box::new(move |_: &str| Some(vec![export.clone()]));
                (Some(KeyRing::open(path, shown)?), None)
            }
            (None, true) => (None, Some(Guest::new("anybody", None, vec![export]))),
            (None, false) => {
                bail!("--key-file FILE, or --keyless for clients of this machine alone")
            }
        };
        let standing = serve::listen(ServeConfig {
            listen: vec![ListenAt { address: listen, keyless: keyless.is_some() }],
            socket_mode: 0o600,
            keys,
            keyless,
            limits: Limits::default(),
            hops: Arc::new(HopBoard::default()),
        })
        .await?;
        println!("listening on {}", standing.addresses().join(" "));
        let _ = std::io::stdout().flush();
        Ok(standing.serve(|| {}).await?)
    })?;
    Ok(ExitCode::SUCCESS)
}
