//! Tries to get in: at the session's daemon behind ssh, at a unix socket, over TCP. Every try that
//! should fail is counted, and so is every one that does not; a client with a good key goes on
//! beside them. docs/security.md says what is tried.

#[path = "../common/mod.rs"]
mod common;

mod identities;
mod session;
mod standing;
mod tries;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::proxies::{Proxy, new_key};
use common::{Rig, Way, gridvfs, is_root, run, shell, skipped};
use gridvfs_vfs::nfs3::mount::{self, DirPath};
use gridvfs_vfs::nfs3::{self, DirOpArgs, Name, ReadArgs};
use gridvfs_vfs::rpc::{AuthSys, CallHeader, OpaqueAuth, Refusal, ReplyHeader, record_mark};
use gridvfs_vfs::xdr::{Decoder, Encoder, Xdr};
use gridvfs_vfs::{Attr, Caller, Entry, FileHandle, SetAttr, ext};

/// Tries, and those that got in.
#[derive(Default)]
struct Count {
    tries: AtomicU64,
    admissions: AtomicU64,
}

impl Count {
    fn note(&self, admitted: bool, what: &str) {
        self.tries.fetch_add(1, Ordering::Relaxed);
        if admitted {
            self.admissions.fetch_add(1, Ordering::Relaxed);
            println!("ADMITTED: {what}");
        }
    }

    fn is(&self, least: u64) {
        let tries = self.tries.load(Ordering::Relaxed);
        let admissions = self.admissions.load(Ordering::Relaxed);
        println!("{tries} tries, {admissions} admissions");
        assert_eq!(admissions, 0, "of {tries} tries");
        assert!(tries >= least, "only {tries} tries of {least}");
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A channel to a proxy, spoken by hand.
struct Channel(Box<dyn Stream>);

static XID: AtomicU32 = AtomicU32::new(1);

const ROOT: Caller = Caller { uid: 0, gid: 0, groups: Vec::new() };

/// What became of a call.
#[derive(Debug)]
enum Outcome {
    /// It was run: the status, and what follows.
    Ran(u32, Decoder),
    Refused(Refusal),
    /// The channel was closed, or nothing came.
    Silence,
}

impl Outcome {
    fn is_ok(&self) -> bool {
        matches!(self, Self::Ran(0, _))
    }

    fn status(&self) -> Option<u32> {
        match self {
            Self::Ran(status, _) => Some(*status),
            _ => None,
        }
    }
}

impl Channel {
    fn tcp(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        Self(Box::new(stream))
    }

    fn unix(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        Self(Box::new(stream))
    }

    fn send(&mut self, record: &[u8]) -> bool {
        let whole = [&record_mark(record.len())[..], record].concat();
        self.0.write_all(&whole).is_ok()
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut mark = [0; 4];
        self.0.read_exact(&mut mark).ok()?;
        let mut record = vec![0; (u32::from_be_bytes(mark) & 0x7FFF_FFFF) as usize];
        self.0.read_exact(&mut record).ok()?;
        Some(record)
    }

    fn call(
        &mut self,
        credential: OpaqueAuth,
        (program, version, procedure): (u32, u32, u32),
        arguments: &impl Xdr,
    ) -> Outcome {
        let xid = XID.fetch_add(1, Ordering::Relaxed);
        let mut encoder = Encoder::new();
        CallHeader::new(xid, program, version, procedure, credential).encode(&mut encoder);
        arguments.encode(&mut encoder);
        if !self.send(&encoder.into_vec()) {
            return Outcome::Silence;
        }
        let Some(record) = self.receive() else { return Outcome::Silence };
        let mut decoder = Decoder::new(record.into());
        let header = ReplyHeader::decode(&mut decoder).expect("a reply");
        assert_eq!(header.xid, xid);
        match header.outcome {
            Ok(()) if decoder.remaining() == 0 => Outcome::Ran(0, decoder),
            Ok(()) => Outcome::Ran(decoder.u32().expect("a status"), decoder),
            Err(refusal) => Outcome::Refused(refusal),
        }
    }

    fn nfs(&mut self, key: &str, procedure: u32, arguments: &impl Xdr) -> Outcome {
        self.call(credential(key, &ROOT), (nfs3::PROGRAM, nfs3::VERSION, procedure), arguments)
    }

    fn mount(&mut self, key: &str, path: &str) -> Result<FileHandle, u32> {
        let program = (mount::PROGRAM, mount::VERSION, mount::MNT);
        let path = DirPath(path.as_bytes().to_vec().into());
        match self.call(credential(key, &ROOT), program, &path) {
            Outcome::Ran(0, mut rest) => Ok(FileHandle::decode(&mut rest).expect("a handle")),
            Outcome::Ran(status, _) => Err(status),
            other => panic!("{path:?}: {other:?}"),
        }
    }

    fn lookup(&mut self, key: &str, dir: &FileHandle, name: &str) -> Option<FileHandle> {
        match self.nfs(key, nfs3::LOOKUP, &at(dir, name)) {
            Outcome::Ran(0, mut rest) => Some(Entry::decode(&mut rest).expect("an entry").handle),
            _ => None,
        }
    }
}

fn credential(key: &str, caller: &Caller) -> OpaqueAuth {
    AuthSys::of(caller, key.as_bytes().to_vec().into(), 1).to_opaque()
}

fn at(dir: &FileHandle, name: &str) -> DirOpArgs {
    DirOpArgs { dir: *dir, name: Name(name.as_bytes().to_vec().into()) }
}

fn random() -> u64 {
    static STATE: AtomicU64 = AtomicU64::new(0x9E37_79B9_7F4A_7C15);
    let next = |mut state: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        Some(state ^ (state << 17))
    };
    STATE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).expect("always")
}

