//! From a SOURCE to the stack of layers that serves it.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use gridvfs_cache::disk::{DiskOptions, NameLayer, Settings};
use gridvfs_cache::{BufferLayer, BufferOptions, DiskCache};
use gridvfs_metadata::actions::{Actions, Remote};
use gridvfs_metadata::content::ContentIndex;
use gridvfs_metadata::profile::Profiles;
use gridvfs_metadata::{MetaLayer, MetaOptions};
use gridvfs_proxy::hops::HopBoard;
use gridvfs_proxy::local_dir::{LocalDir, LocalDirOptions};
use gridvfs_upstream::ssh::{RemoteExport, SshForwardConnector, SshHost, SshSettings};
use gridvfs_upstream::{
    ClientOptions, Connector, KeyedConnector, MountTarget, NfsClient, TcpConnector, UnixConnector,
    ask_hops,
};
use gridvfs_vfs::{Vfs, nfs3, rpc::portmap};
use tokio::runtime::Handle;

use super::remote::SshFiles;
use crate::cache_dir::{self, CacheDir};
use crate::report::Hinted;
use crate::source::Source;
use crate::{daemon, directories, options};

/// Files up to this size are fetched whole: half of what a READ carries at most elsewhere.
const SMALL_BYTES_MAX: u64 = 64 << 10;

/// What is to be reached, and how: for a mount, or for a standing proxy.
pub struct Target {
    /// The SOURCE argument.
    pub text: String,
    /// The same, taken apart.
    pub source: Source,
    /// The options.
    pub settings: options::Settings,
    /// Where a cache cannot be: the mount point.
    pub mountpoint: Option<PathBuf>,
    /// Names may be acknowledged here and made on the server later.
    pub defer_names: bool,
    /// A standing proxy's way to the files: the source must not be a part of it.
    pub hops: Option<Arc<HopBoard>>,
}

impl Target {
    /// Says whether there is to be a disk cache.
    pub fn has_cache(&self) -> bool {
        let local = matches!(self.source, Source::Local(_));
        self.settings.cache.wanted.unwrap_or(!local)
    }
}

/// The layers of a mount, from the kernel's side.
pub struct Stack {
    /// What the FUSE front end serves.
    pub top: Arc<dyn Vfs>,
    /// The read-ahead and write-behind layer, unless the files are on this machine.
    pub buffer: Option<Arc<BufferLayer>>,
    /// The NFS client, unless the files are on this machine.
    pub client: Option<Arc<NfsClient>>,
    /// The host that ssh reaches, to give the terminal back to.
    pub host: Option<Arc<SshHost>>,
    /// The disk cache.
    pub cache: Option<Cache>,
    /// The metadata layer.
    pub metadata: Option<Arc<MetaLayer>>,
}

/// A mount's disk cache.
pub struct Cache {
    /// The cache.
    pub disk: Arc<DiskCache>,
    /// Its directory, held.
    pub dir: CacheDir,
}

impl Stack {
    /// Puts the layers of a cached mount over the server. Returns also what stands for the server.
    async fn add_cache(
        mut self,
        target: &Target,
        mut dir: CacheDir,
        settings: Settings,
        below: Arc<dyn Vfs>,
    ) -> Result<(Self, Arc<dyn Vfs>)> {
        let names = Arc::new(NameLayer::new(below));
        let buffer = new_buffer(names.clone()).await?;
        self.buffer = Some(buffer.clone());
        let options = DiskOptions {
            dir: dir.path.clone(),
            geometry: target.settings.cache.geometry,
            shared: target.settings.cache.share,
            left: dir.take_left(),
            small_max_bytes: SMALL_BYTES_MAX,
            settings,
            defer_names: target.defer_names,
            coherence: target.settings.cache.coherence,
        };
        let opened = DiskCache::open(buffer, names.clone(), Handle::current(), options).await;
        let disk = Arc::new(opened.map_err(|error| cache_dir::open_error(&dir.path, error))?);
        dir.is_used();
        self.top = disk.clone();
        self.cache = Some(Cache { disk, dir });
        Ok((self, names))
    }

    /// Puts the metadata layer on top of what is there. `source`: what is at the far end.
    fn add_metadata(
        mut self,
        target: &Target,
        source: Arc<dyn Vfs>,
        remote: Option<Arc<dyn Remote>>,
    ) -> Self {
        let wanted = &target.settings.metadata;
        if !wanted.enabled {
            return self;
        }
        let dir = self.cache.as_ref().map(|cache| &cache.dir.path);
        let options = MetaOptions {
            show: wanted.show,
            profiles: dir.filter(|_| wanted.profile).map(|dir| Profiles::new(dir.join("profiles"))),
            content: dir.map(|dir| ContentIndex::new(dir.join("content"))),
            actions: Actions { commands: wanted.commands.clone(), remote, ..Actions::default() },
            whole_bytes_max: gridvfs_metadata::layer::WHOLE_BYTES_MAX,
        };
        let disk = self.cache.as_ref().map(|cache| cache.disk.clone());
        let layer = MetaLayer::new(self.top.clone(), disk, source, Handle::current(), options);
        let layer = Arc::new(layer);
        self.top = layer.clone();
        self.metadata = Some(layer);
        self
    }
}

