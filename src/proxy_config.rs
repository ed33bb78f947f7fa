//! The file of a standing proxy (`gridvfs proxy serve --config FILE`): what it says becomes a
//! checked [`ProxyConfig`] here and nowhere else. docs/proxies.md lists the keys.

mod reader;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use gridvfs_proxy::identity::TableConfig;
use gridvfs_proxy::key_file;
use gridvfs_proxy::serve::{Limits, ListenAt};

use crate::options::{self, Item, Origin, Settings, size};
use crate::report::Hinted;
use crate::source::Source;
pub use reader::Reader;
use reader::path_of;

/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The most exports: the handles of a call are tried on each.
const EXPORTS_MAX: usize = 64;

const TOP_KEYS: &[&str] = &[
    "name",
    "listen",
    "listen_keyless",
    "key_file",
    "socket_mode",
    "clients_max",
    "calls_max",
    "memory_max",
    "export",
    "identity",
    "key",
    "keyless",
];
const IDENTITY_KEYS: &[&str] =
    &["map_uid", "map_gid", "unmapped", "squash_to", "allow_root", "shadow"];
const GUEST_KEYS: &[&str] = &["exports", "read_only"];
/// Options of `gridvfs mount` that mean something to the kernel of a mount only.
const MOUNT_ONLY: &[&str] = &[
    "allow_other",
    "default_permissions",
    "nonempty",
    "attr_timeout",
    "entry_timeout",
    "negative_timeout",
    "passthrough",
    "kernel_writeback",
    "settings",
];

/// A standing proxy.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// What it is called in logs and by other proxies.
    pub name: String,
    /// Whether its file says so, and not that file's own name.
    pub is_named: bool,
    /// Where it listens.
    pub listen: Vec<ListenAt>,
    /// The mode of its unix sockets.
    pub socket_mode: u32,
    /// The file of its clients' keys.
    pub key_file: Option<PathBuf>,
    /// Its limits.
    pub limits: Limits,
    /// What it serves, by name.
    pub exports: BTreeMap<String, ExportConfig>,
    /// What the clients with keys are shown, where the file says something of one.
    pub keys: BTreeMap<String, GuestConfig>,
    /// What all others with keys are shown.
    pub others: GuestConfig,
    /// What those without keys are shown.
    pub keyless: GuestConfig,
}

/// What a proxy serves under one name.
#[derive(Clone, Debug)]
pub struct ExportConfig {
    /// The SOURCE, as `gridvfs mount` takes it.
    pub text: String,
    /// The same, taken apart.
    pub source: Source,
    /// The options, as for a mount.
    pub settings: Settings,
    /// Nobody changes the files but through this proxy.
    pub exclusive: bool,
}

/// What a client is shown, and as whom it acts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestConfig {
    /// The exports by name; `None`: all.
    pub exports: Option<Vec<String>>,
    /// Refuse every change.
    pub read_only: bool,
    /// Who is who.
    pub table: Option<TableConfig>,
    /// The client's identity that this process's stands for.
    pub shadow: Option<(u32, u32)>,
}

impl ProxyConfig {
    /// Reads a file.
    pub fn from_file(path: &Path) -> Result<Self> {
        let what = || format!("proxy file {}", path.display());
        let length = std::fs::metadata(path).with_context(what)?.len();
        if length > FILE_BYTES_MAX {
            bail!("{}: more than {FILE_BYTES_MAX} bytes", what());
        }
        let text = std::fs::read_to_string(path).with_context(what)?;
        let name = path.file_stem().map_or("proxy".into(), |name| name.to_string_lossy());
        Self::from_toml(&text, &name).with_context(what)
    }

