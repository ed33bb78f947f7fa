//! Named places of the write path at which a test lets the process die.
//!
//! [`point`] does nothing unless [`arm`] has named its point; then the process kills itself with
//! SIGKILL there, at the given passage. Compiled in with debug assertions only: in a release build
//! [`point`] is empty and [`arm`] says so. The module reads no environment: the command arms it.

macro_rules! points {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        impl Point {
            $($(#[$meta])* pub const $name: Point = Point(stringify!($name));)*
            /// Every point, in the order of the write path.
            pub const ALL: &'static [Point] = &[$(Point::$name,)*];
        }
    };
}

/// A place at which the process can be made to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point(&'static str);

impl Point {
    /// Returns the name that [`arm`] knows it by.
    pub fn name(self) -> &'static str {
        self.0
    }
}

points! {
    /// A record is about to be appended to the journal.
    JOURNAL_BEFORE_WRITE,
    /// A record has been appended; nobody knows yet.
    JOURNAL_AFTER_WRITE,
    /// The journal is about to be synced.
    JOURNAL_BEFORE_SYNC,
    /// The journal has been synced; nobody knows yet.
    JOURNAL_AFTER_SYNC,
    /// A segment of the journal is about to be deleted.
    JOURNAL_BEFORE_DELETE,
    /// A segment has been deleted; the directory is not synced yet.
    JOURNAL_AFTER_DELETE,
    /// Data is about to be handed on to be sent.
    BEFORE_WRITE,
    /// Data has been handed on, and may have been sent.
    AFTER_WRITE,
    /// The server is about to be asked for COMMIT.
    BEFORE_COMMIT,
    /// The server has committed the data.
    AFTER_COMMIT,
    /// A frame of the store that was in use has been emptied for another.
    FRAME_AFTER_EVICT,
    /// A frame has got its new file; its number and valid bits are not set yet.
    FRAME_AFTER_KEY,
    /// Blocks of the store are missing; their new data is about to be written.
    BLOCKS_AFTER_INVALID,
    /// Blocks' new data has been written; their checksums are the old ones.
    BLOCKS_AFTER_DATA,
    /// A block's checksum has been set; it is not valid yet.
    BLOCKS_AFTER_SUM,
    /// Committed blocks have been stored; the journal does not know yet that they were sent.
    AFTER_STORE,
    /// The journal knows that the data was sent.
    AFTER_SENT,
    /// The file's times are about to be set on the server.
    BEFORE_SETTLE,
    /// The file's attributes after our own change are known.
    AFTER_SETTLE,
    /// A file is about to be cut on the server.
    BEFORE_CUT,
    /// It has been cut there; the journal does not know yet.
    AFTER_CUT,
    /// A name of a file with unsent data is about to be removed on the server.
    BEFORE_REMOVE,
    /// It has been removed there; the journal does not know yet.
    AFTER_REMOVE,
    /// A change of a name is about to be acknowledged.
    BEFORE_NAME,
    /// It is in the journal; nobody knows yet.
    AFTER_NAME,
    /// Changes of names may be made on the server from now on, and the journal says so.
    BEFORE_NAME_SENT,
    /// The server has made one; the journal does not know yet.
    AFTER_NAME_SENT,
    /// The journal knows that it was made.
    AFTER_NAME_DONE,
    /// All that is pending of names has been copied to the end of the journal.
    AFTER_NAMES_COPIED,
}

/// Why a point was not armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArmError {
    /// There is no point of that name.
    #[error("no crash point has that name")]
    Unknown,
    /// The program was built without debug assertions.
    #[error("crash points are not compiled into this build")]
    NotCompiled,
}

/// Lets the process die when the named point is passed for the `countdown`-th time (from 1).
pub fn arm(name: &str, countdown: u32) -> Result<(), ArmError> {
    if !cfg!(debug_assertions) {
        return Err(ArmError::NotCompiled);
    }
    let index = Point::ALL.iter().position(|point| point.0 == name).ok_or(ArmError::Unknown)?;
    armed::set(index + 1, countdown.max(1));
    Ok(())
}

/// Dies here if this point is armed and its turn has come.
#[inline]
pub fn point(point: Point) {
    #[cfg(debug_assertions)]
    armed::pass(point);
    #[cfg(not(debug_assertions))]
    let _ = point;
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

    use nix::sys::signal::{Signal, raise};

    use super::Point;

    /// The armed point's place in [`Point::ALL`], from 1; 0 while none is.
    static ARMED: AtomicUsize = AtomicUsize::new(0);
    static COUNTDOWN: AtomicU32 = AtomicU32::new(0);

    pub fn set(index: usize, countdown: u32) {
        COUNTDOWN.store(countdown, Ordering::SeqCst);
        ARMED.store(index, Ordering::SeqCst);
    }

    pub fn pass(point: Point) {
        let armed = ARMED.load(Ordering::Relaxed);
        if armed != 0
            && Point::ALL[armed - 1] == point
            && COUNTDOWN.fetch_sub(1, Ordering::SeqCst) == 1
        {
            let _ = raise(Signal::SIGKILL);
        }
    }
}

#[cfg(not(debug_assertions))]
mod armed {
    pub fn set(_index: usize, _countdown: u32) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_points_are_refused() {
        let expected =
            if cfg!(debug_assertions) { ArmError::Unknown } else { ArmError::NotCompiled };
        assert_eq!(arm("NOWHERE", 1), Err(expected));
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::HashSet<_> =
            Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
    }
}
