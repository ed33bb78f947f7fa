//! What POSIX promises, on every way to reach a server.

mod common;

use common::policies::{self, Policy};
use common::{Rig, Way, installed, skipped};

/// Checks that need nothing but system calls, as a Python program run in the mount.
const CHECKS: &str = include_str!("support/posix.py");

#[test]
fn system_calls_answer_as_the_kernel_does() {
    if !installed("python3") {
        return skipped("system_calls_answer_as_the_kernel_does", "needs python3");
    }
    policies::each(&policies::ALL, |case| {
        let (test, way) = ("system_calls_answer_as_the_kernel_does", case.way);
        let mut options = case.options();
        options.extend(common::is_root().then(|| "allow_other".into()));
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let Some(rig) = Rig::mounted_with(test, way, &options) else { return };
        let script = rig.folder.join("posix.py");
        std::fs::write(&script, CHECKS).expect("script");
        let own = if matches!(way, Way::Local | Way::Ssh) { "own" } else { "foreign" };
        let command = format!("python3 {} {own}", script.display());
        println!("{case:?}:\n{}", rig.shell(&command));
    });
}

#[test]
fn a_large_directory_is_listed_once_and_whole() {
    const FILES: usize = 40_000;
    policies::each(&policies::ROTATED, |case| {
        let (test, way) = ("a_large_directory_is_listed_once_and_whole", case.way);
        let Some(rig) = Rig::mounted_under(test, case) else { return };
        // Made on the server's side, where it is quick. A part is changed while it is listed: by
        // somebody else on the server, or through the mount itself where that has the files for
        // itself, or where the server is NFS-Ganesha, which keeps listings in memory and is not made
        // for changes beside it.
        common::shell(
            &rig.export,
            &format!(
                "mkdir big && cd big && seq -f 'stays-%06g' {FILES} | xargs touch
                      seq -f 'goes-%04g' 2000 | xargs touch"
            ),
        );
        let listing = rig.mountpoint.join("big");
        let changer = std::thread::spawn({
            let alone = way.needs_ganesha() || case.policy.trusts();
            let side = if alone { &rig.mountpoint } else { &rig.export };
            let big = side.join("big");
            move || {
                for number in 1..=2000 {
                    let _ = std::fs::remove_file(big.join(format!("goes-{number:04}")));
                    let _ = std::fs::write(big.join(format!("comes-{number:04}")), b"");
                }
            }
        });
        for _ in 0..2 {
            let mut seen = std::collections::HashMap::<String, usize>::new();
            for entry in std::fs::read_dir(&listing).expect("opendir") {
                let name = entry
                    .unwrap_or_else(|error| panic!("{case:?}: readdir: {error}"))
                    .file_name()
                    .into_string()
                    .expect("ascii");
                *seen.entry(name).or_default() += 1;
            }
            let twice = seen.iter().find(|(_, count)| **count > 1);
            assert_eq!(twice, None, "{case:?}: listed twice");
            let stays = seen.keys().filter(|name| name.starts_with("stays-")).count();
            assert_eq!(stays, FILES, "{case:?}: listed");
        }
        changer.join().expect("changer");
    });
}

#[test]
fn changes_of_others_are_seen() {
    policies::each(&policies::SHARED, |case| {
        let Some(rig) = Rig::mounted_under("changes_of_others_are_seen", case) else { return };
        let (here, there) = (rig.mountpoint.join("f"), rig.export.join("f"));
        std::fs::write(&there, b"one").expect("write there");
        assert_eq!(std::fs::read(&here).expect("read"), b"one");
        // Same size, so that only times tell; twice, since the first may be in the same tick.
        for text in [b"two", b"six"] {
            std::thread::sleep(std::time::Duration::from_millis(1100));
            std::fs::write(&there, text).expect("write there");
            std::thread::sleep(std::time::Duration::from_millis(1100));
            assert_eq!(std::fs::read(&here).expect("read"), text, "{case:?}");
        }
        std::fs::write(&here, b"mine, longer").expect("write here");
        if case.policy == Policy::BackShared {
            rig.write_back();
        }
        assert_eq!(std::fs::read(&there).expect("read there"), b"mine, longer", "{case:?}: closed");
        std::fs::remove_file(&there).expect("remove there");
        std::thread::sleep(std::time::Duration::from_millis(1100));
        assert!(!here.exists(), "{case:?}: removed there");
    });
}

#[test]
fn replaced_and_removed_files_work_until_closed() {
    if !installed("python3") {
        return skipped("replaced_and_removed_files_work_until_closed", "needs python3");
    }
    policies::each(&policies::ALL, |case| {
        let test = "replaced_and_removed_files_work_until_closed";
        let Some(mut rig) = Rig::mounted_under(test, case) else { return };
        rig.shell(
            "python3 - <<'P'
import os
def fresh(name, data):
    fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o644); os.write(fd, data); return fd
fd = fresh('gone', b'x' * 100000)
os.unlink('gone')
assert os.fstat(fd).st_nlink == 0, os.fstat(fd)
assert os.pread(fd, 10, 99990) == b'x' * 10
os.pwrite(fd, b'later', 100000); os.fsync(fd)
assert os.pread(fd, 100, 100000) == b'later'
assert os.listdir('.') == [], os.listdir('.')
os.close(fd)
fd = fresh('target', b'old'); open('source', 'wb').write(b'new'); os.rename('source', 'target')
assert os.pread(fd, 9, 0) == b'old' and open('target', 'rb').read() == b'new'
assert os.listdir('.') == ['target']
os.ftruncate(fd, 1); assert os.fstat(fd).st_size == 1
os.close(fd); os.unlink('target')
os.mkdir('d'); fd = fresh('d/f', b'inside'); os.unlink('d/f'); os.rmdir('d')
assert os.pread(fd, 9, 0) == b'inside'; os.close(fd)
fd = fresh('two', b'links'); os.link('two', 'other'); os.unlink('two')
assert os.fstat(fd).st_nlink == 1, os.fstat(fd); os.close(fd); os.unlink('other')
P",
        );
        rig.umount();
        let left = common::shell(&rig.export, "find . -mindepth 1");
        assert_eq!(left, "", "{case:?}: left behind");
    });
}
