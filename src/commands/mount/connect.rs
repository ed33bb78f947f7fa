//! From a SOURCE to the stack of layers that serves it.

use std::io::IsTerminal;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use gridvfs_cache::disk::{DiskOptions, NameLayer, Settings};
use gridvfs_cache::{BufferLayer, BufferOptions, DiskCache};
use gridvfs_metadata::actions::{Actions, Remote};
use gridvfs_metadata::content::ContentIndex;
use gridvfs_metadata::profile::Profiles;
use gridvfs_metadata::{MetaLayer, MetaOptions};
use gridvfs_proxy::local_dir::{LocalDir, LocalDirOptions};
use gridvfs_upstream::ssh::{RemoteExport, SshForwardConnector, SshHost, SshSettings};
use gridvfs_upstream::{
    ClientOptions, Connector, KeyedConnector, MountTarget, NfsClient, TcpConnector, UnixConnector,
};
use gridvfs_vfs::{Vfs, nfs3, rpc::portmap};
use tokio::runtime::Handle;

use super::Plan;
use super::remote::SshFiles;
use crate::cache_dir::{self, CacheDir};
use crate::report::Hinted;
use crate::source::Source;
use crate::{daemon, directories};

/// Files up to this size are fetched whole: half of what a READ carries at most elsewhere.
const SMALL_BYTES_MAX: u64 = 64 << 10;

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
        plan: &Plan,
        mut dir: CacheDir,
        settings: Settings,
        below: Arc<dyn Vfs>,
    ) -> Result<(Self, Arc<dyn Vfs>)> {
        let names = Arc::new(NameLayer::new(below));
        let buffer = new_buffer(names.clone()).await?;
        self.buffer = Some(buffer.clone());
        let options = DiskOptions {
            dir: dir.path.clone(),
            geometry: plan.settings.cache.geometry,
            shared: plan.settings.cache.share,
            left: dir.take_left(),
            small_max_bytes: SMALL_BYTES_MAX,
            settings,
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
        plan: &Plan,
        source: Arc<dyn Vfs>,
        remote: Option<Arc<dyn Remote>>,
    ) -> Self {
        let wanted = &plan.settings.metadata;
        if !wanted.enabled {
            return self;
        }
        let dir = self.cache.as_ref().map(|cache| &cache.dir.path);
        let options = MetaOptions {
            show: wanted.show,
            profiles: dir.filter(|_| wanted.profile).map(|dir| Profiles::new(dir.join("profiles"))),
            content: dir.map(|dir| ContentIndex::new(dir.join("content"))),
            actions: Actions { commands: wanted.commands.clone(), remote, ..Actions::default() },
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
pub async fn connect(plan: &Plan) -> Result<Stack> {
    match (plan.settings.timeout, &plan.source) {
        (Some(timeout), Source::Nfs { .. } | Source::Unix(_) | Source::Tcp { .. }) => {
            tokio::time::timeout(timeout, connect_patiently(plan)).await.unwrap_or_else(|_| {
                Err(Hinted::error(
                    format!("{}: no answer within {} s", plan.source_text, timeout.as_secs_f64()),
                    "is that the right server and port? -o timeout= says how long to wait",
                ))
            })
        }
        _ => connect_patiently(plan).await,
    }
}

async fn connect_patiently(plan: &Plan) -> Result<Stack> {
    let settings = &plan.settings;
    // Before anybody is asked for a password.
    let cache = match plan.has_cache() {
        true => {
            let wanted = settings.cache.settings()?;
            // The same relative path is another directory elsewhere.
            let source = match &plan.source {
                Source::Local(path) => std::fs::canonicalize(path)
                    .with_context(|| path.display().to_string())?
                    .to_string_lossy()
                    .into_owned(),
                _ => plan.source_text.clone(),
            };
            let dir = CacheDir::take(&settings.cache, &source, &plan.mountpoint)?;
            Some((dir, wanted))
        }
        false => None,
    };
    if let Source::Local(path) = &plan.source {
        let options = LocalDirOptions {
            state_dir: Some(directories::state()?),
            read_only: settings.read_only,
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
            return Ok(stack.add_metadata(plan, directory, None));
        };
        let (stack, names) = stack.add_cache(plan, dir, wanted, directory).await?;
        return Ok(stack.add_metadata(plan, names, None));
    }
    let host = match &plan.source {
        Source::Ssh { destination, .. } => Some(ssh_host(settings, destination)?),
        _ => None,
    };
    let options = ClientOptions {
        stripes: settings.stripes,
        timeout: settings.timeout,
        credential: settings.credential,
        ..ClientOptions::default()
    };
    let client = match (&plan.source, &host) {
        (Source::Ssh { path, .. }, Some(host)) if settings.no_proxy => {
            let (address, port) = nfs_address(settings.nfs.as_deref().unwrap_or("localhost"))?;
            let connector = |port| -> Arc<dyn Connector> {
                Arc::new(SshForwardConnector::new(host.clone(), &address, port))
            };
            mount_export(plan, path, port, connector, options).await?
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
            mount_export(plan, path, port.unwrap_or(nfs3::PORT), connector, options).await?
        }
        (Source::Unix(path), _) => {
            let connector = Arc::new(UnixConnector::new(path.clone()));
            standing_proxy(plan, connector, options).await?
        }
        (Source::Tcp { address, port }, _) => {
            let connector = Arc::new(TcpConnector::new(address.clone(), *port));
            standing_proxy(plan, connector, options).await?
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
    let remote = match (&plan.source, &stack.host) {
        (Source::Ssh { path, .. }, Some(host)) if settings.no_proxy => {
            Some(Arc::new(SshFiles::new(host.clone(), path)) as Arc<dyn Remote>)
        }
        _ => None,
    };
    if let Some((dir, wanted)) = cache {
        let (stack, names) = stack.add_cache(plan, dir, wanted, client).await?;
        return Ok(stack.add_metadata(plan, names, remote));
    }
    let buffer = new_buffer(client.clone()).await?;
    let stack = Stack { top: buffer.clone(), buffer: Some(buffer), ..stack };
    Ok(stack.add_metadata(plan, client, remote))
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
    plan: &Plan,
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
        uid: plan.settings.credential.map_or(nix::unistd::geteuid().as_raw(), |(uid, _)| uid),
        gid: plan.settings.credential.map_or(nix::unistd::getegid().as_raw(), |(_, gid)| gid),
        groups: Vec::new(),
    };
    let mount_port = match plan.settings.mount_port {
        Some(port) => port,
        None => MountTarget::ask_portmapper(&*connector(portmap::PORT)).await.context(
            "cannot ask the portmapper for the MOUNT service's port (-o mountport=PORT gives it)",
        )?,
    };
    let root = MountTarget::mount(&*connector(mount_port), &caller, path).await?;
    Ok(NfsClient::connect_with_root(connector(port), root, options).await?)
}

async fn standing_proxy(
    plan: &Plan,
    connector: Arc<dyn Connector>,
    options: ClientOptions,
) -> Result<Arc<NfsClient>> {
    let key = match &plan.settings.key_file {
        Some(path) => gridvfs_proxy::key::SessionKey::from_file(path)?.to_hex(),
        None => String::new(),
    };
    let caller = gridvfs_vfs::Caller { uid: 0, gid: 0, groups: Vec::new() };
    let connector = Arc::new(KeyedConnector::new(connector, key));
    let mounted = MountTarget::mount(&*connector, &caller, "/").await;
    let root = mounted.map_err(|error| match error.to_string() {
        text if text.contains("credential refused") => Hinted::error(
            text,
            "this proxy asks for a key: give the file that it was started with, --key-file FILE",
        ),
        _ => error.into(),
    })?;
    Ok(NfsClient::connect_with_root(connector, root, options).await?)
}
