//! Sessions' states in Prometheus' text exposition format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

use crate::commands::top::Times;

/// What is a state, and not a count that only grows.
const GAUGES: &[&str] = &[
    "unsent_bytes",
    "unsent_files",
    "unsent_names",
    "unsent_conflicts",
    "journal_bytes",
    "whole_files",
    "whole_file_bytes",
    "held_bytes",
    "in_flight",
    "write_peak_bytes",
    "read_peak_bytes",
    "stripes",
    "stripes_alive",
    "channels",
];

/// The ends of the buckets of durations, in nanoseconds: octaves from 16 µs to 69 s, where buckets
/// of the sessions' own end, too.
fn bounds_ns() -> impl Iterator<Item = u64> {
    (4..=26).map(|octave| 1024u64 << octave)
}

/// A metric: its help, its type and its samples.
struct Metric {
    help: String,
    kind: &'static str,
    samples: Vec<String>,
}

#[derive(Default)]
struct Metrics(BTreeMap<String, Metric>);

impl Metrics {
    fn add(&mut self, name: &str, kind: &'static str, help: &str, sample: String) {
        let new = || Metric { help: help.into(), kind, samples: Vec::new() };
        self.0.entry(name.into()).or_insert_with(new).samples.push(sample);
    }

    fn number(&mut self, name: &str, kind: &'static str, help: &str, labels: &str, value: &Value) {
        if let Some(number) = value.as_f64() {
            self.add(name, kind, help, format!("{name}{{{labels}}} {number}"));
        }
    }
}

/// Returns the states of sessions, as they answered `status`.
pub fn text(sessions: &[Value]) -> String {
    let mut metrics = Metrics::default();
    for status in sessions {
        add_session(&mut metrics, status);
    }
    let mut text = String::new();
    for (name, metric) in metrics.0 {
        let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {}", metric.help, metric.kind);
        metric.samples.iter().for_each(|sample| {
            let _ = writeln!(text, "{sample}");
        });
    }
    text
}

fn add_session(metrics: &mut Metrics, status: &Value) {
    let field = |name: &str| escaped(status[name].as_str().unwrap_or_default());
    let session = format!("session=\"{}\"", field("session"));
    let info = format!(
        "{session},source=\"{}\",mountpoint=\"{}\",version=\"{}\"",
        field("source"),
        field("mountpoint"),
        field("version")
    );
    metrics.number("gridvfs_session_info", "gauge", "A session that runs.", &info, &1.into());
    for client in status["clients"].as_array().into_iter().flatten() {
        let name = escaped(client["name"].as_str().unwrap_or_default());
        let labels = format!("{session},client=\"{name}\"");
        for (field, name, kind, help) in [
            ("channels", "gridvfs_client_channels", "gauge", "Channels that are open."),
            ("calls", "gridvfs_client_calls_total", "counter", "Calls of the client."),
            ("received_bytes", "gridvfs_client_received_bytes_total", "counter", "Of its calls."),
            ("sent_bytes", "gridvfs_client_sent_bytes_total", "counter", "Of replies to it."),
        ] {
            metrics.number(name, kind, help, &labels, &client[field]);
        }
    }
    let up = &status["uptime_seconds"];
    metrics.number("gridvfs_uptime_seconds", "gauge", "Since the mount.", &session, up);
    // A standing proxy by itself has none; a local directory is always reached.
    if status["clients"].is_null() {
        let reached = u64::from(status["link"]["unreachable_seconds"].is_null()).into();
        let help = "1 while the state server is reached.";
        metrics.number("gridvfs_link_up", "gauge", help, &session, &reached);
    }
    if let Some(ms) = status["link"]["rtt_ms"].as_f64() {
        let help = "Smoothed round trip of small calls.";
        let rtt = (ms / 1000.0).into();
        metrics.number("gridvfs_link_rtt_seconds", "gauge", help, &session, &rtt);
    }
    if let Some(on) = status["coherence"]["on"].as_bool() {
        let help = "1 while changes by others are heard of.";
        metrics.number("gridvfs_coherence_on", "gauge", help, &session, &u64::from(on).into());
    }
    for (operation, count) in status["requests"].as_object().into_iter().flatten() {
        let labels = format!("{session},operation=\"{operation}\"");
        let help = "Requests of the kernel.";
        metrics.number("gridvfs_requests_total", "counter", help, &labels, count);
    }
    for section in ["cache", "metadata", "buffer", "link", "server"] {
        for (name, value) in status[section].as_object().into_iter().flatten() {
            if !value.is_u64() || name == "unreachable_seconds" {
                continue;
            }
            let help = format!("{name} of {section} in gridvfs status.");
            match GAUGES.contains(&name.as_str()) {
                true => {
                    let metric = format!("gridvfs_{section}_{name}");
                    metrics.number(&metric, "gauge", &help, &session, value);
                }
                false => {
                    let metric = format!("gridvfs_{section}_{name}_total");
                    metrics.number(&metric, "counter", &help, &session, value);
                }
            }
        }
    }
    let latency = &status["latency"];
    for (title, name, help) in [
        (
            "requests",
            "gridvfs_request_duration_seconds",
            "How long requests of the kernel, or of a proxy's clients, took.",
        ),
        ("calls", "gridvfs_call_duration_seconds", "How long calls of the state server took."),
    ] {
        for (kind, times) in latency[title].as_object().into_iter().flatten() {
            let labels = format!("{session},kind=\"{kind}\"");
            add_histogram(metrics, name, help, &labels, times);
        }
    }
}

