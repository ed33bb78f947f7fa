//! What has happened between two states of a session.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

/// How long things took, as a session's state tells it: `buckets`, each `[MICROSECONDS, COUNT]`, of
/// which the first is what they took at most (null: over a minute).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times {
    /// Counts by the longest time, in microseconds.
    buckets: BTreeMap<u64, u64>,
}

/// Stands for a bucket without an end.
const ENDLESS: u64 = u64::MAX;

impl Times {
    /// Reads them.
    pub fn of(times: &Value) -> Self {
        let mut buckets = BTreeMap::new();
        for bucket in times["buckets"].as_array().into_iter().flatten() {
            let up_to = bucket[0].as_u64().unwrap_or(ENDLESS);
            *buckets.entry(up_to).or_default() += bucket[1].as_u64().unwrap_or(0);
        }
        Self { buckets }
    }

    /// Takes away what was counted before.
    pub fn minus(mut self, before: &Self) -> Self {
        for (up_to, count) in &mut self.buckets {
            *count = count.saturating_sub(before.buckets.get(up_to).copied().unwrap_or(0));
        }
        self
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.values().sum()
    }

    /// How many took at most so many microseconds; buckets that end later are not counted.
    pub fn within(&self, micros: u64) -> u64 {
        self.buckets.range(..=micros).map(|(_, count)| count).sum()
    }

    /// Within how many milliseconds this share of them was done; `None` if that is not known.
    pub fn percentile_ms(&self, share: f64) -> Option<f64> {
        let wanted = (self.count() as f64 * share).ceil() as u64;
        let mut sum = 0;
        for (up_to, count) in &self.buckets {
            sum += count;
            if sum >= wanted && sum > 0 {
                return (*up_to != ENDLESS).then_some(*up_to as f64 / 1000.0);
            }
        }
        None
    }

    /// The same for people.
    pub fn percentile_text(&self, share: f64) -> String {
        match self.percentile_ms(share) {
            Some(ms) => format!("{ms:>9.3} ms"),
            None => "  over 1 min".into(),
        }
    }
}

/// Returns what a session did in an interval: rates, percentiles and its busiest files.
pub fn interval(before: &Value, now: &Value, time: Duration) -> Value {
    let seconds = time.as_secs_f64().max(0.001);
    let round = |rate: f64| json!((rate * 1000.0).round() / 1000.0);
    let grown = |section: &str, name: &str| {
        let get = |state: &Value| state[section][name].as_u64().unwrap_or(0);
        // A session of the same name may have begun anew.
        get(now).checked_sub(get(before)).unwrap_or(get(now))
    };
    let rate = |section: &str, name: &str| round(grown(section, name) as f64 / seconds);
    let mut session = json!({
        "name": now["session"], "source": now["source"], "mountpoint": now["mountpoint"],
        "listen": now["listen"], "seconds": round(seconds),
    });
    if now["cache"].is_object() {
        let (hits, misses) = (grown("cache", "hits"), grown("cache", "misses"));
        session["cache"] = json!({
            "hits_per_second": rate("cache", "hits"),
            "misses_per_second": rate("cache", "misses"),
            "hit_ratio": match hits + misses {
                0 => Value::Null,
                all => round(hits as f64 / all as f64),
            },
            "unsent_bytes": now["cache"]["unsent_bytes"],
            "unsent_files": now["cache"]["unsent_files"],
            "unsent_names": now["cache"]["unsent_names"],
        });
    }
    if now["link"].is_object() {
        let mut link = json!({
            "received_bytes_per_second": rate("link", "received_bytes"),
            "sent_bytes_per_second": rate("link", "sent_bytes"),
            "calls_per_second": rate("link", "calls"),
        });
        for name in ["stripes", "stripes_alive", "rtt_ms", "unreachable_seconds"] {
            if !now["link"][name].is_null() {
                link[name] = now["link"][name].clone();
            }
        }
        session["link"] = link;
    }
    for title in ["requests", "calls"] {
        let kinds = now["latency"][title].as_object().into_iter().flatten();
        let kinds = kinds.map(|(kind, times)| {
            let times = Times::of(times).minus(&Times::of(&before["latency"][title][kind]));
            let told = json!({
                "count": times.count(),
                "per_second": round(times.count() as f64 / seconds),
                "p50_ms": times.percentile_ms(0.5),
                "p90_ms": times.percentile_ms(0.9),
                "p99_ms": times.percentile_ms(0.99),
            });
            (kind.clone(), told)
        });
        let kinds: serde_json::Map<String, Value> = kinds.collect();
        if !kinds.is_empty() {
            session[title] = Value::Object(kinds);
        }
    }
    session["files"] = files(before, now, seconds).into();
    if now["clients"].is_array() {
        session["clients"] = clients(before, now, seconds).into();
    }
    session
}

