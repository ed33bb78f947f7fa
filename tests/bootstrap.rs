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
        if usual.iter().any(|path| std::path::Path::new(path).exists()) {
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
        shell(&bare.rig.folder, &script);
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
        let found = shell(&self.home, "find .cache -type f 2>/dev/null || true");
        found.lines().map(String::from).collect()
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
        let disk = Disk::mount(&bare.home.join(".cache"), options);
        let Some(_disk) = disk else {
            skipped(&format!("{test}: {options}"), "cannot mount a tmpfs");
            continue;
        };
        bare.refused(yes, words);
    }
}

/// A small file system in memory, unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(place: &std::path::Path, options: &str) -> Option<Self> {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(place);
        let mounted = command.output().is_ok_and(|output| output.status.success());
        mounted.then(|| Self(place.into()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).output();
    }
}
