//! At a standing proxy: exports, keys, guesses, other users.

use super::tries::{climb, forge, root_and_sub};
use super::*;

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
