//! The file `format`: which format a store has, its checksum, and its geometry.
//!
//! Text, a name and a value a line. It is the first file of a store that is written, whole
//! (another file, fsync, rename, fsync of the directory), so there is never half of one.
//!
//! A store keeps the format that it was made in: one of format 1 is used as it is, until it is made
//! anew for another geometry.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::sum::Algorithm;
use super::{Geometry, StoreError};

/// The format of new stores, and the newest that this program knows.
const VERSION: u32 = 2;
/// The format without a line that names the checksum: it is CRC-32.
const VERSION_CRC32: u32 = 1;

const NAME: &str = "format";
const TITLE: &str = "gridvfs block store";
/// The name of [`Algorithm::Xxh3`] in the file.
const XXH3: &str = "xxh3";
/// More than any format file that this program writes.
const SIZE_MAX: u64 = 4096;

/// What the format file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Format {
    pub sum: Algorithm,
    pub geometry: Geometry,
}

impl Format {
    /// Returns the format of a new store.
    pub fn new(geometry: Geometry) -> Self {
        Self { sum: Algorithm::Xxh3, geometry }
    }

    /// Returns its number.
    pub fn version(&self) -> u32 {
        match self.sum {
            Algorithm::Crc32 => VERSION_CRC32,
            Algorithm::Xxh3 => VERSION,
        }
    }
}

/// Returns the format of the store in `dir`, or none if there is no store.
pub(super) fn load(dir: &Path) -> Result<Option<Format>, StoreError> {
    let path = dir.join(NAME);
    let unknown = |found: String| StoreError::Format { path: path.clone(), found, known: VERSION };
    let text = match fs::metadata(&path)
        .and_then(|meta| if meta.len() > SIZE_MAX { Ok(Vec::new()) } else { fs::read(&path) })
    {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io(&path, error)),
    };
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines();
    if lines.next() != Some(TITLE) {
        return Err(unknown("(not a format file)".into()));
    }
    let mut value = |name: &str| {
        let line = lines.next().unwrap_or_default();
        line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' ')).map(str::to_owned)
    };
    let version = value("version").unwrap_or_else(|| "(not named)".into());
    let sum = match version.parse() {
        Ok(VERSION_CRC32) => Algorithm::Crc32,
        Ok(VERSION) => match value("checksum").as_deref() {
            Some(XXH3) => Algorithm::Xxh3,
            other => {
                let other = other.unwrap_or("(not named)");
                return Err(unknown(format!("{version} with the checksum {other}")));
            }
        },
        _ => return Err(unknown(version)),
    };
    let mut number = |name: &str| value(name).and_then(|text| text.parse::<u64>().ok());
    let geometry = (|| {
        Some(Geometry {
            size_bytes: number("size_bytes")?,
            banks: number("banks")?.try_into().ok()?,
            ways: number("ways")?.try_into().ok()?,
            frame_bytes: number("frame_bytes")?.try_into().ok()?,
        })
    })();
    match geometry.map(Geometry::checked) {
        Some(Ok(geometry)) => Ok(Some(Format { sum, geometry })),
        _ => Err(unknown(format!("{version} with a geometry that cannot be read"))),
    }
}

/// Writes the format file of a store.
pub(super) fn save(dir: &Path, format: &Format) -> Result<(), StoreError> {
    let Geometry { size_bytes, banks, ways, frame_bytes } = format.geometry;
    let version = format.version();
    let sum = match format.sum {
        Algorithm::Crc32 => String::new(),
        Algorithm::Xxh3 => format!("checksum {XXH3}\n"),
    };
    let text = format!(
        "{TITLE}\nversion {version}\n{sum}size_bytes {size_bytes}\nbanks {banks}\nways {ways}\n\
         frame_bytes {frame_bytes}\n"
    );
    let temporary = dir.join("format.new");
    let write = || {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join(NAME))?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|error| StoreError::io(&temporary, error))
}
