//! Standing proxies for tests.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::gridvfs;

/// A standing proxy with a folder of its own, ended with the test however that ends.
pub struct Proxy {
    /// What it keeps: its file, keys, state, cache and log.
    pub folder: PathBuf,
    child: Option<Child>,
    addresses: Vec<String>,
}

impl Proxy {
    /// Starts one; `toml` is its file, in which `@` is its folder.
    pub fn start(folder: &Path, toml: &str) -> Self {
        std::fs::create_dir_all(folder).expect("folder");
        let text = toml.replace('@', &folder.display().to_string());
        std::fs::write(folder.join("proxy.toml"), text).expect("its file");
        let mut proxy = Self { folder: folder.into(), child: None, addresses: Vec::new() };
        proxy.start_again();
        proxy
    }

    /// The command that starts it.
    pub fn command(folder: &Path) -> Command {
        let mut command = Command::new(gridvfs());
        command.args(["proxy", "serve", "--config"]).arg(folder.join("proxy.toml"));
        command.env("XDG_STATE_HOME", folder.join("state"));
        command.env("XDG_CACHE_HOME", folder.join("cache"));
        command.stdin(Stdio::null());
        command
    }

    /// Starts it once more, with the ports that it had.
    pub fn start_again(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("proxy.log"))
            .expect("log");
        let mut child =
            Self::command(&self.folder).stdout(Stdio::piped()).stderr(log).spawn().expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output"));
        let text = std::fs::read_to_string(self.folder.join("proxy.toml")).expect("its file");
        let count = text.matches("\"unix:").count() + text.matches("\"127.0.0.1:").count();
        self.addresses.clear();
        for _ in 0..count {
            let mut line = String::new();
            lines.read_line(&mut line).expect("its addresses");
            let address = line.trim().strip_prefix("listening on ");
            let Some(address) = address else { panic!("it does not listen: {}", self.log()) };
            self.addresses.push(address.into());
        }
        self.child = Some(child);
        // The next time it has the same port: clients come back to it.
        let mut text = text;
        for address in &self.addresses {
            text = text.replacen("\"127.0.0.1:0\"", &format!("\"{address}\""), 1);
        }
        std::fs::write(self.folder.join("proxy.toml"), text).expect("its file");
    }

    /// Its address number `at`, in the order of its file.
    pub fn address(&self, at: usize) -> &str {
        &self.addresses[at]
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().expect("it runs").id() as i32
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("proxy.log")).unwrap_or_default()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    /// Says whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().expect("it was started").try_wait().expect("waits").is_some()
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        let _ = self.child.take().expect("it runs").wait();
    }

    /// Ends it; panics if that does not go well.
    pub fn stop(&mut self) {
        self.signal(libc::SIGTERM);
        let ended = self.child.take().expect("it runs").wait().expect("waits");
        assert!(ended.success(), "{ended}: {}", self.log());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}:\n{}", self.folder.display(), self.log());
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Makes a key in a proxy's key file; returns the file with it.
pub fn new_key(folder: &Path, name: &str) -> PathBuf {
    let out = folder.join(format!("{name}.key"));
    let mut command = Command::new(gridvfs());
    command.args(["proxy", "key", "new", name, "--file"]).arg(folder.join("keys"));
    super::run(command.arg("--out").arg(&out));
    out
}