    fn from_toml(text: &str, name: &str) -> Result<Self> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            anyhow::anyhow!("line {line}: {}", error.message())
        })?;
        let top = Reader::new("", &table);
        top.check_keys(&[TOP_KEYS])?;
        let mut listen = Vec::new();
        for (key, keyless) in [("listen", false), ("listen_keyless", true)] {
            let addresses = top.texts(key)?.unwrap_or_default().into_iter();
            listen.extend(addresses.map(|address| ListenAt { address, keyless }));
        }
        let key_file = top.text("key_file")?.map(|path| path_of(&path)).transpose()?;
        if listen.is_empty() {
            bail!("listen or listen_keyless: an address is missing, as in [\"127.0.0.1:7049\"]");
        }
        if key_file.is_none() && listen.iter().any(|at| !at.keyless) {
            bail!("key_file is missing: who may come to the addresses of listen?");
        }
        let mut exports = BTreeMap::new();
        for (name, table) in top.tables("export")? {
            let export = Self::export(name, &table)?;
            exports.insert(name.to_string(), export);
        }
        if exports.is_empty() || exports.len() > EXPORTS_MAX {
            bail!(
                "{} exports: 1 to {EXPORTS_MAX} are expected, each an [export.NAME]",
                exports.len()
            );
        }
        let others = match top.table("identity")? {
            Some(table) => guest(&table, &GuestConfig::default(), &[IDENTITY_KEYS], &exports)?,
            None => GuestConfig::default(),
        };
        let known = [IDENTITY_KEYS, GUEST_KEYS];
        let mut keys = BTreeMap::new();
        for (name, table) in top.tables("key")? {
            if !key_file::valid_name(name) {
                bail!("[key.{name}]: no key can have this name");
            }
            keys.insert(name.to_string(), guest(&table, &others, &known, &exports)?);
        }
        let keyless = match top.table("keyless")? {
            Some(table) => guest(&table, &others, &known, &exports)?,
            None => others.clone(),
        };
        let mut limits = Limits::default();
        let least = |key: &str, least: u64, number: u64| match number >= least {
            true => Ok(number as usize),
            false => bail!("{key}: {least} is the least"),
        };
        if let Some(number) = top.number("clients_max")? {
            limits.clients_max = least("clients_max", 1, number)?;
        }
        if let Some(number) = top.number("calls_max")? {
            limits.calls_max = least("calls_max", 16, number)?;
        }
        if let Some(text) = top.word("memory_max")? {
            limits.memory_max_bytes = least("memory_max", 8 << 20, size(&text)?)?;
        }
        let socket_mode = match top.text("socket_mode")? {
            Some(text) => u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o777),
            None => Some(0o600),
        };
        let given = top.text("name")?;
        Ok(Self {
            is_named: given.is_some(),
            name: given.unwrap_or_else(|| name.into()),
            listen,
            socket_mode: socket_mode.context("socket_mode: a mode is expected, as in \"0660\"")?,
            key_file,
            limits,
            exports,
            keys,
            others,
            keyless,
        })
    }

    fn export(name: &str, table: &Reader) -> Result<ExportConfig> {
        if !key_file::valid_name(name) {
            bail!("[export.{name}]: letters, digits, - _ . @ are possible in a name");
        }
        let text = table.text("source")?.with_context(|| table.at("source is missing"))?;
        let source = Source::parse(&text).with_context(|| table.at("source"))?;
        let mut items = Vec::new();
        let mut add = |key: &str, value: String| {
            items.push(Item { key: key.into(), value: Some(value), origin: Origin::Default });
        };
        for (key, value) in table.entries() {
            match (key, value) {
                ("source" | "exclusive", _) => {}
                ("read_only", _) => {
                    let wanted = table.flag(key)?.unwrap_or_default();
                    add("ro", wanted.to_string());
                }
                ("ssh", _) => {
                    let Some(options) = table.table(key)? else { continue };
                    for (name, option) in options.entries() {
                        let text = match option {
                            toml::Value::Boolean(flag) => if *flag { "yes" } else { "no" }.into(),
                            _ => options.word(name)?.unwrap_or_default(),
                        };
                        add("ssh_option", format!("{name}={text}"));
                    }
                }
                (key, _) if MOUNT_ONLY.contains(&key) => {
                    bail!("{}", table.at(&format!("{key} is for a mount, not for a proxy")));
                }
                ("rules", _) => {
                    let rules = table.texts(key)?.unwrap_or_default();
                    rules.into_iter().for_each(|rule| add("rule", rule));
                }
                ("rule", _) => bail!("{}", table.at("give rules = [\"GLOB:WORD\", …]")),
                (key, toml::Value::Array(_)) => {
                    let values = table.texts(key)?.unwrap_or_default();
                    values.into_iter().for_each(|value| add(key, value));
                }
                (key, toml::Value::Boolean(flag)) => add(key, flag.to_string()),
                (key, _) => add(key, path_like(key, table.word(key)?.unwrap_or_default())?),
            }
        }
        let known = options::names().chain(["source", "read_only", "exclusive", "rules", "ssh"]);
        if let Some(item) = items.iter().find(|item| !options::names().any(|key| key == item.key)) {
            let near = options::nearest(&item.key, known);
            let hint = near.map_or("docs/proxies.md lists the keys".into(), |name| {
                format!("did you mean {name}?")
            });
            return Err(Hinted::error(table.at(&format!("{}: unknown key", item.key)), hint));
        }
        let settings = Settings::of_items(&items).with_context(|| table.at("the options"))?;
        if settings.no_proxy && !matches!(source, Source::Ssh { .. }) {
            bail!("{}", table.at("no_proxy goes with HOST:/path"));
        }
        if !settings.kernel.is_empty() {
            let word = &settings.kernel[0];
            bail!("{}", table.at(&format!("{word} is for a mount, not for a proxy")));
        }
        let exclusive = table.flag("exclusive")?.unwrap_or_default();
        Ok(ExportConfig { text, source, settings, exclusive })
    }
}

