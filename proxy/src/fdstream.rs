//! A byte stream over descriptors of any kind that can be polled: sockets or pipes, as sshd gives
//! its commands.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One direction or both of a stream.
pub struct FdStream {
    inner: AsyncFd<OwnedFd>,
}

impl FdStream {
    /// Takes a descriptor. It is made non-blocking, and so is every copy of it.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let raw = descriptor.as_raw_fd();
        // SAFETY: plain system calls on a descriptor that we own.
        unsafe {
            let flags = libc::fcntl(raw, libc::F_GETFL);
            if flags < 0 || libc::fcntl(raw, libc::F_SETFL, flags | libc::O_NONBLOCK) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: an OwnedFd keeps its descriptor open, and the same, until it is dropped.
        let inner = unsafe { AsyncFd::register(descriptor) };
        Ok(Self { inner: inner.map_err(|error| error.into_parts().1)? })
    }
}

fn checked(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

impl AsyncRead for FdStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.inner.poll_read_ready(context))?;
            let result = guard.try_io(|inner| {
                // SAFETY: the kernel writes at most the buffer's room, and says how much.
                unsafe {
                    let room = buffer.unfilled_mut();
                    let read = checked(libc::read(
                        inner.as_raw_fd(),
                        room.as_mut_ptr().cast(),
                        room.len(),
                    ))?;
                    buffer.assume_init(read);
                    buffer.advance(read);
                }
                Ok(())
            });
            match result {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for FdStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.inner.poll_write_ready(context))?;
            let result = guard.try_io(|inner| {
                let count = slices.len().min(1024) as libc::c_int;
                // SAFETY: IoSlice is laid out as iovec, and the slices outlive the call.
                checked(unsafe { libc::writev(inner.as_raw_fd(), slices.as_ptr().cast(), count) })
            });
            match result {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // SAFETY: a plain system call; on a pipe it fails and does nothing.
        unsafe { libc::shutdown(self.inner.as_raw_fd(), libc::SHUT_WR) };
        Poll::Ready(Ok(()))
    }
}
