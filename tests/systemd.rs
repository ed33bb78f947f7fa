//! The units of packaging/systemd and the helpers of mount(8), in a real systemd: a container made for
//! the test. `make test-systemd` builds its image; without it these tests are skipped.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{gridvfs, run, skipped};

/// The state server's side: the container itself, by ssh to `stateserver`, as the user `vm`. Alice has a
/// session that is mounted at boot without her log-in.
const SETUP: &str = r#"
useradd -m -s /bin/bash alice
useradd -m -s /bin/bash -p '*' vm
mkdir -p /srv/vms /mnt/{boot,auto,hers,named,vms} /etc/gridvfs/sessions
echo golden >/srv/vms/file
ssh-keygen -q -A
for user in root alice; do
    home=$(getent passwd $user | cut -d: -f6)
    mkdir -p -m 700 $home/.ssh /home/vm/.ssh
    ssh-keygen -q -t ed25519 -N '' -f $home/.ssh/id_ed25519
    echo "stateserver $(cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub)" >$home/.ssh/known_hosts
    cat $home/.ssh/id_ed25519.pub >>/home/vm/.ssh/authorized_keys
    chown -R $user: $home/.ssh
done
chown -R vm: /srv/vms /home/vm/.ssh
# The state server is another machine: its log-ins do not wait until this one has booted.
sed -i /pam_nologin/d /etc/pam.d/sshd
sed -i '/^UsePAM/s/yes/no/' /etc/ssh/sshd_config

cat >/etc/gridvfs/sessions/vms.toml <<'END'
source = "vm@stateserver:/srv/vms"
mountpoint = "/mnt/vms"
write_policy = "write-back"
writeback_delay = 3600
writeback_age = 3600
END
# As shipped, but that the test need not wait so long.
for side in system user; do
    # A proxy may wait 5 s for calls under way before it begins to send.
    for unit in gridvfs@:4 gridvfs-proxy@:7; do
        mkdir -p /etc/systemd/$side/${unit%:*}.service.d
        printf '[Service]\nRestartSec=500ms\nTimeoutStopSec=%ss\n' ${unit#*:} \
            >/etc/systemd/$side/${unit%:*}.service.d/test.conf
    done
done

mkdir -p /etc/gridvfs/proxies
cat >/etc/gridvfs/proxies/lan.toml <<'END'
listen = "127.0.0.1:7049"
key_file = "/etc/gridvfs/lan.keys"
[export.vms]
source = "vm@stateserver:/srv/vms"
write_policy = "write-back"
writeback_delay = 3600
writeback_age = 3600
END
gridvfs proxy key new alice --file /etc/gridvfs/lan.keys --out /etc/gridvfs/alice.key
mkdir -p /home/alice/.config/gridvfs/proxies
cat >/home/alice/.config/gridvfs/proxies/hers.toml <<'END'
listen_keyless = "unix:/home/alice/proxy.sock"
[export.vms]
source = "vm@stateserver:/srv/vms"
cache = "off"
END

hers=/home/alice/.config/gridvfs/sessions
wants=/home/alice/.config/systemd/user/default.target.wants
mkdir -p $hers $wants /home/alice/vms /var/lib/systemd/linger
sed 's,/mnt/vms,~/vms,' /etc/gridvfs/sessions/vms.toml >$hers/work.toml
ln -s /usr/lib/systemd/user/gridvfs@.service $wants/gridvfs@work.service
touch /var/lib/systemd/linger/alice
chown -R alice: /home/alice
chown alice: /mnt/hers /mnt/named

cat >>/etc/fstab <<'END'
vm@stateserver:/srv/vms /mnt/boot fuse.gridvfs _netdev,x-systemd.after=ssh.service,write_policy=write-back,writeback_delay=3600 0 0
vm@stateserver:/srv/vms /mnt/auto fuse.gridvfs _netdev,noauto,ro,x-systemd.automount,session=automatic 0 0
vm@stateserver:/srv/vms /mnt/hers fuse.gridvfs _netdev,noauto,user,rw,write_policy=write-back,writeback_delay=3600 0 0
work /mnt/named fuse.gridvfs noauto,setuid=alice,session=named 0 0
END
echo '/net /etc/auto.gridvfs' >/etc/auto.master.d/gridvfs.autofs
echo 'golden -fstype=fuse.gridvfs,ro vm@stateserver\:/srv/vms' >/etc/auto.gridvfs
"#;

/// A container, ended and forgotten when dropped.
struct Container {
    run: PathBuf,
}

impl Container {
    /// Prepares one with what `make install` installs. `None`, and a word about it, where that cannot be.
    fn prepared(test: &str) -> Option<Self> {
        let project = Path::new(env!("CARGO_MANIFEST_DIR"));
        // Beside the build, where a test run does not remove it.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target").to_path_buf();
        let image = target.join("systemd");
        let have = support().arg("have").arg(&image).output().expect("systemd.sh");
        if !have.status.success() {
            skipped(test, String::from_utf8_lossy(&have.stdout).trim());
            return None;
        }
        let run = target.join(format!("systemd-{}", std::process::id()));
        let container = Self { run: run.clone() };
        let layer = run.join("layer");
        std::fs::create_dir_all(&layer).expect("folder");
        let mut install = Command::new("make");
        install.args(["-s", "install", "PREFIX=/usr"]).current_dir(project);
        install.arg(format!("BINARY={}", gridvfs())).arg(format!("DESTDIR={}", layer.display()));
        common::run(&mut install);
        common::run(support().arg("prepare").arg(&image).arg(&run).arg(&layer));
        let mut setup = Command::new("chroot");
        setup.arg(run.join("root")).args(["bash", "-euc", SETUP]);
        common::run(&mut setup);
        container.boot();
        Some(container)
    }

    fn boot(&self) {
        let state = common::run(support().arg("boot").arg(&self.run)).stdout;
        let state = String::from_utf8_lossy(&state);
        assert_eq!(
            state.trim(),
            "running",
            "{}",
            self.exec("systemctl --failed; journalctl -b -n 50")
        );
    }

    /// Runs a script in it, as root.
    fn exec(&self, script: &str) -> String {
        let output = common::run(support().arg("exec").arg(&self.run).arg(script));
        String::from_utf8_lossy(&output.stdout).trim_end().to_string()
    }

    /// Runs a script in it, as Alice, who is not logged in.
    fn alice(&self, script: &str) -> String {
        let quoted = script.replace('\'', r"'\''");
        self.exec(&format!(
            "exec runuser -u alice -- env HOME=/home/alice XDG_RUNTIME_DIR=/run/user/$(id -u alice) \
             bash -euo pipefail -c 'cd; {quoted}'"
        ))
    }

    /// What is on the server of a file, read beside all mounts.
    fn on_server(&self, name: &str) -> String {
        std::fs::read_to_string(self.run.join("root/srv/vms").join(name)).unwrap_or_default()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = support().arg("remove").arg(&self.run).status();
        let _ = std::fs::remove_dir_all(&self.run);
    }
}

fn support() -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/systemd.sh");
    let mut command = Command::new(script);
    command.stdin(std::process::Stdio::null());
    command
}

