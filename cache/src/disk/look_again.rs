//! What an earlier session knew is asked for again before anybody waits for it.
//!
//! A `read-only-shared` session asks once for what an earlier one knew: a golden VM may have been
//! replaced in between. Who clones it after a remount would wait a round trip for each directory on the
//! way, and for its listing. All of that is asked for side by side as the session begins: directories
//! whose names were all known by READDIRPLUS, other names by LOOKUP, from the root downwards.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;
use gridvfs_vfs::{FileHandle, FileKind, Result, Verifier};

use super::Core;
use crate::index::Index;

/// The most calls, of one round trip each.
const CALLS_MAX: usize = 128;
/// Directories with more names are left to those who use them.
const NAMES_MAX: usize = 512;
/// How much of a listing one call asks for, in bytes: all of it, mostly.
const PAGE_BYTES: u32 = 128 << 10;

/// What is to be asked again.
#[derive(Debug)]
pub(super) enum Question {
    Listing(FileHandle),
    Name(FileHandle, Bytes),
}

/// Returns what is to be asked, by what the index knows of an earlier session.
pub(super) fn questions(index: &Index, root: FileHandle) -> Vec<Question> {
    let (mut dirs, mut seen) = (VecDeque::from([root]), HashSet::from([root]));
    let mut questions = Vec::new();
    while let Some(dir) = dirs.pop_front().filter(|_| questions.len() < CALLS_MAX) {
        let (names, whole) = index.known_names(&dir, NAMES_MAX + 1);
        if names.len() > NAMES_MAX {
            continue;
        }
        if whole {
            questions.push(Question::Listing(dir));
        }
        for (name, child) in names {
            let attr = index.node(&child).and_then(|known| known.attr);
            if attr.is_some_and(|attr| attr.kind == FileKind::Directory) && seen.insert(child) {
                dirs.push_back(child);
            }
            if !whole && questions.len() < CALLS_MAX {
                questions.push(Question::Name(dir, name));
            }
        }
    }
    questions
}

impl Core {
    /// Asks in the background.
    pub(super) fn look_again(&self, questions: Vec<Question>) {
        for question in questions {
            let Some(core) = self.this.upgrade() else { return };
            self.runtime.spawn(async move { core.answer(question).await });
        }
    }

    /// Asks as a program does: what comes is noted, and an error is for whoever asks for himself.
    async fn answer(&self, question: Question) {
        match question {
            Question::Name(dir, name) => {
                let _ = self.lookup(&self.own, &dir, &name).await;
            }
            Question::Listing(dir) => {
                // Its own attributes are not part of a listing, but for whoever looks it up.
                let _ = tokio::join!(self.getattr(&self.own, &dir), self.list(&dir));
            }
        }
    }

    async fn list(&self, dir: &FileHandle) -> Result<()> {
        let (mut cookie, mut verifier) = (0, Verifier::default());
        loop {
            let page = self.readdir(&self.own, dir, cookie, verifier, PAGE_BYTES, true).await?;
            match page.entries.last() {
                Some(last) if !page.eof => (cookie, verifier) = (last.cookie, page.verifier),
                _ => return Ok(()),
            }
        }
    }
}
