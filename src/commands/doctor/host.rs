//! What a host reached by ssh has, and how the link to it is.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use gridvfs_upstream::ssh::{RemoteExport, Script, SshHost, SshProxyConnector, rate};
use gridvfs_upstream::{ClientOptions, Connector, NfsClient};
use serde_json::json;

use super::Check;
use crate::options::Settings;
use crate::report::bytes_text;

/// How many stripes are tried.
const STRIPES_TRIED: [usize; 4] = [1, 2, 4, 8];
/// For how long each number of stripes carries data.
const RATE_TIME: Duration = Duration::from_millis(1500);
/// As good as the best: more stripes are worth their logins only above this share of it.
const AS_GOOD: f64 = 0.92;
/// Below this share of the best it is worth a word: two measurements of one link differ by a tenth.
const WORTH_A_WORD: f64 = 0.85;
/// Clocks further apart than this make times of files confusing, and make(1) fail.
const SKEW_MAX: Duration = Duration::from_secs(1);
const SCRIPT_TIME: Duration = Duration::from_secs(20);
/// Fewer open files on the host: each file in use takes one there, too.
const OPEN_FILES_WANTED: u64 = 4096;

/// Says in single words, each behind a name: what the host is.
const ASK: &str = "echo \"system $(uname -s -m)\"; echo \"time $(date +%s.%N)\"; \
    echo \"files $(ulimit -Hn)\"; echo \"home $HOME\"";

/// A host to be examined.
pub struct Host<'a> {
    settings: &'a Settings,
    host: Arc<SshHost>,
    path: String,
}

impl<'a> Host<'a> {
    /// Prepares to log in.
    pub fn new(settings: &'a Settings, destination: &str, path: &str) -> Result<Self> {
        let host = crate::commands::mount::ssh_host(settings, destination)?;
        Ok(Self { settings, host, path: path.into() })
    }

    /// Examines the host; what depends on something that failed is left out.
    pub async fn examine(&self, quick: bool, tell: &mut dyn FnMut(Check)) {
        if !self.login(tell).await {
            return;
        }
        if !self.settings.no_proxy {
            tell(self.proxy().await);
        }
        match rate::round_trip(&self.host).await {
            Ok(time) => {
                let ms = time.as_secs_f64() * 1000.0;
                tell(
                    Check::ok("round trip", format!("{ms:.1} ms within a login"))
                        .with(json!({"round_trip_ms": ms})),
                );
            }
            Err(error) => tell(Check::warn("round trip", error.to_string(), "try ssh by hand")),
        }
        if !quick {
            self.rates(tell).await;
        }
    }

    /// Logs in and asks what the host is. Returns whether it could.
    async fn login(&self, tell: &mut dyn FnMut(Check)) -> bool {
        let name = self.host.destination();
        let script = Script { text: ASK, arguments: &[], options: &[], time: SCRIPT_TIME };
        let began = Instant::now();
        let said = match script.run(&self.host, None).await {
            Ok(said) => said,
            Err(error) => {
                let mend = format!("ssh {name} true must work");
                tell(Check::fail("login", error.to_string(), mend));
                return false;
            }
        };
        let ended = SystemTime::now();
        let word = |name: &str| {
            let lines = said.stdout.lines();
            lines
                .filter_map(|line| line.strip_prefix(name))
                .map(|rest| rest.trim().to_string())
                .next()
        };
        let seconds = began.elapsed().as_secs_f64();
        let system = word("system ").unwrap_or_default();
        tell(match said.noise_bytes {
            0 => Check::ok("login", format!("{name}: {seconds:.2} s, {system}")),
            bytes => Check::warn(
                "login",
                format!("{name}: {seconds:.2} s, {system}; its shell prints {bytes} bytes first"),
                "mounts pass over it; sftp and scp do not: let start-up files print only where \
                 the shell is interactive",
            ),
        });
        // Not every date(1) knows parts of a second.
        let theirs = word("time ").and_then(|time| {
            let whole = time.split('.').next().and_then(|whole| whole.parse().ok());
            time.parse::<f64>().ok().or(whole)
        });
        if let Some(theirs) = theirs {
            tell(skew(theirs, ended, began.elapsed()));
        }
        match word("files ").as_deref() {
            Some("unlimited") => tell(Check::ok("host open files", "unlimited")),
            Some(text) => {
                let limit = text.parse().unwrap_or(0);
                let found = format!("up to {limit}");
                tell(match limit < OPEN_FILES_WANTED {
                    true => Check::warn(
                        "host open files",
                        found,
                        "raise the hard limit of nofile in the host's /etc/security/limits.conf",
                    ),
                    false => Check::ok("host open files", found),
                });
            }
            None => {}
        }
        true
    }

