//! The command line: one definition for parsing, help, man pages and completions.

mod helper;
mod meta;
mod session;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::commands;
pub use meta::{
    MetaArgs, MetaBuildArgs, MetaCommand, MetaRemoveArgs, MetaShowArgs, MetaVerifyArgs,
};
pub use session::{ConfigArgs, ConfigCommand, DoctorArgs, StatusShowArgs, TopArgs, WriteBackArgs};

#[derive(Parser)]
#[command(name = "gridvfs", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The `-o` options of the disk cache.
const CACHE_OPTIONS: &str = "\
Options (-o) of the disk cache:
  cache=on|off             default: on, unless SOURCE is a directory of this machine
  cache_dir=DIR            default: ~/.cache/gridvfs/SOURCE-…
  cache_size=8G            the most that it holds; K, M, G, T
  cache_banks=512, cache_ways=16, cache_frame=64K
  cache_share              several read-only mounts share one cache
  settings=FILE            TOML with these options as keys (docs/settings.md);
                           read again at SIGHUP; what is given here wins over it
  passthrough=auto|off     the kernel may read whole files by itself
  kernel_writeback=auto|off  the kernel may gather writes where that is safe
  coherence=no|yes         a shared session hears of others' changes, and does not ask again
and those that gridvfs set changes while the mount lasts:
  write_policy=write-through  close waits until the server has the data
              =write-back     it is sent later; fsync waits for this machine's disk
              =read-only      writes are refused (so with ro)
  consistency=shared          a file is compared with the server when it is opened
             =dedicated       nobody else changes the files: nothing is asked twice
             =read-only-shared  nobody changes the files
  at_end=write-back|flush|preserve  what becomes of unsent data at the end
  writeback_delay=5        a file that was not written for so many seconds is sent
  writeback_age=30         data of this age is sent though its file is still written
  dirty_max=SIZE           the most unsent data (default: 4G, or half the cache)
  rule=GLOB:WORD[:WORD…]   for files whose path matches: a write policy, block, whole
                           or none (what is kept), ahead or no-ahead; repeatable
Options (-o) of metadata files (gridvfs meta):
  metadata=on|off          use them (default: on)
  show_metadata            list them
  profile=on|off           remember what is touched of large files, and fetch it ahead of
                           need next time (default: on)
  action=NAME:COMMAND      a command that a metadata file may name; repeatable";

const CLONE_HELP: &str = "\
GOLDEN_DIR holds one of
  qemu.args  a QEMU command line, and the memory file, device state and disks that it names
  *.vmx      a suspended VMware VM: *.vmss, *.vmem, *.vmdk
  *.cfg      a Xen VM: disk images and a checkpoint of xl save
It is only read. docs/cloning.md says more.";

#[derive(Subcommand)]
enum Command {
    /// Mount a directory of a state server
    #[command(after_long_help = CACHE_OPTIONS, after_help = CACHE_OPTIONS)]
    Mount(MountArgs),
    /// Write back what is held, then unmount
    #[command(alias = "unmount")]
    Umount(UmountArgs),
    /// List the sessions of this user
    Sessions(JsonArgs),
    /// Show one session's state and counters, or those of all
    Status(StatusShowArgs),
    /// Show what sessions do, as they do it: hits and misses, the link, latencies, busy files
    Top(TopArgs),
    /// Send what a session holds to the state server, and wait until it is durable there
    Writeback(WriteBackArgs),
    /// Write back, then drop what the cache holds
    Flush(WriteBackArgs),
    /// Take back a write-back or flush that is under way: what is not sent stays in the cache
    Cancel(StatusArgs),
    /// Change a session's settings while it runs
    Set(SetArgs),
    /// Show a session's settings, and where each comes from
    Config(ConfigArgs),
    /// List the files that others changed under unsent data, or resolve one
    Conflicts(ConflictsArgs),
    /// The disk cache: what it holds, and what it is to hold
    Cache(CacheArgs),
    /// Record what a session touches of its files, for their metadata
    Profile(ProfileArgs),
    /// Metadata files: what is known of files beforehand, kept beside them on the state server
    Meta(MetaArgs),
    /// Make a VM of one's own from a suspended golden VM
    #[command(after_help = CLONE_HELP)]
    Clone(CloneArgs),
    /// Say what would stop a mount or make it slow, on this machine, on a host and between them
    Doctor(DoctorArgs),
    /// The server side: started by `gridvfs mount` over ssh, or standing
    Proxy(ProxyArgs),
    /// Write man pages and shell completions into a directory (for packages)
    #[command(hide = true)]
    Pages {
        /// The directory; `man` and `completions` are made in it
        directory: PathBuf,
    },
}

