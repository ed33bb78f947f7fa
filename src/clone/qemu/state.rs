//! The state of devices that a QEMU has saved, and how another reads it.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::clone::qemu_words::{Options, quoted};

/// A stream names its capabilities before anything else, within so many bytes.
const HEAD_BYTES: u64 = 4096;
/// The first bytes of a stream.
const MAGIC: &[u8] = b"QEVM";
/// Capabilities that whoever reads a stream must have switched on, and that it names.
const CAPABILITIES: [&str; 2] = ["x-ignore-shared", "mapped-ram"];

/// What `-incoming` says.
pub struct Incoming {
    /// Its value, for the clone.
    pub uri: String,
    capabilities: Vec<&'static str>,
    /// Says whether a command reads the file, so that its bytes may be anything.
    by_command: bool,
}

impl Incoming {
    /// Reads a value. `place` returns the place in the clone of a file that it names.
    pub fn parse(value: &str, mut place: impl FnMut(&str) -> Option<String>) -> Result<Self> {
        let (uri, by_command) = match value.split_once(':') {
            Some(("exec", command)) => (format!("exec:{}", exec(command, place)?), true),
            Some(("file", rest)) => {
                let mut options = Options::parse(rest);
                if let Some(path) = options.first().and_then(&mut place) {
                    options.set_first(&path);
                }
                (format!("file:{}", options.word()), false)
            }
            _ => bail!("-incoming {value} reads no file: exec:COMMAND or file:FILE does"),
        };
        Ok(Self { uri, capabilities: Vec::new(), by_command })
    }

    /// Looks into the file for what its reader must know.
    pub fn look_into(&mut self, file: &Path, memory_beside: bool) -> Result<()> {
        let mut head = Vec::new();
        let state = std::fs::File::open(file).with_context(|| file.display().to_string())?;
        state
            .take(HEAD_BYTES)
            .read_to_end(&mut head)
            .with_context(|| file.display().to_string())?;
        if head.is_empty() {
            bail!("the state {} is empty", file.display());
        }
        if head.starts_with(MAGIC) {
            let named = |word: &&str| head.windows(word.len()).any(|part| part == word.as_bytes());
            self.capabilities = CAPABILITIES.into_iter().filter(named).collect();
        } else if self.by_command {
            // Compressed. With memory in a file of its own, the stream is without.
            self.capabilities = if memory_beside { vec![CAPABILITIES[0]] } else { Vec::new() };
        } else {
            bail!("{} is no state that QEMU has saved", file.display());
        }
        Ok(())
    }

    /// Returns what is to be said to the monitor, quoted for a shell; empty if nothing is.
    pub fn monitor_commands(&self) -> Result<String> {
        if self.capabilities.is_empty() {
            return Ok(String::new());
        }
        let switch = |name: &&str| format!("migrate_set_capability {name} on\n");
        let mut commands: String = self.capabilities.iter().map(switch).collect();
        if self.uri.contains(['"', '\\', '\n']) {
            bail!("-incoming {}: QEMU's monitor takes no quotes and no \\ in it", self.uri);
        }
        commands += &format!("migrate_incoming \"{}\"", self.uri);
        quoted(&commands)
    }
}

/// Rewrites the words of a shell command that name files. Quotes are single ones.
fn exec(command: &str, mut place: impl FnMut(&str) -> Option<String>) -> Result<String> {
    // What a shell would expand cannot be told from a name.
    if command.contains(['$', '`', '|', ';', '&', '(', '*', '?']) {
        bail!("-incoming exec:{command} is more than one plain command");
    }
    let words = shlex::split(&command.replace('<', " < "))
        .with_context(|| format!("-incoming exec:{command}: a quotation is not closed"))?;
    let mut out = Vec::new();
    for (number, word) in words.iter().enumerate() {
        out.push(match word.as_str() {
            "<" => "<".into(),
            word if number == 0 => quoted(word)?,
            word => place(word).map_or_else(|| quoted(word), |path| single(&path))?,
        });
    }
    Ok(out.join(" "))
}