/// Connects. May ask the user for a password on the terminal. A timeout of the session is one of
/// the mount attempt, too, except over ssh: nobody knows how long a password takes to type.
pub async fn connect(target: &Target) -> Result<Stack> {
    match (target.settings.timeout, &target.source) {
        (Some(timeout), Source::Nfs { .. } | Source::Unix { .. } | Source::Tcp { .. }) => {
            tokio::time::timeout(timeout, connect_patiently(target)).await.unwrap_or_else(|_| {
                Err(Hinted::error(
                    format!("{}: no answer within {} s", target.text, timeout.as_secs_f64()),
                    "is that the right server and port? -o timeout= says how long to wait",
                ))
            })
        }
        _ => connect_patiently(target).await,
    }
}

async fn connect_patiently(target: &Target) -> Result<Stack> {
    let settings = &target.settings;
    // Before anybody is asked for a password.
    let cache = match target.has_cache() {
        true => {
            let wanted = settings.cache.settings()?;
            // The same relative path is another directory elsewhere.
            let source = match &target.source {
                Source::Local(path) => std::fs::canonicalize(path)
                    .with_context(|| path.display().to_string())?
                    .to_string_lossy()
                    .into_owned(),
                _ => target.text.clone(),
            };
            let dir = CacheDir::take(&settings.cache, &source, target.mountpoint.as_deref())?;
            Some((dir, wanted))
        }
        false => None,
    };
    if let Source::Local(path) = &target.source {
        let options = LocalDirOptions {
            state_dir: Some(directories::state()?),
            read_only: settings.read_only,
            watches_max: crate::commands::proxy::watches_max()?,
        };
        let directory: Arc<dyn Vfs> = Arc::new(LocalDir::open(path, options)?);
        let stack = Stack {
            top: directory.clone(),
            buffer: None,
            client: None,
            host: None,
            cache: None,
            metadata: None,
        };
        let Some((dir, wanted)) = cache else {
            return Ok(stack.add_metadata(target, directory, None));
        };
        let (stack, names) = stack.add_cache(target, dir, wanted, directory).await?;
        return Ok(stack.add_metadata(target, names, None));
    }
    let host = match &target.source {
        Source::Ssh { destination, .. } => Some(ssh_host(settings, destination)?),
        _ => None,
    };
    let options = ClientOptions {
        stripes: settings.stripes,
        timeout: settings.timeout,
        credential: settings.credential,
        ..ClientOptions::default()
    };
    let client = match (&target.source, &host) {
        (Source::Ssh { path, .. }, Some(host)) if settings.no_proxy => {
            let (address, port) = nfs_address(settings.nfs.as_deref().unwrap_or("localhost"))?;
            let connector = |port| -> Arc<dyn Connector> {
                Arc::new(SshForwardConnector::new(host.clone(), &address, port))
            };
            mount_export(target, path, port, connector, options).await?
        }
        (Source::Ssh { path, .. }, Some(host)) => {
            let export = RemoteExport {
                program: settings.gridvfs_command.clone(),
                path: path.clone(),
                nfs: settings.nfs.clone(),
                mount_port: settings.mount_port,
                shadow: (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()),
                read_only: settings.read_only,
                linger_seconds: settings.linger_seconds,
            };
            super::bootstrap::connect(settings, host, export, options).await?
        }
        (Source::Nfs { address, port, path }, _) => {
            let connector =
                |port| -> Arc<dyn Connector> { Arc::new(TcpConnector::new(address.clone(), port)) };
            mount_export(target, path, port.unwrap_or(nfs3::PORT), connector, options).await?
        }
        (Source::Unix { socket, path }, _) => {
            let connector = Arc::new(UnixConnector::new(socket.clone()));
            standing_proxy(target, connector, path, options).await?
        }
        (Source::Tcp { address, port, path }, _) => {
            let connector = Arc::new(TcpConnector::new(address.clone(), *port));
            standing_proxy(target, connector, path, options).await?
        }
        (Source::Local(_), _) | (Source::Ssh { .. }, None) => bail!("not reached over a network"),
    };
    let stack = Stack {
        top: client.clone(),
        buffer: None,
        client: Some(client.clone()),
        host,
        cache: None,
        metadata: None,
    };
    let remote = match (&target.source, &stack.host) {
        (Source::Ssh { path, .. }, Some(host)) if settings.no_proxy => {
            Some(Arc::new(SshFiles::new(host.clone(), path)) as Arc<dyn Remote>)
        }
        _ => None,
    };
    if let Some((dir, wanted)) = cache {
        let (stack, names) = stack.add_cache(target, dir, wanted, client).await?;
        return Ok(stack.add_metadata(target, names, remote));
    }
    let buffer = new_buffer(client.clone()).await?;
    let stack = Stack { top: buffer.clone(), buffer: Some(buffer), ..stack };
    Ok(stack.add_metadata(target, client, remote))
}