/// Arguments of `gridvfs mount`.
#[derive(Args, Clone)]
pub struct MountArgs {
    /// [USER@]HOST:/path, nfs://ADDR[:PORT]/export, gridvfs+unix:/socket[:/export],
    /// gridvfs://ADDR:PORT[/export],
    /// or a local directory; or the NAME of a session file (docs/settings.md)
    #[arg(required_unless_present = "config")]
    pub source: Option<String>,
    /// An empty directory (default: the session file's)
    pub mountpoint: Option<PathBuf>,
    /// Mount the session of this file
    #[arg(long, value_name = "FILE", conflicts_with = "source")]
    pub config: Option<PathBuf>,
    /// Mount options, comma-separated: stripes=4, ro, timeout=SECONDS (default: wait for ever),
    /// ssh_command=, gridvfs_command= (on HOST), bootstrap=yes|no|ask (copy this gridvfs to a HOST
    /// that has none), nfs=ADDR[:PORT] (HOST's proxy forwards to that
    /// NFS server), no_proxy (ssh -W to the NFS server), mountport=, cred=UID[:GID],
    /// attr_timeout=1, entry_timeout=1, negative_timeout=0, allow_other, default_permissions,
    /// nonempty, linger=300, kernel flags (nosuid, noatime, …), ssh's own (Port=2222), and those
    /// of the disk cache, listed below
    #[arg(short = 'o', value_name = "KEY=VALUE,…")]
    pub options: Vec<String>,
    /// The session's name (default: the session file's, or from the mount point)
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,
    /// Stay in the foreground
    #[arg(short = 'f', long)]
    pub foreground: bool,
    /// Stay in the foreground and print debug messages
    #[arg(short = 'd', long)]
    pub debug: bool,
    /// The port of HOST's sshd
    #[arg(short = 'p', value_name = "PORT")]
    pub port: Option<u16>,
    /// An ssh configuration file
    #[arg(short = 'F', value_name = "FILE")]
    pub ssh_config: Option<PathBuf>,
    /// A file with the session key, for gridvfs:// and gridvfs+unix: sources
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Print the session as JSON once it is mounted
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `gridvfs profile`.
#[derive(Args)]
pub struct ProfileArgs {
    /// What to do
    #[command(subcommand)]
    pub verb: ProfileVerb,
}

/// The verbs of `gridvfs profile`.
#[derive(Subcommand)]
pub enum ProfileVerb {
    /// Begin a recording: what was touched before does not belong to it
    Start(StatusArgs),
    /// End it: what was touched becomes the working set in the files' metadata, on the state server
    /// if that can be written, and is kept in a file for gridvfs meta build --from-profile
    Stop(StatusArgs),
    /// List what was touched so far
    Show(StatusArgs),
}

/// Arguments of `gridvfs umount`.
#[derive(Args)]
pub struct UmountArgs {
    /// A session's name, or a mount point; ./NAME if it is to be a directory
    pub target: String,
    /// Give up waiting after this time; what is mounted then stays so
    #[arg(long, value_name = "SECONDS", value_parser = session::seconds)]
    pub timeout: Option<f64>,
    /// Detach at once even if files are open; they work until closed
    #[arg(short = 'z', long)]
    pub lazy: bool,
    /// Leave what is not yet sent in the cache, for the next mount
    #[arg(long, conflicts_with = "flush")]
    pub preserve: bool,
    /// Write back, then empty the cache
    #[arg(long)]
    pub flush: bool,
    /// Only clear the mount if its process has died; otherwise leave all as it is
    #[arg(long, conflicts_with_all = ["lazy", "preserve", "flush"])]
    pub dead: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of commands that only print.
#[derive(Args)]
pub struct JsonArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of commands about one session.
#[derive(Args)]
pub struct StatusArgs {
    /// A session's name, or its mount point
    pub session: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `gridvfs set`.
#[derive(Args)]
pub struct SetArgs {
    /// A session's name, or its mount point
    pub session: String,
    /// write_policy=, consistency=, at_end=, writeback_delay=, writeback_age=, dirty_max=,
    /// rule=GLOB:WORD[:WORD…] (those given replace all rules), rules= (clears them)
    #[arg(value_name = "KEY=VALUE", required = true)]
    pub changes: Vec<String>,
    /// Print the settings as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `gridvfs conflicts`.
#[derive(Args)]
pub struct ConflictsArgs {
    /// A session's name, or its mount point
    pub session: String,
    /// A file in conflict, as listed or through the mount point (of a standing proxy: EXPORT/PATH)
    #[arg(requires = "how")]
    pub path: Option<PathBuf>,
    /// What is to become of it
    #[arg(value_enum)]
    pub how: Option<Resolution>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What is to become of a conflict.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Resolution {
    /// What was written here goes over the server's version
    KeepMine,
    /// What was written here is dropped
    KeepTheirs,
    /// What was written here is saved beside the server's version
    SaveMine,
}

/// Arguments of `gridvfs cache`.
#[derive(Args)]
pub struct CacheArgs {
    #[command(subcommand)]
    pub command: CacheCommand,
}

/// What can be done with a cache.
#[derive(Subcommand)]
pub enum CacheCommand {
    /// List the caches of this user
    List(JsonArgs),
    /// Show what a session's cache holds, and what is not yet sent
    Status(StatusArgs),
    /// Read and check every block; those that are damaged are dropped, listed, and fetched again
    /// when they are needed
    Verify(StatusArgs),
    /// Fetch files, and all below directories
    Warm(CachePathsArgs),
    /// Keep files in the cache while the session lasts, whatever else wants room
    Pin(CachePathsArgs),
    /// Keep them no longer
    Unpin(CachePathsArgs),
    /// Give disk space back: what was used longest ago goes first
    Prune {
        /// A session's name, or its mount point
        session: String,
        /// How much: 512M, 2G
        size: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of commands about files of a session.
#[derive(Args)]
pub struct CachePathsArgs {
    /// A session's name, or its mount point
    pub session: String,
    /// Through the mount point, or from the session's root
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `gridvfs clone`.
#[derive(Args)]
pub struct CloneArgs {
    /// The golden VM's directory, on a mount or not
    #[arg(value_name = "GOLDEN_DIR")]
    pub golden: PathBuf,
    /// The clone's directory, which is made
    #[arg(value_name = "CLONE_DIR")]
    pub clone: PathBuf,
    /// The clone's name (default: its directory's)
    #[arg(long)]
    pub name: Option<String>,
    /// MAC addresses for its network cards, in their order (default: made up)
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub mac: Vec<String>,
    /// Further settings: a QEMU option, a key of a .vmx or of a Xen configuration; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// How it gets its memory
    #[arg(long, value_enum, default_value_t = MemoryWay::Auto)]
    pub memory: MemoryWay,
    /// The configuration, if GOLDEN_DIR has several
    #[arg(long, value_name = "FILE")]
    pub config: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// How a clone gets its memory.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum MemoryWay {
    /// A reflink, else a link if nothing writes it, else a copy
    Auto,
    /// A copy, without zeros
    Copy,
    /// A link to the golden file
    Link,
    /// A reflink, or an error
    Reflink,
    /// Not at all: it is booted
    None,
}

/// Arguments of `gridvfs proxy`.
#[derive(Args)]
pub struct ProxyArgs {
    #[command(subcommand)]
    pub command: ProxyCommand,
}

/// The server side's commands.
#[derive(Subcommand)]
pub enum ProxyCommand {
    /// Serve one session whose first channel is standard input and output (run over ssh)
    Stdio(ProxyStdioArgs),
    /// Attach standard input and output to a running session as a further channel (run over ssh)
    Attach {
        /// The session, as its greeting named it
        session: String,
    },
    /// The process that owns a session (run by `stdio`)
    #[command(hide = true)]
    Daemon,
    /// Listen for NFSv3 clients
    Serve(ProxyServeArgs),
    /// End a standing proxy: calls under way are finished, unsent data is sent or kept
    Stop(WriteBackArgs),
    /// The keys of a standing proxy's clients
    #[command(subcommand)]
    Key(ProxyKeyCommand),
    /// As `stdio` or `attach`, whichever the client asked for over ssh, under the administrator's
    /// rules: for `command=` in authorized_keys
    Forced {
        /// TOML: exports, nfs, read_only, map_uid, map_gid, unmapped (docs/security.md)
        #[arg(long, value_name = "FILE")]
        policy: PathBuf,
    },
}

/// What can be done with keys.
#[derive(Subcommand)]
pub enum ProxyKeyCommand {
    /// Make a key, add it to the proxy's key file, and print it
    New {
        /// Whose it is
        name: String,
        /// The proxy's key file; made if it is not there
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// Write the key into this new file, for the client's --key-file, instead of printing it
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// List whose keys are in a key file
    List {
        /// The proxy's key file
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a key: a running proxy sends its client away within a second
    Revoke {
        /// Whose it is
        name: String,
        /// The proxy's key file
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
}

/// What a proxy exports.
#[derive(Args, Clone)]
pub struct ExportArgs {
    /// The directory to serve; with --nfs, the NFS server's export path
    #[arg(long, value_name = "PATH")]
    pub export: PathBuf,
    /// Forward to the NFSv3 server at this address
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub nfs: Option<String>,
    /// The port of that server's MOUNT service (default: its portmapper is asked)
    #[arg(long, value_name = "PORT")]
    pub mount_port: Option<u16>,
    /// Refuse every change
    #[arg(long)]
    pub read_only: bool,
    /// The client's identity that this login stands for
    #[arg(long, value_name = "UID:GID")]
    pub shadow: Option<String>,
}

/// Arguments of `gridvfs proxy stdio`.
#[derive(Args)]
pub struct ProxyStdioArgs {
    #[command(flatten)]
    pub export: ExportArgs,
    /// How long the session outlives its last channel
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub linger: u32,
}

/// Arguments of `gridvfs proxy serve`.
#[derive(Args)]
pub struct ProxyServeArgs {
    /// A TOML file that says what to serve, where, and to whom (docs/proxies.md)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["export", "listen", "key_file", "keyless"])]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub export: Option<ExportArgs>,
    /// Where to listen: ADDR:PORT (port 0: any free one) or unix:PATH
    #[arg(long, value_name = "ADDR:PORT|unix:PATH", required_unless_present = "config")]
    pub listen: Option<String>,
    /// A file (mode 0600) with the session key that every call must carry: 32 hexadecimal digits;
    /// or with several, NAME = KEY a line
    #[arg(long, value_name = "FILE", conflicts_with = "keyless")]
    pub key_file: Option<PathBuf>,
    /// Let in whoever can connect; only on loopback and unix sockets
    #[arg(long)]
    pub keyless: bool,
}

/// Parses the arguments and runs the command.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<ExitCode> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Some(code) = helper::run(&arguments) {
        return Ok(code);
    }
    match Cli::parse_from(arguments).command {
        Command::Mount(args) => commands::mount::run(args),
        Command::Umount(args) => commands::umount::run(args),
        Command::Sessions(args) => commands::status::list(args),
        Command::Status(args) => commands::status::show(args),
        Command::Top(args) => commands::top::run(args),
        Command::Writeback(args) => commands::writeback::write_back(args),
        Command::Flush(args) => commands::writeback::flush(args),
        Command::Cancel(args) => commands::writeback::cancel(args),
        Command::Set(args) => commands::set::run(args),
        Command::Config(args) => commands::config::run(args.command),
        Command::Conflicts(args) => commands::conflicts::run(args),
        Command::Cache(args) => commands::cache::run(args.command),
        Command::Profile(args) => commands::profile::run(args),
        Command::Meta(args) => commands::meta::run(args.command),
        Command::Clone(args) => commands::clone::run(args),
        Command::Doctor(args) => commands::doctor::run(args),
        Command::Proxy(args) => commands::proxy::run(args.command),
        Command::Pages { directory } => commands::pages::run(Cli::command(), &directory),
    }
}
