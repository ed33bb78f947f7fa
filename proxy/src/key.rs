//! The session key: 128 random bits that every call of a session carries (the paper's section 3.2).

use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use ring::rand::{SecureRandom, SystemRandom};

/// The key's length in bytes.
const KEY_BYTES: usize = 16;

/// A session key. Never printed, and compared in constant time.
#[derive(Clone)]
pub struct SessionKey([u8; 2 * KEY_BYTES]);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system has no random numbers.
    #[error("no random numbers to make a session key of")]
    NoRandomness,
    /// The key file cannot be read.
    #[error("key file {0}: {1}")]
    Io(String, std::io::Error),
    /// Others could read the key.
    #[error("key file {0} may be read by others (mode {1:o}): chmod 600 {0}")]
    Open(String, u32),
    /// Somebody else could change the key.
    #[error("key file {0} belongs to user {1}: it must be this user's own, or root's")]
    Foreign(String, u32),
    /// What is in the file is no key.
    #[error("key file {0}: 32 hexadecimal digits are expected")]
    NoKey(String),
}

impl SessionKey {
    /// Makes a new key.
    pub fn random() -> Result<Self, KeyError> {
        let mut bytes = [0; KEY_BYTES];
        SystemRandom::new().fill(&mut bytes).map_err(|_| KeyError::NoRandomness)?;
        let mut digits = [0; 2 * KEY_BYTES];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
            pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        Ok(Self(digits))
    }

    /// Reads a key from a file that nobody else may read.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let text = private_text(path, 256)?;
        Self::from_hex(text.trim()).ok_or_else(|| KeyError::NoKey(path.display().to_string()))
    }

    /// Takes a key in hexadecimal.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits: [u8; 2 * KEY_BYTES] = text.to_ascii_lowercase().as_bytes().try_into().ok()?;
        digits.iter().all(u8::is_ascii_hexdigit).then_some(Self(digits))
    }

    /// Returns the key in hexadecimal.
    pub fn to_hex(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }

    /// Compares a machine name with the key; how long it takes tells nothing about the key.
    pub fn matches(&self, machine_name: &[u8]) -> bool {
        // The length is public. Only equal lengths are compared, byte for byte, to the end.
        if machine_name.len() != self.0.len() {
            return false;
        }
        let differences = self.0.iter().zip(machine_name).fold(0, |sum, (a, b)| sum | (a ^ b));
        std::hint::black_box(differences) == 0
    }
}

/// Reads a file that must be nobody else's to read or write.
pub(crate) fn private_text(path: &Path, bytes_max: u64) -> Result<String, KeyError> {
    let name = || path.display().to_string();
    let fault = |error| KeyError::Io(name(), error);
    let mut options = std::fs::File::options();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(fault)?;
    let meta = file.metadata().map_err(fault)?;
    let own = nix::unistd::geteuid().as_raw();
    if meta.uid() != own && meta.uid() != 0 {
        return Err(KeyError::Foreign(name(), meta.uid()));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(KeyError::Open(name(), meta.mode() & 0o777));
    }
    let mut text = String::new();
    file.take(bytes_max).read_to_string(&mut text).map_err(fault)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_the_key_matches() {
        let key = SessionKey::random().expect("random");
        let hex = key.to_hex();
        assert!(key.matches(hex.as_bytes()));
        for at in 0..hex.len() {
            let mut other = hex.clone().into_bytes();
            other[at] ^= 1;
            assert!(!key.matches(&other));
        }
        assert!(!key.matches(b"") && !key.matches(&hex.as_bytes()[1..]));
        assert_ne!(SessionKey::random().expect("random").to_hex(), hex);
    }

    #[test]
    fn key_files_must_be_private() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("key");
        let mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode));
        std::fs::write(&path, "00112233445566778899AABBCCDDEEFF\n").expect("write");
        mode(0o644).expect("chmod");
        assert!(matches!(SessionKey::from_file(&path), Err(KeyError::Open(_, 0o644))));
        mode(0o600).expect("chmod");
        let key = SessionKey::from_file(&path).expect("a key");
        assert!(key.matches(b"00112233445566778899aabbccddeeff"));
        std::fs::write(&path, "0011").expect("write");
        assert!(matches!(SessionKey::from_file(&path), Err(KeyError::NoKey(_))));
    }
}
