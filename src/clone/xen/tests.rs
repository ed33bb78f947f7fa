use super::*;
use crate::clone::place::Way;

const CFG: &str = "\
name = 'golden'
kernel = '/vms/golden/vmlinuz'
bootloader = '/usr/bin/pygrub'
disk = [ 'file:/vms/golden/root.img,xvda,w',
         'format=qcow2, vdev=xvdb, access=rw, target=data, 1.qcow2',
         'tools.iso,,hdc,cdrom' ]
vif = [ 'mac=00:16:3e:01:02:03, bridge=xenbr0', '' ]
";

fn golden(cfg: &str, more: &[&str]) -> (tempfile::TempDir, Golden) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("golden.cfg"), cfg).unwrap();
    let files = ["vmlinuz", "root.img", "data, 1.qcow2", "tools.iso"];
    for name in files.iter().chain(more) {
        std::fs::write(directory.path().join(name), CHECKPOINT).unwrap();
    }
    // No checkpoints, whatever they hold.
    for name in files {
        std::fs::write(directory.path().join(name), "x").unwrap();
    }
    let golden = Golden::open(directory.path(), None).unwrap();
    (directory, golden)
}

fn wish() -> Wish {
    Wish {
        directory: "/clones/one".into(),
        name: "one".into(),
        macs: vec!["00:16:3e:aa:bb:cc".parse().unwrap()],
        settings: vec![("vcpus".into(), "2".into())],
        memory: Some(Way::Auto),
    }
}

#[test]
fn disks_get_redo_logs_and_cards_get_addresses() {
    let (_directory, golden) = golden(CFG, &["golden.chk"]);
    let plan = plan(&golden, &wish()).unwrap();
    let xl = Xl::parse(&plan.configuration[0].text, "clone").unwrap();
    assert_eq!(
        xl.list("disk"),
        [
            "format=qcow2,vdev=xvda,access=rw,target=/clones/one/xvda-redo.qcow2",
            "format=qcow2,vdev=xvdb,access=rw,target=/clones/one/xvdb-redo.qcow2",
            "format=raw,vdev=hdc,access=ro,devtype=cdrom,target=/clones/one/tools.iso",
        ]
    );
    let redo = |name: &str, base: &str, format: &str| Redo {
        name: name.into(),
        base: base.into(),
        format: format.into(),
    };
    assert_eq!(
        plan.redo,
        [
            redo("xvda-redo.qcow2", "root.img", "raw"),
            redo("xvdb-redo.qcow2", "data, 1.qcow2", "qcow2")
        ]
    );
    let cards = xl.list("vif");
    assert_eq!(cards[0], "mac=00:16:3e:aa:bb:cc,bridge=xenbr0");
    assert!(cards[1].starts_with("mac=00:16:3e:"), "{}", cards[1]);
    for (key, wanted) in [
        ("name", Value::Text("one".into())),
        ("kernel", Value::Text("/clones/one/vmlinuz".into())),
        ("bootloader", Value::Text("/usr/bin/pygrub".into())),
        ("vcpus", Value::Number("2".into())),
    ] {
        assert_eq!(xl.get(key), Some(&wanted));
    }
    assert_eq!(plan.command, ["xl", "restore", "/clones/one/golden.cfg", "/clones/one/golden.chk"]);
    assert_eq!(plan.memory[0].0.name, "golden.chk");
}

#[test]
fn checkpoints_are_known_by_name_or_by_content() {
    let (_directory, named) = golden(CFG, &["odd"]);
    assert_eq!(plan(&named, &wish()).unwrap().memory[0].0.name, "odd");
    let (_directory, none) = golden(CFG, &[]);
    let error = plan(&none, &wish()).err().unwrap().to_string();
    assert!(error.contains("*.chk"), "{error}");
    let booted = plan(&none, &Wish { memory: None, ..wish() }).unwrap();
    assert_eq!(booted.command, ["xl", "create", "/clones/one/golden.cfg"]);
    let (_directory, two) = golden(CFG, &["a.chk", "b.save"]);
    assert!(plan(&two, &wish()).is_err());
}

#[test]
fn what_is_incomplete_or_not_understood_is_said() {
    for (from, to, wanted) in [
        ("root.img,xvda,w", "lost.img,xvda,w", "names /vms/golden/lost.img"),
        ("file:/vms/golden/root.img", "phy:/dev/vg/root", "is a device"),
        (",xvda,w", "", "no device"),
        ("disk = [", "disks = [", "names no disk"),
    ] {
        let (_directory, golden) = golden(&CFG.replace(from, to), &["a.chk"]);
        let error = format!("{:#}", plan(&golden, &wish()).err().expect(to));
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
}
