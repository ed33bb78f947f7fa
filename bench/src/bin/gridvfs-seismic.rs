//! `gridvfs-seismic`: a job like SPECseis, which the paper's evaluation runs, in four phases.
//!
//! 1. `generate` writes a large file of traces, shot by shot.
//! 2. `sort` reads it by midpoint, a trace here and a trace there, corrects the traces for their
//!    offsets and writes them, as many bytes again, as gathers.
//! 3. `stack` reads the gathers and writes one trace for each.
//! 4. `migrate` computes: each sample of the image is a sum over the traces around it. It writes the
//!    image, and removes all files of the phases before.
//!
//! Every figure follows from the size alone, to the last bit, on every machine: only sums, products and
//! square roots are used, whose results IEEE 754 fixes. So the image can be compared byte by byte.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};

/// Run one phase of a seismic job in a folder.
#[derive(Parser)]
#[command(name = "gridvfs-seismic", version)]
struct Cli {
    phase: Phase,
    /// Where the files of all phases are.
    folder: PathBuf,
    /// The size of the trace file, in MiB; the same for all phases.
    #[arg(long, default_value_t = 192)]
    mib: usize,
    /// How many traces to each side of it an image's trace is computed from.
    #[arg(long, default_value_t = 400)]
    aperture: usize,
    /// End each phase with fsync of what it has written.
    #[arg(long)]
    fsync: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Phase {
    Generate,
    Sort,
    Stack,
    Migrate,
}

const TRACES: &str = "traces.dat";
const GATHERS: &str = "gathers.tmp";
const STACKED: &str = "stacked.tmp";
const IMAGE: &str = "image.out";

/// Samples of a trace: 4 KiB.
const SAMPLES: usize = 1024;
const TRACE_BYTES: usize = SAMPLES * size_of::<f32>();
/// Traces of a shot, and of a gather.
const FOLD: usize = 16;

type Trace = [f32; SAMPLES];

fn main() -> Result<()> {
    let cli = Cli::parse();
    if cli.mib == 0 {
        bail!("--mib: 1 at least");
    }
    // Whole shots, and whole gathers.
    let traces = cli.mib * (1 << 20) / TRACE_BYTES;
    match cli.phase {
        Phase::Generate => generate(&cli, traces),
        Phase::Sort => sort(&cli, traces),
        Phase::Stack => stack(&cli, traces),
        Phase::Migrate => migrate(&cli, traces),
    }
}

/// A file that is written trace by trace, in writes of 64 KiB.
struct Output {
    writer: BufWriter<File>,
    path: PathBuf,
    fsync: bool,
}

impl Output {
    fn create(cli: &Cli, name: &str) -> Result<Self> {
        let path = cli.folder.join(name);
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        Ok(Self { writer: BufWriter::with_capacity(64 << 10, file), path, fsync: cli.fsync })
    }

    fn write(&mut self, trace: &Trace) -> Result<()> {
        let mut bytes = [0; TRACE_BYTES];
        for (to, sample) in bytes.chunks_exact_mut(4).zip(trace) {
            to.copy_from_slice(&sample.to_le_bytes());
        }
        self.writer.write_all(&bytes).with_context(|| self.path.display().to_string())
    }

    fn end(self) -> Result<()> {
        let name = || self.path.display().to_string();
        let file = self.writer.into_inner().with_context(name)?;
        if self.fsync {
            file.sync_all().with_context(name)?;
        }
        Ok(())
    }
}

fn open(folder: &Path, name: &str) -> Result<File> {
    let path = folder.join(name);
    File::open(&path).with_context(|| path.display().to_string())
}

fn decode(bytes: &[u8; TRACE_BYTES]) -> Trace {
    std::array::from_fn(|at| {
        f32::from_le_bytes([bytes[4 * at], bytes[4 * at + 1], bytes[4 * at + 2], bytes[4 * at + 3]])
    })
}

/// The generator xorshift64*, as a number from -1 to 1.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        (word >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// The time, in samples, at which what lies at `depth` is heard `distance` traces away.
fn arrival(depth: usize, distance: usize) -> usize {
    let (depth, distance) = (depth as f64, 4.0 * distance as f64);
    (depth * depth + distance * distance).sqrt() as usize
}

fn generate(cli: &Cli, traces: usize) -> Result<()> {
    let mut output = Output::create(cli, TRACES)?;
    for number in 0..traces {
        let (shot, offset) = (number / FOLD, number % FOLD);
        let mut noise = Noise(number as u64 + 1);
        let mut trace: Trace = std::array::from_fn(|_| 0.1 * noise.next());
        // Layers that dip along the line.
        for layer in 1..8 {
            let depth = 110 * layer + shot % (13 * layer);
            if let Some(sample) = trace.get_mut(arrival(depth, offset)) {
                *sample += 1.0 / layer as f32;
            }
        }
        output.write(&trace)?;
    }
    output.end()
}

/// Shot s has traces s·FOLD + offset; midpoint m is that of shot m − offset.
fn sort(cli: &Cli, traces: usize) -> Result<()> {
    let input = open(&cli.folder, TRACES)?;
    let mut output = Output::create(cli, GATHERS)?;
    let shots = traces / FOLD;
    let mut bytes = [0; TRACE_BYTES];
    for midpoint in 0..shots {
        for offset in 0..FOLD {
            let shot = (midpoint + shots - offset) % shots;
            let at = ((shot * FOLD + offset) * TRACE_BYTES) as u64;
            input.read_exact_at(&mut bytes, at).context(TRACES)?;
            let trace = decode(&bytes);
            let corrected: Trace = std::array::from_fn(|depth| {
                trace.get(arrival(depth, offset)).copied().unwrap_or(0.0)
            });
            output.write(&corrected)?;
        }
    }
    output.end()
}

fn stack(cli: &Cli, traces: usize) -> Result<()> {
    let mut input = open(&cli.folder, GATHERS)?;
    let mut output = Output::create(cli, STACKED)?;
    let mut gather = vec![0; FOLD * TRACE_BYTES];
    for _ in 0..traces / FOLD {
        input.read_exact(&mut gather).context(GATHERS)?;
        let mut sum = [0.0; SAMPLES];
        for bytes in gather.chunks_exact(TRACE_BYTES) {
            let trace = decode(bytes.try_into().context("a trace")?);
            for (sum, sample) in sum.iter_mut().zip(trace) {
                *sum += sample;
            }
        }
        output.write(&sum)?;
    }
    output.end()
}

fn migrate(cli: &Cli, traces: usize) -> Result<()> {
    let mut input = open(&cli.folder, STACKED)?;
    let mut stacked = Vec::with_capacity(traces / FOLD);
    let mut bytes = [0; TRACE_BYTES];
    for _ in 0..traces / FOLD {
        input.read_exact(&mut bytes).context(STACKED)?;
        stacked.push(decode(&bytes));
    }
    let mut output = Output::create(cli, IMAGE)?;
    for number in 0..stacked.len() {
        let around =
            number.saturating_sub(cli.aperture)..(number + cli.aperture + 1).min(stacked.len());
        let mut image = [0.0; SAMPLES];
        for other in around {
            let distance = number.abs_diff(other);
            for (depth, sample) in image.iter_mut().enumerate() {
                if let Some(heard) = stacked[other].get(arrival(depth, distance)) {
                    *sample += heard;
                }
            }
        }
        output.write(&image)?;
    }
    output.end()?;
    for name in [TRACES, GATHERS, STACKED] {
        std::fs::remove_file(cli.folder.join(name)).context(name)?;
    }
    Ok(())
}