/// Quotes with single quotes only: double ones have a meaning to QEMU's monitor.
fn single(word: &str) -> Result<String> {
    if word.contains('\'') {
        bail!("{word}: no ' may be in the path of a clone");
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    Ok(if word.chars().all(plain) { word.into() } else { format!("'{word}'") })
}

/// Reads a size as QEMU does: bytes, or K, M, G, T. Without a unit it is bytes.
pub fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Says whether a QEMU can map a file privately without opening it for writing (8.2 and later).
pub fn knows_private_read_only(program: &str) -> bool {
    if !is_installed_qemu(program) {
        return false;
    }
    let mut command = Command::new(program);
    command.args(["-object", "memory-backend-file,help"]).stdin(Stdio::null());
    let output = command.output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("rom="))
}

/// Cloning runs nothing but this machine's own QEMU, whatever a golden VM's command line names.
fn is_installed_qemu(program: &str) -> bool {
    let (directory, name) = program.rsplit_once('/').unwrap_or(("", program));
    let installed = ["", "/usr/bin", "/usr/local/bin", "/usr/libexec"].contains(&directory);
    installed && (name.starts_with("qemu-system-") || name == "qemu-kvm")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(value: &str) -> Result<String> {
        let place = |word: &str| (word == "state").then(|| "/clone dir/state".into());
        Ok(Incoming::parse(value, place)?.uri)
    }

    #[test]
    fn the_state_is_found_in_what_reads_it() {
        for (value, wanted) in [
            ("exec:cat state", "exec:cat '/clone dir/state'"),
            ("exec:zstd -dc <state", "exec:zstd -dc < '/clone dir/state'"),
            ("exec:tail -c +17 'state'", "exec:tail -c +17 '/clone dir/state'"),
            ("file:state,offset=4096", "file:/clone dir/state,offset=4096"),
        ] {
            assert_eq!(placed(value).unwrap(), wanted);
        }
        for value in ["defer", "tcp:0:4444", "exec:cat $STATE", "exec:cat 'state", "exec:a | b"] {
            assert!(placed(value).is_err(), "{value}");
        }
    }

    #[test]
    fn capabilities_are_those_that_the_stream_names() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("state");
        let commands = |bytes: &[u8], memory| {
            std::fs::write(&file, bytes).unwrap();
            let mut incoming = Incoming::parse("exec:cat state", |_| None).unwrap();
            incoming.look_into(&file, memory).and_then(|()| incoming.monitor_commands())
        };
        let named = commands(b"QEVM\0\0\0\x03..x-ignore-shared..", true).unwrap();
        assert!(named.contains("migrate_set_capability x-ignore-shared on"), "{named}");
        assert_eq!(commands(b"QEVM\0\0\0\x03....", false).unwrap(), "");
        assert!(commands(b"\x28\xb5\x2f\xfd", true).unwrap().contains("x-ignore-shared"));
        assert!(commands(b"", true).is_err());
        let mut by_name = Incoming::parse("file:state", |_| None).unwrap();
        std::fs::write(&file, "other").unwrap();
        assert!(by_name.look_into(&file, true).is_err());
    }

    #[test]
    fn nothing_but_an_installed_qemu_is_run() {
        for program in ["qemu-system-x86_64", "/usr/bin/qemu-system-arm", "/usr/libexec/qemu-kvm"] {
            assert!(is_installed_qemu(program), "{program}");
        }
        for program in ["reboot", "./qemu-system-x86_64", "/golden/qemu-system-x86_64", "qemu", ""]
        {
            assert!(!is_installed_qemu(program), "{program}");
        }
    }

    #[test]
    fn sizes_are_read_as_qemu_does() {
        assert_eq!(size("320M"), Some(320 << 20));
        assert_eq!(size("1024"), Some(1024));
        assert_eq!(size("2g"), Some(2 << 30));
        assert_eq!(size("99999999999G"), None);
        assert_eq!(size("many"), None);
    }
}
