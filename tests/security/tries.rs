//! What is tried with a good key.

use super::*;

/// Ways out of the export, with a good key.
pub fn climb(channel: &mut Channel, key: &str, root: &FileHandle, count: &Count) {
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

pub fn mkdir(dir: &FileHandle, name: &str) -> nfs3::MkdirArgs {
    nfs3::MkdirArgs { at: at(dir, name), attr: SetAttr::default() }
}

pub fn root_and_sub(channel: &mut Channel, key: &str, root: &FileHandle) -> Vec<FileHandle> {
    let sub = channel.lookup(key, root, "sub").expect("there");
    let file = channel.lookup(key, &sub, "file").expect("there");
    vec![*root, sub, file]
}

/// Handles that were not given out, with a good key.
pub fn forge(channel: &mut Channel, key: &str, root: &FileHandle, count: &Count, least: usize) {
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
