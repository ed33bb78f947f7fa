//! The options of the disk cache: what holds for a mount's whole life, and what may change while it
//! lasts. The latter is the same in files, on the command line and for `gridvfs set`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use gridvfs_cache::disk::{AtEnd, Consistency, Policy, Rule, Settings};
use gridvfs_cache::store::Geometry;

use super::{keys, seconds};
use crate::report::{Exit, Hinted, bytes_text};

/// The kernel believes names and attributes for this long where nobody else changes the files.
const TRUSTED_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Changes of the settings, as somebody has asked for them: what is not named stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    policy: Option<Policy>,
    consistency: Option<Consistency>,
    at_end: Option<AtEnd>,
    delay: Option<Duration>,
    age: Option<Duration>,
    dirty_max_bytes: Option<u64>,
    /// Rules as typed; they have been parsed.
    rules: Option<Vec<String>>,
}

impl Changes {
    /// Takes one in. Returns whether the key is one of these.
    pub fn set(&mut self, key: &str, value: &str) -> Result<bool> {
        let word = |error| anyhow::Error::msg(error);
        match key {
            "write_policy" => self.policy = Some(value.parse().map_err(word)?),
            "consistency" => self.consistency = Some(value.parse().map_err(word)?),
            "at_end" => self.at_end = Some(value.parse().map_err(word)?),
            "writeback_delay" => self.delay = Some(seconds(value)?),
            "writeback_age" => self.age = Some(seconds(value)?),
            "dirty_max" => {
                let bytes = size(value)?;
                if bytes < DIRTY_MIN {
                    bail!("{value} is less than {}", bytes_text(DIRTY_MIN));
                }
                self.dirty_max_bytes = Some(bytes);
            }
            "rule" => {
                value.parse::<Rule>().map_err(word)?;
                self.rules.get_or_insert_default().push(value.into());
            }
            "rules" if value.is_empty() => self.rules = Some(Vec::new()),
            "rules" => bail!("only `rules=` is possible, which clears them; rule=… sets one"),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Reads `KEY=VALUE` words, of which each must be one of these.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        Self::parse_words(words).map_err(|error| match Exit::of(&error) {
            Exit::Failed => Exit::Usage.mark(error),
            _ => error,
        })
    }

    fn parse_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut changes = Self::default();
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                bail!("{word}: KEY=VALUE is expected");
            };
            let known = changes.set(key, value).with_context(|| word.to_string())?;
            if known {
                continue;
            }
            let changing: Vec<&str> = keys::changing_names().collect();
            if keys::find(key).is_some() {
                return Err(Exit::Refused.mark(Hinted::error(
                    format!("{key} holds for the whole life of a mount"),
                    format!(
                        "give it to gridvfs mount, or write it into the session's file; these can \
                         be set now: {}",
                        changing.join(", ")
                    ),
                )));
            }
            return Err(super::unknown(key, changing, "setting")).context(word.to_string());
        }
        Ok(changes)
    }

    /// Takes back what was asked for as write policy.
    pub fn forget_policy(&mut self) {
        self.policy = None;
    }

    /// Makes the changes. The settings must fit each other afterwards.
    pub fn apply(&self, settings: &mut Settings) {
        let Self { policy, consistency, at_end, delay, age, dirty_max_bytes, rules } = self;
        settings.policy = policy.unwrap_or(settings.policy);
        settings.consistency = consistency.unwrap_or(settings.consistency);
        settings.at_end = at_end.unwrap_or(settings.at_end);
        settings.writeback_delay = delay.unwrap_or(settings.writeback_delay);
        settings.writeback_age_max = age.unwrap_or(settings.writeback_age_max);
        settings.dirty_max_bytes = dirty_max_bytes.unwrap_or(settings.dirty_max_bytes);
        if let Some(rules) = rules {
            settings.rules = rules.iter().filter_map(|rule| rule.parse().ok()).collect();
        }
    }
}

/// Less unsent data than this would have a writer wait for each of its writes.
const DIRTY_MIN: u64 = 1 << 20;
/// The most unsent data, unless told.
const DIRTY_MAX: u64 = 4 << 30;

/// The cache of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// Whether there is one; `None`: unless the files are on this machine.
    pub wanted: Option<bool>,
    /// Where; `None`: in the user's cache directory.
    pub dir: Option<PathBuf>,
    /// Size and shape.
    pub geometry: Geometry,
    /// Several sessions share it; none writes.
    pub share: bool,
    /// The kernel may read whole files by itself.
    pub passthrough: bool,
    /// The kernel may gather writes where that is safe.
    pub kernel_writeback: bool,
    /// A shared session hears of others' changes, where the far side can tell them.
    pub coherence: bool,
    /// What files and the command line change.
    pub changes: Changes,
    /// The mount is made read-only.
    pub read_only: bool,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            wanted: None,
            dir: None,
            geometry: Geometry::default(),
            share: false,
            passthrough: true,
            kernel_writeback: true,
            coherence: false,
            changes: Changes::default(),
            read_only: false,
        }
    }
}

