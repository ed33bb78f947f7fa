//! As somebody whom a table of identities does not give.

use super::tries::mkdir;
use super::*;

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
