//! `gridvfs-fill-tags`: makes a disk cache look full, to measure what opening a full one costs.
//!
//! It writes the heads of a `tags` file as docs/on-disk-format.md describes them: every frame is
//! said to hold all blocks of some file. There is no data behind them, so such a cache is good for
//! nothing else. It must not be in use.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Parser;

/// Fill the tags of a disk cache that holds nothing worth keeping.
#[derive(Parser)]
#[command(name = "gridvfs-fill-tags", version)]
struct Cli {
    /// The file `tags` of the cache's block store.
    tags: PathBuf,
}

/// Where the heads begin.
const HEADS_AT: u64 = 4096;
const BLOCK_BYTES: u32 = 4096;

fn main() -> Result<()> {
    let Cli { tags: path } = Cli::parse();
    let file = File::options().read(true).write(true).open(&path);
    let file = file.with_context(|| path.display().to_string())?;
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)?;
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    if &header[..8] != b"GVFSTAG1" || !matches!(word(8), 1 | 2) {
        bail!("{}: these are no tags of format 1 or 2", path.display());
    }
    let size = u64::from_le_bytes(header[16..24].try_into()?);
    let (ways, frame_bytes) = (word(28) as usize, word(32));
    let sets = size / (ways as u64 * u64::from(frame_bytes));
    let valid = u64::MAX >> (64 - frame_bytes / BLOCK_BYTES);
    let head_bytes = (ways * 18).next_multiple_of(64);
    let mut heads = Vec::with_capacity(sets as usize * head_bytes);
    for set in 0..sets {
        let start = heads.len();
        for way in 0..ways as u64 {
            heads.extend_from_slice(&((way << 32) | valid).to_le_bytes());
        }
        for way in 0..ways as u64 {
            // The keys of files of 16 frames, each in another set.
            let key = (set / 16 * ways as u64 + way + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            heads.extend_from_slice(&key.to_le_bytes());
        }
        heads.resize(start + head_bytes, 0);
    }
    file.write_all_at(&heads, HEADS_AT)?;
    println!("{} frames", sets * ways as u64);
    Ok(())
}
