//! Unmodified programs on a mount: git, a compiler, tar, SQLite, and locks.

mod common;

use common::{Rig, Way, installed, policies, skipped};

#[test]
fn git_clones_and_a_project_builds() {
    let project = env!("CARGO_MANIFEST_DIR");
    if !std::path::Path::new(project).join(".git").exists() {
        return skipped("git_clones_and_a_project_builds", "not a git checkout");
    }
    policies::each(&policies::ROTATED, |case| {
        let way = case.way;
        let test = "git_clones_and_a_project_builds";
        let Some(mut rig) = Rig::mounted_under(test, case) else { return };
        // This very project: cloned, checked, and a few of its crates compiled, all in the mount.
        rig.shell(&format!(
            "git -c safe.directory='*' clone -q --no-local 'file://{project}' project
             cd project
             git fsck --no-dangling --no-progress
             git status --porcelain | (! grep .)
             echo change >> README.md
             git -c user.name=t -c user.email=t@example.org commit -qam change
             git status --porcelain | (! grep .)
             git gc -q
             git fsck --no-dangling --no-progress",
        ));
        if way == Way::Ssh || way == Way::Local {
            rig.shell(
                "cd project && CARGO_TARGET_DIR=$PWD/target cargo build -q --offline -p thiserror \
                 && ls target/debug/libthiserror.rlib",
            );
        }
        rig.umount();
        let check = "cd project && git -c safe.directory='*' fsck --no-dangling --no-progress";
        common::shell(&rig.export, check);
    });
}

#[test]
fn tar_round_trip() {
    policies::each(&policies::ALL, |case| {
        let way = case.way;
        let Some(mut rig) = Rig::mounted_under("tar_round_trip", case) else { return };
        // NFS-Ganesha's VFS says that it has set a link's times, and has not.
        let but = if way.needs_ganesha() { "--exclude=link" } else { "" };
        rig.shell(&format!(
            "mkdir in && cd in
             for i in $(seq 200); do
                mkdir -p d$((i % 10)); head -c $((i * 331)) /dev/urandom > d$((i % 10))/f$i
                touch -d \"2001-02-03 04:05:$((i % 60)).123456789\" d$((i % 10))/f$i
             done
             ln -s ../nowhere link; ln d1/f1 hard; mkfifo fifo; chmod 4711 d2/f2; chmod 0444 d3/f3
             chmod 0500 d4; touch -h -d '1999-12-31 23:59:59.5' link
             printf 'x' > $'name \\xff\\n with bytes'
             cd .. && tar --sort=name {but} -cf one.tar in && mkdir out && tar -xpf one.tar -C out
             tar -df one.tar && cd out && tar -df ../one.tar
             tar --sort=name {but} -cf ../two.tar in && cd .. && cmp one.tar two.tar"
        ));
        rig.umount();
        // The server's own copy is the same, to the nanosecond.
        common::shell(
            &rig.export,
            "tar -df one.tar && cmp one.tar two.tar && chmod 700 in/d4 out/in/d4",
        );
    });
}

#[test]
fn sqlite_with_wal_from_two_processes() {
    if !installed("sqlite3") {
        return skipped("sqlite_with_wal_from_two_processes", "needs sqlite3");
    }
    policies::each(&policies::ALL, |case| {
        let test = "sqlite_with_wal_from_two_processes";
        let Some(mut rig) = Rig::mounted_under(test, case) else { return };
        let count = rig.shell(
            "sqlite3 db 'pragma journal_mode=wal; create table t(a integer primary key, b)' > /dev/null
             for p in 1 2; do
                for i in $(seq 40); do
                    sqlite3 -cmd '.timeout 30000' db \"insert into t(b) values(randomblob(2000))\"
                done &
             done; wait
             sqlite3 db 'pragma integrity_check; select count(*) from t'",
        );
        assert_eq!(count, "ok\n80\n", "{case:?}");
        rig.umount();
        let count = common::shell(
            &rig.export,
            "sqlite3 db 'pragma integrity_check; select count(*) from t'",
        );
        assert_eq!(count, "ok\n80\n", "{case:?}");
    });
}

#[test]
fn locks_hold_within_the_mount() {
    if !installed("python3") {
        return skipped("locks_hold_within_the_mount", "needs python3");
    }
    policies::each(&policies::ALL, |case| {
        let Some(rig) = Rig::mounted_under("locks_hold_within_the_mount", case) else { return };
        rig.shell(
            "touch f
             flock f -c 'flock -n f true' && exit 1
             python3 - <<'P'
import fcntl, os, struct
a, b = os.open('f', os.O_RDWR), os.open('f', os.O_RDWR)
OFD = 37
def lock(kind, start): return struct.pack('hhqqi', kind, 0, start, 1, 0)
fcntl.fcntl(a, OFD, lock(fcntl.F_WRLCK, 100))
try:
    fcntl.fcntl(b, OFD, lock(fcntl.F_WRLCK, 100)); raise SystemExit('locked twice')
except BlockingIOError: pass
fcntl.fcntl(b, OFD, lock(fcntl.F_WRLCK, 201))
c = os.open('g', os.O_RDWR | os.O_CREAT)
fcntl.lockf(c, fcntl.LOCK_EX)
if os.fork() == 0:
    d = os.open('g', os.O_RDWR)
    try: fcntl.lockf(d, fcntl.LOCK_EX | fcntl.LOCK_NB); os._exit(1)
    except OSError: os._exit(0)
assert os.wait()[1] == 0
P",
        );
    });
}

/// execve(2) closes files of the mount while nobody may look at the process.
#[test]
fn programs_execute_others_with_files_open() {
    if !installed("python3") {
        return skipped("programs_execute_others_with_files_open", "needs python3");
    }
    policies::each(&policies::ROTATED[..2], |case| {
        let test = "programs_execute_others_with_files_open";
        let Some(mut rig) = Rig::mounted_under(test, case) else { return };
        // One small request after another, so many that an event loop looks for the program just then.
        rig.shell(
            "echo > f; echo > g
             timeout -k 5 120 python3 - <<'P'
import os
for count in range(200):
    child = os.fork()
    if child == 0:
        files = [os.open('f', os.O_RDWR) for _ in range(100)]
        for _ in range(count):
            os.close(os.open('g', os.O_RDONLY))
        os.execv('/bin/true', ['true'])
    assert os.waitpid(child, 0)[1] == 0
P",
        );
        rig.umount();
    });
}

#[test]
fn ordinary_users_can_do_all_of_it() {
    policies::each(&policies::ROTATED, |case| {
        let test = "ordinary_users_can_do_all_of_it";
        let Some(mut rig) = Rig::mounted_as_user(test, case) else { return };
        let types = rig.shell("findmnt -n -o FSTYPE,SOURCE --target .");
        assert!(types.starts_with("fuse.gridvfs"), "{types}");
        assert!(types.contains(&rig.source()), "{types}");
        rig.shell(
            "git init -q p && cd p && head -c 3000000 /dev/urandom > big && git add big
             git -c user.name=t -c user.email=t@example.org commit -qm one && git fsck --no-progress
             chmod 400 big && cp -a big copy && cmp big copy && [ $(stat -c %U big) = $(id -un) ]
             mkdir d && mv copy d/ && rm -r d && ln -s big l && cmp l big",
        );
        rig.umount();
        let owner = common::shell(&rig.export, "stat -c %U p/big");
        let me = common::run(rig.command("id").arg("-un")).stdout;
        assert_eq!(owner.as_bytes(), me, "{case:?}");
    });
}
