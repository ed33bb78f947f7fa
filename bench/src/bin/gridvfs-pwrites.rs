//! `gridvfs-pwrites`: random writes into a file, and how long they and an fsync took.
//!
//! Places and contents follow from the seed alone, so that the same run on a copy of the file gives
//! the same file. No place is written twice.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;

/// Write random blocks of a file, fsync it, and print how long that took.
#[derive(Parser)]
#[command(name = "gridvfs-pwrites", version)]
struct Cli {
    /// A file that is there; its size stays as it is.
    file: PathBuf,
    /// How many blocks are written.
    #[arg(long, default_value_t = 2048)]
    count: usize,
    /// The size of a block, in bytes.
    #[arg(long, default_value_t = 4096)]
    block: usize,
    /// What places and contents follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The generator splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }
}

fn main() -> Result<()> {
    let Cli { file: path, count, block, seed } = Cli::parse();
    let name = || path.display().to_string();
    let file = File::options().read(true).write(true).open(&path).with_context(name)?;
    let blocks = file.metadata()?.len() / block as u64;
    if (count as u64) > blocks / 2 {
        bail!("{}: {blocks} blocks are too few to write {count} of them", name());
    }
    let mut random = Random(seed);
    let mut taken = HashSet::new();
    let mut writes = Vec::with_capacity(count);
    while writes.len() < count {
        let number = random.next() % blocks;
        if taken.insert(number) {
            let mut data = vec![0; block];
            for bytes in data.chunks_mut(8) {
                bytes.copy_from_slice(&random.next().to_le_bytes()[..bytes.len()]);
            }
            writes.push((number * block as u64, data));
        }
    }
    let start = Instant::now();
    for (offset, data) in &writes {
        file.write_all_at(data, *offset).with_context(name)?;
    }
    let written = start.elapsed();
    file.sync_all().with_context(name)?;
    let total = start.elapsed();
    let told = serde_json::json!({
        "bytes": count * block,
        "write_seconds": written.as_secs_f64(),
        "fsync_seconds": (total - written).as_secs_f64(),
        "seconds": total.as_secs_f64(),
    });
    println!("{told}");
    Ok(())
}
