//! The NFS client of a Linux kernel mounts a standing proxy on keyless loopback, as in the paper. This
//! machine's kernel need have none: that of a guest under QEMU is it. `make test-nfs-client` makes the
//! guest; without it this test is skipped.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use common::proxies::Proxy;
use common::{Rig, Way, shell, skipped};

/// What the guest does. It says where it is, and waits for a line where the proxy is to be killed.
const SCRIPT: &str = r#"
mkdir /mnt/vms
mount_it() { nfs_mount $PORT /vms /mnt/vms "$1" && cd /mnt/vms; }
mount_it timeo=50
grep -q ' nfs .*vers=3.*nolock' /proc/mounts

# FSINFO, FSSTAT, PATHCONF, READDIRPLUS, ACCESS, READ.
df -k . | tail -n 1 | awk '{ exit !($2 > 0) }'
test "$(sha256sum <large)" = "$(cat sum)"
test $(ls many | wc -l) = 700
test $(find many -name 'f*' | wc -l) = 700
test "$(cat many/f699)" = 699

# WRITE and COMMIT, in one piece, by the page, and in place.
dd if=large of=copy bs=1M conv=fsync 2>/dev/null
test "$(sha256sum <copy)" = "$(cat sum)"
dd if=/dev/zero of=copy bs=4096 count=3 seek=7 conv=notrunc,fsync 2>/dev/null
echo appended >>copy
truncate -s 3000000 copy
dd if=/dev/zero of=sparse bs=1 count=1 seek=5G 2>/dev/null
test $(stat -c %s sparse) = 5368709121

# Names: O_EXCL (EXCLUSIVE create), links, renames, modes, times, owners, removal while it is open.
( set -C; echo mine >excl )
if ( set -C; echo other >excl ) 2>/dev/null; then echo "O_EXCL"; exit 1; fi
test "$(cat excl)" = mine
mkdir -p d/e; ln -s ../excl d/link; ln excl d/hard; mv excl d/e/moved
test "$(cat d/hard)" = mine; test "$(readlink d/link)" = ../excl
chmod 640 d/e/moved; touch -d '2001-02-03 04:05:06' d/e/moved; chown 7:8 d/e/moved
# Two names of one file: the second rename changes nothing.
mv d/e/moved d/hard2; mv -f d/hard2 d/hard; test d/hard2 -ef d/hard
mkfifo d/fifo; mknod d/null c 1 3; test -p d/fifo; test -c d/null
echo open >d/open; exec 3<d/open; rm d/open; read line <&3; test $line = open
test -n "$(ls -A d | grep '^.nfs')"; exec 3<&-
# The kernel does not wait for its REMOVE.
for try in 1 2 3 4 5; do [ -n "$(ls -A d | grep '^.nfs')" ] || break; sleep 1; done
if [ -n "$(ls -A d | grep '^.nfs')" ]; then echo "a removed file stays"; exit 1; fi
if rmdir d 2>/dev/null; then exit 1; fi
rmdir d/e; rm -r many; rm d/fifo d/null
cd /; umount /mnt/vms; mount_it noac,timeo=50
test $(stat -c %s copy) = 3000000
cmp -n 28672 copy large

# Killed while it is written to and read: the kernel waits, and sends again what was not committed.
dd if=large of=during bs=64k 2>/dev/null conv=fsync & writer=$!
until [ -s during ]; do sleep 1; done
echo "NOW kill"
read line
wait $writer
test "$(sha256sum <during)" = "$(cat sum)"
echo after >after; sync
cd /; umount /mnt/vms
echo "NOW done"
"#;

#[test]
fn a_kernel_mounts_a_standing_proxy() {
    let test = "a_kernel_mounts_a_standing_proxy";
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/guest/nfs-client.sh");
    let guest = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target").join("nfs-client");
    let have = Command::new(&script).arg("have").arg(&guest).output().expect("runs");
    if !have.status.success() {
        return skipped(test, String::from_utf8_lossy(&have.stdout).trim());
    }
    let Some(rig) = Rig::new(test, Way::Local) else { return };
    shell(
        &rig.export,
        "head -c 20000001 /dev/urandom >large; sha256sum <large >sum; mkdir many; \
         for n in $(seq 0 699); do echo $n >many/f$n; done",
    );
    // A cache that writes back before another proxy: what a kernel does meets all of ours.
    let far = Proxy::start(
        &rig.folder.join("far"),
        &format!(
            "listen_keyless = [\"unix:@/s\"]\n[export.vms]\nsource = \"{}\"\n",
            rig.export.display()
        ),
    );
    let mut near = Proxy::start(
        &rig.folder.join("near"),
        &format!(
            "listen_keyless = [\"127.0.0.1:0\"]\n[export.vms]\nsource = \"gridvfs+unix:{}/s:/vms\"\n\
             cache_size = \"256M\"\ncache_banks = 8\nwrite_policy = \"write-back\"\n\
             writeback_delay = 2\n",
            far.folder.display()
        ),
    );
    let port = near.address(0).rsplit(':').next().expect("a port").to_string();
    let work = rig.folder.join("script");
    std::fs::write(&work, SCRIPT).expect("writes");
    let mut client = Command::new(&script)
        .args(["run", &guest.display().to_string(), &work.display().to_string()])
        .args([format!("PORT={port}"), "--timeout".into(), "500".into()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut input = client.stdin.take().expect("its input");
    let mut said = String::new();
    for line in BufReader::new(client.stdout.take().expect("its output")).lines() {
        let line = line.expect("text");
        if line == "NOW kill" {
            near.kill();
            near.start_again();
            writeln!(input, "go on").expect("writes");
        }
        said += &format!("{line}\n");
    }
    let status = client.wait().expect("ends");
    assert!(status.success() && said.ends_with("NOW done\n"), "{status}: {said}\n{}", near.log());
    near.stop();
    let export = |script: &str| shell(&rig.export, script);
    assert_eq!(export("sha256sum <during"), export("cat sum"));
    assert_eq!(
        export("cat after; stat -c '%s %b' sparse | awk '{ print $1, $2 < 100 }'"),
        "after\n5368709121 1\n"
    );
    assert_eq!(
        export("stat -c '%a %u:%g %Y' d/hard; cat d/hard; ls -A d; ! test -e many"),
        "640 7:8 981173106\nmine\nhard\nhard2\nlink\n"
    );
    assert_eq!(export("stat -c %s copy; tail -c 1 copy | wc -c"), "3000000\n1\n");
}
