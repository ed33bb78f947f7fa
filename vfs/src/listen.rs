//! Being told of changes: what a [`crate::Vfs`] says, to whoever listens, of files that it has given
//! out.
//!
//! It may say too much, never too little: while it says that it *covers* its files, each change of a
//! file whose attributes, or of a directory whose names, it has answered with is told, however it came
//! about. Whoever listens may then believe what it knows.

use std::sync::{Mutex, PoisonError, Weak};

use bytes::Bytes;

use crate::{Attr, FileHandle};

/// What a name of a directory leads to now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leads {
    /// To this file, as far as known with its attributes.
    To(FileHandle, Option<Attr>),
    /// Nowhere: there is no such name.
    Nowhere,
    /// It has to be asked for.
    Unknown,
}

/// A change, or what may be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A file's data or attributes; with those that it has now, if they are known.
    File(FileHandle, Option<Attr>),
    /// A file's attributes, and not its data; with those that it has now, if they are known.
    Attributes(FileHandle, Option<Attr>),
    /// A name of a directory.
    Name(FileHandle, Bytes, Leads),
    /// Any name of a directory.
    Names(FileHandle),
    /// Changes of a file are not told, or not any more: whoever wants to know asks.
    Uncovered(FileHandle),
}

impl Change {
    /// Returns the file or directory that has changed.
    pub fn subject(&self) -> &FileHandle {
        match self {
            Self::File(file, _) | Self::Attributes(file, _) | Self::Uncovered(file) => file,
            Self::Name(dir, ..) | Self::Names(dir) => dir,
        }
    }
}

/// Whether changes are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// All of them are from now on. What was answered before this may have changed without a word.
    Whole,
    /// All of them are again, and what could not be told meanwhile has been.
    Resumed,
    /// Not all of them: why.
    Partial(String),
}

/// Somebody who is told. Calls come from one thread at a time, in order, and must not block for long.
pub trait Listener: Send + Sync {
    /// A question for changes is about to be sent to a far server: what is told next was so some time
    /// after this.
    fn asking(&self) {}

    /// Something has changed.
    fn changed(&self, change: &Change);

    /// Whether changes are told is another matter now. [`Coverage::Whole`], said again, means that
    /// changes have been lost.
    fn covered(&self, coverage: &Coverage);
}

/// Those who listen to one source, in the order in which they came.
#[derive(Default)]
pub struct Ears(Mutex<Heard>);

#[derive(Default)]
struct Heard {
    listeners: Vec<Weak<dyn Listener>>,
    coverage: Option<Coverage>,
}

impl Ears {
    fn with(&self, coverage: Option<&Coverage>, tell: impl Fn(&dyn Listener)) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(coverage) = coverage {
            heard.coverage = Some(coverage.clone());
        }
        // Under the lock: what is told one after the other is heard so.
        heard.listeners.retain(|listener| match listener.upgrade() {
            Some(listener) => {
                tell(&*listener);
                true
            }
            None => false,
        });
    }

    /// Adds a listener, and tells it how far changes are told now. Returns whether it is the first.
    pub fn add(&self, listener: Weak<dyn Listener>) -> bool {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(coverage), Some(listener)) = (&heard.coverage, listener.upgrade()) {
            // It has not been told anything yet.
            let coverage = match coverage {
                Coverage::Resumed => &Coverage::Whole,
                other => other,
            };
            listener.covered(coverage);
        }
        heard.listeners.push(listener);
        heard.listeners.len() == 1
    }

    /// Says that a question is about to be sent.
    pub fn asking(&self) {
        self.with(None, |listener| listener.asking());
    }

    /// Tells a change.
    pub fn changed(&self, change: &Change) {
        self.with(None, |listener| listener.changed(change));
    }

    /// Tells how far changes are told.
    pub fn covered(&self, coverage: &Coverage) {
        self.with(Some(coverage), |listener| listener.covered(coverage));
    }
}

impl std::fmt::Debug for Ears {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ears")
    }
}
