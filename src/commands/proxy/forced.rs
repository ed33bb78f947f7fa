//! `gridvfs proxy forced`: what a client asked for over ssh, under the administrator's rules.
//!
//! In `authorized_keys`, `command="gridvfs proxy forced --policy FILE",restrict` before a key lets
//! that key start GridVFS sessions and nothing else. sshd then puts what the client asked for into
//! SSH_ORIGINAL_COMMAND. Of that, only the words behind `proxy` are looked at, as arguments of our
//! own, and never run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use gridvfs_proxy::backend::ExportConfig;
use gridvfs_proxy::identity::TableConfig;
use gridvfs_proxy::session;
use gridvfs_upstream::greeting::Greeting;

use crate::cli::{ProxyArgs, ProxyCommand, ProxyStdioArgs};
use crate::directories;
use crate::proxy_config;

const KEYS: &[&str] = &["exports", "nfs", "read_only"];
/// The longest command that is looked at, in bytes.
const COMMAND_BYTES_MAX: usize = 64 << 10;
/// The longest time that a session may outlive its last channel, in seconds.
const LINGER_MAX: u32 = 24 * 3600;

/// The rules.
#[derive(Debug, Default)]
struct Policy {
    /// The directories that may be exported, and all below them; with `nfs`, the export paths.
    exports: Vec<PathBuf>,
    /// The NFS servers that may be forwarded to, as the client names them.
    nfs: Vec<String>,
    read_only: bool,
    table: Option<TableConfig>,
}

#[derive(Parser)]
#[command(name = "proxy")]
struct Asked {
    #[command(flatten)]
    proxy: ProxyArgs,
}

/// Runs what the client asked for.
pub fn run(policy: &Path) -> Result<ExitCode> {
    match prepare(policy) {
        Ok(Prepared::Session(export, linger)) => super::start_session(export, linger),
        Ok(Prepared::Attach(name)) => {
            Ok(super::code(session::run_attach(&directories::runtime()?, &name)?))
        }
        Err(error) => {
            // The client reads a greeting or what a shell would say; this is for its user.
            let words = format!("refused by this host's rules: {error:#}");
            print!("{}", Greeting::refusal("forbidden", words).to_line());
            Ok(ExitCode::FAILURE)
        }
    }
}

enum Prepared {
    Session(ExportConfig, u32),
    Attach(String),
}

fn prepare(policy: &Path) -> Result<Prepared> {
    let rules = Policy::from_file(policy)?;
    let asked = std::env::var("SSH_ORIGINAL_COMMAND").context("only GridVFS may be run here")?;
    match parse(&asked)? {
        ProxyCommand::Stdio(args) => {
            let linger = args.linger.min(LINGER_MAX);
            Ok(Prepared::Session(rules.apply(args)?, linger))
        }
        ProxyCommand::Attach { session } => Ok(Prepared::Attach(session)),
        _ => bail!("only sessions may be started here"),
    }
}

/// Takes the arguments of `gridvfs proxy` out of a command for a shell.
fn parse(asked: &str) -> Result<ProxyCommand> {
    let words = Some(asked).filter(|asked| asked.len() <= COMMAND_BYTES_MAX);
    let words = words.and_then(shlex::split).context("the command is not understood")?;
    let at = words.iter().rposition(|word| word == "proxy");
    let at = at.context("only GridVFS may be run here")?;
    let asked = Asked::try_parse_from(&words[at..]);
    Ok(asked.map_err(|error| anyhow::anyhow!("{}", error.kind()))?.proxy.command)
}

impl Policy {
    fn from_file(path: &Path) -> Result<Self> {
        let what = || format!("policy {}", path.display());
        let text = std::fs::read_to_string(path).with_context(what)?;
        Self::from_toml(&text).with_context(what)
    }

    fn from_toml(text: &str) -> Result<Self> {
        let table: toml::Table = text
            .parse()
            .map_err(|error: toml::de::Error| anyhow::anyhow!("{}", error.message()))?;
        let identity = {
            let mut rest = table.clone();
            KEYS.iter().for_each(|key| drop(rest.remove(*key)));
            proxy_config::identity_of(&rest, KEYS)?
        };
        if identity.shadow.is_some() {
            bail!("shadow: the client says who it is; map_uid and map_gid say who that is here");
        }
        let reader = proxy_config::Reader::new("", &table);
        let exports = reader.texts("exports")?.context("exports is missing: which directories?")?;
        Ok(Self {
            exports: exports.into_iter().map(PathBuf::from).collect(),
            nfs: reader.texts("nfs")?.unwrap_or_default(),
            read_only: reader.flag("read_only")?.unwrap_or(false),
            table: identity.table,
        })
    }

