//! The settings of a mount: defaults, files and the command line, as given, become validated
//! [`Settings`] here and nowhere else.

mod cache;
mod file;
mod item;
mod keys;
mod layers;
mod metadata;
mod show;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::report::Hinted;

pub use cache::{CacheOptions, Changes, settings_json, size};
pub use item::{Item, Origin, split_at_commas};
pub use keys::{names, nearest};
pub use layers::{Layers, Reading, mountpoint_of, named_session_file, session_file};
pub use metadata::MetadataOptions;
pub use show::{Provenance, Shown, differences, row};

/// Settings of a mount, each with its default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Channels to the host. OpenSSH grants 2 MiB of window each: four carry 1 Gbit/s at 32 ms.
    pub stripes: usize,
    /// The ssh command and its arguments.
    pub ssh_command: Vec<String>,
    /// A configuration file for ssh.
    pub ssh_config: Option<PathBuf>,
    /// Options of ssh's own, `KEY=VALUE`.
    pub ssh_options: Vec<String>,
    /// The command that runs gridvfs on the host.
    pub gridvfs_command: Option<String>,
    /// Whether this program is copied to a host that has none.
    pub bootstrap: Bootstrap,
    /// `ADDR[:PORT]` of an NFSv3 server, as the host sees it.
    pub nfs: Option<String>,
    /// Reach the NFS server by `ssh -W`, with nothing of ours on the host.
    pub no_proxy: bool,
    /// The port of the MOUNT service; the portmapper is asked if `None`.
    pub mount_port: Option<u16>,
    /// After how long without an answer a call fails with EIO; `None`: never (a hard mount).
    pub timeout: Option<Duration>,
    /// For how long the kernel may believe attributes; `None`: as the cache's consistency says.
    pub attr_timeout: Option<Duration>,
    /// For how long the kernel may believe names.
    pub entry_timeout: Option<Duration>,
    /// For how long the kernel may believe that a name does not exist.
    pub negative_timeout: Option<Duration>,
    /// Refuse every change.
    pub read_only: bool,
    /// Let other users in. The kernel then checks permissions.
    pub allow_other: bool,
    /// Let the kernel check permissions by mode bits.
    pub default_permissions: bool,
    /// Mount over a directory that is not empty.
    pub nonempty: bool,
    /// The identity that an NFS server is shown, where none of our proxies maps it: uid and gid.
    pub credential: Option<(u32, u32)>,
    /// A file with the session key, for standing proxies.
    pub key_file: Option<PathBuf>,
    /// For how many seconds a session without channels lasts on the host.
    pub linger_seconds: u32,
    /// Passed on to the kernel's mount as they are: `nosuid`, `noatime` and so on.
    pub kernel: Vec<String>,
    /// The disk cache.
    pub cache: CacheOptions,
    /// Metadata files.
    pub metadata: MetadataOptions,
}

/// Whether this program is copied to a host that has none, or another version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// It is.
    Yes,
    /// It is not.
    No,
    /// If somebody at the terminal agrees.
    Ask,
}

impl Bootstrap {
    /// Its name as an option.
    pub fn word(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Ask => "ask",
        }
    }

    fn from_word(word: &str) -> Result<Self> {
        let found = [Self::Yes, Self::No, Self::Ask].into_iter().find(|one| one.word() == word);
        found.context("yes, no or ask is expected")
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            stripes: 4,
            ssh_command: vec!["ssh".into()],
            ssh_config: None,
            ssh_options: Vec::new(),
            gridvfs_command: None,
            bootstrap: Bootstrap::Ask,
            nfs: None,
            no_proxy: false,
            mount_port: None,
            timeout: None,
            attr_timeout: None,
            entry_timeout: None,
            negative_timeout: None,
            read_only: false,
            allow_other: false,
            default_permissions: false,
            nonempty: false,
            credential: None,
            key_file: None,
            linger_seconds: 300,
            kernel: Vec::new(),
            cache: CacheOptions::default(),
            metadata: MetadataOptions::default(),
        }
    }
}

/// The most stripes: beyond it, sshd's MaxStartups would drop log-ins at random.
const STRIPES_MAX: usize = 10;

