//! `gridvfs proxy key`: the keys of a standing proxy's clients.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;

use anyhow::{Context, Result};
use gridvfs_proxy::key_file;

use crate::cli::ProxyKeyCommand;
use crate::report::print_json;

/// Runs the command.
pub fn run(command: ProxyKeyCommand) -> Result<ExitCode> {
    match command {
        ProxyKeyCommand::New { name, file, out } => {
            // Before there is a key that nobody has.
            let out = match &out {
                Some(path) => {
                    let mut options = std::fs::File::options();
                    let file = options.write(true).create_new(true).mode(0o600).open(path);
                    Some((path, file.with_context(|| path.display().to_string())?))
                }
                None => None,
            };
            let key = match key_file::add(&file, &name) {
                Ok(key) => key,
                Err(error) => {
                    if let Some((path, _)) = &out {
                        let _ = std::fs::remove_file(path);
                    }
                    return Err(error.into());
                }
            };
            match out {
                Some((path, mut file)) => {
                    writeln!(file, "{}", key.to_hex())
                        .and_then(|()| file.sync_all())
                        .with_context(|| path.display().to_string())?;
                }
                None => println!("{}", key.to_hex()),
            }
        }
        ProxyKeyCommand::List { file, json } => {
            let names: Vec<String> =
                key_file::read(&file)?.into_iter().map(|known| known.name).collect();
            match json {
                true => print_json(&serde_json::json!({"ok": true, "keys": names}))?,
                false => names.iter().for_each(|name| println!("{name}")),
            }
        }
        ProxyKeyCommand::Revoke { name, file } => key_file::remove(&file, &name)?,
    }
    Ok(ExitCode::SUCCESS)
}
