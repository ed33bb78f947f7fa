//! The Xen layout: `*.cfg` as `xl` reads it, disk images, and a checkpoint that `xl save` has
//! written, with memory in it. A checkpoint is only read; each disk gets a qcow2 redo log.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::golden::{Golden, has_extension};
use super::identity::{self, Vendor};
use super::xl::{Value, Xl};
use super::{Item, Plan, Redo, Text, Wish, not_suspended, redo};

/// What a checkpoint begins with.
const CHECKPOINT: &[u8] = b"Xen saved domain, xl format";
/// What a checkpoint's name ends with.
const EXTENSIONS: [&str; 5] = ["chk", "checkpoint", "save", "ckpt", "xlsave"];

/// Reads the golden directory and says what its clone consists of.
pub fn plan(golden: &Golden, wish: &Wish) -> Result<Plan> {
    let name = golden.configuration_name();
    let mut xl = Xl::parse(&golden.configuration()?, name)?;
    let mut plan = Plan {
        configuration: Vec::new(),
        memory: Vec::new(),
        copies: Vec::new(),
        links: Vec::new(),
        redo: Vec::new(),
        command: ["xl", "create"].map(String::from).to_vec(),
        notes: Vec::new(),
    };
    let disks: Result<Vec<String>> =
        xl.list("disk").iter().map(|disk| clone_disk(golden, wish, &mut plan, disk)).collect();
    let disks = disks?;
    if disks.is_empty() {
        bail!("{name} names no disk");
    }
    xl.set("disk", &Value::List(disks))?;
    for key in ["kernel", "ramdisk", "device_tree"] {
        let Some(Value::Text(file)) = xl.get(key) else { continue };
        // A boot loader's path is of this machine, and may be none of the golden directory's.
        if let Ok(from) = golden.file(file) {
            let place = link(wish, &mut plan, &from)?;
            xl.set(key, &Value::Text(place))?;
        }
    }
    plan.command.push(wish.place(name));
    if let Some(way) = wish.memory {
        let from = checkpoint(golden)?;
        let file = file_name(&from)?;
        plan.command[1] = "restore".into();
        plan.command.push(wish.place(&file));
        plan.memory.push((Item { from, name: file }, way));
    }
    xl.set("name", &Value::Text(wish.name.clone()))?;
    xl.set("uuid", &Value::Text(identity::uuid_text(&identity::uuid()?)))?;
    let mut cards = Vec::new();
    for (number, card) in xl.list("vif").iter().enumerate() {
        let mac = wish.mac(number, Vendor::Xen)?;
        let others = card.split(',').map(str::trim).filter(|part| {
            let key = part.split('=').next().unwrap_or_default().trim();
            !part.is_empty() && key != "mac"
        });
        let parts: Vec<String> =
            std::iter::once(format!("mac={mac}")).chain(others.map(String::from)).collect();
        cards.push(parts.join(","));
    }
    if !cards.is_empty() {
        xl.set("vif", &Value::List(cards))?;
    }
    for (key, value) in &wish.settings {
        let number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        let value = if number { Value::Number(value.clone()) } else { Value::Text(value.clone()) };
        xl.set(key, &value)?;
    }
    plan.configuration.push(Text { name: name.into(), text: xl.text().into(), executable: false });
    Ok(plan)
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    Ok(name.with_context(|| format!("{} has no name", path.display()))?.into())
}

fn link(wish: &Wish, plan: &mut Plan, from: &Path) -> Result<String> {
    let name = file_name(from)?;
    match plan.links.iter().find(|item| item.name == name) {
        Some(item) if item.from != from => {
            bail!("{} and {} have one name", item.from.display(), from.display())
        }
        Some(_) => {}
        None => plan.links.push(Item { from: from.into(), name: name.clone() }),
    }
    Ok(wish.place(&name))
}

/// A disk as xl-disk-configuration(5) describes it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Disk {
    target: String,
    format: Option<String>,
    vdev: String,
    read_only: bool,
    /// What is kept as it is.
    others: Vec<String>,
}

