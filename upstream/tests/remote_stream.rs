//! Files streamed over an `ssh` that runs its command here, and over some that fail.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use gridvfs_upstream::ConnectError;
use gridvfs_upstream::ssh::{Coding, RemoteStream, SshHost, SshSettings, StreamError};

const CODINGS: [Coding; 3] = [Coding::Zstd(3), Coding::Gzip(1), Coding::Plain];

/// A folder with a program that stands in for ssh: a script that has the remote command in $c.
struct Rig {
    folder: tempfile::TempDir,
    host: Arc<SshHost>,
}

fn rig(script: &str) -> Rig {
    let folder = tempfile::tempdir().expect("folder");
    let ssh = folder.path().join("fake-ssh");
    // By another process: a program that this one has open for writing, if only in a child that
    // another test has just forked, cannot be run.
    let text = format!("#!/bin/sh\nfor c; do :; done\n{script}\n");
    let write = "printf %s \"$1\" >\"$0\" && chmod 755 \"$0\"";
    let written = Command::new("sh").args(["-c", write]).arg(&ssh).arg(text).status();
    assert!(written.expect("sh").success());
    let host = SshHost::new(SshSettings {
        command: vec![ssh.to_string_lossy().into_owned()],
        destination: "host".into(),
        private_dir: folder.path().into(),
        may_prompt: false,
        on_message: Arc::new(|_| {}),
    });
    Rig { folder, host }
}

impl Rig {
    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    }

    async fn open(
        &self,
        path: &Path,
        coding: Coding,
        size: u64,
    ) -> Result<RemoteStream, StreamError> {
        RemoteStream::open(&self.host, path.as_os_str().as_bytes(), coding, size).await
    }

    async fn all(&self, path: &Path, coding: Coding, size: u64) -> Result<Vec<u8>, StreamError> {
        let mut stream = self.open(path, coding, size).await?;
        let mut all = Vec::new();
        let reading = async {
            while let Some(piece) = stream.next().await? {
                assert!(!piece.is_empty());
                all.extend_from_slice(&piece);
                assert!(all.len() as u64 <= size, "more than the file");
            }
            // The end stays the end.
            assert_eq!(stream.next().await?, None);
            Ok::<_, StreamError>(())
        };
        tokio::time::timeout(Duration::from_secs(60), reading).await.expect("ends")?;
        Ok(all)
    }
}

