//! Results of calls to answers in the kernel's terms.

use std::time::Duration;

use bytes::Bytes;
use fuser::{BackingId, Errno, FileAttr, FopenFlags, ReplyAttr, ReplyData, ReplyEmpty, TimeOrNow};
use gridvfs_vfs::{Error, Result, SetTime, Time};

use crate::core::Opened;
use crate::passthrough::Way;

/// The number that the kernel is told.
pub fn errno(error: &Error) -> Errno {
    Errno::from_i32(error.errno())
}

/// Answers that something was done, or why not.
pub fn empty_reply(reply: ReplyEmpty) -> impl FnOnce(Result<()>) + Send + 'static {
    move |result| match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

/// A time that the kernel asks to be set.
pub fn set_time(time: Option<TimeOrNow>) -> SetTime {
    match time {
        None => SetTime::Keep,
        Some(TimeOrNow::Now) => SetTime::ServerNow,
        Some(TimeOrNow::SpecificTime(time)) => SetTime::To(Time::from_system_time(time)),
    }
}

/// How the kernel is to treat an open.
pub fn open_flags(way: &Way<BackingId>, opened: &Opened) -> FopenFlags {
    let mut flags = match way {
        Way::Cached if opened.keep => FopenFlags::FOPEN_KEEP_CACHE,
        Way::Cached => FopenFlags::empty(),
        Way::Direct | Way::Served(_) => FopenFlags::FOPEN_DIRECT_IO,
        // The kernel refuses any other flag here.
        Way::Passthrough(_) => return FopenFlags::empty(),
    };
    // Whoever only reads has nothing to send at close.
    flags.set(FopenFlags::FOPEN_NOFLUSH, !opened.file.writes());
    flags
}

/// Answers attributes, which hold for `life`.
pub fn attr_reply(
    reply: ReplyAttr,
    life: Duration,
) -> impl FnOnce(Result<FileAttr>) + Send + 'static {
    move |result| match result {
        Ok(attr) => reply.attr(&life, &attr),
        Err(error) => reply.error(errno(&error)),
    }
}

/// Answers data.
pub fn data_reply(reply: ReplyData) -> impl FnOnce(Result<Bytes>) + Send + 'static {
    move |result| match result {
        Ok(data) => reply.data(&data),
        Err(error) => reply.error(errno(&error)),
    }
}
