//! Becoming another user, as root may: for mounts that root's fstab makes in a user's name.
//!
//! To be called before any thread is started.

use anyhow::{Context, Result, bail};
use nix::unistd::{Uid, User, geteuid, initgroups, setgid, setuid};

/// Variables that lead to the caller's own files.
const OWN_DIRECTORIES: [&str; 4] =
    ["XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"];

/// Becomes a user, given by name or number. Only root can become another.
pub fn become_user(name: &str) -> Result<()> {
    let user = match name.parse() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_) => User::from_name(name),
    };
    switch(&user?.with_context(|| format!("there is no user {name}"))?)
}

/// Becomes the owner of something, if this process may; otherwise stays who it is.
pub fn become_owner(uid: u32) -> Result<()> {
    if !geteuid().is_root() || uid == 0 {
        return Ok(());
    }
    let user = User::from_uid(Uid::from_raw(uid))?;
    switch(&user.with_context(|| format!("there is no user with the number {uid}"))?)
}

fn switch(user: &User) -> Result<()> {
    if user.uid == geteuid() {
        return Ok(());
    }
    if !geteuid().is_root() {
        bail!("only root can act as {}", user.name);
    }
    let name = std::ffi::CString::new(user.name.as_str())?;
    initgroups(&name, user.gid).context("initgroups")?;
    setgid(user.gid).context("setgid")?;
    setuid(user.uid).context("setuid")?;
    // SAFETY: no other thread exists that could read the environment.
    unsafe {
        for (key, value) in [("USER", user.name.as_ref()), ("LOGNAME", user.name.as_ref())] {
            std::env::set_var::<_, &std::ffi::OsStr>(key, value);
        }
        std::env::set_var("HOME", &user.dir);
        std::env::set_var("SHELL", &user.shell);
        for key in OWN_DIRECTORIES {
            std::env::remove_var(key);
        }
    }
    Ok(())
}
