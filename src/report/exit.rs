//! How a command ends, for scripts and units (docs/control.md).

/// Why a command has failed, as its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// For any other reason.
    Failed = 1,
    /// The arguments, an option or a settings file are wrong. clap's own status.
    Usage = 2,
    /// No such session.
    NoSession = 3,
    /// Data is not on the state server; it is kept where there is a disk cache.
    Unsent = 4,
    /// Not within the time that was given, or in which an answer comes from whoever is alive.
    TimedOut = 5,
    /// The session cannot do this.
    Refused = 6,
    /// Others have changed files under unsent data.
    Conflict = 7,
    /// The session does not answer: its process has died, or its socket is gone.
    Silent = 8,
    /// SIGINT or SIGTERM came while something was waited for.
    Interrupted = crate::interrupts::EXIT_STATUS,
}

const ALL: [Exit; 9] = [
    Exit::Failed,
    Exit::Usage,
    Exit::NoSession,
    Exit::Unsent,
    Exit::TimedOut,
    Exit::Refused,
    Exit::Conflict,
    Exit::Silent,
    Exit::Interrupted,
];

impl Exit {
    /// The name in JSON, as `code`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NoSession => "no-session",
            Self::Unsent => "unsent",
            Self::TimedOut => "timed-out",
            Self::Refused => "refused",
            Self::Conflict => "conflict",
            Self::Silent => "silent",
            Self::Interrupted => "interrupted",
        }
    }

    /// Reads a name; any other is a failure like another.
    pub fn from_name(name: &str) -> Self {
        ALL.into_iter().find(|exit| exit.name() == name).unwrap_or(Self::Failed)
    }

    /// Marks an error. Its words and hint stay.
    pub fn mark(self, error: anyhow::Error) -> anyhow::Error {
        anyhow::Error::new(Marked { exit: self, error })
    }

    /// Returns the outermost mark of an error.
    pub fn of(error: &anyhow::Error) -> Self {
        let mark = error.chain().find_map(|cause| cause.downcast_ref::<Marked>());
        mark.map_or(Self::Failed, |marked| marked.exit)
    }

    /// Returns the error that was marked.
    pub fn marked<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a anyhow::Error> {
        cause.downcast_ref::<Marked>().map(|marked| &marked.error)
    }
}

#[derive(Debug)]
struct Marked {
    exit: Exit,
    error: anyhow::Error,
}

impl std::fmt::Display for Marked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Marked {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // The error itself is what is displayed.
        self.error.chain().nth(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Hinted, error_text};

    #[test]
    fn a_mark_changes_no_word() {
        let error = Hinted::error("inner", "do this").context("outer");
        let text = error_text(&error);
        assert_eq!(Exit::of(&error), Exit::Failed);
        let marked = Exit::Unsent.mark(error);
        assert_eq!((Exit::of(&marked), error_text(&marked)), (Exit::Unsent, text));
        let marked = marked.context("further out");
        assert_eq!(Exit::of(&marked), Exit::Unsent);
        assert!(error_text(&marked).contains("outer: inner\nHint: do this"));
        for exit in ALL {
            assert_eq!(Exit::from_name(exit.name()), exit);
        }
    }
}