impl Disk {
    fn parse(text: &str) -> Result<Self> {
        let mut disk = Self::default();
        let mut rest = text.trim();
        // The old way: what comes before the path says how it is reached.
        for (prefix, format) in [
            ("tap2:", ""),
            ("tap:", ""),
            ("aio:", ""),
            ("file:", "raw"),
            ("raw:", "raw"),
            ("qcow2:", "qcow2"),
        ] {
            if let Some(after) = rest.strip_prefix(prefix) {
                rest = after;
                disk.format = (!format.is_empty()).then(|| format.into()).or(disk.format);
            }
        }
        if rest.starts_with("phy:") || rest.starts_with("vbd:") {
            bail!("disk {text:?} is a device: only files are cloned");
        }
        let mut position = 0;
        while !rest.is_empty() {
            // Commas are as they come in what is given last.
            if let Some(target) = rest.strip_prefix("target=") {
                disk.target = target.into();
                break;
            }
            let (part, after) = rest.split_once(',').unwrap_or((rest, ""));
            rest = after.trim_start();
            let part = part.trim();
            match part.split_once('=') {
                Some(("format", format)) => disk.format = Some(format.into()),
                Some(("vdev", vdev)) => disk.vdev = vdev.into(),
                Some(("access", access)) => {
                    disk.read_only = access.starts_with('r') && access != "rw"
                }
                Some(("devtype", "cdrom")) => {
                    disk.read_only = true;
                    disk.others.push(part.into());
                }
                Some(("backendtype", _)) => {}
                Some(_) => disk.others.push(part.into()),
                None => {
                    disk.positional(position, part);
                    position += 1;
                }
            }
        }
        if disk.target.is_empty() || disk.vdev.is_empty() {
            bail!("disk {text:?} names no file, or no device");
        }
        Ok(disk)
    }

    fn positional(&mut self, position: usize, part: &str) {
        const FORMATS: [&str; 5] = ["raw", "qcow", "qcow2", "vhd", "qed"];
        match part {
            part if position == 0 => self.target = part.into(),
            part if FORMATS.contains(&part) => self.format = Some(part.into()),
            "w" | "rw" => self.read_only = false,
            "r" | "ro" => self.read_only = true,
            "cdrom" | "devtype=cdrom" => {
                self.read_only = true;
                self.others.push("devtype=cdrom".into());
            }
            "" => {}
            part => match part.strip_suffix(":cdrom") {
                Some(vdev) => {
                    self.vdev = vdev.into();
                    self.read_only = true;
                    self.others.push("devtype=cdrom".into());
                }
                None if self.vdev.is_empty() => self.vdev = part.into(),
                None => self.others.push(part.into()),
            },
        }
    }

    fn text(&self) -> String {
        let access = if self.read_only { "ro" } else { "rw" };
        let format = self.format.as_deref().unwrap_or("raw");
        let mut parts = vec![format!("format={format}"), format!("vdev={}", self.vdev)];
        parts.push(format!("access={access}"));
        parts.extend(self.others.iter().cloned());
        parts.push(format!("target={}", self.target));
        parts.join(",")
    }
}

fn clone_disk(golden: &Golden, wish: &Wish, plan: &mut Plan, text: &str) -> Result<String> {
    let mut disk = Disk::parse(text)?;
    let from = golden.file(&disk.target)?;
    let format = match disk.format.as_deref() {
        Some("vhd") => "vpc".into(),
        Some(format) => format.to_string(),
        None => redo::format_of(&from)?.into(),
    };
    disk.target = link(wish, plan, &from)?;
    if disk.read_only {
        disk.format = Some(format);
        return Ok(disk.text());
    }
    let name = format!("{}-redo.qcow2", disk.vdev.replace('/', "_"));
    disk.target = wish.place(&name);
    disk.format = Some("qcow2".into());
    plan.redo.push(Redo { name, base: file_name(&from)?, format });
    Ok(disk.text())
}

fn checkpoint(golden: &Golden) -> Result<std::path::PathBuf> {
    let begins = |name: &&str| {
        let mut head = [0; CHECKPOINT.len()];
        let file = std::fs::File::open(golden.directory().join(name));
        file.is_ok_and(|mut file| file.read_exact(&mut head).is_ok()) && head == CHECKPOINT
    };
    let by_name: Vec<&str> =
        golden.names().filter(|name| has_extension(name, &EXTENSIONS)).collect();
    let found = match &*by_name {
        [] => golden
            .names()
            .filter(|name| *name != golden.configuration_name())
            .filter(begins)
            .collect(),
        _ => by_name,
    };
    match &*found {
        [one] => golden.file(one),
        [] => Err(not_suspended(
            golden,
            "looked for a checkpoint of xl save: *.chk, *.checkpoint, *.save, *.ckpt, *.xlsave",
        )),
        several => bail!(
            "{} has several checkpoints: {}",
            golden.directory().display(),
            several.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests;
