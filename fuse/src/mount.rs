//! Mounting and unmounting by `fusermount3`, as any user, and telling what a mount point holds.

use std::io::{IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// The type that the kernel shows for our mounts, without its `fuse.`.
const SUBTYPE: &str = "gridvfs";
/// How long a mount point may take to answer a stat before it counts as hung, not dead.
const STAT_TIMEOUT: Duration = Duration::from_secs(2);

/// How to mount.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// What `findmnt` shows as the source.
    pub source: String,
    /// Refuse changes in the kernel.
    pub read_only: bool,
    /// Let other users in.
    pub allow_other: bool,
    /// Let the kernel check permissions.
    pub default_permissions: bool,
    /// Accept a directory that is not empty.
    pub nonempty: bool,
    /// Further options for fusermount3, such as `noatime`.
    pub extra: Vec<String>,
}

/// Why a mount or unmount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point cannot be used.
    #[error("mount point {path}: {reason}")]
    MountPoint {
        /// The mount point.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// /dev/fuse cannot be opened.
    #[error("/dev/fuse: {0} (is the fuse module loaded, and may this user open it?)")]
    Device(std::io::Error),
    /// There is no fusermount3.
    #[error("cannot run fusermount3: {0} (the package fuse3 has it)")]
    NoHelper(std::io::Error),
    /// fusermount3 refused.
    #[error("{0}")]
    Refused(String),
    /// Something between the two processes failed.
    #[error("fusermount3: {0}")]
    Io(#[from] std::io::Error),
}

/// Mounts and returns the descriptor of the kernel's channel.
pub fn mount(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    check_mountpoint(mountpoint, options.nonempty)?;
    let mut words = vec![
        format!("fsname={}", escaped(&options.source)),
        format!("subtype={SUBTYPE}"),
        if options.read_only { "ro" } else { "rw" }.into(),
    ];
    if options.allow_other {
        words.push("allow_other".into());
    }
    if options.default_permissions {
        words.push("default_permissions".into());
    }
    words.extend(options.extra.iter().cloned());
    let (ours, theirs) = UnixStream::pair()?;
    clear_close_on_exec(theirs.as_raw_fd())?;
    let mut command = Command::new("fusermount3");
    command.arg("-o").arg(words.join(",")).arg("--").arg(mountpoint);
    command.env("_FUSE_COMMFD", theirs.as_raw_fd().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(MountError::NoHelper)?;
    drop(theirs);
    let received = receive_descriptor(&ours);
    let mut words = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut words)?;
    }
    let status = child.wait()?;
    match received? {
        Some(device) if status.success() => Ok(device),
        _ => Err(MountError::Refused(helper_words(&words))),
    }
}

fn helper_words(words: &str) -> String {
    match words.trim() {
        "" => "fusermount3 failed without a word".into(),
        words if words.contains("user_allow_other") => format!(
            "{words}: the administrator must write user_allow_other into /etc/fuse.conf, or leave \
             out -o allow_other"
        ),
        words => words.into(),
    }
}

/// Says whether a directory can be mounted on, and whether FUSE is there at all: what can be known
/// before anything is connected.
pub fn check_mountpoint(mountpoint: &Path, nonempty: bool) -> Result<(), MountError> {
    let bad = |reason: String| MountError::MountPoint { path: mountpoint.into(), reason };
    let meta = std::fs::metadata(mountpoint).map_err(|error| bad(error.to_string()))?;
    if !meta.is_dir() {
        return Err(bad("it is not a directory".into()));
    }
    // One that cannot be listed is not refused here: it may still be mounted on.
    if let (false, Ok(mut entries)) = (nonempty, std::fs::read_dir(mountpoint))
        && entries.next().is_some()
    {
        return Err(bad("it is not empty (-o nonempty mounts over it all the same)".into()));
    }
    match std::fs::File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Ok(()),
        Err(error) => Err(MountError::Device(error)),
    }
}

/// A comma or a backslash within an option's value is escaped by a backslash.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,")
}

fn clear_close_on_exec(descriptor: RawFd) -> std::io::Result<()> {
    // SAFETY: a plain system call on a descriptor that is open.
    match unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn receive_descriptor(socket: &UnixStream) -> std::io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let Some(descriptor) = descriptors.first()
        {
            // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
            return Ok(Some(unsafe { OwnedFd::from_raw_fd(*descriptor) }));
        }
    }
    Ok(None)
}

