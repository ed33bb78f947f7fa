//! The kernel's notices of changes: fanotify(7), as far as a process without rights may have it (Linux
//! 5.13), since it says of each whether this process has made it.
//!
//! What is marked are inodes. Notices tell files by the kernel's own handles, as name_to_handle_at(2)
//! gives them, and entries of directories by their names.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::sys::{self, Errno, SysResult};

/// Of an entry or of the file itself: data or attributes.
const CONTENT: u64 = libc::FAN_MODIFY | libc::FAN_CLOSE_WRITE;
/// Of a name of a directory.
const NAMES: u64 = libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO;
/// Of the file itself.
const SELF: u64 = libc::FAN_DELETE_SELF | libc::FAN_MOVE_SELF;
/// Notices are read so many bytes at a time: some thousand.
const BUFFER_BYTES: usize = 64 * 1024;

/// A file as notices name it: its file system's id, and the kernel's handle with its type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Object(Box<[u8]>);

impl Object {
    /// Names what a descriptor refers to; an error where the kernel has no handles for it.
    pub(super) fn of(fd: BorrowedFd<'_>) -> SysResult<Self> {
        let statfs = sys::fstatfs(fd)?;
        // SAFETY: `fsid_t` is two C ints whose names the C library hides.
        let fsid = unsafe { std::mem::transmute::<libc::fsid_t, [u8; 8]>(statfs.f_fsid) };
        sys::kernel_handle(fd, |kind, bytes| {
            Self([&fsid[..], &kind.to_ne_bytes(), bytes].concat().into())
        })
    }
}

/// What the kernel says has happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Notice {
    mask: u64,
    /// This process has done it.
    pub own: bool,
    /// The directory, and the name in it of what has changed; `.` for itself.
    pub entry: Option<(Object, Box<[u8]>)>,
    /// The file itself; of a name what it leads to, or led to, where the kernel tells that (Linux 5.17),
    /// else the directory.
    pub file: Option<Object>,
}

impl Notice {
    /// Notices before this one are lost.
    pub(super) fn is_overflow(&self) -> bool {
        self.mask & libc::FAN_Q_OVERFLOW != 0
    }

    /// A name was made, removed, or both.
    pub(super) fn is_of_name(&self) -> bool {
        self.mask & NAMES != 0
    }

    /// Data may have changed.
    pub(super) fn is_of_data(&self) -> bool {
        self.mask & CONTENT != 0
    }

    /// The file that was marked is gone, and its mark.
    pub(super) fn is_end(&self) -> bool {
        self.mask & libc::FAN_DELETE_SELF != 0
    }
}

/// A queue of notices.
#[derive(Debug)]
pub(super) struct Notices(OwnedFd);

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Notices {
    pub(super) fn new() -> SysResult<Self> {
        match Self::with(libc::FAN_REPORT_TARGET_FID) {
            Err(Errno(libc::EINVAL)) => Self::with(0),
            result => result,
        }
    }

    fn with(flags: u32) -> SysResult<Self> {
        let flags = flags
            | libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_REPORT_FID
            | libc::FAN_REPORT_DFID_NAME;
        // SAFETY: no pointers.
        let fd = unsafe { libc::fanotify_init(flags, libc::O_RDONLY as u32) };
        if fd < 0 {
            return Err(Errno::last());
        }
        // SAFETY: the call has just returned it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Marks what a descriptor refers to: with `entries` a directory and what is in it.
    pub(super) fn mark(&self, fd: BorrowedFd<'_>, entries: bool) -> SysResult<()> {
        let mut mask = CONTENT | libc::FAN_ATTRIB | SELF;
        if entries {
            mask |= NAMES | libc::FAN_ONDIR | libc::FAN_EVENT_ON_CHILD;
        }
        // The descriptor's own file, whatever its path is now.
        let path = sys::proc_path(fd);
        // SAFETY: a live descriptor and a NUL-terminated path.
        let result = unsafe {
            libc::fanotify_mark(
                self.0.as_raw_fd(),
                libc::FAN_MARK_ADD,
                mask,
                libc::AT_FDCWD,
                path.as_ptr(),
            )
        };
        if result < 0 { Err(Errno::last()) } else { Ok(()) }
    }

    /// Takes what there is, without waiting; EAGAIN if there is nothing.
    pub(super) fn read(&self) -> SysResult<Vec<Notice>> {
        let mut buffer: Vec<u8> = Vec::with_capacity(BUFFER_BYTES);
        // SAFETY: a live buffer of the given capacity.
        let length = unsafe {
            libc::read(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.capacity())
        };
        if length < 0 {
            return Err(Errno::last());
        }
        // SAFETY: the kernel has filled so many bytes.
        unsafe { buffer.set_len(length as usize) };
        Ok(notices(&buffer, std::process::id() as i32))
    }
}

/// Takes `length` bytes off the front.
fn take<'a>(from: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(head)
}

fn number<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    take(from, N)?.try_into().ok()
}

/// Parses notices (`struct fanotify_event_metadata` and what follows it); `process` is this one.
fn notices(mut bytes: &[u8], process: i32) -> Vec<Notice> {
    let mut notices = Vec::new();
    while let Some(notice) = notice(&mut bytes, process) {
        notices.push(notice);
    }
    notices
}

