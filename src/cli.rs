//! The command line: one definition for parsing, help and (later) man pages and completions.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::commands;

#[derive(Parser)]
#[command(name = "gridvfs", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Mount a directory of a state server
    Mount(MountArgs),
    /// Write back what is held, then unmount
    #[command(alias = "unmount")]
    Umount(UmountArgs),
    /// List the sessions of this user
    Sessions(JsonArgs),
    /// Show one session's state and counters
    Status(StatusArgs),
    /// Send what a session holds to the state server, and wait until it is durable there
    Writeback(StatusArgs),
    /// The server side: started by `gridvfs mount` over ssh, or standing
    Proxy(ProxyArgs),
}

/// Arguments of `gridvfs mount`.
#[derive(Args, Clone)]
pub struct MountArgs {
    /// [USER@]HOST:/path, nfs://ADDR[:PORT]/export, gridvfs+unix:/socket, gridvfs://ADDR:PORT,
    /// or a local directory
    pub source: String,
    /// An empty directory
    pub mountpoint: PathBuf,
    /// Mount options, comma-separated: stripes=4, ro, timeout=SECONDS (default: wait for ever),
    /// ssh_command=, gridvfs_command= (on HOST), nfs=ADDR[:PORT] (HOST's proxy forwards to that
    /// NFS server), no_proxy (ssh -W to the NFS server), mountport=, cred=UID[:GID],
    /// attr_timeout=1, entry_timeout=1, negative_timeout=0, allow_other, default_permissions,
    /// nonempty, linger=300, kernel flags (nosuid, noatime, …), and ssh's own (Port=2222)
    #[arg(short = 'o', value_name = "KEY=VALUE,…")]
    pub options: Vec<String>,
    /// The session's name (default: from the mount point)
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
    pub ssh_config: Option<String>,
    /// A file with the session key, for gridvfs:// and gridvfs+unix: sources
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Print the session as JSON once it is mounted
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `gridvfs umount`.
#[derive(Args)]
pub struct UmountArgs {
    /// A mount point, or a session's name
    pub target: String,
    /// Detach at once even if files are open; they work until closed
    #[arg(short = 'z', long)]
    pub lazy: bool,
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
    #[command(flatten)]
    pub export: ExportArgs,
    /// Where to listen: ADDR:PORT (port 0: any free one) or unix:PATH
    #[arg(long, value_name = "ADDR:PORT|unix:PATH")]
    pub listen: String,
    /// A file (mode 0600) with the session key that every call must carry: 32 hexadecimal digits
    #[arg(long, value_name = "FILE", conflicts_with = "keyless")]
    pub key_file: Option<PathBuf>,
    /// Let in whoever can connect; only on loopback and unix sockets
    #[arg(long)]
    pub keyless: bool,
}

/// Parses the arguments and runs the command.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<ExitCode> {
    match Cli::parse_from(arguments).command {
        Command::Mount(args) => commands::mount::run(args),
        Command::Umount(args) => commands::umount::run(args),
        Command::Sessions(args) => commands::status::list(args),
        Command::Status(args) => commands::status::show(args),
        Command::Writeback(args) => commands::status::write_back(args),
        Command::Proxy(args) => commands::proxy::run(args.command),
    }
}
