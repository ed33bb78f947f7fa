//! What the cache holds, by its hashes: a block that is there under another file's name is not
//! fetched.
//!
//! For each version with a list of hashes the list is kept beside the cache; all lists together are
//! one sorted table in memory, made when it is first needed. Where a hash leads is only a hint: what
//! is found there is hashed before it is used.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use gridvfs_cache::{DiskCache, FileKey};
use parking_lot::Mutex;

use crate::format::Hashes;

/// The most blocks of all lists: 16 bytes of memory each.
const BLOCKS_MAX: usize = 2 << 20;
const MAGIC: &[u8; 8] = b"GVFSHSH1";
const HASH_BYTES: usize = 32;
/// How many places are tried for one block.
const TRIES_MAX: usize = 4;

/// Where a block of that hash was.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// The hash's first 8 bytes.
    prefix: u64,
    list: u32,
    block: u32,
}

struct List {
    key: FileKey,
    block_bytes: u32,
}

#[derive(Default)]
struct Table {
    is_read: bool,
    lists: Vec<List>,
    places: Vec<Place>,
}

/// See the module's description.
pub struct ContentIndex {
    dir: PathBuf,
    table: Mutex<Table>,
}

fn prefix(hash: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash[..8]);
    u64::from_le_bytes(bytes)
}

impl ContentIndex {
    /// Uses `dir`, which need not be there.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, table: Mutex::default() }
    }

    /// Notes the hashes of a version that is about to arrive. Blocks the calling thread.
    ///
    /// # Errors
    /// The disk's: the list is then known to this process only.
    pub fn add(
        &self,
        disk: &DiskCache,
        key: FileKey,
        block_bytes: u32,
        hashes: &Hashes,
    ) -> io::Result<()> {
        let mut table = self.table.lock();
        self.read(disk, &mut table);
        if table.lists.iter().any(|list| list.key == key) {
            return Ok(());
        }
        let mut list =
            Vec::with_capacity(hashes.blocks().min(BLOCKS_MAX as u64) as usize * HASH_BYTES);
        for block in 0..hashes.blocks().min(BLOCKS_MAX as u64) {
            list.extend_from_slice(&hashes.get(block).unwrap_or_default());
        }
        table.take(key, block_bytes, &list);
        drop(table);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let path = self.dir.join(format!("{:016x}", key.0));
        let draft = path.with_extension("draft");
        let mut options = fs::File::options();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(MAGIC)?;
        file.write_all(&u64::from(block_bytes).to_le_bytes())?;
        file.write_all(&list)?;
        fs::rename(&draft, &path)
    }

    /// Reads the lists of earlier sessions; those of versions that the cache has nothing of go.
    fn read(&self, disk: &DiskCache, table: &mut Table) {
        if std::mem::replace(&mut table.is_read, true) {
            return;
        }
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let key = path.file_name().and_then(|name| name.to_str());
            let key = key.and_then(|name| u64::from_str_radix(name, 16).ok()).map(FileKey);
            let room = (BLOCKS_MAX - table.places.len()) * HASH_BYTES;
            let fits = entry.metadata().is_ok_and(|data| data.len() <= room as u64 + 16);
            let bytes = if fits { fs::read(&path).unwrap_or_default() } else { Vec::new() };
            match (key, bytes.get(..16)) {
                (Some(key), Some(head)) if &head[..8] == MAGIC => {
                    let block_bytes = prefix(&head[8..]) as u32;
                    let size =
                        (bytes.len() as u64 - 16) / HASH_BYTES as u64 * u64::from(block_bytes);
                    if disk.gap(key, 0, size) == Some((0, size)) {
                        let _ = fs::remove_file(&path);
                    } else {
                        table.take(key, block_bytes, &bytes[16..]);
                    }
                }
                _ if fits => {
                    let _ = fs::remove_file(&path);
                }
                _ => {}
            }
        }
        table.places.sort_unstable();
    }

    /// Looks for a block's content in the cache. Returns whether `out` is it now.
    pub fn find(
        &self,
        disk: &DiskCache,
        not_of: FileKey,
        hash: &[u8; HASH_BYTES],
        out: &mut [u8],
    ) -> bool {
        let found: Vec<(FileKey, u64)> = {
            let table = self.table.lock();
            let prefix = prefix(hash);
            let from = table.places.partition_point(|place| place.prefix < prefix);
            table.places[from..]
                .iter()
                .take_while(|place| place.prefix == prefix)
                .filter_map(|place| {
                    let list = &table.lists[place.list as usize];
                    let offset = u64::from(place.block) * u64::from(list.block_bytes);
                    (list.key != not_of).then_some((list.key, offset))
                })
                .take(TRIES_MAX)
                .collect()
        };
        found.into_iter().any(|(key, offset)| {
            disk.read_version(key, offset, out) == out.len() && blake3::hash(out).as_bytes() == hash
        })
    }
}

impl Table {
    fn take(&mut self, key: FileKey, block_bytes: u32, list: &[u8]) {
        let number = self.lists.len() as u32;
        self.lists.push(List { key, block_bytes });
        let before = self.places.len();
        for (block, hash) in list.chunks_exact(HASH_BYTES).enumerate() {
            if self.places.len() == BLOCKS_MAX {
                break;
            }
            if hash.iter().any(|byte| *byte != 0) {
                self.places.push(Place { prefix: prefix(hash), list: number, block: block as u32 });
            }
        }
        if self.is_read && self.places.len() > before {
            self.places.sort_unstable();
        }
    }
}
