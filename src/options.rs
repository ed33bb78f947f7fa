//! The `-o KEY=VALUE,…` options: as typed, they become validated [`Settings`] here and nowhere
//! else.

mod cache;
mod metadata;

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::report::Hinted;

pub use cache::{CacheOptions, Changes, settings_json, size};
pub use metadata::MetadataOptions;

/// Settings of a mount, each with its default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Channels to the host. OpenSSH grants 2 MiB of window each: four carry 1 Gbit/s at 32 ms.
    pub stripes: usize,
    /// The ssh command and its arguments.
    pub ssh_command: Vec<String>,
    /// The command that runs gridvfs on the host.
    pub gridvfs_command: Option<String>,
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
    /// For how many seconds a session without channels lasts on the host.
    pub linger_seconds: u32,
    /// Passed on to the kernel's mount as they are: `nosuid`, `noatime` and so on.
    pub kernel: Vec<String>,
    /// The disk cache.
    pub cache: CacheOptions,
    /// Metadata files.
    pub metadata: MetadataOptions,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            stripes: 4,
            ssh_command: vec!["ssh".into()],
            gridvfs_command: None,
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
            linger_seconds: 300,
            kernel: Vec::new(),
            cache: CacheOptions::default(),
            metadata: MetadataOptions::default(),
        }
    }
}

/// The most stripes: beyond it, sshd's MaxStartups would drop log-ins at random.
const STRIPES_MAX: usize = 10;

const KEYS: &[&str] = &[
    "stripes",
    "ssh_command",
    "gridvfs_command",
    "nfs",
    "no_proxy",
    "mountport",
    "timeout",
    "attr_timeout",
    "entry_timeout",
    "negative_timeout",
    "ro",
    "rw",
    "allow_other",
    "default_permissions",
    "nonempty",
    "cred",
    "linger",
];

/// Options of the kernel's own, which fusermount3 takes.
const KERNEL_FLAGS: &[&str] = &[
    "suid", "nosuid", "dev", "nodev", "exec", "noexec", "atime", "noatime", "sync", "async",
    "dirsync",
];

/// What fstab and sshfs users write that asks for nothing here: it is so anyway, or it is for
/// mount(8) and systemd.
const IGNORED: &[&str] = &[
    "reconnect",
    "auto",
    "noauto",
    "user",
    "users",
    "nouser",
    "owner",
    "nofail",
    "_netdev",
    "defaults",
    "relatime",
    "diratime",
];

impl Settings {
    /// Reads `-o` options over the defaults; later ones win.
    pub fn parse<'a>(options: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut settings = Self::default();
        for option in options.into_iter().flat_map(split_at_commas) {
            settings.set(&option).with_context(|| format!("-o {option}"))?;
        }
        settings.check()?;
        Ok(settings)
    }

    fn set(&mut self, option: &str) -> Result<()> {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option, None),
        };
        let text = || value.filter(|value| !value.is_empty()).context("a value is missing");
        let flag = || flag(value);
        match key {
            "stripes" => self.stripes = text()?.parse().context("not a number")?,
            "ssh_command" => {
                self.ssh_command = shlex::split(text()?).context("quotes do not match")?;
            }
            "gridvfs_command" => self.gridvfs_command = Some(text()?.into()),
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
            key if KERNEL_FLAGS.contains(&key) && value.is_none() => self.kernel.push(key.into()),
            key if IGNORED.contains(&key) || key.starts_with("x-") => {}
            // sshfs's habit: an option of ssh's own, such as Port=2222 or IdentityFile=…
            key if key.starts_with(|first: char| first.is_ascii_uppercase()) && value.is_some() => {
                self.ssh_command.extend(["-o".into(), option.into()]);
            }
            key if self.cache.set(key, value)? => {}
            key if self.metadata.set(key, value)? => {}
            _ => {
                let known =
                    [KEYS, KERNEL_FLAGS, cache::MOUNT_KEYS, cache::CHANGE_KEYS, metadata::KEYS]
                        .concat();
                return Err(unknown(key, &known));
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        if self.stripes == 0 || self.stripes > STRIPES_MAX {
            bail!("-o stripes={}: 1 to {STRIPES_MAX} are possible", self.stripes);
        }
        if self.ssh_command.is_empty() {
            bail!("-o ssh_command: the command is empty");
        }
        self.cache.check(self.read_only)?;
        self.read_only = self.cache.read_only;
        Ok(())
    }

    /// Adds words to the ssh command, as sshfs's `-p` and `-F` do.
    pub fn extend_ssh(&mut self, words: impl IntoIterator<Item = String>) {
        self.ssh_command.extend(words);
    }
}

fn flag(value: Option<&str>) -> Result<bool> {
    match value {
        None | Some("yes" | "true" | "1") => Ok(true),
        Some("no" | "false" | "0") => Ok(false),
        Some(_) => bail!("yes or no is expected"),
    }
}

fn unknown(key: &str, known: &[&str]) -> anyhow::Error {
    let distance = |name: &&&str| strsim::damerau_levenshtein(key, name);
    let nearest = known.iter().min_by_key(distance).filter(|name| distance(name) <= 3);
    match nearest {
        Some(name) => Hinted::error("unknown option", format!("did you mean {name}?")),
        None => Hinted::error("unknown option", "gridvfs mount --help lists the options"),
    }
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

/// Splits at commas; `\,` is a comma within a value, as libfuse has it.
fn split_at_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let last = parts.last_mut().expect("never empty");
        match (character, characters.peek()) {
            ('\\', Some(',')) => last.extend(characters.next()),
            (',', _) => parts.push(String::new()),
            _ => last.push(character),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_typed() {
        let settings = Settings::parse([
            "stripes=2,ro,timeout=1.5",
            r"ssh_command=ssh -F '/a b'\,c,cred=1000:100,nosuid,Port=22,x-systemd.automount,_netdev",
        ])
        .expect("good");
        assert_eq!(settings.stripes, 2);
        assert!(settings.read_only);
        assert_eq!(settings.timeout, Some(Duration::from_millis(1500)));
        assert_eq!(settings.ssh_command, ["ssh", "-F", "/a b,c", "-o", "Port=22"]);
        assert_eq!(settings.credential, Some((1000, 100)));
        assert_eq!(settings.kernel, ["nosuid"]);
        assert_eq!(Settings::parse(["timeout=0"]).expect("good").timeout, None);
    }

    #[test]
    fn bad_options_are_named() {
        for (option, words) in [
            ("strips=4", "did you mean stripes?"),
            ("stripes=0", "1 to 10"),
            ("stripes", "a value is missing"),
            ("timeout=soon", "not a number"),
            ("timeout=-1", "not a number"),
            ("cred=me", "as numbers"),
            ("ssh_command='", "quotes"),
            ("zzzzzzzzzz", "--help"),
        ] {
            let error = Settings::parse([option]).expect_err(option);
            let text = crate::report::error_text(&error);
            assert!(text.contains(words), "{option}: {text}");
            assert!(text.contains(option.split('=').next().unwrap_or_default()), "{text}");
        }
    }
}