fn random_key() -> String {
    format!("{:016x}{:016x}", random(), random())
}

/// Keys that are none: missing, short, long, of another case, one bit off, at random.
fn wrong_keys(good: &str, count: usize) -> Vec<String> {
    let mut keys: Vec<String> = ["", "localhost", "0", &good[..31]].map(String::from).to_vec();
    keys.push(format!("{good}0"));
    keys.push(format!("{good}\0"));
    keys.push(good.to_uppercase());
    keys.retain(|key| key != good);
    for place in 0..good.len() {
        let mut near = good.as_bytes().to_vec();
        near[place] = if near[place] == b'0' { b'1' } else { b'0' };
        if near != good.as_bytes() {
            keys.push(String::from_utf8(near).expect("ascii"));
        }
    }
    keys.extend((keys.len()..count).map(|_| random_key()));
    keys
}

/// A session's daemon, whose first channel is a socket pair, as over ssh.
struct Session {
    child: Child,
    channel: Channel,
    name: String,
    key: String,
    root: FileHandle,
}

impl Session {
    fn start(rig: &Rig, words: &[&str]) -> Self {
        Self::start_over_ssh(rig, words, "")
    }

    /// The same where sshd says what the client asked for.
    fn start_over_ssh(rig: &Rig, words: &[&str], asked: &str) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let mut command = rig.command(gridvfs());
        command.args(words).env("XDG_RUNTIME_DIR", rig.folder.join("run"));
        command.env("SSH_ORIGINAL_COMMAND", asked);
        let output: OwnedFd = theirs.try_clone().expect("a copy").into();
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::from(output));
        let child = command.spawn().expect("starts");
        drop(command);
        ours.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        let mut line = String::new();
        BufReader::with_capacity(1, &ours).read_line(&mut line).expect("a greeting");
        let json = line.trim().strip_prefix("GRIDVFS1 ").expect("a greeting");
        let json: serde_json::Value = serde_json::from_str(json).expect("JSON");
        let text = |key: &str| json[key].as_str().unwrap_or_default().to_string();
        let bytes = |hex: String| -> Vec<u8> {
            let pairs = (0..hex.len()).step_by(2);
            pairs.map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
        };
        Self {
            child,
            channel: Channel(Box::new(ours)),
            name: text("session"),
            key: text("key"),
            root: FileHandle::new(&bytes(text("root"))).expect("a handle"),
        }
    }

    fn stdio(rig: &Rig) -> Self {
        let export = format!("--export={}", rig.export.display());
        Self::start(rig, &["proxy", "stdio", &export, "--linger=2"])
    }

    fn attach(&self, rig: &Rig) -> Self {
        Self::start(rig, &["proxy", "attach", &self.name])
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn rig(test: &str) -> Option<Rig> {
    let rig = Rig::new(test, Way::Local)?;
    shell(
        &rig.folder,
        "mkdir -m 700 run; mkdir export/sub other; echo secret >secret; echo other >other/file; \
         echo inside >export/sub/file; ln -s ../secret export/out; ln -s / export/top; \
         ln -s .. export/sub/up",
    );
    Some(rig)
}
