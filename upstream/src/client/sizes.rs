//! How much goes into one call, negotiated by FSINFO.

use gridvfs_vfs::FsInfo;

/// What is assumed where a server tells nonsense: every server takes as much.
const TRANSFER_BYTES_MIN: u32 = 512;
/// The largest directory page that is asked for.
const PAGE_BYTES_MAX: u32 = 1 << 20;

/// The sizes of calls, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// The most that one READ asks for.
    pub read: u32,
    /// The most that one WRITE carries.
    pub write: u32,
    /// The most that one READDIR or READDIRPLUS asks for.
    pub page: u32,
}

impl Sizes {
    /// Returns what every server takes.
    pub fn smallest() -> Self {
        Self { read: TRANSFER_BYTES_MIN, write: TRANSFER_BYTES_MIN, page: PAGE_BYTES_MAX }
    }

    /// Returns what the server takes, up to `max`.
    pub fn negotiated(info: &FsInfo, max: u32) -> Self {
        let max = max.max(TRANSFER_BYTES_MIN);
        let size = |most: u32, preferred: u32| {
            // Some servers leave one of them zero.
            let told = if most == 0 { preferred } else { most };
            told.clamp(TRANSFER_BYTES_MIN, max)
        };
        Self {
            read: size(info.read_max, info.read_preferred),
            write: size(info.write_max, info.write_preferred),
            page: PAGE_BYTES_MAX,
        }
    }

    /// Returns what this client says of itself.
    pub fn applied_to(&self, info: FsInfo) -> FsInfo {
        FsInfo {
            read_max: self.read,
            read_preferred: self.read,
            write_max: self.write,
            write_preferred: self.write,
            readdir_preferred: info.readdir_preferred.clamp(4096, self.page),
            ..info
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_servers_within_reason() {
        let info = |read_max, read_preferred| FsInfo {
            read_max,
            read_preferred,
            read_multiple: 1,
            write_max: 4096,
            write_preferred: 4096,
            write_multiple: 1,
            readdir_preferred: 0,
            file_size_max: u64::MAX,
            time_delta_ns: 1,
            properties: 0,
        };
        for (most, preferred, read) in [
            (1 << 20, 1 << 20, 1 << 20),
            (u32::MAX, 0, 1 << 20),
            (4096, 4096, 4096),
            (0, 65536, 65536),
            (0, 0, 512),
            (1, 1, 512),
        ] {
            let sizes = Sizes::negotiated(&info(most, preferred), 1 << 20);
            assert_eq!((sizes.read, sizes.write), (read, 4096), "{most} {preferred}");
        }
    }
}
