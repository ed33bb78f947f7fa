//! A golden directory: which layout it has, and its files by the names that a configuration gives.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::ahead::Ahead;
use crate::report::Hinted;

/// The most that a configuration file may have, in bytes.
const CONFIGURATION_BYTES_MAX: u64 = 1 << 20;
/// The most files that are looked at.
const FILES_MAX: usize = 100_000;
/// So many names are told in an error.
const NAMES_SHOWN_MAX: usize = 8;

/// Whose files these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `qemu.args`: a QEMU command line.
    Qemu,
    /// `*.vmx`.
    Vmware,
    /// `*.cfg`.
    Xen,
}

impl Layout {
    const ALL: [Self; 3] = [Self::Qemu, Self::Vmware, Self::Xen];

    /// The layout's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Vmware => "vmware",
            Self::Xen => "xen",
        }
    }

    fn has_configuration(self, name: &str) -> bool {
        match self {
            Self::Qemu => name == "qemu.args",
            Self::Vmware => has_extension(name, &["vmx"]),
            Self::Xen => has_extension(name, &["cfg"]),
        }
    }
}

/// Says whether a name ends in a dot and one of some extensions, in capitals or not.
pub fn has_extension(name: &str, wanted: &[&str]) -> bool {
    let Some((_, extension)) = name.rsplit_once('.') else { return false };
    wanted.iter().any(|wanted| extension.eq_ignore_ascii_case(wanted))
}

/// A golden directory.
pub struct Golden {
    directory: PathBuf,
    names: BTreeSet<String>,
    layout: Layout,
    configuration: String,
    ahead: Ahead,
}

impl Golden {
    /// Reads the directory and finds the configuration, or takes the one that is named.
    pub fn open(directory: &Path, wanted: Option<&str>) -> Result<Self> {
        let directory = std::path::absolute(directory)?;
        let mut names = BTreeSet::new();
        let entries = std::fs::read_dir(&directory)
            .with_context(|| format!("cannot read the golden directory {}", directory.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| directory.display().to_string())?;
            // A name that is no text cannot be in a configuration.
            if let Ok(name) = entry.file_name().into_string() {
                names.insert(name);
            }
            if names.len() > FILES_MAX {
                bail!("{} has more than {FILES_MAX} files", directory.display());
            }
        }
        let (layout, configuration) = find(&directory, &names, wanted)?;
        Ok(Self { directory, names, layout, configuration, ahead: Ahead::default() })
    }

    /// The directory, absolute.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The layout.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The configuration file's name.
    pub fn configuration_name(&self) -> &str {
        &self.configuration
    }

    /// Reads the configuration.
    pub fn configuration(&self) -> Result<String> {
        self.read_text(&self.directory.join(&self.configuration))
    }

