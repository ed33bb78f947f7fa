//! Killed processes, cut links, restarted and lying servers: a clear error, and nothing lost.

mod common;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Link, Rig, Way, gridvfs, is_root, run, skipped};

/// How long anything may take before the test calls it hung.
const LIMIT: Duration = Duration::from_secs(180);

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn kill(pid: i32, signal: i32) {
    // SAFETY: a plain system call; the pid is of a process that this test has started.
    unsafe { libc::kill(pid, signal) };
}

/// Some bytes that no other offset has.
fn pattern(offset: u64, length: usize) -> Vec<u8> {
    (offset / 8..)
        .flat_map(|word| word.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes())
        .take(length)
        .collect()
}

/// Writes and reads back while something is broken by `trouble`; the server's copy must be whole.
fn under_trouble(test: &str, way: Way, trouble: impl FnOnce(&Rig, i32) + Send) {
    let Some(mut rig) = Rig::mounted(test, way) else { return };
    rig.let_others_start_servers();
    let pid = rig.pid();
    const SIZE: usize = 48 << 20;
    let old: Vec<u8> = pattern(1 << 40, SIZE);
    std::fs::write(rig.export.join("old"), &old).expect("write there");
    std::thread::scope(|scope| {
        let rig = &rig;
        let writer = scope.spawn(move || {
            let file = File::create(rig.mountpoint.join("new")).expect("create");
            for offset in (0..SIZE as u64).step_by(1 << 20) {
                file.write_all_at(&pattern(offset, 1 << 20), offset).expect("write");
                if offset % (8 << 20) == 0 {
                    file.sync_all().expect("fsync");
                }
                std::thread::sleep(Duration::from_millis(40));
            }
            file.sync_all().expect("fsync");
        });
        let reader = scope.spawn(move || {
            let file = File::open(rig.mountpoint.join("old")).expect("open");
            for round in 0..3 {
                for offset in (0..SIZE as u64).step_by(1 << 20) {
                    let mut data = vec![0; 1 << 20];
                    file.read_exact_at(&mut data, offset).expect("read");
                    assert!(data == pattern((1 << 40) + offset, 1 << 20), "round {round} {offset}");
                    std::thread::sleep(Duration::from_millis(10));
                }
                // Read again from the server, not from the kernel's memory.
                // SAFETY: a plain system call on an open descriptor.
                unsafe {
                    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
                    libc::posix_fadvise(fd, 0, 0, libc::POSIX_FADV_DONTNEED);
                }
            }
        });
        std::thread::sleep(Duration::from_millis(600));
        trouble(rig, pid);
        writer.join().expect("the writer saw an error");
        reader.join().expect("the reader saw an error");
    });
    rig.umount();
    let new = std::fs::read(rig.export.join("new")).expect("the server's copy");
    assert!(new == pattern(0, SIZE), "the server's copy differs");
}

#[test]
fn killed_ssh_is_replaced() {
    under_trouble("killed_ssh_is_replaced", Way::Ssh, |rig, pid| {
        for _ in 0..3 {
            let pids = rig.ssh_pids(pid);
            assert!(!pids.is_empty(), "no ssh found");
            pids.into_iter().for_each(|pid| kill(pid, libc::SIGKILL));
            std::thread::sleep(Duration::from_millis(700));
        }
    });
}

