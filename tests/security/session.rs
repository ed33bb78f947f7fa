//! At a session's daemon, as ssh starts it, and at a forced command.

use super::tries::{climb, forge, mkdir};
use super::*;

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
