//! The files that a VMware disk consists of: what its descriptor names, and what those name.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::golden::Golden;

/// The first line of a descriptor.
const DESCRIPTOR: &[u8] = b"# Disk DescriptorFile";
/// The first bytes of an extent that may hold a descriptor of its own.
const SPARSE: &[u8] = b"KDMV";
/// Where a sparse extent tells its descriptor's place and size, in sectors.
const DESCRIPTOR_AT: usize = 28;
const SECTOR: u64 = 512;
/// The most of a descriptor that is read, in bytes; VMware's have 10 to 20 KiB.
const DESCRIPTOR_BYTES_MAX: u64 = 1 << 20;
/// The longest chain of snapshots.
const CHAIN_MAX: usize = 256;

/// Returns all files of a disk, and of the disks below it.
pub fn files(golden: &Golden, disk: &Path) -> Result<Vec<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut next = Some(disk.to_path_buf());
    let mut length = 0;
    while let Some(disk) = next.take() {
        length += 1;
        if length > CHAIN_MAX || !found.insert(disk.clone()) {
            bail!("{}: its snapshots form no chain of at most {CHAIN_MAX}", disk.display());
        }
        let text = descriptor(&disk)?;
        let base = disk.parent().unwrap_or(Path::new("/"));
        for name in text.lines().filter_map(extent) {
            let path = base.join(name);
            let path = if path.exists() { path } else { golden.file(name)? };
            found.insert(path);
        }
        next = text
            .lines()
            .find_map(|line| value(line, "parentFileNameHint"))
            .map(|hint| golden.file(hint))
            .transpose()
            .with_context(|| format!("{} is laid over another disk", disk.display()))?;
    }
    Ok(found.into_iter().collect())
}

fn descriptor(disk: &Path) -> Result<String> {
    let file = File::open(disk).with_context(|| disk.display().to_string())?;
    let mut head = [0; SECTOR as usize];
    let length = file.read_at(&mut head, 0).with_context(|| disk.display().to_string())?;
    let head = &head[..length];
    if head.starts_with(DESCRIPTOR) {
        return read(&file, 0, DESCRIPTOR_BYTES_MAX);
    }
    if !head.starts_with(SPARSE) {
        bail!("{} is no VMware disk", disk.display());
    }
    let number = |at: usize| {
        let bytes = head.get(at..at + 8)?.try_into().ok()?;
        u64::from_le_bytes(bytes).checked_mul(SECTOR)
    };
    let (Some(at), Some(size)) = (number(DESCRIPTOR_AT), number(DESCRIPTOR_AT + 8)) else {
        bail!("{}: its header is cut or damaged", disk.display());
    };
    // An extent of another's disk has none.
    read(&file, at, size.min(DESCRIPTOR_BYTES_MAX))
}

fn read(file: &File, at: u64, size: u64) -> Result<String> {
    let mut bytes = vec![0; size as usize];
    let mut length = 0;
    while length < bytes.len() {
        match file.read_at(&mut bytes[length..], at + length as u64)? {
            0 => break,
            count => length += count,
        }
    }
    bytes.truncate(length);
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(length);
    Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// Reads a line `RW 4192256 SPARSE "name.vmdk" 0`.
fn extent(line: &str) -> Option<&str> {
    let line = line.trim();
    if !["RW ", "RDONLY ", "NOACCESS "].iter().any(|access| line.starts_with(access)) {
        return None;
    }
    line.split('"').nth(1).filter(|name| !name.is_empty())
}

fn value<'a>(line: &'a str, wanted: &str) -> Option<&'a str> {
    let (key, value) = line.split_once('=')?;
    let value = value.trim().trim_matches('"');
    (key.trim().eq_ignore_ascii_case(wanted) && !value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Golden) {
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(directory.path().join(name), bytes).unwrap();
        }
        std::fs::write(directory.path().join("a.vmx"), "").unwrap();
        let golden = Golden::open(directory.path(), None).unwrap();
        (directory, golden)
    }

    fn names(golden: &Golden, disk: &str) -> Result<Vec<String>> {
        let files = files(golden, &golden.directory().join(disk))?;
        Ok(files.iter().map(|path| path.file_name().unwrap().to_string_lossy().into()).collect())
    }

    #[test]
    fn extents_and_the_disks_below_are_found() {
        let mut sparse = vec![0; 1024];
        sparse[..4].copy_from_slice(SPARSE);
        sparse[28] = 1;
        sparse[36] = 1;
        sparse.extend(b"# Disk DescriptorFile\nRW 8 SPARSE \"base.vmdk\"\n".iter());
        sparse.copy_within(1024.., 512);
        let (_directory, golden) = golden(&[
            ("my disk.vmdk", b"# Disk DescriptorFile\nparentFileNameHint=\"/gone/base.vmdk\"\n\
              RW 8 FLAT \"my disk-f001.vmdk\" 0\nRDONLY 8 FLAT \"my disk-f002.vmdk\" 0\n# RW \"no\"\n"),
            ("my disk-f001.vmdk", b""),
            ("my disk-f002.vmdk", b""),
            ("base.vmdk", &sparse),
        ]);
        assert_eq!(
            names(&golden, "my disk.vmdk").unwrap(),
            ["base.vmdk", "my disk-f001.vmdk", "my disk-f002.vmdk", "my disk.vmdk"]
        );
    }

    #[test]
    fn damaged_and_circular_disks_are_errors() {
        let mut far = SPARSE.to_vec();
        far.resize(512, 0xff);
        let (_directory, golden) = golden(&[
            ("lost.vmdk", b"# Disk DescriptorFile\nRW 8 FLAT \"gone.vmdk\" 0\n"),
            ("round.vmdk", b"# Disk DescriptorFile\nparentFileNameHint=\"round.vmdk\"\n"),
            ("other.vmdk", b"something else"),
            ("short.vmdk", SPARSE),
            ("far.vmdk", &far),
        ]);
        for disk in ["lost.vmdk", "round.vmdk", "other.vmdk", "short.vmdk", "far.vmdk"] {
            assert!(names(&golden, disk).is_err(), "{disk}");
        }
    }
}
