//! Tries to get in: at the session's daemon behind ssh, at a unix socket, over TCP. Every try that
//! should fail is counted, and so is every one that does not; a client with a good key goes on
//! beside them. docs/security.md says what is tried.

mod common;

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

#[test]
fn a_session_is_closed_to_who_has_not_its_key() {
    let Some(rig) = rig("a_session_is_closed_to_who_has_not_its_key") else { return };
    let count = Count::default();
    let before = Session::stdio(&rig);
    let mut session = Session::stdio(&rig);
    let mut further = session.attach(&rig);
    assert_eq!(further.key, "", "only the first channel is told the key");
    let good = session.key.clone();
    let mut keys = wrong_keys(&good, 1000);
    keys.push(before.key.clone());
    drop(before);
    for key in &keys {
        for procedure in [nfs3::GETATTR, nfs3::REMOVE] {
            let outcome = further.channel.nfs(key, procedure, &at(&session.root, "sub"));
            count.note(!matches!(outcome, Outcome::Refused(Refusal::AuthError(_))), "a wrong key");
        }
    }
    for flavor in [0, 2, 6, 390_003] {
        let credential = OpaqueAuth { flavor, body: good.as_bytes().to_vec().into() };
        let program = (nfs3::PROGRAM, nfs3::VERSION, nfs3::GETATTR);
        let outcome = further.channel.call(credential, program, &session.root);
        count.note(!matches!(outcome, Outcome::Refused(Refusal::AuthError(_))), "another flavour");
    }
    // MOUNT and the extension are no side doors.
    for program in [(mount::PROGRAM, 3, mount::MNT), (ext::PROGRAM, 1, ext::HOPS), (1, 1, 1)] {
        let path = DirPath(rig.export.display().to_string().into_bytes().into());
        let outcome = further.channel.call(credential("", &ROOT), program, &path);
        count.note(!matches!(outcome, Outcome::Refused(Refusal::AuthError(_))), "a side door");
    }
    // With the key, on the same channel.
    assert!(further.channel.nfs(&good, nfs3::GETATTR, &session.root).is_ok());
    // Sessions of other names are none.
    for name in ["", "0", "../x", "ffffffffffffffff", &good] {
        let other = Session::start(&rig, &["proxy", "attach", name]);
        count.note(other.name == session.name, "another name");
    }
    climb(&mut session.channel, &good, &session.root, &count);
    forge(&mut session.channel, &good, &session.root, &count, 1500);
    count.is(3500);
    assert!(session.channel.nfs(&good, nfs3::GETATTR, &session.root).is_ok());
}

/// Ways out of the export, with a good key.
fn climb(channel: &mut Channel, key: &str, root: &FileHandle, count: &Count) {
    let own = |channel: &mut Channel, dir: &FileHandle| -> Vec<u64> {
        let mut ids = Vec::new();
        for handle in [*dir].iter().chain(root_and_sub(channel, key, root).iter()) {
            if let Outcome::Ran(0, mut rest) = channel.nfs(key, nfs3::GETATTR, handle) {
                ids.push(Attr::decode(&mut rest).expect("attributes").fileid);
            }
        }
        ids
    };
    let known = own(channel, root);
    let sub = channel.lookup(key, root, "sub").expect("there");
    let links: Vec<FileHandle> = [(root, "out"), (root, "top"), (&sub, "up")]
        .map(|(dir, name)| channel.lookup(key, dir, name).expect("a link"))
        .to_vec();
    let names = [
        "..",
        "../secret",
        "../../etc/passwd",
        "/etc/passwd",
        "sub/..",
        "sub/../../secret",
        "out",
        "./../secret",
        "sub/up",
        "..\0",
        "out/",
        "top/etc/passwd",
        "",
        "/",
        "....//secret",
    ];
    for dir in [root, &sub].into_iter().chain(&links) {
        for name in names {
            let found = channel.lookup(key, dir, name);
            let outside =
                found.is_some_and(|handle| match channel.nfs(key, nfs3::GETATTR, &handle) {
                    Outcome::Ran(0, mut rest) => {
                        let attr = Attr::decode(&mut rest).expect("attributes");
                        let link = attr.kind == gridvfs_vfs::FileKind::Symlink;
                        !known.contains(&attr.fileid) && !link
                    }
                    _ => false,
                });
            count.note(outside, &format!("{name:?} leads out"));
            let made = channel.nfs(key, nfs3::MKDIR, &mkdir(dir, &format!("{name}/x"))).is_ok();
            count.note(made, &format!("{name:?}/x is made"));
        }
    }
    for link in &links {
        // A link is no file and no directory here: it is for its reader to follow.
        let read = ReadArgs { file: *link, offset: 0, count: 10 };
        count.note(channel.nfs(key, nfs3::READ, &read).is_ok(), "reading through a link");
    }
    for path in ["/..", "/../", "/sub/../..", "/out", "/top", "/top/etc", "/sub/up"] {
        for front in ["", "/vms"] {
            let mounted = channel.mount(key, &format!("{front}{path}"));
            count.note(mounted.is_ok(), &format!("{front}{path} is mounted"));
        }
    }
}

