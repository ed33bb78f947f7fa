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

/// The shell's exit status for a command that is not there, and ours for a program that is not.
pub(super) const NOT_FOUND: i32 = 127;

/// What [`reading`] has `sh` do: $1 is the path, $2 the mark, the rest the program.
const READING: &str = "p=$(printf %b \"$1\"; echo x); p=${p%x}; m=$2; shift 2; \
    command -v \"$1\" >/dev/null 2>&1 || exit 127; \
    [ -f \"$p\" ] || { echo \"not a regular file, or not there\" >&2; exit 1; }; \
    exec <\"$p\" || exit 1; printf \"%s\\n\" \"$m\"; exec \"$@\"";

/// Returns a command that gives a file to a program as its standard input, after a line with
/// `mark`. The program's words are ours and plain.
///
/// A path may be any bytes, and csh takes no newline between quotes, whatever they are. So the
/// path travels as the octal escapes that `printf %b` knows, and everything is plain text to the
/// login shell.
pub(super) fn reading(path: &[u8], mark: &str, program: &[String]) -> String {
    let path: String = path
        .iter()
        .map(|&byte| match byte {
            b'/' | b'.' | b'_' | b'-' => char::from(byte).to_string(),
            byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            byte => format!("\\0{byte:03o}"),
        })
        .collect();
    let program: Vec<String> = program.iter().map(|word| quoted(word)).collect();
    let (script, path, mark) = (quoted(READING), quoted(&path), quoted(mark));
    format!("exec /bin/sh -c {script} gridvfs {path} {mark} {}", program.join(" "))
}

/// Returns a command that says a line with `mark`, and then runs a script with arguments.
pub(super) fn script(text: &str, mark: &str, arguments: &[&str]) -> String {
    let script = format!("printf \"%s\\n\" \"$1\"; shift; {text}");
    let arguments: Vec<String> = arguments.iter().map(|word| quoted(word)).collect();
    format!("exec /bin/sh -c {} gridvfs {} {}", quoted(&script), quoted(mark), arguments.join(" "))
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
    fn any_path_survives_any_shell() {
        let folder = tempfile::tempdir().expect("folder");
        let names: [&[u8]; 8] = [
            b"plain",
            b" a  b ",
            b"it's \"q\"",
            b"$HOME`x`",
            b"new\nline\n",
            b"\\0101%s",
            b"-c",
            b"\xff\x01!",
        ];
        for name in names {
            let path = folder
                .path()
                .join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name));
            std::fs::write(&path, name).expect("written");
            let bytes = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str());
            let command = reading(bytes, "mark", &["cat".into()]);
            assert!(!command.contains(['\n', '!']) && command.is_ascii());
            for shell in ["sh", "bash", "csh", "tcsh", "fish", "zsh", "ksh", "busybox"] {
                let mut process = std::process::Command::new(shell);
                if shell == "busybox" {
                    process.arg("sh");
                }
                // Those that are installed here.
                let Ok(output) = process.args(["-c", &command]).output() else { continue };
                let expected = [b"mark\n", name].concat();
                assert_eq!(output.stdout, expected, "{shell}: {:?}", output.stderr);
            }
        }
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