/// The key's passphrase is asked for once, for all channels, and the mount outlives the terminal on
/// which it was typed.
#[test]
fn a_passphrase_is_asked_for_once() {
    let test = "a_passphrase_is_asked_for_once";
    if !common::installed("python3") {
        return skipped(test, "needs python3 (a terminal to type on)");
    }
    let Some(mut rig) = Rig::new(test, Way::Ssh) else { return };
    common::shell(
        &rig.folder.join("sshd"),
        "ssh-keygen -q -p -f id_ed25519 -P '' -N 'open sesame'
         sed -i '/BatchMode/d' ssh_config",
    );
    let support = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support");
    let before = control_sockets();
    let mount = rig.mount_command();
    let mut typed = rig.command("python3");
    typed.arg(support.join("at-terminal.py")).args(["passphrase", "open sesame"]);
    typed.arg(mount.get_program()).args(mount.get_args());
    let output = run(&mut typed);
    rig.is_mounted();
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(words.contains("asked 1 times") && !words.contains("denied"), "{words}");
    wait_for("all channels", || rig.status()["link"]["stripes_alive"] == 4);
    std::fs::write(rig.mountpoint.join("f"), "written").expect("write");
    rig.umount();
    assert_eq!(std::fs::read(rig.export.join("f")).expect("read"), b"written");
    // Neither the shared login nor its socket outlives the mount.
    wait_for("our ssh processes end", || ssh_processes(&rig) == 0);
    assert_eq!(control_sockets(), before, "sockets of shared logins");
}

/// How many ssh processes use the rig's configuration.
fn ssh_processes(rig: &Rig) -> usize {
    let config = rig.folder.join("sshd/ssh_config");
    let config = config.to_str().expect("text").as_bytes();
    let processes = std::fs::read_dir("/proc").expect("/proc");
    let lines = processes.filter_map(|entry| {
        let name = entry.ok()?.path();
        let comm = std::fs::read(name.join("comm")).ok()?;
        // Only of ssh: a process that hangs in a mount may keep its own line to itself.
        (comm == b"ssh\n").then(|| std::fs::read(name.join("cmdline")).ok())?
    });
    lines.filter(|line| line.windows(config.len()).any(|part| part == config)).count()
}

/// How many sockets of shared logins there are.
fn control_sockets() -> usize {
    // SAFETY: no preconditions.
    let uid = unsafe { libc::geteuid() };
    let places = [
        std::env::var_os("XDG_RUNTIME_DIR").map(|path| std::path::Path::new(&path).join("gridvfs")),
        Some(format!("/run/user/{uid}/gridvfs").into()),
        Some("/run/gridvfs".into()),
    ];
    let names = places.into_iter().flatten().filter_map(|path| std::fs::read_dir(path).ok());
    let is_login =
        |entry: &std::fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(b"ssh-");
    names.flatten().filter_map(|entry| entry.ok()).filter(is_login).count()
}

#[test]
fn restarted_sshd_and_proxy_are_found_again() {
    under_trouble("restarted_sshd_and_proxy_are_found_again", Way::Ssh, |rig, mount| {
        // Ends every process on the host, the session's daemon included.
        rig.sshd("stop");
        let export = format!("{}", rig.export.display());
        for process in std::fs::read_dir("/proc").expect("proc").flatten() {
            let comm = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let pid = process.file_name().to_string_lossy().parse::<i32>().unwrap_or(0);
            let open = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
            let ours = open
                .filter_map(|fd| std::fs::read_link(fd.path()).ok())
                .any(|path| path.starts_with(&export));
            if comm.trim() == "gridvfs" && ours && pid != mount {
                kill(pid, libc::SIGKILL);
            }
        }
        std::thread::sleep(Duration::from_secs(1));
        rig.sshd("start");
    });
}

fn ganesha_restarts(way: Way) {
    under_trouble(&format!("nfs_server_restarts_{way:?}"), way, |rig, _| {
        rig.ganesha("kill");
        std::thread::sleep(Duration::from_secs(2));
        rig.ganesha("start");
    });
}

#[test]
fn nfs_server_restarts_behind_the_forwarder() {
    ganesha_restarts(Way::Forward);
}

#[test]
fn nfs_server_restarts_behind_ssh() {
    ganesha_restarts(Way::NoProxy);
}

#[test]
fn nfs_server_restarts_over_tcp() {
    ganesha_restarts(Way::Nfs);
}

/// A server that is stopped, not killed: it keeps its connections and answers nothing.
fn freeze(rig: &Rig, signal: i32) {
    kill(rig.port("ganesha/ganesha.pid").parse().expect("a pid"), signal);
}