fn mkdir(dir: &FileHandle, name: &str) -> nfs3::MkdirArgs {
    nfs3::MkdirArgs { at: at(dir, name), attr: SetAttr::default() }
}

fn root_and_sub(channel: &mut Channel, key: &str, root: &FileHandle) -> Vec<FileHandle> {
    let sub = channel.lookup(key, root, "sub").expect("there");
    let file = channel.lookup(key, &sub, "file").expect("there");
    vec![*root, sub, file]
}

/// Handles that were not given out, with a good key.
fn forge(channel: &mut Channel, key: &str, root: &FileHandle, count: &Count, least: usize) {
    let real = root.as_bytes();
    let mut forged: Vec<Vec<u8>> = Vec::new();
    for place in 0..real.len() {
        for bit in [1, 16, 128] {
            let mut other = real.to_vec();
            other[place] ^= bit;
            forged.push(other);
        }
    }
    forged.extend((0..real.len()).map(|length| real[..length].to_vec()));
    forged.push([real, b"x"].concat());
    while forged.len() < least {
        let length = (random() % 65) as usize;
        let mut bytes: Vec<u8> = (0..length).map(|_| random() as u8).collect();
        if random().is_multiple_of(2) {
            // As long as a real one, and like it in front.
            bytes = real.to_vec();
            let from = 1 + (random() as usize) % (real.len() - 1);
            bytes[from..].iter_mut().for_each(|byte| *byte = random() as u8);
        }
        forged.push(bytes);
    }
    for bytes in forged.into_iter().filter(|bytes| bytes != real) {
        let handle = FileHandle::new(&bytes).expect("short enough");
        let outcome = match random() % 3 {
            0 => channel.nfs(key, nfs3::GETATTR, &handle),
            1 => channel.nfs(key, nfs3::LOOKUP, &at(&handle, "sub")),
            _ => channel.nfs(key, nfs3::READ, &ReadArgs { file: handle, offset: 0, count: 9 }),
        };
        assert!(!matches!(outcome, Outcome::Silence), "it lives");
        count.note(outcome.is_ok(), "a forged handle");
    }
}

struct Standing {
    proxy: Proxy,
    keys: [String; 3],
}

