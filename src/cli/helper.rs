//! `mount.fuse.gridvfs` and `umount.fuse.gridvfs`: the command under the names by which mount(8),
//! umount(8), autofs and systemd call the helpers of a file system type. Their arguments become
//! those of `gridvfs mount` and `gridvfs umount`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser};

use super::{MountArgs, UmountArgs};
use crate::commands;
use crate::login;
use crate::options::{Layers, Settings, is_known, split_at_commas};
use crate::report::{Hinted, error_text};

/// What mount(8) calls "mount failure".
const MOUNT_FAILED: u8 = 32;

/// What both are given, whether it means anything here or not.
#[derive(Args)]
struct Usual {
    /// Do nothing but check the arguments
    #[arg(short = 'f')]
    fake: bool,
    /// Leave /etc/mtab alone (as always)
    #[arg(short = 'n')]
    no_mtab: bool,
    /// Say what is done
    #[arg(short = 'v')]
    verbose: bool,
    /// Mount in another namespace: not possible
    #[arg(short = 'N', value_name = "NAMESPACE", hide = true)]
    namespace: Option<String>,
    /// The file system's type
    #[arg(short = 't', value_name = "TYPE")]
    fs_type: Option<String>,
}

/// Mounts a gridvfs file system for mount(8)
#[derive(Parser)]
#[command(name = "mount.fuse.gridvfs", version)]
struct Mount {
    /// As of gridvfs mount: also the NAME of a session file
    source: String,
    /// An empty directory
    mountpoint: PathBuf,
    /// As of gridvfs mount, and: setuid=USER (mount as that user, with its ssh keys and cache),
    /// session=NAME
    #[arg(short = 'o', value_name = "KEY=VALUE,…")]
    options: Vec<String>,
    /// Leave out options that are not known
    #[arg(short = 's')]
    sloppy: bool,
    #[command(flatten)]
    usual: Usual,
}

/// Writes back and unmounts a gridvfs file system for umount(8)
#[derive(Parser)]
#[command(name = "umount.fuse.gridvfs", version)]
struct Umount {
    mountpoint: PathBuf,
    /// Detach at once
    #[arg(short = 'l')]
    lazy: bool,
    #[arg(short = 'r', hide = true)]
    read_only: bool,
    #[command(flatten)]
    usual: Usual,
}

/// Runs as a helper of mount(8) or umount(8) if called by such a name, and returns how it went.
pub fn run(arguments: &[OsString]) -> Option<ExitCode> {
    let name = std::path::Path::new(arguments.first()?).file_name()?;
    let is_one_of = |names: [&str; 2]| names.iter().any(|one| OsStr::new(one) == name);
    let done = if is_one_of(["mount.fuse.gridvfs", "mount.gridvfs"]) {
        mount(Mount::parse_from(arguments))
    } else if is_one_of(["umount.fuse.gridvfs", "umount.gridvfs"]) {
        umount(Umount::parse_from(arguments))
    } else {
        return None;
    };
    Some(match done {
        Ok(code) if code == ExitCode::SUCCESS => code,
        Ok(_) => ExitCode::from(MOUNT_FAILED),
        Err(error) => {
            eprintln!("{}", error_text(&error));
            ExitCode::from(MOUNT_FAILED)
        }
    })
}

fn mount(helper: Mount) -> Result<ExitCode> {
    helper.usual.check()?;
    let (args, user) = mount_args(&helper)?;
    // As that user: its source may be in its home, its mount point in a folder of its own.
    if let Some(user) = user {
        login::become_user(&user)?;
    }
    if helper.usual.verbose {
        println!(
            "gridvfs: mounting {} on {} with {}",
            helper.source,
            helper.mountpoint.display(),
            args.options.join(",")
        );
    }
    if helper.usual.fake {
        settings_of(&args)?;
        return Ok(ExitCode::SUCCESS);
    }
    commands::mount::run(args)
}

/// Reads the options, and the files of defaults that lie under them.
fn settings_of(args: &MountArgs) -> Result<Settings> {
    Ok(Layers::new(None, args.options.iter().map(String::as_str), [])?.read()?.settings)
}

