//! The file `format`: which format a store has, and its geometry.
//!
//! Text, a name and a value a line. It is the first file of a store that is written, whole
//! (another file, fsync, rename, fsync of the directory), so there is never half of one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{Geometry, StoreError};

/// The format that this program reads and writes.
pub(super) const VERSION: u32 = 1;

const NAME: &str = "format";
const TITLE: &str = "gridvfs block store";
/// More than any format file that this program writes.
const SIZE_MAX: u64 = 4096;

/// Returns the geometry of the store in `dir`, or none if there is no store.
pub(super) fn load(dir: &Path) -> Result<Option<Geometry>, StoreError> {
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
    if version != VERSION.to_string() {
        return Err(unknown(version));
    }
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
        Some(Ok(geometry)) => Ok(Some(geometry)),
        _ => Err(unknown(format!("{version} with a geometry that cannot be read"))),
    }
}

/// Writes the format file of a store.
pub(super) fn save(dir: &Path, geometry: &Geometry) -> Result<(), StoreError> {
    let Geometry { size_bytes, banks, ways, frame_bytes } = geometry;
    let text = format!(
        "{TITLE}\nversion {VERSION}\nsize_bytes {size_bytes}\nbanks {banks}\nways {ways}\n\
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