impl Standing {
    /// Two exports; alice and carol may have one, bob the other.
    fn start(rig: &Rig) -> Self {
        let folder = rig.folder.join("proxy");
        std::fs::create_dir(&folder).expect("folder");
        let keys = ["alice", "bob", "carol"].map(|name| {
            let text = std::fs::read_to_string(new_key(&folder, name)).expect("a key");
            text.trim().to_string()
        });
        let proxy = Proxy::start(
            &folder,
            &format!(
                "listen = [\"127.0.0.1:0\", \"unix:@/socket\"]\nkey_file = \"@/keys\"\n\
                 [export.vms]\nsource = \"{}\"\ncache = \"on\"\ncache_size = \"64M\"\n\
                 cache_banks = 4\n[export.other]\nsource = \"{}\"\n\
                 [key.alice]\nexports = [\"vms\"]\n[key.carol]\nexports = [\"vms\"]\n\
                 [key.bob]\nexports = [\"other\"]\n",
                rig.export.display(),
                rig.folder.join("other").display(),
            ),
        );
        Self { proxy, keys }
    }

    fn socket(&self) -> PathBuf {
        self.proxy.folder.join("socket")
    }
}

#[test]
fn a_standing_proxy_lets_nobody_in_or_out() {
    let Some(rig) = rig("a_standing_proxy_lets_nobody_in_or_out") else { return };
    let count = Count::default();
    let standing = Standing::start(&rig);
    let [alice, bob, carol] = &standing.keys;
    let address = standing.proxy.address(0).to_string();
    let mut good = Channel::unix(&standing.socket());
    let root = good.mount(alice, "/vms").expect("mounts");
    let mut of_bob = Channel::tcp(&address);
    let root_of_bob = of_bob.mount(bob, "/other").expect("mounts");
    let file_of_bob = of_bob.lookup(bob, &root_of_bob, "file").expect("there");
    // What is somebody else's: by its path, and by its handle.
    for path in ["/other", "/other/", "/", "/vms/../other", "//other", "/vmsx", "other"] {
        let mounted = good.mount(alice, path);
        count.note(mounted.is_ok_and(|found| found != root), &format!("{path} is mounted"));
    }
    for handle in [root_of_bob, file_of_bob] {
        let read = ReadArgs { file: handle, offset: 0, count: 10 };
        for procedure in 1..=21 {
            let outcome = good.nfs(alice, procedure, &read);
            count.note(outcome.is_ok(), &format!("procedure {procedure} on another's handle"));
        }
        let rename = nfs3::RenameArgs { from: at(&root, "sub"), to: at(&handle, "stolen") };
        count.note(good.nfs(alice, nfs3::RENAME, &rename).is_ok(), "renaming into another export");
        let sub = root_and_sub(&mut good, alice, &root)[2];
        let link = nfs3::LinkArgs { file: sub, at: at(&handle, "linked") };
        count.note(good.nfs(alice, nfs3::LINK, &link).is_ok(), "linking into another export");
    }
    climb(&mut good, alice, &root, &count);
    forge(&mut good, alice, &root, &count, 2000);
    // The export's own handle, as the proxy itself knows it, is none for clients.
    let inner = FileHandle::new(&root.as_bytes()[1..root.as_bytes().len() - 8]).expect("short");
    count.note(good.nfs(alice, nfs3::GETATTR, &inner).is_ok(), "the handle behind the seal");
    // Revoked, on a channel that was let in before, and on a new one.
    let mut of_carol = Channel::tcp(&address);
    assert!(of_carol.nfs(carol, nfs3::GETATTR, &root).is_ok());
    let keys = standing.proxy.folder.join("keys");
    run(Command::new(gridvfs()).args(["proxy", "key", "revoke", "carol", "--file"]).arg(&keys));
    let begun = Instant::now();
    while of_carol.nfs(carol, nfs3::GETATTR, &root).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the key is not revoked");
        std::thread::sleep(Duration::from_millis(50));
    }
    for _ in 0..10 {
        count.note(of_carol.nfs(carol, nfs3::GETATTR, &root).is_ok(), "a revoked key");
        let outcome = Channel::tcp(&address).nfs(carol, nfs3::GETATTR, &root);
        count.note(outcome.is_ok(), "a revoked key on a new channel");
    }
    // Records that say they are larger than anything, of pieces without end, or of garbage.
    for mark in [u32::MAX, 0x7FFF_FFFF, 0x8000_0000 | (64 << 20), 0x8020_0000, 0, 0x8000_0000] {
        for _ in 0..20 {
            let mut channel = TcpStream::connect(&address).expect("connects");
            channel.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            let _ = channel.write_all(&mark.to_be_bytes());
            let junk: Vec<u8> = (0..4096).map(|_| random() as u8).collect();
            let _ = channel.write_all(&junk);
            let _ = channel.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = channel.read_to_end(&mut answer);
            count.note(!answer.is_empty(), &format!("a record of {mark:#x}"));
        }
    }
    let memory = std::fs::read_to_string(format!("/proc/{}/status", standing.proxy.pid()));
    let memory = memory.expect("it lives");
    let resident = memory.lines().find(|line| line.starts_with("VmRSS")).expect("its memory");
    let kib: u64 = resident.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("KiB");
    assert!(kib < 400 << 10, "{resident}");
    assert!(good.nfs(alice, nfs3::GETATTR, &root).is_ok(), "a good client goes on");
    count.is(2300);
}

