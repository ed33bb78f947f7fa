//! Going to the background once mounted, as sshfs does: the command returns when the mount works,
//! or with the error why it does not.
//!
//! The fork is made before any thread exists. The child keeps the terminal until it is mounted, so
//! that ssh can ask for a password; then it leaves the terminal and says so through a pipe.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use nix::unistd::{ForkResult, fork, pipe, setsid};

use crate::report::{Exit, error_json, error_of_json, error_text};

/// The child's end: says how the start went.
pub struct Starter {
    pipe: Option<File>,
    stays: bool,
}

/// What `start` returns to whom.
pub enum Role {
    /// This process need not wait any longer: the child has started.
    Parent,
    /// This process is to do the work.
    Child(Starter),
}

static IN_BACKGROUND: AtomicBool = AtomicBool::new(false);

/// Says whether the terminal has been left.
pub fn is_in_background() -> bool {
    IN_BACKGROUND.load(Ordering::Relaxed)
}

const STARTED: u8 = b'+';
const FAILED: u8 = b'-';

impl Starter {
    /// Makes a starter for work in the foreground.
    pub fn foreground() -> Self {
        Self { pipe: None, stays: true }
    }

    /// Says that the work has begun, and what to print. From here on the terminal is not touched;
    /// standard error goes to `log`.
    pub fn started(&mut self, words: &str, log: &Path) -> Result<()> {
        let Some(mut pipe) = self.pipe.take() else {
            print!("{words}");
            return Ok(std::io::stdout().flush()?);
        };
        setsid().context("setsid")?;
        std::env::set_current_dir("/").context("cannot change to /")?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let log = File::options().create(true).append(true).open(log);
        let log = log.unwrap_or(null.try_clone()?);
        replace_standard_streams(null.as_fd().try_clone_to_owned()?, log.into())?;
        IN_BACKGROUND.store(true, Ordering::Relaxed);
        // The parent may have been killed while it waited: no reason to end.
        let _ = pipe.write_all(&[STARTED]).and_then(|()| pipe.write_all(words.as_bytes()));
        Ok(())
    }

    /// Says that the work could not begin, or how it has ended, to whom there is: who waits for the
    /// start, the log, or else whoever ran this.
    pub fn failed(&mut self, error: anyhow::Error) -> Result<ExitCode> {
        let exit = ExitCode::from(Exit::of(&error) as u8);
        match self.pipe.take() {
            Some(mut pipe) => {
                let words = error_json(&error).to_string();
                let _ = pipe.write_all(&[FAILED]).and_then(|()| pipe.write_all(words.as_bytes()));
            }
            None if self.stays => return Err(error),
            None => log::error!("{}", error_text(&error)),
        }
        Ok(exit)
    }
}

fn replace_standard_streams(null: OwnedFd, log: OwnedFd) -> Result<()> {
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&log)?;
    Ok(())
}

/// Forks. The parent waits for the child's word; why it could not start is an error here.
pub fn start() -> Result<Role> {
    let (reader, writer) = pipe().context("pipe")?;
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    // SAFETY: no thread has been started yet, so the child may do anything.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            drop(reader);
            Ok(Role::Child(Starter { pipe: Some(writer.into()), stays: false }))
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut words = Vec::new();
            File::from(reader).read_to_end(&mut words)?;
            match words.split_first() {
                Some((&STARTED, words)) => {
                    std::io::stdout().write_all(words)?;
                    Ok(Role::Parent)
                }
                Some((_, failed)) => Err(error_of_json(&serde_json::from_slice(failed)?)),
                None => {
                    let end = nix::sys::wait::waitpid(child, None);
                    bail!("the mount process ended while it started ({end:?})");
                }
            }
        }
    }
}

/// Has large buffers given back to the system when they are freed. By default glibc keeps them, and
/// as many heaps as there are threads: twice the memory, to save page faults that are cheap beside a
/// megabyte's way through a network.
pub fn keep_memory_small() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: these calls take numbers.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 512 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1024 * 1024);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Lets this process have as many descriptors as it may: a local directory keeps one for each file
/// in use, and the usual soft limit of 1024 is for programs that call select(2).
pub fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        log::warn!("cannot raise the limit of open files from {soft} to {hard}: {error}");
    }
}
