//! The path of a mount point, as the kernel's mount table has it.

use std::io::Result;
use std::path::{Path, PathBuf};

/// The most symbolic links that are followed, as in the kernel.
const LINKS_MAX: u32 = 40;

/// Returns a mount point's path, absolute and without symbolic links. Never asks what is mounted
/// there, which may be dead or hang: parents are resolved, and links are read, not followed.
pub fn resolved(path: &Path) -> Result<PathBuf> {
    let mut path = std::path::absolute(path)?;
    for _ in 0..LINKS_MAX {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            // The root, or a path that ends in `..`.
            return std::fs::canonicalize(path);
        };
        let parent = std::fs::canonicalize(parent)?;
        path = parent.join(name);
        match std::fs::read_link(&path) {
            Ok(target) => path = parent.join(target),
            Err(_) => return Ok(path),
        }
    }
    Err(std::io::Error::from_raw_os_error(libc::ELOOP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_resolved() {
        let folder = tempfile::tempdir().expect("folder");
        let folder = folder.path().canonicalize().expect("folder");
        std::fs::create_dir_all(folder.join("a/b")).expect("mkdir");
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, folder.join(name)).expect("symlink");
        };
        link("a", "one");
        link("../one/b", "a/two");
        link("loop", "loop");
        link("none", "dangling");
        let at = |name: &str| resolved(&folder.join(name)).ok();
        for name in ["a/b", "one/b", "a/two", "one/two", "a/b/.", "a/b/", "a/../a/b"] {
            assert_eq!(at(name), Some(folder.join("a/b")), "{name}");
        }
        assert_eq!(at("dangling"), Some(folder.join("none")));
        assert_eq!(at("loop"), None);
        assert_eq!(at("missing/x"), None);
        assert_eq!(resolved(Path::new("/")).ok(), Some("/".into()));
    }
}
