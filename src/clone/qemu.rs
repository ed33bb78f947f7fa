//! The QEMU layout: `qemu.args` is the command line that resumes the VM, with the directory as the
//! working one. Memory is the file of a `memory-backend-file`, devices are what `-incoming` reads;
//! or both are in the latter.

mod state;

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::golden::Golden;
use super::identity::{self, Mac, Vendor};
use super::place::Way;
use super::qemu_words::{Argument, CommandLine, Options, quoted};
use super::{Item, Plan, Redo, Text, Wish, not_suspended, redo};
use crate::report::Hinted;
use state::Incoming;

/// The script that resumes a clone; words in capitals are replaced.
const START: &str = include_str!("qemu/start.sh");
/// The longest path of a unix socket, in bytes.
const SOCKET_BYTES_MAX: usize = 107;
/// Options whose value is a file that is only read.
const READ_ONLY: [&str; 8] =
    ["-kernel", "-initrd", "-dtb", "-bios", "-cdrom", "-fda", "-fdb", "-shim"];
/// What names files in ways that are not understood here.
const REFUSED: [(&str, &str); 7] = [
    ("-blockdev", "name the disk by -drive"),
    ("-hda", "name the disk by -drive"),
    ("-hdb", "name the disk by -drive"),
    ("-hdc", "name the disk by -drive"),
    ("-hdd", "name the disk by -drive"),
    ("-readconfig", "write what it says as options"),
    ("-loadvm", "a snapshot within a disk image is not seen through a redo log"),
];
/// Network devices, which have an address even if none is given.
const NETWORK_DEVICES: [&str; 7] =
    ["virtio-net", "e1000", "rtl8139", "vmxnet3", "pcnet", "ne2k", "i82559"];

/// Reads the golden directory and says what its clone consists of.
pub fn plan(golden: &Golden, wish: &Wish) -> Result<Plan> {
    let name = golden.configuration_name();
    let mut line = CommandLine::parse(&golden.configuration()?, name)?;
    let mut work = Work::new(golden, wish);
    // Asked while files are looked at: it starts a program.
    let program = line.program.clone();
    let private = std::thread::spawn(move || state::knows_private_read_only(&program));
    let mut kept = Vec::new();
    for argument in std::mem::take(&mut line.arguments) {
        work.argument(argument, &mut kept)?;
    }
    line.arguments = kept;
    if line.program.contains('/') && Path::new(&line.program).is_relative() {
        line.program = golden.file(&line.program)?.to_string_lossy().into_owned();
    }
    work.identity(&mut line)?;
    let incoming = work.incoming()?;
    work.memory_arguments(&mut line, private.join().unwrap_or(false))?;
    for (key, value) in &wish.settings {
        line.set(&format!("-{}", key.trim_start_matches('-')), value);
    }
    work.plan.command = vec![wish.place("start")];
    work.finish(&line, incoming)
}

struct Work<'a> {
    golden: &'a Golden,
    wish: &'a Wish,
    plan: Plan,
    names: Vec<String>,
    macs: usize,
    incoming: Option<String>,
    /// The golden file of a memory backend, and its name in the clone.
    memory: Option<(std::path::PathBuf, String)>,
}

impl<'a> Work<'a> {
    fn new(golden: &'a Golden, wish: &'a Wish) -> Self {
        let plan = Plan {
            configuration: Vec::new(),
            memory: Vec::new(),
            copies: Vec::new(),
            links: Vec::new(),
            redo: Vec::new(),
            command: Vec::new(),
            notes: Vec::new(),
        };
        let names = ["qemu.args", "start", "resumed", "resume.in", "resume.out"].map(String::from);
        Self { golden, wish, plan, names: names.to_vec(), macs: 0, incoming: None, memory: None }
    }

    /// Returns a free name in the clone for a file.
    fn name_for(&mut self, path: &Path, ending: &str) -> String {
        let base = path.file_name().map_or("file".into(), |name| name.to_string_lossy());
        let mut name = format!("{base}{ending}");
        let mut number = 2;
        while self.names.contains(&name) {
            name = format!("{number}-{base}{ending}");
            number += 1;
        }
        self.names.push(name.clone());
        name
    }

    /// Links a golden file into the clone, once; returns its path there.
    fn link(&mut self, named: &str) -> Result<(String, String)> {
        let from = self.golden.file(named)?;
        if let Some(item) = self.plan.links.iter().find(|item| item.from == from) {
            return Ok((item.name.clone(), self.wish.place(&item.name)));
        }
        let name = self.name_for(&from, "");
        self.plan.links.push(Item { from, name: name.clone() });
        let place = self.wish.place(&name);
        Ok((name, place))
    }