/// One boot for all: each part takes a second or so, the container some.
#[test]
fn units_and_helpers_work_in_a_real_systemd() {
    let Some(container) = Container::prepared("units_and_helpers_work_in_a_real_systemd") else {
        return;
    };
    units_are_sound(&container);
    a_system_unit_starts_reloads_and_stops(&container);
    a_killed_mount_is_mounted_again(&container);
    a_stop_takes_as_long_as_data_moves(&container);
    a_stop_with_the_link_cut_keeps_the_data(&container);
    a_users_unit_runs_without_a_login(&container);
    a_standing_proxy_is_a_unit(&container);
    a_users_proxy_is_a_unit(&container);
    a_logout_with_unsent_data(&container);
    fstab_mounts_by_hand_at_access_and_as_a_user(&container);
    a_shutdown_writes_back(&container);
}

fn units_are_sound(container: &Container) {
    container.exec("systemd-analyze --man=no verify gridvfs@vms.service");
    container.alice("systemd-analyze --user --man=no verify gridvfs@work.service");
    container.exec("systemd-analyze --man=no verify gridvfs-proxy@lan.service");
    container.alice("systemd-analyze --user --man=no verify gridvfs-proxy@hers.service");
}

fn show(container: &Container, property: &str) -> String {
    container.exec(&format!("systemctl show --value -p {property} gridvfs@vms"))
}

