//! Changes by others that the layers below have heard of: what the kernel knows of the files goes.

use std::sync::atomic::Ordering;

use gridvfs_vfs::{Attr, Change, Coverage, FileHandle, FileKind, Listener};

use super::{Core, Invalidation};
use crate::inodes::Inode;

impl Core {
    fn drop_from_kernel(&self, invalidation: Invalidation) {
        // The receiver goes with the session; what it would drop goes with it.
        let _ = self.invalidations.send(invalidation);
    }

    /// Somebody else has changed a file's data: what is cached of it goes.
    pub(super) fn drop_data(&self, inode: &Inode) {
        self.vfs.invalidate(&inode.handle);
        inode.ways.outdate();
        self.drop_from_kernel(Invalidation::Pages(inode.id, None));
    }

    /// Somebody else has changed a file's attributes, and its data if they say so.
    fn attributes_changed(&self, file: &FileHandle, attr: Option<&Attr>) {
        let Some(inode) = self.inodes.find(file) else { return };
        inode.forget_seen();
        if let Some(attr) = attr {
            // If the data has changed, its pages go with the attributes.
            self.noted(&inode, attr);
        }
        self.drop_from_kernel(Invalidation::Attributes(inode.id));
    }

    fn data_changed(&self, file: &FileHandle) {
        match self.inodes.find(file) {
            Some(inode) if inode.kind == FileKind::Regular => {
                inode.note_unknown();
                self.drop_data(&inode);
            }
            _ => self.attributes_changed(file, None),
        }
    }
}

impl Listener for Core {
    fn changed(&self, change: &Change) {
        // What is being asked for now is not to be noted as seen.
        self.changes.fetch_add(1, Ordering::AcqRel);
        match change {
            Change::File(file, _) => self.data_changed(file),
            Change::Attributes(file, attr) => self.attributes_changed(file, attr.as_ref()),
            // As in a session that hears of nothing: it is looked at again within a second.
            Change::Uncovered(_) => {}
            Change::Names(dir) => self.attributes_changed(dir, None),
            Change::Name(dir, name, _) => {
                if let Some(inode) = self.inodes.find(dir) {
                    inode.forget_seen();
                    self.drop_from_kernel(Invalidation::Name(inode.id, name[..].into()));
                    self.drop_from_kernel(Invalidation::Attributes(inode.id));
                }
            }
        }
    }

    fn covered(&self, coverage: &Coverage) {
        if *coverage != Coverage::Whole {
            return;
        }
        // Nobody knows what has changed, and who reads an open file does not ask. The others are asked
        // for when they are opened.
        let vfs = self.vfs.clone();
        let (inodes, invalidations) = (self.inodes.open_files(), self.invalidations.clone());
        self.runtime.spawn(async move {
            for inode in inodes {
                inode.forget_seen();
                let attr = vfs.getattr(&Self::own_caller(), &inode.handle).await;
                if attr.map_or(true, |attr| inode.note(&attr)) {
                    vfs.invalidate(&inode.handle);
                    inode.ways.outdate();
                    let _ = invalidations.send(Invalidation::Pages(inode.id, None));
                }
            }
        });
    }
}
