//! What the command says: of bad input, of what runs, and as JSON.

mod common;

use std::io::Read;
use std::process::Command;

use common::policies::{Case, Policy};
use common::{Rig, Way, gridvfs, is_root, run, skipped};

/// Runs the command, which must fail, and returns what it said.
fn refused(command: &mut Command) -> String {
    let output = command.output().expect("runs");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{command:?} should fail; {words}");
    assert!(words.contains("rror"), "{command:?}: {words}");
    assert!(!words.contains("panicked"), "{command:?}: {words}");
    words
}

fn says(words: &str, parts: &[&str]) {
    for part in parts {
        assert!(words.contains(part), "{part:?} is missing in: {words}");
    }
}

#[test]
fn bad_arguments_are_explained() {
    let mount = |source: &str, mountpoint: &str, options: &[&str]| {
        refused(Command::new(gridvfs()).args(["mount", source, mountpoint]).args(options))
    };
    says(&mount("nonsense", "/tmp", &[]), &["nonsense is no source", "Hint: give HOST:/path"]);
    says(&mount("/", "/tmp", &["-o", "strips=1"]), &["unknown option", "did you mean stripes?"]);
    says(&mount("/", "/nonexistent/x", &[]), &["/nonexistent/x"]);
    says(&mount("/", "/tmp", &["--session", "a/b"]), &["no session name"]);
    says(&mount("/nonexistent", "/tmp", &["-o", "nonempty"]), &["/nonexistent"]);
    says(
        &refused(Command::new(gridvfs()).args(["status", "nobody"])),
        &["no session nobody", "Hint"],
    );
    says(&refused(Command::new(gridvfs()).args(["umount", "/nonexistent"])), &["neither"]);
}

#[test]
fn bad_mount_points_are_explained() {
    let Some(rig) = Rig::new("bad_mount_points_are_explained", Way::Local) else { return };
    common::shell(&rig.folder, "mkdir full && touch full/x file");
    let mount = |name: &str| {
        let target = rig.folder.join(name);
        refused(Command::new(gridvfs()).arg("mount").arg(&rig.export).arg(target))
    };
    says(&mount("full"), &["not empty", "full"]);
    says(&mount("file"), &["not a directory", "file"]);
    says(&mount("none"), &["none"]);
    common::shell(&rig.folder, "mkdir export/inside && ln -s export way");
    for name in ["export", "export/inside", "way/inside", "way"] {
        says(&mount(name), &["within its own source", "elsewhere"]);
    }
}

#[test]
fn a_server_that_never_answers_is_given_up_in_time() {
    let test = "a_server_that_never_answers_is_given_up_in_time";
    let Some(rig) = Rig::new(test, Way::Local) else { return };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let port = listener.local_addr().expect("address").port();
    for source in [format!("nfs://127.0.0.1:{port}/x"), format!("gridvfs://127.0.0.1:{port}")] {
        let start = std::time::Instant::now();
        let mut command = rig.command(gridvfs());
        command.arg("mount").arg(source).arg(&rig.mountpoint);
        command.args(["-o", &format!("timeout=2,mountport={port}")]);
        says(&refused(&mut command), &["no answer within 2 s", "timeout="]);
        assert!(start.elapsed() < std::time::Duration::from_secs(5), "{:?}", start.elapsed());
    }
}

#[test]
fn a_symbolic_link_is_a_mount_point() {
    let Some(mut rig) = Rig::new("a_symbolic_link_is_a_mount_point", Way::Local) else { return };
    common::shell(&rig.folder, "ln -s mnt link && echo there > export/f");
    let link = rig.folder.join("link");
    run(rig.command(gridvfs()).arg("mount").arg(&rig.export).arg(&link));
    rig.is_mounted();
    assert_eq!(std::fs::read(rig.mountpoint.join("f")).expect("read"), b"there\n");
    let words = refused(rig.command(gridvfs()).arg("mount").arg(&rig.export).arg(&link));
    says(&words, &["mounted already"]);
    run(rig.command(gridvfs()).arg("status").arg(&link));
    run(rig.command(gridvfs()).arg("umount").arg(&link));
    assert!(!rig.mountpoint.join("f").exists());
}

#[test]
fn bad_exports_are_explained() {
    let Some(rig) = Rig::new("bad_exports_are_explained", Way::Ssh) else { return };
    common::shell(&rig.folder, "touch export/file");
    let mount = |path: &str| {
        let mut command = Command::new(gridvfs());
        command.arg("mount").arg(format!("gvhost:{path}")).arg(&rig.mountpoint);
        command.arg("-F").arg(rig.folder.join("sshd/ssh_config"));
        refused(command.args(["-o", &format!("gridvfs_command={}", gridvfs())]))
    };
    says(&mount("/nonexistent"), &["gvhost", "/nonexistent"]);
    says(&mount(&format!("{}/file", rig.export.display())), &["not a directory"]);
}

