//! Metadata as people and programs read it.

use std::path::Path;

use gridvfs_metadata::format::{Identity, Metadata};
use gridvfs_vfs::Time;
use serde_json::{Value, json};

use crate::paths;
use crate::report::{bytes_text, count_text};

/// Returns a path for JSON.
pub fn path_value(path: &Path) -> Value {
    paths::to_value(path.as_os_str().as_encoded_bytes())
}

/// Returns what metadata says as JSON.
pub fn metadata_value(metadata: &Metadata) -> Value {
    let Metadata { identity, block_bytes, zero, hashes, actions, working_set } = metadata;
    json!({
        "identity": identity_value(identity),
        "block_bytes": block_bytes,
        "zero": zero.as_ref().map(|zero| json!({
            "blocks": zero.blocks(), "zero_blocks": zero.zero_blocks(),
            "zero_bytes": zero.zero_bytes(), "runs": zero.runs().count(),
        })),
        "hashes": hashes.as_ref().map(|hashes| json!({
            "blocks": hashes.blocks(), "listed": hashes.listed(),
        })),
        "actions": actions.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "working_set": working_set.as_ref().map(|set| json!({
            "runs": set.runs, "ranges": set.ranges.len(), "bytes": set.bytes(),
        })),
    })
}

fn identity_value(identity: &Identity) -> Value {
    let Identity { size, mtime } = identity;
    json!({"size_bytes": size, "mtime_seconds": mtime.seconds, "mtime_nanoseconds": mtime.nanoseconds})
}

/// Returns the parts of metadata, each with its name, a line each.
pub fn rows(metadata: &Metadata) -> Vec<(&'static str, String)> {
    let none = || "none".to_string();
    let size = metadata.identity.size;
    let zero = metadata.zero.as_ref().map_or_else(none, |zero| {
        let runs = count_text(zero.runs().count() as u64, "run");
        let share = share_text(zero.zero_bytes(), size);
        format!("{share} zero: {} in {runs}", bytes_text(zero.zero_bytes()))
    });
    let hashes = metadata.hashes.as_ref().map_or_else(none, |hashes| {
        let known = hashes.blocks() - hashes.listed();
        let listed = count_text(hashes.listed(), "block");
        if known > 0 { format!("{listed}, and {known} of zeros") } else { listed }
    });
    let actions: Vec<String> = metadata.actions.iter().map(ToString::to_string).collect();
    let set = metadata.working_set.as_ref().map_or_else(none, |set| {
        let ranges = count_text(set.ranges.len() as u64, "range");
        let runs = count_text(set.runs.into(), "run");
        format!("{} in {ranges}, from {runs}", bytes_text(set.bytes()))
    });
    vec![
        ("version", format!("{} of {}", bytes_text(size), time_text(metadata.identity.mtime))),
        ("blocks", bytes_text(metadata.block_bytes.into())),
        ("zero map", zero),
        ("hashes", hashes),
        ("actions", if actions.is_empty() { none() } else { actions.join(", ") }),
        ("working set", set),
    ]
}

/// Returns a number of hashes: `1 hash`, `2 hashes`.
pub fn hashes_text(count: u64) -> String {
    format!("{count} hash{}", if count == 1 { "" } else { "es" })
}

/// Returns a share of the whole: `58.2 %`.
pub fn share_text(part: u64, whole: u64) -> String {
    format!("{:.1} %", part as f64 * 100.0 / whole.max(1) as f64)
}

/// Returns a time in UTC: `2026-11-29 14:05:33.000000005`.
pub fn time_text(time: Time) -> String {
    let (days, second) = (time.seconds.div_euclid(86_400), time.seconds.rem_euclid(86_400));
    // Days from 1 March 0000, so that a leap day is the last of its year; eras of 400 years.
    let days = days.saturating_add(719_468);
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let nanoseconds = time.nanoseconds;
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{nanoseconds:09} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_date() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_709_251_199, "2024-02-29 23:59:59"),
            (1_795_960_800, "2026-11-29 14:00:00"),
            (4_107_542_400, "2100-03-01 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
        ] {
            let time = Time { seconds, nanoseconds: 5 };
            assert_eq!(time_text(time), format!("{text}.000000005 UTC"));
        }
        time_text(Time { seconds: i64::MIN, nanoseconds: 0 });
        time_text(Time { seconds: i64::MAX, nanoseconds: 0 });
    }
}
