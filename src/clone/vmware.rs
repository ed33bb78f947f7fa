//! The VMware layout: `*.vmx`, what it names, and the memory beside its `*.vmss`.
//!
//! VMware uses the memory file of a VM that it resumes as that VM's memory and removes it in the
//! end, so each clone gets one of its own. The redo log is VMware's: a disk that is
//! independent-nonpersistent is never written, and what is written goes to a log in the clone's
//! directory.

use std::path::Path;

use anyhow::{Result, bail};

use super::golden::{Golden, has_extension};
use super::identity::{self, Vendor};
use super::place::Way;
use super::vmx::Vmx;
use super::{Item, Plan, Text, Wish, not_suspended, vmdk};
use crate::report::Hinted;

/// Reads the golden directory and says what its clone consists of.
pub fn plan(golden: &Golden, wish: &Wish) -> Result<Plan> {
    let name = golden.configuration_name();
    let mut vmx = Vmx::parse(&golden.configuration()?, name)?;
    let mut plan = Plan {
        configuration: Vec::new(),
        memory: Vec::new(),
        copies: Vec::new(),
        links: Vec::new(),
        redo: Vec::new(),
        command: vec!["vmrun".into(), "start".into(), wish.place(name)],
        notes: Vec::new(),
    };
    disks(golden, &mut vmx, &mut plan)?;
    state(golden, wish, &mut vmx, &mut plan)?;
    for key in ["nvram", "extendedConfigFile"] {
        if let Some(file) = vmx.get(key).filter(|file| golden.has(file)) {
            plan.copies.push(Item { from: golden.file(file)?, name: file.into() });
        }
    }
    identity(wish, &mut vmx)?;
    // Where the golden VM kept what is the clone's own.
    for key in ["workingDir", "sched.swap.derivedName", "checkpoint.vmState.readOnly"] {
        vmx.remove(key);
    }
    for (key, value) in &wish.settings {
        vmx.set(key, value);
    }
    plan.configuration.push(Text { name: name.into(), text: vmx.text(), executable: false });
    Ok(plan)
}

/// Links the disks under the names that their descriptors use.
fn disks(golden: &Golden, vmx: &mut Vmx, plan: &mut Plan) -> Result<()> {
    let named: Vec<(String, String)> = vmx
        .entries()
        .filter(|(key, _)| key.to_ascii_lowercase().ends_with(".filename"))
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect();
    let mut found = false;
    for (key, file) in named {
        let device = &key[..key.len() - ".filename".len()];
        let present = vmx.get(&format!("{device}.present"));
        if present.is_some_and(|present| present.eq_ignore_ascii_case("false")) {
            continue;
        }
        if has_extension(&file, &["iso", "img", "flp"]) && !file.starts_with("/dev/") {
            let from = golden.file(&file)?;
            vmx.set(&key, &from.to_string_lossy());
            continue;
        }
        if !has_extension(&file, &["vmdk"]) {
            continue;
        }
        found = true;
        let disk = golden.file(&file)?;
        for from in vmdk::files(golden, &disk)? {
            link(plan, &from)?;
        }
        vmx.set(&key, &file_name(&disk));
        vmx.set(&format!("{device}.mode"), "independent-nonpersistent");
        vmx.set(&format!("{device}.redo"), "");
    }
    if !found {
        bail!("{} names no disk (*.vmdk)", golden.configuration_name());
    }
    plan.notes.push(
        "VMware drops the redo log when the clone is switched off; suspend it to keep what it wrote"
            .into(),
    );
    Ok(())
}

