//! Arguments of `gridvfs meta`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What the exit status says.
const VERIFY_STATUS: &str = "\
Exit status: 0 all that the metadata says is true; 1 something is not, the metadata is of another
version of the file, or damaged; 2 it could not be checked (no metadata, of a later format, or
something could not be read).";

const BUILD_HELP: &str = "\
Without --zero, --hash, --action and --from-profile: --zero --hash. Parts of earlier metadata that are
not asked for stay while the file has not changed; if it has, its zero map and hashes are built anew.

Actions, done in this order when the file is first accessed through a mount:
  zstd[:LEVEL]   fetch it whole, compressed (levels -7 to 22, default 3)
  gzip[:LEVEL]   the same with gzip (1 to 9, default 6)
  fetch          fetch it whole as it is
  command:NAME   a command that the mounting user has allowed under this name
  none           alone: no actions

With --watch it runs until it is interrupted. Only changes that are made on this machine are seen at
once; those made elsewhere (over NFS) at the next look at the whole directory.";

/// Arguments of `gridvfs meta`.
#[derive(Args)]
pub struct MetaArgs {
    #[command(subcommand)]
    pub command: MetaCommand,
}

/// What can be done with metadata files.
#[derive(Subcommand)]
pub enum MetaCommand {
    /// Make the metadata files of files, or keep those of a directory current
    #[command(after_help = BUILD_HELP)]
    Build(MetaBuildArgs),
    /// Show what a metadata file says
    Show(MetaShowArgs),
    /// Read files, and check all that their metadata files say
    #[command(after_help = VERIFY_STATUS)]
    Verify(MetaVerifyArgs),
    /// Remove the metadata files of files
    Remove(MetaRemoveArgs),
}

/// Arguments of `gridvfs meta build`.
#[derive(Args)]
pub struct MetaBuildArgs {
    /// Files: here, or through a mount
    #[arg(value_name = "FILE", required_unless_present = "watch")]
    pub files: Vec<PathBuf>,
    /// Which blocks are all zero
    #[arg(long)]
    pub zero: bool,
    /// The BLAKE3 hash of each block
    #[arg(long)]
    pub hash: bool,
    /// What to do at first access, instead of what there is; repeatable
    #[arg(long = "action", value_name = "ACTION")]
    pub actions: Vec<String>,
    /// The working set, instead of what there is, from what gridvfs profile stop has recorded
    #[arg(long, value_name = "PROFILE")]
    pub from_profile: Option<PathBuf>,
    /// Bytes of a block: 4K to 1M, a power of two (default: 8K; more for files above 8 GiB)
    #[arg(long, value_name = "SIZE")]
    pub block_size: Option<String>,
    /// Threads that read (default: one for each core)
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub jobs: usize,
    /// Keep the metadata of all files below DIR current that have some, and of those that match
    #[arg(long, value_name = "DIR", conflicts_with_all = ["files", "from_profile"])]
    pub watch: Option<PathBuf>,
    /// With --watch: also files of this name, or path below DIR (default: of 1 MiB at least);
    /// repeatable
    #[arg(long = "pattern", value_name = "GLOB", requires = "watch")]
    pub patterns: Vec<String>,
    /// With --watch: a file is read when it was left alone for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 5, requires = "watch")]
    pub settle: u32,
    /// With --watch: how often the whole directory is looked at
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "watch",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub rescan: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `gridvfs meta show`.
#[derive(Args)]
pub struct MetaShowArgs {
    /// A file, or its metadata file
    pub file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `gridvfs meta verify`.
#[derive(Args)]
pub struct MetaVerifyArgs {
    /// Files, or their metadata files
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Threads that read (default: one for each core)
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub jobs: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `gridvfs meta remove`.
#[derive(Args)]
pub struct MetaRemoveArgs {
    /// Files, or their metadata files
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