#[test]
fn guessing_at_speed_is_slowed_and_slows_nobody() {
    let Some(rig) = rig("guessing_at_speed_is_slowed_and_slows_nobody") else { return };
    let count = Count::default();
    let standing = Standing::start(&rig);
    let [alice, ..] = &standing.keys;
    let address = standing.proxy.address(0).to_string();
    let mut good = Channel::tcp(&address);
    let root = good.mount(alice, "/vms").expect("mounts");
    let (over, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut calls = 0u32;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for key in wrong_keys(alice, 700) {
                    let Ok(stream) = TcpStream::connect(&address) else { continue };
                    // An answer that is waited for is not worth its time to who guesses at speed.
                    let patience = Some(Duration::from_millis(20));
                    stream.set_read_timeout(patience).expect("a timeout");
                    let outcome = Channel(Box::new(stream)).nfs(&key, nfs3::GETATTR, &root);
                    let refused = matches!(outcome, Outcome::Refused(_));
                    answered.fetch_add(u64::from(refused), Ordering::Relaxed);
                    count.note(!refused && !matches!(outcome, Outcome::Silence), "a guess");
                }
                over.store(true, Ordering::Relaxed);
            });
        }
        // From the same address, all the while, also on new channels.
        while !over.load(Ordering::Relaxed) {
            assert!(good.nfs(alice, nfs3::GETATTR, &root).is_ok(), "a good client goes on");
            calls += 1;
            if calls.is_multiple_of(20) {
                let mut new = Channel::tcp(&address);
                assert!(new.nfs(alice, nfs3::GETATTR, &root).is_ok(), "and a new one comes in");
            }
        }
    });
    let answered = answered.load(Ordering::Relaxed);
    assert!(answered <= 16 + 60, "{answered} of the guesses were answered");
    assert!(calls >= 100, "only {calls} calls beside it");
    assert!(standing.proxy.log().contains("calls without a good key"), "it is logged");
    count.is(2800);
}