    /// Reads a small text file.
    pub fn read_text(&self, path: &Path) -> Result<String> {
        use std::io::Read;
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
        file.take(CONFIGURATION_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if bytes.len() as u64 > CONFIGURATION_BYTES_MAX {
            bail!("{} has more than {CONFIGURATION_BYTES_MAX} bytes", path.display());
        }
        String::from_utf8(bytes).ok().with_context(|| format!("{} is no text", path.display()))
    }

    /// The names of the directory's files, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    /// Says whether there is a file.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Finds a file that the configuration names; a mount begins to fetch it then. A golden directory
    /// may lie elsewhere than when its configuration was written, so its own file of that name goes
    /// first.
    pub fn file(&self, named: &str) -> Result<PathBuf> {
        let path = Path::new(named);
        let own = path.file_name().and_then(|name| name.to_str()).filter(|name| self.has(name));
        let found = match own {
            Some(name) if path.is_absolute() || path.parent() == Some(Path::new("")) => {
                self.directory.join(name)
            }
            _ => self.directory.join(path),
        };
        let meta = std::fs::metadata(&found)
            .with_context(|| format!("{} names {named}, which is not there", self.configuration))?;
        if !meta.is_file() {
            bail!("{} names {named}, which is no file", self.configuration);
        }
        self.ahead.file(&found);
        Ok(found)
    }
}

fn find(
    directory: &Path,
    names: &BTreeSet<String>,
    wanted: Option<&str>,
) -> Result<(Layout, String)> {
    let layout_of =
        |name: &str| Layout::ALL.into_iter().find(|layout| layout.has_configuration(name));
    if let Some(wanted) = wanted {
        let layout = layout_of(wanted)
            .with_context(|| format!("{wanted} is none of qemu.args, *.vmx, *.cfg"))?;
        if !names.contains(wanted) {
            bail!("{} has no {wanted}", directory.display());
        }
        return Ok((layout, wanted.into()));
    }
    let found: Vec<_> =
        names.iter().filter_map(|name| Some((layout_of(name)?, name.clone()))).collect();
    match &*found {
        [one] => Ok(one.clone()),
        [] => {
            let mut there: Vec<&str> =
                names.iter().take(NAMES_SHOWN_MAX).map(|name| &**name).collect();
            if names.len() > NAMES_SHOWN_MAX {
                there.push("…");
            }
            let there = if there.is_empty() { "nothing".into() } else { there.join(", ") };
            Err(Hinted::error(
                format!(
                    "{} is no VM that I know: looked for qemu.args (a QEMU command line), *.vmx \
                     (VMware), *.cfg (Xen); there is {there}",
                    directory.display()
                ),
                "docs/cloning.md says what a golden directory holds",
            ))
        }
        several => {
            let names: Vec<&str> = several.iter().map(|(_, name)| &**name).collect();
            Err(Hinted::error(
                format!("{} has several configurations: {}", directory.display(), names.join(", ")),
                format!("--config {} takes that one", names[0]),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(names: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(directory.path().join(name), "x").unwrap();
        }
        directory
    }

    #[test]
    fn layouts_are_known_by_their_configuration() {
        let cases = [
            (&["qemu.args", "disk.raw"][..], Layout::Qemu),
            (&["Web Server.VMX", "a.vmdk"][..], Layout::Vmware),
            (&["web.cfg", "web.img", "web.chk"][..], Layout::Xen),
        ];
        for (names, layout) in cases {
            let directory = directory(names);
            let golden = Golden::open(directory.path(), None).unwrap();
            assert_eq!((golden.layout(), golden.configuration_name()), (layout, names[0]));
        }
    }

    #[test]
    fn what_was_looked_for_is_said() {
        let golden = directory(&["disk.raw", "memory"]);
        let error = Golden::open(golden.path(), None).err().unwrap().to_string();
        for word in ["qemu.args", "*.vmx", "*.cfg", "disk.raw, memory"] {
            assert!(error.contains(word), "{word}: {error}");
        }
        let golden = directory(&["a.vmx", "b.vmx"]);
        let error = Golden::open(golden.path(), None).err().unwrap();
        assert!(error.to_string().contains("a.vmx, b.vmx"), "{error}");
        assert_eq!(Golden::open(golden.path(), Some("b.vmx")).unwrap().configuration, "b.vmx");
        assert!(Golden::open(golden.path(), Some("c.vmx")).is_err());
        assert!(Golden::open(golden.path(), Some("../b.txt")).is_err());
        assert!(Golden::open(&golden.path().join("none"), None).is_err());
    }

    #[test]
    fn its_own_files_go_before_those_of_where_it_once_was() {
        let golden = directory(&["qemu.args", "disk.raw"]);
        let elsewhere = directory(&["disk.raw", "other.raw"]);
        let golden = Golden::open(golden.path(), None).unwrap();
        let own = golden.directory().join("disk.raw");
        for named in ["disk.raw".into(), elsewhere.path().join("disk.raw")] {
            assert_eq!(golden.file(named.to_str().unwrap()).unwrap(), own);
        }
        let other = elsewhere.path().join("other.raw");
        assert_eq!(golden.file(other.to_str().unwrap()).unwrap(), other);
        let error = golden.file("state").unwrap_err().to_string();
        assert!(error.contains("qemu.args names state, which is not there"), "{error}");
        assert!(golden.file(".").is_err());
    }
}
