//! Experiments: scripts that say what parts they have.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// The most parts that one experiment may have.
const PARTS_MAX: usize = 200;
/// The most repetitions of a part.
pub const REPEATS_MAX: u32 = 1000;

/// What a script says of one of its parts, and which script it is of.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Part {
    /// The script's name.
    #[serde(default)]
    pub experiment: String,
    /// The part's own name.
    pub part: String,
    /// What it measures, in words.
    pub title: String,
    /// An estimate for one repetition.
    pub seconds: u64,
    /// How often it is run for a median.
    pub repeats: u32,
    /// What must be here: `root`, `disk:MIB` and `memory:MIB` (free space), `kernel-nfs`, or a program.
    #[serde(default)]
    pub needs: Vec<String>,
}

impl Part {
    /// EXPERIMENT/PART, as on the command line.
    pub fn name(&self) -> String {
        format!("{}/{}", self.experiment, self.part)
    }

    /// Returns why it cannot be run here, or nothing.
    pub fn missing(&self) -> Option<String> {
        self.needs.iter().find_map(|need| missing(need))
    }
}

/// A script in the folder of experiments.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// The file's name without `.sh`.
    pub name: String,
    /// The file.
    pub script: PathBuf,
}

/// Names are parts of file names, which dots take apart.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Finds the scripts in a folder, by name.
pub fn find(folder: &Path) -> Result<Vec<Experiment>> {
    let mut found = Vec::new();
    for entry in folder.read_dir().with_context(|| folder.display().to_string())? {
        let script = entry?.path();
        let Some(name) = script.file_name().and_then(|n| n.to_str()?.strip_suffix(".sh")) else {
            continue;
        };
        ensure!(is_name(name), "{}: a name has a-z, 0-9 and -", script.display());
        found.push(Experiment { name: name.into(), script });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

impl Experiment {
    /// Asks the script for its parts.
    pub fn parts(&self, full: bool) -> Result<Vec<Part>> {
        let script = self.script.display();
        let output = Command::new(&self.script)
            .arg("list")
            .args(full.then_some("--full"))
            .stdin(Stdio::null())
            .output()
            .with_context(|| script.to_string())?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("{script} list: {}: {}", output.status, words.trim());
        }
        let text = String::from_utf8(output.stdout).with_context(|| script.to_string())?;
        let mut parts = Vec::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let mut part: Part =
                serde_json::from_str(line).with_context(|| format!("{script} list: {line}"))?;
            part.experiment.clone_from(&self.name);
            ensure!(is_name(&part.part), "{script} list: {:?} is no name", part.part);
            ensure!((1..=REPEATS_MAX).contains(&part.repeats), "{script} list: {line}");
            parts.push(part);
        }
        ensure!(parts.len() <= PARTS_MAX, "{script} lists more than {PARTS_MAX} parts");
        Ok(parts)
    }
}

/// Where caches and local counterparts are put: `GRIDVFS_BENCH_DISK` or /var/tmp, as in bench/lib.sh.
pub fn disk() -> PathBuf {
    std::env::var_os("GRIDVFS_BENCH_DISK").map_or_else(|| "/var/tmp".into(), PathBuf::from)
}

fn missing(need: &str) -> Option<String> {
    if need == "root" {
        return (!nix::unistd::geteuid().is_root()).then(|| "needs root".into());
    }
    if need == "kernel-nfs" {
        let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        let is_there = known.lines().any(|line| line.split_whitespace().last() == Some("nfs"));
        return (!is_there).then(|| "this machine's kernel has no NFS client".into());
    }
    for (prefix, folder) in [("disk:", disk()), ("memory:", "/dev/shm".into())] {
        if let Some(mib) = need.strip_prefix(prefix).and_then(|mib| mib.parse::<u64>().ok()) {
            let free = free_mib(&folder)?;
            let place = folder.display();
            return (free < mib)
                .then(|| format!("needs {mib} MiB of free space in {place}, which has {free}"));
        }
    }
    find_program(need)
        .is_none()
        .then(|| format!("{need} is not installed (`make deps-bench` installs what it can)"))
}

fn free_mib(folder: &Path) -> Option<u64> {
    let told = nix::sys::statvfs::statvfs(folder).ok()?;
    Some((told.blocks_available() * told.fragment_size()) >> 20)
}

/// Where a program is; the folders of system programs need not be in PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_be_told_apart_in_a_file_name() {
        for name in ["wan-gc", "a", "100ms"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "a.b", "../x", "A", "a b", "a/b"] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(missing("sh"), None);
        assert_eq!(missing("disk:0"), None);
        assert!(missing("no-such-program").unwrap().contains("no-such-program"));
        let told = missing(&format!("disk:{}", u64::MAX)).unwrap();
        assert!(told.contains("free space"), "{told}");
    }
}