#[test]
fn other_users_cannot_come_to_a_socket() {
    let test = "other_users_cannot_come_to_a_socket";
    if !is_root() || !common::installed("python3") {
        return skipped(test, "needs root (to be another user), and python3");
    }
    let Some(rig) = rig(test) else { return };
    let count = Count::default();
    let standing = Standing::start(&rig);
    let session = Session::stdio(&rig);
    let of_session = rig.folder.join(format!("run/gridvfs/proxy-{}.sock", session.name));
    assert!(of_session.exists(), "{}", of_session.display());
    let mut sockets = vec![standing.socket(), of_session.clone()];
    // Even where the directory would let him.
    shell(&rig.folder, "chmod 755 . proxy run run/gridvfs");
    sockets.push(PathBuf::from(format!("{}/proxy/keys", rig.folder.display())));
    let script = "import os,socket,sys\nos.setgid(61184); os.setuid(61184)\ngood=0\n\
                  for path in sys.argv[1:]:\n  for n in range(100):\n    try:\n      \
                  s=socket.socket(socket.AF_UNIX); s.connect(path); good+=1\n    \
                  except OSError: pass\n    try: open(path); good+=1\n    \
                  except OSError: pass\nprint(good)";
    let output = run(Command::new("python3").args(["-c", script]).args(&sockets));
    let good = String::from_utf8_lossy(&output.stdout).trim().to_string();
    for _ in 0..600 {
        count.note(false, "");
    }
    count.note(good != "0", &format!("{good} connections of another user"));
    // Even where the socket's mode would let him: the daemon looks who it is.
    shell(&rig.folder, &format!("chmod 666 '{}'", of_session.display()));
    let script = "import os,socket,sys\nos.setgid(61184); os.setuid(61184)\ngood=0\n\
                  for n in range(100):\n  s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n  \
                  s.settimeout(5)\n  try: good+=len(s.recv(100))\n  \
                  except OSError: pass\nprint(good)";
    let output = run(Command::new("python3").args(["-c", script]).arg(&of_session));
    let said = String::from_utf8_lossy(&output.stdout).trim().to_string();
    for _ in 0..100 {
        count.note(false, "");
    }
    count.note(said != "0", &format!("{said} bytes told to another user"));
    count.is(700);
}

#[test]
fn nobody_acts_whom_the_table_does_not_give() {
    let test = "nobody_acts_whom_the_table_does_not_give";
    if !is_root() {
        return skipped(test, "needs root (to act as others)");
    }
    let Some(rig) = rig(test) else { return };
    let directory = format!("source = \"{}\"\n", rig.export.display());
    the_table_decides(&rig, &directory);
}