/// Some of it can be compressed.
fn content(length: usize) -> Vec<u8> {
    let mut random = 0x9E37_79B9u32;
    let mut noise = move || {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random as u8
    };
    (0..length).map(|at| if at / 50_000 % 3 == 0 { noise() } else { (at / 50_000) as u8 }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_arrives_whatever_it_is_called_and_the_shell_says() {
    let rig = rig("echo Welcome; echo; exec sh -c \"$c\"");
    for (name, length) in
        [("empty", 0), ("one", 1), ("it's \n a $(file)\n", 700_001), ("even", 1 << 20)]
    {
        let content = content(length);
        let path = rig.file(name, &content);
        for coding in CODINGS {
            let all = rig.all(&path, coding, length as u64).await.expect("arrives");
            assert!(all == content, "{name} by {coding:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_host_lacks_is_told_apart() {
    let rig = rig("PATH=$(dirname \"$0\"); exec /bin/sh -c \"$c\"");
    let path = rig.file("f", b"content");
    for coding in CODINGS {
        let error = rig.open(&path, coding, 7).await.err();
        let (program, host) = (coding.program(), "host".into());
        assert_eq!(error, Some(StreamError::Missing { program, host }));
    }

    let rig = self::rig("exec sh -c \"$c\"");
    for path in [rig.folder.path().join("nothing"), rig.folder.path().into()] {
        let error = rig.open(&path, Coding::Plain, 7).await.err();
        let told =
            matches!(&error, Some(StreamError::Failed { why, .. }) if why.contains("regular"));
        assert!(told, "{error:?}");
    }
    for path in [&b""[..], b"/a\0b"] {
        let error = RemoteStream::open(&rig.host, path, Coding::Plain, 7).await.err();
        assert!(matches!(error, Some(StreamError::Path(_))), "{error:?}");
    }

    let rig = self::rig("echo 'ssh: Could not resolve hostname host' >&2; exit 255");
    let error = rig.open(Path::new("/f"), Coding::Plain, 7).await.err();
    assert!(matches!(error, Some(StreamError::Connect(ConnectError::Fatal(_)))), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_stream_is_no_file() {
    // The link breaks in the middle of what the host sends.
    let rig = rig("sh -c \"$c\" | head -c 100000; echo broken pipe >&2; exit 255");
    let path = rig.file("f", &content(2_000_000));
    for coding in CODINGS {
        let error = rig.all(&path, coding, 2_000_000).await.expect_err("cut");
        let told = |why: &str| why.contains("broken pipe");
        assert!(
            matches!(&error, StreamError::Cut { arrived, why, .. } if told(why) && *arrived < 2_000_000),
            "{coding:?}: {error:?}"
        );
    }
    // The file is shorter than it was said to be, or grows while it is read.
    let rig = self::rig("exec sh -c \"$c\"");
    let path = rig.file("f", &content(500_000));
    for coding in CODINGS {
        let short = rig.all(&path, coding, 500_001).await.expect_err("shorter");
        assert!(matches!(short, StreamError::Cut { arrived: 500_000, .. }), "{short:?}");
        let long = rig.all(&path, coding, 499_999).await.expect_err("longer");
        assert!(matches!(long, StreamError::TooLong { expected: 499_999, .. }), "{long:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_fails_at_last_has_failed() {
    let rig = rig("sh -c \"$c\"; echo 'zstd: read error' >&2; exit 1");
    let path = rig.file("f", &content(300_000));
    for coding in CODINGS {
        let error = rig.all(&path, coding, 300_000).await.expect_err("failed");
        let told = matches!(&error, StreamError::Failed { why, .. } if why == "zstd: read error");
        assert!(told, "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_told() {
    // All but the mark is turned upside down.
    let rig = rig("sh -c \"$c\" | { head -n 1; tr '\\000-\\377' '\\001-\\377\\000'; }");
    let path = rig.file("f", &content(300_000));
    for coding in [Coding::Zstd(3), Coding::Gzip(1)] {
        let error = rig.all(&path, coding, 300_000).await.expect_err("garbage");
        assert!(matches!(error, StreamError::Garbled { .. }), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_goes_off_in_pieces() {
    // A file of 1,000 bytes of which 4 GiB of zeros come.
    let zeros = "c=$(printf %s \"$c\" | sed 's#exec \"$@\"#head -c 4G /dev/zero | \"$@\"#')";
    let rig = rig(&format!("{zeros}; exec sh -c \"$c\""));
    let path = rig.file("f", &[7; 1000]);
    for coding in CODINGS {
        let error = rig.all(&path, coding, 1000).await.expect_err("a bomb");
        assert!(matches!(error, StreamError::TooLong { expected: 1000, .. }), "{error:?}");
    }
    // SAFETY: the structure is plain data, and filled by the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    assert!(usage.ru_maxrss < 512 << 10, "{} KiB", usage.ru_maxrss);
}

/// Waits until a condition holds.
async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..4000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what}: not within 20 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_reads_on_when_nobody_takes_it_and_the_host_stops_when_it_is_dropped() {
    // It notes its own process.
    let rig = rig("echo $$ >\"$(dirname \"$0\")/pid\"; exec sh -c \"$c\"");
    let size = 64 << 20;
    let path = rig.folder.path().join("f");
    std::fs::File::create(&path).expect("made").set_len(size).expect("grown");
    let mut stream = rig.open(&path, Coding::Plain, size).await.expect("opens");
    assert!(stream.next().await.expect("a piece").is_some());
    let pid: u32 = std::fs::read_to_string(rig.folder.path().join("pid"))
        .expect("noted")
        .trim()
        .parse()
        .expect("a number");
    // exec all the way: the same process is `cat` now. It has read what fits in between and no more.
    let position = || {
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/0")).unwrap_or_default();
        let line = info.lines().find_map(|line| line.strip_prefix("pos:"));
        line.and_then(|at| at.trim().parse::<u64>().ok())
    };
    assert!(position().is_some_and(|at| at < size / 2), "{:?}", position());
    drop(stream);
    until("ssh ends", || !Path::new(&format!("/proc/{pid}")).exists()).await;
}