/// The clients of a standing proxy, the busiest first.
fn clients(before: &Value, now: &Value, seconds: f64) -> Vec<Value> {
    let list = |state: &Value| state["clients"].as_array().cloned().unwrap_or_default();
    let before = list(before);
    let told = |client: Value| {
        let last = before.iter().find(|other| other["name"] == client["name"]);
        let rate = |name: &str| {
            let count = client[name].as_u64().unwrap_or(0);
            let grown = count.checked_sub(last.map_or(0, |last| last[name].as_u64().unwrap_or(0)));
            (grown.unwrap_or(count) as f64 / seconds * 100.0).round() / 100.0
        };
        json!({
            "name": client["name"], "channels": client["channels"],
            "calls_per_second": rate("calls"),
            "received_bytes_per_second": rate("received_bytes"),
            "sent_bytes_per_second": rate("sent_bytes"),
        })
    };
    let mut clients: Vec<Value> = list(now).into_iter().map(told).collect();
    let busy = |client: &Value| client["calls_per_second"].as_f64().unwrap_or(0.0);
    clients.sort_by(|a, b| busy(b).total_cmp(&busy(a)));
    clients
}

/// The files that were read or written meanwhile, the busiest first.
fn files(before: &Value, now: &Value, seconds: f64) -> Vec<Value> {
    let list = |state: &Value| state["files"].as_array().cloned().unwrap_or_default();
    let before: BTreeMap<String, Value> =
        list(before).into_iter().map(|file| (file["path"].to_string(), file)).collect();
    let mut busy: Vec<(u64, Value)> = Vec::new();
    for file in list(now) {
        let last = before.get(&file["path"].to_string());
        let grown = |name: &str| {
            let get = |file: &Value| file[name].as_u64().unwrap_or(0);
            let last = last.map_or(0, get);
            get(&file).checked_sub(last).unwrap_or(get(&file))
        };
        let (read, written) = (grown("read_bytes"), grown("written_bytes"));
        if grown("reads") + grown("writes") > 0 {
            let told = json!({
                "path": file["path"],
                "reads": grown("reads"), "writes": grown("writes"),
                "read_bytes_per_second": (read as f64 / seconds) as u64,
                "written_bytes_per_second": (written as f64 / seconds) as u64,
            });
            busy.push((read + written, told));
        }
    }
    busy.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    busy.into_iter().map(|(_, file)| file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_interval() {
        let before = Times::of(&json!({"buckets": [[10, 1000]]}));
        let now = json!({"buckets": [[10, 1000], [20, 90], [4000, 9], [null, 1]]});
        let times = Times::of(&now).minus(&before);
        assert_eq!(times.count(), 100);
        assert_eq!(times.percentile_ms(0.5), Some(0.02));
        assert_eq!(times.percentile_ms(0.99), Some(4.0));
        assert_eq!(times.percentile_ms(1.0), None);
        assert_eq!(times.within(20), 90);
        assert_eq!(Times::default().percentile_ms(0.5), None);
    }

    #[test]
    fn rates_are_of_what_has_grown() {
        let state = |hits: u64, bytes: u64| {
            json!({
                "session": "x", "cache": {"hits": hits, "misses": 10, "unsent_bytes": 7},
                "link": {"received_bytes": bytes},
                "files": [{"path": "a", "reads": hits, "read_bytes": bytes},
                          {"path": "b", "reads": 1, "read_bytes": 1}],
            })
        };
        let told = interval(&state(10, 100), &state(30, 1100), Duration::from_secs(2));
        assert_eq!(told["cache"]["hits_per_second"], 10.0);
        assert_eq!(told["cache"]["hit_ratio"], 1.0);
        assert_eq!(told["link"]["received_bytes_per_second"], 500.0);
        assert_eq!(told["files"].as_array().map(Vec::len), Some(1), "b has rested: {told}");
        let anew = interval(&state(30, 1100), &state(2, 10), Duration::from_secs(1));
        assert_eq!(anew["cache"]["hits_per_second"], 2.0, "a session of the same name");
    }
}