#[test]
fn an_unreadable_export_is_explained() {
    let test = "an_unreadable_export_is_explained";
    let case = Case { way: Way::Ssh, policy: Policy::Default };
    let Some(rig) = Rig::mounted_as_user(test, case) else { return };
    if is_root() {
        common::shell(&rig.export, "mkdir -m 700 secret");
    } else {
        common::shell(&rig.export, "mkdir -m 000 secret");
    }
    let mountpoint = rig.folder.join("second");
    let owner = String::from_utf8_lossy(&run(rig.command("id").arg("-un")).stdout).into_owned();
    common::shell(&rig.folder, &format!("mkdir second && chown {} second", owner.trim()));
    let mut command = rig.command(gridvfs());
    command.arg("mount").arg(format!("gvhost:{}/secret", rig.export.display())).arg(mountpoint);
    command.arg("-F").arg(rig.folder.join("sshd/ssh_config"));
    let words = refused(command.args(["-o", &format!("gridvfs_command={}", gridvfs())]));
    says(&words, &["secret", "ermission denied"]);
}

#[test]
fn bad_hosts_are_explained() {
    let Some(rig) = Rig::new("bad_hosts_are_explained", Way::Ssh) else { return };
    let config = rig.folder.join("sshd/ssh_config");
    let mount = |host: &str, options: &[&str]| {
        let mut command = Command::new(gridvfs());
        command.arg("mount").arg(format!("{host}:{}", rig.export.display())).arg(&rig.mountpoint);
        // A session of its own has no terminal: nothing can be asked.
        refused(command.arg("-F").arg(&config).args(options))
    };
    let own = format!("gridvfs_command={}", gridvfs());
    says(&mount("no-such-host.invalid", &["-o", &own]), &["no such host", "no-such-host.invalid"]);
    says(
        &mount("gvhost", &["-o", "gridvfs_command=/nonexistent/gridvfs"]),
        &["no gridvfs on gvhost"],
    );
    let other = rig.folder.join("sshd/key.other");
    let key = format!("IdentityFile={}", other.display());
    let plain = format!("ssh -F /dev/null -p {}", rig.port("sshd/port"));
    let known = rig.folder.join("sshd/known_hosts");
    let alias = format!("-o HostKeyAlias=gvhost -o UserKnownHostsFile={}", known.display());
    let refused_login = refused(
        Command::new(gridvfs())
            .arg("mount")
            .arg(format!("127.0.0.1:{}", rig.export.display()))
            .arg(&rig.mountpoint)
            .args(["-o", &format!("ssh_command={plain} {alias}")])
            .args(["-o", &key, "-o", &own]),
    );
    says(&refused_login, &["refuses the login"]);
    // Another host key than the one that is known.
    common::shell(
        &rig.folder,
        "echo \"gvhost $(cut -d' ' -f1,2 sshd/key.other.pub)\" > sshd/known_hosts",
    );
    says(&mount("gvhost", &["-o", &own]), &["host key of gvhost"]);
    rig.sshd("stop");
    says(&mount("gvhost", &["-o", &own]), &["gvhost", "refused"]);
}

#[test]
fn another_version_on_the_host_is_explained() {
    let Some(rig) = Rig::new("another_version_on_the_host_is_explained", Way::Ssh) else { return };
    let mount = |script: &str| {
        let program = rig.folder.join("other-gridvfs");
        std::fs::write(&program, script).expect("script");
        common::shell(&rig.folder, "chmod 755 other-gridvfs");
        let mut command = Command::new(gridvfs());
        command.arg("mount").arg(rig.source()).arg(&rig.mountpoint);
        command.arg("-F").arg(rig.folder.join("sshd/ssh_config"));
        refused(command.args(["-o", &format!("gridvfs_command={}", program.display())]))
    };
    let words =
        mount("#!/bin/sh\necho 'GRIDVFS1 {\"ok\":true,\"version\":\"9.9.9\",\"protocol\":9}'\n");
    says(&words, &["9.9.9", "protocol 9", "install the same version"]);
    let words = mount("#!/bin/sh\necho 'error: unrecognized subcommand' >&2; exit 2\n");
    says(&words, &["unrecognized subcommand", "another version"]);
    let words = mount("#!/bin/sh\necho 'Welcome to this host!'; exit 0\n");
    says(&words, &["Welcome to this host!"]);
}

#[test]
fn sessions_and_their_state_are_json() {
    let Some(mut rig) = Rig::new("sessions_and_their_state_are_json", Way::Ssh) else { return };
    let output = run(rig.mount_command().args(["--json", "--session", "json-test"]));
    let mounted: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(mounted["session"], "json-test");
    std::fs::write(rig.mountpoint.join("f"), vec![7; 1 << 20]).expect("write");
    let status = rig.status();
    assert_eq!(status["source"], rig.source());
    assert!(status["link"]["sent_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{status}");
    let output = run(Command::new(gridvfs()).args(["sessions", "--json"]));
    let sessions: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let names: Vec<&str> = sessions
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|row| row["name"].as_str())
        .collect();
    assert!(names.contains(&"json-test"), "{names:?}");
    let words = refused(rig.mount_command().args(["--session", "json-test"]));
    says(&words, &["mounted already"]);
    run(Command::new(gridvfs()).args(["writeback", "json-test"]));
    // By its name, and safe to run twice.
    run(Command::new(gridvfs()).args(["umount", "json-test"]));
    run(Command::new(gridvfs()).arg("umount").arg(&rig.mountpoint));
    rig.mount();
    run(Command::new("fusermount3").arg("-u").arg(&rig.mountpoint));
}

