//! The command line that is run on the host, quoted for any login shell.

/// Where a `gridvfs` is looked for besides the login shell's PATH, which for commands over ssh is
/// often shorter than for logins.
const USUAL_PLACES: &str = "$HOME/.local/bin/gridvfs $HOME/.cargo/bin/gridvfs \
                            /usr/local/bin/gridvfs /opt/gridvfs/bin/gridvfs";

/// Returns the command as the one argument that ssh hands to the login shell.
pub(super) fn command(program: Option<&str>, arguments: &[String]) -> String {
    let arguments: Vec<String> = arguments.iter().map(|word| quoted(word)).collect();
    let arguments = arguments.join(" ");
    match program {
        // As the user wrote it: it may have words of its own, such as `sudo gridvfs`.
        Some(program) => format!("exec {program} {arguments}"),
        None => {
            let script = format!(
                "for p in \"$(command -v gridvfs)\" {USUAL_PLACES}; do \
                 [ -x \"$p\" ] && exec \"$p\" \"$@\"; done; exit 127"
            );
            format!("exec /bin/sh -c {} gridvfs {arguments}", quoted(&script))
        }
    }
}

/// Quotes a word for sh, and for csh and fish as well: single quotes mean the same to all.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_survive_the_shell() {
        let arguments = ["a b", "it's", "$HOME", "`x`", "", "é\n"].map(String::from);
        let command = command(Some("printf '%s|'"), &arguments);
        let output = std::process::Command::new("sh").args(["-c", &command]).output();
        assert_eq!(output.expect("runs").stdout, "a b|it's|$HOME|`x`||é\n|".as_bytes());
    }

    #[test]
    fn a_missing_program_ends_with_127() {
        let command = command(None, &["proxy".into()]);
        let mut shell = std::process::Command::new("/bin/sh");
        shell.args(["-c", &command]).env("PATH", "/nonexistent").env("HOME", "/nonexistent");
        let status = shell.status().expect("runs");
        let installed = ["/usr/local/bin/gridvfs", "/opt/gridvfs/bin/gridvfs"];
        if !installed.iter().any(|path| std::path::Path::new(path).exists()) {
            assert_eq!(status.code(), Some(127));
        }
    }
}
