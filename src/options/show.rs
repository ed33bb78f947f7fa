//! What is in force, key by key, and where each value comes from: `gridvfs config show`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use gridvfs_cache::disk;
use serde_json::{Value, json};

use super::item::{Item, Origin};
use super::{Settings, keys, settings_json, ssh_option};

/// Where values come from, by key. What is not in it is a default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance(BTreeMap<String, Origin>);

impl Provenance {
    /// Notes where items come from; later ones win.
    pub fn of<'a>(items: impl IntoIterator<Item = &'a Item>) -> Self {
        let mut provenance = Self::default();
        for item in items {
            let key = match item.key.as_str() {
                _ if ssh_option(item).is_some() => "ssh_option",
                key => one_name(key),
            };
            provenance.0.insert(key.into(), item.origin.clone());
        }
        provenance
    }

    /// Notes that somebody has changed settings of a running session.
    pub fn set<'a>(&mut self, keys: impl IntoIterator<Item = &'a str>) {
        for key in keys {
            self.0.insert(one_name(key).into(), Origin::Set);
        }
    }

    /// Takes over what files that were read again say of what may change; the rest stays as it is.
    pub fn adopt(&mut self, read: Self) {
        self.0.retain(|key, _| !changes(key));
        self.0.extend(read.0.into_iter().filter(|(key, _)| changes(key)));
    }

    fn origin(&self, key: &str) -> Option<&Origin> {
        self.0.get(key)
    }
}

/// Of two keys for one thing, the one that is shown.
fn one_name(key: &str) -> &str {
    match key {
        "rw" => "ro",
        "rule" => "rules",
        key => key,
    }
}

/// What is to be shown.
pub struct Shown<'a> {
    /// The settings of the mount.
    pub settings: &'a Settings,
    /// Those that may change, as they are now; `None` without a disk cache.
    pub cache: Option<&'a disk::Settings>,
    /// Where the cache is, if that is known.
    pub cache_dir: Option<&'a Path>,
    /// Where values come from.
    pub provenance: &'a Provenance,
}

impl Shown<'_> {
    /// Returns a row for each key: `key`, `value`, `from`, and `file` and `line` if it is from one.
    pub fn rows(&self) -> Vec<Value> {
        let changing = self.cache.map_or(Value::Null, settings_json);
        let flags = self.settings.kernel.iter().map(String::as_str);
        let names = keys::KEYS.iter().map(|key| key.name).chain(flags);
        let hidden = ["rw", "rule", "settings"];
        names
            .filter(|name| !hidden.contains(name))
            .filter(|name| self.cache.is_some() || self.matters_without_cache(name))
            .map(|name| {
                let value = match changes(name) {
                    true => changing[name].clone(),
                    false => self.value(name),
                };
                row(name, value, self.origin(name))
            })
            .collect()
    }

    fn matters_without_cache(&self, key: &str) -> bool {
        let of_cache = key.starts_with("cache_") || changes(key);
        !of_cache || (!changes(key) && self.provenance.origin(key).is_some())
    }

    fn origin(&self, key: &str) -> Origin {
        let given = |key: &str| self.provenance.origin(key);
        let own = given(key).cloned().unwrap_or_default();
        // What nobody has given may follow from what somebody has.
        let read_only = self.cache.is_some_and(|cache| cache.policy == disk::Policy::ReadOnly);
        let follows = match (key, &own) {
            ("write_policy", Origin::Default) if read_only => given("ro").or(given("consistency")),
            ("ro", Origin::Default) if self.settings.read_only => given("consistency"),
            _ => None,
        };
        follows.cloned().unwrap_or(own)
    }

    fn value(&self, key: &str) -> Value {
        let settings = self.settings;
        let (cache, metadata) = (&settings.cache, &settings.metadata);
        let geometry = &cache.geometry;
        let life = |life: Option<Duration>| json!(life.map(|life| life.as_secs_f64()));
        let switch = |on: bool, word: &str| json!(if on { word } else { "off" });
        match key {
            "ssh_command" => json!(shlex::try_join(settings.ssh_command.iter().map(|w| &**w)).ok()),
            "ssh_config" => json!(settings.ssh_config),
            "ssh_option" => json!(settings.ssh_options),
            "gridvfs_command" => json!(settings.gridvfs_command),
            "bootstrap" => json!(settings.bootstrap.word()),
            "stripes" => json!(settings.stripes),
            "linger" => json!(settings.linger_seconds),
            "timeout" => json!(settings.timeout.map_or(0.0, |time| time.as_secs_f64())),
            "nfs" => json!(settings.nfs),
            "no_proxy" => json!(settings.no_proxy),
            "mountport" => json!(settings.mount_port),
            "cred" => json!(settings.credential.map(|(uid, gid)| format!("{uid}:{gid}"))),
            "key_file" => json!(settings.key_file),
            "ro" => json!(settings.read_only),
            "allow_other" => json!(settings.allow_other),
            "default_permissions" => json!(settings.default_permissions || settings.allow_other),
            "nonempty" => json!(settings.nonempty),
            "attr_timeout" => life(settings.attr_timeout),
            "entry_timeout" => life(settings.entry_timeout),
            "negative_timeout" => life(settings.negative_timeout),
            "cache" => switch(self.cache.is_some(), "on"),
            "cache_dir" => json!(self.cache_dir.or(cache.dir.as_deref())),
            "cache_size" => json!(geometry.size_bytes),
            "cache_banks" => json!(geometry.banks),
            "cache_ways" => json!(geometry.ways),
            "cache_frame" => json!(geometry.frame_bytes),
            "cache_share" => json!(cache.share),
            "passthrough" => switch(cache.passthrough, "auto"),
            "kernel_writeback" => switch(cache.kernel_writeback, "auto"),
            "coherence" => json!(if cache.coherence { "yes" } else { "no" }),
            "metadata" => switch(metadata.enabled, "on"),
            "show_metadata" => json!(metadata.show),
            "profile" => switch(metadata.profile, "on"),
            "action" => json!(metadata.commands.keys().collect::<Vec<_>>()),
            _ => json!(true), // One of the kernel's flags.
        }
    }
}

/// Returns a row of one value.
pub fn row(key: &str, value: Value, origin: Origin) -> Value {
    let mut row = origin.to_json();
    row["key"] = json!(key);
    row["value"] = value;
    row
}

fn changes(key: &str) -> bool {
    keys::find(key).is_some_and(|key| key.changes)
}

/// Returns the keys that two sets of settings differ in, and that hold for a mount's whole life.
pub fn differences(now: &Settings, next: &Settings) -> Vec<String> {
    let provenance = Provenance::default();
    let unchanging = disk::Settings::default();
    let values = |settings: &Settings| -> BTreeMap<String, Value> {
        let shown =
            Shown { settings, cache: Some(&unchanging), cache_dir: None, provenance: &provenance };
        let rows = shown.rows().into_iter();
        rows.map(|row| (row["key"].as_str().unwrap_or_default().into(), row["value"].clone()))
            .collect()
    };
    let (now, next) = (values(now), values(next));
    let names = now.keys().chain(next.keys().filter(|name| !now.contains_key(*name)));
    names.filter(|name| now.get(*name) != next.get(*name)).cloned().collect()
}
