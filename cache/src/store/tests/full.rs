//! A full disk. Needs a file system of a few megabytes, and so root; skipped otherwise.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

use super::*;

/// A mounted tmpfs, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let path = CString::new(dir.path().as_os_str().as_bytes()).unwrap();
        let options = CString::new(format!("size={bytes}")).unwrap();
        // SAFETY: all are strings that live over the call.
        let outcome = unsafe {
            libc::mount(
                c"gridvfs-test".as_ptr(),
                path.as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                options.as_ptr().cast(),
            )
        };
        if outcome != 0 {
            eprintln!("skipped: no tmpfs can be mounted ({})", io::Error::last_os_error());
            return None;
        }
        Some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let path = CString::new(self.0.path().as_os_str().as_bytes()).unwrap();
        // SAFETY: a string that lives over the call.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

#[test]
fn a_full_disk_is_said_and_space_comes_back() {
    let Some(disk) = SmallDisk::new(4 << 20) else { return };
    let geometry = Geometry { size_bytes: 64 << 20, ..small() };
    let store = Store::open(disk.0.path(), &geometry, false).unwrap();
    let put =
        |number: u64, version| store.put(KEY, number * 4096, &versioned(KEY, number, version));
    let mut stored = 0;
    let error = loop {
        match put(stored, 1) {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::NoSpace), "{error}");
    assert!(stored > 700, "{stored} blocks of 1024");
    assert_eq!(count(&store.counters().no_space), 1);
    // A write that fails half way leaves nothing old, and what was there is still right.
    let data: Vec<u8> = (0..1200).flat_map(|number| versioned(KEY, number, 2)).collect();
    assert!(matches!(store.put(KEY, 0, &data), Err(StoreError::NoSpace)));
    for number in 0..1200 {
        if let Some(data) = read_block(&store, KEY, number) {
            assert_eq!(version_of(KEY, number, &data), 2);
        }
    }
    let used = store.usage().disk_bytes;
    let freed = store.give_back(1 << 20);
    assert!(freed >= 1 << 20, "{freed}");
    assert_eq!(store.usage().disk_bytes, used - freed);
    for number in 2000..2200 {
        put(number, 1).unwrap();
    }
    // All of it, pinned files excepted.
    store.set_pinned([KEY].into());
    let kept = store.usage().bytes;
    store.give_back(u64::MAX);
    assert_eq!(store.usage().bytes, kept);
    store.set_pinned(HashSet::new());
    store.give_back(u64::MAX);
    assert_eq!((store.usage().bytes, store.usage().disk_bytes), (0, 0));
    assert_eq!(count(&store.counters().repaired), 0);
}

#[test]
fn tags_that_do_not_fit_are_said() {
    let Some(disk) = SmallDisk::new(1 << 20) else { return };
    let geometry = Geometry { size_bytes: 4 << 30, ..Geometry::default() };
    for _ in 0..2 {
        let error = Store::open(disk.0.path(), &geometry, false).unwrap_err();
        assert!(matches!(error, StoreError::NoRoom { .. }), "{error}");
    }
    let geometry = Geometry { size_bytes: 1 << 30, banks: 16, ..geometry };
    let Err(StoreError::NoRoom { .. }) = Store::open(disk.0.path(), &geometry, false) else {
        panic!("1.3 MB of tags fit in 1 MiB");
    };
    Store::open(disk.0.path(), &small(), false).unwrap().put(KEY, 0, &[1; 4096]).unwrap();
}