fn a_system_unit_starts_reloads_and_stops(container: &Container) {
    // Type=notify: when this returns, it is mounted.
    container.exec("systemctl start gridvfs@vms");
    assert_eq!(container.exec("cat /mnt/vms/file"), "golden");
    assert_eq!(show(container, "StatusText"), "vm@stateserver:/srv/vms on /mnt/vms");

    let reload = |value: &str| {
        container.exec(&format!(
            "sed -i 's/^writeback_ag.*/{value}/' /etc/gridvfs/sessions/vms.toml
             systemctl reload gridvfs@vms; sleep 0.2"
        ));
        (show(container, "StatusText"), show(container, "ActiveState"))
    };
    let (words, state) = reload("writeback_ag = 1800");
    assert!(words.contains("writeback_ag") && words.contains("stay as they were"), "{words}");
    assert_eq!(state, "active");
    let (words, _) = reload("writeback_age = 1800");
    assert_eq!(words, "vm@stateserver:/srv/vms on /mnt/vms");
    let age = container.exec("gridvfs status vms --json");
    let age: serde_json::Value = serde_json::from_str(&age).expect("JSON");
    assert_eq!(age["cache"]["settings"]["writeback_age"], 1800.0, "{age}");

    container.exec("echo stopped >/mnt/vms/stopped");
    assert_eq!(container.on_server("stopped"), "", "write-back has not sent it");
    container.exec("systemctl stop gridvfs@vms; ! mountpoint -q /mnt/vms");
    assert_eq!(container.on_server("stopped"), "stopped\n");
    assert_eq!(show(container, "Result"), "success");
}

fn a_killed_mount_is_mounted_again(container: &Container) {
    container.exec(
        "systemctl start gridvfs@vms
         echo killed >/mnt/vms/killed && sync /mnt/vms/killed
         kill -9 $(systemctl show --value -p MainPID gridvfs@vms)
         sleep 0.1
         for try in {1..100}; do systemctl -q is-active gridvfs@vms && break; sleep 0.1; done",
    );
    assert_eq!(show(container, "NRestarts"), "1");
    let log = container.exec("journalctl -u gridvfs@vms -o cat");
    assert!(log.contains("/mnt/vms: a dead mount was cleared"), "{log}");
    assert_eq!(container.exec("cat /mnt/vms/killed; systemctl stop gridvfs@vms"), "killed");
    assert_eq!(container.on_server("killed"), "killed\n");

    // Stopped for good: nothing is left in the mount table either.
    container.exec(
        "systemctl start gridvfs@vms
         systemctl kill --kill-who=main --signal=KILL gridvfs@vms; systemctl stop gridvfs@vms
         if findmnt /mnt/vms; then exit 1; fi
         systemctl reset-failed gridvfs@vms || true",
    );
}

fn a_stop_takes_as_long_as_data_moves(container: &Container) {
    // 12 MiB at 16 Mbit/s: longer than TimeoutStopSec.
    let took = container.exec(
        "systemctl start gridvfs@vms
         head -c 12M /dev/urandom >/mnt/vms/large
         tc qdisc add dev lo root tbf rate 16mbit burst 256k latency 400ms
         sha256sum </mnt/vms/large >/tmp/sum
         start=$SECONDS
         systemctl stop gridvfs@vms --no-block
         sleep 5; systemctl show --value -p StatusText gridvfs@vms
         systemctl stop gridvfs@vms; echo $((SECONDS - start))
         tc qdisc del dev lo root
         sha256sum </srv/vms/large | cmp - /tmp/sum",
    );
    let (status, took) = took.split_once('\n').expect("two lines");
    assert!(status.starts_with("writing back: "), "{status}");
    assert!(took.parse::<u32>().expect("seconds") > 4, "the link was not slow: {took} s");
    assert_eq!(show(container, "Result"), "success");
}

fn a_stop_with_the_link_cut_keeps_the_data(container: &Container) {
    container.exec(
        "systemctl start gridvfs@vms
         echo cut >/mnt/vms/cut
         systemctl stop ssh; pkill -KILL -u vm; sleep 0.3
         systemctl stop gridvfs@vms",
    );
    assert_eq!(show(container, "Result"), "timeout");
    assert_eq!(container.on_server("cut"), "");
    container.exec(
        "! findmnt /mnt/vms; systemctl start ssh
         systemctl start gridvfs@vms; systemctl stop gridvfs@vms",
    );
    assert_eq!(container.on_server("cut"), "cut\n");
    let log = container.exec("journalctl -u gridvfs@vms -o cat");
    assert!(log.contains("of an earlier session not yet sent: being sent now"), "{log}");
}

