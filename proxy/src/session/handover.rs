//! Handing a channel's descriptors from one process to another (SCM_RIGHTS).

use std::io::{IoSlice, IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Sends standard input and output, lets go of them, and waits until the other side has done with
/// the channel.
pub(super) fn hand_over_and_wait(socket: &UnixStream) -> std::io::Result<()> {
    let descriptors = [libc::STDIN_FILENO, libc::STDOUT_FILENO];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let byte = [IoSlice::new(b"c")];
    sendmsg::<()>(socket.as_raw_fd(), &byte, &rights, MsgFlags::empty(), None)?;
    // Held here as well, the channel would not be seen to end.
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    let mut rest = [0; 64];
    loop {
        match (&mut &*socket).read(&mut rest) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Receives a channel: what it is read from and written to. `None` when the other side has gone.
pub(super) fn receive(socket: &UnixStream) -> std::io::Result<Option<(OwnedFd, OwnedFd)>> {
    let mut byte = [0];
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags)?;
    let mut received = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            // SAFETY: the kernel has just made these descriptors for us; nobody else owns them.
            received
                .extend(descriptors.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
        }
    }
    let mut received = received.into_iter();
    Ok(received.next().zip(received.next()))
}