impl CacheOptions {
    /// Takes an option in. Returns whether it is one of the cache's.
    pub fn set(&mut self, key: &str, value: Option<&str>) -> Result<bool> {
        let text = || value.filter(|value| !value.is_empty()).context("a value is missing");
        let choice = |yes, no| match value {
            Some(word) if word == yes => Ok(true),
            Some(word) if word == no => Ok(false),
            _ => bail!("{yes} or {no} is expected"),
        };
        match key {
            "cache" => self.wanted = Some(choice("on", "off")?),
            "cache_dir" => self.dir = Some(std::path::absolute(text()?)?),
            "cache_size" => self.geometry.size_bytes = size(text()?)?,
            "cache_banks" => self.geometry.banks = number(text()?, 1..=4096)?,
            "cache_ways" => self.geometry.ways = number(text()?, 1..=64)?,
            "cache_frame" => {
                let bytes = size(text()?)?;
                if ![16, 32, 64, 128].contains(&(bytes >> 10)) || bytes % 1024 != 0 {
                    bail!("16K, 32K, 64K or 128K is expected");
                }
                self.geometry.frame_bytes = bytes as u32;
            }
            "cache_share" => self.share = super::flag(value)?,
            // Its file has been read already, as one of the layers below the command line.
            "settings" => drop(text()?),
            "passthrough" => self.passthrough = choice("auto", "off")?,
            "kernel_writeback" => self.kernel_writeback = choice("auto", "off")?,
            "coherence" => self.coherence = choice("yes", "no")?,
            "rules" if value.is_none_or(str::is_empty) => return self.changes.set(key, ""),
            "rules" => bail!("give rule=GLOB:WORD[:WORD…], as often as need be"),
            key if keys::changing_names().any(|name| name == key) => {
                return self.changes.set(key, text()?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Checks what needs to be known of several options. `ro` was given or not.
    pub fn check(&mut self, read_only: bool) -> Result<()> {
        self.geometry.checked().with_context(|| {
            let Geometry { size_bytes, .. } = self.geometry;
            format!("-o cache_size, cache_banks, cache_ways ({})", bytes_text(size_bytes))
        })?;
        self.read_only = read_only || self.changes.consistency == Some(Consistency::ReadOnlyShared);
        if let Some(policy) = self.changes.policy
            && policy != Policy::ReadOnly
            && self.read_only
        {
            let other = if read_only { "ro" } else { "consistency=read-only-shared" };
            bail!("-o write_policy={policy} does not go with -o {other}");
        }
        if self.share && !self.read_only {
            return Err(Hinted::error(
                "-o cache_share: sessions that share a cache only read",
                "add -o ro, or -o consistency=read-only-shared",
            ));
        }
        if self.wanted == Some(false) && self.share {
            bail!("-o cache_share does not go with -o cache=off");
        }
        Ok(())
    }

    /// Returns the settings to begin with.
    pub fn settings(&self) -> Result<Settings> {
        self.settings_with(&self.changes)
    }

    /// Returns the settings to go on with when files have been changed: the defaults, and what files
    /// and the command line say now over them.
    pub fn settings_with(&self, changes: &Changes) -> Result<Settings> {
        let mut settings = Settings {
            dirty_max_bytes: DIRTY_MAX.min(self.geometry.size_bytes / 2).max(DIRTY_MIN),
            ..Settings::default()
        };
        if self.read_only {
            settings.policy = Policy::ReadOnly;
        }
        changes.apply(&mut settings);
        self.fit(&settings)?;
        Ok(settings)
    }

    /// Says what of the settings is impossible in this mount.
    pub fn fit(&self, settings: &Settings) -> Result<()> {
        if self.read_only && settings.policy != Policy::ReadOnly {
            bail!("write_policy={}: the mount is read-only", settings.policy);
        }
        if settings.consistency == Consistency::ReadOnlyShared
            && settings.policy != Policy::ReadOnly
        {
            bail!(
                "consistency=read-only-shared needs write_policy=read-only, not {}",
                settings.policy
            );
        }
        Ok(())
    }

    /// Says for how long the kernel believes what it was told, where an option does not: `usual`,
    /// or long, if nobody else changes the files.
    pub fn life(settings: Option<&Settings>, usual: Duration) -> Duration {
        match settings {
            Some(settings) if settings.consistency.trusts() => TRUSTED_LIFE,
            _ => usual,
        }
    }
}

/// Returns the settings by the keys that change them.
pub fn settings_json(settings: &Settings) -> serde_json::Value {
    let rules: Vec<String> = settings.rules.iter().map(Rule::to_string).collect();
    serde_json::json!({
        "write_policy": settings.policy.to_string(),
        "consistency": settings.consistency.to_string(),
        "at_end": settings.at_end.to_string(),
        "writeback_delay": settings.writeback_delay.as_secs_f64(),
        "writeback_age": settings.writeback_age_max.as_secs_f64(),
        "dirty_max": settings.dirty_max_bytes,
        "rules": rules,
    })
}

/// Reads a size: a number of bytes, or one with K, M, G or T (of 1024).
pub fn size(text: &str) -> Result<u64> {
    let wrong = || format!("{text:?} is no size: a number with K, M, G or T is expected");
    let upper = text.to_ascii_uppercase();
    let upper = upper.strip_suffix("IB").or(upper.strip_suffix('B')).unwrap_or(&upper);
    let (digits, shift) = match upper.chars().last() {
        Some('K') => (&upper[..upper.len() - 1], 10),
        Some('M') => (&upper[..upper.len() - 1], 20),
        Some('G') => (&upper[..upper.len() - 1], 30),
        Some('T') => (&upper[..upper.len() - 1], 40),
        _ => (upper, 0),
    };
    if let Ok(number) = digits.parse::<u64>() {
        return number.checked_mul(1 << shift).with_context(wrong);
    }
    match digits.parse::<f64>() {
        Ok(number) if (0.0..1e6).contains(&number) && shift > 0 => {
            Ok((number * (1u64 << shift) as f64) as u64)
        }
        _ => bail!(wrong()),
    }
}

fn number(text: &str, range: std::ops::RangeInclusive<u32>) -> Result<u32> {
    let (least, most) = (range.start(), range.end());
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => bail!("a number from {least} to {most} is expected"),
    }
}

#[cfg(test)]
mod tests;