#[test]
fn the_same_source_can_be_mounted_twice() {
    let Some(rig) = Rig::mounted("the_same_source_can_be_mounted_twice", Way::Ssh) else { return };
    let second = rig.folder.join("mnt2");
    std::fs::create_dir(&second).expect("folder");
    run(&mut rig.mount_also(&second, &[]));
    std::fs::write(rig.mountpoint.join("f"), b"seen by both").expect("write");
    assert_eq!(std::fs::read(second.join("f")).expect("read"), b"seen by both");
    run(Command::new(gridvfs()).arg("umount").arg(&second));
    assert_eq!(std::fs::read(rig.mountpoint.join("f")).expect("read"), b"seen by both");
}

#[test]
fn a_second_mount_leaves_deleted_files_to_the_first() {
    let test = "a_second_mount_leaves_deleted_files_to_the_first";
    let Some(rig) = Rig::mounted(test, Way::Local) else { return };
    let path = rig.mountpoint.join("f");
    std::fs::write(&path, b"still read").expect("write");
    let file = std::fs::File::open(&path).expect("open");
    std::fs::remove_file(&path).expect("unlink");
    let second = rig.folder.join("mnt2");
    std::fs::create_dir(&second).expect("folder");
    run(rig.command(gridvfs()).arg("mount").arg(rig.source()).arg(&second));
    // What the second clears up it clears up at its start.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let names = || std::fs::read_dir(&rig.export).expect("list").count();
    assert_eq!(names(), 1, "the file is hidden");
    let mut text = String::new();
    (&file).read_to_string(&mut text).expect("read");
    assert_eq!(text, "still read");
    run(rig.command(gridvfs()).arg("umount").arg(&second));
    drop(file);
    for _ in 0..100 {
        if names() == 0 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("the hidden file is left");
}

#[test]
fn read_only_mounts_refuse_changes() {
    for way in [Way::Local, Way::Ssh] {
        let Some(rig) = Rig::mounted_with("read_only_mounts_refuse_changes", way, &["ro"]) else {
            continue;
        };
        let error = std::fs::write(rig.mountpoint.join("f"), b"x").expect_err("read-only");
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    }
}

/// A process that ends with the test, however that ends.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn foreign_clients_use_a_standing_proxy() {
    let test = "foreign_clients_use_a_standing_proxy";
    if !common::installed("nfs-ls") {
        return skipped(test, "needs libnfs-utils");
    }
    let Some(rig) = Rig::new(test, Way::Local) else { return };
    std::fs::write(rig.export.join("file"), vec![42; 3_000_000]).expect("write");
    common::shell(&rig.export, "mkdir sub && touch sub/inner");
    let mut serve = Command::new(gridvfs());
    serve.args(["proxy", "serve", "--listen", "127.0.0.1:0", "--keyless", "--export"]);
    let serve = serve.arg(&rig.export).stdout(std::process::Stdio::piped()).spawn();
    let mut serve = Ended(serve.expect("serve"));
    let mut line = String::new();
    let mut reader = std::io::BufReader::new(serve.0.stdout.take().expect("stdout"));
    std::io::BufRead::read_line(&mut reader, &mut line).expect("its address");
    let port = line.trim().rsplit(':').next().expect("a port").to_string();
    let export = rig.export.display();
    let url =
        |path: &str| format!("nfs://127.0.0.1{export}/{path}?nfsport={port}&mountport={port}");
    let listing = run(Command::new("nfs-ls").args(["-R", &url("")]));
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    says(&listing, &["file", "inner"]);
    let data = run(Command::new("nfs-cat").arg(url("file"))).stdout;
    assert!(data == vec![42; 3_000_000]);
    let up = rig.folder.join("up");
    std::fs::write(&up, vec![9; 2_000_001]).expect("write");
    run(Command::new("nfs-cp").arg(&up).arg(url("sub/uploaded")));
    assert!(std::fs::read(rig.export.join("sub/uploaded")).expect("there") == vec![9; 2_000_001]);
    // And our own client, by gridvfs://.
    let source = format!("gridvfs://127.0.0.1:{port}");
    run(rig.command(gridvfs()).arg("mount").arg(&source).arg(&rig.mountpoint));
    assert_eq!(std::fs::read(rig.mountpoint.join("sub/uploaded")).expect("read").len(), 2_000_001);
    run(Command::new(gridvfs()).arg("umount").arg(&rig.mountpoint));
}