fn a_users_unit_runs_without_a_login(container: &Container) {
    // The link was cut meanwhile: it waited.
    assert_eq!(
        container.alice("systemctl --user is-active gridvfs@work; cat vms/file"),
        "active\ngolden"
    );
    container.alice("echo hers >vms/hers; systemctl --user reload gridvfs@work");
    container.alice("kill -9 $(systemctl --user show --value -p MainPID gridvfs@work)");
    container.alice(
        "for try in {1..150}; do systemctl --user -q is-active gridvfs@work && break; sleep 0.1; done
         cat vms/hers; systemctl --user stop gridvfs@work; ! mountpoint -q vms",
    );
    assert_eq!(container.on_server("hers"), "hers\n");
}

/// Mounts the proxy with Alice's key, which is at /etc/gridvfs/alice.key.
const LAN: &str = "gridvfs mount gridvfs://127.0.0.1:7049/vms /mnt/lan --key-file /etc/gridvfs/alice.key \
                   -o cache=off,timeout=10";

fn a_standing_proxy_is_a_unit(container: &Container) {
    // The upstream is away: starting waits for it. Type=notify: when it returns, clients can come.
    container.exec(
        "mkdir -p /mnt/lan; systemctl stop ssh
         if timeout 1 systemctl start gridvfs-proxy@lan; then exit 1; fi
         test \"$(systemctl is-active gridvfs-proxy@lan)\" = activating
         systemctl start ssh; systemctl start gridvfs-proxy@lan",
    );
    container.exec(&format!("{LAN} && cat /mnt/lan/file"));
    let words = container.exec("systemctl show --value -p StatusText gridvfs-proxy@lan");
    assert_eq!(words, "vm@stateserver:/srv/vms listening on 127.0.0.1:7049");

    // Reload: a key is gone at once, a setting counts, an error changes nothing and is shown.
    let reload = |script: &str| {
        container.exec(&format!(
            "cd /etc/gridvfs; {script}; systemctl reload gridvfs-proxy@lan; sleep 0.3
             systemctl show --value -p StatusText gridvfs-proxy@lan"
        ))
    };
    let words = reload("sed -i 's/delay = 3600/delay = 1800/' proxies/lan.toml");
    assert!(words.ends_with("listening on 127.0.0.1:7049"), "{words}");
    let status = container.exec("gridvfs status lan --json");
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let settings = &status["exports"]["vms"]["cache"]["settings"];
    assert_eq!(settings["writeback_delay"], 1800.0, "{status}");
    assert_eq!(status["clients"][0]["name"], "alice", "{status}");
    let words = reload("sed -i 's/delay = 1800/delai = 1/' proxies/lan.toml");
    assert!(words.contains("delai") && words.contains("stay as they were"), "{words}");
    reload("sed -i 's/delai = 1/delay = 3600/' proxies/lan.toml");

    // Killed, it comes again; the mount goes on, with what was unsent.
    container.exec("echo proxied >/mnt/lan/proxied && sync /mnt/lan/proxied");
    assert_eq!(container.on_server("proxied"), "");
    container.exec(
        "kill -9 $(systemctl show --value -p MainPID gridvfs-proxy@lan); sleep 0.1
         for try in {1..100}; do systemctl -q is-active gridvfs-proxy@lan && break; sleep 0.1; done
         cat /mnt/lan/proxied",
    );
    container.exec("gridvfs umount /mnt/lan; systemctl stop gridvfs-proxy@lan");
    assert_eq!(container.on_server("proxied"), "proxied\n");
    let result = container.exec("systemctl show --value -p Result gridvfs-proxy@lan");
    assert_eq!(result, "success");

    // 20 MiB at 16 Mbit/s take longer than TimeoutStopSec: it asks for more time.
    container.exec(&format!(
        "systemctl start gridvfs-proxy@lan; {LAN}
         head -c 20M /dev/urandom >/mnt/lan/slow; sync /mnt/lan/slow; gridvfs umount /mnt/lan
         tc qdisc add dev lo root tbf rate 16mbit burst 256k latency 400ms
         start=$SECONDS; systemctl stop gridvfs-proxy@lan; took=$((SECONDS - start))
         tc qdisc del dev lo root; echo \"stopping took $took s\" >&2; test $took -gt 7
         test $(stat -c %s /srv/vms/slow) = $((20 << 20))"
    ));
    let result = container.exec("systemctl show --value -p Result gridvfs-proxy@lan");
    assert_eq!(result, "success");
    // A file that is wrong is not tried again.
    container.exec(
        "sed -i 's/^listen /lissen /' /etc/gridvfs/proxies/lan.toml
         if systemctl start gridvfs-proxy@lan; then exit 1; fi
         test $(systemctl show --value -p NRestarts gridvfs-proxy@lan) = 0
         sed -i 's/^lissen /listen /' /etc/gridvfs/proxies/lan.toml; systemctl reset-failed gridvfs-proxy@lan || true",
    );
}

