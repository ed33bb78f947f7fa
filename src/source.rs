//! What is to be mounted: the SOURCE argument.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::report::Hinted;

/// A SOURCE, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `[USER@]HOST:/path`: over ssh.
    Ssh {
        /// `[USER@]HOST`, as ssh takes it.
        destination: String,
        /// The path on the host.
        path: String,
    },
    /// `nfs://ADDR[:PORT]/export`: plain TCP.
    Nfs {
        /// A host name or address.
        address: String,
        /// The NFS server's port.
        port: Option<u16>,
        /// The export's path.
        path: String,
    },
    /// `gridvfs+unix:/socket[:/export]`: a standing proxy.
    Unix {
        /// The socket.
        socket: PathBuf,
        /// The export's path; `/` for the only one.
        path: String,
    },
    /// `gridvfs://ADDR:PORT[/export]`: a standing proxy.
    Tcp {
        /// A host name or address.
        address: String,
        /// The proxy's port.
        port: u16,
        /// The export's path; `/` for the only one.
        path: String,
    },
    /// `/path`: a directory of this machine, in process.
    Local(PathBuf),
}

impl Source {
    /// Takes a SOURCE apart.
    pub fn parse(text: &str) -> Result<Self> {
        if let Some(rest) = text.strip_prefix("nfs://") {
            let (authority, path) = match rest.split_once('/') {
                Some((authority, path)) => (authority, format!("/{path}")),
                None => bail!("{text}: an export's path must follow, as in nfs://HOST/export"),
            };
            let (address, port) = authority_parts(authority)?;
            return Ok(Self::Nfs { address, port, path });
        }
        if let Some(path) = text.strip_prefix("gridvfs+unix:") {
            let (socket, export) = match path.split_once(":/") {
                Some((socket, export)) => (socket, format!("/{export}")),
                None => (path, "/".into()),
            };
            return Ok(Self::Unix { socket: socket.into(), path: export });
        }
        if let Some(authority) = text.strip_prefix("gridvfs://") {
            let (authority, export) = authority.split_once('/').unwrap_or((authority, ""));
            let (address, port) = authority_parts(authority)?;
            let Some(port) = port else { bail!("{text}: a port must follow the address") };
            return Ok(Self::Tcp { address, port, path: format!("/{export}") });
        }
        if text.starts_with(['/', '.']) {
            return Ok(Self::Local(text.into()));
        }
        // An IPv6 address stands in brackets, as sshfs has it: [::1]:/path.
        let split = match text.rfind("]:") {
            Some(at) => Some((&text[..=at], &text[at + 2..])),
            None => text.split_once(':'),
        };
        match split {
            Some((destination, path))
                if !destination.is_empty() && !destination.starts_with('-') =>
            {
                let destination = destination.replace(['[', ']'], "");
                // As with sshfs and scp, a path that is empty or relative starts at the home.
                let path = if path.is_empty() { "." } else { path };
                Ok(Self::Ssh { destination, path: path.into() })
            }
            _ => Err(Hinted::error(
                format!("{text} is no source"),
                "give HOST:/path, nfs://HOST/export, or a directory that begins with / or .",
            )),
        }
    }
}

fn authority_parts(authority: &str) -> Result<(String, Option<u16>)> {
    let (address, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => (address, None),
        Some((address, port)) => (address, port.strip_prefix(':')),
        None => match authority.rsplit_once(':') {
            Some((address, port)) => (address, Some(port)),
            None => (authority, None),
        },
    };
    if address.is_empty() {
        bail!("an address is missing in {authority:?}");
    }
    let port = match port.map(str::parse).transpose() {
        Ok(port) if port != Some(0) => port,
        _ => bail!("{authority}: not a port number"),
    };
    Ok((address.into(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ssh(destination: &str, path: &str) -> Source {
        Source::Ssh { destination: destination.into(), path: path.into() }
    }

    #[test]
    fn each_form_is_told_apart() {
        let nfs = |address: &str, port, path: &str| Source::Nfs {
            address: address.into(),
            port,
            path: path.into(),
        };
        let unix =
            |socket: &str, path: &str| Source::Unix { socket: socket.into(), path: path.into() };
        let tcp = |address: &str, port, path: &str| Source::Tcp {
            address: address.into(),
            port,
            path: path.into(),
        };
        for (text, source) in [
            ("vm@host:/vms/a", ssh("vm@host", "/vms/a")),
            ("host:", ssh("host", ".")),
            ("host:rel/x:y", ssh("host", "rel/x:y")),
            ("u@[::1]:/x", ssh("u@::1", "/x")),
            ("nfs://h/e/x", nfs("h", None, "/e/x")),
            ("nfs://h:2049/", nfs("h", Some(2049), "/")),
            ("nfs://[::1]:20/e", nfs("::1", Some(20), "/e")),
            ("gridvfs+unix:/run/s", unix("/run/s", "/")),
            ("gridvfs+unix:/run/s:/vms/a", unix("/run/s", "/vms/a")),
            ("gridvfs://h:7", tcp("h", 7, "/")),
            ("gridvfs://[::1]:7/vms/a:b", tcp("::1", 7, "/vms/a:b")),
            ("/a:b", Source::Local("/a:b".into())),
            ("./a", Source::Local("./a".into())),
        ] {
            assert_eq!(Source::parse(text).expect(text), source, "{text}");
        }
        for text in
            ["", "host", ":/x", "-oProxyCommand=x:/y", "nfs://h", "nfs://h:0/e", "gridvfs://h"]
        {
            assert!(Source::parse(text).is_err(), "{text}");
        }
    }
}