    fn argument(&mut self, mut argument: Argument, kept: &mut Vec<Argument>) -> Result<()> {
        let flag = argument.flag.clone();
        if let Some((_, instead)) = REFUSED.iter().find(|(refused, _)| *refused == flag) {
            let name = self.golden.configuration_name();
            return Err(Hinted::error(format!("{name}: {flag} cannot be cloned"), *instead));
        }
        if flag == "-incoming" {
            self.incoming = argument.value;
            return Ok(());
        }
        if let Some(value) = argument.value.as_deref() {
            let new = match &*flag {
                flag if READ_ONLY.contains(&flag) => Some(self.link(value)?.1),
                "-drive" => self.drive(value)?,
                "-object" => self.object(value)?,
                "-device" | "-nic" | "-net" => self.network(&flag, value)?,
                "-netdev" => self.forwarded(value),
                "-chardev" => Some(self.chardev(value)),
                "-pidfile" | "-D" => Some(self.own(value)),
                "-serial" | "-monitor" | "-qmp" | "-parallel" => Some(self.port(value)),
                _ => None,
            };
            argument.value = new.or(argument.value);
        }
        kept.push(argument);
        Ok(())
    }

    fn drive(&mut self, value: &str) -> Result<Option<String>> {
        let mut options = Options::parse(value);
        let Some(file) = options.get("file").map(String::from) else { return Ok(None) };
        if options.is_on("snapshot") {
            bail!("-drive {value}: snapshot=on keeps no redo log; take it out");
        }
        let from = self.golden.file(&file)?;
        let pflash = options.get("if") == Some("pflash");
        let read_only = ["readonly", "read-only"].iter().any(|key| options.is_on(key))
            || options.get("media") == Some("cdrom");
        if pflash && !read_only {
            // The firmware's variables: small, and written in place.
            let name = self.name_for(&from, "");
            options.set("file", &self.wish.place(&name));
            self.plan.copies.push(Item { from, name });
            return Ok(Some(options.word()));
        }
        let (base, place) = self.link(&file)?;
        if read_only {
            options.set("file", &place);
            return Ok(Some(options.word()));
        }
        let format = match options.get("format") {
            Some(format) => format.to_string(),
            None => redo::format_of(&from)?.to_string(),
        };
        let stem = Path::new(&base).file_stem().unwrap_or_default().to_owned();
        let name = self.name_for(Path::new(&stem), "-redo.qcow2");
        options.set("file", &self.wish.place(&name));
        options.set("format", "qcow2");
        self.plan.redo.push(Redo { name, base, format });
        Ok(Some(options.word()))
    }

    fn object(&mut self, value: &str) -> Result<Option<String>> {
        let mut options = Options::parse(value);
        if options.first() != Some("memory-backend-file") {
            return Ok(None);
        }
        let path = options.get("mem-path").context("a memory-backend-file without mem-path")?;
        let path = path.to_string();
        if self.wish.memory.is_none() {
            // Booted: memory of its own, and no file of it.
            options.set("share", "off");
            let name = self.name_for(Path::new(&path), "");
            options.set("mem-path", &self.wish.place(&name));
            return Ok(Some(options.word()));
        }
        if self.memory.is_some() {
            bail!("the VM has several memory-backend-files; one can be cloned");
        }
        let from = self.golden.file(&path)?;
        let there = std::fs::metadata(&from)?.len();
        if let Some(size) = options.get("size").and_then(state::size)
            && there < size
        {
            bail!("{} has {there} bytes of the {size} that it is to have", from.display());
        }
        let name = self.name_for(&from, "");
        options.set("mem-path", &self.wish.place(&name));
        self.memory = Some((from, name));
        Ok(Some(options.word()))
    }

    fn network(&mut self, flag: &str, value: &str) -> Result<Option<String>> {
        let mut options = Options::parse(value);
        let first = options.first().unwrap_or_default().to_string();
        let key = if flag == "-net" { "macaddr" } else { "mac" };
        let is_card = match flag {
            "-device" => NETWORK_DEVICES.iter().any(|name| first.starts_with(name)),
            "-nic" => first != "none",
            _ => first == "nic",
        };
        if is_card || options.get(key).is_some() {
            let mac = self.mac()?;
            options.set(key, &mac.to_string());
        }
        self.forwarded(value);
        Ok(Some(options.word()))
    }

    fn mac(&mut self) -> Result<Mac> {
        let mac = self.wish.mac(self.macs, Vendor::Qemu)?;
        self.macs += 1;
        Ok(mac)
    }

    fn forwarded(&mut self, value: &str) -> Option<String> {
        if let Some(rule) = Options::parse(value).get("hostfwd") {
            self.plan.notes.push(format!(
                "the clone forwards the host's port by hostfwd={rule}: only one VM at a time can"
            ));
        }
        None
    }

    /// Returns the place in the clone for a file or a socket that QEMU makes there.
    fn own(&mut self, named: &str) -> String {
        if named.starts_with("/dev/") {
            return named.into();
        }
        let name = self.name_for(Path::new(named), "");
        let place = self.wish.place(&name);
        // A socket's address has room for so much; `start` goes to the directory first.
        if place.len() > SOCKET_BYTES_MAX { name } else { place }
    }