fn link(plan: &mut Plan, from: &Path) -> Result<()> {
    let name = file_name(from);
    match plan.links.iter().find(|item| item.name == name) {
        Some(item) if item.from == from => Ok(()),
        Some(item) => bail!("{} and {} have one name", item.from.display(), from.display()),
        None => {
            plan.links.push(Item { from: from.into(), name });
            Ok(())
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn state(golden: &Golden, wish: &Wish, vmx: &mut Vmx, plan: &mut Plan) -> Result<()> {
    let Some(way) = wish.memory else {
        vmx.remove("checkpoint.vmState");
        return Ok(());
    };
    let way = match way {
        Way::Auto => Way::Own,
        Way::Link => {
            return Err(Hinted::error(
                "VMware writes the memory file of a VM that it resumes: a link would change the \
                 golden VM's",
                "--memory auto makes a reflink where that is possible, else a copy",
            ));
        }
        way => way,
    };
    let states: Vec<&str> = golden.names().filter(|name| has_extension(name, &["vmss"])).collect();
    let state = match (vmx.get("checkpoint.vmState").filter(|state| !state.is_empty()), &*states) {
        (Some(state), _) => state.to_string(),
        (None, [state]) => (*state).to_string(),
        (None, _) => {
            let what = "looked for checkpoint.vmState in the .vmx and for one *.vmss";
            return Err(not_suspended(golden, what));
        }
    };
    let from = golden.file(&state)?;
    let state = file_name(&from);
    // Older versions keep memory within the .vmss.
    let memory = format!("{}.vmem", state.rsplit_once('.').map_or(&*state, |(stem, _)| stem));
    let item = Item { from, name: state.clone() };
    if golden.has(&memory) {
        plan.memory.push((Item { from: golden.file(&memory)?, name: memory }, way));
        plan.copies.push(item);
    } else {
        plan.memory.push((item, way));
    }
    vmx.set("checkpoint.vmState", &state);
    Ok(())
}

fn identity(wish: &Wish, vmx: &mut Vmx) -> Result<()> {
    vmx.set("displayName", &wish.name);
    let uuid = identity::uuid_vmware(&identity::uuid()?);
    vmx.set("uuid.bios", &uuid);
    vmx.set("uuid.location", &uuid);
    // Not asked whether it was moved or copied: it has an identity of its own already.
    vmx.set("uuid.action", "keep");
    let mut cards: Vec<String> = vmx
        .entries()
        .filter_map(|(key, value)| {
            let card = key.to_ascii_lowercase().strip_suffix(".present")?.to_string();
            let is_card = card.strip_prefix("ethernet")?.bytes().all(|byte| byte.is_ascii_digit());
            (is_card && value.eq_ignore_ascii_case("true")).then_some(card)
        })
        .collect();
    cards.sort();
    cards.dedup();
    for (number, card) in cards.iter().enumerate() {
        let mac = wish.mac(number, Vendor::Vmware)?;
        vmx.remove(&format!("{card}.generatedAddress"));
        vmx.remove(&format!("{card}.generatedAddressOffset"));
        vmx.set(&format!("{card}.addressType"), "static");
        vmx.set(&format!("{card}.address"), &mac.to_string());
        if !mac.is_vmware_static() {
            vmx.set(&format!("{card}.checkMACAddress"), "FALSE");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VMX: &str = "\
.encoding = \"UTF-8\"
displayName = \"golden\"
scsi0:0.present = \"TRUE\"
scsi0:0.fileName = \"golden.vmdk\"
ide1:0.fileName = \"auto detect\"
floppy0.fileName = \"/dev/fd0\"
ethernet0.present = \"TRUE\"
ethernet0.addressType = \"generated\"
ethernet0.generatedAddress = \"00:0c:29:01:02:03\"
uuid.bios = \"56 4d 00 00 00 00 00 00-00 00 00 00 00 00 00 00\"
nvram = \"golden.nvram\"
workingDir = \"/vms/golden\"
checkpoint.vmState = \"golden.vmss\"
";

    fn golden(vmx: &str, without: &str) -> (tempfile::TempDir, Golden) {
        let directory = tempfile::tempdir().unwrap();
        let disk = "# Disk DescriptorFile\nRW 8 FLAT \"golden-flat.vmdk\" 0\n";
        let files = [("golden.vmx", vmx), ("golden.vmdk", disk), ("golden-flat.vmdk", "x")];
        let more = ["golden.nvram", "golden.vmss", "golden.vmem"].map(|name| (name, "x"));
        for (name, text) in files.into_iter().chain(more).filter(|(name, _)| *name != without) {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let golden = Golden::open(directory.path(), None).unwrap();
        (directory, golden)
    }

    fn wish() -> Wish {
        Wish {
            directory: "/clones/one".into(),
            name: "the \"one\"".into(),
            macs: Vec::new(),
            settings: vec![("memsize".into(), "320".into())],
            memory: Some(Way::Auto),
        }
    }

    fn names(items: &[Item]) -> Vec<&str> {
        items.iter().map(|item| &*item.name).collect()
    }

    #[test]
    fn disks_are_linked_and_memory_is_its_own() {
        let (_directory, golden) = golden(VMX, "");
        let plan = plan(&golden, &wish()).unwrap();
        assert_eq!(names(&plan.links), ["golden-flat.vmdk", "golden.vmdk"]);
        assert_eq!(names(&plan.copies), ["golden.vmss", "golden.nvram"]);
        assert_eq!((&*plan.memory[0].0.name, plan.memory[0].1), ("golden.vmem", Way::Own));
        let vmx = Vmx::parse(&plan.configuration[0].text, "clone").unwrap();
        for (key, wanted) in [
            ("displayName", Some("the \"one\"")),
            ("scsi0:0.fileName", Some("golden.vmdk")),
            ("scsi0:0.mode", Some("independent-nonpersistent")),
            ("ide1:0.fileName", Some("auto detect")),
            ("ethernet0.addressType", Some("static")),
            ("ethernet0.generatedAddress", None),
            ("checkpoint.vmState", Some("golden.vmss")),
            ("workingDir", None),
            ("memsize", Some("320")),
        ] {
            assert_eq!(vmx.get(key), wanted, "{key}");
        }
        assert!(vmx.get("ethernet0.address").unwrap().starts_with("00:50:56:"));
        assert!(!vmx.get("uuid.bios").unwrap().contains("00 00 00 00 00"));
    }

    #[test]
    fn memory_is_never_a_link() {
        let (_directory, golden) = golden(VMX, "");
        let error = plan(&golden, &Wish { memory: Some(Way::Link), ..wish() }).err().unwrap();
        assert!(error.to_string().contains("would change the golden VM's"), "{error}");
    }

    #[test]
    fn what_is_missing_is_said() {
        for (without, wanted) in [
            ("golden.vmdk", "names golden.vmdk, which is not there"),
            ("golden-flat.vmdk", "golden-flat.vmdk"),
            ("golden.vmss", "names golden.vmss, which is not there"),
        ] {
            let (_directory, golden) = golden(VMX, without);
            let error = format!("{:#}", plan(&golden, &wish()).err().unwrap());
            assert!(error.contains(wanted), "{error}");
        }
        let (_directory, golden) =
            golden(&VMX.replace("checkpoint.vmState = \"golden.vmss\"\n", ""), "golden.vmss");
        let error = plan(&golden, &wish()).err().unwrap().to_string();
        assert!(error.contains("no suspended VM"), "{error}");
        plan(&golden, &Wish { memory: None, ..wish() }).unwrap();
    }
}