/// One who is in the table, one who is another, and those who are not in it, at a proxy with a cache;
/// `upstream` is its lines of an export.
fn the_table_decides(rig: &Rig, upstream: &str) {
    let count = Count::default();
    shell(
        &rig.export,
        "chmod 777 .; mkdir -m 700 one two; chown 51000:500 one; chown 51001:500 two; \
         echo one >one/file; echo two >two/file; chown 51000:500 one/file; chown 51001:500 two/file; \
         chmod 600 */file; echo group >shared; chown 0:605 shared; chmod 640 shared",
    );
    // Through a cache: it asks who it is before it gives what it holds.
    let proxy = Proxy::start(
        &rig.folder.join("proxy"),
        &format!(
            "listen_keyless = [\"unix:@/socket\"]\n[export.vms]\n{upstream}cache = \"on\"\n\
             cache_size = \"64M\"\ncache_banks = 4\n[identity]\nmap_uid = [\"1000-1001:51000\"]\n\
             map_gid = [\"100:500\", \"200-209:600\"]\n",
        ),
    );
    let mut channel = Channel::unix(&proxy.folder.join("socket"));
    let root = channel.mount("", "/vms").expect("mounts");
    let who = |uid: u32, gid: u32, groups: &[u32]| Caller { uid, gid, groups: groups.to_vec() };
    let (one, two) = (who(1000, 100, &[]), who(1001, 100, &[]));
    let mut ask = |caller: &Caller, procedure: u32, arguments: &dyn Fn(&mut Encoder)| {
        struct Raw(Vec<u8>);
        impl Xdr for Raw {
            fn encode(&self, to: &mut Encoder) {
                to.opaque_fixed(&self.0);
            }
            fn decode(_: &mut Decoder) -> gridvfs_vfs::xdr::XdrResult<Self> {
                Ok(Self(Vec::new()))
            }
        }
        let mut encoder = Encoder::new();
        arguments(&mut encoder);
        let program = (nfs3::PROGRAM, nfs3::VERSION, procedure);
        channel.call(credential("", caller), program, &Raw(encoder.into_vec()))
    };
    let entry = |outcome: Outcome| match outcome {
        Outcome::Ran(0, mut rest) => Entry::decode(&mut rest).expect("an entry"),
        other => panic!("{other:?}"),
    };
    let mut find = |caller: &Caller, dir: &FileHandle, name: &str| {
        let wanted = at(dir, name);
        entry(ask(caller, nfs3::LOOKUP, &|to| wanted.encode(to)))
    };
    let dir = find(&one, &root, "one");
    assert_eq!(dir.attr.expect("told").uid, 1000, "shown as the client knows him");
    let file = find(&one, &dir.handle, "file");
    let of_two = find(&two, &root, "two");
    assert_eq!(of_two.attr.expect("told").uid, 1001);
    let file_of_two = find(&two, &of_two.handle, "file");
    let shared = find(&one, &root, "shared").handle;
    let read = |file: FileHandle| {
        move |to: &mut Encoder| {
            ReadArgs { file, offset: 0, count: 10 }.encode(to);
        }
    };
    assert!(ask(&one, nfs3::READ, &read(file.handle)).is_ok(), "his own");
    assert!(ask(&two, nfs3::READ, &read(file_of_two.handle)).is_ok(), "his own");
    let in_group = who(1000, 100, &[205]);
    assert!(ask(&in_group, nfs3::READ, &read(shared)).is_ok(), "by a supplementary group");
    let mut strangers =
        vec![who(0, 0, &[]), who(0, 100, &[]), who(1000, 0, &[]), who(51000, 500, &[])];
    strangers.extend((0..60).map(|_| who(2000 + random() as u32 % 60_000, 100, &[0, 605])));
    for stranger in &strangers {
        for handle in [file.handle, file_of_two.handle, shared] {
            let outcome = ask(stranger, nfs3::READ, &read(handle));
            count.note(outcome.is_ok(), &format!("a read by {stranger:?}"));
        }
        let made = mkdir(&root, "stranger");
        let outcome = ask(stranger, nfs3::MKDIR, &|to| made.encode(to));
        count.note(outcome.is_ok(), &format!("a directory of {stranger:?}"));
    }
    // One user at another's files, which are in the cache by now.
    for _ in 0..20 {
        for (caller, handle) in [(&one, file_of_two.handle), (&two, file.handle), (&one, shared)] {
            count.note(ask(caller, nfs3::READ, &read(handle)).is_ok(), "another's file");
            let other = who(caller.uid, 100, &[605, 500, 0]);
            count.note(ask(&other, nfs3::READ, &read(handle)).is_ok(), "by invented groups");
        }
    }
    // Nobody gives a file to root, or to whom the table does not give.
    for uid in [0, 2000, 51000, 51001] {
        let changes = SetAttr { uid: Some(uid), ..SetAttr::default() };
        let wanted = nfs3::SetAttrArgs { file: file.handle, changes, guard: None };
        let outcome = ask(&one, nfs3::SETATTR, &|to| wanted.encode(to));
        count.note(outcome.is_ok(), &format!("a file given to {uid}"));
    }
    // What he makes is his.
    let made = mkdir(&root, "made");
    assert!(ask(&one, nfs3::MKDIR, &|to| made.encode(to)).is_ok());
    assert_eq!(shell(&rig.export, "stat -c %u:%g made").trim(), "51000:500");
    assert!(ask(&one, nfs3::GETATTR, &|to| file.handle.encode(to)).is_ok(), "he goes on");
    count.is(350);
}

/// Where NFS-Ganesha serves what `rig` exports, as lines of an export and as words of the command.
fn ganesha(rig: &Rig) -> (String, [String; 3]) {
    let (port, mount_port) = (rig.port("ganesha/port"), rig.port("ganesha/mount_port"));
    let export = rig.export.display();
    (
        format!("source = \"nfs://127.0.0.1:{port}{export}\"\nmountport = {mount_port}\n"),
        [
            format!("--export={export}"),
            format!("--nfs=127.0.0.1:{port}"),
            format!("--mount-port={mount_port}"),
        ],
    )
}

