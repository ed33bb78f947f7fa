//! Redo logs: qcow2 overlays, made by `qemu-img`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Redo;
use crate::report::Hinted;

/// Returns the command that makes a redo log, for its own directory.
pub fn command(log: &Redo) -> Vec<String> {
    ["qemu-img", "create", "-q", "-f", "qcow2", "-F", &log.format, "-b", &log.base, &log.name]
        .map(String::from)
        .to_vec()
}

/// Makes an empty redo log. It names its base by the link beside it, so that a clone's directory
/// may be moved, and the link led elsewhere.
pub fn create(directory: &Path, log: &Redo) -> Result<()> {
    let words = command(log);
    let output = Command::new(&words[0]).args(&words[1..]).current_dir(directory).output();
    let output = match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Hinted::error(
                "qemu-img is missing: it makes the redo log",
                "install qemu-utils (Debian, Ubuntu) or qemu-img (Fedora)",
            ));
        }
        output => output.context("qemu-img")?,
    };
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("qemu-img cannot make the redo log over {}: {}", log.base, words.trim());
    }
    Ok(())
}

/// Tells a disk image's format from its first bytes, as `qemu-img` names it.
pub fn format_of(path: &Path) -> Result<&'static str> {
    use std::os::unix::fs::FileExt;
    let mut magic = [0; 8];
    let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    let length = file.read_at(&mut magic, 0).with_context(|| path.display().to_string())?;
    Ok(match &magic[..length] {
        [b'Q', b'F', b'I', 0xfb, 0, 0, 0, 1] => "qcow",
        [b'Q', b'F', b'I', 0xfb, ..] => "qcow2",
        [b'K', b'D', b'M', b'V', ..] => "vmdk",
        b"vhdxfile" => "vhdx",
        b"conectix" => "vpc",
        _ => "raw",
    })
}
