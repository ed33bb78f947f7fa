//! The recipe for libvirt: a storage pool on a mount, and the hook of packaging/libvirt that mounts what a guest
//! needs and writes back after it. `make test-libvirt` installs what it needs; elsewhere this is skipped.

mod common;

use std::path::Path;
use std::process::Command;

use common::{gridvfs, installed, is_root, run, shell, skipped};

/// Whose `qemu:///session` it is; made if need be, as for other tests.
const USER: &str = "gridvfs-test";

/// Run in mount and process id namespaces of the test's own: the machine's hooks, the user's home and runtime
/// directory are covered, and libvirtd ends with it.
const NAMESPACES: &str = r#"
home=$(getent passwd gridvfs-test | cut -d: -f6) runtime=/run/user/$(id -u gridvfs-test)
mkdir -p /etc/libvirt/hooks "$runtime"
mount -t tmpfs hooks /etc/libvirt/hooks
install -m 755 "$PROJECT/packaging/libvirt/qemu" /etc/libvirt/hooks/qemu
mount --bind home "$home"
mount -t tmpfs -o mode=700,uid=$(id -u gridvfs-test) runtime "$runtime"
# Neither exec nor the last command, which bash would exec: the first process of the namespace is the one that waits for guests that nobody else waits for.
timeout 100 runuser -u gridvfs-test -- env HOME="$home" XDG_RUNTIME_DIR="$runtime" PATH="$PWD/bin:$PATH" \
    FOLDER="$PWD" bash -euo pipefail "$PWD/user.sh"
exit
"#;

/// What the user does. What it prints is what the test looks at.
const BY_USER: &str = r#"
cd
export LIBVIRT_DEFAULT_URI=qemu:///session
gridvfs mount vms
virsh -q pool-define-as golden dir --target ~/vms
virsh -q pool-start golden
virsh -q vol-list golden
virsh -q pool-define-as clones dir --target ~/vms/clones
virsh -q pool-build clones
virsh -q pool-start clones
virsh -q vol-create-as clones clone1.qcow2 256M --format qcow2 --backing-vol ~/vms/disk.raw --backing-vol-format raw
virsh -q pool-destroy clones
virsh -q pool-destroy golden
gridvfs umount vms

sed "s,HOME,$HOME,g" "$FOLDER/clone.xml" >clone.xml
virsh -q define clone.xml
virsh -q start clone1
gridvfs sessions
for try in {1..600}; do grep -qs '/root #' console.log && break; sleep 0.1; done
grep -q '/root #' console.log && echo booted
echo "unsent $(gridvfs status vms --json | grep -o '"unsent_bytes":[0-9]*')"
virsh -q destroy clone1
for try in {1..100}; do
    [[ $(gridvfs status vms --json) != *'"unsent_bytes":0,'* ]] || { echo "written back"; break; }
    sleep 0.1
done
gridvfs umount vms
rm .config/gridvfs/sessions/vms.toml
! virsh -q start clone1 2>&1
"#;

const GUEST: &str = r#"<domain type='qemu'>
  <name>clone1</name>
  <metadata><gridvfs:sessions xmlns:gridvfs="urn:gridvfs:libvirt">vms</gridvfs:sessions></metadata>
  <memory unit='MiB'>256</memory>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>HOME/vms/vmlinuz</kernel>
    <initrd>HOME/vms/initrd.img</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 gridvfs.action=shell</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='writeback'/>
      <source file='HOME/vms/clones/clone1.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='file'><source path='HOME/console.log'/></serial>
  </devices>
</domain>
"#;

#[test]
fn a_guest_has_its_session_mounted_and_written_back() {
    let test = "a_guest_has_its_session_mounted_and_written_back";
    if !is_root() {
        return skipped(test, "needs root (namespaces)");
    }
    for program in ["virsh", "libvirtd", "qemu-system-x86_64", "qemu-img", "sshd", "fusermount3"] {
        if !installed(program) {
            return skipped(test, &format!("needs {program} (make test-libvirt installs it)"));
        }
    }
    if !Path::new("/dev/fuse").exists() {
        return skipped(test, "needs /dev/fuse");
    }
    if !Command::new("id").arg(USER).output().is_ok_and(|output| output.status.success()) {
        run(Command::new("useradd").args([
            "--system",
            "--create-home",
            "--shell",
            "/bin/bash",
            USER,
        ]));
    }
    let project = env!("CARGO_MANIFEST_DIR");
    // The same golden guest as that of other tests.
    let golden = Path::new(env!("CARGO_TARGET_TMPDIR")).join("golden");
    let built = Command::new(Path::new(project).join("bench/guest/build.sh")).arg(&golden).output();
    if !built.is_ok_and(|output| output.status.success()) {
        return skipped(test, "the guest cannot be made here (no kernel package?)");
    }
    let temporary = tempfile::Builder::new().prefix("gridvfs-").tempdir().expect("folder");
    let folder = temporary.path().canonicalize().expect("folder");
    shell(
        &folder,
        &format!(
            "chmod 755 .; chmod 666 /dev/fuse
             mkdir -p export bin home/vms home/.config/gridvfs/sessions
             cp --sparse=always {golden}/{{vmlinuz,initrd.img,disk.raw}} export
             ln -s {command} bin/gridvfs
             cat >home/.config/gridvfs/sessions/vms.toml <<END
source = \"gvhost:$PWD/export\"
mountpoint = \"~/vms\"
ssh_config = \"$PWD/sshd/ssh_config\"
gridvfs_command = \"{command}\"
write_policy = \"write-back\"
writeback_delay = 3600
writeback_age = 3600
END
             chown -R {USER} export home
             {project}/tests/support/sshd.sh start sshd --user {USER}",
            golden = golden.display(),
            command = gridvfs(),
        ),
    );
    std::fs::write(folder.join("clone.xml"), GUEST).expect("written");
    std::fs::write(folder.join("user.sh"), BY_USER).expect("written");
    let mut inside = Command::new("unshare");
    inside.args([
        "--mount",
        "--propagation",
        "private",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
    ]);
    inside
        .args(["bash", "-euo", "pipefail", "-c", NAMESPACES])
        .current_dir(&folder)
        .env("PROJECT", project);
    let output = inside.stdin(std::process::Stdio::null()).output().expect("unshare");
    shell(&folder, &format!("{project}/tests/support/sshd.sh stop sshd"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    for expected in [
        "disk.raw",
        "vms              gvhost:",
        "booted",
        "written back",
        "guest clone1 needs the GridVFS session vms, which cannot be mounted",
    ] {
        assert!(said.contains(expected), "{expected} is missing:\n{said}\n{errors}");
    }
    assert!(!said.contains("\"unsent_bytes\":0\n"), "the guest has written nothing:\n{said}");
    assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
    // The clone on the server is whole, and has what the guest wrote.
    shell(
        &folder,
        "qemu-img rebase -u -b ../disk.raw -F raw export/clones/clone1.qcow2
         qemu-img check -q export/clones/clone1.qcow2 || [[ $? -eq 3 ]]
         [[ $(stat -c %s export/clones/clone1.qcow2) -gt 262144 ]]",
    );
}
