//! The recipe of packaging/slurm in a real Slurm: a controller and three nodes on this machine.
//! `make test-slurm` installs what it needs; elsewhere these tests are skipped.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{gridvfs, installed, is_root, run, shell, skipped};

/// Who submits the jobs; made if need be, as for other tests.
const USER: &str = "gridvfs-test";
/// How long a job may take before the test gives up.
const JOB_MAX: Duration = Duration::from_secs(60);

/// A Slurm whose user has sessions on a server that is reached over ssh.
struct Site {
    folder: PathBuf,
    _temporary: tempfile::TempDir,
}

impl Site {
    fn new(test: &str) -> Option<Self> {
        if !is_root() {
            skipped(test, "needs root (slurmd)");
            return None;
        }
        for program in
            ["slurmctld", "slurmd", "munged", "sshd", "fusermount3", "qemu-io", "python3"]
        {
            if !installed(program) {
                skipped(test, &format!("needs {program} (make test-slurm installs it)"));
                return None;
            }
        }
        if !Path::new("/dev/fuse").exists() {
            skipped(test, "needs /dev/fuse");
            return None;
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
        let temporary = tempfile::Builder::new().prefix("gridvfs-").tempdir().expect("folder");
        let folder = temporary.path().canonicalize().expect("folder");
        let site = Self { folder, _temporary: temporary };
        let project = env!("CARGO_MANIFEST_DIR");
        site.host(&format!(
            "chmod 755 . /dev/fuse; chmod 666 /dev/fuse
             mkdir -p export/golden/vm export/work home/.config/gridvfs/sessions bin
             cp -r {project}/packaging/slurm recipe
             ln -s {command} bin/gridvfs
             printf 'GRIDVFS_JOBS=%s\nGRIDVFS=%s\nGRIDVFS_END_SECONDS=3\nGRIDVFS_MOUNT_SECONDS=30\nGRIDVFS_LOG=%s\n' \
                 $PWD/jobs $PWD/bin/gridvfs $PWD/log >recipe/site.conf
             cd export/golden/vm
             truncate -s 16M disk.raw memory; printf 'QEVM\\0\\0\\0\\003 x-ignore-shared' >state
             cat >qemu.args <<'END'
qemu-system-x86_64 -name golden -m 16M -machine q35,memory-backend=m
-object memory-backend-file,id=m,size=16M,mem-path=memory,share=on
-drive file=disk.raw,format=raw,if=virtio
-incoming 'exec:cat state'
END",
            command = gridvfs(),
        ));
        site.session("golden", "golden", "consistency = \"read-only-shared\"");
        site.session(
            "work",
            "work",
            "write_policy = \"write-back\"\nwriteback_delay = 3600\nwriteback_age = 3600",
        );
        site.host(&format!("chown -R {USER} export home"));
        site.sshd("start");
        site.host(&format!(
            "{project}/tests/support/slurm.sh start slurm 3 PrologFlags=Alloc \
             Prolog=$PWD/recipe/prolog Epilog=$PWD/recipe/epilog TaskProlog=$PWD/recipe/task-prolog"
        ));
        // The user's home of the nodes: none of this is in the real one.
        site.inside("mount --bind home $(getent passwd gridvfs-test | cut -d: -f6)");
        Some(site)
    }

    /// A session file of the user's, for a directory of the export.
    fn session(&self, name: &str, directory: &str, more: &str) {
        let folder = self.folder.display();
        let text = format!(
            "source = \"gvhost:{folder}/export/{directory}\"\nssh_config = \"{folder}/sshd/ssh_config\"\n\
             gridvfs_command = \"{}\"\nstripes = 1\n{more}\n",
            gridvfs()
        );
        let file = self.folder.join(format!("home/.config/gridvfs/sessions/{name}.toml"));
        std::fs::write(file, text).expect("written");
    }

    fn host(&self, script: &str) -> String {
        shell(&self.folder, script)
    }

    fn sshd(&self, verb: &str) {
        let port = match std::fs::read_to_string(self.folder.join("sshd/port")) {
            Ok(port) if verb == "start" => format!("--port {}", port.trim()),
            _ => String::new(),
        };
        let user = if verb == "start" { format!("--user {USER}") } else { String::new() };
        let project = env!("CARGO_MANIFEST_DIR");
        self.host(&format!("{project}/tests/support/sshd.sh {verb} sshd {user} {port}"));
    }

    /// Runs a script where Slurm's commands find it, as root.
    fn inside(&self, script: &str) -> String {
        let mut command =
            Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/slurm.sh"));
        command.arg("exec").arg(self.folder.join("slurm")).args(["bash", "-euo", "pipefail", "-c"]);
        command.arg(format!("cd {}; {script}", self.folder.display()));
        String::from_utf8_lossy(&run(&mut command).stdout).trim().to_string()
    }

    /// Submits a job as the user. Returns its number.
    fn submit(&self, options: &str, job: &str) -> String {
        std::fs::write(
            self.folder.join("job.sh"),
            format!("#!/bin/bash\nset -eu\nPATH=$PATH:{}/bin\n{job}\n", self.folder.display()),
        )
        .expect("written");
        let output = "--output=home/%A-%a.out --no-requeue";
        let output = if options.contains("--requeue") { "--output=home/%A-%a.out" } else { output };
        self.inside(&format!(
            "chmod 644 job.sh; runuser -u {USER} -- sbatch --parsable {output} {options} job.sh 2>&1"
        ))
    }

    /// Waits until a job and its epilogs have ended.
    fn wait(&self, job: &str) {
        let until = Instant::now() + JOB_MAX;
        while !self.inside(&format!("squeue -h -j {job} -o %T")).is_empty() {
            assert!(Instant::now() < until, "job {job} does not end: {}", self.told(job));
            std::thread::sleep(Duration::from_millis(200));
        }
        self.idle();
    }

    fn idle(&self) {
        let until = Instant::now() + JOB_MAX;
        while self.inside("sinfo -h -t idle -o %D") != "3" {
            assert!(
                Instant::now() < until,
                "{}",
                self.inside("sinfo -R; sinfo; tail -n 20 slurm/*.log")
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What a job's user is told of it.
    fn told(&self, job: &str) -> String {
        self.inside(&format!("scontrol show job {job}; cat log home/*.out || true"))
    }

    fn on_server(&self, path: &str) -> String {
        std::fs::read_to_string(self.folder.join("export").join(path)).unwrap_or_default()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let support = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support");
        let _ = Command::new(support.join("slurm.sh"))
            .arg("stop")
            .arg(self.folder.join("slurm"))
            .status();
        let _ = Command::new(support.join("sshd.sh"))
            .arg("stop")
            .arg(self.folder.join("sshd"))
            .status();
    }
}

/// One Slurm for all: it takes seconds to start.
#[test]
fn jobs_have_their_sessions() {
    let Some(site) = Site::new("jobs_have_their_sessions") else { return };
    an_array_of_clones_is_written_back_by_epilogs(&site);
    a_job_without_its_session_is_held_and_says_why(&site);
    a_job_that_cannot_be_requeued_is_ended(&site);
    an_epilog_with_the_link_cut_keeps_the_data(&site);
    assert_eq!(site.host("ls -A jobs"), "", "something is left of the jobs");
}

fn an_array_of_clones_is_written_back_by_epilogs(site: &Site) {
    let job = site.submit(
        "--array=1-4 --comment gridvfs:golden,work",
        "clone=$GRIDVFS_DIR/work/clone-$SLURM_ARRAY_TASK_ID
         gridvfs clone \"$GRIDVFS_DIR/golden/vm\" \"$clone\" --memory copy
         qemu-io -c \"write -P $SLURM_ARRAY_TASK_ID 1M 64k\" \"$clone/disk-redo.qcow2\"
         gridvfs status work.$SLURM_JOB_ID >/dev/null
         echo $SLURMD_NODENAME >\"$clone/node\"",
    );
    site.wait(&job);
    let mut nodes: Vec<String> = Vec::new();
    for task in 1..=4 {
        let node = site.on_server(&format!("work/clone-{task}/node"));
        assert!(node.starts_with("gv"), "clone {task} is not on the server: {}", site.told(&job));
        nodes.push(node);
        site.host(&format!(
            "cd export/work/clone-{task}
             qemu-img rebase -u -b ../../golden/vm/disk.raw -F raw disk-redo.qcow2
             qemu-io -r -c 'read -P {task} 1M 64k' disk-redo.qcow2 | grep -q '^read 65536'"
        ));
    }
    nodes.sort();
    nodes.dedup();
    assert!(nodes.len() > 1, "all ran on {nodes:?}");
}

fn a_job_without_its_session_is_held_and_says_why(site: &Site) {
    site.session("late", "late", "");
    let job = site.submit(
        "--requeue --comment gridvfs:work,late",
        "ls $GRIDVFS_DIR/late >$GRIDVFS_DIR/work/late",
    );
    let until = Instant::now() + JOB_MAX;
    while !site.told(&job).contains("AdminComment=gridvfs:")
        || !site.told(&job).contains("JobState=PENDING")
    {
        assert!(Instant::now() < until, "{}", site.told(&job));
        std::thread::sleep(Duration::from_millis(200));
    }
    let told = site.told(&job);
    assert!(told.contains("session late cannot be mounted: Error: "), "{told}");
    assert!(told.contains("Reason=job_requeued_in_held_state"), "{told}");
    assert!(!site.folder.join("export/work/late").exists(), "the job has run");
    // The nodes are in service, nothing is mounted, and the job runs when the cause is mended.
    site.idle();
    site.host(&format!("mkdir export/late; touch export/late/here; chown -R {USER} export/late"));
    // Slurm itself waits for cred_expire before it runs a requeued job again; hurried, it would start
    // the job without its prolog.
    site.inside(&format!("scontrol release {job}"));
    site.wait(&job);
    assert_eq!(site.on_server("work/late"), "here\n", "{}", site.told(&job));
}

fn a_job_that_cannot_be_requeued_is_ended(site: &Site) {
    let job = site.submit("--comment gridvfs:none", "touch home/ran");
    site.wait(&job);
    let told = site.told(&job);
    assert!(told.contains("session none cannot be mounted: Error: none is no source"), "{told}");
    assert!(told.contains("JobState=CANCELLED"), "{told}");
    assert!(!site.folder.join("home/ran").exists(), "the job has run");
}

fn an_epilog_with_the_link_cut_keeps_the_data(site: &Site) {
    let job = site.submit(
        "--comment gridvfs:work",
        "echo kept >$GRIDVFS_DIR/work/kept; touch home/written
         until [[ -e home/go-on ]]; do sleep 0.1; done",
    );
    let until = Instant::now() + JOB_MAX;
    while !site.folder.join("home/written").exists() {
        assert!(Instant::now() < until, "{}", site.told(&job));
        std::thread::sleep(Duration::from_millis(100));
    }
    site.sshd("stop");
    site.host("touch home/go-on");
    site.wait(&job);
    let told = site.told(&job);
    assert!(
        told.contains("not all was sent in 3 s; unsent: 5 bytes, kept on this node in "),
        "{told}"
    );
    assert_eq!(site.on_server("work/kept"), "");
    site.sshd("start");
    let next = site.submit("--comment gridvfs:work", "cat $GRIDVFS_DIR/work/kept");
    site.wait(&next);
    assert_eq!(site.on_server("work/kept"), "kept\n", "{}", site.told(&next));
}
