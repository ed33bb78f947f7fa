//! Cloning a suspended VM as the paper does (sections 6 and 7.4): its configuration is copied, its
//! memory and disks are linked, what the clone writes goes to a redo log of its own, and the
//! configuration gets a name, an identity and paths of the clone.
//!
//! A *layout* (QEMU, VMware, Xen) reads a golden directory and makes a [`Plan`]; nothing is written
//! before the plan is whole. [`carry_out`] then builds the clone in a directory beside its place
//! and renames it. Golden files are only read. docs/cloning.md describes the layouts.

pub mod ahead;
mod cached;
mod golden;
mod identity;
mod place;
mod qemu;
mod qemu_words;
mod redo;
mod vmdk;
mod vmware;
mod vmx;
mod xen;
mod xl;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use golden::Golden;
pub use identity::Mac;
pub use place::Way;

use crate::report::Hinted;

/// What the clone is to be.
pub struct Wish {
    /// Its directory, absolute, which must not exist.
    pub directory: PathBuf,
    /// The VM's name.
    pub name: String,
    /// MAC addresses for its network cards, in their order; more are made up.
    pub macs: Vec<Mac>,
    /// Further settings: a key of the configuration and its new value.
    pub settings: Vec<(String, String)>,
    /// How it gets its memory; `None`: not at all, it is booted.
    pub memory: Option<Way>,
}

impl Wish {
    /// Returns where a file of the clone will be.
    fn place(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    /// Returns the address of network card `number`, in the vendor's range if it is made up.
    fn mac(&self, number: usize, vendor: identity::Vendor) -> Result<Mac> {
        self.macs.get(number).copied().map_or_else(|| Mac::random(vendor), Ok)
    }
}

/// A golden file and its name in the clone.
#[derive(Debug, PartialEq, Eq)]
struct Item {
    from: PathBuf,
    name: String,
}

/// A redo log and the file beside it that it is laid over.
#[derive(Debug, PartialEq, Eq)]
struct Redo {
    name: String,
    base: String,
    format: String,
}

/// A file with what is written into it.
struct Text {
    name: String,
    text: String,
    executable: bool,
}

/// All that a clone consists of.
struct Plan {
    /// The configuration's files, made to fit.
    configuration: Vec<Text>,
    /// Memory, with the way to it.
    memory: Vec<(Item, Way)>,
    /// The state of devices and other small files of its own.
    copies: Vec<Item>,
    /// What is only read: disks below redo logs, kernels, media.
    links: Vec<Item>,
    redo: Vec<Redo>,
    /// What starts the clone.
    command: Vec<String>,
    /// What whoever cloned it should know.
    notes: Vec<String>,
}

/// What a phase did.
pub struct Phase {
    /// Its name.
    pub name: &'static str,
    /// What it did, for people.
    pub what: String,
    /// How long it took.
    pub took: Duration,
}

/// A clone that is there.
pub struct Outcome {
    /// The layout's name.
    pub layout: &'static str,
    /// What was done.
    pub phases: Vec<Phase>,
    /// What starts the clone.
    pub command: Vec<String>,
    /// What whoever cloned it should know.
    pub notes: Vec<String>,
}

/// Is told how the work goes, and says whether it is to stop.
pub trait Watch {
    /// A phase is done.
    fn phase(&mut self, phase: &Phase);
    /// So many of so many bytes of a file are copied.
    fn bytes(&mut self, done: u64, total: u64);
    /// Says whether to stop.
    fn stopped(&self) -> bool;
}

/// Reads the golden directory and makes the clone of it.
pub fn make(
    golden: &Golden,
    wish: &Wish,
    building: &Path,
    watch: &mut dyn Watch,
) -> Result<Outcome> {
    let begin = Instant::now();
    let plan = match golden.layout() {
        golden::Layout::Qemu => qemu::plan(golden, wish)?,
        golden::Layout::Vmware => vmware::plan(golden, wish)?,
        golden::Layout::Xen => xen::plan(golden, wish)?,
    };
    let mut work = Work { building, watch, phases: Vec::new(), begin };
    work.done("configuration", format!("read {}", golden.configuration_name()))?;
    carry_out(&plan, &mut work)?;
    Ok(Outcome {
        layout: golden.layout().name(),
        phases: work.phases,
        command: plan.command,
        notes: plan.notes,
    })
}

struct Work<'a> {
    building: &'a Path,
    watch: &'a mut dyn Watch,
    phases: Vec<Phase>,
    begin: Instant,
}

impl Work<'_> {
    fn done(&mut self, name: &'static str, what: String) -> Result<()> {
        let phase = Phase { name, what, took: self.begin.elapsed() };
        self.watch.phase(&phase);
        self.phases.push(phase);
        self.begin = Instant::now();
        if self.watch.stopped() {
            bail!("interrupted");
        }
        Ok(())
    }
}

fn carry_out(plan: &Plan, work: &mut Work<'_>) -> Result<()> {
    for (item, way) in &plan.memory {
        let source = cached::local_copy(&item.from);
        let target = work.building.join(&item.name);
        let done = place::memory(&item.from, source.as_deref(), &target, *way, work.watch)
            .with_context(|| format!("cannot take over the memory {}", item.from.display()))?;
        work.done("memory", format!("{} {}", item.name, done))?;
    }
    let mut bytes = 0;
    for item in &plan.copies {
        bytes += place::copy(&item.from, &work.building.join(&item.name), work.watch)
            .with_context(|| format!("cannot copy {}", item.from.display()))?;
    }
    if !plan.copies.is_empty() {
        let size = crate::report::bytes_text(bytes);
        work.done("devices", format!("{} copied, {size}", listed(&plan.copies)))?;
    }
    for item in &plan.links {
        let link = work.building.join(&item.name);
        std::os::unix::fs::symlink(&item.from, &link)
            .with_context(|| format!("cannot make the link {}", link.display()))?;
    }
    work.done("disks", format!("{} linked", listed(&plan.links)))?;
    for log in &plan.redo {
        redo::create(work.building, log)?;
    }
    if !plan.redo.is_empty() {
        let names: Vec<&str> = plan.redo.iter().map(|log| &*log.name).collect();
        work.done("redo log", names.join(", "))?;
    }
    for file in &plan.configuration {
        let path = work.building.join(&file.name);
        let mode = if file.executable { 0o777 } else { 0o666 };
        place::write(&path, file.text.as_bytes(), mode)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let names: Vec<&str> = plan.configuration.iter().map(|file| &*file.name).collect();
    work.done("customise", names.join(", "))
}

fn listed(items: &[Item]) -> String {
    match items {
        [] => "nothing".into(),
        items => items.iter().map(|item| &*item.name).collect::<Vec<_>>().join(", "),
    }
}

/// The error of a golden VM without a state to resume from.
fn not_suspended(golden: &Golden, looked_for: &str) -> anyhow::Error {
    Hinted::error(
        format!("{} holds no suspended VM: {looked_for}", golden.directory().display()),
        "--memory none clones a VM that is switched off: only its configuration and disks",
    )
}