/// Unmounts. `lazy` detaches at once even if files are open.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), MountError> {
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint);
    let output = command.stdin(Stdio::null()).output().map_err(MountError::NoHelper)?;
    if output.status.success() {
        return Ok(());
    }
    let words = helper_words(&String::from_utf8_lossy(&output.stderr));
    if nix::unistd::geteuid().is_root() {
        use nix::mount::{MntFlags, umount2};
        let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
        return umount2(mountpoint, flags).map_err(|_| MountError::Refused(words));
    }
    Err(MountError::Refused(words))
}

/// What a mount point holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountState {
    /// Nothing is mounted on it.
    Free,
    /// A FUSE mount whose process has died.
    Stale {
        /// Its source.
        source: String,
        /// Its type, such as `fuse.gridvfs`.
        fs_type: String,
    },
    /// A mount that is alive, or at least not known to be dead.
    Mounted {
        /// Its source.
        source: String,
        /// Its type.
        fs_type: String,
    },
}

/// Tells what a mount point holds. Never waits for a mount that hangs.
pub fn inspect(mountpoint: &Path) -> MountState {
    let Ok(table) = std::fs::read("/proc/self/mountinfo") else { return MountState::Free };
    let Some((fs_type, source)) = last_mount_at(&table, mountpoint) else {
        return MountState::Free;
    };
    if fs_type.starts_with("fuse") && is_dead(mountpoint.into()) {
        return MountState::Stale { source, fs_type };
    }
    MountState::Mounted { source, fs_type }
}

/// Returns the number of the user who made the FUSE mount at a mount point, if there is one.
pub fn owner(mountpoint: &Path) -> Option<u32> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    owner_at(&table, mountpoint)
}

fn owner_at(table: &[u8], mountpoint: &Path) -> Option<u32> {
    let is_there = |line: &&[u8]| {
        let path = line.split(|byte| *byte == b' ').nth(4).map(unescaped);
        path.is_some_and(|path| path == mountpoint.as_os_str().as_bytes())
    };
    let line = table.split(|byte| *byte == b'\n').rfind(is_there)?;
    let options = line.split(|byte| *byte == b' ').next_back()?;
    let mut options = std::str::from_utf8(options).ok()?.split(',');
    options.find_map(|option| option.strip_prefix("user_id=")?.parse().ok())
}

/// Asks in a thread of its own, which a mount that hangs may keep.
fn is_dead(mountpoint: PathBuf) -> bool {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let error = std::fs::metadata(mountpoint).err().and_then(|error| error.raw_os_error());
        let _ = sender.send(matches!(error, Some(libc::ENOTCONN | libc::ECONNABORTED)));
    });
    receiver.recv_timeout(STAT_TIMEOUT).unwrap_or(false)
}

/// Finds the topmost mount at a path in a mountinfo table (proc(5)): its type and source.
fn last_mount_at(table: &[u8], mountpoint: &Path) -> Option<(String, String)> {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            let path = unescaped(fields.nth(4)?);
            let mut tail = fields.skip_while(|field| *field != b"-").skip(1);
            (path == mountpoint.as_os_str().as_bytes()).then_some(())?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(&unescaped(bytes)).into_owned();
            Some((text(tail.next()?), text(tail.next()?)))
        })
        .next_back()
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let digits = field.get(at + 1..at + 4).filter(|_| field[at] == b'\\');
        let code = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                at += 4;
            }
            None => {
                bytes.push(field[at]);
                at += 1;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_is_found() {
        let table = b"1 2 0:1 / / rw - ext4 /dev/vda rw\n\
            3 1 0:5 / /a\\040b rw,nosuid shared:1 - fuse.gridvfs host:/x\\134y rw\n\
            4 1 0:6 / /c rw - tmpfs one rw\n5 1 0:7 / /c rw - ext4 two rw\n";
        let at = |path: &str| last_mount_at(table, Path::new(path));
        assert_eq!(at("/a b"), Some(("fuse.gridvfs".into(), "host:/x\\y".into())));
        assert_eq!(at("/c"), Some(("ext4".into(), "two".into())));
        assert_eq!(at("/d"), None);
        assert_eq!(inspect(Path::new("/nonexistent")), MountState::Free);
    }

    #[test]
    fn who_mounted_is_found() {
        let table = b"3 1 0:5 / /a\\040b rw - fuse.gridvfs h:/x rw,user_id=1000,group_id=100\n\
            4 1 0:6 / /c rw - tmpfs one rw\n";
        assert_eq!(owner_at(table, Path::new("/a b")), Some(1000));
        assert_eq!(owner_at(table, Path::new("/c")), None);
        assert_eq!(owner_at(table, Path::new("/d")), None);
    }

    #[test]
    fn separators_in_sources_are_escaped() {
        assert_eq!(escaped(r"host:/a,b\c"), r"host:/a\,b\\c");
    }
}