#[test]
fn the_table_decides_before_an_nfs_server_too() {
    let test = "the_table_decides_before_an_nfs_server_too";
    let Some(rig) = Rig::new(test, Way::Nfs) else { return };
    let (upstream, _) = ganesha(&rig);
    the_table_decides(&rig, &upstream);

    // Whom it does not give, squashed; and by a mount, with more groups than AUTH_SYS carries.
    let mut proxy = Proxy::start(
        &rig.folder.join("squash"),
        &format!(
            "listen_keyless = [\"unix:@/socket\"]\n[export.vms]\n{upstream}cache = \"off\"\n\
             [identity]\nmap_uid = [\"1000-1001:51000\"]\nmap_gid = [\"100:500\", \"200-209:600\"]\n\
             unmapped = \"squash\"\nsquash_to = \"61000:61001\"\n"
        ),
    );
    let mount = rig.folder.join("squash-mnt");
    std::fs::create_dir(&mount).expect("folder");
    let source = format!("gridvfs+unix:{}/socket:/vms", proxy.folder.display());
    let options = "cache=off,allow_other,attr_timeout=0,entry_timeout=0";
    run(rig.command(gridvfs()).arg("mount").arg(&source).arg(&mount).args(["-o", options]));
    let as_who = |uid: u32, gid: u32, groups: &str, script: &str| {
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
        match groups {
            "" => command.arg("--clear-groups"),
            groups => command.arg(format!("--groups={groups}")),
        };
        let output = command.args(["sh", "-c", script]).current_dir(&mount).output().expect("runs");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    assert_eq!(as_who(1000, 100, "", "cat one/file"), (true, "one".into()));
    assert!(as_who(1000, 100, "", "echo x >by-one").0);
    assert!(as_who(4000, 4000, "500,605", "echo x >by-stranger; ! cat one/file; ! cat shared").0);
    assert!(as_who(0, 0, "", "echo x >by-root; ! cat one/file").0, "root is squashed");
    let owners = shell(&rig.export, "stat -c %u:%g by-one by-stranger by-root");
    assert_eq!(owners, "51000:500\n61000:61001\n61000:61001\n");
    assert_eq!(as_who(1000, 100, "", "stat -c %u:%g by-one").1, "1000:100");
    // The kernel keeps them in order: 205 is the fifth, or the last of 21.
    let many = |first: u32| (first..first + 20).map(|group| group.to_string()).collect::<Vec<_>>();
    assert_eq!(as_who(1000, 100, &many(201).join(","), "cat shared"), (true, "group".into()));
    let beyond = format!("{},205", many(150).join(","));
    assert!(!as_who(1000, 100, &beyond, "cat shared").0, "bounded to 16");
    assert_eq!(as_who(1000, 100, &beyond, "cat one/file"), (true, "one".into()), "and no error");
    run(rig.command(gridvfs()).arg("umount").arg(&mount));
    proxy.stop();
}

#[test]
fn a_forwarder_of_a_plain_user_acts_as_that_user_alone() {
    let test = "a_forwarder_of_a_plain_user_acts_as_that_user_alone";
    let Some(rig) = Rig::new(test, Way::Nfs) else { return };
    let count = Count::default();
    let (user, folder) = (61184, rig.folder.join("plain"));
    shell(
        &rig.folder,
        &format!(
            "mkdir plain; chown {user}:{user} plain; chmod 777 export; cd export; \
             echo root >of-root; chmod 600 of-root; echo one >of-one; chown 1000 of-one; chmod 600 of-one"
        ),
    );
    let (_, words) = ganesha(&rig);
    let listen = format!("--listen=unix:{}/socket", folder.display());
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"]);
    command.arg(gridvfs()).args(["proxy", "serve", "--keyless"]).arg(listen).args(words);
    command.env("XDG_STATE_HOME", &folder).env("XDG_RUNTIME_DIR", &folder).current_dir("/");
    let mut child = command.stdout(Stdio::piped()).spawn().expect("starts");
    let mut line = String::new();
    let _ = BufReader::new(child.stdout.take().expect("output")).read_line(&mut line);
    assert!(line.starts_with("listening on"), "{line}");
    let mut channel = Channel::unix(&folder.join("socket"));
    let root = channel.mount("", &rig.export.display().to_string()).expect("mounts");
    // Whoever a client says it is.
    for uid in [0, 1000, 51000] {
        let caller = Caller { uid, gid: 0, groups: vec![0, 1000] };
        for name in ["of-root", "of-one"] {
            let file = channel.lookup("", &root, name).expect("there");
            let wanted = ReadArgs { file, offset: 0, count: 10 };
            let program = (nfs3::PROGRAM, nfs3::VERSION, nfs3::READ);
            let outcome = channel.call(credential("", &caller), program, &wanted);
            count.note(outcome.is_ok(), &format!("{name} read by {uid}"));
        }
        let made = mkdir(&root, &format!("made-{uid}"));
        let program = (nfs3::PROGRAM, nfs3::VERSION, nfs3::MKDIR);
        assert!(channel.call(credential("", &caller), program, &made).is_ok());
        let owner = shell(&rig.export, &format!("stat -c %u:%g made-{uid}"));
        assert_eq!(owner.trim(), format!("{user}:{user}"));
    }
    count.is(6);
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn a_forced_command_starts_sessions_and_nothing_else() {
    let Some(rig) = rig("a_forced_command_starts_sessions_and_nothing_else") else { return };
    let count = Count::default();
    let policy = rig.folder.join("policy.toml");
    let text = format!("exports = [\"{}\"]\nread_only = true\n", rig.export.display());
    std::fs::write(&policy, text).expect("writes");
    let forced = |asked: &str| {
        let mut command = rig.command(gridvfs());
        command.args(["proxy", "forced", "--policy"]).arg(&policy);
        command.env("XDG_RUNTIME_DIR", rig.folder.join("run")).env("SSH_ORIGINAL_COMMAND", asked);
        let output = command.output().expect("runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let marker = rig.folder.join("ran");
    let touch = format!("touch {}", marker.display());
    let export = rig.export.display();
    for asked in [
        "",
        "bash -i",
        "cat /etc/passwd",
        &touch,
        &format!("gridvfs proxy stdio; {touch}"),
        &format!("$({touch}) proxy stdio --export={export}/.."),
        &format!("gridvfs proxy stdio --export={export}/.."),
        "gridvfs proxy stdio --export=/",
        &format!("gridvfs proxy stdio --export={export}/top"),
        "gridvfs proxy daemon",
        &format!("gridvfs proxy serve --export={export} --listen=unix:{export}/s --keyless"),
        &format!("gridvfs proxy key new x --file={export}/keys"),
        "gridvfs proxy attach ..",
        &format!("gridvfs proxy stdio --export={export} --nfs=127.0.0.1"),
        "gridvfs proxy forced --policy /dev/null",
        "scp -f /etc/passwd",
        "proxy",
        "proxy '",
    ] {
        let said = forced(asked);
        count.note(!said.contains(r#""ok":false"#) || marker.exists(), &format!("{asked}: {said}"));
    }
    assert!(!rig.export.join("keys").exists() && !rig.export.join("s").exists());
    let words = ["proxy", "forced", "--policy", &policy.display().to_string()];
    let asked = format!("gridvfs proxy stdio --export={export}/sub --linger=1");
    let mut session = Session::start_over_ssh(&rig, &words, &asked);
    let (key, root) = (session.key.clone(), session.root);
    assert!(session.channel.lookup(&key, &root, "file").is_some(), "what is allowed goes on");
    let outcome = session.channel.nfs(&key, nfs3::MKDIR, &mkdir(&root, "new"));
    assert_eq!(outcome.status(), Some(30), "read-only, as the rules say");
    count.is(18);
}
