//! A file of which metadata speaks, while it is read.

use std::fs::{File, Metadata as Stat, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use gridvfs_vfs::Time;

use super::BuildError;
use crate::format::Identity;

/// The kernel's clock of file times moves in steps of at most so much (10 ms at 100 Hz). A file that
/// was written within the last one could be written again without its mtime changing.
const CLOCK_STEP: Duration = Duration::from_millis(20);

/// A regular file that is open for reading, and what it was when it was opened.
pub struct Subject {
    path: PathBuf,
    file: File,
    stat: Stat,
}

impl Subject {
    /// Opens it; waits up to 20 ms if it was written just now.
    pub fn open(path: &Path) -> Result<Self, BuildError> {
        // A FIFO would wait for a writer; it is refused below.
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = file.map_err(BuildError::io("open", path))?;
        let mut stat = file.metadata().map_err(BuildError::io("look at", path))?;
        if !stat.is_file() {
            return Err(BuildError::NotRegular(path.into()));
        }
        let age = stat.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        if let Some(left) = age.and_then(|age| CLOCK_STEP.checked_sub(age)) {
            std::thread::sleep(left);
            stat = file.metadata().map_err(BuildError::io("look at", path))?;
        }
        Ok(Self { path: path.into(), file, stat })
    }

    /// Returns which version of it was opened.
    pub fn identity(&self) -> Identity {
        identity_of(&self.stat)
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Fails if it is not what it was when it was opened, or another file has its name.
    pub fn check_unchanged(&self) -> Result<(), BuildError> {
        let now = self.file.metadata().map_err(BuildError::io("look at", &self.path))?;
        let named = std::fs::metadata(&self.path).map_err(BuildError::io("look at", &self.path))?;
        let seen = |stat: &Stat| {
            let Identity { size, mtime } = identity_of(stat);
            // The ctime tells of a change whose mtime was set back.
            (stat.dev(), stat.ino(), size, mtime, stat.ctime(), stat.ctime_nsec())
        };
        match [now, named].iter().all(|stat| seen(stat) == seen(&self.stat)) {
            true => Ok(()),
            false => Err(BuildError::Changed(self.path.clone())),
        }
    }
}

/// Returns which version of a file its attributes are of.
pub fn identity_of(stat: &Stat) -> Identity {
    // The kernel has the nanoseconds below 1,000,000,000.
    let mtime = Time { seconds: stat.mtime(), nanoseconds: stat.mtime_nsec() as u32 };
    Identity { size: stat.size(), mtime }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn every_change_is_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("f");
        let other = folder.path().join("g");
        std::fs::write(&other, "12345678").expect("written");
        let changed = |change: &dyn Fn(&File)| {
            std::fs::write(&path, "12345678").expect("written");
            let writer = OpenOptions::new().write(true).open(&path).expect("open");
            let subject = Subject::open(&path).expect("open");
            assert!(subject.check_unchanged().is_ok());
            change(&writer);
            matches!(subject.check_unchanged(), Err(BuildError::Changed(_)))
        };
        assert!(changed(&|file| file.write_all_at(b"x", 3).expect("written")));
        assert!(changed(&|file| file.set_len(7).expect("cut")));
        assert!(changed(&|file| {
            let before = file.metadata().and_then(|stat| stat.modified()).expect("a time");
            file.write_all_at(b"x", 3).expect("written");
            file.set_modified(before).expect("set back");
        }));
        assert!(changed(&|_| drop(std::fs::rename(&other, &path))));
    }
}