fn notice(bytes: &mut &[u8], process: i32) -> Option<Notice> {
    let mut head = *bytes;
    let length = u32::from_ne_bytes(number(&mut head)?) as usize;
    let mut rest = take(bytes, length)?.get(4..)?;
    let [version, _] = number(&mut rest)?;
    let metadata = u16::from_ne_bytes(number(&mut rest)?) as usize;
    if version != libc::FANOTIFY_METADATA_VERSION {
        return None;
    }
    let mask = u64::from_ne_bytes(number(&mut rest)?);
    let _fd: [u8; 4] = number(&mut rest)?;
    let pid = i32::from_ne_bytes(number(&mut rest)?);
    let mut notice = Notice { mask, own: pid == process, ..Notice::default() };
    take(&mut rest, metadata.checked_sub(size_of::<libc::fanotify_event_metadata>())?)?;
    while let [kind, _, ..] = *rest {
        let mut head = rest.get(2..)?;
        let length = u16::from_ne_bytes(number(&mut head)?) as usize;
        let record = take(&mut rest, length)?.get(4..)?;
        match kind {
            libc::FAN_EVENT_INFO_TYPE_FID => notice.file = object(record).map(|(file, _)| file),
            libc::FAN_EVENT_INFO_TYPE_DFID_NAME => {
                notice.entry = object(record).map(|(dir, name)| {
                    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
                    (dir, name[..end].into())
                });
            }
            libc::FAN_EVENT_INFO_TYPE_DFID => {
                notice.entry = object(record).map(|(dir, _)| (dir, b".".as_slice().into()));
            }
            _ => {}
        }
    }
    Some(notice)
}

/// Parses an id of a file system and a handle; returns also what follows.
fn object(mut record: &[u8]) -> Option<(Object, &[u8])> {
    let fsid: [u8; 8] = number(&mut record)?;
    let length = u32::from_ne_bytes(number(&mut record)?) as usize;
    let kind: [u8; 4] = number(&mut record)?;
    let handle = take(&mut record, length)?;
    Some((Object([&fsid[..], &kind, handle].concat().into()), record))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    fn heard(notices: &Notices) -> Vec<Notice> {
        let (begun, mut all) = (Instant::now(), Vec::new());
        while begun.elapsed() < Duration::from_secs(10) {
            match notices.read() {
                Ok(more) => all.extend(more),
                Err(_) if !all.is_empty() => return all,
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        panic!("no notice");
    }

    #[test]
    fn a_notice_says_whose_it_is_and_of_what() {
        let folder = tempfile::tempdir().expect("folder");
        let pinned = sys::pin_root(folder.path()).expect("pins");
        let Ok(notices) = Notices::new() else { return };
        if notices.mark(pinned.as_fd(), true).is_err() {
            return;
        }
        let dir = Object::of(pinned.as_fd()).expect("a handle");
        std::fs::write(folder.path().join("ours"), "a").expect("writes");
        for notice in heard(&notices) {
            assert!(notice.own, "{notice:?}");
            assert_eq!(notice.entry, Some((dir.clone(), b"ours".as_slice().into())));
        }
        let mut shell = Command::new("sh");
        shell.args([
            "-c",
            "echo b >>ours; mv ours theirs; chmod 600 theirs; ln theirs also; rm also",
        ]);
        assert!(shell.current_dir(&folder).status().expect("runs").success());
        let all = heard(&notices);
        assert!(all.iter().all(|notice| !notice.own), "{all:?}");
        let of = |name: &[u8], is: fn(&Notice) -> bool| {
            let named = |notice: &&Notice| {
                notice.entry.as_ref().is_some_and(|(at, of)| *at == dir && **of == *name)
            };
            all.iter().filter(named).any(is)
        };
        assert!(of(b"ours", Notice::is_of_data) && of(b"ours", Notice::is_of_name));
        assert!(of(b"theirs", Notice::is_of_name));
        assert!(of(b"theirs", |notice| !notice.is_of_data() && !notice.is_of_name()));
        if Notices::with(libc::FAN_REPORT_TARGET_FID).is_err() {
            return;
        }
        let theirs = std::fs::File::open(folder.path().join("theirs")).expect("opens");
        let theirs = Object::of(theirs.as_fd()).expect("a handle");
        let of_also =
            |notice: &&Notice| notice.entry.as_ref().is_some_and(|(_, name)| **name == *b"also");
        let told: Vec<_> = all.iter().filter(of_also).map(|notice| &notice.file).collect();
        assert!(!told.is_empty() && told.iter().all(|file| **file == Some(theirs.clone())));
    }

    #[test]
    fn cut_notices_are_not_read() {
        let folder = tempfile::tempdir().expect("folder");
        let pinned = sys::pin_root(folder.path()).expect("pins");
        let object = Object::of(pinned.as_fd()).expect("a handle");
        let handle = &object.0[12..];
        let mut record = vec![libc::FAN_EVENT_INFO_TYPE_DFID_NAME, 0, 0, 0];
        record.extend(&object.0[..8]);
        record.extend((handle.len() as u32).to_ne_bytes());
        record.extend(&object.0[8..]);
        record.extend(b"name\0\0\0\0");
        let length = record.len() as u16;
        record[2..4].copy_from_slice(&length.to_ne_bytes());
        let mut event = (24 + u32::from(length)).to_ne_bytes().to_vec();
        event.extend([libc::FANOTIFY_METADATA_VERSION, 0, 24, 0]);
        event.extend(libc::FAN_MODIFY.to_ne_bytes());
        event.extend((-1i32).to_ne_bytes());
        event.extend(7i32.to_ne_bytes());
        event.extend(record);
        let whole = notices(&event, 7);
        assert_eq!(whole.len(), 1);
        assert!(whole[0].own && whole[0].is_of_data());
        assert_eq!(whole[0].entry, Some((object, b"name".as_slice().into())));
        for length in 0..event.len() {
            assert_eq!(notices(&event[..length], 7), []);
        }
    }
}
