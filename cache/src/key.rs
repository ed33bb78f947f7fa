//! The number under which a version of a file has its frames.

use ring::rand::{SecureRandom, SystemRandom};

/// Names one version of a file in the frame store: a random number, never 0. When the server's file
/// turns out changed it gets a new one, and the frames of the old one can no longer be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileKey(pub u64);

impl FileKey {
    /// Returns a key that no version of any file has.
    pub fn random() -> Self {
        Self(random_number())
    }
}

/// Returns a random number that is not 0.
pub(crate) fn random_number() -> u64 {
    let mut bytes = [0; 8];
    loop {
        // The kernel's generator is there from early boot on; the loop is for the number 0.
        if SystemRandom::new().fill(&mut bytes).is_ok() {
            let number = u64::from_le_bytes(bytes);
            if number != 0 {
                return number;
            }
        }
    }
}
