//! Why no metadata file was built, written, or read.

use std::io;
use std::path::{Path, PathBuf};

use super::ScanError;
use crate::format::{FormatError, METADATA_BYTES_MAX};

/// Why a metadata file was not built, written, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The system refused something.
    #[error("cannot {what} {path}: {error}")]
    Io {
        /// What.
        what: &'static str,
        /// Of which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A directory, a device, or another thing without content.
    #[error("{0} is not a regular file")]
    NotRegular(PathBuf),
    /// Its name has no metadata file's name.
    #[error("{0} can have no metadata file: its name is too long, or a metadata file's")]
    NoName(PathBuf),
    /// The file is not any more what it was when reading began.
    #[error("{0} changed while it was read; nothing was written")]
    Changed(PathBuf),
    /// Asked to stop.
    #[error("stopped; nothing was written")]
    Stopped,
    /// More than a metadata file may have.
    #[error(
        "the metadata would take more than {METADATA_BYTES_MAX} bytes; larger blocks make it smaller"
    )]
    TooLarge,
    /// What is asked for, or kept, cannot be in one metadata file.
    #[error(transparent)]
    Unfit(FormatError),
    /// There is one that cannot be used.
    #[error("{path}: {error}")]
    Format {
        /// The metadata file.
        path: PathBuf,
        /// Why.
        error: FormatError,
    },
}

impl BuildError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { what, path: path.into(), error }
    }

    pub(crate) fn scan(error: ScanError, path: &Path) -> Self {
        match error {
            ScanError::Io(error) => Self::Io { what: "read", path: path.into(), error },
            ScanError::Cut => Self::Changed(path.into()),
            ScanError::Stopped => Self::Stopped,
            ScanError::TooMany => Self::TooLarge,
        }
    }
}