/// Returns the arguments of `gridvfs mount`, and the user to be.
fn mount_args(helper: &Mount) -> Result<(MountArgs, Option<String>)> {
    let mut args = MountArgs {
        source: Some(helper.source.clone()),
        mountpoint: Some(helper.mountpoint.clone()),
        config: None,
        options: Vec::new(),
        session: None,
        foreground: false,
        debug: false,
        port: None,
        ssh_config: None,
        key_file: None,
        json: false,
    };
    let mut user = None;
    for option in helper.options.iter().flat_map(|options| split_at_commas(options)) {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option.as_str(), None),
        };
        let text =
            || value.map(String::from).with_context(|| format!("-o {key}: a value is missing"));
        match key {
            "setuid" => user = Some(text()?),
            "session" => args.session = Some(text()?),
            // Not somebody's wish: mount(8) says so of all that is not `ro`.
            "rw" => {}
            "remount" => {
                return Err(Hinted::error(
                    "a mount cannot be changed by remounting it",
                    "gridvfs set NAME KEY=VALUE changes settings; unmount and mount for others",
                ));
            }
            "uid" | "gid" | "umask" => {
                return Err(Hinted::error(
                    format!("-o {key}: owners and modes are the state server's"),
                    "setuid=USER mounts as another user, with that user's ssh keys",
                ));
            }
            _ if helper.sloppy && !is_known(&option) => {}
            // A comma within a value was `\,` and is to be so again.
            _ => args.options.push(option.replace(',', "\\,")),
        }
    }
    Ok((args, user))
}

fn umount(helper: Umount) -> Result<ExitCode> {
    helper.usual.check()?;
    let mountpoint = crate::mountpoint::resolved(&helper.mountpoint)?;
    if helper.usual.fake {
        return Ok(ExitCode::SUCCESS);
    }
    // Its session is in the registry of the user who mounted it.
    if let Some(owner) = gridvfs_fuse::owner(&mountpoint) {
        login::become_owner(owner)?;
    }
    if helper.usual.verbose {
        println!("gridvfs: writing back and unmounting {}", mountpoint.display());
    }
    let Some(target) = mountpoint.to_str() else {
        bail!("{}: the path is no text", mountpoint.display());
    };
    commands::umount::run(UmountArgs {
        target: target.into(),
        lazy: helper.lazy,
        preserve: false,
        flush: false,
        dead: false,
        timeout: None,
        json: false,
    })
}

impl Usual {
    fn check(&self) -> Result<()> {
        match &self.namespace {
            Some(_) => Err(Hinted::error(
                "-N: mounting in another namespace is not possible",
                "nsenter --mount=NAMESPACE gridvfs mount …",
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<(MountArgs, Option<String>)> {
        let all = ["mount.fuse.gridvfs", "host:/vms", "/mnt/vms"].iter().chain(words);
        mount_args(&Mount::try_parse_from(all).expect("arguments"))
    }

    #[test]
    fn what_mount_says_is_understood() {
        let (args, user) = parsed(&[
            "-v",
            "-n",
            "-t",
            "fuse.gridvfs",
            "-o",
            "rw,dev,suid,_netdev,noauto,user=me,x-systemd.automount,comment=a,setuid=vm,session=s",
            "-o",
            r"stripes=2,ssh_command=ssh -F a\,b",
        ])
        .expect("good");
        assert_eq!(user.as_deref(), Some("vm"));
        assert_eq!(args.session.as_deref(), Some("s"));
        let settings = settings_of(&args).expect("good options");
        assert_eq!(settings.stripes, 2);
        assert_eq!(settings.ssh_command, ["ssh", "-F", "a,b"]);
        assert!(!settings.read_only);
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_next_step() {
        for (words, expected) in [
            (&["-o", "remount,ro"][..], "gridvfs set"),
            (&["-o", "uid=1000"], "setuid=USER"),
            (&["-o", "setuid"], "a value is missing"),
        ] {
            let error = parsed(words).map(|_| ()).expect_err("refused");
            assert!(error_text(&error).contains(expected), "{words:?}: {error:#}");
        }
        let (args, _) = parsed(&["-s", "-o", "ro,nosense=1,stripes=2"]).expect("sloppy");
        assert_eq!(args.options, ["ro", "stripes=2"]);
        let (args, _) = parsed(&["-o", "nosense=1"]).expect("left to gridvfs mount to refuse");
        assert_eq!(args.options, ["nosense=1"]);
    }
}
