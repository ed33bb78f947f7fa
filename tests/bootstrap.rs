//! A host without a `gridvfs`: copied there over ssh, used from then on; and all that can be in the way.

mod common;

use std::path::PathBuf;
use std::process::{Command, Output};

use common::{Rig, Way, gridvfs, is_root, run, shell, skipped};

/// A rig whose host has a home directory of its own, and no `gridvfs` in its PATH.
struct Bare {
    rig: Rig,
    home: PathBuf,
}

impl Bare {
    fn new(test: &str) -> Option<Self> {
        let usual = ["/usr/local/bin/gridvfs", "/opt/gridvfs/bin/gridvfs", "/usr/bin/gridvfs"];
        let installed: Vec<&str> =
            usual.into_iter().filter(|path| std::path::Path::new(path).exists()).collect();
        if !installed.is_empty() && !is_root() {
            skipped(test, "a gridvfs is installed on this machine, which is the host, too");
            return None;
        }
        let rig = Rig::new(test, Way::Ssh)?;
        let home = rig.folder.join("home");
        shell(&rig.folder, "mkdir -p home/bin");
        rig.sshd("stop");
        let bare = Self { rig, home };
        let (folder, port) = (bare.rig.folder.display(), bare.rig.port("sshd/port"));
        let script = format!(
            "'{}'/tests/support/sshd.sh start '{folder}/sshd' --port {port} --option \
             'SetEnv HOME={folder}/home PATH={folder}/home/bin:/usr/bin:/bin \
             XDG_STATE_HOME={folder}/state'",
            env!("CARGO_MANIFEST_DIR")
        );
        // Nobody who logs in sees one that is installed.
        let hidden = installed.iter().map(|path| format!("mount --bind /dev/null {path} && "));
        let script = format!("{}{script}", hidden.collect::<String>());
        let mut start = match installed.is_empty() {
            true => Command::new("bash"),
            false => {
                let mut command = Command::new("unshare");
                command.args(["--mount", "--propagation", "private", "bash"]);
                command
            }
        };
        run(start.args(["-euc", &script]).stdin(std::process::Stdio::null()));
        Some(bare)
    }

    fn mount(&self, options: &[&str]) -> Command {
        let mut command = self.rig.command(gridvfs());
        command.arg("mount").arg(self.rig.source()).arg(&self.rig.mountpoint);
        command.arg("-F").arg(self.rig.folder.join("sshd/ssh_config"));
        for option in options {
            command.args(["-o", option]);
        }
        command
    }

    fn refused(&self, options: &[&str], words: &[&str]) -> Output {
        let output = self.mount(options).output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is missing in: {said}");
        }
        let left = self.files();
        assert!(left.is_empty(), "{left:?} is left after: {said}");
        output
    }

    /// What is in the host's cache directory.
    fn files(&self) -> Vec<String> {
        let home = self.home.display();
        let mut find = self.on_host("sh");
        find.args(["-c", &format!("cd '{home}' && find .cache -type f 2>/dev/null || true")]);
        String::from_utf8_lossy(&run(&mut find).stdout).lines().map(String::from).collect()
    }

    /// A command that sees the mounts that a login sees.
    fn on_host(&self, program: &str) -> Command {
        if !is_root() {
            return Command::new(program);
        }
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &self.rig.port("sshd/sshd.pid"), program]);
        command
    }

    fn works(&mut self) {
        self.rig.is_mounted();
        std::fs::write(self.rig.mountpoint.join("f"), b"through it").expect("written");
        self.rig.umount();
        assert_eq!(std::fs::read(self.rig.export.join("f")).expect("there"), b"through it");
    }
}

