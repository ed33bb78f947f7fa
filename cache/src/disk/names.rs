//! Names: looked up, listed and changed. They are noted in every session, so that an unsent file's
//! handle is known when its name is removed, and believed in those that trust what they know.

use bytes::Bytes;
use gridvfs_vfs::{
    Caller, CreateHow, Created, DirEntry, DirPage, Entry, Error, FileHandle, FileKind, Linked,
    Result, SetAttr, Status, Verifier, Vfs, Wcc, WccAttr, is_dots,
};

use super::Core;
use super::send::is_gone;
use super::setattr::is_answer;
use crate::counters::add;
use crate::crash;
use crate::index::{Index, Name};
use crate::journal::{At, Record};

/// About how many bytes an entry with attributes takes in the answer to READDIRPLUS.
const ENTRY_BYTES: u32 = 170;
/// How many files of a listing are looked for in the index at once: some 5 ms.
const PREPARED: usize = 1000;

/// Says whether a call seems to have left a directory as it was.
fn is_unchanged(dir: &Wcc) -> bool {
    dir.after.is_some_and(|after| dir.before == Some(WccAttr::from(&after)))
}

impl Core {
    pub async fn lookup(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Entry> {
        if self.trusts() {
            match self.index.lookup(dir, name) {
                Name::Here(handle) => {
                    if let Some(attr) = self.trusted_attr(&handle) {
                        add(&self.counters.name_hits, 1);
                        return Ok(Entry { handle, attr: Some(attr), dir_attr: None });
                    }
                }
                Name::Absent => {
                    add(&self.counters.name_hits, 1);
                    return Err(Status::NOENT.into());
                }
                Name::Unknown => {}
            }
        }
        let asked = self.ask();
        let token = self.index.token(dir);
        match self.buffer.lookup(caller, dir, name).await {
            Ok(mut entry) => {
                if let Some(attr) = &mut entry.attr {
                    self.observe(&entry.handle, attr, asked);
                }
                self.index.note_name(dir, name, Some(entry.handle), token);
                Ok(entry)
            }
            Err(error) => {
                match error.status() {
                    Status::NOENT => {
                        self.index.note_name(dir, name, None, token);
                    }
                    Status::STALE => self.index.forget_dir(dir),
                    _ => {}
                }
                Err(error)
            }
        }
    }

    /// Says whether an error says no more than what is known of a name, in a session that goes by
    /// that.
    fn was_expected(&self, dir: &FileHandle, name: &[u8], error: &Error) -> bool {
        self.defers()
            && match self.index.lookup(dir, name) {
                Name::Here(_) => error.status() == Status::EXIST,
                Name::Absent => error.status() == Status::NOENT,
                Name::Unknown => false,
            }
    }

    /// Notes what a change of names left of its directory.
    fn after(&self, dir: &FileHandle, wcc: &Wcc, asked: u64) {
        self.note_own(dir, wcc.after, asked);
    }

    /// To be called when a change of ours, asked for when the clock stood at `asked`, was noted: where
    /// others' change of the directory was told since, nobody knows which of them was the last.
    fn doubt_names(&self, names: &[(&FileHandle, &[u8])], asked: u64) {
        for (dir, name) in names {
            if self.index.node(dir).is_some_and(|known| known.told_at > asked) {
                self.index.dir_changed(dir);
                self.index.forget_name(dir, name);
            }
        }
    }

    /// Notes a name that was made.
    pub fn made(
        &self,
        dir: &FileHandle,
        name: &[u8],
        made: Result<Created>,
        (directory, asked): (bool, u64),
    ) -> Result<Created> {
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                if !self.was_expected(dir, name, &error) {
                    self.index.forget_name(dir, name);
                }
                return Err(error);
            }
        };
        match &made.handle {
            Some(handle) => {
                if directory {
                    self.index.set_empty(handle);
                    if self.defers() {
                        // That a name in it is absent is known when this is written down.
                        self.index.flush();
                    }
                }
                self.note_own(handle, made.attr, asked);
                self.index.created(dir, name, handle);
                self.doubt_names(&[(dir, name)], asked);
            }
            None => {
                self.index.dir_changed(dir);
                self.index.forget_name(dir, name);
            }
        }
        self.after(dir, &made.dir_wcc, asked);
        Ok(made)
    }

    pub async fn create(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
        how: &CreateHow,
    ) -> Result<Created> {
        self.refuse_if_read_only()?;
        let cuts = matches!(how, CreateHow::Unchecked(SetAttr { size: Some(_), .. }));
        // The name may be of a file with unsent data, which is cut: nothing of it may be under way.
        let before = match cuts {
            true => self.file_of_name(caller, dir, name).await?.and_then(|file| self.known(&file)),
            false => None,
        };
        if before.is_some() {
            // Before the file's turn is taken: a rename that is pending may wait for its data.
            self.names.settle_children(&[At { dir: *dir, name: name.into() }]).await?;
        }
        let mut changing = None;
        let _turn = match &before {
            Some(node) => {
                let turn = self.hold(node).await?;
                if let CreateHow::Unchecked(SetAttr { size: Some(size), .. }) = how {
                    self.intend_cut(node, *size).await?;
                }
                changing = Some(node.changing());
                Some(turn)
            }
            None => None,
        };
        crash::point(crash::Point::BEFORE_CUT);
        let asked = self.ask();
        let created = self.buffer.create(caller, dir, name, how).await;
        crash::point(crash::Point::AFTER_CUT);
        if let Some(changing) = changing.take()
            && created.as_ref().map_or_else(is_answer, |_| true)
        {
            changing.done();
        }
        let cut = created.as_ref().ok().and_then(|created| created.handle);
        if let Some(node) = before.as_ref().filter(|node| cut != Some(node.handle)) {
            // It was refused, or the name is another file's by now.
            self.log(&mut node.state.lock(), Record::Abandoned { handle: node.handle })?;
        }
        let mut created = self.made(dir, name, created, (false, asked))?;
        let (Some(handle), Some(attr)) = (created.handle, &mut created.attr) else {
            return Ok(created);
        };
        if cuts && let Some(node) = self.known(&handle) {
            let mut state = node.state.lock();
            state.changed_at = self.tick();
            let after = WccAttr::from(&*attr);
            self.cut(&node, &mut state, attr.size, Some(&after))?;
            let current = state.told_at <= asked;
            self.take_own_base(&mut state, attr);
            state.settled = current;
            node.set_size(current.then_some(attr.size));
            let (base, written) = (state.base, self.period());
            self.index.update(&handle, |known| {
                known.base = base;
                known.written = written;
            });
        } else {
            // A new file is known by this very answer alone.
            let new = self.known(&handle).is_none();
            self.observe(&handle, attr, if new { self.ask() } else { asked });
        }
        Ok(created)
    }

    /// Returns the file of a name that is about to go. It has to be known if any file has unsent
    /// data: it may be this one. So it has if attributes are believed: this change of its own nobody
    /// tells us of.
    async fn file_of_name(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Option<FileHandle>> {
        match self.index.lookup(dir, name) {
            Name::Here(handle) => Ok(Some(handle)),
            Name::Unknown if self.dirty_bytes() > 0 || self.trusts() => {
                let token = self.index.token(dir);
                match self.buffer.lookup(caller, dir, name).await {
                    Ok(entry) => {
                        // Of what is pending it is found by its name.
                        self.index.note_name(dir, name, Some(entry.handle), token);
                        Ok(Some(entry.handle))
                    }
                    // What is wrong with it the change itself will say.
                    Err(Error::Status(_)) => Ok(None),
                    Err(error) => Err(error),
                }
            }
            _ => Ok(None),
        }
    }

    pub async fn remove(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        self.refuse_if_read_only()?;
        let child = self.file_of_name(caller, dir, name).await?;
        let links = self.links(child.as_ref());
        self.intend_removal(child.as_ref())?;
        let asked = self.ask();
        match self.buffer.remove(caller, dir, name).await {
            Ok(wcc) => {
                self.index.removed(dir, name);
                self.doubt_names(&[(dir, name)], asked);
                self.after(dir, &wcc, asked);
                self.name_gone(caller, child.as_ref(), links, asked).await;
                Ok(wcc)
            }
            Err(error) => {
                if !self.was_expected(dir, name, &error) {
                    self.index.forget_name(dir, name);
                }
                self.not_removed(child.as_ref());
                Err(error)
            }
        }
    }

    /// A file's removal is noted before it is asked for: should this process be killed in between,
    /// the next one knows why the file is gone.
    fn intend_removal(&self, child: Option<&FileHandle>) -> Result<()> {
        let Some(node) = child.and_then(|handle| self.known(handle)) else { return Ok(()) };
        if node.is_local() {
            let mut state = node.state.lock();
            self.log(&mut state, Record::RemoveIntent { handle: node.handle })?;
            // It is on disk before the server is asked.
            self.names.note_made(node.handle, self.journal.newest());
            crash::point(crash::Point::BEFORE_REMOVE);
        }
        Ok(())
    }

    /// How many names a file has, if that is known. To be asked before one is taken away: afterwards it
    /// may mean those that are left.
    fn links(&self, child: Option<&FileHandle>) -> Option<u32> {
        let known = self.index.node(child?)?;
        known.attr.map(|attr| attr.links)
    }

    /// A name of a file that had `links` is gone; it was asked for when the clock stood at `asked`. If
    /// it was the last, unsent data is dropped.
    async fn name_gone(
        &self,
        caller: &Caller,
        child: Option<&FileHandle>,
        links: Option<u32>,
        asked: u64,
    ) {
        crash::point(crash::Point::AFTER_REMOVE);
        let Some(handle) = child else { return };
        let local = self.known(handle).is_some_and(|node| node.is_local());
        // Others may have moved the file away and put another one in its place.
        let believed = !local || self.settings.read().consistency.trusts();
        match links {
            Some(1) if believed => {
                self.discard(handle);
                self.index.forget_node(handle);
                self.forget_bound(handle);
            }
            Some(links @ 2..) if self.defers() => {
                self.note_links(handle, links - 1, asked);
                self.not_removed(child);
            }
            _ => {
                self.note_own(handle, None, 0);
                let gone = |error: Error| is_gone(&error);
                if local && self.buffer.getattr(caller, handle).await.is_err_and(gone) {
                    self.discard(handle);
                } else {
                    self.not_removed(child);
                }
            }
        }
    }

    /// A removal that was noted has not come about, or has left other names.
    fn not_removed(&self, child: Option<&FileHandle>) {
        let Some(node) = child.and_then(|handle| self.known(handle)) else { return };
        let mut state = node.state.lock();
        if state.said.remove_intent {
            self.note(&mut state, Record::Abandoned { handle: node.handle });
        }
    }

    pub async fn rmdir(&self, caller: &Caller, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        self.refuse_if_read_only()?;
        let child = match self.index.lookup(dir, name) {
            Name::Here(handle) => Some(handle),
            _ => None,
        };
        let asked = self.ask();
        match self.buffer.rmdir(caller, dir, name).await {
            Ok(wcc) => {
                self.index.removed(dir, name);
                self.doubt_names(&[(dir, name)], asked);
                self.after(dir, &wcc, asked);
                if let Some(handle) = child {
                    self.index.forget_dir(&handle);
                    self.index.forget_node(&handle);
                }
                Ok(wcc)
            }
            Err(error) => {
                self.index.forget_name(dir, name);
                Err(error)
            }
        }
    }

    pub async fn rename(
        &self,
        caller: &Caller,
        from: (&FileHandle, &[u8]),
        to: (&FileHandle, &[u8]),
        no_replace: bool,
    ) -> Result<(Wcc, Wcc)> {
        self.refuse_if_read_only()?;
        let moved = self.file_of_name(caller, from.0, from.1).await?;
        let target = self.file_of_name(caller, to.0, to.1).await?;
        let known = |(dir, name)| self.index.lookup(dir, name) != Name::Unknown;
        let decided_here = self.defers() && known(from) && known(to);
        let replaced = target.filter(|handle| Some(*handle) != moved);
        let links = self.links(replaced.as_ref());
        self.intend_removal(replaced.as_ref())?;
        let asked = self.ask();
        let renamed = self.buffer.rename(caller, from.0, from.1, to.0, to.1, no_replace).await;
        let (from_wcc, to_wcc) = match renamed {
            Ok(wccs) => wccs,
            Err(error) => {
                self.index.dir_changed(from.0);
                self.index.dir_changed(to.0);
                if !self.was_expected(from.0, from.1, &error) {
                    self.index.forget_name(from.0, from.1);
                    self.index.forget_name(to.0, to.1);
                }
                self.not_removed(replaced.as_ref());
                return Err(error);
            }
        };
        let same_file = moved.is_some() && moved == target;
        if same_file || !decided_here && is_unchanged(&from_wcc) {
            // Two names of one file: nothing was done. Others may have made them so.
            self.index.forget_name(from.0, from.1);
            self.index.forget_name(to.0, to.1);
        } else {
            self.index.renamed(from.0, from.1, to.0, to.1);
            self.doubt_names(&[from, to], asked);
        }
        if let Some(handle) = moved.filter(|_| !self.defers()) {
            // The server's clock is in its ctime now. A session that owns its files goes by its own.
            self.note_own(&handle, None, 0);
        }
        for (dir, wcc) in [(from.0, &from_wcc), (to.0, &to_wcc)] {
            self.after(dir, wcc, asked);
        }
        if !self.settings.read().rules.is_empty() {
            self.nodes.iter().for_each(|node| node.moved());
        }
        if replaced.is_some() {
            self.name_gone(caller, replaced.as_ref(), links, asked).await;
        }
        Ok((from_wcc, to_wcc))
    }

    pub async fn link(
        &self,
        caller: &Caller,
        file: &FileHandle,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Linked> {
        self.refuse_if_read_only()?;
        let asked = self.ask();
        let mut linked = self.buffer.link(caller, file, dir, name).await.inspect_err(|error| {
            if !self.was_expected(dir, name, error) {
                self.index.forget_name(dir, name);
            }
        })?;
        match &mut linked.attr {
            Some(attr) => {
                let links = attr.links;
                self.observe(file, attr, asked);
                attr.links = links;
                self.note_links(file, links, asked);
            }
            None => self.note_own(file, None, 0),
        }
        self.index.created(dir, name, file);
        self.doubt_names(&[(dir, name)], asked);
        self.after(dir, &linked.dir_wcc, asked);
        Ok(linked)
    }

    pub async fn readdir(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        cookie: u64,
        verifier: Verifier,
        size_bytes: u32,
        plus: bool,
    ) -> Result<DirPage> {
        if self.trusts()
            && let Some(page) = self.listed(dir, cookie, size_bytes, plus)
        {
            add(&self.counters.listing_hits, 1);
            self.walk_listed(dir, &page.entries);
            return Ok(page);
        }
        let asked = self.ask();
        let token = self.index.token(dir);
        let mut page = self.buffer.readdir(caller, dir, cookie, verifier, size_bytes, plus).await?;
        let trusts = self.trusts();
        for entries in page.entries.chunks_mut(PREPARED) {
            if trusts {
                self.index.prepare(entries.iter().filter_map(|entry| entry.handle));
            }
            for entry in entries {
                let dots = is_dots(&entry.name);
                if let (Some(handle), Some(attr), false) = (&entry.handle, &mut entry.attr, dots)
                    // Elsewhere a file's attributes are asked for again when it is opened.
                    && (trusts || self.nodes.contains_key(handle))
                {
                    if trusts {
                        // Side by side with the attributes, so that they become one row.
                        self.index.set_place(handle, dir, &entry.name);
                    }
                    self.observe(handle, attr, asked);
                }
            }
        }
        if trusts {
            let (entries, eof) = (&page.entries, page.eof);
            self.index.set_listing_part(dir, cookie, entries, eof, page.verifier, token);
        } else {
            self.note_places(dir, &page.entries);
        }
        self.walk_listed(dir, &page.entries);
        Ok(page)
    }

    /// Notes where the files of a listing are that is not itself noted.
    fn note_places(&self, dir: &FileHandle, entries: &[DirEntry]) {
        for entry in entries.iter().filter(|entry| !is_dots(&entry.name)) {
            let Some(handle) = entry.handle else { continue };
            // Paths go through directories, used or not.
            let is_dir = entry.attr.is_some_and(|attr| attr.kind == FileKind::Directory);
            if is_dir || self.nodes.contains_key(&handle) {
                self.index.set_place(&handle, dir, &entry.name);
            } else {
                self.places.lock().put(handle, (*dir, Bytes::copy_from_slice(&entry.name)));
            }
        }
    }

    /// Answers a part of a listing from the index.
    fn listed(
        &self,
        dir: &FileHandle,
        cookie: u64,
        size_bytes: u32,
        plus: bool,
    ) -> Option<DirPage> {
        self.trusted_attr(dir)?;
        let count = (size_bytes / ENTRY_BYTES).max(1) as usize;
        let listed = self.index.listing(dir, cookie, count)?;
        let mut missing = 0;
        let mut entries = Vec::with_capacity(listed.entries.len());
        for entry in listed.entries {
            let attr = entry.handle.filter(|_| plus).and_then(|handle| self.trusted_attr(&handle));
            missing += usize::from(attr.is_none() && !is_dots(&entry.name));
            entries.push(DirEntry {
                fileid: entry.fileid.or(attr.map(|attr| attr.fileid))?,
                name: entry.name,
                cookie: entry.cookie,
                attr,
                handle: entry.handle.filter(|_| plus),
            });
        }
        // One round trip brings the attributes of all; without them each costs one.
        if plus && missing > 1 {
            return None;
        }
        Some(DirPage { entries, eof: listed.eof, verifier: listed.verifier, dir_attr: None })
    }

    /// The path of a file in the mount, for people.
    pub fn path_text(&self, handle: &FileHandle) -> String {
        path_text(&self.index, &self.root, handle)
    }

    /// Says whether a handle is of a regular file, as far as is known.
    pub fn is_regular(&self, handle: &FileHandle) -> bool {
        let known = self.index.node(handle).and_then(|known| known.attr);
        known.is_none_or(|attr| attr.kind == FileKind::Regular)
    }
}

/// See [`Core::path_text`].
pub(crate) fn path_text(index: &Index, root: &FileHandle, handle: &FileHandle) -> String {
    match index.path_of(handle, root) {
        Some(path) => String::from_utf8_lossy(&path).into_owned(),
        None => format!("{handle:?}"),
    }
}