fn add_histogram(metrics: &mut Metrics, name: &str, help: &str, labels: &str, told: &Value) {
    let times = Times::of(told);
    let mut add = |sample: String| metrics.add(name, "histogram", help, sample);
    for bound in bounds_ns() {
        let (le, count) = (bound as f64 / 1e9, times.within(bound / 1000));
        add(format!("{name}_bucket{{{labels},le=\"{le}\"}} {count}"));
    }
    let count = times.count();
    add(format!("{name}_bucket{{{labels},le=\"+Inf\"}} {count}"));
    add(format!("{name}_sum{{{labels}}} {}", told["seconds"].as_f64().unwrap_or(0.0)));
    add(format!("{name}_count{{{labels}}} {count}"));
}

/// A label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn samples_stand_under_their_help_and_type() {
        let status = |name: &str| {
            json!({
                "session": name, "source": "h:/a\"b", "mountpoint": "/m", "version": "1",
                "uptime_seconds": 3, "coherence": {"on": true, "seconds": 2}, "requests": {"read": 5, "write": 2},
                "cache": {"hits": 9, "unsent_bytes": 7, "directory": "/x", "settings": {"a": 1}},
                "latency": {"requests": {"read":
                    {"seconds": 0.5, "buckets": [[16, 3], [5000, 1], [null, 1]]}}},
            })
        };
        let text = text(&[status("a"), status("b")]);
        for line in [
            "gridvfs_requests_total{session=\"a\",operation=\"read\"} 5",
            "gridvfs_requests_total{session=\"b\",operation=\"write\"} 2",
            "gridvfs_cache_hits_total{session=\"a\"} 9",
            "gridvfs_coherence_on{session=\"b\"} 1",
            "gridvfs_cache_unsent_bytes{session=\"a\"} 7",
            "# TYPE gridvfs_cache_unsent_bytes gauge",
            "# TYPE gridvfs_request_duration_seconds histogram",
            "gridvfs_request_duration_seconds_bucket{session=\"a\",kind=\"read\",le=\"+Inf\"} 5",
            "gridvfs_request_duration_seconds_bucket{session=\"a\",kind=\"read\",le=\"0.000016384\"} 3",
            "gridvfs_request_duration_seconds_bucket{session=\"a\",kind=\"read\",le=\"0.008388608\"} 4",
            "gridvfs_request_duration_seconds_sum{session=\"b\",kind=\"read\"} 0.5",
            "gridvfs_request_duration_seconds_count{session=\"b\",kind=\"read\"} 5",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("source=\"h:/a\\\"b\""), "{text}");
        assert_eq!(text.matches("# TYPE gridvfs_cache_hits_total").count(), 1);
        assert!(!text.contains("directory"));
        assert!(text.ends_with('\n'));
    }
}