#[test]
fn a_timeout_makes_eio() {
    let Some(mut rig) = Rig::mounted_with("a_timeout_makes_eio", Way::Nfs, &["timeout=3"]) else {
        return;
    };
    std::fs::write(rig.export.join("f"), pattern(0, 1 << 20)).expect("write there");
    let file = File::open(rig.mountpoint.join("f")).expect("open");
    freeze(&rig, libc::SIGSTOP);
    let error = file.read_at(&mut [0; 100], 0).expect_err("nobody answers");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    freeze(&rig, libc::SIGCONT);
    wait_for("the server is back", || file.read_at(&mut [0; 100], 0).is_ok());
    drop(file);
    rig.umount();
}

#[test]
fn a_waiting_process_can_be_killed_and_the_mount_unmounted() {
    let test = "a_waiting_process_can_be_killed_and_the_mount_unmounted";
    let Some(mut rig) = Rig::mounted(test, Way::Nfs) else { return };
    std::fs::write(rig.export.join("f"), pattern(0, 8 << 20)).expect("write there");
    let pid = rig.pid();
    freeze(&rig, libc::SIGSTOP);
    let mut reader = Command::new("cat");
    let mut reader: Child =
        reader.arg(rig.mountpoint.join("f")).stdout(Stdio::null()).spawn().expect("cat");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(reader.try_wait().expect("wait").is_none(), "it waits: a hard mount");
    reader.kill().expect("kill");
    wait_for("the killed process ends", || reader.try_wait().expect("wait").is_some());
    run(Command::new("fusermount3").arg("-u").arg(&rig.mountpoint));
    wait_for("the mount process ends", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    freeze(&rig, libc::SIGCONT);
    rig.mount();
    assert_eq!(std::fs::read(rig.mountpoint.join("f")).expect("read"), pattern(0, 8 << 20));
}

#[test]
fn a_killed_mount_is_recognised_and_recovered() {
    for way in [Way::Local, Way::Ssh] {
        let test = "a_killed_mount_is_recognised_and_recovered";
        let Some(mut rig) = Rig::mounted(test, way) else { continue };
        let mut file = File::create(rig.mountpoint.join("kept")).expect("create");
        file.write_all(b"synced").and_then(|()| file.sync_all()).expect("fsync");
        kill(rig.pid(), libc::SIGKILL);
        wait_for("the mount is dead", || std::fs::metadata(&rig.mountpoint).is_err());
        drop(file);
        let output = run(&mut rig.mount_command());
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(words.contains("is dead") && words.contains("clearing it"), "{words}");
        assert_eq!(std::fs::read(rig.mountpoint.join("kept")).expect("read"), b"synced");
        rig.umount();
        assert_eq!(sessions_at(&rig), [true; 0], "the dead one's record is gone, too");
    }
}

/// Whether each session that is listed at the rig's mount point is alive.
fn sessions_at(rig: &Rig) -> Vec<bool> {
    let output = run(rig.command(gridvfs()).args(["sessions", "--json"]));
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let here = rig.mountpoint.to_str().expect("text");
    let here = rows.iter().filter(|row| row["mountpoint"] == here);
    here.map(|row| row["alive"].as_bool().expect("a flag")).collect()
}

#[test]
fn umount_clears_what_a_killed_session_has_left() {
    let test = "umount_clears_what_a_killed_session_has_left";
    for by_hand in [false, true] {
        let Some(mut rig) = Rig::mounted(test, Way::Local) else { return };
        kill(rig.pid(), libc::SIGKILL);
        wait_for("the mount is dead", || std::fs::metadata(&rig.mountpoint).is_err());
        assert_eq!(sessions_at(&rig), [false]);
        let output = run(rig.command(gridvfs()).arg("sessions"));
        let words = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(words.contains("dead: gridvfs umount clears it"), "{words}");
        if by_hand {
            run(Command::new("fusermount3").args(["-u", "-z"]).arg(&rig.mountpoint));
        }
        rig.umount();
        assert_eq!(sessions_at(&rig), [true; 0]);
    }
}

#[test]
fn a_full_disk_is_reported_and_earlier_data_kept() {
    let test = "a_full_disk_is_reported_and_earlier_data_kept";
    if !is_root() {
        return skipped(test, "needs root (mounts a small tmpfs)");
    }
    for way in [Way::Local, Way::Ssh, Way::Forward] {
        let Some(mut rig) = Rig::new(test, way) else { continue };
        if way.needs_ganesha() {
            rig.ganesha("stop");
        }
        let small = rig.folder.join("small.img");
        let mounted = common::shell(
            &rig.folder,
            &format!(
                "truncate -s 16M {0} && mke2fs -q {0} && mount -o loop {0} export 2>&1 || echo no",
                small.display()
            ),
        );
        if mounted.contains("no") {
            skipped(test, "no loop device");
            continue;
        }
        if way.needs_ganesha() {
            rig.ganesha("start");
        }
        rig.mount();
        std::fs::write(rig.mountpoint.join("before"), pattern(0, 1 << 20)).expect("fits");
        let file = File::create(rig.mountpoint.join("big")).expect("create");
        let mut result = Ok(());
        for offset in (0..(64u64 << 20)).step_by(1 << 20) {
            result = file.write_all_at(&pattern(offset, 1 << 20), offset);
            if result.is_err() {
                break;
            }
        }
        let result = result.and_then(|()| file.sync_all());
        let error = result.expect_err("64 MiB do not fit");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{way:?}");
        drop(file);
        std::fs::remove_file(rig.mountpoint.join("big")).expect("remove");
        std::fs::write(rig.mountpoint.join("after"), pattern(0, 1 << 20)).expect("fits again");
        rig.umount();
        for name in ["before", "after"] {
            assert!(std::fs::read(rig.export.join(name)).expect(name) == pattern(0, 1 << 20));
        }
        if way.needs_ganesha() {
            rig.ganesha("kill");
        }
        // The far side's session has been told that it is over, and lets go of the export.
        let mut umount = Command::new("umount");
        umount.arg(&rig.export).stderr(Stdio::null());
        let start = Instant::now();
        while !umount.status().expect("umount").success() {
            assert!(start.elapsed() < Duration::from_secs(20), "{way:?}: the export stays busy");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn a_link_cut_for_a_minute_loses_nothing() {
    let test = "a_link_cut_for_a_minute_loses_nothing";
    if !common::installed("fio") {
        return skipped(test, "needs fio");
    }
    let Some(mut rig) = Rig::mounted_over(test, Way::Ssh, Link::up(test), &[]) else { return };
    let mut fio = Command::new("fio");
    fio.args(["--name=v", "--filename=v", "--size=48m", "--rw=randrw", "--bsrange=4k-128k"]);
    fio.args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--fsync=64"]);
    fio.args(["--ioengine=psync", "--rate=16m", "--numjobs=1", "--end_fsync=1"]);
    fio.arg(format!("--aux-path={}", rig.folder.display())).current_dir(&rig.mountpoint);
    let fio = fio.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let fio = fio.spawn().expect("fio");
    std::thread::sleep(Duration::from_secs(2));
    rig.link("cut");
    std::thread::sleep(Duration::from_secs(60));
    rig.link("restore");
    let output = fio.wait_with_output().expect("fio ends");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words}{}", String::from_utf8_lossy(&output.stdout));
    let through = std::fs::read(rig.mountpoint.join("v")).expect("read");
    rig.umount();
    assert!(std::fs::read(rig.export.join("v")).expect("read there") == through);
}

#[test]
fn busy_mounts_are_named_and_kept() {
    let Some(mut rig) = Rig::mounted("busy_mounts_are_named_and_kept", Way::Local) else { return };
    let file = File::create(rig.mountpoint.join("open")).expect("create");
    let output = Command::new(gridvfs()).arg("umount").arg(&rig.mountpoint).output().expect("runs");
    assert!(!output.status.success());
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("busy") && words.contains("Hint:"), "{words}");
    drop(file);
    rig.umount();
}