/// Paths may begin with `~/`.
fn path_like(key: &str, value: String) -> Result<String> {
    match key {
        "key_file" | "cache_dir" | "ssh_config" => {
            Ok(path_of(&value).with_context(|| key.to_string())?.to_string_lossy().into_owned())
        }
        _ => Ok(value),
    }
}

fn guest(
    table: &Reader,
    others: &GuestConfig,
    known: &[&[&str]],
    exports: &BTreeMap<String, ExportConfig>,
) -> Result<GuestConfig> {
    table.check_keys(known)?;
    let mut guest = others.clone();
    if let Some(names) = table.texts("exports")? {
        if let Some(name) = names.iter().find(|name| !exports.contains_key(*name)) {
            bail!("{}", table.at(&format!("exports: there is no [export.{name}]")));
        }
        guest.exports = Some(names);
    }
    guest.read_only = table.flag("read_only")?.unwrap_or(guest.read_only);
    if let Some(text) = table.text("shadow")? {
        guest.shadow = Some(pair(&text).with_context(|| table.at("shadow"))?);
    }
    let (uids, gids) = (table.texts("map_uid")?, table.texts("map_gid")?);
    let squash_to = table.text("squash_to")?;
    let unmapped = table.text("unmapped")?;
    let allow_root = table.flag("allow_root")?;
    if uids.is_none() && gids.is_none() {
        if unmapped.is_some() || squash_to.is_some() || allow_root.is_some() {
            bail!("{}", table.at("unmapped, squash_to and allow_root go with map_uid and map_gid"));
        }
        return Ok(guest);
    }
    let squash_to = match (unmapped.as_deref(), squash_to) {
        (None | Some("refuse"), None) => None,
        (Some("squash"), text) => {
            let text = text.unwrap_or_else(|| "65534:65534".into());
            Some(pair(&text).with_context(|| table.at("squash_to"))?)
        }
        (None | Some("refuse"), Some(_)) => {
            bail!("{}", table.at("squash_to goes with unmapped = \"squash\""))
        }
        (Some(word), _) => {
            bail!("{}", table.at(&format!("unmapped: refuse or squash, not {word:?}")))
        }
    };
    let config = TableConfig {
        map_uid: uids.unwrap_or_default(),
        map_gid: gids.unwrap_or_default(),
        squash_to,
        allow_root: allow_root.unwrap_or(false),
    };
    // What is wrong with it is told when the file is read, not when somebody comes.
    gridvfs_proxy::identity::IdentityTable::new(&config).with_context(|| table.at("identities"))?;
    guest.table = Some(config);
    Ok(guest)
}

/// Takes the table of identities out of a file that has nothing else; `known` names what may have
/// been meant besides.
pub fn identity_of(table: &toml::Table, known: &[&str]) -> Result<GuestConfig> {
    let reader = Reader::new("", table);
    let none = BTreeMap::new();
    guest(&reader, &GuestConfig::default(), &[IDENTITY_KEYS, known], &none)
}

fn pair(text: &str) -> Result<(u32, u32)> {
    let (uid, gid) = text.split_once(':').context("UID:GID is expected")?;
    let number = |text: &str| text.parse().context("UID:GID is expected, as numbers");
    Ok((number(uid)?, number(gid)?))
}

#[cfg(test)]
mod tests;
