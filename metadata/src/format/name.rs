//! The special name under which a file's metadata is looked up (paper, section 5).

/// How a metadata file's name ends. The subject's own name stands between a dot and this.
pub const METADATA_SUFFIX: &[u8] = b".gvfs-meta";

/// The longest name of a directory entry, in bytes: NAME_MAX of Linux's file systems.
pub const NAME_BYTES_MAX: usize = 255;

/// Returns the name of a file's metadata file, `.NAME.gvfs-meta`. `None`: it has none, because the
/// name would be longer than [`NAME_BYTES_MAX`], is a metadata file's itself, or is no name.
pub fn metadata_name(name: &[u8]) -> Option<Vec<u8>> {
    let is_name =
        !matches!(name, b"" | b"." | b"..") && !name.iter().any(|b| matches!(b, b'/' | 0));
    if !is_name || is_metadata_name(name) || 1 + name.len() + METADATA_SUFFIX.len() > NAME_BYTES_MAX
    {
        return None;
    }
    Some([b".", name, METADATA_SUFFIX].concat())
}

/// Returns the name under which a metadata file is written before it takes its own: a metadata
/// file's too, so that whoever does not show those does not show this, and short whatever `name`,
/// the metadata file's, is.
pub fn draft_name(name: &[u8]) -> Vec<u8> {
    let hash = blake3::hash(name).to_hex();
    [b".~", &hash.as_bytes()[..32], METADATA_SUFFIX].concat()
}

/// Tells whether a name is that of a metadata file.
pub fn is_metadata_name(name: &[u8]) -> bool {
    subject_name(name).is_some()
}

/// Returns the name of the file of which the file of this name is the metadata.
pub fn subject_name(name: &[u8]) -> Option<&[u8]> {
    let subject = name.strip_prefix(b".")?.strip_suffix(METADATA_SUFFIX)?;
    (!subject.is_empty()).then_some(subject)
}
