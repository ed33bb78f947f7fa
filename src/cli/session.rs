//! Arguments of the verbs about sessions.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Arguments of `gridvfs status`.
#[derive(Args)]
pub struct StatusShowArgs {
    /// A session's name, or its mount point (default: all sessions of this user)
    pub session: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print Prometheus' text exposition format
    #[arg(long, conflicts_with = "json")]
    pub prometheus: bool,
}

/// Arguments of `gridvfs top`.
#[derive(Args)]
pub struct TopArgs {
    /// A session's name, or its mount point (default: all sessions of this user)
    pub session: Option<String>,
    /// Over how many seconds rates are taken
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "2")]
    pub interval: f64,
    /// Print one interval and end
    #[arg(long)]
    pub once: bool,
    /// How many files are shown of each session
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub files: usize,
    /// Print JSON, a line for each interval
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `gridvfs writeback` and `flush`.
#[derive(Args)]
pub struct WriteBackArgs {
    /// A session's name, or its mount point
    pub session: String,
    /// Give up waiting after this time; the session goes on sending
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<f64>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `gridvfs config`.
#[derive(Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

/// What can be done with settings.
#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Print each value, and whether it is a default, from a file (and its line), -o or set
    Show {
        /// A session's name or mount point, the NAME of a session file, or the path of one
        session: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of `gridvfs doctor`.
#[derive(Args)]
pub struct DoctorArgs {
    /// As for mount: what is to be mounted, or the NAME of a session file
    pub source: Option<String>,
    /// As for mount
    #[arg(short = 'o', value_name = "KEY=VALUE,…")]
    pub options: Vec<String>,
    /// The port of HOST's sshd
    #[arg(short = 'p', value_name = "PORT")]
    pub port: Option<u16>,
    /// An ssh configuration file
    #[arg(short = 'F', value_name = "FILE")]
    pub ssh_config: Option<PathBuf>,
    /// Measure no rates
    #[arg(long)]
    pub quick: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Reads how long somebody is willing to wait.
pub(super) fn seconds(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.05..1e9).contains(&seconds) => Ok(seconds),
        _ => Err("a number of seconds from 0.05 on is expected".into()),
    }
}
