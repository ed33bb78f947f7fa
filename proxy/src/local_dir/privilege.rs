//! Acting as the caller.
//!
//! A privileged process takes on the caller's user, group and supplementary groups for the file
//! system calls of one operation, on the calling thread alone, and drops them again when the guard
//! goes. Linux takes the capabilities over files away with them (capabilities(7)), so that every
//! check is the kernel's own. An unprivileged process acts as itself, whoever calls.

use gridvfs_vfs::{Caller, Error, Status};

/// What this process may do on behalf of others.
#[derive(Debug)]
pub(super) struct Privilege {
    /// The process's own groups, if it can take on other identities.
    own: Option<Own>,
    uid: u32,
}

#[derive(Debug)]
struct Own {
    gid: u32,
    groups: Vec<u32>,
}

/// The most supplementary groups that Linux knows (NGROUPS_MAX).
const GROUPS_MAX: usize = 65536;
/// The identity that shows at start whether others can be taken on at all.
const NOBODY: u32 = 65534;

impl Privilege {
    /// Finds out by trying: in some containers root cannot become anybody else.
    pub(super) fn new() -> Self {
        // SAFETY: these two cannot fail and touch nothing.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        if uid != 0 {
            return Self { own: None, uid };
        }
        let candidate = Self { own: own_groups().map(|groups| Own { gid, groups }), uid };
        let nobody = Caller { uid: NOBODY, gid: NOBODY, groups: Vec::new() };
        match candidate.assume(&nobody) {
            Ok(acting) => drop(acting),
            Err(_) => return Self { own: None, uid },
        }
        candidate
    }

    /// Whether operations run as their callers.
    pub(super) fn acts_as_callers(&self) -> bool {
        self.own.is_some()
    }

    /// The process's own user.
    pub(super) fn uid(&self) -> u32 {
        self.uid
    }

    /// Whether operations for `caller` run with the process's own, unlimited rights.
    pub(super) fn is_unlimited(&self, caller: &Caller) -> bool {
        self.own.is_some() && caller.uid == 0
    }

    /// Makes the calling thread act as `caller` until the guard is dropped. Guards do not nest.
    /// No identity but the caller's is ever left in place: what cannot be taken on is refused.
    pub(super) fn assume(&self, caller: &Caller) -> Result<Acting<'_>, Error> {
        let Some(own) = &self.own else { return Ok(Acting { own: None, groups: false }) };
        if caller.uid == 0 && caller.gid == own.gid {
            return Ok(Acting { own: None, groups: false });
        }
        let mut acting = Acting { own: Some(own), groups: false };
        if caller.groups != own.groups {
            acting.groups = true;
            if !set_groups(&caller.groups) {
                return Err(Status::ACCES.into());
            }
        }
        if !set_fsgid(caller.gid) || !set_fsuid(caller.uid) {
            return Err(Status::ACCES.into());
        }
        Ok(acting)
    }
}

/// The calling thread acts as a caller while this lives.
#[must_use]
pub(super) struct Acting<'a> {
    own: Option<&'a Own>,
    groups: bool,
}

impl Drop for Acting<'_> {
    fn drop(&mut self) {
        let Some(own) = self.own else { return };
        let restored =
            set_fsuid(0) & set_fsgid(own.gid) & (!self.groups || set_groups(&own.groups));
        // A thread that cannot come back to itself must not serve anybody.
        assert!(restored, "cannot return to the process's own identity");
    }
}

fn own_groups() -> Option<Vec<u32>> {
    let mut groups = vec![0u32; GROUPS_MAX];
    // SAFETY: a live buffer of the given length.
    let count = unsafe { libc::getgroups(groups.len() as i32, groups.as_mut_ptr()) };
    groups.truncate(usize::try_from(count).ok()?);
    Some(groups)
}

/// By number: the C library's setgroups changes every thread of the process.
fn set_groups(groups: &[u32]) -> bool {
    // SAFETY: a live buffer of the given length.
    unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) == 0 }
}

/// Sets and reads back: the call itself returns the previous value, never an error.
fn set_fsuid(uid: u32) -> bool {
    // SAFETY: setfsuid touches the calling thread's credentials only; -1 changes nothing.
    unsafe {
        libc::setfsuid(uid);
        libc::setfsuid(u32::MAX) as u32 == uid
    }
}

fn set_fsgid(gid: u32) -> bool {
    // SAFETY: as for setfsuid.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsgid(u32::MAX) as u32 == gid
    }
}