impl Settings {
    /// Reads settings over the defaults, layer over layer; what comes later wins.
    ///
    /// Within a layer lists grow (`rule=a:none,rule=b:none`); what a layer says of a list replaces
    /// what lower layers say of it.
    fn of<'a>(layers: impl IntoIterator<Item = &'a [Item]>) -> Result<Self> {
        let mut settings = Self::default();
        for layer in layers {
            settings.begin_layer(layer)?;
            for item in layer {
                settings.set(item).with_context(|| item.described())?;
            }
        }
        settings.check()?;
        Ok(settings)
    }

    /// Reads one layer over the defaults.
    pub fn of_items(items: &[Item]) -> Result<Self> {
        Self::of([items])
    }

    /// Drops what the layer replaces.
    fn begin_layer(&mut self, layer: &[Item]) -> Result<()> {
        let says = |key: &str| layer.iter().any(|item| item.key == key);
        if says("rule") {
            self.cache.changes.set("rules", "")?;
        }
        let names: Vec<String> = layer.iter().filter_map(ssh_option).map(option_name).collect();
        self.ssh_options.retain(|option| !names.contains(&option_name(option)));
        // `-o ro` is enough where a file says write-back.
        let read_only = |item: &Item| match item.key.as_str() {
            "ro" => flag(item.value.as_deref()).unwrap_or(false),
            "consistency" => item.value.as_deref() == Some("read-only-shared"),
            _ => false,
        };
        if layer.iter().any(read_only) && !says("write_policy") {
            self.cache.changes.forget_policy();
        }
        Ok(())
    }

    fn set(&mut self, item: &Item) -> Result<()> {
        let (key, value) = (item.key.as_str(), item.value.as_deref());
        let text = || value.filter(|value| !value.is_empty()).context("a value is missing");
        let flag = || flag(value);
        match key {
            "stripes" => {
                self.stripes = text()?.parse().context("not a number")?;
                if !(1..=STRIPES_MAX).contains(&self.stripes) {
                    bail!("1 to {STRIPES_MAX} are possible");
                }
            }
            "ssh_command" => {
                self.ssh_command = shlex::split(text()?).context("quotes do not match")?;
                if self.ssh_command.is_empty() {
                    bail!("the command is empty");
                }
            }
            "ssh_config" => self.ssh_config = Some(std::path::absolute(text()?)?),
            "gridvfs_command" => self.gridvfs_command = Some(text()?.into()),
            "bootstrap" => self.bootstrap = Bootstrap::from_word(text()?)?,
            "nfs" => self.nfs = Some(text()?.into()),
            "no_proxy" => self.no_proxy = flag()?,
            "mountport" => self.mount_port = Some(text()?.parse().context("not a port number")?),
            "timeout" => self.timeout = Some(seconds(text()?)?).filter(|time| !time.is_zero()),
            "attr_timeout" => self.attr_timeout = Some(seconds(text()?)?),
            "entry_timeout" => self.entry_timeout = Some(seconds(text()?)?),
            "negative_timeout" => self.negative_timeout = Some(seconds(text()?)?),
            "ro" => self.read_only = flag()?,
            "rw" => self.read_only = !flag()?,
            "allow_other" => self.allow_other = flag()?,
            "default_permissions" => self.default_permissions = flag()?,
            "nonempty" => self.nonempty = flag()?,
            "cred" => self.credential = Some(identity(text()?)?),
            "linger" => self.linger_seconds = text()?.parse().context("not a number of seconds")?,
            "key_file" => self.key_file = Some(std::path::absolute(text()?)?),
            key if keys::KERNEL_FLAGS.contains(&key) => {
                self.kernel.retain(|flag| flag != key);
                if flag()? {
                    self.kernel.push(key.into());
                }
            }
            key if keys::is_ignored(key) => {}
            "ssh_option" if !text()?.contains('=') => bail!("KEY=VALUE is expected"),
            _ if ssh_option(item).is_some() => self.ssh_options.extend(ssh_option(item)),
            key if self.cache.set(key, value)? => {}
            key if self.metadata.set(key, value)? => {}
            _ => return Err(unknown(key, keys::names(), "option")),
        }
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        self.cache.check(self.read_only)?;
        self.read_only = self.cache.read_only;
        Ok(())
    }

    /// Returns the ssh command with its options.
    pub fn ssh_words(&self) -> Result<Vec<String>> {
        let mut words = self.ssh_command.clone();
        if let Some(file) = &self.ssh_config {
            let file = file.to_str().context("ssh_config: the path is not UTF-8")?;
            words.extend(["-F".into(), file.into()]);
        }
        words.extend(self.ssh_options.iter().flat_map(|option| ["-o".into(), option.clone()]));
        Ok(words)
    }
}

/// Returns an option of ssh's own: sshfs's habit is that it begins with a capital letter, such as
/// Port=2222 or IdentityFile=…
fn ssh_option(item: &Item) -> Option<String> {
    let value = item.value.as_ref()?;
    match item.key.as_str() {
        "ssh_option" => Some(value.clone()),
        key if key.starts_with(|first: char| first.is_ascii_uppercase()) => {
            Some(format!("{key}={value}"))
        }
        _ => None,
    }
}

/// What an option of ssh's is called: case does not matter to ssh.
fn option_name(option: impl AsRef<str>) -> String {
    option.as_ref().split(['=', ' ']).next().unwrap_or_default().to_ascii_lowercase()
}

fn flag(value: Option<&str>) -> Result<bool> {
    match value {
        None | Some("yes" | "true" | "1") => Ok(true),
        Some("no" | "false" | "0") => Ok(false),
        Some(_) => bail!("yes or no is expected"),
    }
}

/// Says whether an option, `KEY` or `KEY=VALUE`, has a key that is known.
pub fn is_known(option: &str) -> bool {
    let item = Item::option(option);
    keys::find(&item.key).is_some() || keys::is_ignored(&item.key) || ssh_option(&item).is_some()
}

fn unknown<'a>(name: &str, known: impl IntoIterator<Item = &'a str>, what: &str) -> anyhow::Error {
    let hint = match keys::nearest(name, known) {
        Some(name) => format!("did you mean {name}?"),
        None => "gridvfs mount --help lists the options, which are also a file's keys".into(),
    };
    Hinted::error(format!("unknown {what}"), hint)
}

fn seconds(text: &str) -> Result<Duration> {
    let number: f64 = text.trim_end_matches('s').parse().context("not a number of seconds")?;
    Duration::try_from_secs_f64(number).context("not a number of seconds")
}

fn identity(text: &str) -> Result<(u32, u32)> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    let number = |text: &str| text.parse().context("UID or UID:GID, as numbers, is expected");
    Ok((number(uid)?, number(gid)?))
}

#[cfg(test)]
mod tests;
