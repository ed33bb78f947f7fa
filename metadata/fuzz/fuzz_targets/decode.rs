//! Feeds the parser of metadata files with whatever bytes lead it to new places.
#![no_main]

#[path = "../entry.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = entry::parse(bytes);
});