async fn new_buffer(below: Arc<dyn Vfs>) -> Result<Arc<BufferLayer>> {
    let buffer = BufferLayer::new(below, Handle::current(), BufferOptions::default()).await?;
    Ok(Arc::new(buffer))
}

pub fn ssh_host(settings: &crate::options::Settings, destination: &str) -> Result<Arc<SshHost>> {
    // ssh asks on the terminal itself, or through the askpass program of a desktop.
    let terminal = std::fs::File::open("/dev/tty").is_ok_and(|tty| tty.is_terminal());
    let askpass = std::env::var_os("SSH_ASKPASS").is_some();
    Ok(SshHost::new(SshSettings {
        command: settings.ssh_words()?,
        destination: destination.into(),
        private_dir: directories::runtime()?,
        may_prompt: terminal || askpass,
        on_message: Arc::new(|line| match daemon::is_in_background() {
            true => log::warn!("ssh: {line}"),
            // As ssh itself says it.
            false => eprintln!("{line}"),
        }),
    }))
}

/// `ADDR`, `ADDR:PORT`, `[V6]:PORT`.
fn nfs_address(text: &str) -> Result<(String, u16)> {
    match Source::parse(&format!("nfs://{text}/"))? {
        Source::Nfs { address, port, .. } => Ok((address, port.unwrap_or(nfs3::PORT))),
        _ => bail!("{text} is no address of an NFS server"),
    }
}

async fn mount_export(
    target: &Target,
    path: &str,
    port: u16,
    connector: impl Fn(u16) -> Arc<dyn Connector>,
    options: ClientOptions,
) -> Result<Arc<NfsClient>> {
    if !path.starts_with('/') {
        return Err(Hinted::error(
            format!("{path} is no export of an NFS server"),
            "give the export's full path, which begins with /",
        ));
    }
    let caller = gridvfs_vfs::Caller {
        uid: target.settings.credential.map_or(nix::unistd::geteuid().as_raw(), |(uid, _)| uid),
        gid: target.settings.credential.map_or(nix::unistd::getegid().as_raw(), |(_, gid)| gid),
        groups: Vec::new(),
    };
    let mount_port = match target.settings.mount_port {
        Some(port) => port,
        None => MountTarget::ask_portmapper(&*connector(portmap::PORT)).await.context(
            "cannot ask the portmapper for the MOUNT service's port (-o mountport=PORT gives it)",
        )?,
    };
    let root = MountTarget::mount(&*connector(mount_port), &caller, path).await?;
    Ok(NfsClient::connect_with_root(connector(port), root, options).await?)
}

async fn standing_proxy(
    target: &Target,
    connector: Arc<dyn Connector>,
    path: &str,
    options: ClientOptions,
) -> Result<Arc<NfsClient>> {
    let key = match &target.settings.key_file {
        Some(path) => gridvfs_proxy::key::SessionKey::from_file(path)?.to_hex(),
        None => String::new(),
    };
    let caller = gridvfs_vfs::Caller { uid: 0, gid: 0, groups: Vec::new() };
    let connector = Arc::new(KeyedConnector::new(connector, key));
    if let Some(board) = &target.hops {
        // What has no key is told so below.
        if let Ok(hops) = ask_hops(&*connector, &caller).await {
            board.check(&hops).context("a proxy must not be its own upstream")?;
        }
    }
    let mounted = MountTarget::mount(&*connector, &caller, path).await;
    let root = mounted.map_err(|error| match error.to_string() {
        text if text.contains("credential refused") => Hinted::error(
            text,
            "this proxy asks for a key, and has not this one: give the file that gridvfs proxy key \
             new made, --key-file FILE",
        ),
        text if text.contains("no such export") => {
            Hinted::error(text, "the proxy may have several: gridvfs://ADDR:PORT/NAME names one")
        }
        _ => error.into(),
    })?;
    Ok(NfsClient::connect_with_root(connector, root, options).await?)
}