fn a_users_proxy_is_a_unit(container: &Container) {
    container.alice(
        "systemctl --user start gridvfs-proxy@hers; mkdir -p near
         gridvfs mount gridvfs+unix:$HOME/proxy.sock near -o cache=off; cat near/file
         echo near >near/near; gridvfs umount near; gridvfs sessions | grep ^hers
         systemctl --user stop gridvfs-proxy@hers",
    );
    assert_eq!(container.on_server("near"), "near\n");
}

/// Without lingering, and with processes of a session killed at its end.
fn a_logout_with_unsent_data(container: &Container) {
    container.exec(
        "mkdir -p /etc/systemd/logind.conf.d
         printf '[Login]\nKillUserProcesses=yes\nUserStopDelaySec=0\n' >/etc/systemd/logind.conf.d/test.conf
         systemctl restart systemd-logind",
    );
    // By hand, within the session: the mount is told to end with it, and sends what it has.
    let login = |script: &str| {
        container.exec(&format!(
            "systemd-run --quiet --wait --pipe -p PAMName=login -p User=alice \
             bash -euo pipefail -c 'cd; {script}'"
        ))
    };
    let session = login(
        "mkdir -p byhand; gridvfs mount vm@stateserver:/srv/vms byhand \
         -o write_policy=write-back,writeback_delay=3600; echo hand >byhand/hand; cat /proc/self/cgroup",
    );
    assert!(session.contains("/session-"), "no session of logind: {session}");
    container.exec(
        "for try in {1..150}; do findmnt /home/alice/byhand >/dev/null || break; sleep 0.1; done
         ! findmnt /home/alice/byhand",
    );
    container.exec("for try in {1..150}; do test -s /srv/vms/hand && break; sleep 0.1; done");
    assert_eq!(container.on_server("hand"), "hand\n");

    // A unit without lingering: stopped with the user's manager, as by hand.
    container.exec("loginctl disable-linger alice; sleep 0.5");
    login(
        "export XDG_RUNTIME_DIR=/run/user/$(id -u)
         systemctl --user start gridvfs@work; echo logout >vms/logout",
    );
    container.exec(
        "for try in {1..300}; do test -e /run/user/$(id -u alice) || break; sleep 0.1; done
         ! test -e /run/user/$(id -u alice)",
    );
    assert_eq!(container.on_server("logout"), "logout\n");
    container.exec("loginctl enable-linger alice");
}

fn fstab_mounts_by_hand_at_access_and_as_a_user(container: &Container) {
    let types = "findmnt -n -o FSTYPE,OPTIONS --mountpoint";
    let boot = container.exec(&format!("{types} /mnt/boot; cat /mnt/boot/file"));
    assert!(boot.starts_with("fuse.gridvfs") && boot.ends_with("golden"), "{boot}");

    // x-systemd.automount, and autofs.
    let auto = container.exec(&format!("cat /mnt/auto/file; {types} /mnt/auto; gridvfs sessions"));
    assert!(auto.starts_with("golden") && auto.contains("automatic "), "{auto}");
    assert_eq!(container.exec("cat /net/golden/file"), "golden");

    // By Alice herself; umount(8) writes back.
    container.alice("mount /mnt/hers && echo umount >/mnt/hers/umount");
    assert_eq!(container.on_server("umount"), "");
    container.alice("umount /mnt/hers; ! mountpoint -q /mnt/hers");
    assert_eq!(container.on_server("umount"), "umount\n");

    // By root, a session file in her name: her keys, her cache, and files that only she sees.
    let named =
        container.exec(&format!("mount /mnt/named; {types} /mnt/named; ! cat /mnt/named/file"));
    assert!(named.contains("user_id=1000"), "{named}");
    container.alice("echo named >/mnt/named/named; gridvfs status named >/dev/null");
    assert_eq!(container.on_server("named"), "");
    container.exec("umount /mnt/named");
    assert_eq!(container.on_server("named"), "named\n");
}

fn a_shutdown_writes_back(container: &Container) {
    container.exec(
        "systemctl start gridvfs@vms
         echo boot >/mnt/boot/by-fstab; echo unit >/mnt/vms/by-unit",
    );
    assert_eq!(container.on_server("by-fstab") + &container.on_server("by-unit"), "");
    run(support().arg("poweroff").arg(&container.run));
    assert_eq!(container.on_server("by-fstab"), "boot\n");
    assert_eq!(container.on_server("by-unit"), "unit\n");
}
