use std::path::PathBuf;

use super::*;

const ARGS: &str = "\
# a golden VM
qemu-system-x86_64 -name golden,debug-threads=on -uuid 11111111-2222-3333-4444-555555555555
-machine q35,memory-backend=m -m 4M
-object memory-backend-file,id=m,size=4M,mem-path=memory,share=on
-kernel vmlinuz -append \"console=ttyS0 quiet\"
-drive file=disk,,1.raw,format=raw,if=none,id=root
-drive file=/gone/second.qcow2,if=virtio
-drive file=tools.iso,media=cdrom
-drive if=pflash,file=code.fd,readonly=on -drive if=pflash,file=vars.fd
-netdev user,id=n,hostfwd=tcp::2222-:22 -device virtio-net-pci,netdev=n,mac=52:54:00:00:00:01
-device e1000,netdev=o
-chardev socket,id=s,path=qmp.sock,server=on,wait=off -serial file:console.log
-chardev serial,id=t,path=/dev/ttyS0
-incoming 'exec:cat state'
";

fn golden(args: &str) -> (tempfile::TempDir, Golden) {
    let directory = tempfile::tempdir().unwrap();
    let write =
        |name: &str, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).unwrap();
    write("qemu.args", args.as_bytes());
    for name in ["disk,1.raw", "vmlinuz", "tools.iso", "code.fd", "vars.fd"] {
        write(name, b"x");
    }
    write("second.qcow2", b"QFI\xfb\0\0\0\x03");
    write("memory", &[0; 4 << 20]);
    write("state", b"QEVM\0\0\0\x03 x-ignore-shared");
    let golden = Golden::open(directory.path(), None).unwrap();
    (directory, golden)
}

fn wish() -> Wish {
    Wish {
        directory: PathBuf::from("/clones/it's one"),
        name: "one".into(),
        macs: vec!["52:54:00:aa:bb:cc".parse().unwrap()],
        settings: vec![("smp".into(), "2".into())],
        memory: Some(Way::Auto),
    }
}

fn value<'a>(line: &'a CommandLine, flag: &str, part: &str) -> &'a str {
    let found = line.arguments.iter().find(|argument| {
        argument.flag == flag && argument.value.as_deref().is_some_and(|value| value.contains(part))
    });
    found.unwrap_or_else(|| panic!("no {flag} with {part}")).value.as_deref().unwrap()
}

#[test]
fn every_file_has_its_place_in_the_clone() {
    let (_directory, golden) = golden(ARGS);
    let wish = Wish { directory: "/clones/one".into(), ..wish() };
    let plan = plan(&golden, &wish).unwrap();
    let line = CommandLine::parse(&plan.configuration[0].text, "clone").unwrap();
    for (flag, part, wanted) in [
        ("-name", "one", "one,debug-threads=on"),
        ("-kernel", "", "/clones/one/vmlinuz"),
        ("-append", "", "console=ttyS0 quiet"),
        ("-drive", "id=root", "file=/clones/one/disk,,1-redo.qcow2,format=qcow2,if=none,id=root"),
        ("-drive", "if=virtio", "file=/clones/one/second-redo.qcow2,if=virtio,format=qcow2"),
        ("-drive", "cdrom", "file=/clones/one/tools.iso,media=cdrom"),
        ("-drive", "code", "if=pflash,file=/clones/one/code.fd,readonly=on"),
        ("-drive", "vars", "if=pflash,file=/clones/one/vars.fd"),
        ("-device", "virtio", "virtio-net-pci,netdev=n,mac=52:54:00:aa:bb:cc"),
        ("-chardev", "id=s", "socket,id=s,path=/clones/one/qmp.sock,server=on,wait=off"),
        ("-chardev", "id=t", "serial,id=t,path=/dev/ttyS0"),
        ("-serial", "", "file:/clones/one/console.log"),
        ("-smp", "", "2"),
    ] {
        assert_eq!(value(&line, flag, part), wanted);
    }
    let memory = value(&line, "-object", "memory-backend-file");
    assert!(memory.contains("mem-path=/clones/one/memory,share=off"), "{memory}");
    assert!(value(&line, "-device", "e1000").contains("mac=52:54:00:"));
    assert_ne!(value(&line, "-uuid", ""), "11111111-2222-3333-4444-555555555555");
    assert!(!line.arguments.iter().any(|argument| argument.flag == "-incoming"));
    let formats: Vec<_> =
        plan.redo.iter().map(|redo| (redo.base.as_str(), redo.format.as_str())).collect();
    assert_eq!(formats, [("disk,1.raw", "raw"), ("second.qcow2", "qcow2")]);
    let own = |items: &[Item]| items.iter().map(|item| item.name.clone()).collect::<Vec<_>>();
    assert_eq!(own(&plan.copies), ["vars.fd", "state"]);
    assert!(plan.notes[0].contains("hostfwd=tcp::2222-:22"));
    let start = &plan.configuration[1].text;
    for part in ["x-ignore-shared", "exec:cat /clones/one/state", "rm -f -- second-redo.qcow2"] {
        assert!(start.contains(part), "{part}: {start}");
    }
}

#[test]
fn what_is_incomplete_or_not_understood_is_said() {
    for (from, to, wanted) in [
        ("-incoming 'exec:cat state'", "", "no -incoming"),
        ("exec:cat state", "exec:cat other", "names no file of it"),
        ("mem-path=memory", "mem-path=lost", "names lost, which is not there"),
        ("size=4M", "size=8M", "4194304 bytes of the 8388608"),
        ("disk,,1.raw", "lost.raw", "names lost.raw"),
        ("-m 4M", "-m 4M -loadvm x", "-loadvm cannot be cloned"),
        ("-m 4M", "-m 4M -hda disk.raw", "-hda cannot be cloned"),
        ("-m 4M", "-m 4M 'x", "a quotation is not closed"),
        ("if=virtio", "if=virtio,snapshot=on", "snapshot=on"),
    ] {
        let (_directory, golden) = golden(&ARGS.replace(from, to));
        let error = plan(&golden, &wish()).err().unwrap_or_else(|| panic!("{to} is taken"));
        let text = format!("{error:#}");
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
}

#[test]
fn a_vm_that_is_switched_off_needs_no_memory() {
    let (directory, golden) = golden(&ARGS.replace("-incoming 'exec:cat state'", ""));
    std::fs::remove_file(directory.path().join("memory")).unwrap();
    let plan = plan(&golden, &Wish { memory: None, ..wish() }).unwrap();
    assert!(plan.memory.is_empty());
    assert_eq!(plan.redo.len(), 2);
}