    fn apply(&self, args: ProxyStdioArgs) -> Result<ExportConfig> {
        let mut export = super::export(&args.export)?;
        let asked = match &export.nfs {
            Some(server) if self.nfs.contains(server) => lexical(&export.path)?,
            Some(server) => bail!("{server} is not among the NFS servers"),
            // As it is now, symbolic links followed: the session pins what it opens.
            None => std::fs::canonicalize(&export.path)
                .with_context(|| export.path.display().to_string())?,
        };
        let allowed = |path: &PathBuf| {
            let path = match export.nfs {
                Some(_) => Some(path.clone()),
                None => std::fs::canonicalize(path).ok(),
            };
            path.is_some_and(|path| asked.starts_with(path))
        };
        if !self.exports.iter().any(allowed) {
            bail!("{} is not among the exports", export.path.display());
        }
        export.path = asked;
        export.read_only |= self.read_only;
        export.identity.clone_from(&self.table);
        Ok(export)
    }
}

/// Takes an export path of another server: what it is there cannot be seen from here.
fn lexical(path: &Path) -> Result<PathBuf> {
    use std::path::Component;
    let plain = |part: Component| matches!(part, Component::RootDir | Component::Normal(_));
    match path.is_absolute() && path.components().all(plain) {
        true => Ok(path.components().collect()),
        false => bail!("{}: a full path without .. is expected", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sessions_are_taken_out_of_a_command() {
        let stdio = "exec /bin/sh -c 'for p in x; do exec \"$p\" \"$@\"; done' gridvfs 'proxy' \
                     'stdio' '--export=/vms/it'\\''s' '--shadow=1000:100' '--linger=300'";
        match parse(stdio).expect("understood") {
            ProxyCommand::Stdio(args) => {
                assert_eq!(args.export.export, Path::new("/vms/it's"));
                assert_eq!(args.export.shadow.as_deref(), Some("1000:100"));
            }
            _ => panic!("stdio"),
        }
        assert!(matches!(parse("gridvfs proxy attach 0a"), Ok(ProxyCommand::Attach { .. })));
        for bad in ["", "bash", "scp -t /", "proxy stdio", "proxy 'x", "gridvfs proxy rm -rf /"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn exports_are_those_of_the_rules() {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(path("vms/a")).expect("mkdir");
        std::fs::create_dir(path("other")).expect("mkdir");
        std::os::unix::fs::symlink(path("other"), path("vms/out")).expect("symlink");
        let rules = |text: &str| Policy::from_toml(text).expect("good");
        let vms = rules(&format!("exports = [{:?}]\nread_only = true", path("vms")));
        let apply = |rules: &Policy, words: &str| match parse(&format!("proxy stdio {words}"))
            .expect("understood")
        {
            ProxyCommand::Stdio(args) => rules.apply(args),
            _ => panic!("stdio"),
        };
        let asked = |name: &str| format!("--export={}", path(name).display());
        assert!(apply(&vms, &asked("vms/a")).expect("allowed").read_only);
        for outside in ["other", "vms/../other", "vms/out", "vms/missing", "vmsx"] {
            assert!(apply(&vms, &asked(outside)).is_err(), "{outside}");
        }
        let nfs = rules("exports = [\"/e\"]\nnfs = [\"localhost\"]\nmap_uid = [\"1000:51000\"]");
        let good = apply(&nfs, "--export=/e/x --nfs=localhost").expect("allowed");
        assert_eq!(good.identity.expect("a table").map_uid, ["1000:51000"]);
        for words in ["--export=/e --nfs=other", "--export=/e/../x --nfs=localhost", "--export=/e"]
        {
            assert!(apply(&nfs, words).is_err(), "{words}");
        }
        for bad in ["", "exports = [\"/e\"]\nexport = 1", "exports = [\"/e\"]\nshadow = \"1:1\""] {
            assert!(Policy::from_toml(bad).is_err(), "{bad}");
        }
    }
}
