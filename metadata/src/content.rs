//! What the cache holds, by its hashes: a block that is there under another file's name is not
//! fetched.
//!
//! For each version with a list of hashes the list is kept beside the cache, as far as it was fetched;
//! all lists together are one sorted table in memory, made when it is first needed. Where a hash leads is only a hint: what
//! is found there is hashed before it is used.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::PathBuf;

use gridvfs_cache::{DiskCache, FileKey};
use parking_lot::Mutex;

use crate::format::HASH_BYTES;

/// The most blocks of all lists: 16 bytes of memory each.
const BLOCKS_MAX: usize = 2 << 20;
const MAGIC: &[u8; 8] = b"GVFSHSH1";
/// Magic and the size of a block.
const HEAD_BYTES: u64 = 16;
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

    /// Notes hashes of a version that is arriving, by the numbers of their blocks in ascending order;
    /// the version has `blocks` in all. Blocks the calling thread.
    ///
    /// # Errors
    /// The disk's: the hashes are then known to this process only.
    pub fn add(
        &self,
        disk: &DiskCache,
        key: FileKey,
        block_bytes: u32,
        blocks: u64,
        hashes: impl Iterator<Item = (u64, [u8; HASH_BYTES])>,
    ) -> io::Result<()> {
        let blocks = blocks.min(BLOCKS_MAX as u64);
        let hashes: Vec<_> = hashes.take_while(|(block, _)| *block < blocks).collect();
        {
            let mut table = self.table.lock();
            self.read(disk, &mut table);
            if !table.take(key, block_bytes, &hashes) {
                return Ok(());
            }
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let path = self.dir.join(format!("{:016x}", key.0));
        let mut options = fs::File::options();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path)?;
        // Written over: a place is but a hint, and half a list is one, too.
        let mut head = MAGIC.to_vec();
        head.extend(u64::from(block_bytes).to_le_bytes());
        file.write_all_at(&head, 0)?;
        file.set_len(HEAD_BYTES + blocks * HASH_BYTES as u64)?;
        for run in hashes.chunk_by(|(block, _), (next, _)| block + 1 == *next) {
            let bytes: Vec<u8> = run.iter().flat_map(|(_, hash)| *hash).collect();
            file.write_all_at(&bytes, HEAD_BYTES + run[0].0 * HASH_BYTES as u64)?;
        }
        Ok(())
    }

    /// Says whether it knows anything of other versions by blocks of that size. Blocks the calling
    /// thread.
    pub fn has_others(&self, disk: &DiskCache, than: FileKey, block_bytes: u32) -> bool {
        let mut table = self.table.lock();
        self.read(disk, &mut table);
        table.lists.iter().any(|list| list.key != than && list.block_bytes == block_bytes)
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
                        let (list, _) = bytes[16..].as_chunks();
                        let is_known =
                            |(_, hash): &(u64, [u8; HASH_BYTES])| hash != &[0; HASH_BYTES];
                        let hashes = (0..).zip(list.iter().copied()).filter(is_known);
                        table.take(key, block_bytes, &hashes.collect::<Vec<_>>());
                    }
                }
                _ if fits => {
                    let _ = fs::remove_file(&path);
                }
                _ => {}
            }
        }
    }

    /// Looks for a block's content in the cache. Returns whether `out` is it now. Blocks the calling
    /// thread.
    pub fn find(
        &self,
        disk: &DiskCache,
        not_of: FileKey,
        hash: &[u8; HASH_BYTES],
        out: &mut [u8],
    ) -> bool {
        let found: Vec<(FileKey, u64)> = {
            let mut table = self.table.lock();
            self.read(disk, &mut table);
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
    /// Takes hashes of a version. Returns whether any of them are new.
    fn take(&mut self, key: FileKey, block_bytes: u32, hashes: &[(u64, [u8; HASH_BYTES])]) -> bool {
        let known = self.lists.iter().position(|list| list.key == key);
        let number = known.unwrap_or(self.lists.len());
        if known.is_none() {
            self.lists.push(List { key, block_bytes });
        }
        let list = number as u32;
        let sorted = self.places.len();
        for (block, hash) in hashes.iter().take(BLOCKS_MAX - sorted) {
            let place = Place { prefix: prefix(hash), list, block: *block as u32 };
            if known.is_none() || self.places[..sorted].binary_search(&place).is_err() {
                self.places.push(place);
            }
        }
        self.places[sorted..].sort_unstable();
        // Two runs, each in order: it merges them.
        self.places.sort();
        self.places.len() > sorted
    }
}
