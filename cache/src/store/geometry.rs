//! The settings of a block store, and the numbers that follow from them.
//!
//! Default: 8 GiB / (16 ways * 64 KiB) = 8192 sets; 512 banks of 16 MiB, each a way of 256
//! consecutive sets, so that 16 MiB of a file can lie in one piece. 100 GiB:
//! 102,400 sets, 1.6 million frames; their heads take 31 MiB and their checksums 100 MiB of the
//! tags file, of which only what is used is ever in memory.

use super::{FileKey, StoreError};

/// What is valid or not, checked and written at a time.
pub const BLOCK_BYTES: usize = 4096;

/// The paper's settings of a disk cache (section 4.1): size, banks, associativity, frame size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// The most that the bank files hold, in bytes.
    pub size_bytes: u64,
    /// The most bank files, 1 to 4096. Each that is in use takes a descriptor of the process.
    pub banks: u32,
    /// Frames of a set, 1 to 64.
    pub ways: u32,
    /// Size of a frame: 16, 32, 64 or 128 KiB. The valid bits of a frame share a word with its
    /// number, which leaves room for 32 blocks.
    pub frame_bytes: u32,
}

impl Default for Geometry {
    fn default() -> Self {
        Self { size_bytes: 8 << 30, banks: 512, ways: 16, frame_bytes: 64 << 10 }
    }
}

impl Geometry {
    /// Returns the geometry if a store can have it.
    ///
    /// # Errors
    /// [`StoreError::Geometry`] says which setting is wrong and what it may be.
    pub fn checked(self) -> Result<Self, StoreError> {
        let wrong = |text: String| Err(StoreError::Geometry(text));
        if !self.frame_bytes.is_power_of_two()
            || !(16 << 10..=128 << 10).contains(&self.frame_bytes)
        {
            return wrong(format!("frames of {} bytes (16, 32, 64 or 128 KiB)", self.frame_bytes));
        }
        if !(1..=64).contains(&self.ways) {
            return wrong(format!("{} ways (1 to 64)", self.ways));
        }
        if !(1..=4096).contains(&self.banks) {
            return wrong(format!("{} banks (1 to 4096)", self.banks));
        }
        let set_bytes = u64::from(self.ways) * u64::from(self.frame_bytes);
        let sets = self.size_bytes / set_bytes;
        // The upper limit keeps the tags file (80 bytes a frame) far from the address space's end.
        if !(1..=1 << 28).contains(&sets) {
            return wrong(format!(
                "{} bytes hold {sets} sets of {set_bytes} bytes (1 to {})",
                self.size_bytes,
                1 << 28
            ));
        }
        Ok(self)
    }
}

/// Where everything of a checked geometry is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub frame_bytes: u64,
    pub frame_shift: u32,
    /// Blocks of a frame.
    pub blocks: u32,
    pub ways: u32,
    pub sets: u32,
    pub banks: u32,
    pub slots_per_bank: u64,
    /// Bytes of a set's words, keys and stamps in the tags file.
    pub head_bytes: usize,
    pub sums_at: usize,
    pub tags_bytes: usize,
}

/// Length of the tags file's header.
pub(super) const HEADER_BYTES: usize = 4096;

impl Layout {
    pub fn new(geometry: &Geometry) -> Self {
        let Geometry { size_bytes, banks, ways, frame_bytes } = *geometry;
        let sets = (size_bytes / (u64::from(ways) * u64::from(frame_bytes))) as u32;
        let frames = u64::from(sets) * u64::from(ways);
        let slots_per_bank = frames.div_ceil(banks.into());
        let blocks = frame_bytes / BLOCK_BYTES as u32;
        // A whole number of cache lines, so that a set shares none with its neighbours.
        let head_bytes = (ways as usize * (8 + 8 + 2)).next_multiple_of(64);
        let sums_at = (HEADER_BYTES + sets as usize * head_bytes).next_multiple_of(4096);
        let sums_bytes = sets as usize * ways as usize * blocks as usize * 4;
        Self {
            frame_bytes: frame_bytes.into(),
            frame_shift: frame_bytes.trailing_zeros(),
            blocks,
            ways,
            sets,
            banks: frames.div_ceil(slots_per_bank) as u32,
            slots_per_bank,
            head_bytes,
            sums_at,
            tags_bytes: (sums_at + sums_bytes).next_multiple_of(4096),
        }
    }

    pub fn frames(&self) -> u64 {
        u64::from(self.sets) * u64::from(self.ways)
    }

    /// Returns the set of a frame: consecutive frames of a file are in consecutive sets.
    #[inline]
    pub fn set(&self, key: FileKey, frame: u32) -> u32 {
        let start = mix(key.0) % u64::from(self.sets);
        ((start + u64::from(frame)) % u64::from(self.sets)) as u32
    }

    /// Returns the number of a frame's slot: all sets of the first way, then all of the second. So
    /// a file that has one way of consecutive sets is contiguous, and a small one is in few banks.
    #[inline]
    fn slot(&self, set: u32, way: u32) -> u64 {
        u64::from(way) * u64::from(self.sets) + u64::from(set)
    }

    #[inline]
    pub fn bank(&self, set: u32, way: u32) -> u32 {
        (self.slot(set, way) / self.slots_per_bank) as u32
    }

    /// Returns where a frame begins in its bank file.
    #[inline]
    pub fn bank_offset(&self, set: u32, way: u32) -> u64 {
        (self.slot(set, way) % self.slots_per_bank) << self.frame_shift
    }

    /// Returns the sets and ways of a bank, in the order of its file.
    pub fn slots_of(&self, bank: u32) -> impl Iterator<Item = (u32, u32)> + use<> {
        let (sets, frames) = (u64::from(self.sets), self.frames());
        let first = u64::from(bank) * self.slots_per_bank;
        (first..(first + self.slots_per_bank).min(frames))
            .map(move |slot| ((slot % sets) as u32, (slot / sets) as u32))
    }

    pub fn bank_bytes(&self) -> u64 {
        self.slots_per_bank << self.frame_shift
    }

    /// Returns the frame number of a file offset; none past the largest (2^32 frames).
    #[inline]
    pub fn frame(&self, offset: u64) -> Option<u32> {
        u32::try_from(offset >> self.frame_shift).ok()
    }

    /// Returns the frames that a byte range touches; none if it is empty.
    pub fn frames_of(&self, from: u64, to: u64) -> std::ops::Range<u64> {
        if from >= to {
            return 0..0;
        }
        from >> self.frame_shift..((to - 1) >> self.frame_shift).min(u32::MAX.into()) + 1
    }

    #[inline]
    pub fn block(&self, offset: u64) -> u32 {
        (offset & (self.frame_bytes - 1)) as u32 / BLOCK_BYTES as u32
    }
}

/// Returns a set of `count` valid bits from `first` on.
#[inline]
pub(super) fn mask(first: u32, count: u32) -> u32 {
    (((1u64 << count) - 1) << first) as u32
}

/// Mixes all bits into all bits (the finalizer of splitmix64).
#[inline]
pub(super) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
