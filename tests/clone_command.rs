//! `gridvfs clone` on a mount: a suspended guest lives twice, and nothing is left half made.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Rig, Way, gridvfs, installed, run, shell, skipped};
use serde_json::Value;

/// A golden VM of the small guest, suspended once and kept between runs.
fn suspended() -> Option<PathBuf> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (guest, golden) = (folder.join("golden"), folder.join("suspended"));
    let built = Command::new(project.join("bench/guest/build.sh")).arg(&guest).output().ok()?;
    if !built.status.success() {
        println!("{}", String::from_utf8_lossy(&built.stderr));
        return None;
    }
    let time = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let script = project.join("bench/guest/suspend.sh");
    let made = time(&golden.join("state"));
    if made.is_none() || made < time(&guest.join("guest.info")) || made < time(&script) {
        let _ = std::fs::remove_dir_all(&golden);
        run(Command::new(script).arg(&guest).arg(&golden).args(["--memory", "128"]));
    }
    Some(golden)
}

/// A clone that runs; it ends with this.
struct Running {
    process: Child,
    port: UnixStream,
}

impl Running {
    fn start(clone: &Path) -> Self {
        let log = std::fs::File::create(clone.join("start.log")).expect("a log");
        let mut start = Command::new(clone.join("start"));
        start.stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log);
        let mut process = start.spawn().expect("start");
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            if let Ok(port) = UnixStream::connect(clone.join("shell.sock")) {
                port.set_read_timeout(Some(Duration::from_secs(2))).expect("a time");
                return Self { process, port };
            }
            let ended = process.try_wait().expect("a process");
            let log = || std::fs::read_to_string(clone.join("start.log")).unwrap_or_default();
            assert!(ended.is_none(), "{ended:?}: {}", log());
            assert!(Instant::now() < end, "no QEMU: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks the guest's shell until it says a word, which is not in the question.
    fn says(&mut self, question: &str, word: &str) -> String {
        let end = Instant::now() + Duration::from_secs(180);
        let mut seen = Vec::new();
        while Instant::now() < end {
            // What arrives before the guest's state is lost: blanks go first.
            let line = format!("{:64}\n{question}\n", "");
            self.port.write_all(line.as_bytes()).expect("a port");
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = self.port.read(&mut buffer) {
                seen.extend_from_slice(&buffer[..count]);
                let text = String::from_utf8_lossy(&seen).into_owned();
                if text.contains(word) {
                    return text;
                }
            }
        }
        panic!("{question}: the guest said {:?}", String::from_utf8_lossy(&seen));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn clone(rig: &Rig, golden: &Path, to: &Path, words: &[&str]) -> Value {
    let mut command = rig.command(gridvfs());
    command.arg("clone").arg(golden).arg(to).arg("--json").args(words);
    serde_json::from_slice(&run(&mut command).stdout).expect("JSON")
}

#[test]
fn a_suspended_guest_lives_twice() {
    let test = "a_suspended_guest_lives_twice";
    if !installed("qemu-system-x86_64") || !installed("qemu-img") {
        return skipped(test, "needs qemu-system-x86_64 and qemu-img");
    }
    let Some(golden) = suspended() else {
        return skipped(test, "the guest cannot be made here (no kernel package?)");
    };
    let Some(mut rig) = Rig::mounted(test, Way::Ssh) else { return };
    shell(&golden, &format!("cp --sparse=always -r . {}/vm", rig.export.display()));
    let sums = "sha256sum vm/*";
    let before = shell(&rig.export, sums);
    let mounted = rig.mountpoint.join("vm");
    let clones = ["one", "two"].map(|name| rig.folder.join(name));
    for place in &clones {
        let told = clone(&rig, &mounted, place, &[]);
        assert_eq!(told["layout"], "qemu");
        assert_eq!(told["command"][0], place.join("start").to_str().unwrap());
        let phases: Vec<&str> =
            told["phases"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
        let wanted = ["configuration", "memory", "devices", "disks", "redo log", "customise"];
        assert_eq!(phases, wanted);
    }
    {
        let mut running = clones.each_ref().map(|place| Running::start(place));
        for (number, guest) in running.iter_mut().enumerate() {
            guest.says(
                &format!("echo mark-{number} >/root/mark; w=$((number+{number})); sync; echo done-$((7*6))"),
                "done-42",
            );
        }
        for (number, guest) in running.iter_mut().enumerate() {
            guest.says("echo $(cat /root/mark)-$((7*6))", &format!("mark-{number}-42"));
        }
    }
    for place in &clones {
        shell(place, "qemu-img check -q disk-redo.qcow2");
        // Its memory is older than its disk now.
        let again = Command::new(place.join("start")).output().expect("start");
        let words = String::from_utf8_lossy(&again.stderr).into_owned();
        assert!(!again.status.success() && words.contains("resumed before"), "{words}");
    }
    rig.umount();
    assert_eq!(shell(&rig.export, sums), before, "a clone has changed its golden VM");
}

/// A golden VM that nobody can resume, with files of the right kinds.
fn made_up(export: &Path) {
    let args = "qemu-system-x86_64 -name golden -m 16M -machine q35,memory-backend=m\n\
                -object memory-backend-file,id=m,size=16M,mem-path=memory,share=on\n\
                -drive file=disk.raw,format=raw,if=virtio\n-incoming 'exec:cat state'\n";
    shell(export, "mkdir vm; cd vm; truncate -s 64M disk.raw; head -c 16M /dev/urandom >memory");
    std::fs::write(export.join("vm/qemu.args"), args).unwrap();
    std::fs::write(export.join("vm/state"), b"QEVM\0\0\0\x03 x-ignore-shared").unwrap();
}

fn refused(command: &mut Command) -> String {
    let output = command.output().expect("runs");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{command:?} should fail: {words}");
    assert!(words.starts_with("Error: "), "{words}");
    words
}

#[test]
fn a_clone_is_whole_or_not_there() {
    let test = "a_clone_is_whole_or_not_there";
    if !installed("qemu-img") {
        return skipped(test, "needs qemu-img");
    }
    let Some(mut rig) = Rig::mounted(test, Way::Ssh) else { return };
    made_up(&rig.export);
    let mounted = rig.mountpoint.join("vm");
    std::fs::create_dir(rig.folder.join("clones")).unwrap();
    let place = rig.folder.join("clones/one");
    clone(&rig, &mounted, &place, &["--memory", "copy", "--name", "the \"one\""]);
    let same = format!("cmp memory {}/vm/memory && cmp state {0}/vm/state", rig.export.display());
    shell(&place, &same);
    let info = shell(&place, "qemu-img info --output=json disk-redo.qcow2 && test -L disk.raw");
    let info: Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["backing-filename"], "disk.raw");
    assert_eq!(info["virtual-size"], 64 << 20);

    let attempt = |golden: &Path, to: &Path| {
        let mut command = rig.command(gridvfs());
        command.arg("clone").arg(golden).arg(to);
        command
    };
    let words = refused(&mut attempt(&mounted, &place));
    assert!(words.contains("exists"), "{words}");
    let two = rig.folder.join("clones/two");
    for (spoil, wanted) in [
        ("truncate -s 1M vm/memory", "1048576 bytes of the 16777216"),
        ("truncate -s 16M vm/memory; rm vm/disk.raw", "disk.raw, which is not there"),
        (": >vm/state; touch vm/disk.raw", "is empty"),
        ("rm vm/qemu.args", "looked for qemu.args"),
    ] {
        shell(&rig.export, spoil);
        // Others may see a change on the server a second later.
        std::thread::sleep(Duration::from_millis(2100));
        let words = refused(&mut attempt(&mounted, &two));
        assert!(words.contains(wanted), "{wanted}: {words}");
    }
    assert_eq!(shell(&rig.folder, "ls clones"), "one\n");
    rig.umount();
}

#[test]
fn an_interrupted_clone_leaves_nothing() {
    let test = "an_interrupted_clone_leaves_nothing";
    let Some(link) = common::Link::up(test) else { return };
    let Some(rig) = Rig::mounted_over(test, Way::Ssh, Some(link), &[]) else { return };
    made_up(&rig.export);
    std::fs::create_dir(rig.folder.join("clones")).unwrap();
    let mounted = rig.mountpoint.join("vm");
    // Known, so that the clone gets as far as its copy.
    shell(
        &mounted,
        "ls -l >../../ls; cat qemu.args state >../../read; head -c 4096 disk.raw >/dev/null",
    );
    rig.link("cut");
    let mut command = rig.command(gridvfs());
    command
        .arg("clone")
        .arg(&mounted)
        .arg(rig.folder.join("clones/one"))
        .args(["--memory", "copy"]);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("runs");
    std::thread::sleep(Duration::from_secs(2));
    assert!(child.try_wait().expect("a process").is_none(), "it is to wait for the link");
    run(Command::new("kill").args(["-INT", &child.id().to_string()]));
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(shell(&rig.folder, "ls clones"), "");
    rig.link("restore");
}

/// Stands for the session of a mount: it answers one question with `reply`.
fn session(runtime: &Path, mountpoint: &Path, reply: Value) -> std::thread::JoinHandle<Value> {
    use std::io::{BufRead, BufReader};
    let sessions = runtime.join("gridvfs/sessions");
    std::fs::create_dir_all(&sessions).unwrap();
    let record = serde_json::json!({
        "name": "vm", "source": "gvhost:/vm", "mountpoint": mountpoint, "pid": std::process::id()
    });
    std::fs::write(sessions.join("vm.json"), record.to_string()).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(sessions.join("vm.sock")).unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        (&stream).write_all(format!("{reply}\n").as_bytes()).unwrap();
        serde_json::from_str(&line).unwrap()
    })
}

#[test]
fn memory_comes_from_a_whole_copy_that_the_session_holds() {
    let test = "memory_comes_from_a_whole_copy_that_the_session_holds";
    if !installed("qemu-img") {
        return skipped(test, "needs qemu-img");
    }
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().canonicalize().unwrap();
    made_up(&folder);
    // Of the same size, and to be told from the golden one.
    shell(&folder, "head -c 16M /dev/urandom >cached; head -c 1M cached >part; mkdir runtime");
    for (reply, name, memory) in [
        (serde_json::json!({"ok": true, "path": folder.join("cached")}), "a", "cached"),
        (serde_json::json!({"ok": true, "path": folder.join("part")}), "b", "vm/memory"),
        (serde_json::json!({"ok": true, "path": folder.join("none")}), "c", "vm/memory"),
        (
            serde_json::json!({"ok": false, "error": "unknown verb \"local-file\""}),
            "d",
            "vm/memory",
        ),
    ] {
        let answering = session(&folder.join("runtime"), &folder, reply);
        let mut command = Command::new(gridvfs());
        command.env("XDG_RUNTIME_DIR", folder.join("runtime")).stdin(Stdio::null());
        run(command.arg("clone").arg(folder.join("vm")).arg(folder.join(name)));
        let asked = answering.join().unwrap();
        assert_eq!(asked["verb"], "local-file");
        assert_eq!(asked["arguments"]["path"], "vm/memory");
        shell(&folder, &format!("cmp {memory} {name}/memory; rm -r runtime/gridvfs"));
    }
}