#[test]
fn the_program_is_copied_and_used_from_then_on() {
    let Some(mut bare) = Bare::new("the_program_is_copied_and_used_from_then_on") else { return };
    // Nobody is asked, so nobody agrees.
    bare.refused(&["bootstrap=no"], &["there is no gridvfs on gvhost"]);
    bare.refused(&[], &["there is no gridvfs on gvhost", "-o bootstrap=yes"]);
    bare.refused(&["bootstrap=maybe"], &["yes, no or ask"]);
    // Start-up files that print are no hindrance.
    std::fs::write(bare.home.join(".bashrc"), "echo 'Welcome!'; echo sha256sum\n")
        .expect("written");
    let output = run(&mut bare.mount(&["bootstrap=yes"]));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("was copied to gvhost:"),
        "{output:?}"
    );
    bare.works();
    let files = bare.files();
    let own = format!("/bin/{}-", env!("CARGO_PKG_VERSION"));
    assert!(
        files.len() == 1 && files[0].contains(&own) && files[0].ends_with("/gridvfs"),
        "{files:?}"
    );
    let copy = std::fs::read(bare.home.join(&files[0])).expect("the copy");
    assert!(copy == std::fs::read(gridvfs()).expect("the original"), "they differ");

    // From now on without a word; and without the note, it is found again.
    run(&mut bare.mount(&["bootstrap=no"]));
    bare.works();
    let notes = bare.rig.folder.join("state/gridvfs/bootstrap");
    assert!(notes.is_dir());
    std::fs::remove_dir_all(&notes).expect("removed");
    run(&mut bare.mount(&[]));
    bare.works();
    // Cleared away there, it is copied again only if that is wanted.
    std::fs::remove_file(bare.home.join(&files[0])).expect("removed");
    bare.refused(&[], &["there is no gridvfs on gvhost", "-o bootstrap=yes"]);

    // Another version in the way: the copy is used, and somebody at a terminal is asked.
    let other = "#!/bin/sh\necho 'GRIDVFS1 {\"ok\":true,\"version\":\"9.9.9\",\"protocol\":9}'\n";
    std::fs::write(bare.home.join("bin/gridvfs"), other).expect("written");
    shell(&bare.home, "chmod 755 bin/gridvfs");
    bare.refused(&[], &["speaks protocol 9", "-o bootstrap=yes"]);
    if Command::new("python3").arg("--version").output().is_err() {
        skipped("an answer at a terminal", "needs python3");
        return;
    }
    let mount = bare.mount(&[]);
    let at_terminal = |answer: &str| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/at-terminal.py");
        let mut command = bare.rig.command("python3");
        command.args([script, "[y/N]", answer]).arg(mount.get_program()).args(mount.get_args());
        command.output().expect("runs")
    };
    let no = at_terminal("n");
    assert!(!no.status.success(), "{no:?}");
    assert!(bare.files().is_empty());
    let yes = at_terminal("y");
    assert!(yes.status.success(), "{yes:?}");
    assert!(String::from_utf8_lossy(&yes.stdout).contains("cannot speak with. Copy this one"));
    bare.works();
}

#[test]
fn what_is_in_the_way_of_a_copy_is_said() {
    let test = "what_is_in_the_way_of_a_copy_is_said";
    let Some(bare) = Bare::new(test) else { return };
    let yes = &["bootstrap=yes"][..];
    // Another machine.
    std::fs::write(
        bare.home.join("bin/uname"),
        "#!/bin/sh\n[ \"$1\" = -m ] && echo s390x || echo Linux\n",
    )
    .expect("written");
    shell(&bare.home, "chmod 755 bin/uname");
    bare.refused(yes, &["Linux on s390x", "cannot be copied there", "Hint"]);
    std::fs::remove_file(bare.home.join("bin/uname")).expect("removed");
    // What arrives is something else: as a shell sees a damaged copy.
    std::fs::write(bare.home.join("bin/sha256sum"), "#!/bin/sh\necho \"00ff  $1\"\n").expect("w");
    shell(&bare.home, "chmod 755 bin/sha256sum");
    bare.refused(yes, &["the copy is not what was sent"]);
    std::fs::remove_file(bare.home.join("bin/sha256sum")).expect("removed");
    // The cache directory cannot be made.
    shell(&bare.home, "rm -r .cache && touch .cache");
    let output = bare.mount(yes).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("cannot make") && said.contains("gridvfs_command"), "{said}");
    std::fs::remove_file(bare.home.join(".cache")).expect("removed");

    if !is_root() {
        skipped(&format!("{test}: full, read-only and noexec disks"), "needs root to mount them");
        return;
    }
    std::fs::create_dir(bare.home.join(".cache")).expect("folder");
    for (options, words) in [
        ("size=1M", &["cannot write gridvfs into", "No space left", "make room"][..]),
        ("ro", &["cannot make", "Read-only file system", "gridvfs_command"]),
        ("noexec", &["nothing may be run from", "noexec"]),
    ] {
        let place = bare.home.join(".cache");
        let mut mount = bare.on_host("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&place);
        if !mount.output().is_ok_and(|output| output.status.success()) {
            skipped(&format!("{test}: {options}"), "cannot mount a tmpfs");
            continue;
        }
        let disk = Disk(bare.on_host("umount"), place);
        bare.refused(yes, words);
        drop(disk);
    }
}

/// A small file system in memory, unmounted when dropped.
struct Disk(Command, PathBuf);

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.0.arg(&self.1).output();
    }
}
