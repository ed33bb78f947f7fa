//! Changes by others that the layers below have heard of: what the kernel knows of the files goes.

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

    fn file_changed(&self, file: &FileHandle, attr: Option<&Attr>) {
        let Some(inode) = self.inodes.find(file) else { return };
        match attr {
            Some(attr) => {
                inode.forget_seen();
                // If the data has changed, its pages go with the attributes.
                self.noted(&inode, attr);
                self.drop_from_kernel(Invalidation::Attributes(inode.id));
            }
            None if inode.kind == FileKind::Regular => {
                inode.note_unknown();
                self.drop_data(&inode);
            }
            None => {
                inode.forget_seen();
                self.drop_from_kernel(Invalidation::Attributes(inode.id));
            }
        }
    }
}

impl Listener for Core {
    fn changed(&self, change: &Change) {
        match change {
            Change::File(file, attr) => self.file_changed(file, attr.as_ref()),
            // As in a session that hears of nothing: it is looked at again within a second.
            Change::Uncovered(_) => {}
            Change::Names(dir) => self.file_changed(dir, None),
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