    fn chardev(&mut self, value: &str) -> String {
        let mut options = Options::parse(value);
        let makes_it = ["file", "socket", "pipe"].map(Some).contains(&options.first());
        for key in ["path", "logfile"] {
            if let Some(path) = options.get(key).filter(|_| makes_it || key == "logfile") {
                let place = self.own(path);
                options.set(key, &place);
            }
        }
        options.word()
    }

    fn port(&mut self, value: &str) -> String {
        let Some((kind, rest)) = value.split_once(':') else { return value.into() };
        if !["unix", "file", "pipe"].contains(&kind) {
            return value.into();
        }
        let mut options = Options::parse(rest);
        if let Some(path) = options.first().map(String::from) {
            let place = self.own(&path);
            options.set_first(&place);
        }
        format!("{kind}:{}", options.word())
    }

    fn identity(&mut self, line: &mut CommandLine) -> Result<()> {
        let old = line.arguments.iter().find(|argument| argument.flag == "-name");
        let mut name = Options::parse(old.and_then(|name| name.value.as_deref()).unwrap_or(""));
        if name.first().is_some() {
            name.set_first(&self.wish.name);
        } else {
            name.set("guest", &self.wish.name);
        }
        line.set("-name", &name.word());
        line.set("-uuid", &identity::uuid_text(&identity::uuid()?));
        Ok(())
    }

    /// Says how the clone reads its state.
    fn incoming(&mut self) -> Result<Option<Incoming>> {
        if self.wish.memory.is_none() {
            return Ok(None);
        }
        let name = self.golden.configuration_name();
        let Some(value) = self.incoming.take() else {
            return Err(not_suspended(self.golden, &format!("{name} has no -incoming")));
        };
        let mut found = Vec::new();
        let mut incoming = Incoming::parse(&value, |named| {
            // A word of a command that is no file here is left as it is.
            let from = self.golden.file(named).ok()?;
            let clone_name = self.name_for(&from, "");
            let place = self.wish.place(&clone_name);
            found.push(Item { from, name: clone_name });
            Some(place)
        })?;
        if found.is_empty() {
            let what = format!("{name} has -incoming {value}, which names no file of it");
            return Err(not_suspended(self.golden, &what));
        }
        for item in found {
            incoming.look_into(&item.from, self.memory.is_some())?;
            // With a memory file beside it, it is small, and with a clone of its own a resume needs
            // nothing else; a stream with memory is read once, and linked as memory is.
            match (self.memory.is_some(), self.wish.memory) {
                (false, Some(way)) => self.plan.memory.push((item, way)),
                _ => self.plan.copies.push(item),
            }
        }
        Ok(Some(incoming))
    }

    /// Has the clone map its memory privately.
    fn memory_arguments(&mut self, line: &mut CommandLine, read_only: bool) -> Result<()> {
        let (Some((from, name)), Some(mut way)) = (self.memory.take(), self.wish.memory) else {
            return Ok(());
        };
        // An older QEMU opens the file for writing, though it never writes a private mapping.
        let writable = nix::unistd::access(&from, nix::unistd::AccessFlags::W_OK).is_ok();
        if !read_only && !writable {
            if matches!(way, Way::Link) {
                bail!(
                    "{} may not be written here, and this QEMU opens memory for writing: \
                     --memory copy makes a copy",
                    from.display()
                );
            }
            way = if way == Way::Auto { Way::Own } else { way };
        }
        for argument in &mut line.arguments {
            let Some(value) = &mut argument.value else { continue };
            if argument.flag != "-object" || !value.starts_with("memory-backend-file") {
                continue;
            }
            let mut options = Options::parse(value);
            options.set("share", "off");
            if read_only {
                options.set("readonly", "on");
                options.set("rom", "off");
            }
            *value = options.word();
        }
        self.plan.memory.insert(0, (Item { from, name }, way));
        Ok(())
    }

    fn finish(mut self, line: &CommandLine, incoming: Option<Incoming>) -> Result<Plan> {
        let golden = self.golden.directory().display();
        let title = format!("{}, a clone of {golden}: ./start resumes it.", self.wish.name);
        let mut redo = String::new();
        for log in &self.plan.redo {
            let words: Result<Vec<_>> =
                redo::command(log).iter().map(|word| quoted(word)).collect();
            redo +=
                &format!("    rm -f -- {} && {} || exit 1\n", quoted(&log.name)?, words?.join(" "));
        }
        let (commands, uri) = match &incoming {
            Some(incoming) => (incoming.monitor_commands()?, quoted(&incoming.uri)?),
            None => (String::new(), String::new()),
        };
        let start =
            START.replace("REDO\n", &redo).replace("COMMANDS", &commands).replace("INCOMING", &uri);
        let text = |name: &str, text, executable| Text { name: name.into(), text, executable };
        self.plan.configuration =
            vec![text("qemu.args", line.text(&title)?, false), text("start", start, true)];
        Ok(self.plan)
    }
}

#[cfg(test)]
mod tests;
