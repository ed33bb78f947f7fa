//! The places in a write where a writer may die, by name. Tests stop at each; otherwise they are
//! nothing.

pub(super) const FRAME_AFTER_EVICT: &str = "FRAME_AFTER_EVICT";
pub(super) const FRAME_AFTER_KEY: &str = "FRAME_AFTER_KEY";
pub(super) const BLOCKS_AFTER_INVALID: &str = "BLOCKS_AFTER_INVALID";
pub(super) const BLOCKS_AFTER_DATA: &str = "BLOCKS_AFTER_DATA";
pub(super) const BLOCKS_AFTER_SUM: &str = "BLOCKS_AFTER_SUM";

#[cfg(test)]
pub(super) const ALL: [&str; 5] =
    [FRAME_AFTER_EVICT, FRAME_AFTER_KEY, BLOCKS_AFTER_INVALID, BLOCKS_AFTER_DATA, BLOCKS_AFTER_SUM];

#[cfg(test)]
thread_local! {
    /// Where this thread's next write stops.
    pub(super) static STOP_AT: std::cell::Cell<&'static str> = const { std::cell::Cell::new("") };
}

/// Says that a writer is at a named place.
#[inline]
pub(super) fn point(_name: &'static str) {
    #[cfg(test)]
    if STOP_AT.get() == _name {
        STOP_AT.set("");
        // As a kill does, this runs nothing that the write would do on an error.
        std::panic::resume_unwind(Box::new(_name));
    }
}