    /// Begins a session as a mount would, and ends it.
    async fn proxy(&self) -> Check {
        let name = "host gridvfs";
        let export = RemoteExport {
            program: self.settings.gridvfs_command.clone(),
            path: self.path.clone(),
            nfs: self.settings.nfs.clone(),
            mount_port: self.settings.mount_port,
            shadow: (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()),
            read_only: true,
            linger_seconds: 1,
        };
        let connector = Arc::new(SshProxyConnector::new(self.host.clone(), export));
        let options = ClientOptions { stripes: 1, ..ClientOptions::default() };
        let described = connector.describe();
        match NfsClient::connect(connector.clone(), options).await {
            Ok(client) => {
                let caller = gridvfs_vfs::Caller { uid: 0, gid: 0, groups: Vec::new() };
                client.end_session(&caller).await;
                let version = connector.version().await.unwrap_or_default();
                let found = format!("{described} is served by gridvfs {version}");
                match version == env!("CARGO_PKG_VERSION") {
                    true => Check::ok(name, found),
                    false => Check::warn(
                        name,
                        format!("{found}; this one is {}", env!("CARGO_PKG_VERSION")),
                        "they understand each other; the same version on both is better",
                    ),
                }
            }
            Err(error) => {
                let mend = match connector.lack() {
                    Some(_) => "gridvfs mount -o bootstrap=yes copies this gridvfs there",
                    None => "is the path right, and may the login read it?",
                };
                Check::fail(name, error.to_string(), mend)
            }
        }
    }

    async fn rates(&self, tell: &mut dyn FnMut(Check)) {
        let mut rates: Vec<(usize, f64)> = Vec::new();
        for stripes in STRIPES_TRIED {
            match rate::download(&self.host, stripes, RATE_TIME).await {
                Ok(bytes) => rates.push((stripes, bytes)),
                Err(error) if rates.is_empty() => {
                    tell(Check::warn("rate", error.to_string(), "try ssh by hand"));
                    return;
                }
                Err(error) => {
                    tell(Check::warn(
                        "logins",
                        format!("not {stripes} at once: {error}"),
                        "raise MaxStartups and MaxSessions in the host's sshd_config, or mount \
                         with fewer -o stripes=",
                    ));
                    break;
                }
            }
        }
        let figures: Vec<_> = rates
            .iter()
            .map(|(stripes, rate)| json!({"stripes": stripes, "bytes_per_second": *rate as u64}))
            .collect();
        let texts = rates.iter().map(|(stripes, rate)| format!("{stripes}: {}", rate_text(*rate)));
        let found = format!("down, by stripes: {}", texts.collect::<Vec<_>>().join(", "));
        let most = rates.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
        let best = rates.iter().find(|(_, rate)| *rate >= most * AS_GOOD).map_or(1, |best| best.0);
        let now = self.settings.stripes;
        let of = |stripes: usize| {
            // What was measured at the nearest number below.
            let below = rates.iter().take_while(|(tried, _)| *tried <= stripes).last();
            below.map_or(0.0, |(_, rate)| *rate)
        };
        let figures = json!({"rates": figures, "best_stripes": best});
        tell(Check::ok("rate", found).with(figures.clone()));
        tell(
            match of(now) >= most * WORTH_A_WORD {
                true => Check::ok("stripes", format!("{now}, as mounts have; {best} would do")),
                false => Check::warn(
                    "stripes",
                    format!("{now} carry {} of {}", rate_text(of(now)), rate_text(most)),
                    format!("mount with -o stripes={best}"),
                ),
            }
            .with(json!({"best_stripes": best})),
        );
        match rate::upload(&self.host, now.min(best.max(1)), RATE_TIME).await {
            Ok(rate) => tell(
                Check::ok("rate up", rate_text(rate))
                    .with(json!({"bytes_per_second": rate as u64})),
            ),
            Err(error) => tell(Check::warn("rate up", error.to_string(), "try ssh by hand")),
        }
    }
}

fn rate_text(rate: f64) -> String {
    format!("{}/s", bytes_text(rate as u64))
}

/// Compares clocks: theirs was read between the beginning and the end of a login.
fn skew(theirs: f64, ended: SystemTime, took: Duration) -> Check {
    let name = "clocks";
    let ours = ended.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    // It was read late in the login, at most so long ago.
    let earliest = ours - took.as_secs_f64();
    let apart = if theirs > ours { theirs - ours } else { (earliest - theirs).max(0.0) };
    let figures = json!({"skew_seconds_min": apart});
    match apart > SKEW_MAX.as_secs_f64() {
        true => Check::warn(
            name,
            format!("at least {apart:.1} s apart"),
            "run an NTP client on both (timedatectl set-ntp true): times of files are the host's",
        ),
        false => Check::ok(name, "alike, as far as a login can tell"),
    }
    .with(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_compared_within_what_is_known() {
        let ended = UNIX_EPOCH + Duration::from_secs(1000);
        let took = Duration::from_secs(2);
        for (theirs, verdict) in [
            (999.0, super::super::Verdict::Ok),
            (998.5, super::super::Verdict::Ok),
            (1000.9, super::super::Verdict::Ok),
            (1002.0, super::super::Verdict::Warn),
            (990.0, super::super::Verdict::Warn),
        ] {
            assert_eq!(skew(theirs, ended, took).verdict, verdict, "{theirs}");
        }
    }
}
