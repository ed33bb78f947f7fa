//! On what machine, with what programs: a run's record in `meta.json`.

use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value, json};

use super::experiment::{disk, find_program};

/// Programs and how they are asked for their version.
const TOOLS: [(&str, &str); 14] = [
    ("qemu-system-x86_64", "--version"),
    ("ssh", "-V"),
    ("sshfs", "--version"),
    ("rclone", "version"),
    ("ganesha.nfsd", "-v"),
    ("iperf3", "--version"),
    ("fio", "--version"),
    ("fusermount3", "--version"),
    ("pdflatex", "--version"),
    ("latexmk", "--version"),
    ("gcc", "--version"),
    ("zstd", "--version"),
    ("bash", "--version"),
    ("rustc", "--version"),
];

/// What is worth knowing of a machine; what cannot be found out is left out.
pub fn facts(full: bool) -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cpu = read("/proc/cpuinfo");
    let memory = field(&read("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
        .map(|kib| kib >> 10);
    let system = read("/etc/os-release");
    let system = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    json!({
        "date": first_line("date", &["-u", "+%FT%TZ"]),
        "commit": first_line("git", &["-C", env!("CARGO_MANIFEST_DIR"), "-c", "safe.directory=*", "describe", "--always", "--dirty"]),
        "full": full,
        "root": nix::unistd::geteuid().is_root(),
        "kernel": first_line("uname", &["-sr"]),
        "system": system.map(|name| name.trim_matches('"')),
        "cpu": field(&cpu, "model name"),
        "processors": cpu.lines().filter(|line| line.starts_with("processor")).count(),
        "memory_mib": memory,
        "disk": disk_facts(),
        "load": read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
        "tools": tools(),
    })
}

fn disk_facts() -> Value {
    let place = disk();
    let at = place.to_string_lossy();
    json!({
        "place": at,
        "type": first_line("findmnt", &["-n", "-o", "FSTYPE", "--target", &at]),
        "source": first_line("findmnt", &["-n", "-o", "SOURCE", "--target", &at]),
        "free_mib": nix::sys::statvfs::statvfs(&place).ok().map(|told| (told.blocks_available() * told.fragment_size()) >> 20),
    })
}

fn tools() -> Map<String, Value> {
    let gridvfs = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("gridvfs")));
    let mut found = Map::new();
    if let Some(version) = gridvfs.as_deref().and_then(|own| version(own, "--version")) {
        found.insert("gridvfs".into(), version.into());
    }
    for (name, flag) in TOOLS {
        if let Some(version) = find_program(name).and_then(|path| version(&path, flag)) {
            found.insert(name.into(), version.into());
        }
    }
    found
}

fn version(program: &Path, flag: &str) -> Option<String> {
    first_line(&program.to_string_lossy(), &[flag])
}

/// The first line that a program prints, wherever it prints it.
fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}
